"""How many samples: the sheet's worked case, a simulation, enumeration, the lemma, posteriors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from isoloss.planning.sampling import Counted, TaskType, best_samples

EASY, HARD = TaskType(0.58, 0.87, 1, 0.25, "easy"), TaskType(0.42, 0.13, 1, 0.25, "hard")


def reward(types, tries, value=1.0, wrong=0.0, price=0.0, at_once=False):
    """The formula, term by term."""
    total = sum(t.prior for t in types)
    out = 0.0
    for t in types:
        q = t.p * (1 - t.tpr) + (1 - t.p) * (1 - t.fpr)
        for k in range(1, tries + 1):
            gain = t.p * t.tpr * value - (1 - t.p) * t.fpr * wrong
            out += (
                t.prior
                / total
                * (q ** (k - 1) * (gain - (0 if at_once else price)) - (price if at_once else 0))
            )
    return out


@pytest.mark.parametrize(("wrong", "tries", "printed"), [(0.7, 3, 0.5246), (1, 2, 0.4724), (2, 1, 0.3388)])
def test_the_worked_case_of_the_sheet(wrong, tries, printed):
    best = best_samples([EASY, HARD], wrong=wrong)
    assert best.tries.value == tries == best.on_average
    assert best.reward.value == pytest.approx(printed, abs=5e-5)
    assert [c.value for c in best.caps] == pytest.approx([0.964, 0.374], abs=5e-4)
    assert best.cap.value == pytest.approx(0.716, abs=5e-4)
    assert (best.coverage, best.uniform, best.names) == (None, False, ("easy", "hard"))
    for point in best.curve:
        assert point.reward.value == pytest.approx(reward([EASY, HARD], point.tries, wrong=wrong), rel=1e-12)


def test_the_reward_is_what_a_simulation_earns():
    rng = np.random.default_rng(0)
    types = [TaskType(2, 0.6, 0.8, 0.1), TaskType(1, 0.2, 0.9, 0.4)]
    n, tries, price = 200_000, 4, 0.05
    which = rng.choice(2, n, p=[2 / 3, 1 / 3])
    p, tpr, fpr = (np.array([getattr(t, name) for t in types])[which] for name in ("p", "tpr", "fpr"))
    earned, open_ = np.zeros(n), np.ones(n, dtype=bool)
    for _ in range(tries):
        right = rng.random(n) < p
        accepted = open_ & (rng.random(n) < np.where(right, tpr, fpr))
        earned -= price * open_
        earned += np.where(accepted, np.where(right, 1.0, -0.5), 0.0)
        open_ &= ~accepted
    found = best_samples(types, wrong=0.5, price=price).curve[tries - 1]
    assert abs(found.reward.value - earned.mean()) < 4 * earned.std() / math.sqrt(n)
    assert abs(found.accepted - np.mean(~open_)) < 4 * 0.5 / math.sqrt(n)


def test_the_best_number_is_that_of_enumeration():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        count = rng.integers(1, 5)
        types = [TaskType(*(rng.uniform(0.01, 1, 4))) for _ in range(count)]
        at_once = bool(rng.random() < 0.5)
        settings = {"wrong": rng.exponential(1.5), "price": rng.choice([0, 0.01, 0.1]), "at_once": at_once}
        best = best_samples(types, **settings).tries.value
        rewards = [reward(types, k, **settings) for k in range(61)]
        top = max(rewards)
        if math.isinf(best):
            # it rises to the end of what was enumerated, or will overtake: the last is the best, or the limit is
            limit = reward(types, 4000, **settings)
            assert limit >= top - 1e-9
        elif best <= 60:
            assert rewards[int(best)] == pytest.approx(top, abs=1e-12)
        else:
            assert reward(types, int(best), **settings) > top
        found.append(best)
    assert {0, math.inf} < set(found)
    assert len(set(found)) > 4


def test_with_one_type_and_free_tries_it_is_all_or_nothing():
    rng = np.random.default_rng(2)
    for _ in range(50):
        one = TaskType(1, *rng.uniform(0.01, 0.99, 3))
        # a price that is paid until acceptance lowers the gain of a try; still all gain alike
        for price in (0.0, 0.02):
            gain = one.p * one.tpr - (1 - one.p) * one.fpr * 0.8 - price
            best = best_samples([one], wrong=0.8, price=price)
            assert best.tries.value == (math.inf if gain > 0 else 0)
            assert best.uniform
            assert "only be 0 or no limit" in best.reading
    endless = best_samples([TaskType(1, 0.3, 0.9, 0.2)], wrong=0.5)
    q = 0.3 * 0.1 + 0.7 * 0.8
    assert endless.reward.value == pytest.approx((0.27 - 0.07) / (1 - q))
    assert json.loads(json.dumps(endless.to_json()))["tries"]["value"] is None
    # all tries paid: a finite number
    assert (
        0 < best_samples([TaskType(1, 0.3, 0.9, 0.2)], wrong=0.5, price=0.02, at_once=True).tries.value < 30
    )


def test_the_best_of_very_many_tries_is_that_of_the_closed_form():
    """g (1 - q^K)/(1 - q) - s K is largest at q^K = s (1 - q)/(-g log q)."""
    p, price = 1e-6, 1e-12
    best = best_samples([TaskType(1, p, 1, 0)], price=price, at_once=True)
    tries = math.log(price * p / (-p * math.log1p(-p))) / math.log1p(-p)
    assert best.tries.value == pytest.approx(tries, rel=1e-4)  # the top is flat
    assert best.reward.value == pytest.approx(1 - math.exp(math.log1p(-p) * tries) - price * tries, rel=1e-9)


def test_the_cap_is_the_precision_whatever_the_number_of_samples():
    assert TaskType(1, 0.87, 1, 0.25).cap == pytest.approx(0.87 / (0.87 + 0.13 * 0.25))
    assert math.isnan(TaskType(1, 0.0, 0.5, 0.0).cap)
    never = [TaskType(1, 0.0, 0.5, 0.0), TaskType(1, 0.5, 1.0, 0.5)]
    assert best_samples(never).cap.value == pytest.approx(2 / 3)  # of tasks that end with an answer


def test_a_hard_type_that_is_never_accepted_ends_too():
    best = best_samples([TaskType(1, 0.0, 0.9, 0.0), TaskType(1, 0.5, 0.9, 0.1)], price=0.01)
    rewards = [
        reward([TaskType(1, 0.0, 0.9, 0.0), TaskType(1, 0.5, 0.9, 0.1)], k, price=0.01) for k in range(40)
    ]
    assert best.tries.value == np.argmax(rewards)


def test_close_difficulties_are_told_apart_far_out():
    # q 0.990 and 0.989: the loser survives a little longer, so the turn comes late
    types = [TaskType(1, 0.011, 1.0, 0.0), TaskType(1, 0.0, 1.0, 0.010)]
    best = best_samples(types, wrong=1.0).tries.value
    # p = 0.011 gains 0.011 q^k with q = 0.989; the other loses 0.010 with q = 0.990
    turn = math.ceil(math.log(0.010 / 0.011) / math.log(0.989 / 0.990))
    assert best == turn


def test_intervals_come_from_the_posteriors_of_the_counts():
    counts = [Counted(58, 174, 174, 26, 6, "easy"), Counted(42, 26, 26, 174, 44, "hard")]
    best = best_samples(counts, wrong=1.0, draws=4000)
    assert best.tries.low <= best.tries.value <= best.tries.high
    assert best.tries.low == int(best.tries.low)
    # the cap of one type: a smooth function of three independent beta variables, by scipy's draws
    rng = np.random.default_rng(3)
    p = stats.beta(26.5, 174.5).rvs(40_000, random_state=rng)
    tpr = stats.beta(26.5, 0.5).rvs(40_000, random_state=rng)
    fpr = stats.beta(44.5, 130.5).rvs(40_000, random_state=rng)
    want = np.quantile(p * tpr / (p * tpr + (1 - p) * fpr), [0.05, 0.95])
    assert (best.caps[1].low, best.caps[1].high) == pytest.approx(tuple(want), abs=0.006)
    assert best.coverage == 0.9
    again = best_samples(counts, wrong=1.0, draws=4000)
    assert again == best
    many = [Counted(5800, 17400, 17400, 2600, 650), Counted(4200, 2600, 2600, 17400, 4350)]
    sure = best_samples(many, wrong=1.0)
    assert (sure.tries.low, sure.tries.high) == (2, 2)
    assert sure.reward.high - sure.reward.low < (best.reward.high - best.reward.low) / 5


def test_a_count_of_all_lies_within_its_interval():
    """Five right of five: one sample is as good as many, but the counts do not say so yet."""
    best = best_samples([Counted(10, 5, 5, 0, 0)], wrong=0.5)
    assert (best.tries.low, best.tries.value, best.tries.high) == (1, 1, math.inf)
    assert best.cap.low < best.cap.value == best.cap.high == 1
    assert best.reward.low < best.reward.value == best.reward.high == 1
    assert not best.uniform


def test_rates_without_counts_have_no_interval():
    best = best_samples([EASY, HARD], wrong=1.0)
    assert all(math.isnan(end) for end in (best.tries.low, best.reward.high, best.cap.low))
    assert best.to_json()["tries"] == {"value": 2, "low": None, "high": None}


def test_few_counts_leave_the_number_open():
    best = best_samples([Counted(3, 4, 4, 2, 1), Counted(2, 1, 1, 4, 1)], wrong=0.5)
    assert best.tries.low < best.tries.high
    assert "no limit" in best.reading or best.tries.high < math.inf


def test_intervals_cover_the_planted_cap():
    truth = TaskType(1, 0.4, 0.9, 0.2)
    rng = np.random.default_rng(4)
    inside = 0
    for seed in range(200):
        right = rng.binomial(120, truth.p)
        counts = Counted(
            10, right, rng.binomial(right, truth.tpr), 120 - right, rng.binomial(120 - right, truth.fpr)
        )
        cap = best_samples([counts], draws=300, seed=seed).caps[0]
        inside += cap.low <= truth.cap <= cap.high
    assert 0.80 < inside / 200 < 0.97


def test_wrong_input_is_refused():
    for call, message in (
        (lambda: best_samples([]), "at least one type"),
        (lambda: best_samples([EASY, Counted(1, 1, 1, 1, 1)]), "got both"),
        (lambda: best_samples([EASY], wrong=-1), "wrong of 0 or more"),
        (lambda: best_samples([EASY], price=math.inf), "price of 0 or more"),
        (lambda: best_samples([EASY], coverage=1.0), "coverage"),
        (lambda: TaskType(0, 0.5, 1, 0), "positive prior"),
        (lambda: TaskType(1, 1.5, 1, 0), "p between"),
        (lambda: Counted(1, 2, 3, 1, 0), "right_accepted <= right"),
        (lambda: Counted(1, 0, 0, 0, 0), "a sample"),
        (lambda: Counted(0, 1, 1, 1, 1), "one task"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

"""Multiple choice: the chain of metrics, correlations against SciPy, survival, simulated accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from isoloss.errors import NoAnswer
from isoloss.observing import correlations, metric_to_fit, predict_accuracy, score_choices, survival

COMPUTE = np.geomspace(1e18, 1e21, 7)
LOG = np.log(COMPUTE) - np.log(COMPUTE).mean()


def world(seed: int, samples: int = 300, noise: float = 0.1, choices: int = 4, at=COMPUTE):
    """Straight lines in log compute for every choice of every sample, and noise around them."""
    rng = np.random.default_rng(seed)
    start = rng.normal(-5, 1, (samples, choices))
    slope = rng.normal(0.05, 0.08, (samples, choices))
    start[:, 0] -= 0.3
    slope[:, 0] += 0.15
    x = np.log(at) - np.log(COMPUTE).mean()
    lines = start + slope * x[:, None, None]
    return np.minimum(lines + noise * rng.standard_normal(lines.shape), 0.0), np.zeros(samples, dtype=int)


def test_the_sheet_s_question_wins_or_loses_by_the_rest():
    with np.errstate(divide="ignore"):
        found = score_choices(np.log([[0.4, 0.2, 0.2, 0.2], [0.4, 0.6, 0.0, 0.0]]), [0, 0])
    assert found.accuracy.tolist() == [[1, 0]]
    np.testing.assert_allclose(found.p_correct, [[0.4, 0.4]])
    np.testing.assert_allclose(found.p_choices, [[0.4, 0.4]])
    np.testing.assert_allclose(found.brier, [[0.36 + 3 * 0.04, 0.36 + 0.36]])
    np.testing.assert_allclose(found.log_mass_others, np.log([[0.6, 0.6]]))


def test_the_chain_on_random_numbers():
    rng = np.random.default_rng(0)
    logs = rng.normal(-6, 2, (3, 8, 5)).clip(max=0)
    right = rng.integers(0, 5, 8)
    found = score_choices(logs, right)
    for m in range(3):
        for s in range(8):
            share = special.softmax(logs[m, s])
            target = np.eye(5)[right[s]]
            assert found.log_p_correct[m, s] == logs[m, s, right[s]]
            assert found.p_correct[m, s] == pytest.approx(math.exp(logs[m, s, right[s]]))
            assert found.p_choices[m, s] == pytest.approx(share[right[s]])
            assert found.brier[m, s] == pytest.approx(np.sum((target - share) ** 2))
            assert found.accuracy[m, s] == (np.argmax(share) == right[s])
            others = special.logsumexp(np.delete(logs[m, s], right[s]))
            assert found.log_mass_others[m, s] == pytest.approx(others)
            if found.p_choices[m, s] > 0.5:
                assert found.accuracy[m, s] == 1


def test_tiny_probabilities_and_ties():
    found = score_choices(np.full((1, 1, 4), -1e4), [2])
    assert found.p_choices.tolist() == [[0.25]]
    assert found.accuracy.tolist() == [[0.25]]
    half = score_choices(np.log([[0.3, 0.3, 0.1]]), [2])
    assert half.accuracy.tolist() == [[0]]


@pytest.mark.parametrize("how", ["spearman", "kendall", "pearson"])
def test_correlations_are_scipys(how):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, (7, 40)).astype(float)  # many ties
    values[:, 0] = 2.0
    got = correlations(values, COMPUTE, how)
    function = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}[how]
    assert np.isnan(got[0])
    want = [function(np.log(COMPUTE), values[:, s])[0] for s in range(1, 40)]
    np.testing.assert_allclose(got[1:], want, atol=1e-12)


def test_the_exponential_keeps_ranks_only():
    logs, right = world(0)
    scores = score_choices(logs, right)
    for how in ("spearman", "kendall"):
        np.testing.assert_array_equal(
            correlations(scores.log_p_correct, COMPUTE, how), correlations(scores.p_correct, COMPUTE, how)
        )
    assert not np.allclose(
        correlations(scores.log_p_correct, COMPUTE, "pearson"),
        correlations(scores.p_correct, COMPUTE, "pearson"),
    )
    infinite = np.array([[-np.inf], [-3.0], [-2.0]])
    assert correlations(infinite, [1, 2, 4], "kendall").tolist() == [1]
    with pytest.raises(ValueError, match="spearman"):
        correlations(infinite, [1, 2, 4], "pearson")


def test_survival_is_the_share_above():
    logs, right = world(2, noise=1.0)
    values = score_choices(logs, right).p_choices
    found = survival(values, COMPUTE, metric="p_choices")
    c = correlations(values, COMPUTE)
    grid = np.linspace(-1, 1, 20_001)
    curve = (c[:, None] > grid).mean(axis=0)
    assert found.area == pytest.approx(np.trapezoid(curve, grid) / 2, abs=1e-3)
    assert found.distance == pytest.approx(np.trapezoid(1 - curve, grid) / 2, abs=1e-3)
    assert found.mean.value == pytest.approx(c.mean())
    # The bootstrap's spread is the standard deviation of a mean, n in the denominator.
    half = 1.645 * c.std() / math.sqrt(len(c))
    assert found.mean.high - found.mean.low == pytest.approx(2 * half, rel=0.1)
    assert found.median == pytest.approx(np.median(c))
    for at, share in zip(found.at[::50], found.share[::50], strict=True):
        assert share == pytest.approx(np.mean(c > at))


def test_less_brier_is_more_and_what_never_moves_counts_as_none():
    values = np.array([[0.9, 0.5], [0.5, 0.5], [0.1, 0.5]])
    found = survival(values, [1, 2, 4], metric="brier")
    assert (found.mean.value, found.constant) == (0.5, 1)
    assert math.isnan(found.mean.low)  # of two samples


def test_the_chain_degrades_in_its_order():
    logs, right = world(3, samples=600, noise=0.3)
    found = metric_to_fit(logs, right, COMPUTE)
    order = dict(found.ranking)
    assert order["log_p_correct"] == order["p_correct"] > order["p_choices"] > order["accuracy"]
    assert found.metric == "log_p_correct"
    assert found.lead.low > 0
    assert any("simulate accuracy" in reason for reason in found.reasons)
    assert any("never moves on" in reason for reason in found.reasons)


def test_a_lead_by_chance_is_not_resolved():
    rng = np.random.default_rng(4)
    logs = np.minimum(rng.normal(-3, 1, (7, 12, 4)), 0)  # nothing follows scale
    found = metric_to_fit(logs, np.zeros(12, dtype=int), COMPUTE)
    assert found.metric == "not resolved" or found.ranking[0][0] == "accuracy"


def test_accuracy_of_a_larger_model_is_foretold():
    at = np.array([1e23])
    errors, inside = [], 0
    for seed in range(12):
        logs, right = world(seed)
        # the same lines, because the same seed; another noise
        truth = score_choices(world(seed, at=at, noise=0.0)[0], right).accuracy.mean()
        found = predict_accuracy(logs, right, COMPUTE, 1e23, draws=200, seed=seed)
        errors.append(found.accuracy.value - truth)
        # noise in a new model's log p shows in its accuracy too: a hundredth at most here
        inside += found.accuracy.low - 0.01 <= truth <= found.accuracy.high + 0.01
        assert found.reach == pytest.approx(100)
    assert inside >= 8
    assert np.abs(errors).mean() < 0.02


def test_a_draw_of_one_line_is_students_t():
    # one sample, two choices; the right one is sure to lose or win by its own line alone
    rng = np.random.default_rng(5)
    y = -4 + 0.3 * LOG + 0.2 * rng.standard_normal(7)
    ahead = math.log(1e22) - np.log(COMPUTE).mean()
    fit = stats.linregress(LOG, y)
    mean = fit.intercept + fit.slope * ahead
    rest = y - fit.intercept - fit.slope * LOG
    sd = math.sqrt(np.sum(rest**2) / 5 * (1 + 1 / 7 + ahead**2 / np.sum(LOG**2)))
    for step in (-1.0, 0.4, 2.0):
        logs = np.stack([y, np.full(7, mean + step * sd)], axis=-1)[:, None]
        found = predict_accuracy(logs, np.array([0]), COMPUTE, 1e22, draws=4000)
        want = stats.t.sf(step, 5)
        assert abs(found.accuracy.value - want) < 4 * math.sqrt(want * (1 - want) / 4000)
        assert found.log_p_correct == pytest.approx(mean)
        assert found.log_mass_others == pytest.approx(mean + step * sd)


def test_samples_may_have_fewer_choices():
    logs, right = world(6)
    logs[:, ::2, 3] = -np.inf
    found = predict_accuracy(logs, right, COMPUTE, 1e22, draws=50)
    assert 0 < found.accuracy.low <= found.accuracy.value <= found.accuracy.high < 1
    logs[0, 1, 3] = -np.inf
    with pytest.raises(ValueError, match="in some models only"):
        predict_accuracy(logs, right, COMPUTE, 1e22)


def test_bad_input():
    logs, right = world(0, samples=5)
    for call, message in (
        (lambda: score_choices(logs[:, :, :1], right), "two choices"),
        (lambda: score_choices(-logs + 0.1, right), "none above 0"),
        (lambda: score_choices(logs, right[:2]), "5 indices"),
        (lambda: score_choices(logs, right + 9), "from 0 to 3"),
        (lambda: score_choices(np.full((1, 1, 2), -np.inf), [0]), "all -inf"),
        (lambda: correlations(logs[..., 0], COMPUTE[:3]), "shape"),
        (lambda: correlations(logs[..., 0], COMPUTE, "rank"), "no correlation named"),
        (lambda: correlations(logs[..., 0], -COMPUTE), "positive compute"),
        (lambda: predict_accuracy(logs, right, COMPUTE, 0), "positive compute"),
        (lambda: predict_accuracy(logs[:5], right, COMPUTE, 1), "of 7 models"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(NoAnswer, match="two scales"):
        correlations(logs[:2, :, 0], COMPUTE[:2])
    with pytest.raises(NoAnswer, match="2 samples give no bootstrap"):
        metric_to_fit(logs[:, :2], right[:2], COMPUTE)
    with pytest.raises(NoAnswer, match="3 models"):
        predict_accuracy(logs[:3], right, COMPUTE[:3], 1e22)

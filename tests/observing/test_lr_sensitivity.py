"""How much a wrong learning rate costs: by hand, its cap, its interval, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isoloss.errors import NoAnswer
from isoloss.observing import learning_rate_sensitivity
from isoloss.observing.lr_sensitivity import RATES

NAN = float("nan")


def test_by_hand_on_the_paper_s_rates():
    assert RATES == (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    loss = [3.6, 3.2, 3.0, 3.1, 4.0, 12.0, NAN]  # start 10.5: the last two count as 10.5
    found = learning_rate_sensitivity(RATES, loss, 10.5)
    assert found.value == pytest.approx((0.6 + 0.2 + 0.0 + 0.1 + 1.0 + 7.5 + 7.5) / 7)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert "not resolved" in found.how
    mixed = np.random.default_rng(0).permutation(7)
    again = learning_rate_sensitivity(np.array(RATES)[mixed], np.array(loss)[mixed], 10.5)
    assert again.value == pytest.approx(found.value)


def test_no_more_than_the_whole_descent():
    loss = [2.0, NAN, math.inf, 50.0]
    found = learning_rate_sensitivity([1, 2, 3, 4], loss, 5.0, rates=None)
    assert found.value == pytest.approx(0.75 * 3.0)  # 3.0 at the most, at three rates of four
    flat = learning_rate_sensitivity([1, 2, 3], [2.0, 2.0, 2.0], 5.0, rates=None)
    assert flat.value == 0.0
    with pytest.raises(NoAnswer, match="below the loss at initialisation"):
        learning_rate_sensitivity([1, 2], [NAN, 7.0], 5.0, rates=None)


def test_seeds_of_one_rate_are_averaged_and_give_the_interval():
    rng = np.random.default_rng(1)
    truth = np.array([3.4, 3.0, 3.3, 9.0])
    rates, seeds, noise = [1, 2, 3, 4], 60, 0.05
    lr = np.repeat(rates, seeds)
    loss = np.repeat(truth, seeds) + noise * rng.normal(size=len(lr))
    found = learning_rate_sensitivity(lr, loss, 8.0, rates=rates)
    means = np.minimum(loss, 8.0).reshape(4, seeds).mean(axis=1)
    assert found.value == pytest.approx(np.mean(means - means.min()))
    assert found.low < found.value < found.high
    # Weights of the best rate and of the two others; the fourth is at the cap.
    each = noise / math.sqrt(seeds)
    sd = each * math.sqrt((1 / 4 - 1) ** 2 + 2 / 16)
    assert (found.high - found.low) / (2 * 1.645 * sd) == pytest.approx(1.0, abs=0.25)
    assert learning_rate_sensitivity(lr, loss, 8.0, rates=rates) == found


def test_intervals_hold_as_often_as_they_say():
    truth = np.array([3.4, 3.0, 3.3])
    want = float(np.mean(truth - 3.0))
    held = 0
    for seed in range(200):
        rng = np.random.default_rng([2, seed])
        loss = np.repeat(truth, 12) + 0.05 * rng.normal(size=36)
        found = learning_rate_sensitivity(np.repeat([1, 2, 3], 12), loss, 8.0, rates=None, coverage=0.8)
        held += found.low <= want <= found.high
    assert abs(held - 160) < 4 * math.sqrt(200 * 0.8 * 0.2)


def test_known_noise_gives_an_interval_to_single_runs():
    loss = [3.6, 3.2, 3.0, 3.1, 4.0, 12.0, NAN]
    found = learning_rate_sensitivity(RATES, loss, 10.5, noise=0.02)
    assert found.how == "noise as stated"
    # the runs that diverged have none; the best has weight 1/7 - 1, the four others 1/7
    sd = 0.02 * math.sqrt((1 / 7 - 1) ** 2 + 4 / 49)
    assert found.high - found.low == pytest.approx(2 * 1.645 * sd, rel=0.1)
    still = learning_rate_sensitivity(RATES, loss, 10.5, noise=0.0)
    assert (still.low, still.high) == pytest.approx((still.value, still.value))


@pytest.mark.parametrize(
    ("lr", "loss", "settings", "says"),
    [
        ([1e-3], [3.0], {}, "none at 0.0003"),
        ([*RATES, 5e-3], [3.0] * 8, {}, "got also 0.005"),
        ([1, 2], [3.0], {"rates": None}, "loss for every rate"),
        ([0.0, 2], [3.0, 3.0], {"rates": None}, "above 0"),
        ([1, 2], [3.0, 3.0], {"rates": None, "coverage": 0.0}, "coverage"),
        ([1, 2], [3.0, 3.0], {"rates": None, "noise": -1.0}, "noise"),
        ([1, 2], [3.0, 3.0], {"rates": ()}, "rates finite and above 0"),
    ],
)
def test_wrong_input_is_refused(lr, loss, settings, says):
    with pytest.raises(ValueError, match=says):
        learning_rate_sensitivity(lr, loss, 5.0, **settings)

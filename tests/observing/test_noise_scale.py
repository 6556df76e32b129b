"""The gradient noise scale: Gaussian gradients with known norm and covariance, Fieller's theorem, the trainer's meter."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isoloss.errors import NoAnswer
from isoloss.observing import gradient_noise_scale
from isoloss.observing.noise_scale import fieller
from isoloss.trainers.noise import NoiseMeter

RNG = np.random.default_rng
TRACE = 77.5
SPECTRUM = np.linspace(0.1, 3.0, 50)  # 50 variances that sum to 77.5
G = np.full(50, 1 / math.sqrt(50))  # |G| = 1


def norms(batch, steps, rng, signal=G):
    """Squared norms of mean gradients of a batch: mean G, covariance Sigma/B."""
    noise = rng.normal(size=(steps, 50)) * np.sqrt(SPECTRUM / batch)
    return np.sum((signal + noise) ** 2, axis=1)


def test_the_spectrum_is_that_of_the_check():
    assert SPECTRUM.sum() == pytest.approx(TRACE)
    assert float(G @ G) == pytest.approx(1.0)


def test_estimates_are_unbiased_and_the_ratio_is_of_means():
    # The check of the literature: D = 50, tr Sigma = 77.5, |G| = 1, batches 16 and 256, 4,000 draws.
    rng = RNG(0)
    small, big = norms(16, 4000, rng), norms(256, 4000, rng)
    found = gradient_noise_scale(small, big, 16, 256)
    signal = (256 * big - 16 * small) / 240
    spread = (small - big) / (1 / 16 - 1 / 256)
    for measured, per_step, truth in [(found.signal, signal, 1.0), (found.spread, spread, TRACE)]:
        assert measured.value == pytest.approx(per_step.mean())
        assert abs(measured.value - truth) < 4 * per_step.std() / math.sqrt(4000)
    assert found.scale.value == pytest.approx(spread.mean() / signal.mean())
    assert found.scale.value == pytest.approx(TRACE, rel=0.03)
    # Expected squared norms are |G|^2 + tr(Sigma)/B exactly: then nothing is left to chance.
    exact = gradient_noise_scale([1 + TRACE / 16] * 8, [1 + TRACE / 256] * 8, 16, 256)
    assert (exact.signal.value, exact.spread.value) == pytest.approx((1.0, TRACE))
    assert (exact.scale.low, exact.scale.high) == pytest.approx((TRACE, TRACE))


def test_the_mean_of_ratios_would_be_off():
    rng = RNG(8)
    small, big = norms(16, 20_000, rng, 0.7 * G), norms(256, 20_000, rng, 0.7 * G)
    truth = TRACE / 0.49
    ratios = (small - big) / (1 / 16 - 1 / 256) / ((256 * big - 16 * small) / 240)
    found = gradient_noise_scale(small, big, 16, 256)
    assert found.scale.low < truth < found.scale.high
    assert abs(found.scale.value / truth - 1) < 0.02 < abs(ratios.mean() / truth - 1)


def test_the_large_gradient_may_be_the_mean_of_the_small_ones():
    rng = RNG(2)
    parts = G + rng.normal(size=(3000, 8, 50)) * np.sqrt(SPECTRUM / 16)
    small = np.mean(np.sum(parts**2, axis=2), axis=1)
    big = np.sum(parts.mean(axis=1) ** 2, axis=1)
    found = gradient_noise_scale(small, big, 16, 128)
    assert found.scale.low < TRACE < found.scale.high
    assert found.scale.value == pytest.approx(TRACE, rel=0.05)


def test_intervals_hold_as_often_as_they_say():
    held = {"scale": 0, "signal": 0, "spread": 0}
    truth = {"scale": TRACE, "signal": 1.0, "spread": TRACE}
    for seed in range(300):
        rng = RNG([3, seed])
        found = gradient_noise_scale(norms(16, 60, rng), norms(128, 60, rng), 16, 128, coverage=0.8)
        for name, true in truth.items():
            measured = getattr(found, name)
            held[name] += measured.low <= true <= measured.high
    for name, count in held.items():
        assert abs(count - 240) < 4 * math.sqrt(300 * 0.8 * 0.2), name


def test_blocks_keep_what_neighbouring_steps_share():
    rng = RNG(4)
    slow = np.repeat(rng.normal(size=40), 25)  # a drift that 25 steps share
    small, big = norms(16, 1000, rng) + 0.5 * slow + 2, norms(128, 1000, rng) + 0.5 * slow + 2
    blocked, naive = (gradient_noise_scale(small, big, 16, 128, blocks=b) for b in (20, 1000))
    wide, tight = (f.signal.high - f.signal.low for f in (blocked, naive))
    assert wide > 2 * tight


def test_fieller_is_where_the_difference_is_no_longer_sure():
    cases = [(3.0, 2.0, 0.04, 0.09, 0.01, 2.0), (1.0, 5.0, 0.5, 0.1, -0.1, 1.7)]
    for a, b, va, vb, vab, t in cases:
        for rho in fieller(a, b, va, vb, vab, t):
            assert (a - rho * b) ** 2 == pytest.approx(t**2 * (va - 2 * rho * vab + rho**2 * vb))
    # the denominator is not told from zero: open above, and bounded below where the numerator is sure
    low, high = fieller(5.0, 1.0, 0.01, 1.0, 0.0, 2.0)
    assert high == math.inf
    assert (5.0 - low) ** 2 == pytest.approx(4 * (0.01 + low**2))
    assert fieller(0.1, 0.1, 1.0, 1.0, 0.0, 2.0) == (-math.inf, math.inf)


def test_a_signal_near_zero_leaves_the_upper_end_open_and_none_is_no_answer():
    rng = RNG(5)
    small, big = norms(16, 40, rng, 0.05 * G), norms(32, 40, rng, 0.05 * G)
    signal = (32 * big - 16 * small) / 16
    if signal.mean() > 0:
        assert gradient_noise_scale(small, big, 16, 32).scale.high == math.inf
    shifted = big - signal.mean() / 2 - 0.01  # the mean signal below zero
    with pytest.raises(NoAnswer, match="noise hides"):
        gradient_noise_scale(small, np.maximum(shifted, 0), 16, 32)
    with pytest.raises(NoAnswer, match="no noise"):
        gradient_noise_scale([1.0] * 6, [1.0] * 6, 16, 32)
    with pytest.raises(NoAnswer, match="3 steps"):
        gradient_noise_scale([2.0] * 3, [1.0] * 3, 16, 32)


def test_the_trainer_s_meter_has_the_same_two_estimates():
    # It runs in a worker without the rest of the package, so it has the formulas too: they must agree.
    rng = RNG(6)
    small, big = norms(64, 500, rng), norms(128, 500, rng)
    meter = NoiseMeter(keep=0.0)  # only the last step
    meter.update(128, 3.0, 2.0)
    one = gradient_noise_scale([3.0] * 8, [2.0] * 8, 64, 128)
    assert meter.spread == pytest.approx(one.spread.value)
    assert meter.signal == pytest.approx(one.signal.value)
    slow = NoiseMeter(keep=1 - 1e-9)  # all steps alike, up to a factor that cancels
    for halves, whole in zip(small, big, strict=True):
        slow.update(128, halves, whole)
    assert slow.scale == pytest.approx(gradient_noise_scale(small, big, 64, 128).scale.value, rel=1e-6)


@pytest.mark.parametrize(
    ("small", "big", "b", "B", "says"),
    [
        ([1.0] * 5, [1.0] * 4, 16, 32, "both norms"),
        ([1.0] * 5, [1.0] * 5, 32, 16, "small_batch < big_batch"),
        ([1.0] * 5, [1.0] * 5, 0, 16, "small_batch < big_batch"),
        ([1.0, -1, 1, 1], [1.0] * 4, 16, 32, "at or above 0"),
        ([1.0, np.nan, 1, 1], [1.0] * 4, 16, 32, "finite"),
    ],
)
def test_wrong_input_is_refused(small, big, b, B, says):
    with pytest.raises(ValueError, match=says):
        gradient_noise_scale(small, big, b, B)

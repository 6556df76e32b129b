"""The noise meter against a gradient whose noise scale is known."""

from __future__ import annotations

import numpy as np
import pytest

from isoloss.trainers.noise import NoiseMeter


def test_it_finds_the_noise_scale_of_a_quadratic():
    """Loss 1/2 |theta|^2 at a fixed theta: gradient theta plus N(0, Sigma) an example, scale tr(Sigma) / |theta|^2."""
    rng = np.random.default_rng(0)
    theta = np.array([0.3, -0.1, 0.2, 0.05])
    sigma = np.array([1.0, 2.0, 0.5, 0.5])  # variances; trace 4
    batch, steps = 64, 20000
    meter = NoiseMeter(keep=1 - 1 / 5000)
    noise = rng.normal(size=(steps, 2, 4)) * np.sqrt(sigma / (batch / 2))
    for one, other in theta + noise:
        halves = (one @ one + other @ other) / 2
        whole = (one + other) / 2
        meter.update(batch, halves, whole @ whole)
    assert meter.scale == pytest.approx(4.0 / (theta @ theta), rel=0.1)


def test_noise_alone_has_no_scale():
    meter = NoiseMeter()
    assert meter.scale is None
    meter.update(10, halves=2.0, whole=0.9)  # less than half: the estimate of |G|^2 is negative
    assert meter.scale is None


def test_a_gradient_without_noise_has_scale_zero():
    meter = NoiseMeter()
    meter.update(10, halves=2.0, whole=2.0)
    assert meter.scale == 0

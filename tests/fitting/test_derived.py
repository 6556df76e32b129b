"""Quantities that follow from a fit: against draws by hand; never beyond the rows; open where nothing bounds them."""

from __future__ import annotations

import math

import numpy as np
import pytest

import isoloss
from isoloss.errors import NoAnswer
from isoloss.fitting.derived import critical_batch, crossing, derived

BATCH = np.geomspace(1e4, 3e6, 8)


def steps_fit(a, b, noise, law="critical-batch", draws=400, seed=0):
    rng = np.random.default_rng(seed)
    steps = (a + b / BATCH) * np.exp(noise * rng.normal(size=len(BATCH)))
    runs = {"batch_tokens": BATCH, "steps": steps}
    return isoloss.fit(law, runs, draws=draws, sensitivity=False)


def test_it_is_the_function_over_the_draws():
    fit = steps_fit(500, 2e8, 0.03)
    ratio = fit.draws[:, 1] / fit.draws[:, 0]
    got = derived(fit, lambda theta: theta[..., 1] / theta[..., 0], coverage=0.8)
    assert got.value == pytest.approx(fit.theta[1] / fit.theta[0])
    assert got.low == pytest.approx(np.quantile(ratio, 0.1), rel=0.01)
    assert got.high == pytest.approx(np.quantile(ratio, 0.9), rel=0.01)
    assert got.resolved


def test_the_critical_batch_holds_the_truth_in_either_form():
    for law in ("critical-batch", "steps-examples"):
        found = critical_batch(steps_fit(500, 2e8, 0.02, law), overhead=1, coverage=0.98)
        assert found.low < 4e5 < found.high
        assert found.resolved
        assert critical_batch(steps_fit(500, 2e8, 0.0, law), overhead=1).value == pytest.approx(4e5, rel=1e-3)
        assert critical_batch(
            steps_fit(500, 2e8, 0.0, law), overhead=0.2, reference=2e4
        ).value == pytest.approx(0.2 * 4e5 + 1.2 * 2e4, rel=1e-3)


def test_it_is_never_carried_beyond_the_batches():
    with pytest.raises(NoAnswer, match="above the batches"):
        critical_batch(steps_fit(10, 2e8, 0.0), overhead=1)
    with pytest.raises(NoAnswer, match="below the batches"):
        critical_batch(steps_fit(50_000, 2e8, 0.0), overhead=0.2)
    near = critical_batch(steps_fit(90, 2e8, 0.2, seed=2), overhead=1)
    assert near.high == math.inf
    assert not near.resolved
    assert "not resolved" in str(near)
    with pytest.raises(TypeError, match="critical-batch"):
        critical_batch(isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=20))


def test_a_fit_without_draws_or_rows_has_no_interval():
    with pytest.raises(NoAnswer, match="no draws"):
        critical_batch(steps_fit(500, 2e8, 0.02, draws=0))
    few = isoloss.fit(
        "critical-batch", {"batch_tokens": BATCH[[0, 7]], "steps": 500 + 2e8 / BATCH[[0, 7]]}, draws=50
    )
    with pytest.raises(NoAnswer, match="residual"):
        critical_batch(few)
    with pytest.raises(ValueError, match="negative"):
        derived(steps_fit(500, 2e8, 0.02), lambda theta: -theta[..., 0])
    with pytest.raises(ValueError, match="coverage"):
        derived(steps_fit(500, 2e8, 0.02), lambda theta: theta[..., 0], coverage=1.5)


def logit_fit(values, noise, seed=0):
    rng = np.random.default_rng(seed)
    size = np.geomspace(1e7, 1.2e9, 10)
    u = np.log(size / 1e8)
    z = np.exp(math.log(values[0]) + values[1] * u + values[2] * u**2 + noise * rng.normal(size=10))
    runs = {"params": size, "max_attention_logit": z}
    return isoloss.fit("logit-growth", runs, draws=400, sensitivity=False)


def test_the_size_that_fails_has_an_interval_only_where_the_rows_bound_it():
    exact = crossing(logit_fit((60, 0.8, 0.05), 0.0))
    root = (-0.8 + math.sqrt(0.8**2 + 4 * 0.05 * math.log(1e4 / 60))) / 0.1
    assert exact.value == pytest.approx(1e8 * math.exp(root), rel=1e-3)
    clear = crossing(logit_fit((60, 0.8, 0.05), 0.02), coverage=0.98)
    assert clear.resolved
    assert clear.low < 1e8 * math.exp(root) < clear.high
    unclear = crossing(logit_fit((60, 0.3, -0.01), 0.2))
    assert unclear.high == math.inf
    assert not unclear.resolved
    with pytest.raises(TypeError, match="logit-growth"):
        crossing(steps_fit(500, 2e8, 0.02))

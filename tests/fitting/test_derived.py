"""Quantities that follow from a fit: against draws by hand; never beyond the rows; open where nothing bounds them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import isoloss
from isoloss.errors import NoAnswer
from isoloss.fitting.derived import critical_batch, crossing, cutoff, derived

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
    assert got.how == "draws of critical-batch(batch_tokens)"


def test_the_critical_batch_holds_the_truth_in_either_form():
    for law in ("critical-batch", "steps-examples"):
        found = critical_batch(steps_fit(500, 2e8, 0.02, law), overhead=1, coverage=0.98)
        assert found.low < 4e5 < found.high
        assert "not resolved" not in found.how
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
    assert "not resolved" in str(near)
    with pytest.raises(TypeError, match="critical-batch"):
        critical_batch(
            isoloss.fit(
                "power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=20, sensitivity=False
            )
        )


def test_a_fit_without_draws_or_rows_has_no_interval():
    with pytest.raises(NoAnswer, match="no draws"):
        critical_batch(steps_fit(500, 2e8, 0.02, draws=0))
    few = isoloss.fit(
        "critical-batch",
        {"batch_tokens": BATCH[[0, 7]], "steps": 500 + 2e8 / BATCH[[0, 7]]},
        draws=50,
        sensitivity=False,
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
    assert "not resolved" not in clear.how
    assert clear.low < 1e8 * math.exp(root) < clear.high
    unclear = crossing(logit_fit((60, 0.3, -0.01), 0.2))
    assert unclear.high == math.inf
    assert "not resolved" in unclear.how
    with pytest.raises(TypeError, match="logit-growth"):
        crossing(steps_fit(500, 2e8, 0.02))


def routed_fit(law="clark"):
    n, e = (v.ravel() for v in np.meshgrid([2e7, 1e8, 5e8], [1.0, 4, 16, 64, 256]))
    clark = isoloss.laws.get("clark")
    loss = clark.evaluate(clark.theta("hash-2022"), params_active=n, experts=e)
    size = "params_active" if law == "clark" else "params"
    return isoloss.fit(law, {size: n, "experts": e, "loss": loss}, draws=50, starts=8, sensitivity=False)


def test_a_cutoff_has_an_interval_only_where_every_draw_has_one():
    fit = routed_fit()
    b, c = (fit.law.names.index(name) for name in "bc")

    def drawn(slopes):
        draws = np.tile(fit.theta, (1000, 1))
        draws[:, b], draws[:, c] = -0.12, slopes
        return replace(fit, draws=draws)

    found = cutoff(drawn(np.linspace(0.008, 0.012, 1000)), coverage=0.8)
    assert math.log10(found.value) == pytest.approx(0.136 / 0.012, abs=1e-3)
    assert math.log10(found.low) == pytest.approx(0.12 / 0.0116, abs=0.01)
    assert math.log10(found.high) == pytest.approx(0.12 / 0.0084, abs=0.02)
    open_ended = cutoff(drawn(np.linspace(-0.005, 0.012, 1000)))
    assert math.isfinite(open_ended.low)
    assert open_ended.high == math.inf
    assert "not resolved" in open_ended.how
    assert cutoff(drawn(-0.01)).low == math.inf
    with pytest.raises(TypeError, match="clark or of a law with routed"):
        cutoff(steps_fit(500, 2e8, 0.02))


def test_the_cutoff_of_the_factor_is_that_of_the_law():
    """A pure power of the dense size is clark's dense law, so the factor's turned slopes give its cutoff."""
    assert cutoff(routed_fit("power(params) * routed")).value == pytest.approx(
        10 ** (0.136 / 0.012), rel=1e-3
    )

"""The task law on rates measured by sampling until enough passes came."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss
from isoloss.observing import pass_until


def test_a_planted_task_is_recovered_from_passes():
    rng = np.random.default_rng(0)
    sizes = np.geomspace(2e7, 2e9, 12)
    truth = {"c": 1500.0, "alpha": 0.30}
    rates = np.exp(-truth["c"] * sizes ** -truth["alpha"])
    assert rates.min() < 1e-4  # far below what a thousand samples would see
    measured = []
    for p in rates:
        samples = 100 + int(rng.negative_binomial(100, p))
        measured.append(pass_until(100, samples, wanted=100).unbiased.value)
    fit = isoloss.fit(
        "task-law",
        {"params": sizes, "pass_rate": measured},
        draws=400,
        sensitivity=False,
    )
    assert fit.objective == isoloss.LeastSquares()  # of logs: a rate of 1e-5 says as much as one of 0.5
    alpha = fit.parameters["alpha"]
    assert alpha.low < truth["alpha"] < alpha.high
    assert alpha.stderr < 0.02
    ahead = fit.predict(params=2e10)
    want = np.exp(-truth["c"] * 2e10 ** -truth["alpha"])
    assert ahead.low[0] < want < ahead.high[0]
    # log rates of 100 passes scatter by 1/sqrt(100)
    assert np.std(fit.residuals) == pytest.approx(0.1, rel=0.6)


def test_a_rate_of_zero_is_refused_not_dropped():
    sizes = np.geomspace(2e7, 2e9, 8)
    rates = np.exp(-800 * sizes**-0.3) * np.exp(0.05 * np.cos(np.arange(8.0)))
    rates[0] = 0.0
    with pytest.raises(ValueError, match="pass_rate above 0, got 0 in row 1"):
        isoloss.fit("task-law", {"params": sizes, "pass_rate": rates}, draws=0, sensitivity=False)

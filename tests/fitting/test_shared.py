"""An error that all rows share: into the draws where the law can hold it, said where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss


def rows(sd):
    rng = np.random.default_rng(0)
    n, d = (a.ravel() for a in np.meshgrid([1e8, 2e8, 4e8], [4e9, 16e9, 64e9]))
    lr = 2 * n**-0.7 * d**0.3 * np.exp(0.03 * rng.normal(size=9))
    out = {"params_nonembedding": n, "tokens": d, "lr": lr}
    return out if sd is None else {**out, "lr_shared_sd": np.broadcast_to(sd, 9).astype(float)}


def spread(fit):
    told = fit.law.evaluate(fit.draws, params_nonembedding=2e8, tokens=16e9)
    return float(np.std(np.log(told)))


def test_it_adds_to_the_spread_of_every_prediction_and_moves_no_estimate():
    plain, shared = (isoloss.fit("step-law", rows(sd), sensitivity=False) for sd in (None, 0.1))
    assert np.array_equal(shared.theta, plain.theta)
    assert spread(shared) == pytest.approx(np.hypot(spread(plain), 0.1), rel=0.08)
    exponents = [np.std(f.draws[:, 1:], axis=0) for f in (plain, shared)]
    np.testing.assert_array_equal(*exponents)
    (found,) = [w for w in shared.warnings if w.code == "shared-error"]
    assert (found.level, found.column) == ("note", "lr_shared_sd")
    assert "10 %" in found.text
    assert np.array_equal(isoloss.fit("step-law", rows(0.1), sensitivity=False).draws, shared.draws)


def test_without_one_nothing_happens():
    for table in (rows(None), rows(0.0), rows(np.nan)):
        found = isoloss.fit("step-law", table, draws=50, sensitivity=False)
        assert not [w for w in found.warnings if w.code == "shared-error"]
    assert not isoloss.fit("step-law", rows(0.1), draws=0, sensitivity=False).warnings[1:]


def test_a_law_that_cannot_hold_it_says_so():
    held = isoloss.Constraints(fix={"c": 2.0})
    found = isoloss.fit("step-law", rows(0.1), constraints=held, draws=50, sensitivity=False)
    (said,) = [w for w in found.warnings if w.code == "shared-error"]
    assert said.level == "warning"
    assert "not in the draws" in said.text
    assert (found.draws[:, 0] == 2.0).all()


def test_several_values_are_refused():
    for wrong in (np.arange(9) / 10, -0.1):
        with pytest.raises(ValueError, match="one value at or above 0"):
            isoloss.fit("step-law", rows(wrong), draws=50, sensitivity=False)

"""Steps to a target against the batch: closed forms, scipy, the published table, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import t as student

from isoloss.errors import NoAnswer
from isoloss.observing import critical_batch_size, steps_to_target
from tests.laws.test_batch_laws import CRITICAL, PROCEDURE, STEPS

BATCH = np.array([100.0, 200, 400, 800, 1600, 3200])


def noisy(a, b, noise, seed, batch=BATCH):
    rng = np.random.default_rng(seed)
    return (a + b / batch) * np.exp(noise * rng.normal(size=len(batch)))


def test_exact_steps_give_the_parameters_back():
    for overhead, reference in [(1.0, 0.0), (0.5, 0.0), (0.2, 100.0)]:
        found = critical_batch_size(BATCH, 50 + 2e4 / BATCH, overhead=overhead, reference=reference)
        want = overhead * 400 + (1 + overhead) * reference
        assert (found.a, found.b) == pytest.approx((50, 2e4), rel=1e-6)
        assert found.critical.value == pytest.approx(want, rel=1e-6)
        assert found.critical.low == pytest.approx(want, rel=1e-3)
        assert found.critical.high == pytest.approx(want, rel=1e-3)


def test_the_published_table(table):
    rows = table(STEPS)
    for model, printed in CRITICAL.items():
        mine = [row for row in rows if row["model"] == model]
        batch = [float(row["batch_sequences"]) for row in mine]
        found = critical_batch_size(batch, [float(row["steps_to_target"]) for row in mine], **PROCEDURE)
        assert found.critical.value == pytest.approx(printed, abs=0.05)
        assert found.critical.low < printed < found.critical.high


def test_the_fit_is_scipy_s_and_the_interval_is_where_scipy_refits_that_much_worse():
    steps = noisy(50, 2e4, 0.05, 3)
    found = critical_batch_size(BATCH, steps, overhead=1.0, coverage=0.9)

    def curve(batch, log_a, log_k):
        return log_a + np.log1p(np.exp(log_k) / batch)

    best, _ = curve_fit(curve, BATCH, np.log(steps), p0=[4, 6], xtol=1e-14, ftol=1e-14)
    assert found.a == pytest.approx(math.exp(best[0]), rel=1e-6)
    assert found.critical.value == pytest.approx(math.exp(best[1]), rel=1e-6)
    least = np.sum((np.log(steps) - curve(BATCH, *best)) ** 2)
    limit = least * (1 + student.ppf(0.95, 4) ** 2 / 4)
    for end in (found.critical.low, found.critical.high):
        held, _ = curve_fit(
            lambda b, log_a, k=end: curve(b, log_a, math.log(k)), BATCH, np.log(steps), p0=[4]
        )
        assert np.sum((np.log(steps) - curve(BATCH, held[0], math.log(end))) ** 2) == pytest.approx(limit)


def test_intervals_hold_as_often_as_they_say():
    held = 0
    for seed in range(300):
        found = critical_batch_size(BATCH, noisy(50, 2e4, 0.05, seed), overhead=1.0, coverage=0.8)
        held += found.critical.low <= 400 <= found.critical.high
    assert abs(held - 240) < 4 * math.sqrt(300 * 0.8 * 0.2)


def test_units_of_the_batch_carry_over():
    steps = noisy(50, 2e4, 0.03, 1)
    sequences, tokens = (critical_batch_size(BATCH * unit, steps, overhead=1.0) for unit in (1, 512))
    for name in ("value", "low", "high"):
        one, other = getattr(sequences.critical, name), getattr(tokens.critical, name)
        assert other == pytest.approx(512 * one, rel=1e-6)
    assert tokens.a == pytest.approx(sequences.a)


def test_nothing_is_said_beyond_the_batches():
    with pytest.raises(NoAnswer, match="above the batches"):
        critical_batch_size(BATCH, 0.01 + 2e6 / BATCH, overhead=1.0)
    with pytest.raises(NoAnswer, match="above the batches"):  # no bend at all
        critical_batch_size(BATCH, 1e6 / BATCH)
    with pytest.raises(NoAnswer, match="below the batches"):
        critical_batch_size(BATCH, 1000 + 2e4 / BATCH, overhead=0.2)
    open_end = critical_batch_size(BATCH, noisy(10, 2e4, 0.15, 4), overhead=1.0)
    assert open_end.critical.high == math.inf
    assert BATCH.min() <= open_end.critical.low < open_end.critical.value <= BATCH.max()


def test_a_target_that_a_batch_did_not_reach_is_no_target():
    steps = noisy(50, 2e4, 0.03, 1)
    steps[0] = np.nan
    with pytest.raises(NoAnswer, match="not reached at batch 100"):
        critical_batch_size(BATCH, steps)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": BATCH[:5]}, "steps for every batch"),
        ({"batch": -BATCH}, "above 0"),
        ({"steps": np.zeros(6)}, "steps above 0"),
        ({"overhead": 0.0}, "overhead"),
        ({"coverage": 1.0}, "coverage"),
        ({"reference": 10.0}, "reference among"),
    ],
)
def test_wrong_input_is_refused(change, says):
    settings = {"batch": BATCH, "steps": 50 + 2e4 / BATCH, **change}
    with pytest.raises(ValueError, match=says):
        critical_batch_size(settings.pop("batch"), settings.pop("steps"), **settings)


def test_two_batches_have_no_interval():
    with pytest.raises(NoAnswer, match="2 batch sizes"):
        critical_batch_size([100, 200, 200], [300, 160, 161])


def test_steps_to_a_target_lie_on_a_line_in_log_step():
    step = np.array([10.0, 100, 1000])
    loss = np.array([5.0, 4.0, 3.0])
    got = steps_to_target(step, loss, [5.0, 4.5, 4.0, 3.25, 3.0, 2.9, 6.0])
    want = [10, 10**1.5, 100, 10**2.75, 1000]
    assert got[:5] == pytest.approx(want)
    assert np.isnan(got[5:]).all()  # never reached; already below at the first row
    # the first crossing counts, though the curve comes back
    assert float(steps_to_target([1, 10, 100, 1000], [5, 3, 4, 2.0], 3.5)) == pytest.approx(10**0.75)
    for bad in [([10, 5], [3, 2]), ([1, 2], [3, np.nan]), ([1], [3]), ([0, 1], [3, 2])]:
        with pytest.raises(ValueError, match="needed"):
            steps_to_target(*bad, 2.5)

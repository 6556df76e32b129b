"""Curves made from known constants at several sizes and batches: the constants come back, an unseen curve is met."""

from __future__ import annotations

import numpy as np
import pytest

from isoloss.errors import NoAnswer
from isoloss.laws import get
from isoloss.planning.trajectory import unravel

LAW = get("su-unraveling")
TRUTH = LAW.theta("kaplan-2020")
BATCHES = (2e4, 6e4, 2e5, 6e5, 2e6, 6e6)
DESIGN = [(4e6, batch) for batch in BATCHES] + [(1e6, 3e5), (1.6e7, 3e5), (6e7, 3e5)]
MORE = DESIGN + [(size, batch) for size in (1e6, 1.6e7, 6e7) for batch in (8e4, 1.2e6)]


def table(noise, seed=0, points=18, design=DESIGN):
    rng = np.random.default_rng(seed)
    out = {name: [] for name in ("run", "params_nonembedding", "batch_tokens", "step", "loss")}
    for size, batch in design:
        step = np.geomspace(1e3, 1e5, points)
        loss = LAW.evaluate(TRUTH, params_nonembedding=size, batch_tokens=batch, step=step)
        loss = loss * np.exp(noise * rng.normal(size=points))
        columns = ([f"{size:g}-{batch:g}"] * points, [size] * points, [batch] * points, step, loss)
        for name, values in zip(out, columns, strict=True):
            out[name].extend(values)
    return out


def test_exact_curves_give_the_constants_back_in_stages_and_jointly():
    rows = table(0.0, points=20)
    rows["run"][0] = "alone"  # a run of one row is no curve
    found = unravel(rows, draws=0)
    assert found.joint.theta == pytest.approx(TRUTH, rel=1e-3)
    # The stages read steps off between rows, so they are near, not exact.
    assert [found.staged[name] for name in LAW.names] == pytest.approx(TRUTH, rel=0.03)
    crit = get("kaplan-bcrit")
    for one in found.hyperbolas:
        want = float(crit.evaluate(crit.theta("kaplan-2020"), loss=one.loss))
        assert one.critical.value == pytest.approx(want, rel=0.01)
        assert one.tokens_min / one.steps_min == pytest.approx(one.critical.value)
        inner = get("kaplan-ns")
        at = inner.evaluate(inner.theta("kaplan-2020"), params_nonembedding=4e6, steps_min=one.steps_min)
        assert float(at) == pytest.approx(one.loss, rel=1e-3)
    assert found.left[0].why == "a run at batch 20000 has one row"
    assert {entry.params_nonembedding for entry in found.left[1:]} == {1e6, 1.6e7, 6e7}
    assert all("1 batch sizes" in entry.why for entry in found.left[1:])


def test_an_unseen_size_and_batch_is_predicted_with_its_interval():
    found = unravel(table(0.003, seed=1, points=10, design=MORE), draws=80, coverage=0.98)
    for name, true in zip(LAW.names, TRUTH, strict=True):
        estimate = found.joint.parameters[name]
        assert abs(estimate.value - true) < 4 * estimate.stderr, name
    step = np.geomspace(1e3, 1e5, 7)
    curve = found.predict(3e8, 5e5, step)
    truth = LAW.evaluate(TRUTH, params_nonembedding=3e8, batch_tokens=5e5, step=step)
    assert ((curve.low < truth) & (truth < curve.high)).all()
    assert (curve.high / curve.low < 1.03).all()
    assert (np.diff(curve.draws, axis=1) < 0).all()
    assert curve.median == pytest.approx(truth, rel=0.01)


def test_a_critical_batch_outside_the_batches_makes_no_hyperbola():
    small = [(4e6, batch) for batch in (1e3, 2e3, 4e3, 8e3, 1.6e4)]
    with pytest.raises(NoAnswer, match="above the batches"):
        unravel(table(0.0, design=small))
    with pytest.raises(NoAnswer, match="4 batch sizes"):
        unravel(table(0.0, design=DESIGN[:4]))


def test_wrong_rows_are_refused():
    rows = table(0.0)
    with pytest.raises(ValueError, match="loss finite and above 0, got nan in row 3"):
        unravel({**rows, "loss": [*rows["loss"][:2], float("nan"), *rows["loss"][3:]]})
    with pytest.raises(ValueError, match="one size and one batch in each run"):
        unravel({**rows, "run": ["a"] * len(rows["run"])})
    with pytest.raises(ValueError, match="step"):
        unravel({name: values for name, values in rows.items() if name != "step"})

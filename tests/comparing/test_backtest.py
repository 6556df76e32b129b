"""The folds of a back-test: who predicts what from which rows, and what becomes of failures."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import isoloss
from isoloss.comparing.backtest import Backtest, backtest, cuts_of, training_cost
from isoloss.comparing.scores import coverage_band, crps
from isoloss.errors import NoAnswer


def ladder(n: int = 24, noise: float = 0.01, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    params, tokens = 10 ** rng.uniform(6, 8, n), 10 ** rng.uniform(8, 10, n)
    loss = (1.8 + 480 * params**-0.35 + 2000 * tokens**-0.37) * np.exp(noise * rng.standard_normal(n))
    return {"params": params, "tokens": tokens, "loss": loss}


@pytest.fixture(scope="module")
def tested() -> tuple[isoloss.Fit, Backtest]:
    fit = isoloss.fit("gadre", ladder(), draws=0, sensitivity=False)
    return fit, backtest(fit, draws=100)


def test_every_fold_predicts_dearer_rows_than_it_was_fitted_to(tested):
    fit, found = tested
    cost = 6 * fit.x["params"] * fit.x["tokens"]
    ordered = np.sort(cost)
    assert found.cost_rule == "6 * params * tokens"
    assert found.folds[0].fitted == 12
    assert found.folds[-1].held == 3  # the dearest tenth of 24, rounded up
    for k, fold in enumerate(found.folds):
        here = found.fold == k
        assert fold.largest == ordered[fold.fitted - 1]
        assert (found.cost[here] > fold.largest).all()
        assert found.distance[here] == pytest.approx(found.cost[here] / fold.largest)
        assert here.sum() == fold.held
    assert len(set(found.row)) == len(found) == 12  # each row is held out once
    by_row = dict(zip(fit.rows.tolist(), fit.y.tolist(), strict=True))
    assert found.y.tolist() == [by_row[row] for row in found.row]


def test_a_fold_is_what_fit_and_predict_give_by_hand(tested):
    fit, found = tested
    order = np.argsort(fit.x["params"] * fit.x["tokens"])
    cut, end = found.folds[0].fitted, found.folds[1].fitted
    part = {name: values[order[:cut]] for name, values in {**fit.x, "loss": fit.y}.items()}
    by_hand = isoloss.fit("gadre", part, draws=100, starts=16, sensitivity=False)
    held = {axis: values[order[cut:end]] for axis, values in fit.x.items()}
    seen = by_hand.predict(of="run", **held)
    here = found.fold == 0
    assert found.median[here] == pytest.approx(seen.median)
    assert found.low[here] == pytest.approx(seen.low)
    assert found.crps[here] == pytest.approx(crps(seen.draws, fit.y[order[cut:end]]))


def test_the_same_seed_and_any_order_of_rows_give_the_same(tested):
    fit, found = tested
    shuffled = np.random.default_rng(1).permutation(len(fit.y))
    again = isoloss.fit(
        "gadre", {name: v[shuffled] for name, v in ladder().items()}, draws=0, sensitivity=False
    )
    here, other = backtest(fit, draws=20, folds=1), backtest(again, draws=20, folds=1)
    assert np.sort(other.crps) == pytest.approx(np.sort(here.crps))
    assert len(found) > len(other)


def test_the_choices_of_the_fit_are_those_of_the_folds(monkeypatch):
    table = {**ladder(), "w": np.linspace(0.5, 2, 24)}
    held = isoloss.Constraints(fix={"E": 1.8})
    fit = isoloss.fit(
        "gadre",
        table,
        draws=0,
        objective=isoloss.StudentT(),
        constraints=held,
        weights="w",
        sensitivity=False,
    )
    module = importlib.import_module("isoloss.comparing.backtest")
    seen = []
    real = module.fit_law
    monkeypatch.setattr(module, "fit_law", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    found = backtest(fit, draws=20, folds=1)
    (fold,) = seen
    assert fold.objective == isoloss.StudentT()
    assert fold.values["E"] == 1.8
    mine = dict(zip(fit.rows.tolist(), fit.weights.tolist(), strict=True))
    ratio = fold.weights / [mine[row] for row in fold.rows]
    assert ratio == pytest.approx(ratio[0])
    assert found.folds[0].result == "identified"


def test_too_few_rows_are_no_answer():
    table = {name: values[:8] for name, values in ladder().items()}
    with pytest.raises(NoAnswer, match="hold back"):
        backtest(isoloss.fit("hoffmann", table, draws=0, sensitivity=False))


def test_a_fold_that_fails_is_listed_with_its_reason(tested, monkeypatch):
    module = importlib.import_module("isoloss.comparing.backtest")
    real = module.fit_law

    def sometimes(law, runs, **settings):
        if len(runs) == 12:
            raise NoAnswer("no such luck", "another table")
        return real(law, runs, **settings)

    monkeypatch.setattr(module, "fit_law", sometimes)
    found = backtest(tested[0], draws=20, folds=2)
    assert [fold.scored for fold in found.folds] == [False, True]
    assert found.folds[0].reason == "no such luck. Needed: another table"
    assert not found.complete
    assert 0 not in found.fold
    assert "1 without scores" in repr(found)


def test_predictions_without_end_and_ctrl_c_are_no_scores(tested, monkeypatch):
    module = importlib.import_module("isoloss.comparing.backtest")
    monkeypatch.setattr(isoloss.Fit, "reach", lambda self, x: np.ones(len(x["params"])))
    real = module.fit_law
    monkeypatch.setattr(
        module,
        "fit_law",
        lambda *a, **k: replace(real(*a, **k), draws=np.full((20, 4), np.inf), scales=np.ones(20)),
    )
    with np.errstate(invalid="ignore"):
        found = backtest(tested[0], draws=20, folds=1)
    assert len(found) == 0
    assert "not finite" in found.folds[0].reason
    assert found.to_json()["crps"] is None
    monkeypatch.setattr(module, "fit_law", lambda *a, **k: replace(real(*a, **k), result="interrupted"))
    with pytest.raises(KeyboardInterrupt):
        backtest(tested[0], draws=20, folds=1)


def test_a_fit_by_clusters_says_that_the_folds_are_not():
    table = {**ladder(), "family": np.repeat(["a", "b", "c", "d"], 6)}
    fit = isoloss.fit("gadre", table, draws=20, cluster="family", sensitivity=False)
    assert "family" in backtest(fit, draws=20, folds=1).notes[0]


def test_json_brings_it_back(tested):
    document = json.loads(json.dumps(tested[1].to_json(), allow_nan=False))
    assert Backtest.from_json(document).to_json() == document
    del document["points"]["crps"]
    with pytest.raises(KeyError):
        Backtest.from_json(document)


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=60).map(sorted), st.integers(1, 6), st.integers(1, 12)
)
def test_cuts_never_part_rows_of_one_cost(costs, folds, least):
    cost = np.array(costs, dtype=float)
    try:
        cuts = cuts_of(cost, folds, least)
    except NoAnswer:
        edges = 1 + np.flatnonzero(np.diff(cost))
        assert not (edges >= least).any()
        return
    assert list(cuts) == sorted(set(cuts))
    assert 1 <= len(cuts) <= folds
    assert cuts[0] >= least
    assert all(0 < cut < len(cost) and cost[cut] > cost[cut - 1] for cut in cuts)


def test_cost_is_named():
    x = {"params_nonembedding": np.array([2.0]), "tokens": np.array([3.0])}
    assert training_cost(x)[0] == 36.0
    assert training_cost(x)[1] == "6 * params_nonembedding * tokens"
    assert training_cost({"flops": np.array([5.0])})[1] == "flops"
    assert training_cost({"loss": np.array([2.0])})[0] == 0.5
    with pytest.raises(ValueError, match=r"ordered by cost.*Add a column flops to the table: compare"):
        training_cost({"params": np.array([1.0]), "depth": np.array([1.0])})


def test_intervals_of_planted_curves_cover():
    """Held-out runs of 10 tables from the law itself; 90% intervals, pooled."""
    hits = n = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        tokens = 10 ** rng.uniform(6, 9, 30)
        loss = 20 * tokens**-0.15 * np.exp(0.02 * rng.standard_normal(30))
        fit = isoloss.fit("power", {"tokens": tokens, "loss": loss}, draws=0, sensitivity=False)
        found = backtest(fit, draws=100, folds=1, starts=4)
        hits, n = hits + found.hits, n + len(found)
    low, high = coverage_band(hits, n, 0.999)
    assert n == 30
    assert low < 0.9 < high

"""Scores against closed forms; what counts as a prediction; recalibration from history covers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import isoloss
from isoloss.errors import NoAnswer
from isoloss.fitting.prediction import Prediction
from isoloss.laws import LAWS, get
from isoloss.study import store as store_module
from isoloss.study.join import AXIS_DEFAULTS, Fate, fates
from isoloss.study.ledger import Ledger
from isoloss.study.matching import matched
from isoloss.study.promise import promise, recalibrate, stretched
from isoloss.study.records import LEVELS, Outcome, Promise, in_utc
from isoloss.study.scoring import crps_of_quantiles, interval_of_quantiles, pit_of_quantiles
from isoloss.study.store import Store

ROOT = Path(__file__).parents[2]
NORMAL = stats.norm.ppf(LEVELS)
TOKENS = [2.0**k for k in range(8)]


def entry(number: int, **changed: Any) -> dict[str, Any]:
    """A prediction as a store gives it: a standard normal around 3."""
    point = {"params": 1e6 + number, "tokens": 2e9}
    settings = {
        "id": number, "created": f"2026-01-01T00:00:{number % 60:02d}.000000+00:00", "law": "hoffmann",
        "target": "loss", "unit": "nats/token", "at": point, "quantiles": (3 + NORMAL).tolist(),
        "coverage": 0.9, "low": 3 + stats.norm.ppf(0.05), "high": 3 + stats.norm.ppf(0.95), "shift": None,
        "asked": "run", "reach": 1.0, "distance": 2.0, "cost_rule": "", "known": 0, "fit": "f", "data": "d",
        "source": "", "study": "", "key": "", "note": "",
    }  # fmt: skip
    return {**settings, **changed}


def ledger_of(values: Any, **changed: Any) -> Ledger:
    """Predictions of a standard normal around 3, and what was measured."""
    entries = [
        entry(i + 1, **{k: v[i] if isinstance(v, list) else v for k, v in changed.items()})
        for i in range(len(values))
    ]
    return Ledger(entries, [Fate("scored", value=float(v), outcome=1000 + i) for i, v in enumerate(values)])


def power_fit() -> isoloss.Fit:
    noise = 1 + 0.01 * np.random.default_rng(1).standard_normal(len(TOKENS))
    runs = {"tokens": TOKENS, "loss": (8 * np.array(TOKENS) ** -0.3 * noise).tolist()}
    return isoloss.fit("power", runs, draws=200, sensitivity=False)


# Scores


@pytest.mark.parametrize("y", [-4.0, -1.0, 0.0, 0.3, 2.0])
def test_crps_is_that_of_the_normal(y):
    closed = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / np.sqrt(np.pi)
    assert float(crps_of_quantiles(NORMAL, LEVELS, y)) == pytest.approx(closed, rel=0.01)


def test_crps_is_that_of_the_uniform_and_of_a_point():
    y = np.array([-0.5, 0.0, 0.2, 0.9, 1.5])
    inside = np.clip(y, 0, 1)
    closed = inside**2 - inside + 1 / 3 + np.abs(y - inside)
    found = crps_of_quantiles(np.repeat(LEVELS[:, None], 5, axis=1), LEVELS, y)
    np.testing.assert_allclose(found, closed, atol=2e-4)
    point = crps_of_quantiles(np.full((len(LEVELS), 5), 0.4), LEVELS, y)
    np.testing.assert_allclose(point, np.abs(y - 0.4), rtol=1e-12)


def test_pit_is_the_distribution_function():
    y = np.linspace(-2.5, 2.5, 41)
    found = pit_of_quantiles(np.repeat(NORMAL[:, None], 41, axis=1), LEVELS, y)
    np.testing.assert_allclose(found, stats.norm.cdf(y), atol=0.002)
    outside = pit_of_quantiles(np.repeat(NORMAL[:, None], 2, axis=1), LEVELS, [-9.0, 9.0])
    np.testing.assert_allclose(outside, [0.0025, 0.9975])
    flat = pit_of_quantiles(np.ones((len(LEVELS), 3)), LEVELS, [0.9, 1.0, 1.1])
    np.testing.assert_allclose(flat, [0.0025, 0.5, 0.9975])


@pytest.mark.parametrize("coverage", [0.5, 0.68, 0.9, 0.95, 0.99])
def test_intervals_are_those_of_the_normal(coverage):
    low, high = interval_of_quantiles(NORMAL[:, None], LEVELS, coverage)
    assert (low[0], high[0]) == pytest.approx(stats.norm.interval(coverage), rel=2e-3)
    with pytest.raises(ValueError, match=r"up to 0\.99"):
        interval_of_quantiles(NORMAL[:, None], LEVELS, 0.999)


def test_the_table_counts_and_averages():
    values = [3.0, 3.5, 4.0, 6.0, 3.0, 3.0]
    distance = [0.5, 1.0, 2.0, 5.0, 50.0, None]
    law = ["a", "a", "a", "a", "a", "b"]
    ledger = ledger_of(values, distance=distance, law=law, reach=4.0)
    found = {(s.law, s.distance): s for s in ledger.scores()}
    assert {k: (s.n, s.inside) for k, s in found.items()} == {
        ("a", "1x"): (2, 2), ("a", "1-3x"): (1, 1), ("a", "3-10x"): (1, 0), ("a", ">10x"): (1, 1),
        ("a", "all"): (5, 4), ("b", "3-10x"): (1, 1),  # without a cost the reach stands for the distance
        ("all", "1x"): (2, 2), ("all", "1-3x"): (1, 1), ("all", "3-10x"): (2, 1), ("all", ">10x"): (1, 1),
        ("all", "all"): (6, 5),
    }  # fmt: skip
    a = found["a", "all"]
    z = np.array(values[:5]) - 3
    crps = z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi)
    assert a.crps == pytest.approx(crps.mean(), rel=0.01)
    assert a.relative_crps == pytest.approx((crps / values[:5]).mean(), rel=0.01)
    assert a.relative_error == pytest.approx((np.abs(z) / values[:5]).mean())
    assert a.width == pytest.approx(2 * stats.norm.ppf(0.95) / 3, rel=1e-6)
    band = stats.binomtest(4, 5).proportion_ci(0.95, "exact")
    assert (a.low, a.high) == pytest.approx((band.low, band.high))


def test_reliability_of_right_and_of_narrow_predictions():
    values = 3 + np.random.default_rng(0).standard_normal(2000)
    for entry_ in ledger_of(values).reliability():
        assert entry_.low <= entry_.coverage <= entry_.high
    assert stats.chisquare(ledger_of(values).pit()).pvalue > 0.01
    narrow = ledger_of(values, quantiles=tuple(3 + NORMAL / 3))
    assert all(e.high < e.coverage for e in narrow.reliability())
    assert narrow.pit()[[0, -1]].min() > 2 * narrow.pit()[1:-1].max()


def test_runs_and_units_are_counted():
    ledger = ledger_of([3.0, 3.0, 3.0], at=[{"tokens": 1e9}, {"tokens": 1e9 * (1 + 1e-12)}, {"tokens": 2e9}])
    assert [(s.n, s.runs) for s in ledger.scores()] == [(3, 2)]
    mixed = ledger_of([3.0, 3.0], unit=["nats/token", "nats/byte"])
    assert np.isnan(mixed.scores()[0].crps)
    assert mixed.to_json()["scores"][0]["crps"] is None


def test_bands_are_those_of_scipy_for_many():
    for hits, n in ((0, 5), (5, 5), (9000, 10000), (4321, 9999)):
        low, high = isoloss.comparing.scores.coverage_band(hits, n)
        band = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
        assert (low, high) == pytest.approx((band.low, band.high), abs=1e-9)


# What counts


def outcome(number: int, of: int, **changed: Any) -> dict[str, Any]:
    return {
        "id": number,
        "created": "2026-02-01",
        "prediction": of,
        "value": 3.1,
        "measured": None,
        "replaces": None,
        **changed,
    }


def run(number: int, **changed: Any) -> dict[str, Any]:
    settings = {
        "id": number, "study": "s", "key": "k", "status": "done", "axes": {"params": 1e6, "tokens": 2e9},
        "costs": {"flops": 1e16}, "measured": {"loss": 3.3}, "units": {"loss": "nats/token"},
    }  # fmt: skip
    return {**settings, **changed}


def test_outcomes_join_their_prediction_and_the_last_correction_counts():
    found = fates([entry(1), entry(2)], [outcome(3, 1), outcome(4, 1, value=3.2, replaces=3)], [run(5)])
    assert found == [Fate("scored", "", 3.2, 4, 1), Fate("open")]


def test_what_was_known_before_is_late():
    before = outcome(3, 1, measured="2025-12-31T23:59:59+00:00")
    after = outcome(3, 1, measured="2026-01-02T00:00:00+00:00")
    assert fates([entry(1)], [before], [])[0].status == "late"
    assert fates([entry(1)], [after], [])[0].status == "scored"
    # a correction does not make it a prediction again
    chain = [before, outcome(4, 1, value=3.0, replaces=3)]
    assert fates([entry(1)], chain, [])[0].status == "late"
    assert fates([entry(1, known=2)], [outcome(3, 1)], [])[0].why == "the fit holds 2 rows at this point"
    # the clock was set back between prediction and outcome: the order of the entries counts
    assert fates([entry(1)], [outcome(3, 1, created="1999-01-01")], [])[0].status == "scored"


def test_runs_of_a_study_join_by_key_or_by_point():
    at = {"params": 1e6, "tokens": 2e9}
    by_key, by_point = entry(5, study="s", key="k"), entry(6, study="s", at=at)
    elsewhere = [entry(7, study="t", at=at), entry(8, study="s", key="other"), entry(9, at=at)]
    runs = [run(10), run(11, measured={"loss": 9.0})]
    found = fates([by_key, by_point, *elsewhere], [], runs)
    assert [f.value for f in found] == [3.3, 3.3, None, None, None]
    assert fates([entry(5, study="s", at={"flops": 1e16})], [], runs)[0].outcome == 10
    # already there, not finished, without the target, in another unit
    assert fates([entry(12, study="s", key="k")], [], runs)[0].status == "late"
    assert fates([by_key], [], [run(10, status="failed")])[0].status == "open"
    assert fates([by_key], [], [run(10, measured={"loss": None})])[0].status == "open"
    assert "bits" in fates([by_key], [], [run(10, units={"loss": "bits/token"})])[0].why
    # its own outcome goes before a run
    assert fates([by_key], [outcome(12, 5)], runs)[0].value == 3.1


def test_a_table_measures_what_is_open():
    at = {"params": 1e6, "tokens": 2e9, "tokens_unique": 2e9}
    entries = [entry(1), entry(2, at=at), entry(3, at={"flops": 1e16}), entry(4, target="error")]
    ledger = Ledger([*entries, entry(5)], [Fate("open")] * 4 + [Fate("scored", value=3.0)])
    rows = [
        {"params": 1e6 + 1, "tokens": 2e9, "loss": 3.1},
        {"params": 1e6, "tokens": 2e9, "loss": 3.2},
        {"params": 1e16 / 6e9, "tokens": 1e9, "loss": 3.3},
        {"params": 1e6, "tokens": 2e9, "loss": 3.4},
        {"params": 1e6 + 5, "tokens": 2e9, "loss": 3.5},
    ]
    found = matched(ledger, isoloss.read(rows))
    assert [(o.prediction, o.value) for o in found.outcomes] == [(1, 3.1), (2, 3.2), (3, 3.3)]
    assert (found.still_open, found.unmatched, found.repeated) == ((4,), 1, 1)
    in_study = [entry(6, study="s", at=at)]
    assert fates(in_study, [], [run(7)])[0].value == 3.3  # the run does not say tokens_unique either


def test_the_defaults_are_those_of_the_laws():
    seen = {axis: source for slug in LAWS for axis, source in get(slug).defaults.items()}
    assert seen == AXIS_DEFAULTS


def test_dates_and_hours():
    assert in_utc("2026-05-01T01:00:00+02:00") == "2026-04-30T23:00:00+00:00"
    assert in_utc("2026-05-01T12:30") == "2026-05-01T12:30:00+00:00"
    with pytest.raises(ValueError, match="needed a time"):
        in_utc("yesterday")


# From a fit to the ledger and back


def test_a_promise_is_the_distribution_of_one_new_run(tmp_path):
    fit = power_fit()
    (p, q, r) = promise(
        fit, {"tokens": [64.0, 512.0, 1024.0]}, asked="mean", note="why not", study="s", key="k"
    )
    seen = fit.predict(of="run", tokens=[64.0, 512.0, 1024.0])
    np.testing.assert_allclose(q.quantiles, np.quantile(seen.draws[:, 1], LEVELS))
    assert (q.low, q.high) == (seen.low[1], seen.high[1])
    assert (p.known, q.known) == (1, 0)
    assert (q.distance, q.reach, q.cost_rule, r.distance) == (4.0, 4.0, "tokens", 8.0)
    assert (q.data, q.law, q.target, q.unit) == (fit.fingerprint, "power(tokens)", "loss", "nats/token")
    store = Store(tmp_path / "a.db")
    store.add_predictions([p, q, r])
    store.add_outcomes([Outcome(1, 2.2), Outcome(2, 1.2)])
    ledger = Ledger.read(tmp_path / "a.db")
    assert [f.status for f in ledger.fates] == ["late", "scored", "open"]
    assert repr(ledger) == "Ledger(3 predictions: 1 scored, 1 open, 1 late)"
    document = ledger.to_json()
    assert document["counts"] == {"predictions": 3, "scored": 1, "open": 1, "late": 1}
    assert document["predictions"][1]["crps"] == pytest.approx(
        isoloss.comparing.scores.crps(seen.draws, [0, 1.2, 0])[1], rel=0.02
    )


def test_fits_that_cannot_promise():
    fit = isoloss.fit("power", {"tokens": TOKENS, "loss": TOKENS[::-1]}, draws=0, sensitivity=False)
    with pytest.raises(NoAnswer, match="no draws"):
        promise(fit, {"tokens": 1e3})


# Recalibration


def test_history_recalibrates_to_what_it_promises():
    """Exchangeable runs three times as wide as the law says: coverage in [0.8, 0.8 + 1/(n+1)]."""
    rng, n, trials, hits = np.random.default_rng(5), 19, 600, 0
    for _ in range(trials):
        z = 3 * rng.standard_normal(n + 1)
        c = ledger_of(3 + z[:n]).correction("hoffmann", 0.8)
        low, high = stats.norm.interval(0.8)
        shift = c.conformal.shift * (high - low)
        hits += low - shift <= z[n] <= high + shift
    band = stats.binomtest(hits, trials).proportion_ci(0.999, "exact")
    assert band.low <= 0.8 + 1 / (n + 1)
    assert band.high >= 0.8


def test_a_law_without_history_takes_that_of_all_laws_and_few_give_none():
    values = 3 + np.linspace(-2, 2, 12)
    ledger = ledger_of(values, law=["a"] * 9 + ["b"] * 3)
    assert (ledger.correction("a").law, ledger.correction("a").conformal.n) == ("a", 9)
    assert (ledger.correction("b").law, ledger.correction("b").conformal.n) == ("all", 12)
    assert "empirical, from 12 scored predictions of all laws" in ledger.correction("b").sentence()
    few = ledger_of(values[:8]).correction("hoffmann")
    assert few.conformal.shift is None
    assert few.sentence() == (
        "not recalibrated: too few scored predictions to recalibrate: needs 9 for 90 %, got 8"
    )
    repeated = ledger_of([3.1] * 12, at=[{"tokens": 1e9}] * 12)  # one run predicted twelve times is one
    assert repeated.correction("hoffmann").conformal.n == 1
    laws = [f"law{k}" for k in range(12)]  # also where twelve laws did
    assert ledger_of([3.1] * 12, at=[{"tokens": 1e9}] * 12, law=laws).correction("law0").conformal.n == 1


def test_recalibration_moves_the_ends_and_only_widens_beyond_the_history(tmp_path):
    fit = power_fit()
    law = fit.law.spec
    wide = ledger_of(3 + np.linspace(-5, 5, 20), law=law, distance=4.0)
    found = recalibrate(fit, fit.predict(of="run", tokens=512.0), wide)
    plain = fit.predict(of="run", tokens=512.0)
    shift = wide.correction(law).conformal.shift
    width = plain.high - plain.low
    assert shift > 0.5
    np.testing.assert_allclose(found.prediction.low, plain.low - shift * width, rtol=1e-6)
    np.testing.assert_allclose(found.prediction.high, plain.high + shift * width, rtol=1e-6)
    np.testing.assert_allclose(found.prediction.median, plain.median, rtol=1e-5)
    narrow = ledger_of(3 + np.linspace(-0.2, 0.2, 20), law=law, distance=4.0)
    near, far = recalibrate(fit, fit.predict(of="run", tokens=[512.0, 4096.0]), narrow).shift
    assert near < 0
    assert far == 0
    (p,) = promise(fit, {"tokens": 512.0}, history=wide)
    assert p.shift == pytest.approx(shift)
    assert (p.low, p.high) == pytest.approx((found.prediction.low[0], found.prediction.high[0]))
    np.testing.assert_allclose(p.quantiles, np.quantile(plain.draws[:, 0], LEVELS))  # as the law gave them
    store = Store(tmp_path / "a.db")
    store.add_predictions([p])
    store.add_outcomes([Outcome(1, p.low + 1e-9)])
    assert Ledger.read(store).promised() == {
        "n": 1,
        "inside": 1,
        "recalibrated_n": 1,
        "recalibrated_inside": 1,
    }
    with pytest.raises(ValueError, match="one of the mean"):
        recalibrate(fit, fit.predict(tokens=512.0), wide)


def test_without_history_nothing_is_moved():
    fit = power_fit()
    plain = fit.predict(of="run", tokens=512.0)
    found = recalibrate(fit, plain, Ledger((), ()))
    assert found.shift is None
    assert isinstance(found.prediction, Prediction)
    assert found.prediction is plain
    assert "needs 9 for 90 %, got 0" in found.correction.sentence()


def test_stretching_keeps_the_median_and_never_crosses_it():
    draws = np.random.default_rng(2).lognormal(size=(1001, 3))
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
    moved = np.quantile(stretched(draws, np.array([0.3, -0.1, -0.5]), 0.9), [0.05, 0.5, 0.95], axis=0)
    np.testing.assert_allclose(moved[1], middle)
    np.testing.assert_allclose(moved[0, 0], low[0] - 0.3 * (high[0] - low[0]))
    np.testing.assert_allclose(moved[2, 1], high[1] - 0.1 * (high[1] - low[1]))
    assert moved[0, 2] <= middle[2] <= moved[2, 2]


# Size and time


def test_ten_thousand_of_each_are_read_soon(tmp_path, monkeypatch):
    """Processor time, which other work on the machine does not lengthen: below 2 s with the start of Python."""
    monkeypatch.setattr(store_module, "_now", lambda: "2026-01-01T00:00:00.000000+00:00")
    store = Store(tmp_path / "a.db")
    template = Promise(
        law="a", target="loss", unit="nats/token", at={}, quantiles=tuple((3 + NORMAL).tolist()), coverage=0.9,
        low=1.4, high=4.6, shift=None, asked="run", reach=1.0, distance=1.0, cost_rule="flops", known=0,
        fit="f" * 64, data="d" * 64,
    )  # fmt: skip
    row = store_module._promise_row(template)
    rows = [
        {**row, "law": "abcd"[k % 4], "at": f'{{"flops":{1e18 + k * 1e12!r}}}', "distance": float(k % 20),
         "study": "s" if k % 2 else ""}
        for k in range(10_000)
    ]  # fmt: skip
    run_ = {
        "study": "s",
        "status": "done",
        "config": '{"lr":0.1}',
        "costs": "{}",
        "measured": '{"loss":3.0}',
        "units": "{}",
    }
    runs = [
        {**run_, "key": str(k), "axes": f'{{"flops":{1e18 + k * 1e12!r},"params":1e8}}'}
        for k in range(10_000)
    ]
    with store._writing() as connection:
        store._append(connection, "prediction", rows)
        store._append(connection, "run", runs)
        store._append(connection, "outcome", [
            {"prediction": k, "value": 3.0, "measured": None, "source": "", "replaces": None} for k in range(1, 10_001, 2)
        ])  # fmt: skip
    code = (
        "import resource, sys; from isoloss.cli import run; code = run(['ledger', sys.argv[1]])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF); print(code, used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.db")], capture_output=True, text=True, check=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "10000 scored, 0 open, 0 late" in done.stdout
    status, seconds = done.stdout.split("\n")[-2].split()
    assert status == "0"
    assert float(seconds) < 4, "an idle machine needs less than 2 s"

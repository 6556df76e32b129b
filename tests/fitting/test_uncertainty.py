"""Draws and intervals: joint, repeatable, interruptible, and as wide as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

import isoloss
from isoloss import laws
from tests.oracles.formulas import FORMULAS, PLANTED, points

TRUTH = PLANTED["hoffmann"]
NOISE = 0.01


def simulated(seed, n=60):
    rng = np.random.default_rng(seed)
    x = points(("params", "tokens"), n, seed)
    return {**x, "loss": FORMULAS["hoffmann"](TRUTH, x) * np.exp(NOISE * rng.normal(size=n))}


@pytest.fixture(scope="module")
def fit():
    return isoloss.fit("hoffmann", simulated(0), objective=isoloss.Gaussian(), draws=1000)


def test_draws_are_joint(fit):
    """Size and exponent move together; shuffled apart, the predictions fly off."""
    assert fit.draws.shape == (1000, 5)
    assert fit.correlation("A", "alpha") > 0.95
    assert fit.correlation("B", "beta") > 0.95
    assert fit.correlation("A", "A") == pytest.approx(1.0)
    rng = np.random.default_rng(1)
    apart = np.column_stack([rng.permutation(column) for column in fit.draws.T])
    at = {"params": 1e9, "tokens": 3e10}
    together = np.std(fit.law.evaluate(fit.draws, **at))
    assert np.std(fit.law.evaluate(apart, **at)) > 5 * together


def test_same_seed_same_draws_other_seed_other_draws(fit):
    again = isoloss.fit("hoffmann", simulated(0), objective=isoloss.Gaussian(), draws=1000)
    other = isoloss.fit("hoffmann", simulated(0), objective=isoloss.Gaussian(), draws=1000, seed=1)
    assert np.array_equal(again.draws, fit.draws)
    assert not np.array_equal(other.draws, fit.draws)
    assert np.array_equal(other.theta, fit.theta)
    a, b = (f.predict(of="run", params=1e9, tokens=1e11).draws for f in (again, fit))
    assert np.array_equal(a, b)


def test_fewer_draws_are_the_first_ones(fit):
    few = isoloss.fit("hoffmann", simulated(0), objective=isoloss.Gaussian(), draws=100)
    np.testing.assert_allclose(few.draws, fit.draws[:100], rtol=1e-5)


def test_summaries_are_of_the_draws(fit):
    for p, (name, entry) in enumerate(fit.parameters.items()):
        column = fit.draws[:, p]
        assert entry.stderr == pytest.approx(np.std(column, ddof=1))
        assert (np.mean(column < entry.low), np.mean(column > entry.high)) == pytest.approx(
            (0.05, 0.05), abs=0.002
        )
        assert entry.low < TRUTH[name] < entry.high or name not in TRUTH


@pytest.mark.parametrize(
    "objective",
    [
        isoloss.Gaussian(),
        isoloss.LeastSquares(),
        isoloss.StudentT(),
        isoloss.Huber(),
        isoloss.Huber(delta=0.02),
    ],
    ids=["gaussian", "least-squares", "student-t", "huber", "huber-wide"],
)
def test_laplace_and_bootstrap_agree_on_clean_data(objective):
    """On the average of a few tables: near absolute deviations, the spread of one table is itself noisy."""
    tables = 8 if objective == isoloss.Huber() else 1
    sums = np.zeros((2, 3))
    for k in range(tables):
        for i, how in enumerate(("laplace", "bootstrap")):
            found = isoloss.fit(
                "hoffmann",
                simulated(30 + k, n=120),
                objective=objective,
                uncertainty=how,
                draws=200,
                starts=4,
                sensitivity=False,
            )
            sums[i] += [found.parameters[name].stderr for name in ("E", "alpha", "beta")]
    np.testing.assert_allclose(sums[0] / sums[1], 1.0, atol=0.35)


def test_laplace_of_a_straight_line_is_the_textbook_covariance():
    """log y = log b - c log x under Gaussian noise: sd of c from the sandwich with n/(n-p)."""
    rng = np.random.default_rng(3)
    tokens = np.geomspace(1e8, 1e10, 40)
    y = 30 * tokens**-0.1 * np.exp(0.02 * rng.normal(size=40))
    found = isoloss.fit(
        "power",
        {"tokens": tokens, "loss": y},
        objective=isoloss.LeastSquares(),
        uncertainty="laplace",
        draws=20000,
    )
    design = np.column_stack([np.ones(40), -np.log(tokens)])
    r = np.log(y) - design @ np.linalg.lstsq(design, np.log(y), rcond=None)[0]
    bread = np.linalg.inv(design.T @ design)
    meat = (design * (r**2)[:, None]).T @ design
    sd = np.sqrt((bread @ meat @ bread * 40 / 38)[1, 1])
    sd *= np.sqrt(38 / 36)  # of a t with 38 degrees of freedom
    assert found.parameters["c"].stderr == pytest.approx(sd, rel=4 / np.sqrt(2 * 20000))


@pytest.mark.parametrize(("how", "tables"), [("bootstrap", 100), ("laplace", 60)])
def test_intervals_cover_the_planted_truth(how, tables):
    """Simulated tables of 60 rows; exact binomial on each named quantity."""
    law = laws.get("hoffmann")
    at = {"params": 1e9, "tokens": 3e10}
    level = float(law.evaluate(law.theta(TRUTH), **at))
    hits = dict.fromkeys([*TRUTH, "prediction"], 0)
    for seed in range(tables):
        found = isoloss.fit(
            law,
            simulated(1000 + seed),
            objective=isoloss.LeastSquares(),
            draws=120,
            starts=4,
            uncertainty=how,
            seed=seed,
            sensitivity=False,
        )
        for name, entry in found.parameters.items():
            hits[name] += entry.low <= TRUTH[name] <= entry.high
        predicted = found.predict(**at)
        hits["prediction"] += predicted.low[0] <= level <= predicted.high[0]
    for name, count in hits.items():
        assert binomtest(count, tables, 0.9).pvalue > 1e-3, (name, count)


def test_a_run_scatters_more_than_the_mean(fit):
    at = {"params": np.geomspace(1e8, 1e11, 5), "tokens": 1e11}
    mean, run = fit.predict(**at), fit.predict(of="run", **at)
    assert mean.median.shape == run.median.shape == (5,)
    assert (run.high - run.low > mean.high - mean.low).all()
    np.testing.assert_allclose(run.median, mean.median, rtol=NOISE / 2)
    wide = fit.predict(coverage=0.99, **at)
    assert (wide.high > mean.high).all()
    assert (wide.low < mean.low).all()


@pytest.mark.parametrize("residual", ["log", "linear"])
def test_run_intervals_cover_held_out_runs(residual):
    """Three fits on 150 rows, each judged on 300 runs it has not seen."""
    hits = 0
    for seed in range(3):
        table, fresh = simulated(10 + seed, n=150), simulated(20 + seed, n=300)
        found = isoloss.fit(
            "hoffmann",
            table,
            objective=isoloss.LeastSquares(residual=residual),
            draws=200,
            starts=8,
            coverage=0.8,
        )
        predicted = found.predict(of="run", params=fresh["params"], tokens=fresh["tokens"])
        hits += int(np.sum((predicted.low <= fresh["loss"]) & (fresh["loss"] <= predicted.high)))
    assert binomtest(hits, 900, 0.8).pvalue > 1e-3, hits


# --- interruption -----------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_done():
    table = simulated(4, n=400)
    calls = []

    def stop(what, done, total):
        calls.append((what, done, total))
        if what == "bootstrap" and len([c for c in calls if c[0] == "bootstrap"]) == 2:
            raise KeyboardInterrupt

    found = isoloss.fit("hoffmann", table, draws=3000, starts=6, progress=stop)
    assert found.result == "interrupted"
    assert "interrupted" in {w.code for w in found.warnings}
    assert 0 < len(found.draws) < 3000
    assert calls[-1] == ("bootstrap", len(found.draws), 3000)
    whole = isoloss.fit("hoffmann", table, draws=len(found.draws), starts=6)
    np.testing.assert_allclose(found.draws, whole.draws, rtol=1e-6)
    assert whole.result == "identified"


def test_a_usual_fit_can_be_interrupted_part_of_the_way():
    """1,000 draws on 60 rows come in several parts, so that Ctrl-C has something to keep."""
    seen = []
    isoloss.fit(
        "hoffmann", simulated(5), starts=6, progress=lambda what, done, total: seen.append((what, done))
    )
    done = [count for what, count in seen if what == "bootstrap"]
    assert done[-1] == 1000
    assert len(done) >= 2


def test_an_interrupt_during_the_last_report_loses_nothing():
    def stop(what, done, total):
        if what == "bootstrap" and done == total:
            raise KeyboardInterrupt

    found = isoloss.fit("hoffmann", simulated(6), draws=50, starts=6, progress=stop)
    assert len(found.draws) == 50


# --- no draws, few draws ----------------------------------------------------------------------------


def test_without_draws_there_are_no_intervals():
    found = isoloss.fit("hoffmann", simulated(7), draws=0)
    assert found.draws.shape == (0, 5)
    assert all(np.isnan(e.stderr) for e in found.parameters.values())
    with pytest.raises(isoloss.NoAnswer, match="draws"):
        found.predict(params=1e9, tokens=1e10)


@pytest.mark.parametrize(
    "settings",
    [
        {"draws": -1},
        {"starts": 0},
        {"coverage": 0.0},
        {"coverage": 1.0},
        {"coverage": 90},
        {"uncertainty": "magic"},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"fit needs|uncertainty"):
        isoloss.fit("hoffmann", simulated(8), **settings)


def test_a_law_may_be_an_object_or_a_name_but_not_a_class():
    table = simulated(9)
    by_name, by_object = (isoloss.fit(law, table, draws=0) for law in ("hoffmann", laws.get("hoffmann")))
    assert np.array_equal(by_name.theta, by_object.theta)
    with pytest.raises(TypeError, match="law"):
        isoloss.fit(laws.Hoffmann, table, draws=0)


def test_wrong_predictions_are_refused(fit):
    with pytest.raises(ValueError, match="mean"):
        fit.predict(of="median", params=1e9, tokens=1e10)
    with pytest.raises(ValueError, match="coverage"):
        fit.predict(coverage=90, params=1e9, tokens=1e10)
    with pytest.raises(ValueError, match="tokens"):
        fit.predict(params=1e9)
    with pytest.raises(ValueError, match="above 0"):
        fit.predict(params=1e9, tokens=-1)


def test_reach_is_the_factor_beyond_the_rows(fit):
    top, low = fit.x["params"].max(), fit.x["tokens"].min()
    got = fit.predict(params=[top, 10 * top, top], tokens=[1e10, 1e10, low / 4]).reach
    np.testing.assert_allclose(got, [1, 10, 4])


def test_laplace_sees_clusters_as_the_bootstrap_does():
    """Runs in clusters with a common error: the clustered spreads agree, and exceed those by row."""
    rng = np.random.default_rng(3)
    tokens = np.repeat(np.geomspace(1e8, 1e10, 40), 4)
    y = 30 * tokens**-0.1 * np.exp(np.repeat(0.02 * rng.normal(size=40), 4) + 0.002 * rng.normal(size=160))
    table = {"tokens": tokens, "loss": y, "family": np.repeat(np.arange(40), 4)}
    spread = {
        (how, by): isoloss.fit(
            "power", table, objective=isoloss.LeastSquares(), uncertainty=how, cluster=by, draws=800
        )
        .parameters["c"]
        .stderr
        for how in ("bootstrap", "laplace")
        for by in (None, "family")
    }
    assert spread["laplace", "family"] == pytest.approx(spread["bootstrap", "family"], rel=0.15)
    assert spread["laplace", "family"] > 1.6 * spread["laplace", None]

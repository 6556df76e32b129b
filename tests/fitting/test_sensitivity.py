"""Every variant is the fit that the public verb makes with that setting; what cannot be made says why."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import least_squares

import isoloss
from isoloss.fitting.checkpoints import subsets
from isoloss.fitting.result import Fit
from isoloss.fitting.sensitivity import outside
from isoloss.laws import get
from isoloss.planning.sensitivity import optima, optimum
from tests.oracles.formulas import FORMULAS, PLANTED, points

LADDER = "examples/stdlib_ladder.csv"


@pytest.fixture(scope="module")
def chinchilla(table):
    """The 240 points of Besiroglu et al. 2024, arXiv:2404.10102."""
    rows = [row for row in table("laws/chinchilla/points.csv") if row["outlier_excluded"] == "0"]
    names = {"params": "params", "tokens": "tokens", "loss": "loss_nats"}
    return isoloss.read({name: [float(row[theirs]) for row in rows] for name, theirs in names.items()})


@pytest.fixture(scope="module")
def replication(chinchilla):
    return isoloss.fit("hoffmann", chinchilla, draws=300)


@pytest.fixture(scope="module")
def ladder():
    return isoloss.read(LADDER)


@pytest.fixture(scope="module")
def ladder_fit(ladder):
    return isoloss.fit("hoffmann", ladder, draws=0)


def plain(law, runs, **settings):
    return isoloss.fit(law, runs, draws=0, sensitivity=False, **settings)


def named(found: Fit, start: str):
    return next(v for v in found.sensitivity if v.setting.startswith(start))


def robust_sd(found: Fit) -> float:
    n = len(found.y)
    return 1.4826 * float(np.median(np.abs(found.residuals))) * np.sqrt(n / (n - 5))


def assert_same(variant, found: Fit):
    assert variant.result == "fitted"
    assert variant.law == found.law.spec
    assert variant.rows == len(found.y)
    assert variant.names == found.law.names
    np.testing.assert_allclose(variant.theta, found.theta, rtol=2e-3)
    level = found.law.evaluate(found.theta, **variant.at)
    assert variant.prediction == pytest.approx(float(level), rel=1e-5)


# Each variant, made again by the public verb from all starts


@pytest.mark.parametrize("which", ["chinchilla", "ladder"])
def test_objectives(which, request, replication, ladder_fit):
    runs = request.getfixturevalue(which)
    found = replication if which == "chinchilla" else ladder_fit
    sd = robust_sd(found)
    for start, objective in {
        f"log huber, delta {1.345 * sd:.2g} (1.345 sd)": isoloss.Huber(delta=1.345 * sd),
        "log least squares": isoloss.LeastSquares(),
        "log least absolute": isoloss.Huber(delta=0.01 * sd),
        "raw huber, delta 0.001": isoloss.Huber("linear"),
        "log student-t, 4 df": isoloss.StudentT(df=4.0),
    }.items():
        assert_same(named(found, start), plain("hoffmann", runs, objective=objective))
    assert not [v for v in found.sensitivity if v.setting == "log huber, delta 0.001"]  # the fit itself


def test_forms(chinchilla, replication):
    tied = isoloss.Constraints(tie=(("alpha", "beta"),))
    assert_same(named(replication, "tied exponents"), plain("hoffmann", chinchilla, constraints=tied))
    bare = isoloss.Constraints(fix={"E": 1e-12})
    assert_same(named(replication, "no floor"), plain("hoffmann", chinchilla, constraints=bare))
    other = chinchilla.with_column("params_nonembedding", chinchilla["params"])
    assert_same(named(replication, "law kaplan-nd"), plain("kaplan-nd", other))


def test_rows(chinchilla, replication):
    cost = chinchilla["params"] * chinchilla["tokens"]
    order = np.argsort(cost, kind="stable")
    residual = np.abs(
        np.log(chinchilla["loss"])
        - np.log(
            get("hoffmann").evaluate(
                replication.theta, params=chinchilla["params"], tokens=chinchilla["tokens"]
            )
        )
    )
    far = np.flatnonzero(residual > 5 * robust_sd(replication))
    for start, gone in {
        "cheapest tenth": order[:24],
        "dearest tenth": order[-24:],
        "residuals above 5": far,
    }.items():
        variant = named(replication, start)
        rows = chinchilla.rows[gone]
        if "tenth" in start:  # equal costs at the cut may be taken either way
            assert len(variant.dropped) == len(gone)
            edge = np.sort(cost[gone])
            mine = np.sort(cost[np.isin(chinchilla.rows, variant.dropped)])
            np.testing.assert_allclose(mine, edge)
        else:
            assert variant.dropped == tuple(sorted(rows.tolist()))
        assert_same(variant, plain("hoffmann", chinchilla.without(list(variant.dropped), "x", "dropped")))


def test_the_largest_residuals_where_none_is_far_out(ladder, ladder_fit):
    variant = named(ladder_fit, "largest 5 % of residuals")
    worst = ladder_fit.rows[np.argmax(np.abs(ladder_fit.residuals))]
    assert variant.dropped == (int(worst),)
    assert_same(variant, plain("hoffmann", ladder.without([int(worst)], "x", "dropped")))


def test_counting(ladder, ladder_fit):
    columns = {name: ladder[name] for name in ("tokens", "loss")}
    swapped = isoloss.read({**columns, "params": ladder["params_nonembedding"]})
    variant = named(ladder_fit, "N counts no embeddings")
    assert_same(variant, plain("hoffmann", swapped))
    dearest = np.argmax(ladder["params"] * ladder["tokens"])
    assert variant.at["params"] == pytest.approx(np.sqrt(10) * ladder["params_nonembedding"][dearest])
    back = named(isoloss.fit("kaplan-nd", ladder, draws=0), "N counts all parameters")
    assert_same(back, plain("kaplan-nd", isoloss.read({**columns, "params_nonembedding": ladder["params"]})))


def test_flops_that_are_not_6nd():
    x = points(("params", "tokens"), 30, 0)
    rng = np.random.default_rng(0)
    loss = FORMULAS["hoffmann"](PLANTED["hoffmann"], x) * np.exp(0.01 * rng.normal(size=30))
    flops = 6 * x["params"] * x["tokens"] * np.linspace(1.0, 1.5, 30)
    runs = isoloss.read({**x, "flops": flops, "loss": loss})
    implied = named(isoloss.fit("hoffmann", runs, draws=0), "N as flops / (6 D)")
    counted = {"params": flops / (6 * x["tokens"]), "tokens": x["tokens"], "loss": loss}
    assert_same(implied, plain("hoffmann", isoloss.read(counted)))
    by_flops = named(isoloss.fit("power(flops)", runs, draws=0), "C as 6 N D")
    assert_same(
        by_flops, plain("power(flops)", isoloss.read({"flops": 6 * x["params"] * x["tokens"], "loss": loss}))
    )


def checkpoints():
    """16 runs of 4 sizes and 4 lengths, 10 checkpoints each; early ones lie above the law."""
    rng = np.random.default_rng(3)
    size, length = np.meshgrid(np.geomspace(1e7, 3e9, 4), np.geomspace(1e9, 1e11, 4))
    n, d = np.repeat(size.ravel(), 10), np.repeat(length.ravel(), 10)
    step = np.tile(np.arange(1, 11), 16)
    d = d * step / 10
    loss = FORMULAS["hoffmann"](PLANTED["hoffmann"], {"params": n, "tokens": d})
    return {
        "run": np.repeat([f"r{i:02d}" for i in range(16)], 10),
        "step": step,
        "params": n,
        "tokens": d,
        "loss": loss * (1 + 0.02 * (1 - step / 10)) * np.exp(0.003 * rng.normal(size=160)),
    }


def test_checkpoints_in_the_table():
    runs = isoloss.read(checkpoints())
    found = isoloss.fit("hoffmann", runs, draws=0)
    assert_same(named(found, "final checkpoints"), plain("hoffmann", runs.final_checkpoints()))
    assert_same(named(found, "last 20 %"), plain("hoffmann", runs.where("step >= 8")))
    assert named(found, "all checkpoints").why == "this is what was fitted"
    final = isoloss.fit("hoffmann", runs.final_checkpoints(), draws=0)
    assert [v.why for v in final.sensitivity if v.what == "checkpoints"] == ["one row per run, and no curves"]


def test_checkpoints_in_the_curves():
    columns = checkpoints()
    last = columns["step"] == 10
    short = {name: values[last] for name, values in columns.items() if name != "step"}
    long = {name: columns[name] for name in ("run", "step", "tokens", "loss")}
    runs = isoloss.read(short, curves=long)
    parts, why = subsets(runs, ("params", "tokens"), "loss")
    assert why == ""
    assert [len(part) for part in parts.values()] == [16, 48, 160]
    found = isoloss.fit("hoffmann", runs, draws=0)
    assert_same(named(found, "all checkpoints"), plain("hoffmann", isoloss.read(columns)))


# Where they point


@pytest.mark.parametrize(("flops", "ratio"), [(1e21, 21.3), (5.76e23, 17.9)])
def test_the_converged_fit_of_the_chinchilla_points(replication, flops, ratio):
    itself = replication.sensitivity[0]
    assert itself.what == "fit"
    found = optimum(get(itself.law), itself.theta, flops)
    assert found.tokens_per_param == pytest.approx(ratio, abs=0.1)  # printed from a fit stopped at 5 digits
    assert found.exponent == pytest.approx(0.514, abs=5e-4)


def test_the_optimum_is_the_closed_form(replication):
    for variant, found in zip(replication.sensitivity, optima(replication), strict=True):
        if not variant.values or variant.law != "hoffmann":
            continue
        _, a, b, alpha, beta = variant.theta
        c = 6 * variant.at["params"] * variant.at["tokens"]
        n = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (c / 6) ** (beta / (alpha + beta))
        assert found.params == pytest.approx(n, rel=1e-6)
        assert found.exponent == pytest.approx(beta / (alpha + beta), rel=1e-6)
        assert found.tokens_per_param == pytest.approx(c / 6 / n**2, rel=1e-6)


def test_the_optimum_of_kaplan_nd_is_the_closed_form(replication):
    """[(N_c/N)^(p/q) + D_c/D]^q on N D = C/6: a = 1/(1 + p/q)."""
    i = next(i for i, v in enumerate(replication.sensitivity) if v.setting == "law kaplan-nd")
    p, q = replication.sensitivity[i].theta[2:]
    assert optima(replication)[i].exponent == pytest.approx(1 / (1 + p / q), rel=1e-6)


def test_no_optimum_without_two_axes(ladder):
    found = isoloss.fit("power(flops)", ladder, draws=0)
    assert set(optima(found)) == {None}


def test_least_squares_by_another_solver(chinchilla, replication):
    n, d, y = chinchilla["params"], chinchilla["tokens"], np.log(chinchilla["loss"])

    def residuals(p):
        e, a, b, alpha, beta = p
        return y - np.logaddexp.reduce([np.full_like(y, e), a - alpha * np.log(n), b - beta * np.log(d)])

    found = least_squares(
        residuals, [0.6, 6.2, 7.7, 0.35, 0.37], xtol=1e-14, ftol=1e-14, gtol=1e-14, x_scale="jac"
    )
    variant = named(replication, "log least squares")
    np.testing.assert_allclose(variant.theta[3:], found.x[3:], rtol=1e-4)
    np.testing.assert_allclose(np.log(variant.theta[:3]), found.x[:3], rtol=1e-4)


def test_the_reference_point_costs_ten_times_the_dearest_run(replication, ladder):
    at, x = replication.sensitivity[0].at, replication.x
    dearest = np.argmax(x["params"] * x["tokens"])
    assert at["params"] * at["tokens"] == pytest.approx(10 * (x["params"] * x["tokens"])[dearest])
    assert at["tokens"] / at["params"] == pytest.approx(x["tokens"][dearest] / x["params"][dearest])
    one = isoloss.fit("power(flops)", ladder, draws=0)
    assert one.sensitivity[0].at["flops"] == pytest.approx(10 * ladder["flops"].max())


# What it does not depend on


def test_order_and_seed_do_not_matter(ladder, ladder_fit):
    backwards = ladder.take(np.arange(len(ladder))[::-1])
    assert isoloss.fit("hoffmann", backwards, draws=0, seed=5).sensitivity == ladder_fit.sensitivity


def test_it_can_be_left_out(ladder, ladder_fit):
    without = plain("hoffmann", ladder)
    assert without.sensitivity == ()
    assert np.array_equal(without.theta, ladder_fit.theta)
    assert next(item.source for item in without.checklist if item.key == "sensitivity") == "missing"


# What cannot be made


def reasons(found: Fit) -> dict[str, str]:
    return {v.setting: v.why for v in found.sensitivity if v.why}


def test_reasons(chinchilla, replication, ladder):
    assert reasons(replication) == {
        "final, last 20 %, all": "the table has no column run",
        "N counts no embeddings": "the table has no params_nonembedding",
        "C as 6 N D": "the table has no measured flops",
    }
    one = reasons(isoloss.fit("power(flops)", ladder, draws=0))
    assert one["no floor"] == "power has no floor"
    assert one["C as 6 N D"] == "flops is 6 N D in every row"
    assert one["N without embeddings"] == "power(flops) does not read a size"
    held = isoloss.Constraints(fix={"E": 1.8}, tie=(("alpha", "beta"),))
    why = reasons(isoloss.fit("hoffmann", chinchilla, constraints=held, draws=0))
    assert why["no floor"] == "E is held"
    assert why["tied exponents"] == "alpha or beta is held"
    assert why["law kaplan-nd"] == "what is held are parameters of hoffmann"
    for variant in replication.sensitivity:
        assert (variant.result == "not-applicable") == (variant.prediction is None) == (not variant.values)


def test_too_few_rows():
    found = isoloss.fit(
        "hoffmann", {"params": [1e6, 2e6, 4e6], "tokens": [1e8, 3e8, 4e8], "loss": [4, 3.5, 3]}, draws=0
    )
    assert [v.result for v in found.sensitivity] == ["fitted", "not-applicable"]
    assert "3 rows cannot determine 5 parameters" in found.sensitivity[1].why


def test_a_law_through_every_row():
    tokens = 2.0 ** np.arange(8)
    found = isoloss.fit("power", {"tokens": tokens, "loss": 8 / tokens}, draws=0)
    assert "the law passes through the rows" in reasons(found)["log least absolute"]
    for variant in found.sensitivity:
        if variant.values:
            np.testing.assert_allclose(variant.theta, [8, 1], rtol=1e-6)


def test_a_law_of_the_loss_has_no_dearest_run():
    loss = np.linspace(2.5, 4, 12)
    found = isoloss.fit(
        "loss-to-error",
        {"loss": loss, "error": 0.9 - 2 * np.exp(-0.8 * loss) + 1e-3 * np.cos(9 * loss)},
        draws=0,
    )
    assert found.sensitivity[0].at == {"loss": 2.5}
    assert "count" in reasons(found)["cheapest tenth dropped"]


# The warning


def test_a_choice_that_leaves_the_interval_is_named():
    x = points(("params", "tokens"), 60, 1)
    rng = np.random.default_rng(2)
    loss = FORMULAS["hoffmann"](PLANTED["hoffmann"], x) * np.exp(0.002 * rng.normal(size=60))
    calm = isoloss.fit("gadre", {**x, "loss": loss}, draws=200)
    loss[np.argsort(x["params"] * x["tokens"])[-4:]] *= 1.3
    found = isoloss.fit("gadre", {**x, "loss": loss}, draws=200)
    finding = next(w for w in found.warnings if w.code == "sensitive-answer")
    spread = found.predict(**found.sensitivity[0].at)
    moved = outside(found.sensitivity, spread.low[0], spread.high[0])
    assert moved
    assert all(v.what in ("objective", "rows") for v in moved)
    assert "least squares" in finding.text
    assert moved[0].setting in finding.text
    for fit in (calm, found):
        spread = fit.predict(**fit.sensitivity[0].at)
        said = "sensitive-answer" in [w.code for w in fit.warnings]
        assert said == bool(outside(fit.sensitivity, spread.low[0], spread.high[0]))
    assert "sensitive-answer" not in [
        w.code for w in isoloss.fit("gadre", {**x, "loss": loss}, draws=0).warnings
    ]


def test_an_interrupt_keeps_the_draws(ladder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("isoloss.fitting.estimate.variants", stop)
    found = isoloss.fit("power(flops)", ladder, draws=30)
    assert found.sensitivity == ()
    assert len(found.draws) == 30
    assert "interrupted" in [w.code for w in found.warnings]


# The file


def test_there_and_back(replication):
    document = json.loads(json.dumps(replication.to_json()))
    again = Fit.from_json(document)
    assert again.sensitivity == replication.sensitivity
    assert document["sensitivity"][0]["setting"] == "as fitted"
    del document["sensitivity"], document["checklist"]
    assert Fit.from_json(document).sensitivity == () == Fit.from_json(document).checklist


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("what", "taste"),
        ("result", 1),
        ("prediction", "2"),
        ("at", 3),
        ("values", {"E": None}),
        ("dropped", ["a"]),
        ("at", {}),
    ],
)
def test_a_damaged_variant_is_refused(replication, key, value):
    document = json.loads(json.dumps(replication.to_json()))
    document["sensitivity"][1][key] = value
    with pytest.raises(ValueError, match="damaged"):
        Fit.from_json(document)

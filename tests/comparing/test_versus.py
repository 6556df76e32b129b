"""Comparisons of two fits against closed forms, planted curves and counting."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize

import isoloss
from isoloss.comparing.crossings import crossings
from isoloss.comparing.levels import Level, observed, scale_of
from isoloss.laws import get
from isoloss.report.pictures import plot

POWER, PLANE = get("power(flops)"), get("hoffmann")


@pytest.fixture(scope="module")
def line():
    """A fit over FLOPs, whose law, theta, draws and rows the tests replace."""
    c = np.geomspace(1e18, 1e20, 8)
    wobble = 1 + 1e-3 * (-1.0) ** np.arange(8)
    return isoloss.fit(
        "power(flops)", {"flops": c, "loss": 20 * c**-0.05 * wobble}, draws=20, uncertainty="bootstrap"
    )


@pytest.fixture(scope="module")
def plane():
    """A fit over parameters and tokens, likewise."""
    n, d = (part.ravel() for part in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(2e8, 2e11, 5)))
    loss = PLANE.evaluate(PLANE.theta("besiroglu-2024"), params=n, tokens=d)
    return isoloss.fit(
        "hoffmann",
        {"params": n, "tokens": d, "loss": loss * (1 + 1e-3 * np.cos(9.0 * np.arange(20)))},
        draws=20,
    )


def planted(fit, draws, law=None, rows=None, seed=0, **changes):
    """A fit with these draws (and rows), not one of the same bootstrap as another."""
    draws = np.atleast_2d(np.asarray(draws, float))
    x = fit.x if rows is None else {axis: np.asarray(rows, float) for axis in (law or fit.law).axes}
    return replace(
        fit, law=law or fit.law, draws=draws, theta=np.median(draws, axis=0), x=x, seed=seed, **changes
    )


def jitter(theta, sd, count=400, seed=0):
    """Draws around theta, each entry off by a normal share of itself."""
    return np.asarray(theta) * np.exp(sd * np.random.default_rng(seed).standard_normal((count, len(theta))))


# Crossings


def test_two_powers_cross_at_the_closed_form(line):
    a, b = jitter([20, 0.05], 1e-2, seed=1), jitter([14.0, 0.042], 1e-2, seed=2)
    levels = Level(POWER, a), Level(POWER, b)
    s = np.linspace(math.log(1e15), math.log(1e24), 60)
    (la, da), (lb, db) = levels[0].over(s), levels[1].over(s)
    found = crossings(*levels, s, la - lb, da - db, la)
    truth = np.log(a[:, 0] / b[:, 0]) / (a[:, 1] - b[:, 1])
    inside = (truth > s[0]) & (truth < s[-1])
    assert 0.5 < inside.mean() < 1
    assert np.array_equal(found.counts(), inside.astype(int))
    assert np.abs(found.place / truth[inside] - 1).max() < 1e-12
    assert not found.rising.any()  # the steeper one, A, is the worse below


def test_probability_median_and_direction_are_those_of_the_planted_draws(line):
    a = np.repeat([[20.0, 0.05]], 4, axis=0)
    b = [[20.0 * 10 ** (19.5 * -0.01), 0.04], [20.0 * 10 ** (20.5 * -0.01), 0.04], [19, 0.05], [21, 0.05]]
    found = isoloss.versus(planted(line, a), planted(line, b, seed=1), coverage=0.5).crossing
    assert (found.probability, found.several, found.agreement) == (0.5, 0, 1)
    assert found.place.value == pytest.approx((10**19.5 + 10**20.5) / 2, rel=1e-9)
    assert (found.better_below, found.better_above) == ("B", "A")


def test_different_floors_cross_twice_once_or_never():
    law = get("hestness(tokens)")  # gamma + alpha / x^beta
    s = np.linspace(0.0, math.log(1e6), 40)

    def count(first, second):
        levels = Level(law, np.array([first])), Level(law, np.array([second]))
        (la, da), (lb, db) = levels[0].over(s), levels[1].over(s)
        found = crossings(*levels, s, la - lb, da - db, la)

        def gap(at):
            x = np.exp(at)
            return law.evaluate(first, tokens=x) - law.evaluate(second, tokens=x)

        fine = np.linspace(s[0], s[-1], 20001)
        changes = np.flatnonzero(np.diff(np.sign(gap(fine))))
        roots = [optimize.brentq(gap, fine[i], fine[i + 1], xtol=1e-13) for i in changes]
        assert found.place.tolist() == pytest.approx(roots, rel=1e-8)
        assert found.rising.tolist() == [gap(root + 1e-3) > 0 for root in roots]
        return len(roots)

    assert count([1.0, 3.1, 0.5], [1.1, 3.2, 0.5]) == 0
    assert count([1.0, 4.0, 0.9], [0.9, 1.5, 0.2]) == 2
    assert count([1.0, 3.0, 0.5], [0.8, 2.0, 0.2]) == 2
    assert count([0.9, 4.0, 0.9], [1.0, 1.5, 0.2]) == 1


def test_two_crossings_within_one_cell_are_found():
    # with u = x^(-1/4), a floor of 1 and u^2 against a floor of 1 - pq and (p + q) u: equal at u = p, q
    law = get("henighan(tokens)")  # L_inf + (x_0/x)^alpha
    u = np.array([0.30, 0.31])
    first, second = [1.0, 1.0, 0.5], [1.0 - u.prod(), u.sum() ** 4, 0.25]
    levels = Level(law, np.array([first])), Level(law, np.array([second]))
    s = np.linspace(0, 10, 11)
    (la, da), (lb, db) = levels[0].over(s), levels[1].over(s)
    found = crossings(*levels, s, la - lb, da - db, la)
    assert found.place.tolist() == pytest.approx(sorted(-4 * np.log(u)), rel=1e-9)
    assert found.counts().tolist() == [2]
    assert found.last_before(10).tolist() == [found.place[1]]
    assert found.first()[0].tolist() == [found.place[0]]


def test_noisy_tables_cross_as_often_as_the_formula_says(line):
    """Exponents known, sizes normal in the log: the log of the crossing is normal."""
    sd, gap = 0.02, 0.01
    rng = np.random.default_rng(5)
    count = 2000
    middle = 19.0 * math.log(10)
    a = np.column_stack([20 * np.exp(sd * rng.standard_normal(count)), np.full(count, 0.05)])
    b = np.column_stack(
        [20 * np.exp(-gap * middle + sd * rng.standard_normal(count)), np.full(count, 0.05 - gap)]
    )
    found = isoloss.versus(planted(line, a), planted(line, b, seed=1))
    spread = sd * math.sqrt(2) / gap
    low, high = (math.log(end) for end in found.limits)

    def normal(z):
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))

    truth = normal((high - middle) / spread) - normal((low - middle) / spread)
    assert abs(found.crossing.probability - truth) < 4 * math.sqrt(truth * (1 - truth) / count)
    at = isoloss.versus(planted(line, a), planted(line, b, seed=1), at=1e20).asked[0]
    lower = normal(gap * math.log(10) / (sd * math.sqrt(2)))
    assert abs(at.p_a_lower - lower) < 4 * math.sqrt(lower * (1 - lower) / count)


# Multiplier and frontier


def test_equal_exponents_have_one_multiplier_everywhere(line):
    a, b = planted(line, [[20, 0.05]] * 3), planted(line, [[22, 0.05]] * 3, seed=1)
    found = isoloss.versus(a, b)
    for point in found.points:
        assert point.multiplier.value == pytest.approx((22 / 20) ** 20, rel=1e-8)
        assert (point.multiplier.low, point.p_a_lower, point.never) == (
            pytest.approx(1.1**20, rel=1e-8),
            1,
            0,
        )
    assert {point.verdict for point in found.points} == {"A"}


def test_the_frontier_of_hoffmann_is_its_closed_form(plane):
    theta = [PLANE.theta(name) for name in ("hoffmann-2022", "besiroglu-2024")]
    a, b = planted(plane, [theta[0]] * 2), planted(plane, [theta[1]] * 2, seed=1)
    found = isoloss.versus(a, b, at=[1e19, 1e21])

    def closed(values, flops):
        E, A, B, alpha, beta = (
            dict(zip(PLANE.names, values, strict=True))[k] for k in ("E", "A", "B", "alpha", "beta")
        )
        n = (alpha * A / (beta * B) * (flops / 6) ** beta) ** (1 / (alpha + beta))
        return E + A * n**-alpha + B * (flops / (6 * n)) ** -beta

    for point in (*found.points, *found.asked):
        assert point.loss_a.value == pytest.approx(closed(theta[0], point.scale), rel=1e-13)
        assert point.loss_b.value == pytest.approx(closed(theta[1], point.scale), rel=1e-13)
        there = point.scale * point.multiplier.value
        assert closed(theta[1], there) == pytest.approx(point.loss_a.value, rel=1e-12)
    level = Level(PLANE, np.array(theta))
    s, step = np.log([1e19, 1e22]), 1e-4
    numeric = (level.over(s + step)[0] - level.over(s - step)[0]) / (2 * step)
    assert level.over(s)[1] == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("name", ["kaplan-nd", "muennighoff", "gadre"])
def test_the_frontier_of_other_laws_is_what_scipy_finds(name):
    law = get(name)
    theta = law.theta(next(iter(law.published)))
    size = next(axis for axis in law.axes if axis.startswith("params"))

    def loss(x, both):
        point = {size: math.exp(x), "tokens": math.exp(both - x)}
        return float(law.evaluate(theta, **point))

    for flops in (1e18, 1e22):
        both = math.log(flops / 6)
        best = optimize.minimize_scalar(loss, (0.4 * both, 0.5 * both), args=(both,), tol=1e-10)
        assert Level(law, theta[None]).over(np.log([flops]))[0][0, 0] == pytest.approx(best.fun, rel=1e-12)
        ratio = math.exp(both - 2 * best.x)
        assert Level(law, theta[None]).ratio(math.log(flops)) == pytest.approx(ratio, rel=1e-4)


def test_a_loss_that_b_never_reaches_takes_endless_compute(plane):
    theta = PLANE.theta("besiroglu-2024")
    worse = theta.copy()
    worse[PLANE.names.index("E")] += 0.5
    found = isoloss.versus(planted(plane, [theta] * 2), planted(plane, [worse] * 2, seed=1))
    assert found.points[-1].never == 1
    assert math.isinf(found.points[-1].multiplier.value)
    document = found.to_json()
    assert document["points"][-1]["multiplier"] == {"median": None, "low": None, "high": None}
    json.dumps(document, allow_nan=False)


# Ranking


def test_a_fit_against_itself_is_worth_one_and_not_resolved(line, plane):
    for fit, scale in ((line, 1e19), (plane, 1e19)):
        found = isoloss.versus(fit, fit, at=scale)
        assert found.pairing == "by draw"
        assert found.asked[0].multiplier.value == pytest.approx(1, rel=1e-12)
        assert (found.asked[0].p_a_lower, found.asked[0].verdict) == (0.5, "not resolved")
        assert found.crossing.probability == 0
        apart = isoloss.versus(fit, replace(fit, draws=fit.draws[::-1], seed=1), at=scale)
        assert apart.pairing == "independent"
        assert apart.asked[0].verdict == "not resolved"
        assert apart.asked[0].multiplier.low <= 1 <= apart.asked[0].multiplier.high


def test_paired_resamples_share_their_noise():
    """Two laws on the same rows: their resamples are the same rows, so the difference is the surer."""
    c = np.geomspace(1e17, 1e20, 12)
    loss = 20 * c**-0.05 * np.exp(0.02 * np.random.default_rng(0).standard_normal(12))
    table = isoloss.read({"flops": c, "loss": loss})
    a = isoloss.fit("power(flops)", table, draws=200, uncertainty="bootstrap")
    b = isoloss.fit(
        "power(flops)", table, draws=200, uncertainty="bootstrap", objective=isoloss.Huber(delta=0.1)
    )
    paired, apart = isoloss.versus(a, b, at=1e20), isoloss.versus(a, replace(b, seed=1), at=1e20)
    assert (paired.pairing, apart.pairing) == ("by draw", "independent")
    width = [v.asked[0].difference.high - v.asked[0].difference.low for v in (paired, apart)]
    assert width[0] < 0.9 * width[1]


def test_no_ranking_beyond_the_stretch_of_either(line):
    a = planted(line, [[20, 0.05]] * 3)
    b = planted(line, [[22, 0.05]] * 3, seed=1, rows=np.geomspace(1e16, 1e18, 8))
    found = isoloss.versus(a, b, at=[1e17, 0.99e19, 1.1e19, 2e21])
    assert [point.verdict for point in found.asked] == ["A", "A", "not resolved", "not resolved"]
    assert (
        "11 times above the largest of B's rows (1e18): no ranking beyond 10 times" in found.asked[2].reason
    )
    assert isoloss.versus(a, b, at=1.1e19, stretch=12).asked[0].verdict == "A"
    assert (
        isoloss.versus(a, b, at=1e16).asked[0].reason.startswith("100 times below the smallest of A's rows")
    )


def test_no_ranking_behind_a_crossing_that_rows_do_not_pass(line):
    crossing = 10**19.5
    a = planted(line, [[20, 0.06]] * 3)
    steeper = [[20 * crossing**-0.01, 0.05]] * 3
    b = planted(line, steeper, seed=1)
    behind = isoloss.versus(a, b, at=[1e19, 9e19, 9e20])
    assert [point.verdict for point in behind.asked] == ["B", "A", "A"]
    short = planted(line, steeper, seed=1, rows=np.geomspace(1e18, 1e19, 8))
    refused = isoloss.versus(a, short, at=[1e19, 9e19])
    assert [point.verdict for point in refused.asked] == ["B", "not resolved"]
    assert (
        "cross before it in 100% of the draws, up to 3.16e19, and B's rows end at 1e19"
        in refused.asked[1].reason
    )


def test_overlap_and_limits(line):
    b = planted(line, line.draws, seed=1, rows=np.geomspace(1e19, 3e20, 8))
    found = isoloss.versus(line, b)
    assert found.overlap == pytest.approx((1e19, 1e20))
    assert found.limits == pytest.approx((1e18, 3e21))
    apart = isoloss.versus(line, planted(line, line.draws, seed=1, rows=[1e21, 2e21]))
    assert apart.overlap is None
    assert "no-overlap" in {entry.code for entry in apart.warnings}


# Refusals and warnings


def test_scales():
    assert scale_of(get("muennighoff")) == scale_of(get("kaplan-nd")) == "flops"
    assert scale_of(get("power(params)")) == "params"


def test_observed_compute_is_6nd(plane):
    assert observed(plane) == pytest.approx(6 * plane.x["params"] * plane.x["tokens"])


def test_what_cannot_be_compared_says_so(line, plane):
    bytes_ = replace(line, units={**line.units, "loss": "nats/byte"})
    with pytest.raises(ValueError, match=r"one unit of loss, got nats/token.*nats per byte"):
        isoloss.versus(line, bytes_)
    for other in (plane, planted(line, line.draws, law=get("power(tokens)"), rows=[1e9, 2e9])):
        with pytest.raises(ValueError, match="two laws of a size and tokens, or two of the same one axis"):
            isoloss.versus(line, other)
    with pytest.raises(TypeError, match="two fits"):
        isoloss.versus(line, "b.json")
    for words, message in (
        ({"stretch": 0.5}, "stretch"),
        ({"coverage": 1.0}, "coverage"),
        ({"at": -1.0}, "above 6"),
        ({"names": ("a", "a")}, "two different names"),
    ):
        with pytest.raises(ValueError, match=message):
            isoloss.versus(line, line, **words)


def test_a_fit_without_an_answer_gives_none(line):
    for changes in ({"result": "not-identified"}, {"draws": np.empty((0, 2))}):
        with pytest.raises(isoloss.NoAnswer, match="new"):
            isoloss.versus(line, replace(line, **changes), names=("old", "new"))


def test_warnings_name_whom_they_are_about(line, plane):
    rising = planted(line, [[0.5, -0.01]] * 3, seed=1)
    found = isoloss.versus(line, rising, names=("old", "new"))
    texts = {entry.code: entry.text for entry in found.warnings}
    assert "new's loss rises with flops" in texts["loss-rises"]
    assert "per-token-loss" in texts
    law = get("kaplan-nd")
    bare = {"params_nonembedding": plane.x["params"], "tokens": plane.x["tokens"]}
    other = replace(plane, law=law, draws=jitter(law.theta("kaplan-2020"), 1e-3), x=bare, seed=1)
    found = isoloss.versus(plane, replace(other, theta=law.theta("kaplan-2020")))
    assert "sizes-counted-differently" in {entry.code for entry in found.warnings}
    ray = replace(plane, x={"params": plane.x["params"], "tokens": 1e4 * plane.x["params"]})
    found = isoloss.versus(plane, replace(ray, seed=1))
    assert "B's best" in {entry.code: entry.text for entry in found.warnings}["frontier-outside-rows"]


# Shape


def test_same_seed_same_answer_and_html(plane):
    b = replace(plane, seed=1)
    first, second = (isoloss.versus(plane, b, at=1e20).to_json() for _ in range(2))
    assert first == second
    page = isoloss.versus(plane, b, at=1e20, names=("<a>", "b"))._repr_html_()
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    assert "\n" not in repr(isoloss.versus(plane, b))


def test_the_picture_shows_both_curves_and_the_crossing(line):
    a, b = planted(line, jitter([20, 0.06], 1e-3)), planted(line, jitter([13.0, 0.05], 1e-3, seed=3), seed=1)
    found = isoloss.versus(a, b, at=[1e19, 1e20], names=("old", "new"))
    axes = plot(found)
    labels = axes.get_legend_handles_labels()[1]
    assert labels[:2] == ["old", "new"]
    assert labels[2].startswith("crossing, in")
    assert axes.get_title(loc="left").startswith("old against new: at 1e19")

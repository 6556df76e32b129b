"""Frontiers against enumeration and another hull; what compression is worth against closed forms of the law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import spatial, stats

import isoloss
from isoloss import laws
from isoloss.errors import NoAnswer
from isoloss.planning.frontier import Variant, hull, places, variants
from isoloss.planning.worth import worth
from isoloss.runs import from_rows

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
LAW = "hoffmann@besiroglu-2024"
N, D = 1e9, 2e10


def variant(bytes_, rise, se=0.0, model="m", data="d", loss=None, name=""):
    return Variant(
        model,
        data,
        name,
        "",
        N,
        8 * bytes_ / N,
        bytes_,
        2 + rise if loss is None else loss,
        0.01,
        rise,
        se,
        0,
    )


def rows(points=((4.0, 0.02, 0.001), (3.0, 0.08, 0.002), (8.0, 0.0005, 0.0004)), params=N, model="m"):
    """A table of variants of a model of 16 bits, all of it encoded."""
    common = {"model": model, "data": "d", "params": params, "solver": "gptq"}
    table = [
        {
            **common,
            "variant": f"int{b:g}",
            "bits_post": b,
            "bytes": params * b / 8,
            "rise": r,
            "rise_se": s,
            "loss": 2 + r,
        }
        for b, r, s in points
    ]
    own = {"variant": "original", "bits_post": 16, "bytes": 2 * params, "rise": 0, "rise_se": 0, "loss": 2}
    return [*table, {**common, **own}]


def test_without_errors_the_frontier_is_that_of_the_enumeration():
    rng = np.random.default_rng(0)
    found = [variant(float(s), float(r)) for s, r in zip(rng.integers(1, 9, 60), rng.random(60), strict=True)]
    for one, place in zip(found, places(found), strict=True):
        better = [v for v in found if v.bytes <= one.bytes and v.rise < one.rise]
        assert place == ("dominated" if better else "frontier")


def test_errors_are_those_of_all_comparisons_together():
    first = [variant(float(s), 0.0, 0.0) for s in range(1, 10)]
    for count in (1, 9):
        z = stats.norm.ppf(1 - 0.1 / (2 * count))
        for height, place in ((1.001 * z, "dominated"), (0.999 * z, "not resolved")):
            assert places([*first[:count], variant(20.0, height, 1.0)])[-1] == place
    assert places([variant(1.0, 5.0, 1.0), variant(2.0, 1.0, 1.0)]) == ("frontier", "frontier")
    assert places([variant(1.0, 2.0, 1.0), variant(2.0, 1.0, 1.0)]) == ("frontier", "not resolved")


def test_models_meet_by_their_losses_and_only_on_the_same_data():
    one, other = variant(1.0, 0.1, loss=1.0), variant(2.0, 0.0, loss=3.0, model="b")
    assert places([one, other]) == ("frontier", "dominated")
    assert places([one, variant(2.0, 0.0, loss=3.0, model="b", data="e")]) == ("frontier", "frontier")
    unknown = variant(2.0, 0.0, loss=math.nan, model="b")
    assert places([one, unknown])[1] == "not resolved"


def test_the_hull_is_the_lower_left_of_a_convex_hull():
    rng = np.random.default_rng(1)
    points = rng.random((40, 2))
    shape = points[spatial.ConvexHull(points).vertices]
    least, lowest = shape[np.argmin(shape[:, 0])], shape[np.argmin(shape[:, 1])]
    line = lambda p: (p[0] - least[0]) * (lowest[1] - least[1]) - (p[1] - least[1]) * (lowest[0] - least[0])  # noqa: E731
    wanted = sorted(tuple(p) for p in shape if least[0] <= p[0] <= lowest[0] and line(p) >= -1e-12)
    assert [(v.bytes, v.rise) for v in hull([variant(*map(float, p)) for p in points])] == wanted


def test_worth_is_the_closed_form():
    model = worth(from_rows(rows()), LAW, tokens=D).models[0]
    by_name = {row.variant: row for row in model.rows}
    assert [row.bytes for row in model.rows] == sorted(row.bytes for row in model.rows)
    for name, rise in (("int4", 0.02), ("int3", 0.08)):
        row = by_name[name]
        n = (1 + rise / (A * N**-ALPHA)) ** (-1 / ALPHA)
        d = (1 + rise / (B * D**-BETA)) ** (-1 / BETA)
        assert row.params_equal.value == pytest.approx(n, rel=1e-6)
        assert row.tokens_equal.value == pytest.approx(d, rel=1e-6)
        small = row.bytes / 2
        tokens, flops = row.smaller
        assert tokens.params == flops.params == pytest.approx(small)
        assert flops.tokens == pytest.approx(N * D / small)
        for one in row.smaller:
            gap = A * (small**-ALPHA - N**-ALPHA) + B * (one.tokens**-BETA - D**-BETA) - rise
            assert one.difference.value == pytest.approx(gap, rel=1e-9)
    assert by_name["original"].params_equal.value == pytest.approx(1)
    assert by_name["original"].smaller == ()
    step = model.steps[0]
    assert (step.of, step.to, step.low, step.high) == ("int3", "int4", 3, 4)
    assert step.loss.value == pytest.approx(-0.06)
    ratio = by_name["int4"].params_equal.value / by_name["int3"].params_equal.value
    assert step.params.value == pytest.approx(ratio, rel=1e-6)


def test_the_error_of_the_measurement_is_in_the_interval():
    point = rows(((4.0, 0.2, 0.05),))
    small = N / 4
    centre = A * (small**-ALPHA - N**-ALPHA) - 0.2
    [row] = [
        row for row in worth(from_rows(point), LAW, tokens=D, seed=3).models[0].rows if row.variant == "int4"
    ]
    one = row.smaller[0]
    z = stats.norm.ppf(0.95)
    assert one.difference.low == pytest.approx(centre - z * 0.05, abs=0.01)
    assert one.difference.high == pytest.approx(centre + z * 0.05, abs=0.01)
    assert one.p_compress == pytest.approx(stats.norm.cdf(centre / 0.05), abs=0.06)
    for rise, verdict in (
        (centre + 0.2, "not resolved"),
        (centre + 0.4, "train smaller"),
        (0.01, "compress"),
    ):
        found = worth(from_rows(rows(((4.0, rise, 0.05),))), LAW, tokens=D).models[0].rows[0].smaller[0]
        assert found.verdict == verdict


def test_tokens_that_are_not_given_are_those_of_the_best_size():
    found = worth(from_rows(rows()), LAW)
    best = (BETA * B / (ALPHA * A) * N**ALPHA) ** (1 / BETA)
    assert found.models[0].tokens == pytest.approx(best, rel=1e-6)
    assert "compute-optimal" in found.notes[0]
    best_n = isoloss.plan("hoffmann", isoloss.Budget(flops=6 * N * best), theta="besiroglu-2024").params.value
    assert best_n == pytest.approx(N, rel=1e-5)
    known = [{**row, "tokens": D} for row in rows()]
    assert worth(from_rows(known), LAW).models[0].tokens == pytest.approx(D)


def test_the_best_use_of_a_byte():
    table = from_rows(rows(((2.0, 0.9, 0.0), (4.0, 0.02, 0.0), (8.0, 0.0, 0.0))))
    found = worth(table, LAW, tokens=D, against=(16, 8)).models[0].best
    first = max(found, key=lambda one: one.params_per_byte.value)
    share = (1 + 0.02 / (A * N**-ALPHA)) ** (-1 / ALPHA)
    assert (first.variant, first.p_best) == ("int4", 1.0)
    assert first.params_per_byte.value == pytest.approx(share * 2, rel=1e-6)
    assert {one.variant for one in found} == {
        "int2",
        "int4",
        "int8",
        "trained in 16 bits",
        "trained in 8 bits",
    }


def test_a_fit_brings_its_draws_and_its_reach(tmp_path):
    rng = np.random.default_rng(2)
    n, d = (part.ravel() for part in np.meshgrid(np.geomspace(1e7, 4e8, 5), np.geomspace(1e9, 2e10, 4)))
    loss = (E + A * n**-ALPHA + B * d**-BETA) * np.exp(0.003 * rng.standard_normal(20))
    fit = isoloss.fit("hoffmann", {"params": n, "tokens": d, "loss": loss}, draws=60, sensitivity=False)
    found = worth(from_rows(rows()), fit, tokens=D)
    again = worth(from_rows(rows()[::-1]), fit, tokens=D)
    assert repr(found.models[0].rows) == repr(again.models[0].rows)
    row = next(row for row in found.models[0].rows if row.variant == "int4")
    only = worth(from_rows(rows()), laws.get("hoffmann"), theta=fit.theta, tokens=D).models[0].rows[1]
    assert row.params_equal.high - row.params_equal.low > only.params_equal.high - only.params_equal.low
    assert row.params_equal.low < row.params_equal.value < row.params_equal.high
    assert row.smaller[0].reach == 1  # a quarter of the parameters lies within the rows
    [large] = worth(from_rows(rows(((8.0, 0.0005, 0.0004),))), fit, tokens=D).models[0].rows[:1]
    assert large.smaller[0].reach == pytest.approx(5e8 / 4e8)
    bare = isoloss.fit("hoffmann", {"params": n, "tokens": d, "loss": loss}, draws=0, sensitivity=False)
    [without] = worth(from_rows(rows(((8.0, 0.0005, 0.0004),))), bare, tokens=D).models[0].rows[:1]
    assert without.smaller[0].reach == large.smaller[0].reach


def test_a_law_of_the_size_alone_and_one_that_reads_bits():
    law = laws.get("power(params)")
    model = worth(from_rows(rows()), law, theta=[30.0, 0.1]).models[0]
    row = next(row for row in model.rows if row.variant == "int4")
    assert row.params_equal.value == pytest.approx((1 + 0.02 / (30 * N**-0.1)) ** -10, rel=1e-6)
    assert row.tokens_equal is None
    assert model.tokens is None
    assert [one.how for one in row.smaller] == ["same tokens"]
    spec = "hoffmann@besiroglu-2024 * precision(bits_weights)@kumar-2024"
    plain, bits = (worth(from_rows(rows()), one, tokens=D, against=(6,)) for one in (LAW, spec))
    gaps = [found.models[0].rows[0].smaller[0].difference.value for found in (plain, bits)]
    assert gaps[1] > gaps[0] + 0.001  # a model that is trained in six bits loses by them


def test_without_a_law_there_is_the_frontier_alone():
    found = worth(from_rows(rows()), at=3.5)
    assert found.law is None
    assert found.models[0].rows[0].params_equal is None
    assert found.models[0].at.params is None
    low, high = found.models[0].at.loss.low, found.models[0].at.loss.high
    assert high - low == pytest.approx(2 * stats.norm.ppf(0.95) * math.hypot(0.001, 0.002), rel=0.15)
    two = worth(from_rows([*rows(), *rows(params=2e9, model="other")]))
    assert [model.model for model in two.models] == ["m", "other"]


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({"rise": math.nan}, {}, "needed a number in rise"),
        ({"params": 3.0}, {"source": LAW}, "needed one number of params"),
        ({}, {"source": "power(tokens)", "theta": [1.0, 0.1]}, "needed a law of params"),
        ({}, {"source": LAW, "hold": {"bits_kv": 8}}, "has no further axis bits_kv"),
        ({}, {"source": "moe-sparsity@abnar-2025"}, "hold it .--hold expert_density"),
        ({}, {"tokens": 1e9}, "read by a law"),
        ({}, {"source": LAW, "against": (0,)}, "needed bits above 0"),
        ({}, {"coverage": 2.0}, "between 0 and 1"),
    ],
)
def test_refusals(change, settings, said):
    table = rows()
    table[0] |= change
    with pytest.raises(ValueError, match=said):
        worth(from_rows(table), **settings)


def test_an_error_that_is_not_known_resolves_nothing():
    found = worth(from_rows(rows(((4.0, 0.02, math.nan),))), LAW, tokens=D)
    row = found.models[0].rows[0]
    assert row.params_equal.value == pytest.approx((1 + 0.02 / (A * N**-ALPHA)) ** (-1 / ALPHA), rel=1e-6)
    assert math.isnan(row.params_equal.low)
    assert math.isnan(row.tokens_equal.high)
    assert (row.place, row.smaller[0].verdict) == ("frontier", "not resolved")
    assert math.isnan(row.smaller[0].p_compress)
    assert math.isnan(found.models[0].best[0].p_best)
    assert "error of some rises" in found.notes[0]
    assert found.to_json()["models"][0]["best"][0]["p_best"] is None


def test_no_answers():
    with pytest.raises(NoAnswer, match="outside the frontier"):
        worth(from_rows(rows()), at=2)
    with pytest.raises(ValueError, match="bits_post"):
        variants(from_rows([{"bytes": 1, "rise": 0, "rise_se": 0}]))

"""Allocation: every small problem by enumeration, larger ones against HiGHS, the printed example of ResNet-18."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from isoloss.planning import multiple_choice
from isoloss.planning.allocate import Option, allocate, pareto

# Every choice of a small problem: (option per item) -> loss, totals; the slow, obvious version.


def by_item(options):
    items = {}
    for option in options:
        items.setdefault(option.item, []).append(option)
    return items


def every_choice(options, ties=()):
    for choice in itertools.product(*by_item(options).values()):
        name = {option.item: option.name for option in choice}
        if all(len({name[item] for item in tie}) <= 1 for tie in ties):
            totals = {b: math.fsum(o.uses[b] for o in choice) for b in options[0].uses}
            yield math.fsum(option.loss for option in choice), totals


def fits(totals, limits):
    return all(totals[name] <= limit * (1 + 1e-12) for name, limit in limits.items())


def best_of_all(options, limits, ties=()):
    return min((loss for loss, totals in every_choice(options, ties) if fits(totals, limits)), default=None)


def frontier_of_all(options, along, limits, ties=(), rounding=0.0):
    points = sorted(
        (totals[along], loss) for loss, totals in every_choice(options, ties) if fits(totals, limits)
    )
    kept = []
    for use, loss in points:
        if not kept or loss < kept[-1][1] - rounding:
            kept.append((use, loss))
    return kept


@st.composite
def problems(draw):
    """Options with few different numbers, so that there are ties, zeros and limits that are met exactly."""
    small = st.integers(0, 12)
    tied = draw(st.lists(st.integers(0, 4), max_size=3, unique=True))
    width = draw(st.integers(1, 3))
    options = [
        Option(f"i{i}", f"o{k}", draw(st.integers(-5, 12)), {"a": draw(small), "b": draw(small)})
        for i in range(draw(st.integers(1, 5)))
        for k in range(width if i in tied else draw(st.integers(1, 4)))
    ]
    items = by_item(options)
    ties = [[f"i{i}" for i in tied if f"i{i}" in items]]
    sample = [draw(st.sampled_from(some)) for some in items.values()]
    shift = draw(st.sampled_from([0, 0, -1, -1e-9, 1e-9, 3]))
    limits = {"a": sum(o.uses["a"] for o in sample) + shift}
    if draw(st.booleans()):
        limits["b"] = sum(o.uses["b"] for o in sample) + draw(st.integers(-3, 3))
    return options, limits, ties


@given(problems())
def test_small_problems_by_enumeration(problem):
    options, limits, ties = problem
    found, best = allocate(options, limits, ties), best_of_all(options, limits, ties)
    assert found.feasible == (best is not None)
    for name in ("a", "b"):
        assert found.least[name] == min(totals[name] for _, totals in every_choice(options, ties))
    if best is not None:
        assert found.loss == best
        assert found.gap == 0
        assert fits(found.uses, limits)
        taken = [o for o in options if found.chosen[o.item] == o.name]
        assert found.uses == {b: sum(o.uses[b] for o in taken) for b in ("a", "b")}
        assert found.loss == sum(o.loss for o in taken)
        assert all(len({found.chosen[item] for item in tie}) <= 1 for tie in ties)
        return
    assert found.chosen == {}
    assert math.isnan(found.loss)
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        within = [totals[name] for _, totals in every_choice(options, ties) if fits(totals, others)]
        assert found.needed[name] == min(within, default=math.inf)
        if within:
            assert allocate(options, {**others, name: found.needed[name]}, ties).feasible


@given(problems())
def test_frontiers_by_enumeration(problem):
    options, limits, ties = problem
    for others in ({}, {k: v for k, v in limits.items() if k == "b"}, {"a": limits["a"]}):
        found = [(point.uses["a"], point.loss) for point in pareto(options, "a", others, ties)]
        assert found == frontier_of_all(options, "a", others, ties)


@pytest.mark.parametrize("seed", range(12))
def test_real_numbers_of_very_different_size_by_enumeration(seed):
    rng = random.Random(seed)
    options = [
        Option(
            f"i{i}", f"o{k}", rng.gauss(0, 1) * 10 ** rng.randint(-9, 6),
            {"a": rng.random() * 10 ** rng.randint(-6, 3), "b": rng.randint(10**8, 10**8 + 999)},
        )
        for i in range(6) for k in range(3)
    ]  # fmt: skip
    sample = [rng.choice(some) for some in by_item(options).values()]
    limits = {b: math.fsum(o.uses[b] for o in sample) for b in ("a", "b")}
    found = allocate(options, limits)
    assert fits(found.uses, limits)
    assert found.loss == pytest.approx(best_of_all(options, limits), rel=1e-12)
    points = [(point.uses["a"], point.loss) for point in pareto(options, "a")]
    rounding = 1e-12 * max(abs(loss) for _, loss in points)
    assert np.allclose(points, frontier_of_all(options, "a", {}, (), rounding), rtol=1e-12, atol=rounding)


def a_ladder(seed, items, widths, budgets):
    """Bits per layer of an invented network: losses fall fourfold a bit, sizes grow."""
    rng = random.Random(seed)
    options = []
    for i in range(items):
        size, weight = rng.choice([512, 768, 1024, 4608]) * rng.uniform(0.9, 1.1), 10 ** rng.uniform(-3, 0)
        for k in range(widths):
            uses = {"b0": size * (k + 1)} | {
                f"b{j}": size * (k + 1) * rng.random() for j in range(1, budgets)
            }
            options.append(Option(f"i{i}", f"o{k}", weight * size * 4.0**-k, uses))
    limits = {
        name: 0.5 * math.fsum(o.uses[name] for o in options) / widths * 1.15 for name in options[0].uses
    }
    return options, limits


@pytest.mark.parametrize(("items", "widths", "budgets"), [(60, 4, 1), (60, 3, 2), (150, 4, 2), (40, 3, 3)])
def test_larger_problems_as_highs_solves_them(items, widths, budgets):
    options, limits = a_ladder(items, items, widths, budgets)
    groups = list(by_item(options).values())
    ones = np.kron(np.eye(len(groups)), np.ones(widths))
    rows = np.array([[o.uses[b] / limits[b] for o in options] for b in limits])
    cost = np.array([o.loss for o in options])
    peer = milp(
        cost / cost.max(), integrality=np.ones(len(cost)), bounds=Bounds(0, 1), options={"mip_rel_gap": 0},
        constraints=[LinearConstraint(ones, 1, 1), LinearConstraint(rows, -np.inf, 1)],
    )  # fmt: skip
    found = allocate(options, limits)
    assert fits(found.uses, limits)
    assert found.loss == pytest.approx(peer.fun * cost.max(), rel=1e-6)


def test_a_frontier_holds_the_answer_to_every_limit():
    options, _ = a_ladder(3, 30, 3, 1)
    front = pareto(options, "b0")
    uses, losses = [point.uses["b0"] for point in front], [point.loss for point in front]
    assert sorted(set(uses)) == uses
    assert sorted(set(losses), reverse=True) == losses
    for limit in np.linspace(uses[0], uses[-1] * 1.1, 15):
        left = max(k for k, use in enumerate(uses) if use <= limit)
        assert allocate(options, {"b0": limit}).loss == pytest.approx(losses[left], rel=1e-12)


# The example printed with HAWQ-V3 for ResNet-18; the optima below were found by enumerating all 2^16 choices.
TRACES = [
    0.06857826, 0.03162379, 0.03298575, 0.01205663, 0.02222431, 0.00596336, 0.06931772, 0.00807129, 0.00372905,
    0.00530698, 0.00209011, 0.00737569, 0.00210454, 0.00151197, 0.00158041, 0.00078146, 0.00451841, 0.00098745,
    0.00072944,
]  # fmt: skip
AT_8 = [
    0.0235, 0.0125, 0.0102, 0.0082, 0.0145, 0.0344, 0.0023, 0.0287, 0.0148, 0.0333, 0.0682, 0.0027, 0.0448, 0.0336,
    0.0576, 0.1130, 0.0102, 0.0947, 0.0532,
]  # fmt: skip
AT_4 = [
    6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, 0.6827, 9.0942, 4.8857, 10.7599, 21.7546, 0.8603, 14.5324,
    10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016,
]  # fmt: skip
WEIGHTS = [
    *[36864] * 4, 73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824, 1179648, 2359296,
    131072, 2359296, 2359296,
]  # fmt: skip
POSITIONS = [56**2] * 4 + [28**2] * 5 + [14**2] * 5 + [7**2] * 5  # of each layer's output
TIES = [("4", "6"), ("9", "11"), ("14", "16")]  # a block's first convolution and its shortcut


def resnet18():
    options = []
    for i, (trace, fine, coarse, weights, positions) in enumerate(
        zip(TRACES, AT_8, AT_4, WEIGHTS, POSITIONS, strict=True)
    ):
        macs = weights * positions / 1e6
        options += [
            Option(str(i), "8", trace * fine, {"bytes": weights, "bops": macs / 16}),
            Option(str(i), "4", trace * coarse, {"bytes": weights // 2, "bops": macs / 64}),
        ]
    return options


def at(options, name):
    return {b: math.fsum(o.uses[b] for o in options if o.name == name) for b in ("bytes", "bops")}


def halfway(options, budget):
    return (at(options, "4")[budget] + at(options, "8")[budget]) / 2


def test_resnet18_within_a_size():
    options = resnet18()
    limit = halfway(options, "bytes")
    assert limit / 2**20 == pytest.approx(7.98, abs=0.005)
    found = allocate(options, {"bytes": limit}, TIES)
    assert found.loss == pytest.approx(0.074506, abs=5e-7)
    assert found.uses["bytes"] / 2**20 == pytest.approx(7.2656, abs=5e-5)
    assert [item for item, bits in found.chosen.items() if bits == "4"] == ["15", "17", "18"]
    ends = pareto(options, "bytes", ties=TIES)
    assert (ends[0].loss, ends[-1].loss) == pytest.approx((1.307713, 0.004258), abs=5e-7)
    assert max(point.loss for point in ends if point.uses["bytes"] > found.uses["bytes"]) < found.loss
    assert next(p for p in ends if p.uses["bytes"] == found.uses["bytes"]).chosen == found.chosen


def test_resnet18_within_operations():
    options = resnet18()
    limit = halfway(options, "bops")
    assert limit == pytest.approx(66.2323, abs=5e-5)
    found = allocate(options, {"bops": limit}, TIES)
    assert found.loss == pytest.approx(0.215689, abs=5e-7)
    assert found.uses["bops"] == pytest.approx(65.0281, abs=5e-5)


def test_resnet18_within_both_and_by_enumeration_without_the_last_layers():
    options = [option for option in resnet18() if int(option.item) < 12]
    limits = {budget: halfway(options, budget) for budget in ("bytes", "bops")}
    ties = TIES[:2]
    found = allocate(options, limits, ties)
    assert found.loss == pytest.approx(best_of_all(options, limits, ties), rel=1e-12)
    whole = resnet18()
    both = {budget: halfway(whole, budget) for budget in ("bytes", "bops")}
    assert allocate(whole, both, TIES).loss >= max(
        allocate(whole, {budget: limit}, TIES).loss for budget, limit in both.items()
    )


# Edges


def test_a_limit_that_is_met_exactly_is_met_however_it_was_summed():
    sizes = [0.1, 0.2, 0.3, 0.7, 1.1]
    options = [Option(str(i), f"{b}", 4.0**-b, {"MiB": s * b}) for i, s in enumerate(sizes) for b in (2, 4)]
    for limit in (sum(s * 2 for s in sizes), 2 * sum(reversed(sizes))):
        assert set(allocate(options, {"MiB": limit}).chosen.values()) == {"2"}
    low = allocate(options, {"MiB": 2 * math.fsum(sizes) * (1 - 1e-9)})
    assert not low.feasible
    assert low.needed == {"MiB": pytest.approx(4.8)}


def test_a_limit_just_below_a_whole_number():
    """HiGHS (SciPy 1.17.1) exceeds this limit by 1e-8, and calls the problem infeasible with rows scaled to 1,000."""
    goal = [[0.6, 0.0], [0.0], [0.0], [0.4, 0.0, 0.2], [0.0]]
    a = [[0, 15], [0], [0], [0, 5, 15], [0]]
    b = [[10, 0], [12], [0], [0, 18, 15], [0]]
    options = [
        Option(str(i), str(k), goal[i][k], {"a": a[i][k], "b": b[i][k]})
        for i in range(5)
        for k in range(len(goal[i]))
    ]
    assert allocate(options, {"a": 30, "b": 27}).loss == 0.2
    limits = {"a": 30 * (1 - 1e-8), "b": 27}
    assert allocate(options, limits).loss == best_of_all(options, limits) == 0.4


def test_ties_that_share_an_item_are_one():
    options = [Option(i, n, loss, {"u": use}) for i in "abc" for n, loss, use in (("x", 1, 1), ("y", 0, 2))]
    found = allocate(options, {"u": 5}, [("a", "b"), ("b", "c")])
    assert found.chosen == {"a": "x", "b": "x", "c": "x"}
    assert allocate(options, {"u": 5}).loss == 1


def test_without_a_limit_every_item_takes_its_best():
    options = [
        Option("a", "x", 1.0, {"u": 1}),
        Option("a", "y", 0.5, {"u": 9}),
        Option("b", "x", 0.0, {"u": 0}),
    ]
    assert allocate(options, {}).chosen == {"a": "y", "b": "x"}
    assert allocate([Option("a", "x", 1.0), Option("a", "y", -1.0)], {}).chosen == {"a": "y"}


def test_two_limits_that_only_together_are_too_low():
    options = [Option("a", "x", 0, {"u": 0, "v": 9}), Option("a", "y", 0, {"u": 9, "v": 0})]
    found = allocate(options, {"u": 1, "v": 1})
    assert found.least == {"u": 0, "v": 0}
    assert found.needed == {"u": 9, "v": 9}
    assert repr(found) == "Allocated(nothing fits: needed u 9 (limit 1) or v 9 (limit 1))"
    assert pareto(options, "u", {"u": 1, "v": 1}) == ()


def test_a_search_cut_short_says_how_far_off_it_may_be(monkeypatch):
    options, limits = a_ladder(7, 60, 4, 2)
    best = allocate(options, limits)
    monkeypatch.setattr(multiple_choice, "WIDTH", 1)
    monkeypatch.setattr(multiple_choice, "WIDEST", 1)
    short = allocate(options, limits)
    assert short.gap > 0
    assert short.loss - short.gap <= best.loss * (1 + 1e-12) <= short.loss * (1 + 1e-12)
    assert "not proved" in repr(short)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: allocate([], {}), "at least one option"),
        (lambda: Option("a", "x", math.nan), "finite loss"),
        (lambda: Option("a", "x", 0, {"u": -1}), "u of 0 or more"),
        (lambda: allocate([Option("a", "x", 0), Option("a", "x", 1)], {}), "two options named 'x'"),
        (lambda: allocate([Option("a", "x", 0, {"u": 1}), Option("b", "x", 0)], {}), "same budgets"),
        (lambda: allocate([Option("a", "x", 0, {"u": 1})], {"v": 1}), "no budget 'v'"),
        (lambda: allocate([Option("a", "x", 0, {"u": 1})], {"u": math.inf}), "finite limit"),
        (lambda: pareto([Option("a", "x", 0, {"u": 1})], "v"), "no budget 'v'"),
        (lambda: allocate([Option("a", "x", 0)], {}, [("a", "b")]), "a tie names 'b'"),
        (lambda: allocate([Option("a", "x", 0), Option("b", "y", 0)], {}, [("a", "b")]), "different options"),
    ],
)
def test_bad_questions(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Exact k-means of rows: against every partition, exact fractions and other libraries, by native code and NumPy alike."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isoloss import native
from isoloss.compress import kmeans, kmeans_numpy
from isoloss.compress.kmeans import Tables, kmeans_rows
from isoloss.native import kmeans as native_kmeans
from tests.oracles import kmeans as oracle

WAYS = ["numpy", *native.status().sets]
SHEET = [-2.1, -1.9, -1.0, -0.2, 0.0, 0.1, 0.4, 1.2, 1.3, 2.6]
SHEET_WEIGHTS = [1, 2, 1, 5, 8, 5, 2, 1, 3, 0.5]


def solved(way: str, x, weights, levels: int) -> Tables:
    """``kmeans_rows`` by one of the ways there are."""
    x = np.atleast_2d(x)
    rows, n = x.shape
    found = Tables(np.empty((rows, levels)), np.empty((rows, n), np.uint8), np.empty(rows))
    if way == "numpy":
        kmeans_numpy.kmeans_rows(x, weights, *found)
    else:
        native_kmeans.kmeans_rows(x, weights, *found, instructions=way)
    return found


def assert_least(x, w, levels: int, least: Fraction) -> None:
    """By all ways: codes and centres cost what they say, and no more than the least, to rounding."""
    spread = float(oracle.spread(oracle.merged(x, w)))
    rounded = sum(w) * (2.0**-53 * max(map(abs, x))) ** 2  # a centre is a float64
    for way in WAYS:
        found = solved(way, x, np.array(w), levels)
        centres, codes, cost = found.centres[0], found.codes[0], float(found.cost[0])
        reached = oracle.cost_of(x, w, centres.tolist(), codes.tolist())
        assert float(reached - least) <= 1e-14 * spread + rounded
        assert cost == pytest.approx(float(reached), rel=1e-9, abs=4 * rounded)
        assert (np.diff(centres) >= 0).all()
        assert codes.max() < levels


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("levels", "cost", "centres"),
    [
        (2, 9.355255, [-1.725, 0.27347]),
        (3, 2.080778, [-1.725, 0.015, 1.42222]),
        (4, 1.3005, [-1.725, 0.015, 1.275, 2.6]),
    ],
)
def test_the_worked_example(way, levels, cost, centres):
    found = solved(way, SHEET, np.array(SHEET_WEIGHTS), levels)
    assert found.cost[0] == pytest.approx(cost, abs=5e-7)
    assert found.centres[0] == pytest.approx(centres, abs=5e-6)


@st.composite
def rows(draw, longest: int):
    """A row with ties, weights with zeros, and levels."""
    n = draw(st.integers(1, longest))
    number = draw(
        st.sampled_from(
            [
                st.integers(-4, 4).map(float),
                st.floats(-3, 3, width=32),
                st.floats(-1e6, 1e6),
                st.integers(0, 5).map(lambda k: 1e8 + k / 8),
                st.sampled_from([-1e5, -1.0, 0.0, 0.25, 1.0, 1e5]),
            ]
        )
    )
    weight = draw(
        st.sampled_from([st.just(1.0), st.integers(0, 3).map(float), st.floats(0.015625, 64, width=32)])
    )
    x = draw(st.lists(number, min_size=n, max_size=n))
    w = draw(st.lists(weight, min_size=n, max_size=n).filter(any))
    return x, w, draw(st.integers(1, 10))


@settings(max_examples=150)
@given(rows(longest=8))
@example(([0.0, 1.0, 2.0, 3.0], [1.0] * 4, 3))  # three partitions tie
def test_no_partition_costs_less(row):
    assert_least(*row, oracle.least_of_all(*row))


@settings(max_examples=50)
@given(rows(longest=30))
@example((list(map(float, range(40))), [1.0] * 40, 7))  # evenly spaced: prices skip numbers of levels
@example((list(map(float, range(40))), [1.0] * 40, 9))
@example(([float(k * k) for k in range(40)], [1.0] * 40, 8))
@example(  # a run more wins less than rounding
    (
        [6.0, 8.0, 9.0, 4.111830084571724e-61, 2.0**-24, 0.0, 4.0, 5.0, 7.0, 0.1, -1.0, 0.0],
        [1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 0.0],
        10,
    )
)
def test_the_recursion_finds_no_less(row):
    assert_least(*row, oracle.least_by_recursion(*row))


def long_rows(name: str, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(7)
    gamma = rng.gamma(0.5, 1, (2, n))
    return {
        "normal": (rng.standard_normal((2, n)), gamma),
        "heavy tails": (rng.standard_cauchy((2, n)), gamma),
        "outliers": (rng.standard_normal((2, n)) * np.where(rng.random((2, n)) < 0.002, 1e4, 1), None),
        "two heaps": (rng.standard_normal((2, n)) * 0.01 + np.sign(rng.standard_normal((2, n))), gamma),
        "even": (np.tile(np.arange(float(n)), (2, 1)), None),
        "rounded": (np.round(rng.standard_normal((2, n)) * 32) / 32, gamma),
        "bare weights": (rng.standard_normal((2, n)), rng.gamma(0.02, 1, (2, n))),
    }[name]


@pytest.mark.skipif(not native.available(), reason=str(native.status()))
@pytest.mark.parametrize(
    "name", ["normal", "heavy tails", "outliers", "two heaps", "even", "rounded", "bare weights"]
)
@pytest.mark.parametrize("levels", [2, 3, 4, 7, 16, 33])
def test_prices_and_layers_agree_on_long_rows(name, levels):
    x, w = long_rows(name, 1500)
    slow = solved("numpy", x, w, levels)
    first = solved(WAYS[1], x, w, levels)
    whole = solved("numpy", x, w, 1).cost
    assert (np.abs(first.cost - slow.cost) <= 1e-13 * whole + 1e-11 * slow.cost).all()
    for way in WAYS[2:]:  # the same bits, whatever the instruction set
        for one, other in zip(first, solved(way, x, w, levels), strict=True):
            assert np.array_equal(one, other)


@pytest.mark.skipif(not native.available(), reason=str(native.status()))
def test_many_levels_agree():
    x, w = long_rows("normal", 700)
    for levels in (100, 256):
        assert solved("numpy", x, w, levels).cost == pytest.approx(
            solved(WAYS[1], x, w, levels).cost, rel=1e-10
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_heuristic_never_costs_less(way):
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(3)
    x, w = rng.standard_t(4, 400), rng.gamma(1, 1, 400)
    for levels in (4, 8):
        ours = solved(way, x, w, levels).cost[0]
        for seed in range(3):
            theirs = cluster.KMeans(levels, n_init=1, random_state=seed).fit(x[:, None], sample_weight=w)
            assert ours <= theirs.inertia_ * (1 + 1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_centres_are_means_and_codes_are_nearest(way):
    x, w = long_rows("normal", 500)
    found = solved(way, x, w, 8)
    for r in range(2):
        for k in range(8):
            mine = found.codes[r] == k
            assert np.average(x[r, mine], weights=w[r, mine]) == pytest.approx(found.centres[r, k], rel=1e-12)
        nearest = np.abs(x[r, :, None] - found.centres[r]).argmin(axis=1)
        assert np.array_equal(nearest, found.codes[r])
    more = [solved(way, x, w, levels).cost for levels in range(1, 12)]
    assert (np.diff(more, axis=0) < 0).all()
    assert (np.diff(more, n=2, axis=0) > -1e-9).all()  # each level saves less than the one before it


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("offset", "unit"), [(2.0**30, 1), (-(2.0**40), 1), (0, 2.0**-900), (0, 2.0**900), (0, 1e300)]
)
def test_offset_and_unit_do_not_matter(way, offset, unit):
    rng = np.random.default_rng(1)
    x = np.round(rng.standard_normal(300) * 256) / 256  # exact after the offset
    w = rng.gamma(1, 1, 300)
    plain, moved = solved(way, x, w, 7), solved(way, (x + offset) * unit, w, 7)
    assert np.array_equal(plain.codes, moved.codes)
    assert moved.centres[0] / unit - offset == pytest.approx(plain.centres[0], abs=1e-15 * (1 + abs(offset)))
    if abs(unit) == 1:
        assert moved.cost == pytest.approx(plain.cost, rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_one_number_far_out_does_not_blur_the_rest(way):
    rng = np.random.default_rng(2)
    x = rng.standard_normal(300)
    near = solved(way, x, None, 5)
    for far in (1e7, -1e7):
        found = solved(way, np.append(x, far), None, 6)
        rest = found.codes[0, :-1] - found.codes[0, :-1].min()
        assert np.array_equal(rest, near.codes[0])
        assert found.cost[0] == pytest.approx(near.cost[0], rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_fewer_numbers_than_levels(way):
    found = solved(way, [[3.0, -1.0, 3.0, 0.0, -0.0]], None, 6)
    assert found.centres.tolist() == [[-1, 0, 3, 3, 3, 3]]
    assert found.codes.tolist() == [[2, 0, 2, 1, 1]]
    assert found.cost.tolist() == [0]
    assert solved(way, [[0.1] * 5], None, 2).centres.tolist() == [[0.1, 0.1]]
    assert solved(way, [[7.0]], None, 256).codes.tolist() == [[0]]


@pytest.mark.parametrize("way", WAYS)
def test_equal_numbers_have_equal_codes(way):
    x, w = long_rows("rounded", 1000)
    found = solved(way, x, w, 16)
    for r in range(2):
        assert len({*zip(x[r].tolist(), found.codes[r].tolist(), strict=True)}) == len(set(x[r].tolist()))


@pytest.mark.parametrize("way", WAYS)
def test_numbers_without_weight_have_no_say(way):
    x, w = np.array([0.0, 1.0, 10.0, 11.0, 4.9, 5.75, -7.0, 99.0]), np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    found = solved(way, x, w, 2)
    assert found.centres.tolist() == [[0.5, 10.5]]
    assert found.codes.tolist() == [[0, 0, 1, 1, 0, 1, 0, 1]]
    assert found.cost.tolist() == [1]
    tie = solved(way, np.array([0.0, 2.0, 1.0]), np.array([1.0, 1, 0]), 2)
    assert tie.codes.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("way", WAYS)
def test_a_row_without_weight_counts_as_even(way):
    x = np.array([[0.0, 1.0, 10.0, 11.0]])
    none, even = solved(way, x, np.zeros((1, 4)), 2), solved(way, x, None, 2)
    assert np.array_equal(none.centres, even.centres)
    assert np.array_equal(none.codes, even.codes)
    assert none.cost.tolist() == [0]


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_lost_in_the_sum_counts_in_the_cost_alone(way):
    found = solved(way, np.array([0.0, 1.0, 9.0]), np.array([1.0, 1.0, 1e-20]), 2)
    assert found.centres.tolist() == [[0, 1]]
    assert found.codes.tolist() == [[0, 1, 1]]
    assert found.cost[0] == pytest.approx(64e-20)
    least = solved(way, [0.0, 1.0, 9.0], np.array([5e-324, 5e-324, 5e-324]), 2)
    assert least.codes.tolist() == [[0, 0, 1]]


def test_types_and_layouts_do_not_matter():
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((3, 64)).astype(np.float16), rng.gamma(1, 1, 64).astype(np.float16)
    base = kmeans_rows(x.astype(np.float64), w.astype(np.float64), 4)
    for one, other in [
        (x, w),
        (x.astype(np.float32), np.tile(w.astype(np.float64), (3, 1))),
        (np.asfortranarray(x.astype(">f8")), w.astype(np.float32)),
        (np.repeat(x.astype(np.float32), 2, axis=1)[:, ::2], np.asfortranarray(np.tile(w, (3, 1)))),
    ]:
        for got, wanted in zip(kmeans_rows(one, other, 4), base, strict=True):
            assert np.array_equal(got, wanted)
    one = kmeans_rows(x[0], w, 4)
    assert np.array_equal(one.codes, base.codes[:1])
    assert kmeans_rows([3, 1, 2], None, 3).centres.tolist() == [[1, 2, 3]]
    assert kmeans_rows(np.empty((0, 4)), None, 3).centres.shape == (0, 3)


def test_tensors_of_torch_are_taken():
    torch = pytest.importorskip("torch")
    x = torch.linspace(-1, 1, 32).reshape(2, 16)
    assert np.array_equal(
        kmeans_rows(x, x[0] + 2, 4).codes, kmeans_rows(x.numpy(), x[0].numpy() + 2, 4).codes
    )


def test_threads_do_not_change_the_result():
    x, w = np.tile(long_rows("normal", 200)[0], (9, 1)), np.abs(long_rows("normal", 200)[1])[0]
    x *= np.arange(1, 19)[:, None]
    for one, other in zip(kmeans_rows(x, w, 8), kmeans_rows(x, w, 8, threads=3), strict=True):
        assert np.array_equal(one, other)
    whole = np.tile(w, (18, 1)) * np.arange(1, 19)[:, None]
    for one, other in zip(kmeans_rows(x, whole, 8), kmeans_rows(x, whole, 8, threads=3), strict=True):
        assert np.array_equal(one, other)


def test_without_native_code_numpy_answers_and_says_so_once(monkeypatch):
    fast = kmeans_rows(SHEET, SHEET_WEIGHTS, 3)
    monkeypatch.setattr(kmeans.native, "available", lambda: False)
    kmeans.library.warn_slow.cache_clear()
    with pytest.warns(kmeans.library.SlowPath, match="k-means in NumPy takes"):
        slow = kmeans_rows(SHEET, SHEET_WEIGHTS, 3)
    kmeans_rows(SHEET, SHEET_WEIGHTS, 3)
    assert np.array_equal(fast.codes, slow.codes)


@pytest.mark.parametrize(
    ("x", "weights", "levels", "says"),
    [
        ([[1.0, 2.0], [1.0, np.nan]], None, 2, "x needs finite numbers, got others at row 1, column 1$"),
        ([[np.inf, 2.0], [1.0, np.nan]], None, 2, "row 0, column 0 and 1 more"),
        ([[1.0, 2.0]], [[1.0, -1.0]], 2, "weights need to be finite and at least 0, got others at row 0, column 1"),
        ([[1.0, 2.0]], [1.0, np.nan], 2, "others at column 1"),
        ([[1.0, 2.0]], [1.0, np.inf], 2, "others at column 1"),
        ([[1.0, 2.0]], [1.0, 1.0, 1.0], 2, r"weights need the shape \(1, 2\) or \(2,\), got \(3,\)"),
        ([[1.0, 2.0]], None, 0, "levels need to be 1 to 256, got 0"),
        ([[1.0, 2.0]], None, 257, "levels need to be 1 to 256, got 257"),
        ([[], []], None, 2, r"rows of at least one number, got shape \(2, 0\)"),
        (1.0, None, 2, r"got shape \(\)"),
        ([[[1.0]]], None, 2, r"got shape \(1, 1, 1\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(x, weights, levels, says):
    with pytest.raises(ValueError, match=says):
        kmeans_rows(x, weights, levels)


def test_numbers_that_are_none_are_refused():
    with pytest.raises(TypeError, match="x needs floats, got complex128"):
        kmeans_rows([1j], None, 2)
    with pytest.raises(ValueError, match="threads need to be at least 1, got 0"):
        kmeans_rows([1.0], None, 2, threads=0)

"""The column loop: OBQ in its order, the cost as a sum of squares, enumeration as a bound; native as in torch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from isoloss import native  # noqa: E402
from isoloss.compress import formats, solvers  # noqa: E402
from isoloss.compress.solvers import columns  # noqa: E402
from isoloss.compress.solvers.levels import Levels, group_of_columns  # noqa: E402
from isoloss.compress.solvers.moments import curvature  # noqa: E402
from isoloss.compress.statistics import Statistics  # noqa: E402
from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.native.columns import round_columns  # noqa: E402
from tests.oracles.obq import best_rounding, obq  # noqa: E402

CODED = [
    "int4", "int3/g4/asym", "int2/bipolar", "int3/narrow", "int4/tensor", "int3/mse", "int8", "fp4-e2m1", "fp8-e4m3",
    "fp4-e2m1/g4/scale-m1", "fp4-e2m1/g4/scale-m2", "mxfp4", "nvfp4", "nf4/g4", "table2", "table2/g5", "table2/tensor", "fixed2.3",
]  # fmt: skip


def problem(rows, columns_, seed, tokens=None):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns_, columns_, generator=generator)
    x = torch.randn(tokens or 4 * columns_, columns_, generator=generator) @ mix
    weight = torch.randn(rows, columns_, generator=generator)
    second = (x.T @ x / len(x))[None]
    return weight, second, Statistics("layer", len(x), second)


def damped(second, damp=0.01):
    h = second[0].double().numpy()
    return h + damp * h.diagonal().mean() * np.eye(len(h))


def values_of(grid, row, column):
    """All values that a number of this row and column can have."""
    k = grid.group_of(column)
    levels = Levels.of(grid.group(k))
    return np.unique(levels.values[0, :, row].double().numpy())


def nearest_in(grid, row):
    def nearest(x, column):
        values = values_of(grid, row, column)
        return values[np.abs(values - x).argmin()]

    return nearest


@pytest.mark.parametrize("order", ["natural", "activation", "inverse"])
@pytest.mark.parametrize("spec", ["int3", "table2", "fp4-e2m1", "nf4/g4", "int3/g4/asym"])
def test_gptq_is_obq_in_its_order(spec, order):
    weight, second, statistics = problem(6, 10, 1)
    found = solvers.Gptq(order=order, static=True).solve(weight, formats.get(spec), statistics)
    places = curvature(second[0], 0.01, order).order.tolist()
    grid, decoded = found.grid(), found.decode().double().numpy()
    for row in range(6):
        wanted, _ = obq(weight[row].numpy(), damped(second), nearest_in(grid, row), places)
        np.testing.assert_allclose(decoded[row], wanted, atol=1e-6)


@pytest.mark.parametrize("order", ["natural", "activation", "inverse"])
def test_the_cost_is_the_sum_of_squares_at_each_turn(order):
    weight, second, statistics = problem(5, 12, 2)
    found = solvers.Gptq(order=order).solve(weight, formats.get("int3"), statistics)
    h = damped(second)
    made = curvature(second[0], 0.01, order)
    inverse = np.linalg.inv(h[np.ix_(made.order, made.order)])
    u = np.linalg.cholesky(inverse).T  # upper: u.T @ u is the inverse
    np.testing.assert_allclose(made.conditional, u.diagonal() ** -2, rtol=1e-4)
    np.testing.assert_allclose(made.moves, u / u.diagonal()[:, None], atol=1e-4)
    for row in range(5):
        q, turn = obq(weight[row].numpy(), h, nearest_in(found.grid(), row), made.order.tolist())
        gap = weight[row].double().numpy() - q
        squares = ((turn - q)[made.order] / u.diagonal()) ** 2
        assert gap @ h @ gap == pytest.approx(squares.sum(), rel=1e-8)


@pytest.mark.parametrize("spec", ["int2", "table2"])
def test_enumeration_bounds_the_error_from_below(spec):
    better, total = 0, 0
    for seed in range(8):
        weight, second, statistics = problem(3, 6, 10 + seed)
        h = damped(second)
        fed = solvers.Gptq().solve(weight, formats.get(spec), statistics)
        refined = solvers.Gptq(rounds=3, steps=0).solve(weight, formats.get(spec), statistics)
        for row in range(3):
            errors = []
            for found in (fed, refined):
                grid = found.grid()
                gap = weight[row].double().numpy() - found.decode()[row].double().numpy()
                errors.append(gap @ h @ gap)
                _, least = best_rounding(weight[row].numpy(), h, [values_of(grid, row, j) for j in range(6)])
                assert errors[-1] >= least * (1 - 1e-6)
            assert errors[1] <= errors[0] * (1 + 1e-6)
            plain = fed.grid().decode(fed.grid().encode(weight))
            gap = (weight[row] - plain[row]).double().numpy()
            better += errors[0] <= gap @ h @ gap
            total += 1
    assert better >= 0.8 * total  # not guaranteed of a single row


@pytest.mark.parametrize("spec", CODED)
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_every_coded_format_is_filled(spec, order):
    weight, second, statistics = problem(8, 13, 3)  # a short last group where there are groups
    format = formats.get(spec)
    found = solvers.Gptq(order=order).solve(weight, format, statistics)
    again = solvers.Gptq(order=order).solve(weight, format, statistics)
    assert found.bits == format.size((8, 13))
    assert torch.equal(found.decode(), again.decode())
    grid = found.grid()
    assert torch.equal(
        grid.decode(grid.encode(found.decode())), found.decode()
    )  # no code that nearest never gives
    if spec not in ("fixed2.3", "int8", "fp8-e4m3"):
        plain = solvers.output_error(weight, format.encode(weight).decode(), second)
        assert solvers.output_error(weight, found.decode(), second) < plain


@pytest.mark.parametrize(
    "spec", ["int3", "int3/g4", "fp4-e2m1", "nf4/g8", "table3", "table2/g6", "int3/g4/asym"]
)
def test_refinement_never_raises_the_error(spec):
    weight, second, statistics = problem(16, 18, 4)
    h = torch.from_numpy(damped(second)).float()
    last = float("inf")
    for rounds in range(4):
        found = solvers.Gptq(order="activation", rounds=rounds, tolerance=0.0).solve(
            weight, formats.get(spec), statistics
        )
        error = solvers.output_error(weight, found.decode(), h)
        assert error <= last * (1 + 1e-6)
        last = error if rounds else min(last, error)
    assert last < solvers.output_error(
        weight, solvers.Gptq().solve(weight, formats.get(spec), statistics).decode(), h
    )


def test_inputs_that_are_always_zero_have_no_say():
    weight, second, _ = problem(4, 8, 5)
    second[:, 3] = second[:, :, 3] = 0
    statistics = Statistics("layer", 32, second)
    found = solvers.Gptq().solve(weight, formats.get("int4"), statistics)
    grid = found.grid()
    assert torch.equal(found.codes()[:, 3], grid.encode(weight)[:, 3])
    nothing = Statistics("layer", 32, torch.zeros_like(second))
    found = solvers.Gptq().solve(weight, formats.get("int4"), nothing)
    assert torch.equal(found.decode(), formats.get("int4").encode(weight).decode())


def test_damping_grows_where_the_moments_cannot_be_factored():
    x = torch.ones(4, 8)
    second = x.T @ x / 4  # rank one
    made = curvature(second, 0.0, "activation")
    assert 0 < made.damping <= 0.01
    assert bool(torch.isfinite(made.moves).all())
    bad = torch.eye(8)
    bad[0, 1] = bad[1, 0] = 50.0  # no second moment is like that
    with pytest.raises(NoAnswer, match="cannot be factored"):
        curvature(bad, 0.01, "natural")
    with pytest.raises(ValueError, match="finite"):
        curvature(torch.full((2, 2), torch.nan), 0.01, "natural")


def test_blocks_are_as_one(monkeypatch):
    weight, _, statistics = problem(5, 40, 6)
    specs = ("int3", "table3", "int4/g7")
    whole = [solvers.Gptq(rounds=1).solve(weight, formats.get(s), statistics).codes() for s in specs]
    monkeypatch.setattr(columns, "BLOCK", 9)
    for spec, codes in zip(specs, whole, strict=True):
        assert torch.equal(solvers.Gptq(rounds=1).solve(weight, formats.get(spec), statistics).codes(), codes)


@pytest.mark.skipif(not native.available(), reason=str(native.status()))
@pytest.mark.parametrize("descent", [False, True])
def test_native_rounds_as_torch_does(descent, monkeypatch):
    weight, second, _ = problem(70, 20, 7)
    grid = formats.get("table3/g9").grid(weight)
    made = curvature(second[0], 0.01, "activation")
    levels, group = Levels.of(grid), group_of_columns(grid)[made.order]
    kept = torch.rand(20, 70, generator=torch.Generator().manual_seed(1)) < 0.05

    def run():
        x = weight.T[made.order].contiguous()
        if not descent:
            return columns.feedback(x, levels, group, made.moves, kept, 0, 20), x
        q = grid.decode(grid.encode(weight)).T[made.order].contiguous()
        wanted = q - made.second @ (q - x) / made.second.diagonal()[:, None]
        return columns.descend(wanted, q, levels, group, made.second, kept)[0], q

    places, numbers = run()
    monkeypatch.setattr(native, "available", lambda: False)
    with warnings.catch_warnings(action="ignore"):
        slow_places, slow_numbers = run()
    assert (places == slow_places).float().mean() > 0.999  # ties may fall otherwise in another rounding
    torch.testing.assert_close(numbers, slow_numbers, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not native.available(), reason=str(native.status()))
def test_instruction_sets_give_the_same_bits():
    results = []
    for name in native.status().sets:
        x = np.float32(np.random.default_rng(1).normal(size=(20, 130)))
        levels = np.sort(np.float32(np.random.default_rng(2).normal(size=(2, 8, 130))), axis=1)
        moves = np.float32(np.random.default_rng(3).normal(size=(20, 20)) / 10)
        group = np.arange(20, dtype=np.int32) % 2
        codes, moved = np.empty((20, 130), np.uint8), np.empty((20, 130), np.float32)
        round_columns(x, levels, group, moves, codes, moved, instructions=name)
        results.append((x.tobytes(), codes.tobytes(), moved.tobytes()))
    assert len(set(results)) == 1


@pytest.mark.skipif(not native.available(), reason=str(native.status()))
def test_native_refuses_what_does_not_fit():
    x, levels = np.zeros((2, 3), np.float32), np.zeros((1, 2, 3), np.float32)
    good = dict(group=np.zeros(2, np.int32), moves=np.eye(2, dtype=np.float32), codes=np.empty((2, 3), np.uint8),
                moved=np.empty((2, 3), np.float32))  # fmt: skip
    round_columns(x, levels, **good)
    for name, bad in {
        "group": np.ones(2, np.int32), "moves": np.eye(2), "codes": np.empty((3, 2), np.uint8),
        "moved": np.empty((2, 3)),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=r"needs|takes"):
            round_columns(x, levels, **{**good, name: bad})

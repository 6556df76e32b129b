"""Optima of grids: planted bowls, edges, diverged runs, invariances, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

import isoloss
from isoloss.errors import NoAnswer
from isoloss.laws import get
from isoloss.observing import grid_optima, sweep_optimum
from isoloss.observing.bowl import bowl, monomials

U = np.linspace(-1.5, 1.5, 7)


def planted(seed=0, noise=0.0, cubic=0.0, centre=(0.2, -0.3), scale=1.0):
    """Two grids about 2e-3 and 4e-3, batches about 1e5 and 3e5; ln loss is a polynomial."""
    rng = np.random.default_rng(seed)
    u, v = (a.ravel() for a in np.meshgrid(U, U))
    a, b = u - centre[0], v - centre[1]
    rise = scale * (0.006 * a**2 - 0.005 * a * b + 0.007 * b**2 + cubic * (a**3 + a * b**2))
    rows = {"lr": [], "batch": [], "loss": [], "size": []}
    for size, lr, batch, level in ((1e8, 2e-3, 1e5, 3.0), (4e8, 4e-3, 3e5, 2.5)):
        rows["lr"] += (lr * np.exp(u)).tolist()
        rows["batch"] += (batch * np.exp(v)).tolist()
        rows["loss"] += (level * np.exp(rise + noise * rng.normal(size=len(u)))).tolist()
        rows["size"] += [size] * len(u)
    return {name: np.array(values) for name, values in rows.items()}


def found(rows, **settings):
    return grid_optima(rows["lr"], rows["loss"], rows["batch"], {"size": rows["size"]}, **settings)


# --- planted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cubic", [0.0, 0.0006])
def test_a_polynomial_without_noise_is_met_exactly(cubic):
    got = found(planted(cubic=cubic))
    assert got.form == "cubic"
    for grid, (lr, batch, level) in zip(got.grids, ((2e-3, 1e5, 3.0), (4e-3, 3e5, 2.5)), strict=True):
        assert grid.lr.value == pytest.approx(lr * math.exp(0.2), rel=1e-6)
        assert grid.batch.value == pytest.approx(batch * math.exp(-0.3), rel=1e-6)
        assert grid.loss == pytest.approx(level, rel=1e-8)
        assert grid.lr.low <= grid.lr.value <= grid.lr.high
    np.testing.assert_allclose(got.curvature, [[0.012, -0.005], [-0.005, 0.014]], atol=1e-6)
    assert got.slope == pytest.approx(5 / 12, abs=1e-4)
    assert got.shared_sd == pytest.approx((0, 0), abs=1e-6)


def test_the_slope_is_how_the_best_rate_follows_a_fixed_batch():
    law = get("hoffmann + lr-batch")
    values = {
        "E": 1.8, "A": 480, "B": 2100, "alpha": 0.35, "beta": 0.37, "eta_1": 8e-4, "a_N": -0.7, "a_D": 0.3,
        "k_lr": 0.016, "g_lr": 0, "batch_1": 3e5, "b_N": 0, "b_D": 0.57, "k_batch": 0.013, "g_batch": 0, "s": 0.45,
    }  # fmt: skip
    theta = law.theta(values)
    mesh = np.meshgrid([1e8, 4e8], [4e9, 6e10], 8e-4 * np.exp(np.linspace(-3, 4, 15)), 3e5 * np.exp(U * 1.6))
    x = dict(zip(law.axes, (v.ravel() for v in mesh), strict=True))
    got = grid_optima(
        x["lr"], law.evaluate(theta, **x), x["batch_tokens"], {"params": x["params"], "tokens": x["tokens"]}
    )
    assert got.slope == pytest.approx(0.45, abs=0.01)
    for grid in got.grids:
        want = 8e-4 * (grid.at["params"] / 1e9) ** -0.7 * (grid.at["tokens"] / 1e10) ** 0.3
        assert grid.lr.value == pytest.approx(want, rel=0.02)


def test_intervals_hold_the_truth_of_bowls_that_are_no_cubics():
    law = get("hoffmann + lr-batch")
    values = {
        "E": 1.8, "A": 480, "B": 2100, "alpha": 0.35, "beta": 0.37, "eta_1": 8e-4, "a_N": -0.7, "a_D": 0.3,
        "k_lr": 0.016, "g_lr": 0.4, "batch_1": 3e5, "b_N": 0, "b_D": 0.57, "k_batch": 0.013, "g_batch": 0.2, "s": 0.5,
    }  # fmt: skip
    theta, inside, count = law.theta(values), np.zeros(2), 0
    for seed in range(15):
        rng = np.random.default_rng(seed)
        off = rng.uniform(0, 0.7)
        mesh = np.meshgrid(
            [1e8, 2e8, 4e8],
            [4e9, 16e9, 64e9],
            2.0 ** (np.arange(-12, -5) + off),
            2.0 ** (np.arange(15, 23) + off),
        )
        x = dict(zip(law.axes, (v.ravel() for v in mesh), strict=True))
        loss = law.evaluate(theta, **x) * np.exp(0.001 * rng.normal(size=len(x["lr"])))
        by = {"params": x["params"], "tokens": x["tokens"]}
        for grid in grid_optima(x["lr"], loss, x["batch_tokens"], by).grids:
            rate = 8e-4 * (grid.at["params"] / 1e9) ** -0.7 * (grid.at["tokens"] / 1e10) ** 0.3
            batch = 3e5 * (grid.at["tokens"] / 1e10) ** 0.57
            inside += [grid.lr.low <= rate <= grid.lr.high, grid.batch.low <= batch <= grid.batch.high]
            count += 1
    assert count == 135
    assert (inside / count >= 0.85).all(), inside / count  # nominal 0.9; below 0.84 by chance once in 40


def test_a_flat_grid_has_a_wide_interval():
    sharp, flat = (found(planted(seed=3, noise=5e-4, scale=s), window=0.5, least=49) for s in (1.0, 0.05))
    assert flat.grids[0].lr_sd > 5 * sharp.grids[0].lr_sd
    width = [math.log(g.grids[0].lr.high / g.grids[0].lr.low) for g in (sharp, flat)]
    assert width[1] > 5 * width[0]


# --- diverged runs, edges ---------------------------------------------------------------------------


def test_diverged_runs_change_nothing():
    rows = planted(noise=1e-3, seed=1)
    extra = {
        "lr": [0.5, 0.6, 0.7],
        "batch": [1e5, 2e5, 1e5],
        "loss": [7.0, math.nan, 40.0],
        "size": [1e8] * 3,
    }
    more = {name: np.concatenate([rows[name], extra[name]]) for name in rows}
    less, full = found(rows), found(more)
    assert full.grids[0].lr == less.grids[0].lr
    assert full.grids[0].batch == less.grids[0].batch
    assert (full.grids[0].far - less.grids[0].far, full.grids[0].missing) == (2, 1)
    assert len(rows["lr"]) == sum(g.used + g.far for g in less.grids)
    assert not {98, 99, 100} & set(full.kept.tolist())
    assert full.kept.tolist() == less.kept.tolist()


def test_an_outlier_within_the_window_moves_little():
    rows = planted(noise=5e-4, seed=2)
    wrong = {**rows, "loss": rows["loss"].copy()}
    wrong["loss"][24] *= 1.015
    right, moved = found(rows), found(wrong)
    assert abs(math.log(moved.grids[0].lr.value / right.grids[0].lr.value)) < 0.05


@pytest.mark.parametrize(("centre", "says"), [((2.2, 0.0), "rate above"), ((0.0, -2.1), "batch below")])
def test_an_optimum_outside_the_grid_is_not_given(centre, says):
    got = found(planted(centre=centre, scale=0.4))
    for grid in got.grids:
        assert says in grid.edge
        assert math.isnan(grid.lr.value)
        assert math.isnan(grid.batch.value)
        assert math.isnan(grid.lr_sd)
    side = got.grids[0].lr if "rate" in says else got.grids[0].batch
    edge = 2e-3 * math.exp(1.5) if "rate" in says else 1e5 * math.exp(-1.5)
    assert (side.low, side.high) == pytest.approx((edge, math.inf) if "rate" in says else (0.0, edge))
    columns = got.table()
    assert columns["lr_weight"] == [0.0, 0.0]
    with pytest.raises(NoAnswer):
        isoloss.fit("power(size)", {"size": columns["size"], "loss": columns["lr"]}, draws=0)


def test_a_saddle_and_a_hill_have_no_optimum():
    rows = planted()
    u, v = np.log(rows["lr"] / 2e-3), np.log(rows["batch"] / 1e5)
    saddle = found({**rows, "loss": 3 * np.exp(0.01 * u**2 - 0.01 * v**2)}, window=0.9)
    assert all(math.isnan(grid.lr.value) and "batch" in grid.edge for grid in saddle.grids)
    with pytest.raises(NoAnswer, match="do not make a bowl"):
        grid_optima(np.exp(U), 3 * np.exp(-0.01 * U**2), window=0.9)


# --- what must not matter ---------------------------------------------------------------------------


def test_neither_the_order_of_rows_nor_units_matter():
    rows = planted(noise=1e-3, seed=4)
    order = np.random.default_rng(0).permutation(len(rows["lr"]))
    mixed = found({name: values[order] for name, values in rows.items()})
    first = found(rows)
    assert [g.lr for g in mixed.grids] == [g.lr for g in first.grids]
    assert sorted(order[mixed.kept].tolist()) == first.kept.tolist()
    scaled = found(
        {**rows, "lr": 1e3 * rows["lr"], "batch": rows["batch"] / 2048, "loss": 1.7 * rows["loss"]}
    )
    for a, b in zip(scaled.grids, first.grids, strict=True):
        assert a.lr.value == pytest.approx(1e3 * b.lr.value, rel=1e-6)
        assert a.batch.high == pytest.approx(b.batch.high / 2048, rel=1e-4)


def test_one_grid_and_no_batch():
    u = np.linspace(-2, 2, 9)
    got = grid_optima(1e-3 * np.exp(u), 2 * np.exp(0.01 * (u - 0.4) ** 2), window=0.2)
    assert got.grids[0].lr.value == pytest.approx(1e-3 * math.exp(0.4), rel=1e-6)
    assert got.grids[0].batch is None
    assert math.isnan(got.slope)
    assert "batch_tokens" not in got.table()
    held = grid_optima(1e-3 * np.exp(u), 2 * np.exp(0.01 * (u - 0.4) ** 2), np.full(9, 1e5), window=0.2)
    assert held.grids[0].lr == got.grids[0].lr
    assert held.grids[0].batch is None


def test_the_table_is_one_that_laws_are_fitted_to():
    got = found(planted(noise=1e-3, seed=5)).table()
    assert got["size"] == [1e8, 4e8]
    assert set(got) >= {
        "lr",
        "lr_low",
        "lr_high",
        "lr_sd",
        "lr_weight",
        "batch_tokens",
        "batch_weight",
        "loss",
    }
    assert all(0 < w <= 1 for w in got["lr_weight"])
    assert len(isoloss.read(got)) == 2


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"lr": [0.0, 1, 2]}, ValueError, "lr finite and above 0"),
        ({"batch": [1.0, math.nan, 2]}, ValueError, "batch finite and above 0"),
        ({"loss": [1.0, -2.0, 3]}, ValueError, "losses above 0"),
        ({"loss": [1.0, 2.0]}, ValueError, "needed lr of every loss"),
        ({"lr": [1.0, 1, 1]}, NoAnswer, "not varied"),
        ({}, NoAnswer, "fewer than three"),
        ({"loss": [math.nan] * 3, "batch": None}, NoAnswer, "fewer than three"),
    ],
)
def test_bad_input_is_named(change, error, says):
    rows = {"lr": [1.0, 2, 4], "loss": [2.0, 1, 2], "batch": [1.0, 2, 2], **change}
    with pytest.raises(error, match=says):
        grid_optima(rows["lr"], rows["loss"], rows["batch"])


def test_settings_are_checked():
    for wrong in ({"window": 0}, {"window": 1.0}, {"least": 2}, {"coverage": 1.0}):
        with pytest.raises(ValueError, match="needed 0 < window"):
            found(planted(), **wrong)


# --- the pieces -------------------------------------------------------------------------------------


def test_monomials_are_all_of_second_and_third_order():
    assert len(monomials(1, 3)) == 2
    assert len(monomials(2, 3)) == 7
    assert len(set(monomials(2, 3))) == 7


def test_a_parabola_of_one_grid_is_a_regression():
    rng = np.random.default_rng(7)
    z = rng.normal(size=(40, 2))
    y = 1 + 0.3 * (z[:, 0] - 0.2) ** 2 + 0.1 * (z[:, 0] - 0.2) * z[:, 1] + 0.2 * z[:, 1] ** 2
    got = bowl(z, y + 1e-9 * rng.normal(size=40), np.zeros(40, dtype=int), 2)
    design = np.column_stack([np.ones(40), z, z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2])
    c = np.linalg.lstsq(design, y, rcond=None)[0]
    curvature = np.array([[2 * c[3], c[4]], [c[4], 2 * c[5]]])
    np.testing.assert_allclose(got.curvature, curvature, atol=1e-7)
    np.testing.assert_allclose(got.centres[0], -np.linalg.solve(curvature, c[1:3]), atol=1e-7)


def test_errors_of_the_centres_are_as_large_as_they_scatter():
    centres, sds = [], []
    for seed in range(120):
        rows = planted(noise=1e-3, seed=seed)
        keep = rows["size"] == 1e8
        z = np.log(np.column_stack([rows["lr"], rows["batch"]]))[keep]
        got = bowl(z, np.log(rows["loss"][keep]), np.zeros(keep.sum(), dtype=int), 2)
        centres.append(got.centres[0])
        sds.append(np.sqrt(np.diag(got.covariances[0])))
    ratio = np.std(centres, axis=0) / np.mean(sds, axis=0)
    assert ((ratio > 0.8) & (ratio < 1.25)).all(), ratio  # 4 standard errors of a spread from 120 values


# --- one sweep --------------------------------------------------------------------------------------


def test_a_sweep_is_a_parabola_in_ln_lr():
    rng = np.random.default_rng(8)
    lr = np.geomspace(1e-4, 1e-2, 9)
    loss = 2 + 0.02 * np.log(lr / 1.3e-3) ** 2 + 0.002 * rng.normal(size=9)
    c, b, _ = np.polyfit(np.log(lr), loss, 2)
    got = sweep_optimum(lr, loss)
    assert got.value == pytest.approx(math.exp(-b / (2 * c)), rel=1e-9)
    assert got.low < got.value < got.high
    drawn = []
    for _ in range(1500):
        pick = rng.integers(0, 9, 9)
        if len(np.unique(pick)) >= 3:
            c, b, _ = np.polyfit(np.log(lr[pick]), loss[pick], 2)
            drawn.append(-b / (2 * c))
    np.testing.assert_allclose(np.log([got.low, got.high]), np.quantile(drawn, [0.05, 0.95]), atol=0.02)
    order = rng.permutation(9)
    assert sweep_optimum(lr[order], loss[order]) == got


def test_a_sweep_that_does_not_reach_its_optimum_gives_a_bound():
    lr = np.geomspace(1e-4, 1e-3, 6)
    above = sweep_optimum(lr, 2 + 0.02 * np.log(lr / 3e-3) ** 2)
    below = sweep_optimum(lr, 2 + 0.02 * np.log(lr / 3e-5) ** 2)
    assert math.isnan(above.value)
    assert math.isnan(below.value)
    assert (above.low, above.high) == (pytest.approx(1e-3), math.inf)
    assert (below.low, below.high) == (0.0, pytest.approx(1e-4))


def test_a_sweep_says_what_it_needs():
    with pytest.raises(NoAnswer, match="2 learning rates"):
        sweep_optimum([1, 2, 2], [1, 2, 3])
    with pytest.raises(NoAnswer, match="no minimum"):
        sweep_optimum([1, 2, 4], [1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="finite loss for every rate"):
        sweep_optimum([1, 2, 4], [1.0, math.nan, 1.0])
    few = sweep_optimum([1, 2, 4], [2.1, 2.0, 2.1])  # any three points are on a parabola
    assert few.value == pytest.approx(2)
    assert math.isnan(few.low)
    assert "not resolved" in few.how
    flat = sweep_optimum([1, 2, 4, 8, 16], [2.0, 1.9999, 2.0, 1.9998, 2.0002])
    assert flat.low == 0 or flat.high == math.inf or flat.high / flat.low > 2

"""What must not matter: units, order of rows, how a weight is written, how a law is written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isoloss
from isoloss import laws
from tests.oracles.formulas import FORMULAS, PLANTED, jitter, points


def noisy(slug="hoffmann", n=40, seed=0, noise=0.02):
    law = laws.get(slug)
    rng = np.random.default_rng(seed)
    x = points(law.axes, n, seed + 50)
    y = FORMULAS[slug](jitter(PLANTED[slug], rng, 0.03), x) * np.exp(noise * rng.normal(size=n))
    return {**x, law.target: y}


scale = st.sampled_from([1e-9, 1e-6, 1e-3, 12.0, 1e3, 1e6])


@settings(max_examples=8)
@given(size=scale, data=scale, loss=st.sampled_from([1 / np.log(2), 0.1, 20.0]), seed=st.integers(0, 20))
def test_units_move_parameters_by_algebra_and_predictions_not_at_all(size, data, loss, seed):
    """E + A N^-a + B D^-b in new units: A s^a, B s^b, everything times the unit of the loss."""
    table = noisy(seed=seed)
    moved = {"params": table["params"] * size, "tokens": table["tokens"] * data, "loss": table["loss"] * loss}
    a, b = (isoloss.fit("hoffmann", t, draws=0, sensitivity=False) for t in (table, moved))
    p, q = a.values, b.values
    assert b.value == pytest.approx(a.value, rel=1e-9)
    assert q["alpha"] == pytest.approx(p["alpha"], rel=1e-5)
    assert q["beta"] == pytest.approx(p["beta"], rel=1e-5)
    assert q["E"] == pytest.approx(p["E"] * loss, rel=1e-5)
    assert q["A"] == pytest.approx(p["A"] * loss * size ** p["alpha"], rel=1e-3)
    assert q["B"] == pytest.approx(p["B"] * loss * data ** p["beta"], rel=1e-3)
    at = {"params": 7e10, "tokens": 2e12}
    np.testing.assert_allclose(
        b.law.evaluate(b.theta, params=7e10 * size, tokens=2e12 * data),
        loss * a.law.evaluate(a.theta, **at),
        rtol=1e-6,
    )


# A share is one, and an expert is one: they have no unit to change.
UNITLESS = ("experts", "expert_density", "share_code", "share_web")


@pytest.mark.parametrize("slug", [s for s in laws.LAWS if s not in ("loss-to-error", "broken2", "mixing")])
def test_units_of_every_law(slug):
    table = noisy(slug, n=50, seed=3, noise=0.005)
    law = laws.get(slug)
    loss = isoloss.LeastSquares("linear" if law.signed else "log")
    x = {axis: table[axis] for axis in law.axes}
    a = isoloss.fit(law, table, objective=loss, draws=0, sensitivity=False)
    for unit in (1e-6, 1e6):
        there = {axis: values * (1.0 if axis in UNITLESS else unit) for axis, values in x.items()}
        b = isoloss.fit(law, {**table, **there}, objective=loss, draws=0, sensitivity=False)
        assert b.value == pytest.approx(a.value, rel=1e-8)
        np.testing.assert_allclose(law.evaluate(b.theta, **there), law.evaluate(a.theta, **x), rtol=1e-6)


ORDERED = ("hoffmann", "gadre", "kaplan-nd")


@pytest.fixture(scope="module")
def in_order():
    """Law -> its fit to rows as they come."""
    return {slug: isoloss.fit(slug, noisy(slug, seed=1), draws=30, sensitivity=False) for slug in ORDERED}


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), slug=st.sampled_from(ORDERED))
def test_order_of_rows_is_bit_for_bit_irrelevant(seed, slug, in_order):
    table, a = noisy(slug, seed=1), in_order[slug]
    order = np.random.default_rng(seed).permutation(40)
    b = isoloss.fit(slug, {k: v[order] for k, v in table.items()}, draws=30, sensitivity=False)
    assert np.array_equal(a.theta, b.theta)
    assert np.array_equal(a.draws, b.draws)
    assert a.value == b.value
    assert np.array_equal(a.predict(of="run", **dict.fromkeys(a.law.axes, 1e9)).draws,
                          b.predict(of="run", **dict.fromkeys(b.law.axes, 1e9)).draws)  # fmt: skip
    assert np.array_equal(order[b.rows - 1] + 1, a.rows)  # row numbers still point at the source


def test_order_is_irrelevant_even_for_equal_rows_of_different_weight_or_cluster():
    table = noisy(seed=2, n=20)
    table = {k: np.concatenate([v, v[:10]]) for k, v in table.items()}
    table["w"] = np.concatenate([np.full(20, 1.0), np.full(10, 3.0)])
    table["family"] = np.array([f"f{i % 7}" for i in range(20)] + [f"g{i % 4}" for i in range(10)])
    order = np.arange(30)[::-1]
    for cluster in (None, "family"):
        a, b = (
            isoloss.fit(
                "hoffmann",
                {k: v[i] for k, v in table.items()},
                weights="w",
                cluster=cluster,
                draws=40,
                sensitivity=False,
            )
            for i in (np.arange(30), order)
        )
        assert np.array_equal(a.theta, b.theta)
        assert np.array_equal(a.draws, b.draws)


def test_a_row_given_k_times_is_a_row_of_weight_k():
    table = noisy(seed=4, n=25)
    times = np.random.default_rng(5).integers(1, 4, 25)
    repeated = {k: np.repeat(v, times) for k, v in table.items()}
    for objective in (isoloss.Huber(), isoloss.StudentT(), isoloss.LeastSquares(residual="linear")):
        a = isoloss.fit(
            "hoffmann",
            {**table, "w": times.astype(float)},
            weights="w",
            objective=objective,
            draws=0,
            sensitivity=False,
        )
        b = isoloss.fit("hoffmann", repeated, objective=objective, draws=0, sensitivity=False)
        np.testing.assert_allclose(a.theta, b.theta, rtol=1e-5)
        # Weights have mean 1, so the values differ by the ratio of the row counts.
        assert b.value == pytest.approx(a.value * times.sum() / 25, rel=1e-9)
        assert a.r2 == pytest.approx(b.r2, rel=1e-9)


def test_clusters_of_equal_rows_are_rows_with_weights():
    """Resampling whole clusters of k copies draws as often as resampling the distinct rows."""
    table = noisy(seed=6, n=25)
    times = np.random.default_rng(7).integers(1, 4, 25)
    repeated = {k: np.repeat(v, times) for k, v in table.items()}
    repeated["run"] = np.repeat([f"run-{i}" for i in range(25)], times)
    objective = isoloss.LeastSquares()
    a = isoloss.fit(
        "hoffmann", {**table, "w": times.astype(float)}, weights="w", objective=objective, draws=40,
        uncertainty="bootstrap", sensitivity=False
    )  # fmt: skip
    b = isoloss.fit("hoffmann", repeated, cluster="run", objective=objective, draws=40, sensitivity=False)
    np.testing.assert_allclose(np.log(b.draws[:, :3]), np.log(a.draws[:, :3]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(b.draws[:, 3:], a.draws[:, 3:], rtol=1e-4)


@pytest.mark.parametrize("factor", [3.0, 1e-12, 1e12])
def test_weights_have_no_unit(factor):
    table = noisy(seed=8)
    w = np.random.default_rng(9).uniform(0.2, 2, 40)
    a, b = (
        isoloss.fit("hoffmann", {**table, "w": w * f}, weights="w", draws=0, sensitivity=False)
        for f in (1.0, factor)
    )
    np.testing.assert_allclose(b.theta, a.theta, rtol=1e-6)
    assert b.value == pytest.approx(a.value, rel=1e-9)


def test_a_tie_is_the_law_with_one_exponent():
    table = noisy("gadre", seed=10)
    tied = isoloss.fit(
        "hoffmann",
        table,
        constraints=isoloss.Constraints(tie=(("alpha", "beta"),)),
        draws=30,
        uncertainty="bootstrap",
        sensitivity=False,
    )
    one = isoloss.fit("gadre", table, draws=30, uncertainty="bootstrap", sensitivity=False)
    assert tied.value == pytest.approx(one.value, rel=1e-9)
    E, a, b, eta = one.theta
    np.testing.assert_allclose(tied.theta, [E, a * 6**-eta, b * 6**-eta, 2 * eta, 2 * eta], rtol=1e-5)
    np.testing.assert_allclose(tied.draws[:, 3], 2 * one.draws[:, 3], rtol=1e-3)
    assert tied.free == one.free == 4
    assert [e.status for e in tied.parameters.values()] == ["fitted"] * 4 + ["tied"]


def test_sum_and_mean_differ_in_the_value_alone():
    table = noisy(seed=11)
    for kind in (isoloss.Huber, isoloss.LeastSquares, isoloss.Gaussian, isoloss.StudentT):
        a, b = (
            isoloss.fit(
                "hoffmann", table, objective=kind(reduction=r), draws=20, starts=16, sensitivity=False
            )
            for r in ("sum", "mean")
        )
        assert np.array_equal(a.theta, b.theta)
        assert np.array_equal(a.draws, b.draws)
        assert b.value == pytest.approx(a.value / 40, rel=1e-14)


def test_a_huge_delta_is_least_squares_and_huge_df_is_gaussian():
    table = noisy(seed=12)

    def theta(objective):
        return isoloss.fit("hoffmann", table, objective=objective, draws=0, sensitivity=False).theta

    squares = theta(isoloss.LeastSquares())
    np.testing.assert_allclose(theta(isoloss.Huber(delta=100.0)), squares, rtol=1e-5)
    np.testing.assert_allclose(theta(isoloss.Gaussian()), squares, rtol=1e-5)
    np.testing.assert_allclose(theta(isoloss.StudentT(df=1e9)), squares, rtol=1e-4)

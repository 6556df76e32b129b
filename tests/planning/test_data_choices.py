"""The best mixture against scipy, the best union of pools against brute force."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.optimize import minimize

import isoloss
from isoloss.laws import get
from isoloss.laws.data_filtering import DataFiltering
from isoloss.planning.mixture import best_mixture
from isoloss.planning.pools import best_pools

DOMAINS = ("code", "web", "books")
LAW = get("mixing(share_code, share_web, share_books)")


def fit_of(theta, draws):
    """A fit with this theta and these draws: what the planner reads."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 14)
    x = dict(zip(LAW.axes, shares.T, strict=True))
    made = isoloss.fit(LAW, {**x, "loss": LAW.evaluate(theta, **x)}, draws=0, starts=8, sensitivity=False)
    return dataclasses.replace(made, theta=np.asarray(theta), draws=np.asarray(draws))


def random_thetas(rng, count):
    return np.concatenate([rng.uniform(1, 3, (count, 1)), np.exp(rng.normal(0, 2.5, (count, 3)))], axis=1)


def by_scipy(thetas, weights):
    """Least weighted loss over the simplex, from the middle and the corners."""

    def loss(r):
        return sum(w * (t[0] + np.exp(np.log(t[1:]) @ r)) for w, t in zip(weights, thetas, strict=True))

    def slope(r):
        return sum(
            w * np.exp(np.log(t[1:]) @ r) * np.log(t[1:]) for w, t in zip(weights, thetas, strict=True)
        )

    found = [
        minimize(
            loss, start, jac=slope, method="SLSQP", bounds=[(0, 1)] * 3, options={"ftol": 1e-15, "maxiter": 500},
            constraints={"type": "eq", "fun": lambda r: r.sum() - 1, "jac": lambda r: np.ones(3)},
        )
        for start in (np.full(3, 1 / 3), *(0.9 * np.eye(3) + 0.1 / 3))
    ]  # fmt: skip
    best = min(found, key=lambda f: f.fun)
    return best.x, float(best.fun)


@pytest.mark.parametrize("seed", range(12))
def test_best_mixture_against_scipy(seed):
    rng = np.random.default_rng(seed)
    thetas, weights = random_thetas(rng, 3), rng.dirichlet(np.ones(3))
    fits = {f"v{i}": fit_of(t, [t, t]) for i, t in enumerate(thetas)}
    found = best_mixture(fits, {f"v{i}": 5 * w for i, w in enumerate(weights)})
    where, least = by_scipy(thetas, weights)
    reducible = found.loss.value - float(weights @ thetas[:, 0])
    assert found.loss.value - least <= 2e-9 * reducible
    assert found.loss.value - least >= -1e-9 * reducible
    assert 0 <= found.gap <= 1.01e-9 * reducible
    shares = np.array([found.shares[name].value for name in DOMAINS])
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares, where, atol=2e-4)


def test_one_validation_set_wants_its_best_domain_alone():
    theta = [1.0, 0.3, 2.0, 0.9]
    found = best_mixture({"only": fit_of(theta, [theta, theta])})
    assert found.shares["code"].value == pytest.approx(1, abs=1e-8)
    assert found.loss.value == pytest.approx(1.3, rel=1e-8)
    assert found.unused == {"code": 0.0, "web": 1.0, "books": 1.0}


def test_each_draw_has_its_own_mixture():
    rng = np.random.default_rng(7)
    centre = np.array([[1.5, 0.1, 2.0, 1.0], [2.0, 2.0, 0.2, 1.2]])
    draws = centre[:, None] * np.exp(0.1 * rng.normal(size=(2, 60, 4)))
    fits = {name: fit_of(centre[i], draws[i]) for i, name in enumerate(("a", "b"))}
    found = best_mixture(fits, {"a": 1.0, "b": 3.0}, against={"web": 1.0}, coverage=0.8, seed=5)
    order = np.random.default_rng(5)
    paired = [order.permutation(draws[i]) for i in range(2)]
    own = np.array([by_scipy([paired[0][k], paired[1][k]], [0.25, 0.75])[0] for k in range(60)])
    for j, name in enumerate(DOMAINS):
        low, high = np.quantile(own[:, j], [0.1, 0.9])
        assert found.shares[name].low == pytest.approx(low, abs=2e-4)
        assert found.shares[name].high == pytest.approx(high, abs=2e-4)
    web = 0.25 * (1.5 + 2.0) + 0.75 * (2.0 + 0.2)
    assert found.gain.value == pytest.approx(web - found.loss.value, rel=1e-9)
    assert found.gain.low > 0
    again = best_mixture(fits, {"a": 1.0, "b": 3.0}, against={"web": 1.0}, coverage=0.8, seed=5)
    assert again == found


def test_a_set_of_no_weight_does_not_count():
    a, b = (
        fit_of([1.0, 0.3, 2.0, 0.9], [[1.0, 0.3, 2.0, 0.9]] * 2),
        fit_of([1.0, 2, 0.1, 3], [[1.0, 2, 0.1, 3]] * 2),
    )
    both = best_mixture({"a": a, "b": b}, {"a": 1.0, "b": 0.0})
    assert both.shares["code"].value == pytest.approx(1, abs=1e-8)


def test_best_mixture_refuses():
    theta = [1.0, 0.3, 2.0, 0.9]
    good = fit_of(theta, [theta, theta])
    two = isoloss.fit(
        "mixing(share_code, share_web)",
        {"share_code": [0, 0.2, 0.4, 0.6, 0.8, 1], "share_web": [1, 0.8, 0.6, 0.4, 0.2, 0], "loss": [3, 2.6, 2.4, 2.2, 2.1, 2]},
        draws=20, sensitivity=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="same shares"):
        best_mixture({"a": good, "b": two})
    with pytest.raises(ValueError, match="needs fits of mixing"):
        best_mixture({})
    with pytest.raises(ValueError, match="a weight for each"):
        best_mixture({"a": good}, {"b": 1.0})
    for weights in ({"a": -1.0}, {"a": 0.0}, {"a": math.nan}):
        with pytest.raises(ValueError, match="weights at or above 0"):
            best_mixture({"a": good}, weights)
    for wrong in ({"code": 0.5}, {"code": 1.0, "law": 0.0}, {"code": 1.5, "web": -0.5}):
        with pytest.raises(ValueError, match="sum to 1"):
            best_mixture({"a": good}, against=wrong)
    with pytest.raises(isoloss.NoAnswer, match="no draws"):
        best_mixture({"a": dataclasses.replace(good, draws=np.empty((0, 4)))})


# --- pools ------------------------------------------------------------------------------------------

THREE = DataFiltering(("pool_rest", "pool_best", "pool_good"))
TRUTH = [4e6, 0.1, -0.15, 6.0, -0.25, 2.0, -0.20, 4.0]
SIZE = 12.8e6


def pooled_fit(draws):
    seen = np.tile(np.geomspace(3e6, 3e8, 8), 3)
    which = np.repeat(np.arange(3), 8)
    x = {"samples": seen, **{p: np.where(which == j, SIZE, 0.0) for j, p in enumerate(THREE.pools)}}
    error = THREE.evaluate(TRUTH, **x)
    made = isoloss.fit(THREE, {**x, "error": error}, draws=0, starts=8, sensitivity=False)
    return dataclasses.replace(made, theta=np.array(TRUTH), draws=np.asarray(draws))


def test_aggressive_filtering_at_small_budgets_mild_at_large():
    rng = np.random.default_rng(1)
    draws = np.array(TRUTH) * np.exp(0.03 * rng.normal(size=(100, 8)))
    fit = pooled_fit(draws)
    budgets = [5e6, 1.28e7, 3.2e7, 6.4e7, 1.28e8, 6.4e8, 3e9]
    sizes = {"best": SIZE, "good": SIZE, "rest": SIZE}
    chosen = best_pools(fit, sizes, budgets)
    counts = [len(choice.pools) for choice in chosen]
    assert counts[0] == counts[1] == 1
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert [choice.pools for choice in chosen][-1] == ("best", "good", "rest")
    unions = [("pool_best",), ("pool_best", "pool_good"), THREE.pools]
    for choice in chosen:
        each = np.array([
            THREE.evaluate(np.vstack([TRUTH, draws]), samples=choice.samples,
                           **{p: SIZE if p in union else 0.0 for p in THREE.pools})
            for union in unions
        ])  # fmt: skip
        assert len(choice.pools) == 1 + int(np.argmin(each[:, 0]))
        assert choice.error.value == pytest.approx(each[:, 0].min(), rel=1e-13)
        share = np.bincount(np.argmin(each[:, 1:], axis=0), minlength=3) / 100
        np.testing.assert_allclose(choice.chances, share, atol=1e-12)
        for k, quantity in enumerate(choice.errors):
            low, high = np.quantile(each[k, 1:], [0.05, 0.95])
            assert (quantity.low, quantity.high) == (pytest.approx(low), pytest.approx(high))


def test_best_pools_refuses():
    fit = pooled_fit([TRUTH, TRUTH])
    with pytest.raises(ValueError, match="the size of each of rest, best, good"):
        best_pools(fit, {"best": SIZE}, [1e7])
    with pytest.raises(ValueError, match="above 0, got"):
        best_pools(fit, {"best": SIZE, "good": 0.0, "rest": SIZE}, [1e7])
    with pytest.raises(ValueError, match="finite and above 0"):
        best_pools(fit, dict.fromkeys(("best", "good", "rest"), SIZE), [0.0])
    with pytest.raises(isoloss.NoAnswer, match="no draws"):
        best_pools(
            dataclasses.replace(fit, draws=np.empty((0, 8))),
            dict.fromkeys(("best", "good", "rest"), SIZE),
            [1e7],
        )
    one = isoloss.fit("power(samples)", {"samples": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=20)
    with pytest.raises(ValueError, match="several pools"):
        best_pools(one, {}, [1e7])


def test_a_fit_that_its_rows_do_not_determine_decides_nothing():
    fit = dataclasses.replace(pooled_fit([TRUTH, TRUTH]), result="not-identified")
    with pytest.raises(isoloss.NoAnswer, match="do not determine data-filtering"):
        best_pools(fit, dict.fromkeys(("best", "good", "rest"), SIZE), [1e7])
    theta = [1.0, 0.3, 2.0, 0.9]
    open_ = dataclasses.replace(fit_of(theta, [theta, theta]), result="not-identified")
    assert best_mixture({"a": open_}).unresolved == ("a",)

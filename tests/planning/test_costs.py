"""Costs: exact units, the closed form for one axis, shares; and the plane they bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss import Budget, laws, plan
from isoloss.planning import costs
from isoloss.planning.search import tokens_for
from isoloss.planning.surface import Limit, Limits, Surface

POINT = {"params": 7e9, "tokens": 1.4e11}


def test_units():
    assert costs.train_flops().value(POINT) == 6 * 7e9 * 1.4e11
    assert costs.serve_flops(1e12).value(POINT) == 2 * 7e9 * 1e12
    assert costs.total_flops(1e12).value(POINT) == 6 * 7e9 * 1.4e11 + 2 * 7e9 * 1e12
    assert costs.total_flops().value(POINT) == costs.train_flops().value(POINT)
    assert costs.stored_bytes().value(POINT) == 14e9
    assert costs.stored_bytes(4).value(POINT) == 3.5e9
    # 989 TFLOP/s at 40 %: 5.88e21 FLOP take 1.486e7 s
    assert costs.device_hours(989e12, 0.4).value(POINT) == pytest.approx(5.88e21 / (989e12 * 0.4) / 3600)
    assert costs.money(2.5, 989e12, 0.4).value(POINT) == pytest.approx(
        2.5 * costs.device_hours(989e12, 0.4).value(POINT)
    )


def test_text():
    assert costs.train_flops().text(5.88e21) == "5.88e21"
    assert costs.stored_bytes().text(14e9) == "14GB"
    assert costs.stored_bytes().text(368e3) == "368KB"
    assert costs.tokens().text(1.4e12) == "1.4T"


ALL = [
    costs.train_flops(),
    costs.total_flops(1e12),
    costs.stored_bytes(4),
    costs.tokens(),
    costs.money(2.0, 1e15, 0.4, 1e12, 0.1),
]


@given(st.sampled_from(ALL), st.floats(15, 30), st.floats(15, 30))
def test_solving_and_shares(cost, x, d):
    n, t = np.exp(x), np.exp(d)
    most = cost.value({"params": n, "tokens": t})
    for axis, value in (("params", n), ("tokens", t)):
        got = float(cost.solve(axis, most, {"params": n, "tokens": t}))
        if cost.bounds(axis):
            assert got == pytest.approx(value, rel=1e-6)
        h = 1e-6
        up = cost.value({"params": n, "tokens": t, axis: value * np.exp(h)})
        assert cost.elasticity(axis, {"params": n, "tokens": t}) == pytest.approx(
            np.log(up / most) / h, abs=1e-5
        )


def test_nothing_left_after_the_other_axis():
    assert float(costs.total_flops(1e12).solve("tokens", 1e20, {"params": 1e9})) == 0.0
    assert np.isinf(costs.stored_bytes().solve("tokens", 1e9, {"params": 1e8}))


def test_frontier_is_the_tightest_limit():
    limits = Limits((Limit("flops", costs.train_flops(), 6e21), Limit("tokens", costs.tokens(), 1e11)))
    d, slope = limits.frontier(np.log([[1e9, 1e11]]))
    np.testing.assert_allclose(np.exp(d), [[1e11, 1e10]])
    np.testing.assert_allclose(slope, [[0, -1]])
    assert np.exp(limits.widest()) == pytest.approx(1e21)


@pytest.mark.parametrize("name", ["hoffmann", "gadre", "kaplan-nd", "muennighoff"])
def test_tokens_for_a_loss(name):
    law = laws.get(name)
    theta = law.theta(next(iter(law.published)))
    thetas = theta * np.exp(np.random.default_rng(0).normal(0, 0.02, (50, len(theta))))
    surface = Surface(law, thetas, 1e11 if name == "muennighoff" else None)
    x, d = np.full((50, 1), np.log(3e9)), np.linspace(20, 30, 50)[:, None]
    wanted = surface.loss(x, d)
    np.testing.assert_allclose(tokens_for(surface, wanted, x), d, rtol=1e-7)
    assert np.isinf(tokens_for(surface, surface.loss(x, d * 0 + 460) * 0.99, x)).all()


def test_a_new_cost_needs_no_other_code():
    """Bytes moved at decoding, say: one more sum of products bounds the plane like the others."""
    cost = costs.Cost("moved", "byte", ((2.0, ("params",)), (1e-3, ("tokens",))), "bytes moved")
    limits = Limits((Limit("moved", cost, 1e10),))
    n = np.array([[1e9]])
    d, slope = limits.frontier(np.log(n))
    assert np.exp(d[0, 0]) == pytest.approx((1e10 - 2e9) / 1e-3)
    assert slope[0, 0] == pytest.approx(-2e9 / 8e9)


def test_an_axis_that_is_worth_nothing():
    theta = {"E": 1.8, "A": 400.0, "B": 1.0, "alpha": 0.3, "beta": 0.0}
    found = plan("hoffmann", Budget(flops=1e21), theta=theta)
    assert "search-edge" in [w.code for w in found.warnings]
    assert found.tokens.value == pytest.approx(1)

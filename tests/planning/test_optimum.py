"""The optimum of params and tokens: closed forms, published figures, brute force, dualities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import isoloss
from isoloss import Budget, laws, plan
from isoloss.planning.curves import frontier, isoflop_curve, isoloss_curve
from tests.oracles import chinchilla_optimum as oracle

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}

thetas = st.fixed_dictionaries(
    {
        "E": st.floats(0.5, 4),
        "A": st.floats(10, 1e4),
        "B": st.floats(10, 1e5),
        "alpha": st.floats(0.15, 0.8),
        "beta": st.floats(0.15, 0.8),
    }
)
budgets = st.floats(19, 27).map(lambda x: 10.0**x)


def by(theta, law="hoffmann", **budget):
    return plan(law, Budget(**budget), theta=theta)


# --- closed forms -------------------------------------------------------------------------------------


@given(thetas, budgets)
def test_hoffmann_closed_form(theta, flops):
    n, d, loss = oracle.hoffmann(**theta, flops=flops)
    assume(n > 1 and d > 1)  # no model is smaller, which the search knows and the closed form does not
    found = by(theta, flops=flops)
    np.testing.assert_allclose(
        [found.params.value, found.tokens.value, found.loss.value], [n, d, loss], rtol=1e-10
    )
    assert found.binding == ("flops",)


@given(
    st.fixed_dictionaries(
        {
            "E": st.floats(0.5, 4),
            "a": st.floats(50, 500),
            "b": st.floats(50, 500),
            "eta": st.floats(0.08, 0.3),
        }
    ),
    budgets,
)
def test_gadre_closed_form(theta, flops):
    found = by(theta, "gadre", flops=flops)
    n, d, loss = oracle.gadre(**theta, flops=flops)
    np.testing.assert_allclose(
        [found.params.value, found.tokens.value, found.loss.value], [n, d, loss], rtol=1e-10
    )


@pytest.mark.parametrize(
    ("fit", "flops", "params", "ratio"),
    [
        ("besiroglu-2024", 1e21, 2.778e9, 21.6),
        ("besiroglu-2024", 5.76e23, 7.225e10, 18.4),
        ("besiroglu-2024", 1e25, 3.12e11, 17.1),
        ("hoffmann-2022", 1e21, 2.215e9, 34.0),
        ("hoffmann-2022", 5.76e23, 4.03e10, 59.1),
    ],
)
def test_published_optima(fit, flops, params, ratio):
    found = by(fit, flops=flops)
    assert found.params.value == pytest.approx(params, rel=1e-3)
    assert found.tokens_per_param.value == pytest.approx(ratio, abs=0.06)


def test_one_ratio_for_tied_exponents():
    found = by("muennighoff-2023", "muennighoff", flops=1e22)
    assert found.tokens_per_param.value == pytest.approx(19.6, abs=0.05)


def test_kaplan_exponent_under_six_nd():
    line = frontier("kaplan-nd", [1e20, 1e24], theta="kaplan-2020")
    slope = math.log(line.params.value[1] / line.params.value[0]) / math.log(1e4)
    assert slope == pytest.approx(0.575, abs=0.001)


# --- brute force ---------------------------------------------------------------------------------------


def test_kaplan_against_a_fine_scan():
    law, theta = laws.get("kaplan-nd"), laws.get("kaplan-nd").theta("kaplan-2020")
    found = by("kaplan-2020", "kaplan-nd", flops=1e21)
    n, loss = oracle.scan(
        lambda n, d: law.evaluate(theta, params_nonembedding=n, tokens=d), lambda n: 1e21 / (6 * n), 1e6, 1e12
    )
    assert found.size == "params_nonembedding"
    assert found.params.value == pytest.approx(n, rel=1e-3)
    assert found.loss.value <= loss
    assert "params-without-embeddings" in [w.code for w in found.warnings]


@pytest.mark.parametrize("unique", [1e9, 1e10, 1e11])
def test_repeating_against_a_fine_scan(unique):
    law, theta = laws.get("muennighoff"), laws.get("muennighoff").theta("muennighoff-2023")
    found = by("muennighoff-2023", "muennighoff", flops=1e22, tokens=unique)

    def loss(n, d):
        return law.evaluate(theta, params=n, tokens=d, tokens_unique=np.minimum(d, unique))

    n, level = oracle.scan(loss, lambda n: 1e22 / (6 * n), 1e7, 1e13)
    assert found.params.value == pytest.approx(n, rel=1e-3)
    assert level - 1e-9 < found.loss.value <= level + 1e-14
    assert found.tokens.value > unique
    assert found.exchange_rates["loss_for_tokens"].value < 0
    assert "repeated-tokens" in [w.code for w in found.warnings]


@pytest.mark.parametrize(
    "limits",
    [
        {"flops": 1e22, "bytes": 6e9},
        {"flops": 1e22, "tokens": 1e11},
        {"flops": 1e22, "tokens": 1e11, "bytes": 20e9},
        {"total_flops": 3e22, "serve_tokens": 1e12, "flops": 1e22},
        {"flops": 1e22, "params": 1e12, "tokens": 1e15},
        {"tokens": 1e11, "params": 5e9},
        {"total_flops": 1e22, "serve_tokens": 1e13, "tokens": 3e11},
    ],
)
def test_several_limits_against_a_fine_scan(limits):
    found = by("besiroglu-2024", **limits)
    serve = limits.get("serve_tokens", 0)

    def most(n):
        d = np.full_like(n, limits.get("tokens", np.inf))
        d = np.minimum(d, limits.get("flops", np.inf) / (6 * n))
        d = np.minimum(d, (limits.get("total_flops", np.inf) / n - 2 * serve) / 6)
        inside = (n <= limits.get("params", np.inf)) & (2 * n <= limits.get("bytes", np.inf))
        return np.where(inside, d, 0.0)

    def loss(n, d):
        return EPOCH["E"] + EPOCH["A"] * n ** -EPOCH["alpha"] + EPOCH["B"] * d ** -EPOCH["beta"]

    n, level = oracle.scan(loss, most, 1e6, 1e13)
    assert found.loss.value <= level
    assert found.loss.value == pytest.approx(level, rel=2e-6)  # a kink between two sizes of the scan
    assert found.params.value == pytest.approx(n, rel=2e-3)


# --- training and serving -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "params", "tokens_factor", "saving"),
    [(1e11, 5.6e9, 1.27, 0.022), (1e12, 3.37e9, 2.70, 0.27), (1e13, 2.06e9, 9.35, 0.60)],
)
def test_inference_aware_check_values(served, params, tokens_factor, saving):
    base_n = 7e9
    u = EPOCH["alpha"] * EPOCH["A"] * base_n ** -EPOCH["alpha"]
    base_d = (EPOCH["beta"] * EPOCH["B"] / u) ** (1 / EPOCH["beta"])
    assert base_d == pytest.approx(1.44e11, rel=0.005)
    loss = float(laws.get("hoffmann").evaluate([*EPOCH.values()], params=base_n, tokens=base_d))
    assert loss == pytest.approx(2.1713, abs=1e-4)
    found = by("besiroglu-2024", loss=loss, serve_tokens=served)
    n, d = found.params.value, found.tokens.value
    assert n == pytest.approx(params, rel=0.005)
    assert d / base_d == pytest.approx(tokens_factor, abs=0.006)
    base_cost = 6 * base_n * base_d + 2 * base_n * served
    assert 1 - found.objective.value / base_cost == pytest.approx(saving, abs=0.005)
    u, v = (
        EPOCH["alpha"] * EPOCH["A"] * n ** -EPOCH["alpha"],
        EPOCH["beta"] * EPOCH["B"] * d ** -EPOCH["beta"],
    )
    assert u / v == pytest.approx(1 + served / (3 * d), rel=1e-9)
    assert found.objective.minimise == "total_flops"


def test_sardana_example_with_hoffmanns_constants():
    best = by("hoffmann-2022", flops=6 * 7e9 * 2.96e11)
    found = by("hoffmann-2022", loss=best.loss.value, serve_tokens=1e11)
    assert found.params.value == pytest.approx(6.06e9, rel=0.01)
    assert found.tokens.value / best.tokens.value == pytest.approx(1.16, abs=0.01)


@given(thetas, budgets, st.floats(0, 14))
def test_cheapest_way_and_best_loss_are_dual(theta, flops, served):
    """The best loss under a spend, then the cheapest way to that loss, gives the spend back."""
    best = by(theta, total_flops=flops, serve_tokens=10.0**served)
    back = by(theta, loss=best.loss.value, serve_tokens=10.0**served)
    assert back.objective.value == pytest.approx(flops, rel=1e-7)
    assert back.params.value == pytest.approx(best.params.value, rel=1e-4)
    assert back.binding == ("loss",)


def test_price_of_money_and_hours():
    rates = {"peak": 1e15, "utilisation": 0.4, "serve_utilisation": 0.1, "price_per_device_hour": 2.0}
    found = by("besiroglu-2024", money=1e6, serve_tokens=1e12, **rates)
    n, d = found.params.value, found.tokens.value
    hours = 6 * n * d / (0.4e15 * 3600)
    assert found.costs["device_hours"] == pytest.approx(hours)
    assert found.costs["money"] == pytest.approx(2 * (hours + 2 * n * 1e12 / (0.1e15 * 3600)))
    assert found.costs["money"] == pytest.approx(1e6)
    assert found.binding == ("money",)
    back = by("besiroglu-2024", loss=found.loss.value, serve_tokens=1e12, **rates)
    assert back.objective.minimise == "money"
    assert back.objective.value == pytest.approx(1e6, rel=1e-8)
    same = by("besiroglu-2024", device_hours=hours, peak=1e15, utilisation=0.4)
    assert same.params.value == pytest.approx(by("besiroglu-2024", flops=6 * n * d).params.value, rel=1e-9)


def test_smallest_model_for_a_loss_within_a_budget():
    found = by("besiroglu-2024", loss=2.2, flops=1e22, minimise="bytes", bits=4)
    assert found.binding == ("loss", "flops")
    assert found.costs["train_flops"] == pytest.approx(1e22, rel=1e-9)
    assert found.loss.value == pytest.approx(2.2, abs=1e-10)
    assert found.params.value < by("besiroglu-2024", loss=2.2).params.value
    assert found.costs["bytes"] == found.objective.value == pytest.approx(found.params.value / 2)


# --- exchange rates ----------------------------------------------------------------------------------------


def test_tokens_for_params_at_chinchilla():
    found = by("besiroglu-2024", params=70e9, tokens=1.4e12)
    assert found.exchange_rates["tokens_for_params"].value == pytest.approx(-1.031, abs=5e-4)
    assert found.binding == ("tokens", "params") or found.binding == ("params", "tokens")


def test_reducible_loss_falls_as_compute_to_the_minus_0178():
    found = by("besiroglu-2024", flops=1e23)
    rate = found.exchange_rates["reducible_loss_for_flops"]
    assert rate.value == pytest.approx(-0.3478 * 0.3658 / (0.3478 + 0.3658), rel=1e-9)
    assert rate.value == pytest.approx(-0.178, abs=5e-4)


@pytest.mark.parametrize(
    ("limits", "name", "rate"),
    [
        ({"flops": 1e22}, "flops", "loss_for_flops"),
        ({"flops": 1e22, "tokens": 1e11}, "tokens", "loss_for_tokens"),
        ({"flops": 1e22, "tokens": 1e11}, "flops", "loss_for_flops"),
        ({"flops": 1e22, "bytes": 6e9}, "bytes", "loss_for_bytes"),
        ({"total_flops": 1e22, "serve_tokens": 1e12}, "total_flops", "loss_for_total_flops"),
        ({"loss": 2.2, "serve_tokens": 1e12}, "loss", "total_flops_for_loss"),
        ({"loss": 2.2, "tokens": 3e10}, "loss", "train_flops_for_loss"),
        ({"loss": 2.2, "tokens": 3e10}, "tokens", "train_flops_for_tokens"),
    ],
)
def test_shadow_prices_are_finite_differences(limits, name, rate):
    h = 1e-5

    def least(factor):
        return by("besiroglu-2024", **{**limits, name: limits[name] * factor}).objective.value

    slope = (math.log(least(1 + h)) - math.log(least(1 - h))) / (2 * h)
    assert by("besiroglu-2024", **limits).exchange_rates[rate].value == pytest.approx(slope, rel=1e-4)


def test_half_the_size_keeps_the_loss():
    found = by("besiroglu-2024", flops=1e22)
    factor = found.exchange_rates["tokens_at_half_params"].value
    level = laws.get("hoffmann").evaluate(
        [*EPOCH.values()], params=found.params.value / 2, tokens=found.tokens.value * factor
    )
    assert float(level) == pytest.approx(found.loss.value, rel=1e-12)


# --- properties --------------------------------------------------------------------------------------------


@given(thetas, budgets, st.floats(1.01, 10))
def test_more_of_a_budget_is_never_worse(theta, flops, factor):
    limits = {"flops": flops, "tokens": flops**0.45, "bytes": flops**0.47}
    level = by(theta, **limits).loss.value
    for name in limits:
        assert by(theta, **{**limits, name: limits[name] * factor}).loss.value <= level * (1 + 1e-12)


@given(thetas, budgets, st.floats(-3, 3))
def test_change_of_units(theta, flops, power):
    """Parameters counted in units of k, tokens in units of 1/k: the optimum moves along."""
    k = 10.0**power
    scaled = {**theta, "A": theta["A"] * k ** theta["alpha"], "B": theta["B"] * k ** -theta["beta"]}
    first, second = by(theta, flops=flops), by(scaled, flops=flops)
    assert second.params.value == pytest.approx(first.params.value * k, rel=1e-10)
    assert second.loss.value == pytest.approx(first.loss.value, rel=1e-12)


@given(thetas, budgets)
def test_unit_of_the_loss(theta, flops):
    """In bits, the same point and the same rates in per cent."""
    bits = {**theta, **{name: theta[name] / math.log(2) for name in ("E", "A", "B")}}
    first, second = by(theta, flops=flops), by(bits, flops=flops)
    assert second.params.value == pytest.approx(first.params.value, rel=1e-10)
    for name, rate in first.exchange_rates.items():
        assert second.exchange_rates[name].value == pytest.approx(rate.value, rel=1e-6), name


def test_near_optimal_sizes_have_that_loss():
    found = by("besiroglu-2024", flops=1e22)
    near = found.near_optimal
    for size in (near.params_low, near.params_high):
        level = laws.get("hoffmann").evaluate([*EPOCH.values()], params=size, tokens=1e22 / (6 * size))
        assert float(level) == pytest.approx(found.loss.value * 1.001, rel=1e-10)
    assert near.params_low < found.params.value < near.params_high


# --- laws of one axis ----------------------------------------------------------------------------------------


def test_one_axis_by_flops():
    theta = {"gamma": 1.7, "alpha": 1200.0, "beta": 0.15}
    found = by(theta, "hestness(flops)", flops=1e21)
    assert found.loss.value == pytest.approx(1.7 + 1200 * 1e21**-0.15)
    assert found.costs["train_flops"] == 1e21
    assert math.isnan(found.params.value)
    back = by(theta, "hestness(flops)", loss=found.loss.value)
    assert back.objective.value == pytest.approx(1e21, rel=1e-8)
    hours = by(theta, "hestness(flops)", device_hours=1000, peak=1e15, utilisation=0.5)
    assert hours.costs["train_flops"] == pytest.approx(1000 * 3600 * 0.5e15)
    assert hours.costs["device_hours"] == pytest.approx(1000)


def test_one_axis_says_what_it_cannot_use():
    with pytest.raises(ValueError, match="reads tokens alone, so a limit on flops says nothing"):
        by("kaplan-2020", "kaplan-d", flops=1e21)
    with pytest.raises(isoloss.NoAnswer, match=r"not reached with 1e40 tokens: the law falls to 1\.7"):
        by({"gamma": 1.7, "alpha": 12.0, "beta": 0.2}, "hestness", loss=1.5)
    with pytest.raises(isoloss.NoAnswer, match="not reached within tokens"):
        by({"gamma": 1.7, "alpha": 12.0, "beta": 0.2}, "hestness", loss=1.8, tokens=1e6)


# --- curves --------------------------------------------------------------------------------------------------


def test_curves_meet_at_the_optimum():
    found = by("besiroglu-2024", flops=1e22)
    flat = isoflop_curve("hoffmann", 1e22, 11, theta="besiroglu-2024")
    assert flat.params[5] == pytest.approx(found.params.value)
    assert np.argmin(flat.loss.value) == 5
    np.testing.assert_allclose(6 * flat.params * flat.tokens.value, 1e22)
    level = isoloss_curve("hoffmann", found.loss.value, 11, theta="besiroglu-2024")
    flops = 6 * level.params * level.tokens.value
    assert np.argmin(flops) == 5
    assert flops[5] == pytest.approx(1e22, rel=1e-8)
    assert np.isinf(
        isoloss_curve("hoffmann", found.loss.value, 3, span=1e4, theta="besiroglu-2024").tokens.value[0]
    )

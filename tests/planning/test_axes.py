"""Plans over further axes: closed forms, sheets, brute force over composed laws, choices over the draws."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

import isoloss
from isoloss import Budget, NoAnswer, laws, plan
from isoloss.planning import costs
from isoloss.planning.axes import Span, parse_choose, parse_hold, settle

KUMAR = {"E": 2.7648, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.4965}
EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
BITS = ("bits_weights", "bits_activations", "bits_kv")
TIED = {BITS: Span(4, 16)}


def factor(bits, gammas=(2.6745, 2.2102, 0.9578), offsets=(0.3037, 1.4072, 2.4185)):
    return math.prod(1 - math.exp(n - bits / g) for g, n in zip(gammas, offsets, strict=True))


# --- closed forms ------------------------------------------------------------------------------------------


def test_the_best_bits_of_training_are_seven_at_every_budget():
    best = optimize.minimize_scalar(lambda p: -factor(p) / p, bounds=(4, 16), method="bounded").x
    assert best == pytest.approx(7.0, abs=0.05)
    theta = {**KUMAR, "precision": "kumar-2024"}
    for flops in (1e18, 1e21, 1e24):
        found = plan("hoffmann * precision", Budget(flops=flops, bits_cost=True), theta=theta, choose=TIED)
        (axis,) = found.axes
        assert (axis.name, axis.how) == ("bits_weights=bits_activations=bits_kv", "searched")
        assert axis.value.value == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("bits", [4.0, 7.0, 12.0])
def test_optimum_at_fixed_bits(bits):
    """N*/N_Ch = f^(-a/(a+b)) (16/P)^(b/(a+b)) where P-bit FLOPs cost P/16."""
    a, b = EPOCH["alpha"], EPOCH["beta"]
    theta = {**EPOCH, "precision": "kumar-2024"}
    hold = dict.fromkeys(BITS, bits)
    found = plan("hoffmann * precision", Budget(flops=1e21, bits_cost=True), theta=theta, hold=hold)
    dense = plan("hoffmann", Budget(flops=1e21), theta=EPOCH)
    ratio = factor(bits) ** (-a / (a + b)) * (16 / bits) ** (b / (a + b))
    assert found.params.value / dense.params.value == pytest.approx(ratio, rel=1e-9)
    assert found.costs["train_flops"] == pytest.approx(1e21, rel=1e-9)
    assert found.costs["bytes"] == pytest.approx(found.params.value * bits / 8)


def test_without_their_cost_more_bits_are_better():
    found = plan(
        "hoffmann * precision(bits_weights)", Budget(flops=1e21), theta={**EPOCH, "precision": "kumar-2024"}
    )
    assert found.axes[0].value.value == 16
    assert found.axes[0].by_default


@pytest.mark.parametrize(
    ("flops", "params", "sparsity"),
    [(1e20, 1e9, 0.87), (1e20, 1e10, 0.98), (1e21, 1e9, 0.62), (1e21, 1e10, 0.94)],
)
def test_best_sparsity_of_the_sheet(flops, params, sparsity):
    found = plan("moe-sparsity", Budget(flops=flops, params=params), theta="abnar-2025")
    (axis,) = found.axes
    assert (axis.name, axis.how, axis.by_default) == ("expert_density", "searched", True)
    assert 1 - axis.value.value == pytest.approx(sparsity, abs=0.006)
    assert found.params.value == pytest.approx(params)
    assert found.costs["train_flops"] == pytest.approx(6 * params * axis.value.value * found.tokens.value)
    assert found.costs["bytes"] == pytest.approx(2 * params)  # all experts are stored
    assert ("search-end" in [w.code for w in found.warnings]) == (sparsity == 0.98)


@pytest.mark.parametrize(
    "limits",
    [{"flops": 1e22, "tokens": 2e10}, {"flops": 1e21, "tokens": 1e12}, {"loss": 2.3, "tokens": 3e10}],
)
def test_muennighoff_composed_is_muennighoff(limits):
    whole = plan("muennighoff", Budget(**limits), theta="muennighoff-2023")
    parts = plan(
        "hoffmann@muennighoff-2023 * data-constrained@muennighoff-2023 * excess-params@muennighoff-2023",
        Budget(**limits),
    )
    assert parts.params.value == pytest.approx(whole.params.value, rel=1e-6)
    assert parts.tokens.value == pytest.approx(whole.tokens.value, rel=1e-6)
    assert parts.loss.value == pytest.approx(whole.loss.value, rel=1e-9)
    assert parts.epochs.value == pytest.approx(whole.epochs.value, rel=1e-6)
    assert parts.binding == whole.binding


# --- brute force -------------------------------------------------------------------------------------------


SPEC = "hoffmann * parscale * precision(bits_weights) + ptq(bits_post)"
OPTIONS = {"streams": (1, 2, 4), "bits_weights": (4, 8, 16), "bits_post": (3, 4, 8)}


def random_theta(rng):
    base = {name: value * math.exp(rng.normal(0, 0.1)) for name, value in EPOCH.items()}
    return {
        **base, "k": rng.uniform(0.1, 0.5), "precision": "kumar-2024", "ptq": "kumar-2024",
        "C_T": 0.06 * math.exp(rng.uniform(0, 3)),
    }  # fmt: skip


def scan(law, theta, limits, options):
    """The least loss of every combination, by brute force over size and tokens."""
    out = {}
    sizes = np.geomspace(1e7, 1e12, 600)
    share = np.geomspace(1e-3, 1, 241)[None, :]
    for combination in itertools.product(*options.values()):
        at = dict(zip(options, combination, strict=True))
        n = np.append(sizes, limits.get("bytes", 1e9) * 8 / at["bits_post"])[:, None]
        most = np.full_like(n, limits.get("tokens", np.inf))
        if "flops" in limits:
            most = np.minimum(most, limits["flops"] / (6 * n * at["streams"]))
        fits = (n * at["bits_post"] / 8 <= limits.get("bytes", np.inf)) & (most >= 1)
        d = most * share
        x = {"params": n + 0 * d, "tokens": d, **{axis: np.full(d.shape, v) for axis, v in at.items()}}
        loss = np.where(fits, law.evaluate(theta, **x), np.inf)
        i, j = np.unravel_index(np.argmin(loss), loss.shape)
        out[combination] = (loss[i, j], n[i, 0], d[i, j])
    return out


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "limits", [{"flops": 1e21, "bytes": 1e9}, {"flops": 1e22, "bytes": 5e8}, {"tokens": 1e12, "bytes": 2e9}]
)
def test_combinations_against_brute_force(seed, limits):
    law = laws.get(SPEC)
    given_theta = random_theta(np.random.default_rng(seed))
    found = plan(SPEC, Budget(**limits), theta=given_theta, choose=OPTIONS)
    brute = scan(law, found.belief.theta, limits, OPTIONS)
    best = min(brute, key=lambda key: brute[key][0])
    assert found.loss.value <= brute[best][0] + 1e-9
    assert found.loss.value == pytest.approx(brute[best][0], abs=3e-4)  # the grid's own coarseness
    assert {a.name: a.value.value for a in found.axes} == dict(zip(OPTIONS, best, strict=True))
    for axis in found.axes:
        j = list(OPTIONS).index(axis.name)
        for other in axis.alternatives:
            least = min(value[0] for key, value in brute.items() if key[j] == other.value)
            assert other.objective == pytest.approx(least, abs=3e-4)
            assert other.gap.value == pytest.approx(other.objective - found.loss.value, abs=1e-12)


def test_two_budgets_bind_at_once():
    theta = {**EPOCH, "precision": "kumar-2024", "k": 0.33}
    found = plan(
        "hoffmann * parscale * precision(bits_weights)",
        Budget(flops=1e22, bytes=3e9),
        theta=theta,
        choose={"streams": (1, 2), "bits_weights": (4, 6, 8)},
    )
    assert found.binding == ("flops", "bytes")
    at = found.others
    assert found.costs["train_flops"] == pytest.approx(
        6 * found.params.value * found.tokens.value * at["streams"]
    )
    assert (
        found.costs["bytes"]
        == pytest.approx(found.params.value * at["bits_weights"] / 8)
        == pytest.approx(3e9)
    )


def test_tokens_that_would_hurt_are_left_unspent():
    theta = {**EPOCH, "ptq": "kumar-2024", "C_T": 0.5}
    found = plan(
        "hoffmann + ptq(bits_post)", Budget(flops=1e24, bytes=1e9), theta=theta, hold={"bits_post": 4}
    )
    law, at = laws.get("hoffmann + ptq(bits_post)"), {"params": 2e9, "bits_post": 4.0}
    best = optimize.minimize_scalar(
        lambda t: float(law.evaluate(found.belief.theta, tokens=math.exp(t), **at)), bounds=(15, 60), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert found.params.value == pytest.approx(2e9)
    assert found.tokens.value == pytest.approx(math.exp(best.x), rel=1e-4)
    assert found.loss.value <= best.fun + 1e-12
    assert found.binding == ("bytes",)
    assert "tokens-unspent" in [w.code for w in found.warnings]
    # the same loss, wanted, is reached with no more
    back = plan(
        "hoffmann + ptq(bits_post)",
        Budget(loss=found.loss.value + 1e-4, bytes=1e9),
        theta=theta,
        hold={"bits_post": 4},
    )
    assert back.tokens.value < found.tokens.value
    with pytest.raises(NoAnswer, match="not reached within bytes"):
        plan(
            "hoffmann + ptq(bits_post)",
            Budget(loss=found.loss.value - 1e-3, bytes=1e9),
            theta=theta,
            hold={"bits_post": 4},
        )


def test_cheapest_combination_is_dual_to_the_best():
    theta = random_theta(np.random.default_rng(7))
    best = plan(SPEC, Budget(flops=1e21), theta=theta, choose=OPTIONS)
    back = plan(SPEC, Budget(loss=best.loss.value), theta=theta, choose=OPTIONS)
    assert back.objective.value == pytest.approx(1e21, rel=1e-6)
    assert back.others == best.others


@settings(max_examples=8)
@given(
    st.integers(0, 10**6),
    st.floats(19, 23),
    st.floats(8.5, 10.5),
    st.floats(1.01, 5),
    st.sampled_from(["flops", "bytes"]),
)
def test_more_budget_never_gives_more_loss(seed, flops, size, more, which):
    theta = random_theta(np.random.default_rng(seed))
    limits = {"flops": 10**flops, "bytes": 10**size}
    options = {"streams": (1, 4), "bits_weights": (4, 16), "bits_post": (3, 6)}
    before = plan(SPEC, Budget(**limits), theta=theta, choose=options)
    after = plan(SPEC, Budget(**{**limits, which: more * limits[which]}), theta=theta, choose=options)
    assert after.loss.value <= before.loss.value * (1 + 1e-12)


def test_two_axes_searched_at_once():
    theta = {**EPOCH, "k": 0.4, "precision": "kumar-2024"}
    spec, budget = (
        "hoffmann * parscale * precision(bits_weights)",
        Budget(flops=1e21, bytes=1e9, bits_cost=True),
    )
    found = plan(spec, budget, theta=theta, choose={"bits_weights": Span(3, 16), "streams": Span(1, 8)})
    law = laws.get(spec)

    def loss(v):
        bits, streams = np.exp(v)
        n = np.geomspace(1e8, 1e9 * 8 / bits, 1000)
        d = 1e21 / (6 * n * streams * bits / 16)
        return float(
            law.evaluate(found.belief.theta, params=n, tokens=d, bits_weights=bits, streams=streams).min()
        )

    box = [(math.log(3), math.log(16)), (0, math.log(8))]
    brute = optimize.differential_evolution(loss, box, seed=0, maxiter=25, popsize=8)
    assert found.loss.value == pytest.approx(brute.fun, abs=1e-6)
    np.testing.assert_allclose(
        [found.others["bits_weights"], found.others["streams"]], np.exp(brute.x), rtol=0.02
    )


# --- over the draws ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit():
    """Rows with bits and streams, and few enough draws to solve each by brute force."""
    rng = np.random.default_rng(0)
    law = laws.get("hoffmann * precision(bits_weights)")
    theta = law.theta({**EPOCH, "gamma_w": 2.67, "n_w": 0.30})
    grid = np.meshgrid([3e7, 1e8, 3e8, 1e9], [2e9, 1e10, 4e10], [3, 4, 6, 16])
    x = dict(zip(law.axes, (values.ravel() for values in grid), strict=True))
    loss = law.evaluate(theta, **x) * np.exp(rng.normal(0, 0.01, 48))
    return isoloss.fit(
        "hoffmann * precision(bits_weights)", {**x, "loss": loss}, draws=150, sensitivity=False
    )


def least(theta, bits, bytes, flops=None, loss=None):
    """Loss, or training FLOPs, of the best size by a scan that scipy ends; the loss decides the tokens in closed form."""
    E, A, B, alpha, beta, gamma, n = theta
    share = 1 - math.exp(n - bits / gamma)

    def objective(x):
        size = A * (math.exp(x) * share) ** -alpha
        if loss is None:
            return E + size + B * (flops / (6 * math.exp(x))) ** -beta
        left = loss - E - size
        return math.log(6) + x - math.log(left / B) / beta if left > 0 else 1e9

    top = math.log(bytes * 8 / bits)
    grid = np.linspace(top - 12, top, 200)
    i = int(np.argmin([objective(x) for x in grid]))
    ends = (grid[max(i - 1, 0)], grid[min(i + 1, 199)])
    found = optimize.minimize_scalar(objective, bounds=ends, method="bounded", options={"xatol": 1e-10})
    value = min(found.fun, objective(top))
    return value if loss is None else math.exp(value) if value < 1e8 else math.inf


@pytest.mark.parametrize("budget", [{"flops": 1e21, "bytes": 6e8}, {"loss": 2.55, "bytes": 4e8}])
def test_choices_over_the_draws_against_a_loop(fit, budget):
    values = (3.0, 4.0, 5.0, 6.0, 8.0)
    found = plan(fit, Budget(**budget), choose={"bits_weights": values})
    own = np.array([[least(theta, bits, **budget) for bits in values] for theta in fit.draws])
    able = np.isfinite(own).any(axis=1)
    own = own[able]
    best = np.argmin(own, axis=1)
    (axis,) = found.axes
    here = values.index(axis.value.value)
    for j, other in enumerate(axis.alternatives):
        assert other.value == values[j]
        assert other.p_best == pytest.approx(np.mean(best == j), abs=1e-12)
        gap = own[:, j] - own[:, here] if "loss" not in budget else own[:, j] / own[:, here] - 1
        regret = own[:, j] - own.min(axis=1) if "loss" not in budget else own[:, j] / own.min(axis=1) - 1
        if np.isfinite(own[:, [j, here]]).all():
            np.testing.assert_allclose(
                [other.gap.low, other.gap.high], np.quantile(gap, [0.05, 0.95]), rtol=1e-5, atol=1e-9
            )
            assert other.expected_regret == pytest.approx(regret.mean(), rel=1e-5, abs=1e-9)
    chosen = np.array(values)[best]
    assert axis.value.low == np.quantile(chosen, 0.05, method="inverted_cdf")
    assert axis.value.high == np.quantile(chosen, 0.95, method="inverted_cdf")
    assert sum(a.p_best for a in axis.alternatives) == pytest.approx(1)


def test_what_is_left_out_of_the_draws_is_never_best(fit, monkeypatch):
    """With and without the pilot: the same shares."""
    import isoloss.planning.combine as combine

    choose = {"bits_weights": tuple(range(2, 17))}
    pruned = plan(fit, Budget(flops=1e21, bytes=6e8), choose=choose)
    monkeypatch.setattr(combine, "NEAR", 1e9)
    whole = plan(fit, Budget(flops=1e21, bytes=6e8), choose=choose)
    shares = [[a.p_best for a in found.axes[0].alternatives] for found in (pruned, whole)]
    np.testing.assert_allclose(*shares, atol=1e-12)


def test_a_searched_axis_has_an_interval(fit):
    found = plan(fit, Budget(flops=1e21, bytes=4e9, bits_cost=True), choose={"bits_weights": Span(1.2, 16)})
    (axis,) = found.axes
    assert 1.2 <= axis.value.low < axis.value.value < axis.value.high <= 16
    near = [axis.value.value * f for f in (0.97, 1.03)]
    for bits in near:
        other = plan(fit, Budget(flops=1e21, bytes=4e9, bits_cost=True), hold={"bits_weights": bits})
        assert other.loss.value >= found.loss.value


def test_what_mistuning_costs_is_left_out(fit):
    from isoloss.laws.hoffmann import Hoffmann
    from isoloss.laws.law import positive
    from isoloss.laws.parts.part import LossTerm

    class Mistuned(LossTerm):
        """c (ln lr - ln best)^2."""

        columns = ("lr",)
        formula = "c log(lr/best)^2"
        reference = "lr absent: tuned"
        paper = ""

        @property
        def parameters(self):
            return (positive("c", 1e-3, 1, "curvature"), positive("best", 1e-5, 1, "best rate"))

        def value(self, theta, x):
            return theta["c"] * (np.log(x["lr"]) - np.log(theta["best"])) ** 2

    law = Hoffmann() + Mistuned()
    theta = [*EPOCH.values(), 0.1, 1e-3]
    found = plan(law, Budget(flops=1e21), theta=theta)
    assert found.loss.value == pytest.approx(plan("hoffmann", Budget(flops=1e21), theta=EPOCH).loss.value)
    assert [(a.name, a.how) for a in found.axes] == [("lr", "left-out")]
    assert "lr left out" in str(found)
    held = plan(law, Budget(flops=1e21), theta=theta, hold={"lr": 1e-2})
    assert held.loss.value - found.loss.value == pytest.approx(0.1 * math.log(10) ** 2)


# --- costs ---------------------------------------------------------------------------------------------------


def test_costs_read_further_axes():
    point = {
        "params": 1e9,
        "tokens": 2e10,
        "streams": 4.0,
        "expert_density": 0.25,
        "bits_weights": 8.0,
        "bits_activations": 4.0,
    }
    axes = tuple(point)
    budget = Budget(
        total_flops=1e22, serve_tokens=1e12, peak=1e15, utilisation=0.5, price_per_device_hour=2.0
    )
    found = budget.costs_of(axes)
    assert found["train_flops"].value(point) == 6e9 * 2e10 * 4 * 0.25
    assert found["serve_flops"].value(point) == 2e9 * 1e12 * 4 * 0.25
    assert found["total_flops"].value(point) == pytest.approx(
        found["train_flops"].value(point) + found["serve_flops"].value(point)
    )
    assert found["device_hours"].value(point) == pytest.approx(
        found["train_flops"].value(point) / (0.5e15 * 3600)
    )
    assert found["bytes"].value(point) == 1e9
    bits = dataclasses.replace(budget, bits_cost=True).costs_of(axes)
    assert bits["train_flops"].value(point) == pytest.approx(6e9 * 2e10 * 4 * 0.25 * (8 + 4) / 2 / 16)
    assert bits["serve_flops"].value(point) == found["serve_flops"].value(point)
    assert costs.with_axes(costs.stored_bytes(), ("bits_weights", "bits_post")).terms == (
        (1 / 8, ("params", "bits_post")),
    )


@pytest.mark.parametrize(
    ("spec", "budget", "options", "message"),
    [
        ("hoffmann", {}, {"hold": {"bits_post": 4}}, "has no further axes"),
        ("hoffmann + ptq(bits_post)", {}, {"hold": {"bits_kv": 4}}, "does not read bits_kv"),
        ("hoffmann + ptq(bits_post)", {}, {"hold": {"tokens": 1e9}}, "limit it in the budget"),
        ("hoffmann + ptq(bits_post)", {}, {"hold": {"bits_post": -1}}, "positive finite"),
        (
            "hoffmann + ptq(bits_post)",
            {},
            {"hold": {"bits_post": 4}, "choose": {"bits_post": [4]}},
            "held or chosen twice",
        ),
        ("hoffmann + ptq(bits_post)", {}, {"choose": {"bits_post": []}}, "values to choose from"),
        ("hoffmann + ptq(bits_post)", {}, {"choose": {"bits_post": [4, 4]}}, "stands twice"),
        (
            "hoffmann + ptq(bits_post)",
            {},
            {"choose": {"bits_post": range(1, 6000)}},
            "at most 5000 combinations",
        ),
        ("hoffmann + ptq(bits_post)", {"bits": 4}, {}, "leave bits=4 out"),
        (
            "hoffmann + ptq(bits_post)",
            {"bits_cost": True},
            {},
            "bits_cost needs a law that reads bits in training",
        ),
        ("hoffmann + float-quantisation", {}, {}, "of which nothing is said"),
        ("hoffmann * routed", {"bytes": 1e9}, {}, "bytes of all its experts are not known"),
    ],
)
def test_questions_that_mean_nothing(spec, budget, options, message):
    law = laws.get(spec)
    theta = [*EPOCH.values(), *([1.0] * (len(law.names) - 5))]
    with pytest.raises(ValueError, match=message):
        plan(law, Budget(flops=1e21, **budget), theta=theta, **options)


def test_spans_and_words():
    assert parse_hold(["bits_kv=8", "streams=2"]) == {"bits_kv": 8, "streams": 2}
    assert parse_choose(["a=0.1:2", "b=1,2", "c=d=4,8"]) == {
        ("a",): Span(0.1, 2),
        ("b",): (1, 2),
        ("c", "d"): (4, 8),
    }
    for text in ("bits", "bits=", "=3", "bits=3,x", "bits=8:4"):
        with pytest.raises(ValueError, match=r"needs|low < high"):
            parse_choose([text])
    with pytest.raises(ValueError, match="--hold needs"):
        parse_hold(["bits"])
    law = laws.get("hoffmann * precision")
    assert settle(
        law, {"bits_kv": 8}, {("bits_weights", "bits_activations"): [4, 8]}
    ).combinations().tolist() == [[4.0], [8.0]]
    with pytest.raises(ValueError, match="at most two axes to search"):
        settle(law, None, {axis: Span(4, 8) for axis in BITS})


def test_bits_of_a_floating_point_format_are_stored_and_counted():
    """A sign, the exponent's and the mantissa's; against a scan over all formats."""
    spec, theta = "hoffmann + float-quantisation", {"hoffmann": "sun-2025", "float-quantisation": "sun-2025"}
    options = {"exponent_bits": (2, 4, 8), "mantissa_bits": (1, 3, 7)}
    budget = Budget(flops=1e22, bytes=3e9, bits_cost=True)
    found = plan(spec, budget, theta=theta, choose=options, hold={"scale_block": 128})
    law, best = laws.get(spec), (math.inf, 0, 0)
    for exponent in options["exponent_bits"]:
        for mantissa in options["mantissa_bits"]:
            bits = 1 + exponent + mantissa
            n = np.geomspace(1e7, 3e9 * 8 / bits, 4000)
            at = {"exponent_bits": exponent, "mantissa_bits": mantissa, "scale_block": 128}
            loss = law.evaluate(found.belief.theta, params=n, tokens=1e22 / (6 * n * bits / 16), **at)
            best = min(best, (float(loss.min()), exponent, mantissa))
    assert found.loss.value == pytest.approx(best[0], abs=1e-6)
    assert (found.others["exponent_bits"], found.others["mantissa_bits"]) == best[1:]
    bits = 1 + sum(best[1:])
    assert found.costs["bytes"] == pytest.approx(found.params.value * bits / 8)
    assert found.costs["train_flops"] == pytest.approx(
        6 * found.params.value * found.tokens.value * bits / 16
    )
    with pytest.raises(ValueError, match="exponent_bits and mantissa_bits, which is what is stored"):
        plan(spec, Budget(flops=1e22, bits=8), theta=theta, choose=options, hold={"scale_block": 128})


def test_frozen_weights_cost_four_of_six_flops_in_training():
    cost = costs.with_axes(costs.total_flops(1e6), ("params", "tokens", "params_trainable", "bits_weights"))
    point = {"params": 1e9, "tokens": 2e10, "params_trainable": 1e8, "bits_weights": 4.0}
    assert cost.value(point) == pytest.approx((4 * 1e9 + 2 * 1e8) * 2e10 + 2e15)
    bits = costs.with_axes(costs.train_flops(), tuple(point), bits=True)
    assert bits.value(point) == pytest.approx((4 * 1e9 + 2 * 1e8) * 2e10 / 4)
    spec, theta = "hoffmann * trainable-params", {**EPOCH, "trainable-params": "chatelain-2021"}
    found = plan(spec, Budget(flops=1e22), theta=theta, hold={"params_trainable": 1e9})
    # the law has no value below: more trained than there are
    assert found.params.value == pytest.approx(1e9, rel=1e-6)
    assert found.near_optimal.params_low == pytest.approx(1e9, rel=1e-6)
    assert "tokens_at_half_params" not in found.exchange_rates
    rates = {(r.of, r.per): r.rate.value for r in found.rates_between}
    assert rates["tokens", "params"] == pytest.approx(0, abs=1e-12)


def test_what_no_combination_reaches_names_the_least_that_one_does():
    spec, theta = "hoffmann * precision(bits_weights)", {**EPOCH, "precision": "kumar-2024"}
    asked = {"flops": 1e20, "loss": 2.0}
    with pytest.raises(NoAnswer) as answer:
        plan(spec, Budget(**asked), theta=theta)
    with pytest.raises(NoAnswer) as best:  # nothing makes bits dear: 16 are the best
        plan(spec, Budget(**asked), theta=theta, hold={"bits_weights": 16})
    assert answer.value.needed == best.value.needed
    needed = float(answer.value.needed.split()[1])
    found = plan(spec, Budget(loss=2.0, flops=needed), theta=theta)
    assert 0.99 * needed < found.costs["train_flops"] <= needed
    with pytest.raises(NoAnswer, match=r"below the irreducible loss 1\.817.* above 1\.818"):
        plan(spec, Budget(loss=1.7), theta=theta)
    # few bits fit in, many do not: each limit is relaxed where that is cheapest
    with pytest.raises(NoAnswer) as both:
        plan(spec, Budget(loss=2.3, flops=1e22, bytes=3e8), theta=theta)
    assert both.value.needed.startswith("flops ")
    size = float(both.value.needed.split("bytes ")[1].split("MB")[0]) * 1e6
    least = [
        plan(spec, Budget(loss=2.3, flops=1e22, minimise="bytes"), theta=theta, hold={"bits_weights": bits})
        for bits in (3, 4, 5, 6, 8, 12, 16)
    ]
    assert min(one.costs["bytes"] for one in least) == pytest.approx(size, rel=5e-3)
    with pytest.raises(NoAnswer, match="nothing can be trained within flops"):
        plan("moe-sparsity", Budget(flops=1e-3), theta="abnar-2025")


def test_a_learning_rate_that_is_held_moves_no_floor_and_one_that_is_searched_is_worth_nothing():
    spec = "hoffmann + lr-batch(lr)"
    theta = {**EPOCH, "lr-batch": "li-2025", "k_lr": 0.02, "g_lr": 0.5}
    held = plan(spec, Budget(flops=1e21), theta=theta, hold={"lr": 3e-4})
    rate = held.exchange_rates["reducible_loss_for_flops"].value
    want = held.exchange_rates["loss_for_flops"].value * held.loss.value / (held.loss.value - EPOCH["E"])
    assert rate == pytest.approx(want)
    with pytest.raises(NoAnswer, match="not reached within flops"):
        plan(spec, Budget(flops=1e21, loss=2.2), theta=theta, hold={"lr": 3e-4})
    free = plan(spec, Budget(flops=1e21), theta=theta, choose={"lr": Span(1e-4, 1e-2)})
    assert {r.of for r in free.rates_between} == {"params", "tokens"}
    edge = plan(spec, Budget(flops=1e21), theta=theta, choose={"lr": Span(1e-3, 1e-2)})
    assert "lr" in {r.of for r in edge.rates_between}
    assert "search-end" in [w.code for w in edge.warnings]


def test_a_law_of_a_learning_rate_is_not_planned():
    with pytest.raises(ValueError, match="plan makes a loss small"):
        plan("step-law", Budget(flops=1e21), theta="li-2025")

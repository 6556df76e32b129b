"""Experts, parallel streams, frozen weights: the papers' numbers, the factors' meanings, the public tables."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import isoloss
from benchmarks.experts import LOSSES, SIZES, STREAMS, streams
from isoloss import LeastSquares, laws
from isoloss.fitting import derived
from isoloss.laws.clark import Clark, cutoff, saturation
from isoloss.laws.hoffmann import Hoffmann
from isoloss.laws.moe_sparsity import MoeSparsity
from isoloss.laws.parts.parscale import Parscale
from isoloss.laws.parts.parscale_theory import ParscaleTheory
from isoloss.laws.parts.precision import Precision
from isoloss.laws.parts.routed import Routed
from isoloss.laws.parts.trainable_params import TrainableParams

ROUTERS = ("s-base-2022", "rl-r-2022", "hash-2022")
BASE = {"E": 2.0, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
# README of the tables and methods sheet: a, b, c, d, E_start, E_max of an independent fit.
REFITS = {
    "S-Base": (-0.083, -0.118, 0.0099, 1.114, 2.07, 239),
    "RL-R": (-0.0827, -0.1234, 0.0112, 1.107, 1.72, 470),
    "Hash": (-0.0874, -0.1383, 0.0126, 1.160, 4.27, 428),
}
CUTOFFS = {"S-Base": 937e9, "RL-R": 85e9, "Hash": 83e9}  # as printed


def grid(**levels):
    return {
        axis: values.ravel()
        for axis, values in zip(levels, np.meshgrid(*levels.values(), indexing="ij"), strict=True)
    }


def routed_runs(table, router):
    """Last step of the router's runs and of the dense ones: every second layer, one expert per token, seed 42."""
    last = {}
    for row in table("laws/routed_moe/curves.csv"):
        if (row["routing_frequency"], row["top_k"], row["seed"]) == ("0.5", "1", "42"):
            key = row["hyper_id"]
            if key not in last or float(row["step"]) > float(last[key]["step"]):
                last[key] = row
    rows = [row for row in last.values() if row["router_type"] in (router, "Dense")]
    names = {"params_active": "params_active", "experts": "experts", "loss": "loss_nats_validation"}
    return {ours: np.array([float(row[theirs]) for row in rows]) for ours, theirs in names.items()}


# --- Clark et al. -----------------------------------------------------------------------------------


def test_saturation_is_the_paper_s_count():
    experts = np.array([1.0, 2.0, 8.0, 64.0, 512.0, 1e12])
    for name in ROUTERS:
        found = Clark.published[name].values
        start, most = found["E_start"], found["E_max"]
        count = 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / most)) + 1 / most)
        np.testing.assert_allclose(saturation(experts, start, most) * start, count, rtol=1e-12)
        assert saturation(1.0, start, most) == 1.0
        assert count[-1] == pytest.approx(most, rel=1e-6)
    assert np.isnan(saturation(np.array([0.5, 3.0]), 2.0, np.array([300.0, 1.0]))).all()
    assert saturation(7.0, 3.0, 3.0) == 1.0  # nothing to gain: as one expert


def test_clark_at_the_published_values():
    law = laws.get("clark")
    theta = law.theta("s-base-2022")
    loss = law.evaluate(theta, params_active=1.3e9, experts=[1, 512])
    np.testing.assert_allclose(loss, [2.2374, 1.9823], atol=5.1e-5)
    with pytest.raises(ValueError, match=r"experts at or above 1, got params_active 1e\+09, experts 0.5"):
        law.evaluate(theta, params_active=1e9, experts=[1, 0.5])
    # By hand: N = 10, so that the loss is 10^(a + d + (b + c) log10 E^).
    by_hand = 10 ** (-0.082 + 1.104 + (-0.108 + 0.009) * math.log10(1.847))
    assert law.evaluate(theta, params_active=10, experts=1) == pytest.approx(by_hand, rel=1e-12)


def test_beyond_the_cutoff_experts_hurt():
    law = laws.get("clark")
    theta = law.theta("hash-2022")
    edge = float(cutoff(theta[1], theta[2]))
    assert edge == pytest.approx(10 ** (0.136 / 0.012))
    x = {"params_active": edge * np.array([0.5, 1.0, 2.0]), "experts": np.full(3, 16.0)}
    slope = law.elasticities(theta, x)[1]["experts"]
    assert slope[0] < 0 < slope[2]
    assert slope[1] == pytest.approx(0, abs=1e-12)


def test_a_gain_that_does_not_shrink_has_no_cutoff():
    assert cutoff([-0.12, -0.12, -0.12], [0.01, 0.0, -0.01]).tolist() == [1e12, math.inf, math.inf]
    assert cutoff(-12.0, 1e-4) == math.inf  # 10^120000


def test_clark_is_recovered_in_any_unit():
    law = laws.get("clark")
    x = grid(params_active=[1.5e7, 6e7, 4e8, 1.3e9], experts=[1, 2, 4, 16, 64, 512])
    truth = law.theta("hash-2022")
    table = {**x, "loss": law.evaluate(truth, **x)}
    found = isoloss.fit(law, table, objective=LeastSquares(), draws=0, sensitivity=False)
    np.testing.assert_allclose(found.theta, truth, rtol=1e-4)
    table["params_active"] = x["params_active"] / 1e6
    other = isoloss.fit(law, table, objective=LeastSquares(), draws=0, sensitivity=False)
    a, b, c, d, start, most = truth
    np.testing.assert_allclose(other.theta, [a, b + 6 * c, c, d + 6 * a, start, most], rtol=1e-4)


@pytest.mark.parametrize("router", REFITS)
def test_routers_of_the_public_table(table, router):
    runs = routed_runs(table, router)
    found = isoloss.fit(
        "clark", runs, objective=LeastSquares(), draws=400, uncertainty="bootstrap", sensitivity=False
    )
    assert found.result == "identified"
    for value, known, digits in zip(
        found.theta, REFITS[router], (1e-3, 1e-3, 1e-4, 1e-3, 2e-2, 2), strict=True
    ):
        assert value == pytest.approx(known, abs=digits)
    assert np.sqrt(np.mean(found.residuals**2)) / math.log(10) == pytest.approx(0.003, abs=0.0005)
    # What is printed lies in the intervals; that of E_max is wide.
    printed = Clark.published[f"{router.lower()}-2022"].values
    for name, estimate in found.parameters.items():
        assert estimate.low < printed[name] < estimate.high, name
    most = found.parameters["E_max"]
    assert most.high / most.low > 3
    edge = derived.cutoff(found)
    assert edge.low < CUTOFFS[router] < edge.high
    assert edge.low < edge.value < edge.high


# --- the factor of experts --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROUTERS)
def test_routed_is_the_dense_size_of_the_same_loss(name):
    law, part = laws.get("clark"), Routed()
    theta, own = law.theta(name), part.published[name].values
    x = grid(params=[5e6, 2e8, 2e9], experts=[2.0, 64.0, 512.0])
    loss = law.evaluate(theta, params_active=x["params"], experts=x["experts"])
    low, high = np.full(9, 1.0), np.full(9, 1e15)  # the dense loss falls with the size: bisection
    for _ in range(200):
        middle = np.sqrt(low * high)
        above = law.evaluate(theta, params_active=middle, experts=1) > loss
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    np.testing.assert_allclose(part.value(own, x) * x["params"], low, rtol=1e-9)


def test_routed_at_the_published_values():
    part = Routed()
    at = {"params": np.array([5e6]), "experts": np.array([128.0])}
    size = 5e6 * part.value(part.published["s-base-2022"].values, at)
    assert size == pytest.approx(5.2e7, rel=0.005)  # the paper's text: about 55M
    for name in ROUTERS:
        own = part.published[name].values
        edge = cutoff(-own["b_E"], -own["c_E"])
        assert edge == pytest.approx(cutoff(*(Clark.published[name].values[key] for key in "bc")), rel=1e-9)
        sizes = edge * np.array([0.1, 1.0, 10.0])
        gain = part.value(own, {"params": sizes, "experts": np.full(3, 64.0)})
        assert gain[0] > 1 > gain[2]
        assert gain[1] == pytest.approx(1, rel=1e-9)


def test_a_power_times_routed_is_clark(table):
    runs = routed_runs(table, "S-Base")
    both = [
        isoloss.fit(spec, runs, objective=LeastSquares(), draws=0, sensitivity=False)
        for spec in ("clark", "power(params_active) * routed")
    ]
    assert both[1].value == pytest.approx(both[0].value, rel=1e-8)
    a, b, c, d, start, most = both[0].theta
    alpha = a + c * math.log10(start)
    dense = 10 ** (d + b * math.log10(start))
    np.testing.assert_allclose(both[1].theta, [dense, -alpha, b / alpha, c / alpha, start, most], rtol=1e-3)


def test_routed_is_the_identity_at_one_expert_and_says_nothing_below():
    part = Routed()
    own = part.published["rl-r-2022"].values
    sizes = np.geomspace(1e6, 1e13, 8)
    assert (part.value(own, {"params": sizes, "experts": np.ones(8)}) == 1).all()
    assert np.isnan(part.value(own, {"params": sizes, "experts": np.full(8, 0.9)})).all()
    assert np.isnan(part.value({**own, "E_max": 1.0}, {"params": sizes, "experts": np.full(8, 4.0)})).all()


def test_routed_reads_the_raw_size_of_any_base():
    own = Routed().published["s-base-2022"].values
    size, count = 2e8, 64.0
    factor = float(Routed().value(own, {"params": np.array(size), "experts": np.array(count)}))
    for base in ("params", "params_nonembedding", "params_active"):
        law = laws.get(f"henighan({base}) * routed")
        got = law.evaluate([2.0, 1e8, 0.2, *own.values()], **{base: size}, experts=count)
        assert got == pytest.approx(2 + (1e8 / (size * factor)) ** 0.2, rel=1e-13)
    # Raw: a factor before it in the alphabet does not change what it reads.
    law = Hoffmann() * Routed() * Precision(("bits_weights",))
    other = Hoffmann() * Precision(("bits_weights",)) * Routed()
    assert law.spec == other.spec == "hoffmann * precision(bits_weights) * routed"
    bits = 1 - math.exp(0.3 - 4 / 2.7)
    got = law.evaluate(
        law.theta({**BASE, "gamma_w": 2.7, "n_w": 0.3, **own}),
        params=size, tokens=1e10, bits_weights=4, experts=count,
    )  # fmt: skip
    assert got == pytest.approx(2 + 400 / (size * factor * bits) ** 0.35 + 2000 / 1e10**0.37, rel=1e-13)


def test_routed_is_recovered_beside_hoffmann():
    law = laws.get("hoffmann * routed")
    truth = {**BASE, "b_E": 1.3, "c_E": -0.11, "E_start": 2.0, "E_max": 250.0}
    x = grid(params=[2e7, 1e8, 6e8], tokens=[2e9, 1e10, 5e10], experts=[1, 2, 8, 32, 256])
    table = {**x, "loss": law.evaluate(law.theta(truth), **x)}
    found = isoloss.fit(law, table, draws=0, sensitivity=False)
    assert found.result == "identified"
    for name, value in found.values.items():
        assert value == pytest.approx(truth[name], rel=1e-3), name
    in_millions = isoloss.fit(law, {**table, "params": x["params"] / 1e6}, draws=0, sensitivity=False)
    assert in_millions.values["b_E"] == pytest.approx(1.3 - 6 * 0.11, rel=1e-3)
    assert in_millions.values["c_E"] == pytest.approx(-0.11, rel=1e-3)


@pytest.mark.parametrize("base", ["clark", "moe-sparsity"])
def test_experts_are_counted_once(base):
    with pytest.raises(ValueError, match="routed already"):
        laws.get(f"{base} * routed")


# --- Abnar et al. -----------------------------------------------------------------------------------


def test_moe_sparsity_at_the_published_values():
    law = MoeSparsity()
    theta = law.theta("abnar-2025")
    loss = law.evaluate(theta, params=[1e9, 1e10], tokens=2e10, expert_density=[1.0, 0.1])
    np.testing.assert_allclose(loss, [2.5657, 2.3669], atol=5.1e-5)
    # At a density of 1 the two last terms are a constant and a power of the size.
    dense = 0.94 + 16612.5 / 1e9**0.5962 + 5455.67 / 2e10**0.3954 + 0.4598 + 17.26 / 1e9**0.1595
    assert loss[0] == pytest.approx(dense, rel=1e-12)


@pytest.mark.parametrize(
    ("flops", "params", "best"),
    [(1e20, 1e9, 0.87), (1e20, 1e10, 0.98), (1e21, 1e9, 0.62), (1e21, 1e10, 0.94)],
)
def test_best_sparsity_at_fixed_compute(flops, params, best):
    law = MoeSparsity()
    sparsity = np.linspace(0, 0.98, 9801)  # exact search, up to the bound of the law
    tokens = flops / (6 * params * (1 - sparsity))
    loss = law.evaluate(law.theta("abnar-2025"), params=params, tokens=tokens, expert_density=1 - sparsity)
    assert sparsity[np.argmin(loss)] == pytest.approx(best, abs=0.0051)


def test_moe_sparsity_is_recovered():
    law = MoeSparsity()
    truth = law.theta("abnar-2025")
    x = grid(
        params=np.geomspace(1e8, 3e10, 5),
        tokens=np.geomspace(2e9, 2e11, 4),
        expert_density=[1, 0.5, 0.25, 0.1, 0.05],
    )
    found = isoloss.fit(law, {**x, "loss": law.evaluate(truth, **x)}, draws=0, sensitivity=False)
    np.testing.assert_allclose(found.theta, truth, rtol=0.01)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-7)


def test_a_density_above_one_is_no_density():
    law = MoeSparsity()
    theta = law.theta("abnar-2025")
    with pytest.raises(ValueError, match=r"at or below 1.* got .*expert_density 1.01"):
        law.evaluate(theta, params=1e9, tokens=1e10, expert_density=[1.0, 1.01])
    x = grid(params=[1e8, 1e9, 1e10], tokens=[1e9, 1e10, 1e11], expert_density=[1.0, 0.5, 2.0])
    with pytest.raises(ValueError, match=r"expert_density 2 in row 3 \(9 such rows\)"):
        isoloss.fit(law, {**x, "loss": np.linspace(3, 2, 27)}, draws=0, sensitivity=False)


@pytest.mark.parametrize(
    ("spec", "column", "bad"),
    [
        ("routed", "experts", 0.9),
        ("parscale", "streams", 0.5),
        ("trainable-params", "params_trainable", 1.1e9),
    ],
)
def test_columns_that_mean_nothing_are_refused_in_a_composed_law(spec, column, bad):
    law = laws.get(f"kaplan-n * {spec}")
    theta = [8.8e13, 0.076, *(0.5 for _ in law.names[2:])]
    with pytest.raises(ValueError, match=f"{column} (at or|not) above.*{column} {re.escape(f'{bad:g}')}"):
        law.evaluate(
            theta, params_nonembedding=1e9, **{column: [1e9 if column == "params_trainable" else 1, bad]}
        )
    rows = {"params_nonembedding": np.full(9, 1e9), column: np.full(9, bad), "loss": np.linspace(3, 2, 9)}
    with pytest.raises(ValueError, match=r"\(9 such rows\)"):
        isoloss.fit(law, rows, draws=0, sensitivity=False)


# --- Chen et al. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corpus", "name", "values", "r2"),
    [
        ("Stack-V2 Python", "stack-v2-python-2025", (0.691, 1.131e7, 0.189, 0.393), 0.998),
        ("the Pile", "pile-2025", (1.2886, 1.975e8, 0.196, 0.334), 0.9987),
    ],
    ids=["code", "pile"],
)
def test_parscale_on_the_public_grid(corpus, name, values, r2):
    table, loss = streams(corpus), LOSSES[corpus]
    found = isoloss.fit("henighan * parscale", table, draws=300, sensitivity=False)
    np.testing.assert_allclose(found.theta, values, rtol=3e-3)
    predicted = found.law.evaluate(found.theta, params_nonembedding=SIZES, streams=STREAMS)
    gap = predicted - loss
    assert np.max(np.abs(gap / loss)) == pytest.approx(0.006, abs=5e-4)
    assert 1 - np.sum(gap**2) / np.sum((loss - loss.mean()) ** 2) == pytest.approx(r2, abs=3e-4)
    estimate = found.parameters["k"]
    assert estimate.low < Parscale().published[name].values["k"] < estimate.high
    # The derived form with one correlation fits worse, as the paper says.
    theory = isoloss.fit("henighan * parscale-theory", table, draws=0, sensitivity=False)
    assert np.mean(theory.residuals**2) > 1.5 * np.mean(found.residuals**2)
    assert 0.85 < theory.values["rho"] < 0.95


def test_the_authors_calculator():
    """Their page on the fit to code: 2.8e9 parameters and 4 streams; the sizes of equal loss at 1, 2 and 8."""
    found = isoloss.fit("henighan * parscale", streams("Stack-V2 Python"), draws=0, sensitivity=False)
    at = found.law.evaluate(found.theta, params_nonembedding=2.8e9, streams=4)
    assert at == pytest.approx(1.01548, abs=5e-6)
    factor = Parscale().value(found.values, {"streams": np.array([1.0, 2.0, 4.0, 8.0])})
    np.testing.assert_allclose(2.8 * factor[2] / factor, [4.33, 3.4, 2.8, 2.38], atol=5.1e-3)


@pytest.mark.parametrize("kind", [Parscale, ParscaleTheory])
def test_one_stream_is_the_identity_and_less_says_nothing(kind):
    part, own = kind(), {"k": 0.4, "rho": 0.7, "alpha": 0.3}
    assert part.value(own, {"streams": np.array(1.0)}) == 1
    assert np.isnan(part.value(own, {"streams": np.array(0.5)}))
    many = part.value(own, {"streams": np.arange(1.0, 100.0)})
    assert (np.diff(many) > 0).all()


def test_the_derived_factor_is_the_mean_of_correlated_errors():
    alpha, place = 0.25, 1e8
    law = laws.get("henighan * parscale-theory")
    for rho in (0.0, 0.3, 1.0):
        for count in (1, 2, 5):
            covariance = np.full((count, count), rho) + (1 - rho) * np.eye(count)
            share = covariance.sum() / count**2  # the second moment of the mean, that of one being 1
            got = law.evaluate([2.0, place, alpha, rho], params_nonembedding=1e9, streams=count)
            assert got == pytest.approx(2 + share * (place / 1e9) ** alpha, rel=1e-12)
    with pytest.raises(ValueError, match="reads alpha"):
        laws.get("power(params) * parscale-theory")


@pytest.mark.parametrize("spec", ["hoffmann * parscale", "hoffmann * parscale-theory"])
def test_streams_are_recovered_beside_hoffmann(spec):
    law = laws.get(spec)
    x = grid(params=[3e7, 2e8, 1e9], tokens=[2e9, 1e10, 5e10], streams=[1, 2, 4, 8])
    truth = law.theta({**BASE, law.names[-1]: 0.6})
    found = isoloss.fit(law, {**x, "loss": law.evaluate(truth, **x)}, draws=0, sensitivity=False)
    np.testing.assert_allclose(found.theta, truth, rtol=1e-4)


# --- Chatelain et al. -------------------------------------------------------------------------------


def frozen_runs(w, noise=0.004, seed=5):
    """Sizes and frozen shares 0 to 0.9, log-normal noise."""
    x = grid(params=np.geomspace(1e7, 3e9, 6), share=[1.0, 0.5, 0.25, 0.1])
    x["params_trainable"] = x["params"] * x.pop("share")
    loss = 30 * (x["params_trainable"] ** w * x["params"] ** (1 - w)) ** -0.12
    return {**x, "loss": loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(loss)))}


def test_trainable_and_total_are_the_ends():
    part = TrainableParams()
    x = {"params": np.array([1e9, 1e9]), "params_trainable": np.array([1e9, 2e8])}
    np.testing.assert_allclose(part.value({"w": 1.0}, x), [1, 0.2], rtol=1e-14)
    assert part.value({"w": 0.0}, x).tolist() == [1, 1]
    assert part.value({"w": 0.37}, x)[0] == 1
    law = laws.get("kaplan-n * trainable-params")
    theta = [*law.base.theta("kaplan-2020"), 1.0]
    few = law.base.evaluate(theta[:2], params_nonembedding=2e8)
    assert law.evaluate(theta, params_nonembedding=1e9, params_trainable=2e8) == pytest.approx(few, rel=1e-13)
    assert np.isnan(part.value({"w": 1.0}, {**x, "params_trainable": np.array([1.1e9, 2e9])})).all()


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_the_interval_of_w_decides_the_claim(w):
    runs = frozen_runs(w)
    found = isoloss.fit(
        "power(params) * trainable-params", runs, objective=LeastSquares(), draws=400, sensitivity=False
    )
    # Two regressors, by numpy: log L = const - alpha w log N_trainable - alpha (1 - w) log N.
    columns = [np.ones(len(runs["loss"])), np.log(runs["params_trainable"]), np.log(runs["params"])]
    design = np.stack(columns, axis=1)
    slopes, rest, *_ = np.linalg.lstsq(design, np.log(runs["loss"]), rcond=None)
    _, alpha, share = found.theta
    assert -alpha * share == pytest.approx(slopes[1], abs=1e-7)
    assert -alpha * (1 - share) == pytest.approx(slopes[2], abs=1e-7)
    estimate = found.parameters["w"]
    assert estimate.low < w < estimate.high
    assert not estimate.low < 1 - w < estimate.high
    # The interval is as wide as least squares says: the delta method on the two slopes.
    covariance = np.linalg.inv(design.T @ design) * rest[0] / (len(design) - 3)
    slope = np.array([(1 - share), -share]) / -alpha
    error = math.sqrt(slope @ covariance[1:, 1:] @ slope)
    assert (estimate.high - estimate.low) / (2 * 1.72 * error) == pytest.approx(1, abs=0.2)


def test_w_is_recovered_beside_hoffmann():
    law = laws.get("hoffmann * trainable-params")
    x = grid(params=[3e7, 2e8, 1e9], tokens=[2e9, 1e10, 5e10], share=[1.0, 0.5, 0.1])
    x["params_trainable"] = x["params"] * x.pop("share")
    truth = law.theta({**BASE, "w": 0.8})
    found = isoloss.fit(law, {**x, "loss": law.evaluate(truth, **x)}, draws=0, sensitivity=False)
    np.testing.assert_allclose(found.theta, truth, rtol=1e-4)
    held = isoloss.Constraints(borrow={"w": "chatelain-2021"})
    one = isoloss.fit(
        law, {**x, "loss": law.evaluate(truth, **x)}, constraints=held, draws=0, sensitivity=False
    )
    assert one.values["w"] == 1
    assert one.value > found.value

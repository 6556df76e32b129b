"""Laws of batch size, noise, learning rate and steps: published numbers, closed forms, planted parameters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

import isoloss
from isoloss.laws import get

STEPS = "laws/critical_batch_size/steps_to_target.csv"
# The table's README: 20 % overhead over linear scaling from 256 sequences, in sequences of 512 tokens.
CRITICAL = {"85M": 745.3, "151M": 955.2, "302M": 1393.7, "604M": 1888.5, "1.2B": 2533.4}
PROCEDURE = {"overhead": 0.2, "reference": 256.0}


def planted(law, theta, x, noise, seed=0):
    rng = np.random.default_rng(seed)
    y = law.evaluate(theta, **x)
    return {**x, law.target: y * np.exp(noise * rng.normal(size=y.shape))}


# --- critical batch ---------------------------------------------------------------------------------


def test_the_published_critical_batches_come_out_of_the_published_steps(table):
    rows = table(STEPS)
    law = get("critical-batch(batch_sequences)")
    found, sizes = [], []
    for model, printed in CRITICAL.items():
        mine = [row for row in rows if row["model"] == model]
        runs = {
            "batch_sequences": [float(row["batch_sequences"]) for row in mine],
            "steps": [float(row["steps_to_target"]) for row in mine],
        }
        fit = isoloss.fit(law, runs, draws=0, sensitivity=False)
        found.append(float(law.critical_batch(fit.theta, **PROCEDURE)))
        sizes.append(float(mine[0]["params"]))
        assert found[-1] == pytest.approx(printed, abs=0.05)
    growth = isoloss.fit(
        "critical-batch-growth", {"params": sizes, "critical_batch": found}, draws=0, sensitivity=False
    )
    assert growth.values["c"] == pytest.approx(0.46828, abs=5e-6)
    assert growth.values["b"] * 1e6**0.46828 == pytest.approx(93.197, abs=0.01)


def test_published_growth_is_in_tokens_and_raw_counts():
    law = get("critical-batch-growth")
    at = {"params": [151e6, 1200e6]}
    sequences = law.evaluate(law.theta("zhang-2024-chinchilla"), **at) / 512
    assert sequences == pytest.approx([93.20 * 151**0.47, 93.20 * 1200**0.47])
    assert sequences == pytest.approx([985, 2610], abs=0.5)
    fixed = law.evaluate(law.theta("zhang-2024-fixed-tokens"), params=302e6) / 512
    assert float(fixed) == pytest.approx(621.341 * 302**0.087)


def test_the_critical_batch_is_the_largest_within_the_overhead():
    law = get("critical-batch")
    theta = np.array([800.0, 4e8])
    batch = np.geomspace(1e3, 1e7, 400_001)
    for overhead, reference in [(0.2, 0.0), (1.0, 0.0), (0.2, 5e4), (0.05, 2e3)]:
        steps = law.evaluate(theta, batch_tokens=batch)
        perfect = 4e8 if not reference else reference * (800.0 + 4e8 / reference)  # B f*(B)
        within = batch[steps * batch <= (1 + overhead) * perfect]
        got = float(law.critical_batch(theta, overhead, reference))
        assert got == pytest.approx(within.max(), rel=1e-4)
    several = law.critical_batch(np.array([[theta, 2 * theta], [theta, theta]]))
    assert several.shape == (2, 2)
    for bad in [{"overhead": 0.0}, {"overhead": float("nan")}, {"reference": -1.0}]:
        with pytest.raises(ValueError, match="overhead"):
            law.critical_batch(theta, **bad)


def test_steps_and_examples_are_one_hyperbola():
    law, other = get("steps-examples"), get("critical-batch")
    theta = np.array([700.0, 3e5])
    batch = np.geomspace(1e3, 1e8, 50)
    steps = law.evaluate(theta, batch_tokens=batch)
    examples = steps * batch
    assert ((steps / 700 - 1) * (examples / (700 * 3e5) - 1)) == pytest.approx(np.ones(50), rel=1e-9)
    assert other.evaluate([700.0, 700 * 3e5], batch_tokens=batch) == pytest.approx(steps)
    assert float(law.critical_batch(theta)) == 3e5  # overhead 1: twice the examples
    assert law.critical_batch(theta, 0.2, 100) == pytest.approx(
        float(other.critical_batch([700.0, 700 * 3e5], 0.2, 100))
    )


def test_the_free_exponent_holds_the_hyperbola_and_is_found():
    law, plain = get("critical-batch-free"), get("critical-batch")
    batch = np.geomspace(3e4, 8e6, 9)
    assert law.evaluate([900.0, 2e9, 1.0], batch_tokens=batch) == pytest.approx(
        plain.evaluate([900.0, 2e9], batch_tokens=batch)
    )
    truth = law.theta({"a": 900.0, "b": 8e9, "alpha": 1.1})
    fit = isoloss.fit(law, planted(law, truth, {"batch_tokens": batch}, 0.0), draws=0, sensitivity=False)
    assert fit.theta == pytest.approx(truth, rel=1e-4)


# --- learning rate against batch and length ---------------------------------------------------------


def test_gradient_noise_has_its_two_ends_and_its_middle():
    law = get("gradient-noise")
    for a in (0.5, 1.0):
        rate = lambda batch, a=a: float(law.evaluate([2e-3, 1e5, a], batch_tokens=batch))  # noqa: E731
        assert rate(1e5) == pytest.approx(2e-3 / 2**a)
        assert rate(1e11) == pytest.approx(2e-3, rel=1e-5)
        assert rate(10.0) == pytest.approx(2e-3 * 1e-4**a, rel=1e-3)


def test_gradient_noise_is_the_best_step_on_a_noisy_quadratic():
    # One SGD step on theta' H theta / 2 with gradient noise Sigma/B: the expected loss is a parabola in the
    # rate, least at |G|^2 / (G'HG + tr(H Sigma)/B).
    rng = np.random.default_rng(1)
    root = rng.normal(size=(6, 6))
    H = root @ root.T + 0.1 * np.eye(6)
    root = rng.normal(size=(6, 6))
    sigma = root @ root.T
    theta = rng.normal(size=6)
    G = H @ theta
    law = get("gradient-noise")
    best = G @ G / (G @ H @ G)
    noise = np.trace(H @ sigma) / (G @ H @ G)
    for batch in (0.3, 3.0, 100.0):
        rates = np.linspace(0, 2 * best, 200_001)
        after = -rates * (G @ G) + 0.5 * rates**2 * (G @ H @ G + np.trace(H @ sigma) / batch)
        got = float(law.evaluate([best, noise, 1.0], batch_tokens=batch))
        assert got == pytest.approx(rates[np.argmin(after)], abs=2 * best / 200_000)


def test_planted_rates_give_the_noise_scale_back():
    law = get("gradient-noise")
    truth = law.theta({"eps_max": 3e-3, "B_noise": 4e5, "a": 0.7})
    x = {"batch_tokens": np.geomspace(1e4, 3e7, 12)}
    exact = isoloss.fit(law, planted(law, truth, x, 0.0), draws=0, sensitivity=False)
    assert exact.theta == pytest.approx(truth, rel=1e-4)
    fit = isoloss.fit(law, planted(law, truth, x, 0.02), draws=300, sensitivity=False, coverage=0.98)
    for name, true in zip(law.names, truth, strict=True):
        assert fit.parameters[name].low < true < fit.parameters[name].high


def test_time_transfer_has_three_regimes():
    law = get("time-transfer")
    for r, q in [(0.0, 1.0), (-0.05, 0.8)]:
        theta = law.theta({"eta_max": 1e-3, "r": r, "c": 1e-4, "q": q})
        batch = 1e5
        turn = (batch / 1e-4) ** (1 / q)  # T with B_crit = B
        assert float(law.critical_batch(theta, turn)) == pytest.approx(batch)
        tokens = turn * np.array([1e-8, 1.0, 1e8])
        value, slopes = law.elasticities(theta, {"batch_tokens": np.full(3, batch), "tokens": tokens})
        # d ln eta / d ln T = r + q/2, r, r - q/2: the square root of T, flat, one over the square root.
        assert slopes["tokens"] / value == pytest.approx([r + q / 2, r, r - q / 2], abs=1e-6)
        assert slopes["batch_tokens"] / value == pytest.approx([-0.5, 0.0, 0.5], abs=1e-6)
        assert value[1] == pytest.approx(1e-3 * turn**r)
        far = 1e-3 * tokens[0] ** r * 2 * np.sqrt(1e-4 * tokens[0] ** q / batch)
        assert value[0] == pytest.approx(far, rel=1e-4)
    assert law.critical_batch(np.array([theta, theta]), [1e9, 1e10, 1e11]).shape == (2, 3)
    with pytest.raises(ValueError, match="tokens"):
        law.critical_batch(theta, 0.0)


def test_the_growth_of_the_critical_batch_is_found_with_its_interval():
    law = get("time-transfer")
    truth = law.theta({"eta_max": 4e-3, "r": -0.03, "c": 1e-4, "q": 0.95})
    batch, tokens = (g.ravel() for g in np.meshgrid(np.geomspace(3e4, 3e6, 5), np.geomspace(3e8, 1e10, 5)))
    x = {"batch_tokens": batch, "tokens": tokens}
    exact = isoloss.fit(law, planted(law, truth, x, 0.0), draws=0, sensitivity=False)
    assert exact.theta == pytest.approx(truth, rel=1e-3)
    fit = isoloss.fit(law, planted(law, truth, x, 0.05), draws=300, sensitivity=False, coverage=0.98)
    q = fit.parameters["q"]
    assert 0 < q.low < 0.95 < q.high < 2


# --- logits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "c"), [(0.6, 0.05), (0.6, -0.01), (0.6, 0.0), (-0.3, 0.05), (0.0, 0.05), (0.5, 1e-12)]
)
def test_the_crossing_is_where_the_curve_rises_through_the_limit(b, c):
    law = get("logit-growth")
    theta = [50.0, b, c]
    size = float(law.crossing(theta))
    assert float(law.evaluate(theta, params=size)) == pytest.approx(1e4, rel=1e-9)
    assert float(law.evaluate(theta, params=1.01 * size)) > 1e4
    assert float(law.evaluate(theta, params=0.99 * size)) < 1e4
    rising = np.geomspace(size / 30, size, 1000)[:-1]
    assert (law.evaluate(theta, params=rising) < 1e4).all()


def test_a_curve_that_never_rises_so_far_has_no_crossing():
    law = get("logit-growth")
    flat, falling, hill, valley, above = (
        [50.0, 0.0, 0.0], [50.0, -0.2, 0.0], [50.0, 0.1, -0.1], [1e6, 0.1, 1.0], [1e5, 0.0, 0.0]
    )  # fmt: skip
    assert law.crossing([flat, falling, hill]).tolist() == [np.inf] * 3
    assert law.crossing([valley, above]).tolist() == [0.0, 0.0]
    assert float(law.crossing([50.0, 1e-4, 0.0])) == np.inf  # beyond every number
    with pytest.raises(ValueError, match="limit"):
        law.crossing(flat, limit=0.0)


# --- steps and whole curves -------------------------------------------------------------------------


def test_kaplan_s_check_values():
    steps, batch = get("kaplan-ns"), get("kaplan-bcrit")
    at = {"params_nonembedding": 1e8, "steps_min": 1e4}
    assert float(steps.evaluate(steps.theta("kaplan-2020"), **at)) == pytest.approx(3.1082, abs=5e-5)
    assert float(batch.evaluate(batch.theta("kaplan-2020"), loss=3.0)) == pytest.approx(1.069e6, rel=5e-4)


def test_the_fixed_point_is_brentq_s():
    law = get("su-unraveling")
    rng = np.random.default_rng(2)
    for _ in range(200):
        theta = law.theta("kaplan-2020") * np.exp(rng.normal(0, [2, 2, 2, 0.3, 0.3, 0.5]))
        n, b, s = np.exp(rng.uniform(np.log([1e3, 1e2, 1.0]), np.log([1e12, 1e10, 1e8])))
        n_c, s_c, star, alpha_n, alpha_s, alpha_b = theta
        size = (n_c / n) ** alpha_n

        def gap(log_loss, size=size, b=b, s=s, theta=theta):
            _, s_c, star, _, alpha_s, alpha_b = theta
            noise = np.exp(np.logaddexp(0.0, np.log(star / b) - log_loss / alpha_b))
            return log_loss - np.log(size + (s_c * noise / s) ** alpha_s)

        low, high = np.log(size) - 1, np.log(size + (s_c / s) ** alpha_s) + 1
        while gap(high) < 0:
            high += 5
        want = brentq(gap, low, high, xtol=1e-13, rtol=1e-13)
        got = float(law.evaluate(theta, params_nonembedding=n, batch_tokens=b, step=s))
        assert np.log(got) == pytest.approx(want, abs=1e-10)
        # and it is kaplan-ns at the steps that its own loss gives
        inner = get("kaplan-ns")
        crit = get("kaplan-bcrit").evaluate([star, alpha_b], loss=got)
        again = inner.evaluate(
            [n_c, s_c, alpha_n, alpha_s], params_nonembedding=n, steps_min=s / (1 + float(crit) / b)
        )
        assert got == pytest.approx(float(again), rel=1e-8)


def test_a_batch_without_end_leaves_kaplan_s_law_of_steps():
    law, inner = get("su-unraveling"), get("kaplan-ns")
    at = {"params_nonembedding": 1e8, "step": np.geomspace(1e2, 1e6, 5)}
    big = law.evaluate(law.theta("kaplan-2020"), **at, batch_tokens=1e18)
    limit = inner.evaluate(inner.theta("kaplan-2020"), params_nonembedding=1e8, steps_min=at["step"])
    assert big == pytest.approx(limit, rel=1e-6)


def test_auto_leaves_the_rules_for_other_targets_out():
    rng = np.random.default_rng(0)
    n, d = np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e8, 1e10, 5))
    loss = (1.8 + 480 * n**-0.35 + 2000 * d**-0.37) * np.exp(0.002 * rng.normal(size=n.shape))
    from isoloss.comparing.candidates import named

    runs = isoloss.read(
        {
            "params": n.ravel(), "params_nonembedding": 0.9 * n.ravel(), "tokens": d.ravel(),
            "batch_tokens": np.tile([1e5, 2e5, 4e5, 8e5, 1.6e6], 5), "steps": d.ravel() / 1e5,
            "lr": np.full(25, 1e-3), "loss": loss.ravel(),
        }
    )  # fmt: skip
    _, added, left = named("auto", runs)
    mine = {
        "critical-batch", "critical-batch-free", "critical-batch-growth", "gradient-noise", "kaplan-bcrit",
        "kaplan-ns", "logit-growth", "steps-examples", "su-unraveling", "time-transfer",
    }  # fmt: skip
    assert not mine & {law.slug for law in added}
    assert mine <= {spec.partition("(")[0] for spec in left}

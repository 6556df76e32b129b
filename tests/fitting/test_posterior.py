"""The posterior against closed forms, and the other ways to joint draws against theirs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import isoloss
from isoloss.fitting.objective import Gaussian, Huber, LeastSquares, StudentT

TOKENS = np.geomspace(1e6, 1e9, 8)


def straight(seed=0, sd=0.02, tokens=TOKENS):
    rng = np.random.default_rng(seed)
    return {"tokens": tokens, "loss": 50 * tokens**-0.3 * np.exp(sd * rng.normal(size=len(tokens)))}


def line(table):
    """Textbook regression of log loss on -log tokens: (estimates, residual sd, inverse information)."""
    design = np.column_stack([np.ones(len(table["tokens"])), -np.log(table["tokens"])])
    y = np.log(table["loss"])
    estimate = np.linalg.lstsq(design, y, rcond=None)[0]
    r = y - design @ estimate
    return estimate, np.sqrt(r @ r / (len(y) - 2)), np.linalg.inv(design.T @ design), design, r


def fitted(table, objective, how, draws=4000, **more):
    return isoloss.fit(
        "power", table, objective=objective, uncertainty=how, draws=draws, sensitivity=False, **more
    )


def far_from(draws, distribution, effective):
    """Largest gap between the draws' distribution and the true one, in units of the sampling error."""
    u = np.sort(distribution.cdf(draws))
    gap = np.max(np.abs(u - (np.arange(len(u)) + 0.5) / len(u)))
    return gap * np.sqrt(effective)


@pytest.mark.parametrize("objective", [LeastSquares(), Gaussian(), Huber(delta=100.0), StudentT(df=1e8)])
def test_a_straight_line_with_normal_noise_gives_student_t(objective):
    """With Jeffreys' prior the posterior of the slope is t with n - p degrees of freedom, exactly."""
    table = straight()
    estimate, sd, inverse, _, _ = line(table)
    found = fitted(table, objective, "posterior")
    slope = found.draws[:, found.law.names.index("c")]
    truth = stats.t(6, loc=estimate[1], scale=sd * np.sqrt(inverse[1, 1]))
    # 4000 kept of 120 walkers whose memory is some tens of steps: several hundred independent draws
    assert far_from(slope, truth, 400) < 1.63  # Kolmogorov's 1 % point
    scale = stats.chi2(6).cdf(6 * sd**2 / found.scales**2)
    assert far_from(scale, stats.uniform(), 400) < 1.63


def test_a_new_run_has_the_textbook_prediction_interval():
    table = straight(3)
    estimate, sd, inverse, _, _ = line(table)
    found = fitted(table, LeastSquares(), "posterior")
    at = np.array([1.0, -np.log(1e11)])
    centre, wide = at @ estimate, sd * np.sqrt(1 + at @ inverse @ at)
    draws = np.log(found.predict(of="run", tokens=1e11).draws[:, 0])
    assert far_from(draws, stats.t(6, loc=centre, scale=wide), 400) < 1.63


def test_draws_of_a_small_delta_scatter_as_the_estimate_does():
    """The widened posterior of a Huber fit against the spread of its estimates over fresh tables."""
    tokens = np.geomspace(1e6, 1e9, 30)
    estimates, inside = [], []
    for seed in range(60):
        table = straight(seed, tokens=tokens)
        found = fitted(
            table, Huber(delta=1e-4), "posterior" if seed < 10 else "bootstrap", draws=300 if seed < 10 else 2
        )
        estimates.append(found.values["c"])
        if seed < 10:  # they differ by far less than 60 estimates tell of their spread
            inside.append(found.parameters["c"].stderr)
    spread = np.std(estimates, ddof=1)
    assert np.mean(inside) == pytest.approx(spread, rel=0.3)


def test_the_same_seed_and_any_order_of_the_rows_give_the_same_draws():
    table = straight(5)
    turned = {name: values[::-1] for name, values in table.items()}
    a, b = (fitted(t, StudentT(), "posterior", draws=50) for t in (table, turned))
    assert np.array_equal(a.draws, b.draws)
    assert np.array_equal(a.scales, b.scales)
    other = fitted(table, StudentT(), "posterior", draws=50, seed=1)
    assert not np.array_equal(a.draws, other.draws)


def test_a_strong_prior_is_the_posterior_of_its_parameter():
    held = isoloss.Constraints(priors={"c": (0.5, 1e-4)})
    found = fitted(straight(6, sd=0.3), LeastSquares(), "posterior", constraints=held)
    slope = found.draws[:, found.law.names.index("c")]
    assert np.mean(slope) == pytest.approx(0.5, abs=5e-5)
    assert np.std(slope) == pytest.approx(1e-4, rel=0.15)


def test_auto_takes_the_posterior_for_few_rows_alone():
    table = straight()
    assert fitted(table, None, "auto", draws=20).uncertainty == "posterior"
    assert (
        fitted(straight(tokens=np.geomspace(1e6, 1e9, 60)), None, "auto", draws=20).uncertainty == "bootstrap"
    )
    grouped = {**table, "seed": [1, 1, 2, 2, 3, 3, 4, 4]}
    assert fitted(grouped, None, "auto", draws=20, cluster="seed").uncertainty == "bootstrap by seed"
    exact = {"tokens": TOKENS, "loss": 50 * TOKENS**-0.3}
    assert fitted(exact, None, "auto", draws=20).uncertainty == "bootstrap"


def test_clusters_have_no_posterior():
    grouped = {**straight(), "seed": [1, 1, 2, 2, 3, 3, 4, 4]}
    with pytest.raises(ValueError, match="needs rows with noise of their own"):
        fitted(grouped, None, "posterior", cluster="seed")


def test_the_residual_bootstrap_of_a_line_has_the_textbook_variance():
    table = straight(8, tokens=np.geomspace(1e6, 1e9, 12))
    _, _, inverse, design, r = line(table)
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    pool = r / np.sqrt(1 - leverage)
    pool = pool - pool.mean()
    sd = np.sqrt(np.mean(pool**2) * inverse[1, 1])
    found = fitted(table, LeastSquares(), "residual", draws=6000)
    assert found.parameters["c"].stderr == pytest.approx(sd, rel=4 / np.sqrt(2 * 6000))


@pytest.mark.parametrize("n", [8, 20], ids=["six values", "two signs"])
def test_the_wild_bootstrap_of_a_line_is_the_hc3_sandwich(n):
    tokens = np.geomspace(1e6, 1e9, n)
    table = straight(9, tokens=tokens)
    _, _, inverse, design, r = line(table)
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    moved = r / (1 - leverage)
    meat = (design * (moved**2)[:, None]).T @ design
    sd = np.sqrt((inverse @ meat @ inverse)[1, 1])
    found = fitted(table, LeastSquares(), "wild", draws=6000)
    assert found.parameters["c"].stderr == pytest.approx(sd, rel=5 / np.sqrt(2 * 6000))


def test_wild_clusters_move_together():
    """Copies of one run: the sandwich sums a cluster's scores before it squares them."""
    tokens = np.repeat(np.geomspace(1e6, 1e9, 15), 3)
    rng = np.random.default_rng(1)
    shared = np.repeat(0.02 * rng.normal(size=15), 3)
    table = {"tokens": tokens, "loss": 50 * tokens**-0.3 * np.exp(shared), "run": np.repeat(np.arange(15), 3)}
    _, _, inverse, design, r = line(table)
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    scores = (design * (r / (1 - leverage))[:, None]).reshape(15, 3, 2).sum(axis=1)
    sd = np.sqrt((inverse @ scores.T @ scores @ inverse)[1, 1])
    found = fitted(table, LeastSquares(), "wild", draws=6000, cluster="run")
    assert found.parameters["c"].stderr == pytest.approx(sd, rel=5 / np.sqrt(2 * 6000))


def test_the_profile_of_a_line_is_the_exact_interval():
    table = straight(4)
    estimate, sd, inverse, _, _ = line(table)
    found = fitted(table, LeastSquares(), "laplace", draws=50)
    ends = isoloss.profile(found, "c", coverage=0.95)
    half = stats.t(6).ppf(0.975) * sd * np.sqrt(inverse[1, 1])
    assert ends.low == pytest.approx(estimate[1] - half, abs=1e-3 * half)
    assert ends.high == pytest.approx(estimate[1] + half, abs=1e-3 * half)
    assert ends.bounded == (True, True)


def test_the_profile_of_a_floor_the_rows_do_not_see_says_so():
    found = isoloss.fit(
        "hestness", straight(2, sd=0.05), objective=LeastSquares(), draws=0, sensitivity=False
    )
    ends = isoloss.profile(found, "gamma")
    assert ends.bounded == (False, True)


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [("zeta", {}, "no parameter"), ("c", {"fix": {"c": 0.3}}, "not fitted by itself")],
)
def test_what_cannot_be_profiled(name, held, message):
    found = fitted(straight(), LeastSquares(), "laplace", draws=2, constraints=isoloss.Constraints(**held))
    with pytest.raises(ValueError, match=message):
        isoloss.profile(found, name)


def test_a_law_through_every_row_has_no_profile():
    exact = {"tokens": TOKENS, "loss": 50 * TOKENS**-0.3}
    with pytest.raises(isoloss.NoAnswer, match="no noise"):
        isoloss.profile(fitted(exact, LeastSquares(), "laplace", draws=2), "c")


def test_scales_survive_the_file(tmp_path):
    found = fitted(straight(), StudentT(), "posterior", draws=30)
    found.save(tmp_path / "fit.json")
    again = isoloss.load(tmp_path / "fit.json")
    assert np.array_equal(again.scales, found.scales)
    at = {"tokens": 1e10}
    assert np.array_equal(again.predict(of="run", **at).draws, found.predict(of="run", **at).draws)


@pytest.mark.parametrize("sd", [1e-3, 1e-2])
@pytest.mark.parametrize("delta", [1e-4, 1e-3, 1e-2, 1.0])
def test_the_scale_behind_a_huber_temperature_is_the_noise(delta, sd):
    """kappa of many normal residuals must give their standard deviation back."""
    objective = Huber(delta=delta)
    r = sd * stats.norm.ppf((np.arange(20000) + 0.5) / 20000)
    kappa = np.array([objective.temperature(r, np.ones_like(r))])
    widen, scale = objective.spread(kappa)
    assert scale[0] == pytest.approx(sd, rel=5e-3)
    if delta > 5 * sd:
        assert widen == pytest.approx(1.0, abs=0.01)
    if delta < sd / 5:
        assert widen == pytest.approx(np.sqrt(np.pi / 2), rel=0.02)


@pytest.mark.parametrize("objective", [LeastSquares(), StudentT(df=1e8)])
def test_weights_count_as_many_rows_as_they_are_worth(objective):
    """Weights (1, 1/4) in turn on 16 rows: Kish says 11.8 rows, so t with 9.8 degrees of freedom."""
    table = {**straight(3, tokens=np.geomspace(1e6, 1e9, 16)), "w": np.tile([1.0, 0.25], 8)}
    found = fitted(table, objective, "posterior", weights="w")
    w = table["w"] * np.sum(table["w"]) / np.sum(table["w"] ** 2)
    design = np.column_stack([np.ones(16), -np.log(table["tokens"])])
    inverse = np.linalg.inv((design * w[:, None]).T @ design)
    y = np.log(table["loss"])
    estimate = inverse @ design.T @ (w * y)
    r = y - design @ estimate
    freedom = np.sum(w) - 2
    scale = np.sqrt(np.sum(w * r**2) / freedom * inverse[1, 1])
    truth = stats.t(freedom, loc=estimate[1], scale=scale)
    assert far_from(found.draws[:, found.law.names.index("c")], truth, 400) < 1.63


def test_rows_of_weight_0_are_left_out_and_named():
    table = straight(4, tokens=np.geomspace(1e6, 1e9, 12))
    half = {name: values[::2] for name, values in table.items()}
    silent = fitted(
        {**table, "w": np.tile([1.0, 0.0], 6)}, LeastSquares(), "posterior", weights="w", draws=50
    )
    alone = fitted(half, LeastSquares(), "posterior", draws=50)
    assert [entry.code for entry in silent.removed] == ["zero-weight"] * 6
    assert np.array_equal(silent.draws, alone.draws)


@pytest.mark.parametrize("how", ["wild", "residual"])
def test_a_fit_through_single_rows_has_no_residuals_to_deal(how):
    with pytest.raises(ValueError, match="passes through some rows"):
        fitted(straight(), Huber(), how)


def test_one_cluster_is_no_answer():
    with pytest.raises(isoloss.NoAnswer, match="all 8 rows have the same seed"):
        fitted({**straight(), "seed": np.ones(8)}, LeastSquares(), "bootstrap", cluster="seed")


def test_a_bound_on_which_the_estimate_sits_does_not_draw_the_others_out():
    """The draws lie above the bound; stretched about the estimate they would run away from it."""
    rng = np.random.default_rng(0)
    n, d = np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5))
    loss = (1.7 + 480 * n**-0.35 + 2000 * d**-0.37) * np.exp(0.003 * rng.normal(size=n.shape))
    table = {"params": n.ravel(), "tokens": d.ravel(), "loss": loss.ravel()}
    held = isoloss.Constraints(bounds={"E": (1.9, 3.0)})
    found = isoloss.fit("hoffmann", table, constraints=held, sensitivity=False, draws=400)
    assert found.draws[:, 1].max() < 1e6


def test_a_prior_is_no_wider_for_the_objective():
    held = isoloss.Constraints(priors={"c": (0.3, 1e-5)})
    found = fitted(straight(7, sd=0.05), Huber(), "posterior", constraints=held)
    assert found.parameters["c"].stderr == pytest.approx(1e-5, rel=0.15)


@pytest.mark.parametrize("how", ["posterior", "laplace"])
def test_draws_stay_where_a_law_is_defined_at_its_own_rows(how):
    """``1 - exp(n - P/gamma)`` ends at P = n gamma; these rows lie close to it, and noise carries draws across."""
    size, tokens, bits = (
        np.ravel(g) for g in np.meshgrid([1e7, 1e8, 1e9], [2e8, 2e9], [2.0, 3.0, 5.0], indexing="ij")
    )
    level = 1.7 + 400 / (size * (1 - np.exp(0.98 - bits / 2))) ** 0.34 + 900 / tokens**0.3
    loss = level * np.exp(0.1 * np.random.default_rng(5).normal(size=level.size))
    table = {"params": size, "tokens": tokens, "bits_weights": bits, "loss": loss}
    found = isoloss.fit("hoffmann * precision", table, uncertainty=how, draws=500, sensitivity=False)
    gamma, n = (found.draws[:, found.law.names.index(name)] for name in ("gamma_w", "n_w"))
    assert np.all(gamma * n < 2.0)

"""The batched minimiser against SciPy from many starts, on the objective written out in natural parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

import isoloss
from isoloss import laws
from isoloss.fitting.minimise import solve_positive
from tests.oracles.estimate import Curve, gaussian_profile, half_square, huber, multi_start, student_profile
from tests.oracles.formulas import FORMULAS, PLANTED, jitter, points


def planted(slug, *, n=40, noise=0.02, seed=0, outliers=0):
    law = laws.get(slug)
    rng = np.random.default_rng(seed)
    values = jitter(PLANTED[slug], rng, 0.05)
    x = points(law.axes, n, seed + 100)
    y = FORMULAS[slug](values, x) * np.exp(noise * rng.normal(size=n))
    y[:outliers] *= 1.3
    return law, values, x, y


def logs(law):
    return [p.name for p in law.parameters if p.scale == "log"]


def curve_of(fit, **kwargs):
    """The oracle's view of a fit's own rows."""
    law = fit.law
    keys = [n for n in law.names if n not in kwargs.get("held", {}) and n not in kwargs.get("tied", {})]
    return Curve(law.slug, fit.x, fit.y, keys, logs(law), residual=fit.objective.residual, **kwargs)


def loss_of(objective, w):
    """(total, slope) of the profile objective, from residuals."""
    if objective.name == "huber":
        d = objective.delta
        return (lambda r: float(np.sum(w * huber(d)(r)))), (lambda r: w * np.clip(r, -d, d))
    if objective.name == "least-squares":
        return (lambda r: float(np.sum(w * half_square(r)))), (lambda r: w * r)
    if objective.name == "gaussian":
        return (lambda r: gaussian_profile(r, w)), (lambda r: w * r * w.sum() / np.sum(w * r * r))
    df = objective.df

    def slope(r):
        s = student_profile(r, w, df)[1]
        return w * (df + 1) * r / (df * s * s + r * r)

    return (lambda r: student_profile(r, w, df)[0]), slope


# Where noise can push an estimate to the law's own bounds, SciPy gets the same ones (f_1 as a log).
EDGES = {
    "f_1": (np.log(1e-2), np.log(3.0)),
    "alpha_N": (0.005, 2.5),
    "alpha_D": (0.005, 2.5),
    "c_0": (-2.0, 3.0),
}

PROBLEMS = [
    ("power", isoloss.Huber()),
    ("power", isoloss.StudentT()),
    ("hestness", isoloss.Huber(delta=0.02, residual="linear")),
    ("hestness", isoloss.Gaussian()),
    ("henighan", isoloss.Huber()),
    ("hoffmann", isoloss.Huber()),
    ("hoffmann", isoloss.LeastSquares()),
    ("hoffmann", isoloss.LeastSquares(residual="linear")),
    ("hoffmann", isoloss.Gaussian(residual="linear")),
    ("hoffmann", isoloss.StudentT(df=3.0)),
    ("gadre", isoloss.Huber()),
    ("gadre", isoloss.Gaussian()),
    ("gadre-untied", isoloss.LeastSquares()),
    ("kaplan-n", isoloss.Huber()),
    ("kaplan-nd", isoloss.Huber()),
    ("kaplan-nd", isoloss.LeastSquares()),
    ("loss-to-error", isoloss.LeastSquares(residual="linear")),
    ("loss-to-error", isoloss.Huber(residual="linear")),
    ("muennighoff", isoloss.LeastSquares()),
    ("muennighoff", isoloss.Huber()),
    ("broken1", isoloss.LeastSquares()),
    ("broken1", isoloss.Huber()),
]


@pytest.mark.parametrize(("slug", "objective"), PROBLEMS, ids=lambda v: getattr(v, "name", v))
def test_no_worse_than_scipy_from_many_starts(slug, objective):
    seed = len(slug) + len(objective.name)
    law, truth, x, y = planted(slug, seed=seed, outliers=2)
    w = np.random.default_rng(seed).uniform(0.3, 3, len(y)) if seed % 2 else np.ones(len(y))
    found = isoloss.fit(
        law, {**x, law.target: y, "w": w}, objective=objective, weights="w", draws=0, sensitivity=False
    )
    total, slope = loss_of(objective, found.weights)
    curve = curve_of(found)
    box = [EDGES.get(key, (-90, 90)) for key in curve.keys] if slug in ("broken1", "kaplan-nd") else None
    # The value reported is the objective at the parameters reported.
    assert found.value == pytest.approx(total(curve.residuals(curve.to_z(found.values))), rel=1e-9)
    np.testing.assert_allclose(found.residuals, curve.residuals(curve.to_z(found.values)), atol=1e-12)
    best, _ = multi_start(curve, total, slope, truth, starts=4, seed=seed, box=box)
    assert found.value <= best + 1e-9 * abs(best)


def test_least_squares_equals_scipy_least_squares():
    law, truth, x, y = planted("hoffmann", seed=5)
    found = isoloss.fit(law, {**x, "loss": y}, objective=isoloss.LeastSquares(), draws=0, sensitivity=False)
    curve = curve_of(found)
    rng = np.random.default_rng(6)
    best = min(
        (
            optimize.least_squares(
                curve.residuals, curve.to_z(jitter(truth, rng, 0.2)), jac=curve.jacobian,
                method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15,
            )
            for _ in range(5)
        ),
        key=lambda r: r.cost,
    )  # fmt: skip
    assert found.value == pytest.approx(best.cost, rel=1e-10)
    np.testing.assert_allclose(found.theta, law.theta(curve.natural(best.x)), rtol=1e-5)


# --- constraints ------------------------------------------------------------------------------------


def test_an_active_bound():
    law, truth, x, y = planted("hoffmann", seed=7)
    high = truth["alpha"] - 0.05
    found = isoloss.fit(
        law,
        {**x, "loss": y},
        constraints=isoloss.Constraints(bounds={"alpha": (0.05, high)}),
        draws=0,
        sensitivity=False,
    )
    curve = curve_of(found)
    total, slope = loss_of(found.objective, found.weights)
    box = [(0.05, high) if key == "alpha" else (-60, 60) for key in curve.keys]
    best, where = multi_start(curve, total, slope, {**truth, "alpha": high}, starts=4, seed=8, box=box)
    assert where[curve.keys.index("alpha")] == pytest.approx(high)
    assert found.value <= best * (1 + 1e-9)
    assert found.values["alpha"] == pytest.approx(high, rel=1e-12)


def test_two_bounds_at_once_and_the_rest_still_optimal():
    law, truth, x, y = planted("hoffmann", seed=9)
    bounds = {"alpha": (truth["alpha"] + 0.04, 1.0), "beta": (0.05, truth["beta"] - 0.04)}
    found = isoloss.fit(
        law, {**x, "loss": y}, objective=isoloss.LeastSquares(),
        constraints=isoloss.Constraints(bounds=bounds), draws=0, sensitivity=False
    )  # fmt: skip
    curve = curve_of(found)
    total, slope = loss_of(found.objective, found.weights)
    box = [bounds.get(key, (-60, 60)) for key in curve.keys]
    best, _ = multi_start(curve, total, slope, truth, starts=4, seed=10, box=box)
    assert found.value <= best * (1 + 1e-9)


def test_a_fixed_and_a_tied_parameter():
    law, truth, x, y = planted("hoffmann", seed=11)
    held = isoloss.Constraints(fix={"E": truth["E"]}, tie=(("alpha", "beta"),))
    found = isoloss.fit(law, {**x, "loss": y}, constraints=held, draws=50, sensitivity=False)
    assert found.values["E"] == truth["E"]
    assert found.values["alpha"] == found.values["beta"]
    assert (found.draws[:, 0] == truth["E"]).all()
    assert (found.draws[:, 3] == found.draws[:, 4]).all()
    assert found.free == 3
    curve = curve_of(found, held={"E": truth["E"]}, tied={"beta": "alpha"})
    total, slope = loss_of(found.objective, found.weights)
    best, _ = multi_start(curve, total, slope, truth, starts=4, seed=12)
    assert found.value <= best * (1 + 1e-9)


def test_everything_fixed_is_refused_in_words():
    law, truth, x, y = planted("hoffmann", seed=13)
    with pytest.raises(ValueError, match="nothing"):
        isoloss.fit(
            law, {**x, "loss": y}, constraints=isoloss.Constraints(fix=truth), draws=30, sensitivity=False
        )


def test_open_bounds_are_refused_in_words():
    law, _, x, y = planted("hoffmann", seed=14)
    held = isoloss.Constraints(bounds={"alpha": (0.0, float("inf"))})
    with pytest.raises(ValueError, match="finite"):
        isoloss.fit(law, {**x, "loss": y}, constraints=held, draws=0, sensitivity=False)


def test_a_prior_in_a_gaussian_fit_is_the_posterior_mode():
    law, truth, x, y = planted("hoffmann", seed=15, n=30)
    priors = {"alpha": (0.45, 0.02), "E": (1.6, 0.05)}
    found = isoloss.fit(
        law, {**x, "loss": y}, objective=isoloss.Gaussian(),
        constraints=isoloss.Constraints(priors=priors), draws=0, sensitivity=False
    )  # fmt: skip
    curve = curve_of(found)

    def posterior(z):
        p = curve.natural(z)
        penalty = sum(0.5 * ((p[k] - m) / s) ** 2 for k, (m, s) in priors.items())
        return gaussian_profile(curve.residuals(z), found.weights) + penalty

    assert found.value == pytest.approx(posterior(curve.to_z(found.values)), rel=1e-9)
    rng = np.random.default_rng(16)
    for _ in range(3):
        start = curve.to_z(jitter(truth, rng, 0.1))
        better = optimize.minimize(posterior, start, method="BFGS", options={"gtol": 1e-9, "maxiter": 500})
        assert found.value <= better.fun + 1e-9 * abs(better.fun)


def test_a_prior_in_a_straight_line_is_ridge_regression():
    """log y = log b - c log x with c ~ N(m, sd): the textbook closed form, noise variance from the fit."""
    rng = np.random.default_rng(17)
    tokens = np.geomspace(1e8, 1e10, 25)
    y = 30 * tokens**-0.1 * np.exp(0.02 * rng.normal(size=25))
    mean, sd = 0.14, 0.004
    found = isoloss.fit(
        "power", {"tokens": tokens, "loss": y}, objective=isoloss.LeastSquares(),
        constraints=isoloss.Constraints(priors={"c": (mean, sd)}), draws=0, sensitivity=False
    )  # fmt: skip
    design = np.column_stack([np.ones(25), -np.log(tokens)])
    target = np.log(y)
    theta, variance = np.linalg.lstsq(design, target, rcond=None)[0], 0.0
    for _ in range(200):  # noise from the residuals, the residuals from the noise
        variance = float(np.mean((target - design @ theta) ** 2))
        normal = design.T @ design + np.diag([0, variance / sd**2])
        theta = np.linalg.solve(normal, design.T @ target + np.array([0, mean * variance / sd**2]))
    assert found.values["c"] == pytest.approx(theta[1], rel=2e-3)


def test_priors_tend_to_free_and_to_fixed():
    law, _, x, y = planted("hoffmann", seed=18)
    table = {**x, "loss": y}
    for objective in (isoloss.Huber(), isoloss.Gaussian()):
        free = isoloss.fit(law, table, objective=objective, draws=0, sensitivity=False)
        fixed = isoloss.fit(
            law,
            table,
            objective=objective,
            constraints=isoloss.Constraints(fix={"alpha": 0.3}),
            draws=0,
            sensitivity=False,
        )
        loose = isoloss.Constraints(priors={"alpha": (0.3, 1e4)})
        tight = isoloss.Constraints(priors={"alpha": (0.3, 1e-7)})
        got = [
            isoloss.fit(law, table, objective=objective, constraints=held, draws=0, sensitivity=False).theta
            for held in (loose, tight)
        ]
        np.testing.assert_allclose(got[0], free.theta, rtol=1e-3)
        np.testing.assert_allclose(got[1], fixed.theta, rtol=1e-3)


# --- scales -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["log", "linear"])
def test_gaussian_value_is_the_profile_likelihood(residual):
    law, _, x, y = planted("hoffmann", seed=19)
    w = np.random.default_rng(20).uniform(0.5, 2, len(y))
    found = isoloss.fit(
        law,
        {**x, "loss": y, "w": w},
        weights="w",
        objective=isoloss.Gaussian(residual=residual),
        draws=0,
        sensitivity=False,
    )
    assert found.value == pytest.approx(gaussian_profile(found.residuals, found.weights), rel=1e-10)
    squares = isoloss.fit(
        law,
        {**x, "loss": y, "w": w},
        weights="w",
        objective=isoloss.LeastSquares(residual=residual),
        draws=0,
        sensitivity=False,
    )
    np.testing.assert_allclose(found.theta, squares.theta, rtol=1e-5)  # the same estimate, with a scale


@pytest.mark.parametrize("df", [1.5, 4.0, 30.0])
def test_student_scale_against_scipy_stats(df):
    law, _, x, y = planted("hoffmann", seed=21, n=80, outliers=5)
    found = isoloss.fit(law, {**x, "loss": y}, objective=isoloss.StudentT(df=df), draws=0, sensitivity=False)
    value, scale = student_profile(found.residuals, found.weights, df)
    assert found.value == pytest.approx(value, rel=1e-9)
    # scipy.stats.t with df and location held: the same scale.
    _, _, fitted = stats.t.fit(found.residuals, fdf=df, floc=0.0)
    assert scale == pytest.approx(fitted, rel=1e-3)
    # And the full log likelihood differs from the value by a constant of df alone.
    likelihood = stats.t.logpdf(found.residuals, df, scale=scale).sum()
    constant = 80 * stats.t.logpdf(0.0, df)
    assert -likelihood == pytest.approx(found.value - constant, rel=1e-9)


def test_known_standard_deviations_weigh_the_rows():
    law, _, x, y = planted("hoffmann", seed=22)
    sd = np.random.default_rng(23).uniform(0.01, 0.2, len(y))
    found = isoloss.fit(
        law,
        {**x, "loss": y, "loss_sd": sd},
        objective=isoloss.Gaussian(residual="linear"),
        draws=0,
        sensitivity=False,
    )
    by_hand = isoloss.fit(
        law,
        {**x, "loss": y, "w": sd**-2.0},
        weights="w",
        objective=isoloss.Gaussian(residual="linear"),
        draws=0,
        sensitivity=False,
    )
    # The same minimum, found with sums in another order: the objective is flat to its rounding there.
    np.testing.assert_allclose(found.theta, by_hand.theta, rtol=1e-6)


# --- noiseless recovery -----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [isoloss.LeastSquares(), isoloss.Huber()], ids=lambda o: o.name)
@pytest.mark.parametrize("slug", list(laws.LAWS))
def test_planted_parameters_come_back(slug, objective):
    law = laws.get(slug)
    x = points(law.axes, 80, seed=24)
    y = FORMULAS[slug](PLANTED[slug], x)
    if slug in ("broken2", "m4"):  # curved valleys: a Huber loss that is not all corners
        objective = isoloss.LeastSquares() if objective.name == "least-squares" else isoloss.Huber(delta=0.05)
    if law.signed:
        objective = replace(objective, residual="linear")
    found = isoloss.fit(law, {**x, law.target: y}, objective=objective, draws=0, sensitivity=False)
    np.testing.assert_allclose(law.evaluate(found.theta, **x), y, rtol=1e-6)
    np.testing.assert_allclose(found.theta, law.theta(PLANTED[slug]), rtol=1e-3)
    assert found.result == "identified"


def test_two_breaks_are_reported_in_order():
    """The formula is the same with the breaks exchanged: unordered, their draws are a mixture of two places."""
    x = points(("tokens",), 60, seed=31)
    rng = np.random.default_rng(32)
    y = FORMULAS["broken2"](PLANTED["broken2"], x) * np.exp(0.002 * rng.normal(size=60))
    found = isoloss.fit(
        "broken2", {**x, "loss": y}, objective=isoloss.LeastSquares(), draws=20, starts=32, sensitivity=False
    )
    first, second = (found.law.names.index(name) for name in ("d_1", "d_2"))
    assert found.theta[first] < found.theta[second]
    assert (found.draws[:, first] <= found.draws[:, second]).all()


# --- bootstrap replicates ---------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [isoloss.Huber(), isoloss.LeastSquares()], ids=lambda o: o.name)
@pytest.mark.parametrize("slug", ["hoffmann", "gadre", "kaplan-nd"])
def test_every_replicate_is_at_its_own_minimum(slug, objective):
    law, truth, x, y = planted(slug, seed=25, n=60)
    draws = 100
    found = isoloss.fit(
        law, {**x, law.target: y}, objective=objective, draws=draws, seed=3, sensitivity=False
    )
    n = len(found.y)
    drawn = np.random.default_rng(3).integers(0, n, size=(draws, n))
    picks = np.stack([np.bincount(row, minlength=n) for row in drawn])
    curve = curve_of(found)
    box = [EDGES.get(key, (-90, 90)) for key in curve.keys]
    ratios = []
    for k in range(draws):
        total, slope = loss_of(objective, picks[k].astype(float))
        z = curve.to_z(dict(zip(law.names, found.draws[k], strict=True)))
        ours = total(curve.residuals(z))
        polished = optimize.minimize(
            lambda v, t=total: t(curve.residuals(v)), z, method="L-BFGS-B",
            jac=lambda v, s=slope: s(curve.residuals(v)) @ curve.jacobian(v), bounds=box,
            options={"maxiter": 60, "ftol": 1e-15, "gtol": 1e-14},
        ).fun  # fmt: skip
        ratios.append(ours / polished)
    assert max(ratios) <= 1 + 1e-6
    for k in range(3):
        total, slope = loss_of(objective, picks[k].astype(float))
        z = curve.to_z(dict(zip(law.names, found.draws[k], strict=True)))
        best, _ = multi_start(curve, total, slope, truth, starts=4, seed=k, box=box)
        assert total(curve.residuals(z)) <= best * (1 + 1e-6)


# --- the linear algebra -----------------------------------------------------------------------------


def test_solve_positive_solves_positive_systems():
    rng = np.random.default_rng(26)
    for p in (1, 2, 5, 9):
        root = rng.normal(size=(20, p, p))
        h = root @ root.transpose(0, 2, 1) + 0.5 * np.eye(p)
        g = rng.normal(size=(20, p))
        damping = rng.uniform(0, 0.1, 20)
        want = np.linalg.solve(h + damping[:, None, None] * np.eye(p), g[:, :, None])[:, :, 0]
        np.testing.assert_allclose(solve_positive(h, g, damping), want, rtol=1e-9, atol=1e-12)


def test_solve_positive_descends_on_indefinite_systems():
    rng = np.random.default_rng(27)
    h = rng.normal(size=(200, 4, 4))
    h = h + h.transpose(0, 2, 1)
    g = rng.normal(size=(200, 4))
    step = solve_positive(h, g, np.full(200, 1e-6))
    assert (np.einsum("bp,bp->b", g, step) > 0).all()

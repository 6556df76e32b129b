"""Every law of the registry: its formula, derivatives, documentation, published constants."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pytest

import isoloss
from isoloss import laws
from isoloss.fitting.model import DualModel, PowerSumModel, model_of
from isoloss.laws.law import UNITS
from isoloss.laws.power_sum import PowerSum
from tests.oracles.formulas import (
    FORMULAS,
    PLANTED,
    axis_elasticities,
    jitter,
    points,
    theta_slopes,
)

SLUGS = list(laws.LAWS)
FOLDER = Path(laws.__file__).parent
MACHINERY = {"__init__", "dual", "law", "own", "power_sum"}

each_law = pytest.mark.parametrize("slug", SLUGS)


def phi_of(law, values):
    """The coordinates a law is fitted in: logs of positive parameters."""
    return np.array(
        [math.log(values[p.name]) if p.scale == "log" else values[p.name] for p in law.parameters]
    )


# --- the registry -----------------------------------------------------------------------------------


def test_the_oracles_cover_the_registry():
    assert set(FORMULAS) == set(PLANTED) == set(SLUGS)


def test_every_file_is_registered_and_every_name_has_its_file():
    files = {path.stem for path in FOLDER.glob("*.py")} - MACHINERY
    assert {slug.replace("-", "_") for slug in SLUGS} == files


def test_all_is_sorted_and_without_repeats():
    assert sorted(set(laws.__all__)) == laws.__all__


@each_law
def test_slug_is_the_file_is_what_get_takes(slug):
    law = laws.get(slug)
    assert law.slug == slug
    assert type(law).__module__ == f"isoloss.laws.{slug.replace('-', '_')}"
    assert type(law).__name__ == laws.LAWS[slug]
    assert laws.get(law.spec).spec == law.spec
    assert laws.get(law.spec).axes == law.axes


@each_law
def test_documented(slug):
    law = laws.get(slug)
    text = inspect.getdoc(type(law))
    for part in (".. math::", "Inputs:", "Returns:", "Valid for:", "Source:", "Example:", ">>>"):
        assert part in text, part
    assert law.formula
    assert "arXiv:" in law.paper
    module = inspect.getmodule(type(law)).__doc__
    assert "arXiv:" in module, "line 1 of the file names the paper"
    assert all(p.meaning for p in law.parameters)
    for axis in law.axes:
        assert axis in text or axis == getattr(law, "axis", None)


@each_law
def test_axes_and_target_have_units(slug):
    law = laws.get(slug)
    assert {*law.axes, law.target} <= set(UNITS)


@each_law
def test_the_formula_names_every_parameter(slug):
    law = laws.get(slug)
    # `f_1` may be written `f_i`; Muennighoff's N' and D' stand for R_N and R_D.
    text = law.formula + (" R_N R_D" if slug == "muennighoff" else "")
    for name in law.names:
        assert name in text or f"{name[:-1]}i" in text, name


def test_laws_of_one_axis_take_any_axis():
    for slug in ("power", "hestness", "henighan", "broken1", "broken2", "m3", "m4", "nezhurina"):
        law = laws.get(f"{slug}(anything)")
        assert law.axes == ("anything",)
        assert law.spec == f"{slug}(anything)"
        own = laws.get(slug)
        theta = own.theta(PLANTED[slug])
        values = np.geomspace(1e8, 1e11, 5)
        assert np.array_equal(
            law.evaluate(theta, anything=values), own.evaluate(theta, **{own.axes[0]: values})
        )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chinchila", "hoffmann"),
        ("hoffmann(params)", "fixed axes"),
        ("power(params", "no law named"),
        ("precision", "is a factor and needs a law: write 'hoffmann * precision'"),
        ("", "no law named"),
        ("power(a,b)", "one axis"),
        ("mixing(share_a,)", "no law named"),
    ],
)
def test_wrong_names_say_what_there_is(name, says):
    with pytest.raises(ValueError, match=r"law|axes") as error:
        laws.get(name)
    assert says in str(error.value)


# --- values -----------------------------------------------------------------------------------------


@each_law
def test_value_is_the_paper_s_formula(slug):
    law, rng = laws.get(slug), np.random.default_rng(1)
    x = points(law.axes, 40, seed=2)
    for _ in range(5):
        values = jitter(PLANTED[slug], rng)
        got = law.evaluate(law.theta(values), **x)
        np.testing.assert_allclose(got, FORMULAS[slug](values, x), rtol=1e-12)
        assert np.isfinite(got).all()


@each_law
def test_published_thetas_are_finite_and_improve_along_every_axis(slug):
    law = laws.get(slug)
    x = points(law.axes, 50, seed=3)
    for name in law.published:
        value, slopes = law.elasticities(law.theta(name), x)
        assert np.isfinite(value).all(), name
        assert law.signed or (value > 0).all(), name
        for axis, slope in slopes.items():
            assert np.isfinite(slope).all(), (name, axis)
            if law.target not in ("loss", "error"):
                continue  # a rule for the batch or the rate has no better and worse
            if axis == "expert_density":
                continue  # its published lambda is below 0: of large models the sparser may be better
            # More parameters, more tokens, more unique tokens: never worse. Lower loss: lower error.
            assert (slope >= 0).all() if axis == "loss" else (slope <= 0).all(), (name, axis)


@each_law
def test_broadcasts_like_a_loop(slug):
    law, rng = laws.get(slug), np.random.default_rng(4)
    thetas = np.array([[law.theta(jitter(PLANTED[slug], rng)) for _ in range(2)] for _ in range(3)])
    flat = points(law.axes, 20, seed=5)
    x = {axis: v.reshape(4, 5) if i == 0 else v[:5] for i, (axis, v) in enumerate(flat.items())}
    if slug == "muennighoff":
        x["tokens_unique"] = x["tokens"] / 3
    if slug == "mixing":
        x["share_web"] = 1 - x["share_code"]
    got = law.evaluate(thetas, **x)
    assert got.shape == (3, 2, *np.broadcast_shapes(*(v.shape for v in x.values())))
    full = np.broadcast_arrays(*x.values())
    for i, j in np.ndindex(3, 2):
        for at in np.ndindex(got.shape[2:]):
            point = {axis: float(values[at]) for axis, values in zip(x, full, strict=True)}
            assert law.evaluate(thetas[i, j], **point) == pytest.approx(got[(i, j, *at)], rel=1e-14)
    one = {axis: float(values.flat[0]) for axis, values in zip(x, full, strict=True)}
    assert law.evaluate(thetas[0, 0], **one).shape == ()
    assert law.evaluate(thetas, **one).shape == (3, 2)


@each_law
def test_wrong_inputs_are_refused(slug):
    law = laws.get(slug)
    theta = law.theta(PLANTED[slug])
    x = {axis: float(values[0]) for axis, values in points(law.axes, 1, seed=17).items()}
    with pytest.raises(ValueError, match="needs"):
        law.evaluate(theta)
    with pytest.raises(ValueError, match="nonsense"):
        law.evaluate(theta, **x, nonsense=1)
    for bad in (-1.0, float("nan"), float("inf"), *([] if law.axes[0] in law.may_be_zero else [0.0])):
        with pytest.raises(ValueError, match=r"finite and (at or )?above 0"):
            law.evaluate(theta, **{**x, law.axes[0]: bad})
    with pytest.raises(ValueError, match="Missing"):
        law.theta({})
    with pytest.raises(ValueError, match="unknown"):
        law.theta({**PLANTED[slug], "zeta": 1.0})
    with pytest.raises(ValueError, match="published"):
        law.theta("nobody-1999")


@each_law
@pytest.mark.parametrize("by", [-1, 1])
def test_a_theta_of_the_wrong_length_is_refused(slug, by):
    law = laws.get(slug)
    theta = law.theta(PLANTED[slug])
    wrong = theta[:-1] if by < 0 else np.append(theta, 1.0)
    x = {axis: float(values[0]) for axis, values in points(law.axes, 1, seed=18).items()}
    with pytest.raises(ValueError, match="theta"):
        law.evaluate(wrong, **x)


# --- derivatives ------------------------------------------------------------------------------------


@each_law
def test_elasticities_against_complex_step(slug):
    law, rng = laws.get(slug), np.random.default_rng(6)
    x = points(law.axes, 30, seed=7)
    thetas, truth = [], []
    for _ in range(4):
        values = jitter(PLANTED[slug], rng)
        thetas.append(law.theta(values))
        truth.append(axis_elasticities(slug, values, x))
    value, slopes = law.elasticities(np.array(thetas), x)
    assert value.shape == (4, 30)
    for axis in law.axes:
        want = np.array([entry[axis] for entry in truth])
        np.testing.assert_allclose(slopes[axis], want, rtol=1e-10, atol=1e-13)


@each_law
@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("kind", [PowerSumModel, DualModel])
def test_gradient_of_a_fit_against_complex_step(slug, log, kind):
    law, rng = laws.get(slug), np.random.default_rng(8)
    if kind is PowerSumModel and not isinstance(law, PowerSum):
        assert isinstance(model_of(law, points(law.axes, 5, 0), *_all_free(law)), DualModel)
        return
    n = 25
    x = points(law.axes, n, seed=9)
    model = kind(law, x, *_all_free(law))
    worlds = [jitter(PLANTED[slug], rng) for _ in range(3)]
    psi = np.array([phi_of(law, values) for values in worlds])
    linear = rng.normal(size=(3, n))
    target, state = model.target(psi)
    gradient, _ = model.accumulate(state, linear, np.zeros((3, n)), log)
    for b, values in enumerate(worlds):
        np.testing.assert_allclose(target[b], FORMULAS[slug](values, x), rtol=1e-12)
        slopes = _phi_slopes(slug, law, values, x, log)
        np.testing.assert_allclose(model.jacobian(psi[b], log), slopes.T, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gradient[b], slopes @ linear[b], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("slug", [s for s in SLUGS if isinstance(laws.get(s), PowerSum)])
def test_exact_hessian_against_differences_of_complex_steps(slug, log):
    law, rng = laws.get(slug), np.random.default_rng(10)
    n, p = 25, len(law.names)
    x = points(law.axes, n, seed=11)
    model = PowerSumModel(law, x, *_all_free(law))
    values = jitter(PLANTED[slug], rng)
    linear, square = rng.normal(size=n), rng.normal(size=n)
    psi = phi_of(law, values)
    _, state = model.target(psi[None])
    _, hessian = model.accumulate(state, linear[None], square[None], log)
    slopes = _phi_slopes(slug, law, values, x, log)
    want = (slopes * square) @ slopes.T
    for j, name in enumerate(law.names):
        logged = law.parameters[j].scale == "log"
        sides = []
        for sign in (1, -1):
            moved = values[name] * math.exp(sign * 1e-4) if logged else values[name] + sign * 1e-4
            sides.append(_phi_slopes(slug, law, {**values, name: moved}, x, log) @ linear)
        want[:, j] += (sides[0] - sides[1]) / 2e-4
    assert hessian.shape == (1, p, p)
    np.testing.assert_allclose(hessian[0], want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    np.testing.assert_allclose(hessian[0], hessian[0].T, rtol=1e-12, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("slug", ["hoffmann", "gadre", "muennighoff", "broken1"])
def test_ties_fixed_values_and_shifts_enter_by_the_chain_rule(slug):
    law, rng = laws.get(slug), np.random.default_rng(12)
    n, p = 20, len(law.names)
    x = points(law.axes, n, seed=13)
    spread = rng.normal(size=(p - 1, p)) * 0.05
    base = phi_of(law, PLANTED[slug])
    psi = rng.normal(size=p - 1) * 0.1
    phi = base + psi @ spread
    values = {
        q.name: math.exp(v) if q.scale == "log" else v for q, v in zip(law.parameters, phi, strict=True)
    }
    want = spread @ _phi_slopes(slug, law, values, x, True)
    got = model_of(law, x, base, spread).jacobian(psi, True)
    np.testing.assert_allclose(got, want.T, rtol=1e-8, atol=1e-11)


def _all_free(law):
    p = len(law.names)
    return np.zeros(p), np.eye(p)


def _phi_slopes(slug, law, values, x, log):
    """d (log) target / d phi, shape (P, n)."""
    slopes = theta_slopes(slug, values, x)
    rows = [slopes[q.name] * (values[q.name] if q.scale == "log" else 1.0) for q in law.parameters]
    n = len(next(iter(x.values())))
    wide = np.array([np.broadcast_to(row, n) for row in rows])
    return wide / FORMULAS[slug](values, x) if log else wide


# --- aliases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", [s for s in SLUGS if laws.get(s).alias_of])
def test_an_alias_reaches_the_same_minimum(slug):
    alias = laws.get(slug)
    assert alias.alias_of in laws.LAWS
    other = laws.get(alias.alias_of)
    if len(alias.axes) == 1:
        other = laws.get(f"{alias.alias_of}({alias.axes[0]})")
    assert other.axes == alias.axes
    assert other.alias_of is None
    rng = np.random.default_rng(14)
    x = points(alias.axes, 40, seed=15)
    y = FORMULAS[slug](PLANTED[slug], x) * np.exp(0.02 * rng.normal(size=40))
    runs = isoloss.read({**x, alias.target: y})
    for objective in (isoloss.Huber(), isoloss.LeastSquares(residual="linear")):
        fits = [
            isoloss.fit(law, runs, objective=objective, draws=0, sensitivity=False) for law in (alias, other)
        ]
        assert fits[0].value == pytest.approx(fits[1].value, rel=1e-9)
        predicted = [f.law.evaluate(f.theta, **x) for f in fits]
        np.testing.assert_allclose(predicted[0], predicted[1], rtol=1e-5)


def test_nesting_laws_contain_their_special_cases():
    x = points(("params", "tokens"), 30, seed=16)
    tied, free = laws.get("gadre"), laws.get("hoffmann")
    E, a, b, eta = tied.theta("c4-2024")
    same = {"E": E, "A": a * 6**-eta, "B": b * 6**-eta, "alpha": 2 * eta, "beta": 2 * eta}
    np.testing.assert_allclose(
        tied.evaluate(tied.theta("c4-2024"), **x), free.evaluate(free.theta(same), **x), rtol=1e-12
    )
    repeated, once = laws.get("muennighoff"), laws.get("hoffmann")
    p = PLANTED["muennighoff"]
    flat = {**p, "R_N": 1e12, "R_D": 1e12}
    np.testing.assert_allclose(
        repeated.evaluate(repeated.theta(flat), **x, tokens_unique=x["tokens"] / 7),
        once.evaluate(once.theta({k: p[k] for k in once.names}), **x),
        rtol=1e-5,
    )
    # Each token seen once and no more parameters than the data want: nothing decays.
    small = {"params": 1e6, "tokens": 1e10}
    np.testing.assert_allclose(
        repeated.evaluate(repeated.theta(p), **small),
        once.evaluate(once.theta({k: p[k] for k in once.names}), **small),
        rtol=1e-14,
    )
    one, two = laws.get("broken1"), laws.get("broken2")
    q = PLANTED["broken1"]
    tokens = np.geomspace(1e7, 1e12, 9)
    np.testing.assert_allclose(
        one.evaluate(one.theta(q), tokens=tokens),
        two.evaluate(two.theta({**q, "c_2": 0.0, "d_2": 1e9, "f_2": 0.4}), tokens=tokens),
        rtol=1e-14,
    )


# --- printed numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "name", "x", "printed"),
    [
        ("kaplan-n", "kaplan-2020", {"params_nonembedding": 1e9}, 2.3756),
        ("kaplan-n", "kaplan-2020", {"params_nonembedding": 1.5e9}, 2.3036),
        ("kaplan-d", "kaplan-2020", {"tokens": 1e10}, 2.2624),
        ("kaplan-nd", "kaplan-2020", {"params_nonembedding": 1e8, "tokens": 1e10}, 2.7879),
        ("kaplan-nd", "kaplan-2020", {"params_nonembedding": 1e9, "tokens": 2.2e10}, 2.3693),
        ("kaplan-nd", "kaplan-2020", {"params_nonembedding": 1e9, "tokens": 1e40}, 2.3188),
        ("hoffmann", "hoffmann-2022", {"params": 70e9, "tokens": 1.4e12}, 1.9208),
        ("hoffmann", "besiroglu-2024", {"params": 70e9, "tokens": 1.4e12}, 1.9739),
    ],
)
def test_check_values_of_the_sheets(slug, name, x, printed):
    law = laws.get(slug)
    assert float(law.evaluate(law.theta(name), **x)) == pytest.approx(printed, abs=5.1e-5)


def test_kaplan_s_compute_law_is_a_power_of_flops():
    # L(C_min) = (3.1e8 / C)^0.050 with C in PF-days of 8.64e19 FLOPs: 2.6581 at one PF-day.
    law = laws.get("power(flops)")
    theta = [(3.1e8 * 8.64e19) ** 0.05, 0.05]
    assert float(law.evaluate(theta, flops=8.64e19)) == pytest.approx(2.6581, abs=5.1e-5)


@pytest.mark.parametrize(
    ("name", "floor", "place", "exponent"),
    [
        ("image-8x8-2020", 3.12, 8.0e1, 0.24),
        ("image-16x16-2020", 2.64, 2.8e2, 0.22),
        ("image-32x32-2020", 2.20, 6.3e1, 0.13),
        ("image-vq-16x16-2020", 3.99, 2.7e4, 0.13),
        ("image-vq-32x32-2020", 3.07, 1.9e4, 0.14),
        ("video-vq-2020", 1.01, 3.7e4, 0.24),
        ("math-extrapolate-2020", 0.28, 1.1e4, 0.16),
    ],
)
def test_henighan_table_1(name, floor, place, exponent):
    law = laws.get("henighan")
    theta = law.theta(name)
    # One nat above the floor at x_0, and 2^-alpha of it at 2 x_0.
    got = law.evaluate(theta, params_nonembedding=[place, 2 * place])
    np.testing.assert_allclose(got, [floor + 1, floor + 2**-exponent], rtol=1e-12)


def test_optimum_of_the_published_chinchilla_laws():
    # (computed here) in the sheet: N*, D/N at a few budgets, by N* = G (C/6)^a.
    table = [
        ("hoffmann-2022", 1e21, 2.215e9, 34.0),
        ("hoffmann-2022", 5.76e23, 4.03e10, 59.1),
        ("besiroglu-2024", 1e21, 2.778e9, 21.6),
        ("besiroglu-2024", 5.76e23, 7.225e10, 18.4),
        ("besiroglu-2024", 1e25, 3.12e11, 17.1),
    ]
    law = laws.get("hoffmann")
    for name, flops, size, ratio in table:
        n = np.geomspace(size / 1.2, size * 1.2, 20001)
        loss = law.evaluate(law.theta(name), params=n, tokens=flops / 6 / n)
        best = n[np.argmin(loss)]
        assert best == pytest.approx(size, rel=2e-3), name
        assert flops / 6 / best**2 == pytest.approx(ratio, rel=4e-3), name


def test_muennighoff_effective_tokens_and_best_size():
    law = laws.get("muennighoff")
    theta = law.theta("muennighoff-2023")
    floor, a, b, alpha, beta = theta[:5]
    unique, size = 1e9, 1e7  # below U_N, so N' = N
    for epochs, printed in {2: 1.968, 4: 3.726, 8: 6.624, 16: 10.58, 44: 15.45, 100: 16.36}.items():
        loss = float(law.evaluate(theta, params=size, tokens=epochs * unique, tokens_unique=unique))
        effective = ((loss - floor - a * size**-alpha) / b) ** (-1 / beta) / unique
        assert effective == pytest.approx(printed, abs=0.005 if epochs >= 16 else 0.0006), epochs
    # Up to U_N, about 0.051 U_D, parameters count in full; beyond, the decay constant matters.
    weaker = theta.copy()
    weaker[law.names.index("R_N")] /= 2
    sizes = np.array([0.0505, 0.0525]) * unique
    for size, changed in zip(sizes, (False, True), strict=True):
        x = {"params": size, "tokens": unique, "tokens_unique": unique}
        assert (law.evaluate(weaker, **x) != law.evaluate(theta, **x)) == changed


@pytest.mark.parametrize(
    ("law", "printed"),
    [("power(tokens)", (0.235, 0.262, 0.297)), ("hestness(tokens)", (0.278, 0.322, 0.368))],
)
def test_curve_families_extrapolate_as_in_the_sheet(law, printed, table):
    rows = table("laws/learning_curves_nmt/curves.csv")
    order = ("6 Enc, 28 Dec", "6 Enc, 6 Dec", "Dec")
    names = sorted(
        {row["model"] for row in rows}, key=lambda m: next(i for i, o in enumerate(order) if m.startswith(o))
    )
    for name, want in zip(names, printed, strict=True):
        curve = sorted((float(r["examples_seen"]), float(r["loss_nats"])) for r in rows if r["model"] == name)
        tokens, loss = np.array(curve[:-1]).T
        found = isoloss.fit(
            law,
            {"tokens": tokens, "loss": loss},
            objective=isoloss.LeastSquares(),
            draws=0,
            sensitivity=False,
        )
        got = float(found.law.evaluate(found.theta, tokens=curve[-1][0]))
        assert got == pytest.approx(want, abs=6e-4), name


def test_one_break_in_addition(table):
    rows = table("laws/addition_break/curve.csv")
    x = np.array([float(r["examples"]) for r in rows])
    y = np.array([float(r["test_loss_nats"]) for r in rows])
    train = np.array([r["is_train"] == "1" for r in rows])
    found = isoloss.fit(
        "broken1",
        {"tokens": x[train], "loss": y[train]},
        objective=isoloss.LeastSquares(),
        draws=0,
        sensitivity=False,
    )
    rms = math.sqrt(float(np.mean(found.residuals**2)))
    assert rms <= 0.000605  # the source's script: 0.00060
    held_out = found.law.evaluate(found.theta, tokens=x[~train])
    np.testing.assert_allclose(held_out, [0.761, 0.638, 0.564], atol=0.0025)
    np.testing.assert_allclose(held_out, y[~train], rtol=0.02)
    values = found.values
    assert values["d_1"] == pytest.approx(612.7, rel=0.002)
    assert values["f_1"] == pytest.approx(0.0593, rel=0.01)
    assert values["c_0"] == pytest.approx(0.0552, rel=0.01)

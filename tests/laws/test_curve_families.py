"""Learning-curve families: the published extrapolations, how they nest, what they tend to, M4's implicit root."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss
from isoloss.laws import LAWS, get
from tests.oracles.formulas import PLANTED, jitter

NMT = ("6 Enc, 28 Dec", "6 Enc, 6 Dec", "Dec-only")
AXIS = {"m3": "tokens", "m4": "tokens", "nezhurina": "flops"}


@pytest.mark.parametrize(
    ("law", "printed"),
    [
        ("power", (0.235, 0.262, 0.297)),
        ("hestness", (0.278, 0.322, 0.368)),
        ("m3", (0.294, 0.334, 0.376)),
        ("m4", (0.288, 0.334, 0.382)),
    ],
)
def test_the_last_point_of_the_translation_curves(law, printed, table):
    """M1 to M4 by least squares of the log: the reference values of an independent fit, to its rounding."""
    rows = table("laws/learning_curves_nmt/curves.csv")
    for name, want in zip(NMT, printed, strict=True):
        curve = [row for row in rows if row["model"] == name]
        x = np.array([float(row["examples_seen"]) for row in curve])
        y = np.array([float(row["loss_nats"]) for row in curve])
        seen = np.array([row["is_train"] == "1" for row in curve])
        runs = {"tokens": x[seen], "loss": y[seen]}
        found = isoloss.fit(law, runs, objective=isoloss.LeastSquares(), draws=0, sensitivity=False)
        got = float(found.law.evaluate(found.theta, tokens=x[~seen])[0])
        assert got == pytest.approx(want, abs=0.002), name


# --- M4: the implicit equation ----------------------------------------------------------------------


def m4_worlds(count, seed):
    """Thetas and points over a wide range of every parameter, alpha from 1e-6 to 10."""
    rng = np.random.default_rng(seed)
    floor = np.exp(rng.uniform(-3, 1, count))
    top = floor * np.exp(rng.uniform(0.3, 3, count))
    alpha = np.exp(rng.uniform(np.log(1e-6), np.log(10), count))
    c = rng.uniform(0.05, 2, count)
    b = np.exp(rng.uniform(-10, 30, count))
    return np.column_stack([floor, top, alpha, b, c]), np.geomspace(1e-2, 1e12, 400)


def test_m4_solves_its_equation():
    theta, x = m4_worlds(300, seed=1)
    loss = get("m4").evaluate(theta, tokens=x)
    floor, top, alpha, b, c = (theta[:, [p]] for p in range(5))
    assert ((loss >= floor) & (loss <= top)).all()
    assert (np.diff(loss) <= 0).all()
    # Away from the ends, where the differences below keep their digits.
    share = (loss - floor) / (top - floor)
    inner = (share > 0.01) & (share < 0.99)
    assert inner.sum() > 5000
    left = np.log(np.where(inner, loss - floor, 1.0)) - alpha * np.log(np.where(inner, top - loss, 1.0))
    right = np.log(b) - c * np.log(x)
    assert np.abs(np.where(inner, left - right, 0.0)).max() < 1e-12


def test_m4_is_exact_towards_both_ends():
    floor, top, alpha, b, c = theta = [0.5, 4.0, 1.5, 10.0, 0.5]
    law, span = get("m4"), 3.5
    far, near = np.array([1e16, 1e20]), np.array([1e-16, 1e-20])
    with np.errstate(all="raise", under="ignore"):
        # L - e_inf -> b x^-c span^alpha, e_0 - L -> (span/(b x^-c))^(1/alpha), to first order in themselves.
        low = law.evaluate([1e-30, top - floor, alpha, b, c], tokens=far)
        high = top - law.evaluate(theta, tokens=near)
    np.testing.assert_allclose(low, b * far**-c * span**alpha, rtol=1e-6)
    np.testing.assert_allclose(high, (span / (b * near**-c)) ** (1 / alpha), rtol=1e-4)
    with np.errstate(all="raise", under="ignore"):
        ends = law.evaluate(theta, tokens=[1e-300, 1e300])
    np.testing.assert_allclose(ends, [top, floor], rtol=1e-15)


def test_m4_with_alpha_zero_is_m2():
    rng = np.random.default_rng(2)
    x = np.geomspace(1e-3, 1e12, 60)
    m4, m2 = get("m4"), get("hestness")
    for _ in range(20):
        floor, b, c = np.exp(rng.normal(size=3)) * [1.0, 5.0, 0.4]
        want = m2.evaluate([floor, b, c], tokens=x)  # passes e_0 on the left: the equation has no ceiling
        got = m4.evaluate([floor, 3 * floor, 0.0, b, c], tokens=x)
        np.testing.assert_allclose(got, want, rtol=1e-14)
        slopes = [law.elasticities(t, {"tokens": x})[1]["tokens"] for law, t in
                  ((m4, [floor, 3 * floor, 0.0, b, c]), (m2, [floor, b, c]))]  # fmt: skip
        np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-12)
        # It is the limit too, where M2 lies below e_0.
        below = want < 2.9 * floor
        almost = m4.evaluate([floor, 3 * floor, 1e-9, b, c], tokens=x)
        np.testing.assert_allclose(almost[below], want[below], rtol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 1e-4, 0.3, 1.0, 2.5])
def test_m4_derivatives_against_finite_differences(alpha):
    """Value and gradient as a fit sees them; at alpha = 0 the derivative in alpha is one-sided."""
    from isoloss.fitting.model import DualModel

    law, x = get("m4"), np.geomspace(1.0, 1e6, 25)
    theta = np.array([0.4, 3.0, alpha, 2.5, 0.3])
    logs = np.array([p.scale == "log" for p in law.parameters])
    psi = np.where(logs, np.log(np.where(logs, theta, 1.0)), theta)
    model = DualModel(law, {"tokens": x}, np.zeros(5), np.eye(5))
    got = model.jacobian(psi, log=False)
    for p, name in enumerate(law.names):
        h = 1e-5
        sides = (0, 1, 2) if alpha == 0 and name == "alpha" else (-1, 1)
        moved = [model.target((psi + step * h * np.eye(5)[p])[None])[0][0] for step in sides]
        if len(sides) == 3:
            want = (-3 * moved[0] + 4 * moved[1] - moved[2]) / (2 * h)
        else:
            want = (moved[1] - moved[0]) / (2 * h)
        np.testing.assert_allclose(got[:, p], want, rtol=1e-6, atol=2e-9, err_msg=name)


# --- nesting and floors -----------------------------------------------------------------------------


def test_m3_without_saturation_is_m1_and_nezhurina_without_a_flat_start_is_m2():
    x = np.geomspace(1e3, 1e9, 20)
    np.testing.assert_allclose(
        get("m3").evaluate([30.0, 1e-26, 0.2], tokens=x),
        get("power").evaluate([30.0, 0.2], tokens=x),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        get("nezhurina(tokens)").evaluate([50.0, 1e-12, 0.3, 1.4], tokens=x),
        get("hestness").evaluate([1.4, 50.0, 0.3], tokens=x),
        rtol=1e-12,
    )


WITH_FLOOR = ("broken1", "broken2", "henighan", "hestness", "m3", "m4", "nezhurina", "vocabulary")


def test_which_laws_name_their_floor():
    assert {s for s in LAWS if get(s).floor(np.array([list(PLANTED[s].values())])) is not None} == set(
        WITH_FLOOR
    )


@pytest.mark.parametrize("slug", WITH_FLOOR)
def test_the_floor_is_where_the_curve_ends(slug):
    law, rng = get(slug), np.random.default_rng(3)
    theta = np.array([law.theta(jitter(PLANTED[slug], rng)) for _ in range(5)])
    far = law.evaluate(theta, **dict.fromkeys(law.axes, 1e200))
    np.testing.assert_allclose(law.floor(theta), far, rtol=1e-9)
    assert law.floor(theta[0]) == pytest.approx(law.floor(theta)[0])


def test_a_break_that_ends_in_a_rise_has_no_floor():
    law = get("broken1")
    theta = law.theta({**PLANTED["broken1"], "c_1": -0.3})
    assert law.floor(theta) == np.inf
    assert law.floor(np.array([law.theta(PLANTED["broken1"]), theta])).tolist() == [0.4, np.inf]


# --- fitting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "theta", "x"),
    [
        ("m3", [60.0, 1e-7, 0.3], np.geomspace(1e3, 1e9, 25)),
        ("m4", [0.2, 2.3, 0.7, 300.0, 0.5], np.geomspace(1e3, 1e8, 25)),
        ("nezhurina", [3e6, 1e15, 0.4, 0.25], np.geomspace(1e13, 1e20, 25)),
    ],
)
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_planted_parameters_come_back_in_any_unit(slug, theta, x, unit):
    law, axis = get(slug), AXIS[slug]
    y = law.evaluate(theta, **{axis: x})
    runs = isoloss.read({axis: x * unit, "loss": y}, units={axis: "count"} if axis == "tokens" else None)
    found = isoloss.fit(slug, runs, objective=isoloss.LeastSquares(), draws=0, starts=32, sensitivity=False)
    got = found.law.evaluate(found.theta, **{axis: x * unit})
    np.testing.assert_allclose(got, y, rtol=1e-6)
    floor = law.floor(np.array(theta))
    assert float(found.law.floor(found.theta)) == pytest.approx(float(floor), rel=1e-4)
    exponent = "alpha" if slug == "nezhurina" else "c"
    assert found.values[exponent] == pytest.approx(theta[law.names.index(exponent)], rel=1e-4)

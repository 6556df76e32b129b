"""Every derivative rule against complex step, or central differences where no complex version exists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.laws.dual import _RULES, Dual

STEP = 1e-30

# Holomorphic rules: NumPy evaluates them on complex numbers.
UNARY = {
    "negative": (-3, 3), "positive": (-3, 3), "exp": (-20, 20), "exp2": (-20, 20), "expm1": (-5, 5),
    "log": (1e-6, 1e6), "log2": (1e-6, 1e6), "log10": (1e-6, 1e6), "log1p": (-0.9, 1e3), "sqrt": (1e-6, 1e6),
    "square": (-10, 10), "reciprocal": (0.01, 100), "tanh": (-3, 3),
}  # fmt: skip
BINARY = {
    "add": (-9, 9), "subtract": (-9, 9), "multiply": (-9, 9), "divide": (0.1, 9), "power": (0.1, 5),
    "float_power": (0.1, 5),
}  # fmt: skip
# Rules without a complex version, with their closed forms.
OTHER = {"logaddexp", "maximum", "minimum", "absolute"}
COMPARISONS = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}


def seeds(*values):
    return [Dual(np.asarray(v, float), {i: np.ones_like(np.asarray(v, float))}) for i, v in enumerate(values)]


def test_every_rule_is_tested():
    assert set(_RULES) - COMPARISONS == set(UNARY) | set(BINARY) | OTHER


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    function = getattr(np, name)
    x = np.random.default_rng(0).uniform(*UNARY[name], 50)
    (dual,) = seeds(x)
    got = function(dual)
    np.testing.assert_array_equal(got.value, function(x))
    want = np.imag(function(x + 1j * STEP)) / STEP
    np.testing.assert_allclose(got.partials[0], want, rtol=1e-12)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("live", [(0,), (1,), (0, 1)])
def test_binary(name, live):
    function, rng = getattr(np, name), np.random.default_rng(1)
    x = rng.uniform(*BINARY[name], (2, 50))
    duals = seeds(*x)
    arguments = [duals[i] if i in live else x[i] for i in (0, 1)]
    got = function(*arguments)
    np.testing.assert_allclose(got.value, function(*x), rtol=1e-15)
    assert set(got.partials) == set(live)
    for i in live:
        moved = [x[k] + 1j * STEP * (k == i) for k in (0, 1)]
        np.testing.assert_allclose(got.partials[i], np.imag(function(*moved)) / STEP, rtol=1e-12, atol=1e-300)


def test_operators_equal_the_functions():
    x, y = np.random.default_rng(2).uniform(0.2, 4, (2, 30))
    a, b = seeds(x, y)
    pairs = [
        (a + b, np.add(a, b)), (2 + a, np.add(2.0, a)), (a - b, np.subtract(a, b)), (2 - a, np.subtract(2.0, a)),
        (a * b, np.multiply(a, b)), (2 * a, np.multiply(2.0, a)), (a / b, np.divide(a, b)),
        (2 / a, np.divide(2.0, a)), (a**b, np.power(a, b)), (2**a, np.power(2.0, a)), (a**2, np.square(a)),
        (-a, np.negative(a)), (+a, np.positive(a)), (x * b, np.multiply(x, b)), (np.float64(2) * a, a * 2.0),
        (abs(a - 2), np.abs(a - 2)),
    ]  # fmt: skip
    for left, right in pairs:
        np.testing.assert_allclose(left.value, right.value, rtol=1e-15)
        assert set(left.partials) == set(right.partials)
        for k in left.partials:
            np.testing.assert_allclose(left.partials[k], right.partials[k], rtol=1e-14)


finite = st.floats(-50, 50)


@given(finite, finite)
def test_logaddexp_has_softmax_slopes(x, y):
    a, b = seeds(x, y)
    got = np.logaddexp(a, b)
    top = max(x, y)
    weights = np.exp(np.array([x, y]) - top)
    assert float(got.value) == pytest.approx(top + np.log(weights.sum()), rel=1e-12, abs=1e-12)
    np.testing.assert_allclose([got.partials[0], got.partials[1]], weights / weights.sum(), rtol=1e-12)


@given(finite, finite)
def test_maximum_minimum_and_where_pick_one_side(x, y):
    for function, side in ((np.maximum, 0 if x >= y else 1), (np.minimum, 0 if x <= y else 1)):
        got = function(*seeds(x, y))
        assert float(got.value) == function(x, y)
        assert [float(got.partials[0]), float(got.partials[1])] == [float(side == 0), float(side == 1)]
    a, b = seeds(x, y)
    got = np.where(a > b, 2 * a, 3 * b)
    assert float(got.value) == (2 * x if x > y else 3 * y)
    assert [float(got.partials[0]), float(got.partials[1])] == ([2.0, 0.0] if x > y else [0.0, 3.0])


def test_at_a_tie_the_slope_is_one_side_s_and_sums_to_one():
    for function in (np.maximum, np.minimum):
        got = function(*seeds(2.0, 2.0))
        assert float(got.partials[0]) + float(got.partials[1]) == 1.0


@given(st.floats(-50, 50).filter(bool))
def test_absolute(x):
    (a,) = seeds(x)
    assert float(np.abs(a).partials[0]) == np.sign(x)


@given(
    st.floats(0.2, 3), st.floats(0.2, 3), st.floats(0.2, 3),
    st.sampled_from([
        lambda a, b, c: a * b**-c + np.exp(-b / c),
        lambda a, b, c: np.log1p(a / b) ** c * np.sqrt(a + c),
        lambda a, b, c: (a - b / c) ** 2 / (1 + np.tanh(b)),
        lambda a, b, c: np.expm1(a * b) * np.log2(1 + c) - np.reciprocal(a + b + c),
    ]),
)  # fmt: skip
def test_compositions_against_complex_step(x, y, z, function):
    point = [x, y, z]
    got = function(*seeds(*point))
    assert float(got.value) == pytest.approx(function(*point), rel=1e-14)
    for i in range(3):
        moved = [v + 1j * STEP * (k == i) for k, v in enumerate(point)]
        assert float(got.partials[i]) == pytest.approx(np.imag(function(*moved)) / STEP, rel=1e-10, abs=1e-12)


@given(st.floats(0.2, 3), st.floats(0.2, 3))
def test_smooth_rules_without_a_complex_version_against_central_differences(x, y):
    def function(a, b):
        return np.logaddexp(a * b, b**2) + np.maximum(a, b + 10) * np.abs(a - 5)

    got = function(*seeds(x, y))
    h = 1e-3  # fourth order: error about h^4
    for i in (0, 1):

        def at(k, i=i):
            return function(x + k * h * (i == 0), y + k * h * (i == 1))

        want = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)
        assert float(got.partials[i]) == pytest.approx(want, rel=1e-7, abs=1e-8)


def test_broadcasts_over_batches():
    theta, x = np.random.default_rng(3).uniform(0.5, 2, (4, 1)), np.linspace(1, 3, 5)
    got = Dual(theta, {0: np.ones_like(theta)}) * np.log(Dual(x, {1: np.ones_like(x)}))
    assert got.value.shape == (4, 5)
    np.testing.assert_allclose(np.broadcast_to(got.partials[0], (4, 5)), np.log(x) * np.ones((4, 1)))
    np.testing.assert_allclose(got.partials[1], theta / x)


def test_the_side_not_taken_does_not_poison_the_slope():
    """At x = 0 the other branch has an infinite slope; times a zero mask it would be NaN."""
    (a,) = seeds(np.array([0.0, 4.0]))
    with np.errstate(divide="ignore"):
        got = np.where(a > 0, np.sqrt(a), 2 * a)
    np.testing.assert_array_equal(got.value, [0.0, 2.0])
    np.testing.assert_array_equal(got.partials[0], [2.0, 0.25])


def test_nan_survives_maximum_and_minimum():
    for function in (np.maximum, np.minimum):
        assert np.isnan(function(*seeds(np.nan, 1.0)).value)
        assert np.isnan(function(*seeds(1.0, np.nan)).value)


@pytest.mark.parametrize("name", sorted(COMPARISONS))
def test_comparisons_look_at_values_from_either_side(name):
    function = getattr(np, name)
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    a, b = seeds(x, y)
    for left, right in ((a, b), (a, y), (x, b), (a, 2.0)):
        np.testing.assert_array_equal(function(left, right), function(x, y))
    operators = {
        "less": (x < b, a < y), "less_equal": (x <= b, a <= y), "greater": (x > b, a > y),
        "greater_equal": (x >= b, a >= y), "equal": (x == b, a == y), "not_equal": (x != b, a != y),
    }  # fmt: skip
    for got in operators[name]:
        np.testing.assert_array_equal(got, function(x, y))


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda a: np.sin(a), "np.sin"),
        (lambda a: np.add(a, 1.0, out=np.zeros(2)), "out"),
        (lambda a: np.exp(a, where=np.array([True, False])), "where"),
        (lambda a: np.add.reduce(a), "add.reduce"),
        (lambda a: np.multiply.outer(a, a), "multiply.outer"),
        (lambda a: np.sum(a), "np.sum"),
        (lambda a: np.where(np.array([True, False])[..., None] & (a.value > 0)), ""),
        (lambda a: np.clip(a, 0, 1), "np.clip"),
        (lambda a: np.floor(a), "np.floor"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(call, names):
    (a,) = seeds(np.array([0.5, 1.5]))
    if not names:
        call(a)  # plain arrays are NumPy's business
        return
    with pytest.raises(TypeError, match="derivative rule") as error:
        call(a)
    assert names in str(error.value)


def test_a_dual_has_no_truth_value():
    """``if x > 1`` on one number would silently pick one branch for every row."""
    (a,) = seeds(np.array([0.5, 1.5]))
    with pytest.raises((TypeError, ValueError)):
        bool(a)

"""A user's own law: ten lines in a file, fitted like the shipped ones, and clear about what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss
from isoloss import laws
from isoloss.laws.law import Law, positive, real
from tests.oracles.formulas import PLANTED, points

TEN_LINES = '''
from isoloss.laws import Law, positive, real

class MyLaw(Law):
    """L = E + A/N^alpha + B/D^beta, written plainly."""
    axes = ("params", "tokens")
    parameters = (positive("E", 1e-2, 10), positive("A", 1, 1e6), positive("B", 1, 1e6),
                  real("alpha", 0, 1), real("beta", 0, 1))
    def value(self, theta, x):
        E, A, B, alpha, beta = theta
        return E + A * x["params"] ** -alpha + B * x["tokens"] ** -beta
'''


@pytest.fixture
def file(tmp_path):
    def write(text, name="my_laws.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(0)
    x = points(("params", "tokens"), 40, seed=1)
    p = PLANTED["hoffmann"]
    y = p["E"] + p["A"] * x["params"] ** -p["alpha"] + p["B"] * x["tokens"] ** -p["beta"]
    return isoloss.read({**x, "loss": y * np.exp(0.01 * rng.normal(size=40))})


@pytest.mark.parametrize(
    "objective", [isoloss.Huber(), isoloss.StudentT(), isoloss.LeastSquares(residual="linear")]
)
def test_a_plain_law_finds_what_the_closed_form_finds(file, runs, objective):
    mine = isoloss.fit(
        f"{file(TEN_LINES)}:MyLaw",
        runs,
        objective=objective,
        draws=60,
        uncertainty="bootstrap",
        sensitivity=False,
    )
    shipped = isoloss.fit(
        "hoffmann", runs, objective=objective, draws=60, uncertainty="bootstrap", sensitivity=False
    )
    assert mine.value == pytest.approx(shipped.value, rel=1e-9)
    np.testing.assert_allclose(mine.theta, shipped.theta, rtol=1e-3)
    np.testing.assert_allclose(mine.draws[:, 3:], shipped.draws[:, 3:], rtol=0.05)
    assert mine.result == shipped.result == "identified"


def test_its_fit_comes_back_from_its_file(file, runs, tmp_path):
    found = isoloss.fit(f"{file(TEN_LINES)}:MyLaw", runs, draws=20, sensitivity=False)
    found.save(tmp_path / "fit.json")
    again = isoloss.load(tmp_path / "fit.json")
    at = {"params": 1e10, "tokens": 1e12}
    assert np.array_equal(again.predict(**at).draws, found.predict(**at).draws)


WITH_AXIS = """
from dataclasses import dataclass
from isoloss.laws import Law, positive, real

@dataclass(frozen=True)
class Mine(Law):
    axis: str = "tokens"
    parameters = (positive("b", 1e-3, 1e6), real("c", 0, 1))
    @property
    def axes(self):
        return (self.axis,)
    def value(self, theta, x):
        b, c = theta
        return b * x[self.axis] ** -c
"""


def test_a_law_with_an_axis_setting_comes_back_too(file, tmp_path):
    place = file(WITH_AXIS, "with_axis.py")
    tokens = np.geomspace(1e8, 1e10, 8)
    found = isoloss.fit(
        f"{place}:Mine", {"tokens": tokens, "loss": 9 * tokens**-0.05}, draws=10, sensitivity=False
    )
    found.save(tmp_path / "fit.json")
    assert isoloss.load(tmp_path / "fit.json").law.axes == ("tokens",)


def test_a_fit_of_a_law_without_an_address_says_so_when_saved(tmp_path):
    class Nameless(Law):
        axes = ("tokens",)
        parameters = (positive("b", 1e-3, 1e6), real("c", 0, 1))

        def value(self, theta, x):
            return theta[0] * x["tokens"] ** -theta[1]

    tokens = np.geomspace(1e8, 1e10, 8)
    found = isoloss.fit(
        Nameless(), {"tokens": tokens, "loss": 9 * tokens**-0.05}, draws=10, sensitivity=False
    )
    with pytest.raises(ValueError, match=r"FILE\.py:|file"):
        found.save(tmp_path / "fit.json")
    assert not (tmp_path / "fit.json").exists()


def test_an_edited_file_is_read_again(file, runs):
    first = laws.get(f"{file(TEN_LINES)}:MyLaw")
    edited = laws.get(
        f"{file(TEN_LINES.replace('axes =', 'target = chr(101)' + chr(10) + '    axes ='))}:MyLaw"
    )
    assert (first.target, edited.target) == ("loss", "e")


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (TEN_LINES, "Other", "MyLaw"),
        ("x = 1\n", "x", "none"),
        ("x = 1\n", "MyLaw", "none"),
        ("def broken(:\n", "MyLaw", "SyntaxError"),
        ("import no_such_module_at_all\n", "MyLaw", "no_such_module_at_all"),
        ("1/0\n", "MyLaw", "ZeroDivisionError"),
        ("from isoloss.laws import Law\nclass MyLaw(Law):\n    pass\n", "MyLaw", "axes, parameters, value"),
        (TEN_LINES.replace("def value", "def values"), "MyLaw", "value"),
        (TEN_LINES.replace('axes = ("params", "tokens")', "pass"), "MyLaw", "axes"),
        (
            TEN_LINES.replace("    def value", "    def __init__(self, must):\n        pass\n    def value"),
            "MyLaw",
            "without arguments",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(file, text, name, says):
    place = file(text)
    with pytest.raises(ValueError, match=r"my_laws\.py") as error:
        laws.get(f"{place}:{name}")
    assert says in str(error.value)


def test_absent_files_and_modules(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        laws.get(f"{tmp_path}/absent.py:Law")
    with pytest.raises(ValueError, match="cannot import"):
        laws.get("no_such_module_at_all:Law")
    with pytest.raises(ValueError, match=r"no file|cannot"):
        laws.get(f"{tmp_path}:Law")


def test_a_module_works_like_a_file():
    assert laws.get("isoloss.laws.hoffmann:Hoffmann").axes == ("params", "tokens")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("theta[0] * x['tokens'] ** -np.sin(theta[1])", "np.sin"),
        ("np.cumsum(theta[0] * x['tokens'] ** -theta[1], axis=-1)", "np.cumsum"),
        ("np.clip(theta[0] * x['tokens'] ** -theta[1], 0.1, 9.0)", "np.clip"),
        ("theta[1] * np.add(theta[0], 1 / x['tokens'], where=True)", "where"),
    ],
)
def test_a_function_without_a_derivative_is_named(file, body, says):
    text = (
        "import numpy as np\nfrom isoloss.laws import Law, positive, real\n"
        "class MyLaw(Law):\n    axes = ('tokens',)\n"
        "    parameters = (positive('b', 1e-3, 1e3), real('c', 0, 1))\n"
        f"    def value(self, theta, x):\n        return {body}\n"
    )
    tokens = np.geomspace(1e8, 1e10, 8)
    with pytest.raises(TypeError, match="derivative rule") as error:
        isoloss.fit(
            f"{file(text)}:MyLaw", {"tokens": tokens, "loss": 9 * tokens**-0.05}, draws=0, sensitivity=False
        )
    assert says in str(error.value)


@pytest.mark.parametrize(
    "condition", ["x['tokens'] < d", "d >= x['tokens']", "np.less(x['tokens'], d)", "~(x['tokens'] >= d)"]
)
def test_a_law_with_two_pieces(file, condition):
    """A kink at d, chosen by np.where: which side holds the parameter must not matter."""
    text = (
        "import numpy as np\nfrom isoloss.laws import Law, positive, real\n"
        "class MyLaw(Law):\n    axes = ('tokens',)\n"
        "    parameters = (positive('b', 1e-3, 1e3), real('c', 0.0, 1), positive('d', 1e8, 1e11))\n"
        "    def value(self, theta, x):\n        b, c, d = theta\n"
        f"        return np.where({condition}, b * (x['tokens'] / d) ** -c, b)\n"
    )
    tokens = np.geomspace(1e8, 1e11, 40)
    loss = np.where(tokens < 4e9, 3 * (tokens / 4e9) ** -0.2, 3.0)
    found = isoloss.fit(
        f"{file(text)}:MyLaw",
        {"tokens": tokens, "loss": loss},
        objective=isoloss.LeastSquares(),
        draws=0,
        sensitivity=False,
    )
    np.testing.assert_allclose(found.theta, [3.0, 0.2, 4e9], rtol=1e-5)


def test_a_law_that_is_nowhere_defined_says_so(file):
    text = TEN_LINES.replace("return E", "return -E")
    tokens = np.geomspace(1e8, 1e10, 8)
    table = {"params": tokens / 20, "tokens": tokens, "loss": 9 * tokens**-0.05}
    with pytest.raises(ValueError, match="undefined"):
        isoloss.fit(
            f"{file(text.replace('+ A', '- A').replace('+ B', '- B'))}:MyLaw",
            table,
            draws=0,
            sensitivity=False,
        )


def test_parameters_that_make_no_sense():
    with pytest.raises(ValueError, match="low < high"):
        real("alpha", 1, 1)
    with pytest.raises(ValueError, match="low > 0"):
        positive("E", 0, 1)
    for low, high in ((float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="alpha"):
            real("alpha", low, high)


# --- parts of one's own -----------------------------------------------------------------------------

STREAMS = """
import numpy as np
from isoloss.laws import positive
from isoloss.laws.parts import Factor, LossTerm


class Streams(Factor):
    columns = ("streams", "shards")
    scales = "params"
    formula = "1 + k log P"
    reference = "one stream"

    @property
    def parameters(self):
        return tuple(positive(f"k_{name}", 0.01, 10, "gain") for name in self.reads)

    def value(self, theta, x):
        return 1 + sum(theta[f"k_{name}"] * np.log(x[name]) for name in self.reads)


class Toll(LossTerm):
    columns = ("hops",)
    formula = "t hops"
    reference = "no hops"

    @property
    def parameters(self):
        return (positive("t", 1e-6, 10, "cost of a hop"),)

    def value(self, theta, x):
        return theta["t"] * x["hops"]
"""


def streams_table(law, noise=0.001):
    grid = np.meshgrid([3e7, 1e8, 4e8], [1e9, 6e9, 3e10], [1.0, 2, 8])
    x = dict(zip(("params", "tokens", "streams"), (v.ravel() for v in grid), strict=True))
    loss = law.evaluate([2, 400, 2000, 0.35, 0.37, 0.4], **x)
    return {**x, "loss": loss * np.exp(noise * np.random.default_rng(0).normal(size=27))}


def test_a_factor_from_a_file_is_fitted_saved_and_loaded(file, tmp_path):
    place = file(STREAMS, "my parts.py")
    law = laws.get(f"hoffmann * {place}:Streams(streams)")
    assert law.spec == f"hoffmann * {place}:Streams(streams)"
    assert law.names[-1] == "k_streams"
    whole = laws.get(f"hoffmann * {place}:Streams + {place}:Toll")
    assert whole.axes == ("params", "tokens", "streams", "shards", "hops")
    assert whole.given(["params", "tokens", "streams"]).spec == law.spec
    found = isoloss.fit(law, streams_table(law), draws=50, uncertainty="laplace", sensitivity=False)
    assert found.values["k_streams"] == pytest.approx(0.4, rel=0.3)
    found.save(tmp_path / "fit.json")
    again = isoloss.load(tmp_path / "fit.json")
    at = {"params": 1e9, "tokens": 1e11, "streams": [1, 8]}
    assert again.law.spec == law.spec
    assert np.array_equal(again.predict(**at).draws, found.predict(**at).draws)
    less = isoloss.fit(whole, streams_table(law), draws=0, sensitivity=False)
    assert less.law.spec == law.spec
    assert less.values == pytest.approx(found.values, rel=1e-9)


def test_a_part_without_an_address_says_so_when_saved(file, tmp_path):
    kind = type(laws.get(f"hoffmann * {file(STREAMS)}:Streams").factors[0])

    class Precision(kind):  # named as a shipped part: the file would name another law
        pass

    law = laws.get("hoffmann") * Precision(("streams",))
    found = isoloss.fit(law, streams_table(law), draws=20, uncertainty="laplace", sensitivity=False)
    with pytest.raises(ValueError, match=r"put the class Precision into a file"):
        found.save(tmp_path / "fit.json")
    assert not (tmp_path / "fit.json").exists()


@pytest.mark.parametrize(
    ("change", "spec", "says"),
    [
        ((), "hoffmann + {}:Streams", r"no term 'Streams'.*found \['Toll'\]"),
        ((), "hoffmann * {}:Nothing", r"no factor 'Nothing'.*found \['Streams'\]"),
        ((), "hoffmann * {}:Streams(bits)", "reads some of streams, shards"),
        (('scales = "params"', 'scales = "loss"'), "hoffmann * {}:Streams", "'params' or 'tokens'"),
        (('    scales = "params"\n', ""), "hoffmann * {}:Streams", "lacks scales"),
        (('    formula = "1 + k log P"\n', ""), "hoffmann * {}:Streams", "lacks formula"),
        (('("hops",)', '("hops")'), "hoffmann + {}:Toll", "needs its comma"),
        (("np.log(x[name])", "np.sin(x[name])"), "hoffmann * {}:Streams", "np.sin"),
        (('theta["t"]', 'theta["s"]'), "hoffmann + {}:Toll", "holds t by name, x holds params, tokens, hops"),
    ],
)
def test_wrong_parts_say_what_to_do(file, change, spec, says):
    source = STREAMS.replace(*change) if change else STREAMS
    with pytest.raises(ValueError, match=says):
        laws.get(spec.format(file(source)))

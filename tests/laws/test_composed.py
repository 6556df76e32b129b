"""Laws that compose: identity at the reference, order, names, derivatives, fits, files; Kumar's formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

import isoloss
from isoloss import Constraints, laws
from isoloss.laws import positive, real
from isoloss.laws.hoffmann import Hoffmann
from isoloss.laws.parts.composed import BLOCK, Composed, compose
from isoloss.laws.parts.part import Factor, Part
from isoloss.laws.parts.precision import Precision
from isoloss.laws.parts.ptq import Ptq

BASE = {"E": 2.0, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
BITS = {
    "gamma_w": 2.6745,
    "n_w": 0.3037,
    "gamma_a": 2.2102,
    "n_a": 1.4072,
    "gamma_kv": 0.9578,
    "n_kv": 2.4185,
}
POST = {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907}
TRAINED = {"C_w": 0.4, "C_a": 0.6, "C_kv": 0.8}
WHOLE = "hoffmann * precision + ptq"
VALUES = {**BASE, **BITS, **POST, **TRAINED}


class Streams(Factor):
    """``N_eff/N = 1 + k log P``, and the base's alpha with it, to have a factor that reads one."""

    columns = ("streams",)
    shared = ("alpha",)
    scales = "params"
    formula = "(1 + k log P)^(1/alpha)"
    reference = "streams = 1"
    paper = "nobody"

    @property
    def parameters(self):
        return (positive("k", 0.01, 10, "gain"), positive("gamma_w", 0.01, 10, "a name that is taken"))

    def value(self, theta, x):
        return (1.0 + theta["k"] * theta["gamma_w"] * np.log(x["streams"])) ** (1 / theta["alpha"])


class Quality(Factor):
    columns = ("quality",)
    scales = "tokens"
    formula = "q^r"
    reference = "quality = 1"
    paper = "nobody"

    @property
    def parameters(self):
        return (real("r", 0, 1, "exponent"),)

    def value(self, theta, x):
        return x["quality"] ** theta["r"]


def points(axes, n=40, seed=0):
    rng = np.random.default_rng(seed)
    bits = {"bits_weights": (4, 16), "bits_activations": (4, 16), "bits_kv": (4, 16), "bits_post": (3, 12)}
    counts = {"params": (7.5, 9), "tokens": (9, 11)}
    return {
        axis: rng.uniform(*bits[axis], n) if axis in bits else 10 ** rng.uniform(*counts.get(axis, (0, 1)), n)
        for axis in axes
    }


def planted(spec, noise=0.0, unit=1.0):
    """A table on a grid, from the planted values."""
    law = laws.get(spec)
    levels = {
        "params": [3e7, 1.1e8, 2.2e8], "tokens": [1.5e9, 6e9, 2.6e10], "bits_weights": [4.0, 5.0, 8.0, 16.0],
        "bits_post": [3.0, 4.0, 6.0],
    }  # fmt: skip
    x = dict(zip(law.axes, (g.ravel() for g in np.meshgrid(*(levels[a] for a in law.axes))), strict=True))
    loss = law.evaluate(law.theta({name: VALUES[name] for name in law.names}), **x)
    rng = np.random.default_rng(3)
    return {**x, "params": x["params"] * unit, "loss": loss * np.exp(noise * rng.normal(size=len(loss)))}


# --- what a composed law is -------------------------------------------------------------------------


def test_it_is_a_law_with_all_its_pieces():
    law = laws.get(WHOLE)
    assert law.axes == ("params", "tokens", "bits_weights", "bits_activations", "bits_kv", "bits_post")
    assert law.names == tuple(VALUES)
    assert (Hoffmann() * Precision() + Ptq()).spec == laws.get("hoffmann*precision+ptq").spec == WHOLE
    assert law.spec == law.slug == WHOLE
    assert law.target == "loss"
    values = law.published_fit("kumar-2024").values
    assert {name: values[name] for name in BITS} == BITS
    assert set(values) == {*BASE, *BITS, "gamma_D", "gamma_N", "gamma_post"}
    assert law.published_fit("besiroglu-2024").values == Hoffmann.published["besiroglu-2024"].values
    with pytest.raises(ValueError, match=r"Known: hoffmann-2022, .*besiroglu-2024"):
        law.published_fit("nobody-1999")
    with pytest.raises(ValueError, match="besiroglu-2024 gives no gamma_w, only E"):
        Constraints(borrow={"gamma_w": "besiroglu-2024"}).resolve(law)
    with pytest.raises(ValueError, match=r"Missing.*C_T"):
        law.theta("kumar-2024")


def test_its_value_is_the_formula():
    law = laws.get(WHOLE)
    x = points(law.axes)
    factor = np.prod([
        1 - np.exp(-x[column] / VALUES[f"gamma_{s}"] + VALUES[f"n_{s}"])
        for s, column in (("w", "bits_weights"), ("a", "bits_activations"), ("kv", "bits_kv"))
    ], axis=0)  # fmt: skip
    n = x["params"] * factor
    above = {c: np.maximum(x[f"bits_{name}"] - x["bits_post"], 0) for c, name in
             (("C_w", "weights"), ("C_a", "activations"), ("C_kv", "kv"))}  # fmt: skip
    term = 0.0598 * x["tokens"] ** 0.5068 / n**0.3439 * np.exp(-x["bits_post"] / 0.5907)
    term = term * np.prod([1 - np.exp(-TRAINED[c] * gap) for c, gap in above.items()], axis=0)
    expected = 2 + 400 / n**0.35 + 2000 / x["tokens"] ** 0.37 + term
    np.testing.assert_allclose(law.evaluate(law.theta(VALUES), **x), expected, rtol=1e-12)
    assert (term == 0).any()
    assert (term > 0).any()


def test_absent_columns_are_exactly_at_the_reference():
    law, base = laws.get(WHOLE), Hoffmann()
    x = points(("params", "tokens"))
    rng = np.random.default_rng(1)
    theta = law.theta(VALUES) * np.exp(0.02 * rng.normal(size=(5, len(VALUES))))
    assert np.array_equal(law.evaluate(theta, **x), base.evaluate(theta[:, :5], **x))
    less = laws.get("hoffmann * precision(bits_weights)")
    x |= points(("bits_weights",), seed=2)
    assert law.given(x).spec == less.spec
    assert np.array_equal(law.evaluate(theta, **x), less.evaluate(theta[:, :7], **x))
    value, slopes = law.elasticities(theta, x)
    own, plain = less.elasticities(theta[:, :7], x)
    assert np.array_equal(value, own)
    assert all(np.array_equal(slopes[axis], plain[axis]) for axis in plain)
    assert not slopes["bits_post"].any()


def test_parts_are_the_identity_at_their_reference():
    x = points(("params", "tokens"))
    many = {name: np.full(40, 1e4) for name in Precision.columns}
    assert np.array_equal(Precision().value(BITS, many), np.ones(40))
    post = {"bits_post": np.full(40, 8.0), **{name: np.full(40, 8.0) for name in Precision.columns}}
    assert not np.any(Ptq().value({**POST, **TRAINED}, {**x, **post}))


def test_factors_commute():
    one = Hoffmann() * Streams() * Precision(("bits_weights",)) * Quality()
    other = Hoffmann() * Quality() * Precision(("bits_weights",)) * Streams()
    assert one.spec == other.spec
    assert one.names == other.names
    values = {**BASE, "r": 0.3, "k": 0.5, "precision_gamma_w": 2.6, "n_w": 0.3, "streams_gamma_w": 0.7}
    x = points(one.axes)
    got = one.evaluate(one.theta(values), **x)
    n = (
        x["params"]
        * (1 - np.exp(0.3 - x["bits_weights"] / 2.6))
        * (1 + 0.35 * np.log(x["streams"])) ** (1 / 0.35)
    )
    d = x["tokens"] * x["quality"] ** 0.3
    np.testing.assert_allclose(got, 2 + 400 / n**0.35 + 2000 / d**0.37, rtol=1e-12)


def test_names_are_prefixed_only_where_two_pieces_share_one():
    law = Hoffmann() * Streams() * Precision(("bits_weights",))
    assert law.names == (*BASE, "precision_gamma_w", "n_w", "k", "streams_gamma_w")
    values = law.published_fit("kumar-2024").values
    assert {name: values[name] for name in law.names[5:7]} == {"precision_gamma_w": 2.6745, "n_w": 0.3037}
    assert laws.get("hoffmann * precision -> loss-to-error").names[-3:] == ("epsilon", "k", "gamma")


def test_a_link_maps_the_target():
    law = laws.get("hoffmann * precision(bits_weights) -> loss-to-error")
    assert law.target == "error"
    link, inner = laws.get("loss-to-error"), laws.get("hoffmann * precision(bits_weights)")
    theta = [*law.base.theta(BASE), 2.6745, 0.3037, 0.857, 2.21, 0.715]
    x = points(law.axes)
    loss = inner.evaluate(theta[:7], **x)
    assert np.array_equal(law.evaluate(theta, **x), link.evaluate(theta[7:], loss=loss))
    assert laws.get(law.spec).spec == law.spec
    assert law.floor(np.array(theta)) is None
    del x["bits_weights"]
    np.testing.assert_array_equal(
        law.evaluate(theta, **x), link.evaluate(theta[7:], loss=Hoffmann().evaluate(theta[:5], **x))
    )


def test_assumed_separable_is_said_of_pieces_that_no_paper_fitted_together():
    assert laws.get(WHOLE).assumed_separable == ()
    law = laws.get("muennighoff * precision(bits_weights)")
    assert law.assumed_separable == (("muennighoff", "precision"),)
    assert "assumed separable: muennighoff and precision" in law.paper
    assert (Hoffmann() * Streams() * Precision()).assumed_separable == (
        ("hoffmann", "streams"),
        ("precision", "streams"),
    )


def test_other_bases():
    law = laws.get("kaplan-nd * precision(bits_weights)")
    theta = [*law.base.theta("kaplan-2020"), 2.6745, 0.3037]
    at = {"params_nonembedding": 1e8, "tokens": 1e10}
    factor = 1 - math.exp(0.3037 - 4 / 2.6745)
    smaller = law.base.evaluate(theta[:4], **{**at, "params_nonembedding": 1e8 * factor})
    assert law.evaluate(theta, **at, bits_weights=4) == pytest.approx(smaller, rel=1e-14)
    unique = laws.get("muennighoff * precision(bits_weights)")
    theta = [*unique.base.theta("muennighoff-2023"), 2.6745, 0.3037]
    filled = unique.evaluate(theta, params=1e9, tokens=1e10, bits_weights=4)
    assert filled == unique.evaluate(theta, params=1e9, tokens=1e10, tokens_unique=1e10, bits_weights=4)


def test_a_base_from_a_file(tmp_path):
    path = tmp_path / "my laws+more.py"
    path.write_text(
        "from isoloss.laws import Law, positive\n"
        "class Mine(Law):\n"
        "    axes = ('params',)\n"
        "    parameters = (positive('A', 1, 1e9),)\n"
        "    def value(self, theta, x):\n"
        "        return theta[0] * x['params'] ** -0.5\n",
        encoding="utf-8",
    )
    law = laws.get(f"{path}:Mine * precision(bits_weights)")
    assert law.evaluate([10.0, 2.6745, -3000.0], params=4.0, bits_weights=4) == 5.0
    assert laws.get(law.spec).spec == law.spec


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hoffmann * precisio", "There are: .*precision"),
        ("hoffmann * ptq", r"goes after \+"),
        ("hoffmann + precision", r"goes after \*"),
        ("hoffman * precision", "no law named"),
        ("hoffmann * precision * precision(bits_kv)", "twice"),
        ("hoffmann * precision(bits)", "bits_weights"),
        ("hoffmann + ptq(bits_weights)", "Add bits_post"),
        ("power(flops) * precision", "needs a base that reads params"),
        ("power(params) + ptq", "needs a base that reads tokens"),
        ("hoffmann -> power(flops)", "one axis"),
        ("hoffmann -> loss-to-error * precision", "link"),
        ("hoffmann *", "There are"),
    ],
)
def test_wrong_specs_say_what_there_is(spec, says):
    with pytest.raises(ValueError, match=says):
        laws.get(spec)


def test_wrong_pieces_and_inputs_are_refused():
    with pytest.raises(TypeError, match="Factor or a LossTerm"):
        compose(Hoffmann(), Part)
    with pytest.raises(ValueError, match="reads alpha"):
        laws.get("power(params)") * Streams()
    law = laws.get(WHOLE)
    with pytest.raises(ValueError, match=r"bits_post.*nonsense"):
        law.evaluate(law.theta(VALUES), params=1e9, tokens=1e10, nonsense=1)
    with pytest.raises(ValueError, match="bits_post finite and above 0"):
        law.evaluate(law.theta(VALUES), params=1e9, tokens=1e10, bits_post=0)
    with pytest.raises(ValueError, match="Add params"):
        law.evaluate(law.theta(VALUES), tokens=1e10, bits_weights=4)


# --- derivatives, batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["", " -> loss-to-error"])
def test_elasticities_are_the_finite_differences(link):
    law = laws.get(WHOLE + link)
    theta = [*VALUES.values(), *([0.857, 2.21, 0.715] if link else [])]
    x = points(law.axes)
    value, slopes = law.elasticities(theta, x)
    np.testing.assert_allclose(value, law.evaluate(theta, **x), rtol=1e-13)
    step = 1e-6
    for axis in law.axes:
        up, down = (law.evaluate(theta, **{**x, axis: x[axis] * math.exp(h)}) for h in (step, -step))
        np.testing.assert_allclose(slopes[axis], (up - down) / (2 * step), rtol=1e-5, atol=1e-8)


def test_slopes_of_the_parameters_are_the_finite_differences():
    from isoloss.fitting.model import DualModel

    law = laws.get(WHOLE)
    x = points(law.axes)
    logs = np.array([p.scale == "log" for p in law.parameters])
    phi = np.where(logs, np.log(law.theta(VALUES)), law.theta(VALUES))
    model = DualModel(law, x, np.zeros(len(phi)), np.eye(len(phi)))
    got = model.jacobian(phi, log=True)
    step = 1e-6
    for i in range(len(phi)):
        up, down = (model.target((phi + h * np.eye(len(phi))[i])[None])[0][0] for h in (step, -step))
        np.testing.assert_allclose(got[:, i], (np.log(up) - np.log(down)) / (2 * step), rtol=1e-4, atol=1e-8)


def test_many_thetas_are_computed_block_by_block_as_one():
    law = laws.get(WHOLE)
    x = points(law.axes, n=300)
    rng = np.random.default_rng(2)
    count = 2 * BLOCK // 300 + 7
    theta = law.theta(VALUES) * np.exp(0.01 * rng.normal(size=(count, len(VALUES))))
    got = law.evaluate(theta, **x)
    assert got.shape == (count, 300)
    for i in (0, BLOCK // 300 - 1, BLOCK // 300, count - 1):
        np.testing.assert_allclose(got[i], law.evaluate(theta[i], **x), rtol=1e-14)
    pair = law.evaluate(theta[:6].reshape(2, 3, -1), **x)
    np.testing.assert_allclose(pair, got[:6].reshape(2, 3, -1), rtol=1e-14)


# --- fits -------------------------------------------------------------------------------------------


def test_planted_parameters_are_recovered():
    spec = "hoffmann * precision(bits_weights)"
    found = isoloss.fit(spec, planted(spec), draws=0, sensitivity=False)
    assert found.result == "identified"
    for name, value in found.values.items():
        assert value == pytest.approx(VALUES[name], rel=1e-4), name


def test_slots_are_fitted_fixed_and_borrowed():
    spec = "hoffmann * precision(bits_weights) + ptq(bits_post, bits_weights)"
    held = Constraints(
        fix={"C_w": 0.4, "gamma_D": 0.5068},
        borrow={"gamma_w": "kumar-2024", "n_w": "kumar-2024", "gamma_post": "kumar-2024"},
    )
    found = isoloss.fit(spec, planted(spec), constraints=held, draws=0, sensitivity=False)
    for name, value in found.values.items():
        assert value == pytest.approx(VALUES[name], rel=1e-4), name
    status = {name: entry.status for name, entry in found.parameters.items()}
    assert [name for name in status if status[name] == "borrowed"] == ["gamma_w", "n_w", "gamma_post"]
    assert [name for name in status if status[name] == "fixed"] == ["gamma_D", "C_w"]


def test_neither_units_nor_the_order_of_rows_matter():
    spec = "hoffmann * precision(bits_weights)"
    table = planted(spec, noise=0.002)
    found = isoloss.fit(spec, table, draws=0, sensitivity=False)
    order = np.random.default_rng(0).permutation(len(table["loss"]))
    shuffled = isoloss.fit(spec, {k: v[order] for k, v in table.items()}, draws=0, sensitivity=False)
    assert np.array_equal(shuffled.theta, found.theta)
    other = {**table, "params": table["params"] / 1e3}
    thousands = isoloss.fit(spec, other, draws=0, sensitivity=False)
    at = {"params": 1e9, "tokens": 1e11, "bits_weights": 4.0}
    here, there = (
        f.law.evaluate(f.theta, **{**at, "params": at["params"] / u})
        for f, u in ((found, 1), (thousands, 1e3))
    )
    assert there == pytest.approx(here, rel=1e-6)
    assert thousands.values["gamma_w"] == pytest.approx(found.values["gamma_w"], rel=1e-4)


def test_a_fit_comes_back_from_its_file(tmp_path):
    law = laws.get("hoffmann * precision(bits_weights)")
    held = Constraints(borrow={"n_w": "kumar-2024"})
    found = isoloss.fit(
        law,
        planted(law.spec, noise=0.002),
        constraints=held,
        draws=50,
        uncertainty="laplace",
        sensitivity=False,
    )
    found.save(tmp_path / "fit.json")
    again = isoloss.load(tmp_path / "fit.json")
    assert again.law.spec == law.spec
    assert again.parameters["n_w"].status == "borrowed"
    at = {"params": 1e9, "tokens": 1e11, "bits_weights": [4, 16]}
    assert np.array_equal(again.predict(**at).draws, found.predict(**at).draws)
    assert again.predict(**at).median[0] > again.predict(**at).median[1]


def test_a_fit_reads_the_columns_that_the_table_has():
    table = planted("hoffmann * precision(bits_weights)", noise=0.002)
    found = isoloss.fit(WHOLE, table, draws=50, uncertainty="laplace", sensitivity=False)
    assert found.law.spec == "hoffmann * precision(bits_weights)"
    plain = found.predict(
        params=1e8, tokens=6e9
    )  # not quantised: inside the rows, and no higher than 16 bits
    assert plain.reach == 1
    assert plain.median < found.predict(params=1e8, tokens=6e9, bits_weights=16).median
    with pytest.raises(
        isoloss.NoAnswer, match=r"not defined at params 1e\+08, .*bits_weights 0.1 in \d+ of 50"
    ):
        found.predict(params=1e8, tokens=6e9, bits_weights=[8, 0.1])
    del table["bits_weights"]
    assert isoloss.fit(WHOLE, table, draws=0, sensitivity=False).law.spec == "hoffmann"


# --- Kumar et al. -----------------------------------------------------------------------------------


def test_precision_at_the_published_values():
    tied = Precision().value(BITS, dict.fromkeys(Precision.columns, np.array([4.0, 6.0, 8.0, 16.0])))
    np.testing.assert_allclose(tied, [0.191, 0.611, 0.828, 0.994], atol=5e-4)
    alone = Precision(("bits_weights",))
    weights = alone.value(BITS, {"bits_weights": np.array([4.0, 6.0, 8.0, 16.0])})
    np.testing.assert_allclose(weights, [0.696, 0.856, 0.932, 0.997], atol=5e-4)
    assert alone.published["kumar-2024"].values == {"gamma_w": 2.6745, "n_w": 0.3037}


def test_the_best_width_at_a_cost_of_bits_is_the_paper_s():
    # alpha = beta and C = (6/16) N D P for all widths alike: the optimum maximises N_eff/(N P); paper: 7 to 8.
    bits = np.linspace(3.2, 16, 1281)
    factor = Precision().value(BITS, dict.fromkeys(Precision.columns, bits))
    assert bits[np.argmax(factor / bits)] == pytest.approx(7.0, abs=0.1)


def test_too_few_bits_are_not_defined():
    for column, edge in (("bits_weights", 0.812), ("bits_activations", 3.110), ("bits_kv", 2.316)):
        part = Precision((column,))
        value = part.value(BITS, {column: np.array([edge - 0.01, edge + 0.01])})
        assert np.isnan(value[0])
        assert 0 < value[1] < 0.02
    both = Precision(("bits_activations", "bits_kv"))  # two negative factors make no positive one
    assert np.isnan(both.value(BITS, {"bits_activations": np.array(2.0), "bits_kv": np.array(2.0)}))


def test_ptq_at_the_published_values_and_where_more_data_hurts():
    term = Ptq(("bits_post",)).value(POST, {"params": 3e7, "tokens": 2.6e10, "bits_post": np.array(4.0)})
    assert term == pytest.approx(0.0349, abs=5e-5)
    law = laws.get("hoffmann + ptq(bits_post)")
    kumar = {"E": 2.7648, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.4965}
    assert Hoffmann().evaluate(list(kumar.values()), params=2.2e8, tokens=2.6e10) == pytest.approx(
        3.1966, abs=5e-5
    )
    bits, n = np.array([3.0, 4.0, 5.0]), 1.1e8
    slope = POST["gamma_D"] + kumar["beta"]
    most = (
        kumar["beta"] * kumar["B"] * n ** POST["gamma_N"] * np.exp(bits / POST["gamma_post"])
        / (POST["C_T"] * POST["gamma_D"])
    ) ** (1 / slope)  # fmt: skip
    np.testing.assert_allclose(most, [2.6e10, 1.4e11, 7.5e11], rtol=0.03)
    theta = law.theta({**kumar, **POST})
    for factor, sign in ((0.99, -1), (1.01, 1)):
        x = {"params": np.full(3, n), "tokens": factor * most, "bits_post": bits}
        assert (np.sign(law.elasticities(theta, x)[1]["tokens"]) == sign).all()
    at_most = law.elasticities(theta, {"params": np.full(3, n), "tokens": most, "bits_post": bits})
    np.testing.assert_allclose(at_most[1]["tokens"], 0, atol=1e-12)


def test_monotone_where_claimed():
    law = laws.get(WHOLE)
    _, slopes = law.elasticities(law.theta(VALUES), points(law.axes, n=200))
    for axis in ("params", "bits_post"):
        assert (slopes[axis] <= 0).all()
    plain = laws.get("hoffmann * precision")
    _, slopes = plain.elasticities(plain.theta({**BASE, **BITS}), points(plain.axes, n=200))
    assert all((slope < 0).all() for slope in slopes.values())


def test_it_composes_again():
    law = laws.get("hoffmann * precision(bits_weights)")
    assert isinstance(law, Composed)
    assert (law + Ptq(("bits_post",))).spec == "hoffmann * precision(bits_weights) + ptq(bits_post)"
    assert law.floor(law.theta({**BASE, "gamma_w": 2.6, "n_w": 0.3})) == Hoffmann().floor(
        np.array([*BASE.values()])
    )


@pytest.mark.parametrize(
    ("how", "bits", "noise"), [("posterior", (16.0,), 0.01), ("laplace", (3.3, 4.0, 8.0), 0.06)]
)
def test_every_draw_is_defined_at_its_own_rows(how, bits, noise):
    """At few bits the factor ends at 0; parameters that the rows leave open go up to that edge and not beyond."""
    n, d = (v.ravel() for v in np.meshgrid([3e7, 1e8, 3e8, 1e9], [1e9, 4e9, 16e9]))
    bits = np.resize(bits, 12)
    clean = 1.8 + 480 * (n * (1 - np.exp(1.4072 - bits / 2.2102))) ** -0.35 + 2000 * d**-0.37
    loss = clean * np.exp(noise * np.random.default_rng(0).normal(size=12))
    table = {"params": n, "tokens": d, "bits_activations": bits, "loss": loss}
    found = isoloss.fit(
        "hoffmann * precision", table, draws=100, starts=8, uncertainty=how, sensitivity=how == "posterior"
    )
    assert np.isfinite(found.law.evaluate(found.draws, **found.x)).all()
    assert found.result == "not-identified"

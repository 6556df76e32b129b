"""Every part of the registries: formula, reference, derivatives, monotony, planted parameters, units, documentation."""

from __future__ import annotations

import inspect
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import isoloss
from isoloss import Constraints, laws
from isoloss.fitting.model import DualModel
from isoloss.laws import parts
from isoloss.laws.law import UNITS
from isoloss.laws.parts.critical import critical_tokens
from isoloss.laws.parts.data_constrained import DataConstrained
from isoloss.laws.parts.excess_params import ExcessParams
from isoloss.laws.parts.float_quantisation import FloatQuantisation, best_layout
from isoloss.laws.parts.part import Factor, LossTerm
from tests.oracles.formulas import FORMULAS
from tests.oracles.parts import BASES, LEVELS, PART_FORMULAS, PLANTED_PARTS

SLUGS = [*parts.FACTORS, *parts.TERMS]
MACHINERY = {"__init__", "composed", "critical", "part"}

each_part = pytest.mark.parametrize("slug", SLUGS)


def sign(slug):
    return "*" if slug in parts.FACTORS else "+"


def kind_of(slug):
    return getattr(parts, {**parts.FACTORS, **parts.TERMS}[slug])


def law_with(*slugs):
    """One law of the first one's base and all of them, and its planted theta."""
    base = PLANTED_PARTS[slugs[0]].base
    law = laws.get(" ".join([base, *(f"{sign(slug)} {slug}" for slug in slugs)]))
    values = {("base", name): value for name, value in BASES[base].items()}
    values |= {(slug, name): v for slug in slugs for name, v in PLANTED_PARTS[slug].values.items()}
    theta = [values[slug if slug in slugs else "base", own.name] for slug, own in law.slots]
    return law, np.array(theta)


def with_shares(x, shares):
    return {name: v * x[shares[name]] if name in shares else v for name, v in x.items()}


def points(law, slugs, n=60, seed=0):
    """Between the extremes of the planted levels, evenly in logs."""
    rng = np.random.default_rng(seed)
    levels = {**LEVELS, **{c: v for slug in slugs for c, v in PLANTED_PARTS[slug].levels.items()}}
    x = {a: np.exp(rng.uniform(math.log(min(levels[a])), math.log(max(levels[a])), n)) for a in law.axes}
    return with_shares(x, {c: a for slug in slugs for c, a in PLANTED_PARTS[slug].shares.items()})


def grid(slug):
    law, theta = law_with(slug)
    levels = {**LEVELS, **PLANTED_PARTS[slug].levels}
    mesh = np.meshgrid(*(np.asarray(levels[axis], dtype=float) for axis in law.axes))
    x = dict(zip(law.axes, (values.ravel() for values in mesh), strict=True))
    return law, theta, with_shares(x, PLANTED_PARTS[slug].shares)


# --- the registries ---------------------------------------------------------------------------------


def test_every_file_of_a_part_is_registered():
    files = {path.stem for path in Path(parts.__file__).parent.glob("*.py")}
    assert files - MACHINERY == {slug.replace("-", "_") for slug in SLUGS}
    assert sorted(set(parts.__all__)) == parts.__all__
    assert sorted(parts.__all__) == sorted([*parts.FACTORS.values(), *parts.TERMS.values()])
    assert not set(SLUGS) & set(laws.LAWS)
    for registry, kind in ((parts.FACTORS, Factor), (parts.TERMS, LossTerm)):
        assert all(issubclass(getattr(parts, name), kind) for name in registry.values())


def test_the_oracles_cover_the_registries():
    assert set(PART_FORMULAS) == set(PLANTED_PARTS) == set(SLUGS)
    for slug in SLUGS:
        example = PLANTED_PARTS[slug]
        part = kind_of(slug)()
        assert set(example.values) == {p.name for p in part.parameters}
        assert set(example.levels) == set(part.columns)
        assert {*example.falls, *example.rises, *example.reference} <= set(part.columns)


@each_part
def test_a_part_is_documented(slug):
    kind = kind_of(slug)
    part, text = kind(), inspect.getdoc(kind)
    for section in (".. math::", "Inputs:", "Returns:", "Valid for:", "Source:", "Example:", ">>>"):
        assert section in text, section
    assert "arXiv:" in part.paper
    assert "arXiv:" in inspect.getmodule(kind).__doc__
    assert part.formula
    assert part.reference
    assert set(part.columns) <= set(UNITS)
    assert all(name in text for name in part.columns)
    assert all(parameter.meaning for parameter in part.parameters)
    for found in part.published.values():
        assert set(found.values) <= {parameter.name for parameter in part.parameters}
        assert "arXiv:" in found.source


@each_part
def test_a_part_keeps_the_parameters_of_the_columns_that_are_there(slug):
    part = kind_of(slug)()
    for count in range(1, len(part.columns) + 1):
        reads = part.columns[:count]
        if not set(part.needed) <= set(reads):
            with pytest.raises(ValueError, match="Add"):
                part.given(reads)
            continue
        less = part.given([*reads, "params"])
        assert less.reads == reads
        assert {p.name for p in less.parameters} <= {p.name for p in part.parameters}
        assert laws.get(f"{PLANTED_PARTS[slug].base} {sign(slug)} {less.spec}").parts == (less,)
    assert part.given(["params", "tokens"]) is None
    with pytest.raises(ValueError, match="nonsense"):
        type(part)(("nonsense",))


# --- what a part does -------------------------------------------------------------------------------


@each_part
def test_its_value_is_the_paper_s_formula(slug):
    law, theta = law_with(slug)
    x = points(law, [slug])
    rng = np.random.default_rng(1)
    for _ in range(4):
        moved = theta * np.exp(0.05 * rng.normal(size=len(theta)))
        own = {name: value for (_, name), value in zip(law.slot_names, moved, strict=True)}
        got = law.effects(moved, **x)[slug]
        np.testing.assert_allclose(got, PART_FORMULAS[slug](own, x), rtol=1e-11, atol=1e-15)
        assert np.isfinite(got).all()
        assert np.ptp(got) > 0


@each_part
def test_at_its_reference_a_part_changes_nothing(slug):
    law, theta = law_with(slug)
    example = PLANTED_PARTS[slug]
    x = points(law, [slug])
    base = laws.get(example.base)
    plain = {axis: x[axis] for axis in base.axes}
    want = base.evaluate(theta[: len(base.names)], **plain)
    assert np.array_equal(law.evaluate(theta, **plain), want)  # absent
    changed = law.evaluate(theta, **x)
    assert not np.allclose(changed, want, rtol=1e-6)
    if example.reference:
        level = {name: np.full(len(want), float(v)) for name, v in example.reference.items()}
        shares = {name: axis for name, axis in example.shares.items() if name in level}
        at = with_shares({**x, **level}, shares)
        np.testing.assert_allclose(law.evaluate(theta, **at), want, rtol=1e-14)


@each_part
def test_it_is_monotone_where_claimed(slug):
    law, theta = law_with(slug)
    example = PLANTED_PARTS[slug]
    for column in (*example.falls, *example.rises):
        levels = np.geomspace(min(example.levels[column]), max(example.levels[column]), 40)
        x = {axis: values[:, None] for axis, values in points(law, [slug]).items()}
        x[column] = levels * (x[example.shares[column]] if column in example.shares else 1.0)
        loss = law.evaluate(theta, **x)
        steps = np.diff(loss, axis=1) * (1 if column in example.falls else -1)
        assert (steps <= 1e-14).all(), column
        assert np.ptp(loss, axis=1).max() > 1e-6, column


@each_part
def test_its_slopes_are_the_finite_differences(slug):
    law, theta = law_with(slug)
    x = points(law, [slug], seed=2)
    value, slopes = law.elasticities(theta, x)
    np.testing.assert_allclose(value, law.evaluate(theta, **x), rtol=1e-13)
    step = 1e-6
    for axis in law.axes:
        up, down = (law.evaluate(theta, **{**x, axis: x[axis] * math.exp(h)}) for h in (step, -step))
        np.testing.assert_allclose(slopes[axis], (up - down) / (2 * step), rtol=2e-5, atol=1e-8)
    logs = np.array([p.scale == "log" for p in law.parameters])
    phi = np.where(logs, np.log(np.where(logs, theta, 1.0)), theta)
    model = DualModel(law, x, np.zeros(len(phi)), np.eye(len(phi)))
    got = model.jacobian(phi, log=False)
    for i in range(len(phi)):
        up, down = (model.target((phi + h * np.eye(len(phi))[i])[None])[0][0] for h in (step, -step))
        np.testing.assert_allclose(got[:, i], (up - down) / (2 * step), rtol=2e-5, atol=1e-8)


def composable():
    """Every part at once, but for those whose columns or claims exclude each other."""
    return [slug for slug in SLUGS if PLANTED_PARTS[slug].base == "hoffmann" and slug != "parscale-theory"]


def test_all_parts_together_are_the_base_at_the_products_and_the_sum_of_the_terms():
    slugs = composable()
    law, theta = law_with(*slugs)
    x = points(law, slugs, n=200)
    own = {
        slug: {
            name: v for (s, name), v in zip(law.slot_names, theta, strict=True) if s in (slug, law.base.slug)
        }
        for slug in (*slugs, law.base.slug)
    }
    effective = {axis: x[axis] for axis in law.base.axes}
    for slug in set(slugs) & set(parts.FACTORS):
        axis = kind_of(slug).scales
        effective[axis] = effective[axis] * PART_FORMULAS[slug](own[slug], x)
    want = FORMULAS["hoffmann"](own[law.base.slug], effective)
    for slug in set(slugs) & set(parts.TERMS):
        want = want + PART_FORMULAS[slug](own[slug], {**x, **effective})
    np.testing.assert_allclose(law.evaluate(theta, **x), want, rtol=1e-11)


@pytest.mark.parametrize("pair", list(itertools.combinations(parts.FACTORS, 2)), ids="-".join)
def test_factors_commute(pair):
    one, other = ([kind_of(slug)() for slug in order] for order in (pair, pair[::-1]))
    base = laws.get(PLANTED_PARTS[pair[0]].base)
    first, second = base * one[0] * one[1], base * other[0] * other[1]
    assert first.spec == second.spec
    assert first == second


# --- fits -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recovered():
    """The fit of each part's planted table, made once."""
    made = {}

    def fit(slug):
        if slug not in made:
            law, theta, x = grid(slug)
            held = held_of(slug, law, theta)
            table = {**x, "loss": law.evaluate(theta, **x)}
            made[slug] = isoloss.fit(law, table, constraints=held, draws=0, starts=12, sensitivity=False)
        return made[slug]

    return fit


def held_of(slug, law, theta):
    names = {law.slot_names[slug, name] for name in PLANTED_PARTS[slug].held}
    return Constraints(fix={n: float(v) for n, v in zip(law.names, theta, strict=True) if n in names})


@each_part
def test_planted_parameters_are_recovered(slug, recovered):
    _, theta, _ = grid(slug)
    found = recovered(slug)
    assert found.result == "identified", [w.text for w in found.warnings]
    np.testing.assert_allclose(found.theta, theta, rtol=1e-4)


@each_part
def test_neither_units_nor_the_order_of_rows_matter(slug, recovered):
    law, theta, x = grid(slug)
    rng = np.random.default_rng(4)
    order = rng.permutation(len(x["params"]))
    table = {**{axis: v[order] for axis, v in x.items()}, "loss": law.evaluate(theta, **x)[order]}
    held = held_of(slug, law, theta)
    again = isoloss.fit(law, table, constraints=held, draws=0, starts=12, sensitivity=False)
    assert np.array_equal(again.theta, recovered(slug).theta)
    if not PLANTED_PARTS[slug].units:
        return
    counted = ["params", *(c for c, axis in PLANTED_PARTS[slug].shares.items() if axis == "params")]
    thousands = {name: v / 1e3 if name in counted else v for name, v in table.items()}
    there = isoloss.fit(law, thousands, constraints=held, draws=0, starts=12, sensitivity=False)
    np.testing.assert_allclose(
        law.evaluate(there.theta, **{axis: thousands[axis] for axis in law.axes}), table["loss"], rtol=1e-7
    )


# --- Muennighoff et al. -----------------------------------------------------------------------------


def test_both_factors_of_repeated_data_are_the_law_of_the_paper():
    law, parted = laws.get("muennighoff"), laws.get("hoffmann * data-constrained * excess-params")
    rng = np.random.default_rng(5)
    for unlimited in (0.0, 1.0):  # U_D up to D, and beyond it
        n, d = 10 ** rng.uniform(7, 11, 400), 10 ** rng.uniform(8, 13, 400)
        x = {"params": n, "tokens": d, "tokens_unique": d * 10 ** rng.uniform(-3, unlimited, 400)}
        for theta in (parted.theta("muennighoff-2023"), np.array([2.1, 300, 900, 0.3, 0.4, 3.0, 7.0])):
            same = law.theta(dict(zip(parted.names, theta, strict=True)))
            np.testing.assert_allclose(parted.evaluate(theta, **x), law.evaluate(same, **x), rtol=1e-12)


def test_effective_tokens_of_the_sheet():
    epochs = np.array([1, 2, 4, 8, 16, 44, 100.0])
    part = DataConstrained()
    theta = part.published["muennighoff-2023"].values
    got = part.value(theta, {"tokens": epochs * 1e9, "tokens_unique": np.full(7, 1e9)}) * epochs
    np.testing.assert_allclose(got, [1, 1.968, 3.726, 6.624, 10.58, 15.45, 16.36], atol=0.005)
    assert part.value(theta, {"tokens": 1e9, "tokens_unique": 7e9}) == 1


def test_excess_begins_at_the_size_that_one_pass_wants():
    base = laws.get("hoffmann").theta("muennighoff-2023")
    theta = {**dict(zip(("E", "A", "B", "alpha", "beta"), base, strict=True)), "R_N": 5.3}
    # alpha = beta: U_N = U_D (A/B)^(1/alpha), 0.051 of U_D.
    edge = 1e10 * (base[1] / base[2]) ** (1 / base[3])
    assert edge == pytest.approx(0.051e10, rel=0.01)
    x = {
        "params": edge * np.array([0.5, 1 - 1e-9, 1.01]),
        "tokens": np.full(3, 4e10),
        "tokens_unique": np.full(3, 1e10),
    }
    got = ExcessParams().value(theta, x)
    assert (got[:2] == 1).all()
    assert 0.99 < got[2] < 1


def test_repeated_data_of_the_published_table(table):
    rows = [row for row in table("laws/data_constrained/runs.csv") if row["in_published_fit"] == "1"]
    x = {name: np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "tokens_unique")}
    y = np.array([float(row["loss_nats"]) for row in rows])
    law = laws.get("hoffmann * data-constrained * excess-params")
    predicted = law.evaluate(law.theta("muennighoff-2023"), **x)
    r2 = 1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2)
    assert r2 == pytest.approx(0.77220, abs=6e-6)
    base = {name: "muennighoff-2023" for name in ("E", "A", "B", "alpha", "beta")}
    fits = [
        isoloss.fit(
            name, {**x, "loss": y}, objective=isoloss.LeastSquares(residual="linear"), draws=0, sensitivity=False,
            constraints=held,
        )
        for name, held in (
            (law, Constraints(borrow=base)),
            ("muennighoff", Constraints(borrow=base)),
        )
    ]  # fmt: skip
    assert fits[0].value == pytest.approx(fits[1].value, rel=1e-9)
    assert fits[0].value <= np.sum((y - predicted) ** 2)
    assert fits[0].values["R_D"] == pytest.approx(fits[1].values["R_D"], rel=1e-5)


def test_a_base_that_holds_the_part_already_is_refused():
    with pytest.raises(ValueError, match="holds data-constrained already"):
        laws.get("muennighoff * data-constrained")


# --- Sun et al., Kumar et al. -----------------------------------------------------------------------

FORMATS = {"exponent_bits": [2, 4, 5, 8], "mantissa_bits": [1, 3, 2, 7], "scale_block": 128}


def test_float_quantisation_at_the_printed_constants():
    law = laws.get("hoffmann + float-quantisation")
    theta = law.theta("sun-2025")
    loss = law.evaluate(theta, params=1e9, tokens=1e11, **FORMATS)
    np.testing.assert_allclose(loss, [2.5979, 2.5631, 2.5633, 2.5626], atol=5.1e-5)
    most = critical_tokens(law, theta, params=1e9, **FORMATS)
    np.testing.assert_allclose(most, [3.928e11, 2.733e13, 1.941e13, 1.730e15], rtol=3e-4)
    part = FloatQuantisation()
    with pytest.raises(ValueError, match="Add scale_block"):
        law.evaluate(theta, params=1e9, tokens=1e11, exponent_bits=4, mantissa_bits=3)
    assert part.needed == part.columns


def test_the_best_layout_is_the_best_of_all():
    rng = np.random.default_rng(6)
    own = FloatQuantisation.published.fget(FloatQuantisation())["sun-2025"].values
    found = best_layout([4, 5, 6, 8, 16], own["delta"], own["nu"])
    np.testing.assert_allclose(found.mantissa, [1.42, 1.90, 2.38, 3.34, 7.19], atol=0.006)
    np.testing.assert_allclose(found.exponent + found.mantissa + 1, [4, 5, 6, 8, 16], rtol=1e-14)
    assert found.mantissa_bits[[0, 3, 4]].tolist() == [1, 3, 7]
    assert found.exponent_bits[[0, 3, 4]].tolist() == [2, 4, 8]
    bits, delta, nu = rng.integers(3, 20, 200), rng.uniform(0.3, 6, 200), rng.uniform(0.3, 6, 200)
    got = best_layout(bits, delta, nu)
    for i in range(200):
        every = np.arange(1, bits[i] - 1)
        gain = (bits[i] - 1 - every + 0.5) ** delta[i] * (every + 0.5) ** nu[i]
        assert got.mantissa_bits[i] == every[np.argmax(gain)]
    assert (got.exponent_bits + got.mantissa_bits + 1 == bits).all()
    for wrong in (2, 4.5):
        with pytest.raises(ValueError, match="whole bits"):
            best_layout(wrong, 3, 3)


def lowest(law, theta, x):
    """Where the loss is least along the tokens, by golden section on their log."""
    low, high = math.log(1e6), math.log(1e22)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(120):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        at_a, at_b = (float(law.evaluate(theta, tokens=math.exp(t), **x)) for t in (a, b))
        low, high = (low, b) if at_a < at_b else (a, high)
    return math.exp((low + high) / 2)


def test_critical_tokens_are_where_the_loss_is_least():
    spec = "hoffmann * precision(bits_weights) + ptq(bits_post, bits_weights)"
    law = laws.get(spec)
    theta = law.theta({**law.published["kumar-2024"].values, "C_T": 0.0598, "C_w": 0.4})
    x = {"params": 1.1e8, "bits_post": 4.0, "bits_weights": 6.0}
    found = critical_tokens(law, theta, **x)
    assert found.shape == ()
    assert lowest(law, theta, x) == pytest.approx(float(found), rel=1e-4)
    # Trained in 16 bits: the sheet's closed form.
    plain = laws.get("hoffmann + ptq(bits_post)")
    own = plain.theta({**plain.published["kumar-2024"].values, "C_T": 0.0598})
    draws = own * np.exp(0.01 * np.random.default_rng(7).normal(size=(5, 1, len(own))))
    draws[0, 0] = own
    many = critical_tokens(plain, draws, params=1.1e8, bits_post=[3, 4, 5])
    assert many.shape == (5, 1, 3)
    np.testing.assert_allclose(many[0, 0], [2.6e10, 1.4e11, 7.5e11], rtol=0.02)
    v = dict(zip(plain.names, draws[3, 0], strict=True))
    inner = v["beta"] * v["B"] * 1.1e8 ** v["gamma_N"] * np.exp(np.array([3, 4, 5]) / v["gamma_post"])
    want = (inner / (v["C_T"] * v["gamma_D"])) ** (1 / (v["gamma_D"] + v["beta"]))
    np.testing.assert_allclose(many[3, 0], want, rtol=1e-12)
    for i, bits in enumerate((3, 4, 5)):
        assert lowest(plain, draws[4, 0], {"params": 1.1e8, "bits_post": bits}) == pytest.approx(
            many[4, 0, i], rel=1e-4
        )
    assert critical_tokens(law, theta, params=1e8, bits_post=8, bits_weights=8) == math.inf
    sun = laws.get("hoffmann + float-quantisation")
    at = {"params": 1e9, "exponent_bits": 2, "mantissa_bits": 1, "scale_block": 128}
    assert lowest(sun, sun.theta("sun-2025"), at) == pytest.approx(
        float(critical_tokens(sun, sun.theta("sun-2025"), **at)), rel=1e-4
    )


@pytest.mark.parametrize(
    ("spec", "at", "says"),
    [
        ("hoffmann", {}, "one term"),
        ("kaplan-nd + ptq(bits_post)", {"bits_post": 4}, "hoffmann"),
        ("hoffmann + ptq + float-quantisation", {}, "one term"),
        ("hoffmann * data-constrained + ptq(bits_post)", {"bits_post": 4}, "power of the tokens"),
        ("hoffmann + ptq(bits_post)", {"bits_post": 4, "tokens": 1e9}, "Leave tokens out"),
        ("hoffmann + ptq(bits_post)", {}, "Add bits_post"),
        (
            "hoffmann * excess-params + ptq(bits_post)",
            {"bits_post": 4, "tokens_unique": 1e9},
            "excess-params",
        ),
    ],
)
def test_critical_tokens_refuses_other_laws(spec, at, says):
    law = laws.get(spec)
    theta = [0.5 * (p.low + p.high) if p.scale == "linear" else 2.0 for p in law.parameters]
    with pytest.raises(ValueError, match=says):
        critical_tokens(law, theta, params=1e9, **at)

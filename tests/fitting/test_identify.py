"""What the data do not determine is said: flat directions, bounds, too few rows, rows that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss
from tests.oracles.formulas import FORMULAS, PLANTED, points

TRUTH = PLANTED["hoffmann"]
OPEN = {"flat-direction", "axes-not-separated"}


def table(n=40, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    x = points(("params", "tokens"), n, seed)
    return {**x, "loss": FORMULAS["hoffmann"](TRUTH, x) * np.exp(noise * rng.normal(size=n))}


def ray(n=24, noise=0.01, seed=1):
    """Every run at 20 tokens per parameter: A N^-alpha and B D^-beta are one curve."""
    rng = np.random.default_rng(seed)
    params = np.geomspace(1e7, 1e10, n)
    x = {"params": params, "tokens": 20 * params}
    return {**x, "loss": FORMULAS["hoffmann"](TRUTH, x) * np.exp(noise * rng.normal(size=n))}


def codes(fit):
    return {w.code for w in fit.warnings}


def test_a_good_design_is_identified():
    found = isoloss.fit("hoffmann", table(), draws=200, sensitivity=False)
    assert found.result == "identified"
    assert not codes(found) & OPEN


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
@pytest.mark.parametrize(
    ("objective", "how"),
    [
        (isoloss.Huber(), "bootstrap"),
        (isoloss.Gaussian(), "bootstrap"),
        (isoloss.StudentT(), "laplace"),
        (isoloss.LeastSquares(residual="linear"), "bootstrap"),
    ],
    ids=["huber", "gaussian", "student-laplace", "linear"],
)
def test_one_ratio_of_tokens_to_params_is_not_identified(objective, how, noise):
    found = isoloss.fit(
        "hoffmann",
        ray(noise=noise),
        objective=objective,
        draws=200,
        uncertainty=how,
        starts=24,
        sensitivity=False,
    )
    assert found.result == "not-identified"
    assert codes(found) & OPEN
    for w in found.warnings:
        assert w.text
        assert w.why
        assert w.do


def test_a_wide_prior_does_not_make_a_ray_identified():
    """A prior on alpha leaves B and beta as open as they were, whichever way the noise is estimated."""
    held = isoloss.Constraints(priors={"alpha": (0.35, 0.3)}, fix={"E": 1.8})
    conditions = []
    for objective in (isoloss.Gaussian(), isoloss.LeastSquares()):
        found = isoloss.fit(
            "hoffmann", ray(), objective=objective, constraints=held, draws=0, starts=24, sensitivity=False
        )
        assert found.result == "not-identified", objective.name
        conditions.append(found.condition)
    # The same estimate, so the same information.
    assert conditions[0] == pytest.approx(conditions[1], rel=0.01)


def test_borrowing_what_the_ray_leaves_open_identifies_the_rest():
    borrowed = isoloss.Constraints(borrow={"B": "besiroglu-2024", "beta": "besiroglu-2024"})
    found = isoloss.fit("hoffmann", ray(), constraints=borrowed, draws=200, sensitivity=False)
    assert "flat-direction" not in codes(found)
    assert found.parameters["B"].status == "borrowed"
    assert found.values["B"] == 2085.43
    assert found.free == 3
    # The constraints of a fit are good for the next one.
    again = isoloss.fit("hoffmann", ray(), constraints=found.constraints, draws=0, sensitivity=False)
    assert np.array_equal(again.theta, found.theta)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_no_more_rows_than_parameters(n):
    found = isoloss.fit("hoffmann", {k: v[:n] for k, v in table().items()}, draws=30, sensitivity=False)
    assert found.result == "not-identified"
    assert "too-few-rows" in codes(found)


def test_one_row_is_no_answer():
    with pytest.raises(isoloss.NoAnswer, match="1 row cannot determine"):
        isoloss.fit("hoffmann", {k: v[:1] for k, v in table().items()}, draws=0, sensitivity=False)


def test_an_estimate_on_its_bound_says_so():
    held = isoloss.Constraints(bounds={"alpha": (0.05, 0.2)})
    found = isoloss.fit("hoffmann", table(), constraints=held, draws=50, sensitivity=False)
    assert found.parameters["alpha"].status == "at-bound"
    assert found.values["alpha"] == pytest.approx(0.2, rel=1e-9)
    assert [w.column for w in found.warnings if w.code == "at-bound"] == ["alpha"]
    assert (found.draws[:, 3] <= 0.2 + 1e-12).all()
    assert found.free == 5


def test_a_tied_pair_on_its_bound_counts_once():
    held = isoloss.Constraints(tie=(("alpha", "beta"),), bounds={"alpha": (0.05, 0.2)})
    found = isoloss.fit("hoffmann", table(), constraints=held, draws=20, sensitivity=False)
    assert found.values["alpha"] == found.values["beta"] == pytest.approx(0.2)
    assert "at-bound" in codes(found)
    assert found.free == 4


def test_no_floor_in_the_data_ends_at_the_bound_of_the_floor():
    tokens = np.geomspace(1e8, 1e10, 20)
    found = isoloss.fit(
        "hestness", {"tokens": tokens, "loss": 30 * tokens**-0.1}, draws=20, sensitivity=False
    )
    assert found.values["beta"] == pytest.approx(0.1, rel=1e-3)
    assert found.values["gamma"] < 1e-3


# --- wrong constraints ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"fix": {"zeta": 1.0}}, "zeta"),
        ({"tie": (("alpha", "gamma"),)}, "gamma"),
        ({"bounds": {"N": (0, 1)}}, "'N'"),
        ({"priors": {"eta": (0, 1)}}, "eta"),
        ({"borrow": {"psi": "besiroglu-2024"}}, "psi"),
        ({"borrow": {"beta": "nobody-1999"}}, "besiroglu-2024"),
        ({"fix": {"E": 0.0}}, "above 0"),
        ({"fix": {"E": -1.0}}, "above 0"),
        ({"fix": {"alpha": float("nan")}}, "finite"),
        ({"bounds": {"alpha": (0.5, 0.1)}}, "low < high"),
        ({"bounds": {"alpha": (0.1, float("nan"))}}, "low < high"),
        ({"bounds": {"E": (-2.0, -1.0)}}, "low < high"),
        ({"priors": {"alpha": (0.3, 0.0)}}, "sd > 0"),
        ({"priors": {"alpha": (float("nan"), 1.0)}}, "sd > 0"),
        ({"tie": (("A", "alpha"),)}, "differ in kind"),
        ({"tie": (("alpha", "beta"), ("beta", "alpha"))}, "two ties"),
        ({"tie": (("alpha", "beta"),), "fix": {"alpha": 0.3}}, "tied"),
        ({"fix": {"alpha": 0.3}, "priors": {"alpha": (0.3, 0.1)}}, "twice"),
        ({"fix": {"alpha": 0.3}, "bounds": {"alpha": (0.1, 0.2)}}, "alpha"),
        ({"priors": {"alpha": (9.0, 0.1)}}, "alpha"),
    ],
)  # fmt: skip
def test_constraints_that_make_no_sense(held, says):
    with pytest.raises(ValueError, match=r"hoffmann|held|tie") as error:
        isoloss.fit("hoffmann", table(), constraints=isoloss.Constraints(**held), draws=0, sensitivity=False)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        {"fix": ["E"]}, {"fix": ["E=much"]}, {"fix": ["E=1", "E=2"]}, {"fix": ["=1"]}, {"tie": ["alpha"]},
        {"tie": ["alpha="]}, {"bound": ["alpha=1"]}, {"bound": ["alpha=1:2:3"]}, {"bound": ["alpha=a:b"]},
        {"prior": ["beta=0.3"]}, {"prior": ["beta~0.3"]}, {"prior": ["beta~0.3+-x"]}, {"borrow": ["beta"]},
    ],
    ids=str,
)  # fmt: skip
def test_command_line_words_that_do_not_parse(words):
    with pytest.raises(ValueError, match=r"needs|needed|twice"):
        isoloss.Constraints.parse(**words)


def test_command_line_words():
    got = isoloss.Constraints.parse(
        fix=["E=1.69"], tie=["alpha = beta"], bound=["A=1:1e4"], prior=["B~400±50"], borrow=["x=y"]
    )
    assert got == isoloss.Constraints(
        {"E": 1.69}, (("alpha", "beta"),), {"A": (1.0, 1e4)}, {"B": (400.0, 50.0)}, {"x": "y"}
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: isoloss.Huber(delta=0.0), lambda: isoloss.Huber(delta=float("nan")), lambda: isoloss.StudentT(df=-1),
        lambda: isoloss.Huber(residual="square"), lambda: isoloss.LeastSquares(reduction="max"),
    ],
)  # fmt: skip
def test_objectives_that_make_no_sense(make):
    with pytest.raises(ValueError, match="must be"):
        make()


# --- rows -------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_named_not_dropped():
    data = {k: v.copy() for k, v in table().items()}
    data["loss"][3] = np.nan
    data["loss"][8] = np.inf
    data["params"][11] = np.nan
    found = isoloss.fit("hoffmann", data, draws=20, sensitivity=False)
    assert {(r.row, r.code) for r in found.removed} == {
        (4, "nonfinite-loss"), (9, "nonfinite-loss"), (12, "missing-value"),
    }  # fmt: skip
    assert len(found.y) + len(found.removed) == 40
    assert set(found.rows) == set(range(1, 41)) - {4, 9, 12}
    kept = np.setdiff1d(np.arange(40), [3, 8, 11])
    clean = isoloss.fit("hoffmann", {k: v[kept] for k, v in data.items()}, draws=20, sensitivity=False)
    assert np.array_equal(clean.draws, found.draws)
    document = found.to_json()
    assert sorted(entry["row"] for entry in document["rows_removed"]) == [4, 9, 12]


@pytest.mark.parametrize(
    ("column", "value"), [("loss", 0.0), ("loss", -1.0), ("params", 0.0), ("tokens", -5.0)]
)
def test_values_no_law_can_mean_are_refused_with_their_row(column, value):
    data = {k: v.copy() for k, v in table().items()}
    data[column][6] = value
    with pytest.raises(ValueError, match="row 7") as error:
        isoloss.fit("hoffmann", data, draws=0, sensitivity=False)
    assert column in str(error.value)


def test_absent_columns_are_named():
    data = table()
    with pytest.raises(ValueError, match="tokens"):
        isoloss.fit("hoffmann", {"params": data["params"], "loss": data["loss"]}, draws=0, sensitivity=False)
    with pytest.raises(ValueError, match="loss"):
        isoloss.fit(
            "hoffmann", {"params": data["params"], "tokens": data["tokens"]}, draws=0, sensitivity=False
        )
    for option in ("weights", "cluster"):
        with pytest.raises(ValueError, match="nonsense"):
            isoloss.fit("hoffmann", data, draws=0, **{option: "nonsense"})


def test_weights_of_zero_take_a_row_out_and_negative_ones_are_refused():
    data = table()
    w = np.ones(40)
    w[:5] = 0.0
    found = isoloss.fit("hoffmann", {**data, "w": w}, weights="w", draws=0, sensitivity=False)
    without = isoloss.fit("hoffmann", {k: v[5:] for k, v in data.items()}, draws=0, sensitivity=False)
    np.testing.assert_allclose(found.theta, without.theta, rtol=1e-6)
    w[0] = -1.0
    with pytest.raises(ValueError, match="w"):
        isoloss.fit("hoffmann", {**data, "w": w}, weights="w", draws=0, sensitivity=False)


def test_rows_without_a_cluster_are_not_one_big_cluster():
    data = table()
    data["family"] = np.array(["a", "b", "c", "d", ""] * 8)
    with pytest.raises(ValueError, match="family"):
        isoloss.fit("hoffmann", data, cluster="family", draws=10, sensitivity=False)


def test_tokens_follow_from_flops():
    data = table()
    flops = {"params": data["params"], "flops": 6 * data["params"] * data["tokens"], "loss": data["loss"]}
    a, b = (
        isoloss.fit("hoffmann", data, draws=0, sensitivity=False),
        isoloss.fit("hoffmann", flops, draws=0, sensitivity=False),
    )
    np.testing.assert_allclose(a.theta, b.theta, rtol=1e-6)
    assert "tokens" in b.derived
    assert not a.derived


def test_a_column_at_its_default_is_not_required():
    data = table()
    found = isoloss.fit(
        "muennighoff",
        data,
        draws=0,
        constraints=isoloss.Constraints(fix={"R_N": 1e9, "R_D": 10.0}),
        sensitivity=False,
    )
    plain = isoloss.fit("hoffmann", data, draws=0, sensitivity=False)
    assert found.value == pytest.approx(plain.value, rel=1e-4)

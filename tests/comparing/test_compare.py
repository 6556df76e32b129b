"""Laws against each other: scores on the same rows, verdicts, criteria, the stack and its file."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

import isoloss
from isoloss.cli import run
from isoloss.comparing import candidates
from isoloss.comparing.backtest import LEVELS, Backtest, Fold
from isoloss.comparing.candidates import named
from isoloss.comparing.compare import negative_log_likelihood
from isoloss.comparing.comparison import Comparison, margin
from isoloss.comparing.stack import Stack
from isoloss.errors import NoAnswer
from isoloss.laws import get

QUICK = {"draws": 40, "starts": 4, "folds": 2}


def curve(n: int = 30, floor: float = 1.5, noise: float = 0.003, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = 10 ** rng.uniform(6, 9, n)
    loss = (floor + 60 * tokens**-0.3) * np.exp(noise * rng.standard_normal(n))
    return {"tokens": tokens, "loss": loss}


@pytest.fixture(scope="module")
def found() -> Comparison:
    return isoloss.compare(["power", "hestness"], curve(), **QUICK)


@pytest.fixture(scope="module")
def stack() -> Stack:
    return isoloss.auto(curve(), ["power", "hestness"], draws=100, fold_draws=40, starts=4, folds=2)


def scored(crps: np.ndarray, fold: np.ndarray, law: str = "a") -> Backtest:
    """A back-test of which only the CRPS and the folds matter."""
    n, zero = len(crps), np.zeros(len(crps))
    folds = tuple(Fold(10, 5, 1.0, "identified", "", True) for _ in np.unique(fold))
    return Backtest(
        law, 0.9, "flops", folds, (), np.arange(n), fold, zero + 1, zero, zero, zero, zero, zero, zero, crps,
        zero, zero, LEVELS, np.zeros((len(LEVELS), n)),
    )  # fmt: skip


# Verdicts


def test_the_margin_is_a_t_interval_of_the_log_ratios_of_the_folds():
    rng = np.random.default_rng(0)
    fold = np.repeat(np.arange(4), [3, 5, 4, 4])
    a, b = rng.gamma(4, size=16), rng.gamma(4, size=16)
    logs = [np.log(a[fold == k].mean() / b[fold == k].mean()) for k in range(4)]
    ends = stats.t.interval(0.95, 3, np.mean(logs), stats.sem(logs))
    gap = margin(scored(a, fold), scored(b, fold, "b"))
    assert (np.log(gap.low), np.log(gap.high)) == pytest.approx(ends, rel=1e-4)
    assert gap.difference == pytest.approx(np.mean(a - b))
    assert gap.folds == 4


def test_ties_are_not_resolved_at_the_rate_promised():
    rng = np.random.default_rng(1)
    fold, verdicts = np.repeat(np.arange(4), 5), []
    for _ in range(2000):
        a, b = (np.exp(np.repeat(rng.normal(size=4), 5)) for _ in range(2))
        verdicts.append(margin(scored(a, fold), scored(b, fold)).verdict)
    wrong = np.mean([verdict != "not resolved" for verdict in verdicts])
    assert abs(wrong - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_verdicts_have_a_side_and_one_fold_resolves_nothing():
    fold = np.repeat(np.arange(4), 5)
    small, large = np.full(20, 1.0), np.linspace(4.0, 4.4, 20)
    assert margin(scored(large, fold), scored(small, fold)).verdict == "worse"
    assert margin(scored(small, fold), scored(large, fold)).verdict == "better"
    assert margin(scored(large, 0 * fold), scored(small, 0 * fold)).verdict == "not resolved"
    assert margin(scored(large, 0 * fold), scored(small, 0 * fold)).high == math.inf


# Compare


def test_all_laws_are_scored_on_the_same_rows(found):
    first, second = (standing.backtest for standing in found.standings)
    assert first.row.tolist() == second.row.tolist()
    assert first.y.tolist() == second.y.tolist()
    assert [f.fitted for f in first.folds] == [f.fitted for f in second.folds]


def test_the_planted_law_wins_and_the_other_is_worse(found):
    assert found.best.law == "hestness(tokens)"
    assert found.best.margin is None
    assert found["power(tokens)"].margin.ratio > 1
    assert found.weights["hestness(tokens)"] > 0.9
    assert sum(found.weights.values()) == pytest.approx(1.0)
    back = found.margin("hestness(tokens)", "power(tokens)")
    assert back.ratio == pytest.approx(1 / found["power(tokens)"].margin.ratio)
    with pytest.raises(ValueError, match="it has no 'gadre'"):
        found["gadre"]


def test_one_hypothesis_in_two_coordinates_is_not_resolved():
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(6, 8, 24), 10 ** rng.uniform(8, 10, 24)
    loss = (1.8 + 480 * params**-0.35 + 2000 * tokens**-0.37) * np.exp(0.01 * rng.standard_normal(24))
    table = {"params": params, "tokens": tokens, "loss": loss}
    same = isoloss.compare(["hoffmann", "gadre-untied"], table, **QUICK)
    assert same.standings[1].margin.verdict == "not resolved"
    assert same.standings[1].margin.ratio == pytest.approx(1.0, abs=0.2)  # few draws of one posterior


@pytest.mark.parametrize("residual", ["log", "linear"])
def test_likelihoods_are_scipys(residual):
    table = curve(n=20)
    y = table["loss"]

    def r(fit):
        level = fit.law.evaluate(fit.theta, tokens=fit.x["tokens"])
        return np.log(fit.y / level) if residual == "log" else fit.y - level

    jacobian = np.sum(np.log(y)) if residual == "log" else 0.0
    fit = isoloss.fit("hestness", table, objective=isoloss.Gaussian(residual), draws=0, sensitivity=False)
    scale = np.sqrt(np.mean(r(fit) ** 2))
    expected = -np.sum(stats.norm.logpdf(r(fit), scale=scale)) + jacobian
    assert negative_log_likelihood(fit) == pytest.approx(expected, rel=1e-6)
    fit = isoloss.fit("hestness", table, objective=isoloss.StudentT(residual), draws=0, sensitivity=False)
    scales = np.exp(np.linspace(-12, 0, 20001))
    best = max(np.sum(stats.t.logpdf(r(fit)[:, None], 4, scale=scales), axis=0))
    assert negative_log_likelihood(fit) == pytest.approx(-best + jacobian, rel=1e-5)
    with pytest.raises(ValueError, match="gaussian or student-t"):
        negative_log_likelihood(isoloss.fit("power", table, draws=0, sensitivity=False))


def test_criteria_are_their_formulas(found):
    fit = isoloss.fit("power", curve(), objective=isoloss.StudentT(), draws=0, sensitivity=False)
    lost, n, k = 2 * negative_log_likelihood(fit), 30, 3
    criteria = found["power(tokens)"].criteria
    assert criteria.aicc == pytest.approx(lost + 2 * k + 2 * k * (k + 1) / (n - k - 1), rel=1e-6)
    assert criteria.bic == pytest.approx(lost + k * math.log(n), rel=1e-6)
    assert criteria.of == "student-t (df 4)"


def test_auto_takes_what_the_table_allows_and_says_what_not():
    table = isoloss.read({"params": np.geomspace(1e6, 1e9, 12), "loss": np.geomspace(4.0, 2.0, 12)})
    asked, chosen, left = named("auto", table.derive())
    assert asked == []
    assert "hestness(params)" in [law.spec for law in chosen]
    assert left["henighan(params)"] == "the same form as hestness"
    assert left["loss-to-error"] == "no law of the loss"
    assert "tokens" in left["hoffmann"]
    assert "need 12 rows" in left["broken2(params)"]
    assert {law.spec for law in chosen} | set(left) >= {get(slug).slug for slug in ("hoffmann", "gadre")}


def test_auto_spares_itself_the_back_test_of_laws_that_miss_their_own_rows(monkeypatch):
    monkeypatch.setattr(candidates, "LAWS", {"power": "Power", "hestness": "Hestness"})
    got = isoloss.compare("auto", curve(), **QUICK | {"folds": 1})
    assert list(got.weights) == ["hestness(tokens)"]
    assert "times as much as hestness(tokens)" in got.left_out["power(tokens)"]
    asked = isoloss.compare(["power", "auto"], curve(), **QUICK | {"folds": 1})
    assert set(asked.weights) == {"hestness(tokens)", "power(tokens)"}


def test_rows_that_a_law_cannot_use_are_left_out_for_all_and_named():
    table = {**curve(), "params": np.full(30, 1e6)}
    table["params"][:3] = [np.nan, 2e6, 3e6]
    got = isoloss.compare(["power", "power(params)"], table, **QUICK | {"folds": 1})
    assert got.rows == 29
    assert got.removed == ((1, "params is missing"),)


def test_bad_questions_are_named():
    with pytest.raises(ValueError, match="one target"):
        isoloss.compare(["power", "loss-to-error"], {**curve(), "error": curve()["loss"] / 10})
    with pytest.raises(ValueError, match="draws"):
        isoloss.compare("power", curve(), draws=0)
    with pytest.raises(NoAnswer, match="no law can be back-tested"):
        isoloss.compare("hestness", {name: v[:6] for name, v in curve().items()})
    with pytest.raises(TypeError, match="must be called"):
        isoloss.compare([isoloss.Huber], curve())


# Stack


def test_the_stack_averages_quantiles(stack):
    x = {"tokens": np.array([1e9, 4e9])}
    parts = [np.sort(fit.predict(**x).draws, axis=0) for fit in stack.members]
    mean = sum(w * part for w, part in zip(stack.weights, parts, strict=True))
    assert stack.predict(**x).draws == pytest.approx(mean)
    run_low, run_high = (getattr(stack.predict(of="run", **x), end) for end in ("low", "high"))
    assert (run_low < stack.predict(**x).low).all()
    assert (run_high > stack.predict(**x).high).all()
    assert stack.leading.law.spec == "hestness(tokens)"
    assert stack.predict(**x).reach == pytest.approx(stack.leading.predict(**x).reach)


def test_the_stack_derives_axes_and_names_missing_ones():
    table = {"flops": 6e6 * curve()["tokens"], **curve(), "params": np.full(30, 1e6)}
    both = isoloss.auto(
        table, ["hestness(flops)", "hestness(tokens)"], draws=50, fold_draws=40, starts=4, folds=1
    )
    given = both.predict(params=1e6, tokens=[1e9, 2e9])
    assert given.x["flops"] == pytest.approx([6e15, 1.2e16])
    assert given.median.shape == (2,)
    with pytest.raises(ValueError, match="Add"):
        both.predict(tokens=1e9)
    with pytest.raises(ValueError, match="Leave it out"):
        both.predict(params=1e6, tokens=1e9, depth=3)


def test_a_stack_comes_back_from_its_file(stack, tmp_path):
    stack.save(tmp_path / "stack.json")
    back = isoloss.load(tmp_path / "stack.json")
    assert isinstance(back, Stack)
    assert back.to_json() == stack.to_json()
    assert back.predict(of="run", tokens=1e10).low == pytest.approx(stack.predict(of="run", tokens=1e10).low)
    document = stack.to_json()
    for broken in ({"weights": [0.5]}, {"weights": [2.0, -1.0]}, {"members": 3}, {"comparison": {}}):
        (tmp_path / "broken.json").write_text(json.dumps(document | broken))
        with pytest.raises(ValueError, match=r"stack|comparison"):
            isoloss.load(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("laws",), []),
        (("laws", 0, "weight"), -0.5),
        (("laws", 0, "weight"), "much"),
        (("laws", 0, "margin", "ratio"), "wide"),
        (("laws", 0, "r2"), "good"),
        (("laws", 0, "backtest", "points", "y"), ["low"]),
        (("conformal", "shift"), "0.1"),
        (("conformal", "coverage"), "0.9"),
        (("conformal", "coverage"), 90.0),
        (("conformal", "n"), None),
        (("coverage",), "0.9"),
        (("rows",), "many"),
        (("stack_crps",), "little"),
    ],
)
def test_a_damaged_comparison_is_refused_in_words(stack, path, value):
    document = json.loads(json.dumps(stack.to_json()))
    place = document["comparison"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=r"^the stack file is damaged: "):
        Stack.from_json(document)


def test_same_seed_same_result(found):
    shuffled = {name: values[::-1] for name, values in curve().items()}
    again = isoloss.compare(["hestness", "power"], shuffled, **QUICK)
    assert [s.backtest.mean_crps for s in again.standings] == [s.backtest.mean_crps for s in found.standings]
    assert again.weights == pytest.approx(found.weights)


# Command line


def test_the_verbs_write_what_they_print(tmp_path, capsys):
    table, out = tmp_path / "t.csv", tmp_path / "c.json"
    rows = np.column_stack(list(curve().values()))
    np.savetxt(table, rows, delimiter=",", header="tokens,loss", comments="")
    quick = ["--draws", "40", "--folds", "1", "--starts", "4"]
    assert run(["compare", "power", "hestness", str(table), *quick, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "hestness(tokens)" in printed
    assert "best" in printed
    assert "2 laws on 30 rows" in printed
    assert "held out in 1 fold by tokens" in printed
    assert Comparison.from_json(json.loads(out.read_text())).best.law == "hestness(tokens)"
    assert run(["fit", "auto", str(table), "--draws", "40", "--fix", "E=1"]) == 2
    assert "--fix" in capsys.readouterr().err


def test_predict_and_plan_read_a_stack(stack, tmp_path, capsys):
    path = tmp_path / "stack.json"
    stack.save(path)
    assert run(["predict", str(path), "--tokens", "1G,4G", "--of", "run"]) == 0
    assert "stack of" in capsys.readouterr().out
    assert run(["predict", str(path), "--params-nonembedding", "1G"]) == 2
    assert "missing: tokens" in capsys.readouterr().err
    leading = stack.leading.law.spec
    assert run(["versus", str(path), str(path), "--at", "1G"]) == 0
    assert capsys.readouterr().out.count(f"of the stack the leading one, {leading}") == 1
    assert run(["report", str(path), "--out", str(tmp_path / "page.html")]) == 0
    assert f"a report needs one law: of the stack the leading one, {leading}" in capsys.readouterr().out
    assert leading in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(TypeError, match=r"write_report\(stack.leading"):
        isoloss.write_report(stack, tmp_path / "other.html")

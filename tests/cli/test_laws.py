"""``isoloss laws``: laws, factors and terms; and ``isoloss predict --link``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import isoloss
from isoloss.cli import run
from isoloss.laws import LAWS
from isoloss.laws.parts import FACTORS, TERMS
from isoloss.laws.schedules import SCHEDULE_LAWS
from isoloss.report.blocks import cautions

Out = pytest.CaptureFixture[str]


def test_all_laws_factors_and_terms_are_listed(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "laws.json"
    assert run(["laws", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    listed = {entry["name"].partition("(")[0]: entry for entry in json.loads(out.read_text())["laws"]}
    assert set(listed) == {*LAWS, *FACTORS, *TERMS}
    for slug in (*FACTORS, *TERMS):
        assert slug in printed
        assert listed[slug]["target"] is None
        assert listed[slug]["kind"] == ("term" if slug in TERMS else listed[slug]["kind"])
    assert listed["precision"]["kind"] == "factor of params"
    assert listed["data-constrained"]["kind"] == "factor of tokens"
    assert listed["loss-to-error"]["kind"] == "link"
    assert listed["hoffmann"]["kind"] == "law"
    assert listed["precision"]["published"]["kumar-2024"]["values"]["gamma_w"] == 2.6745


@pytest.mark.parametrize("slug", [*FACTORS, *TERMS])
def test_a_part_is_shown_in_full(slug: str, capsys: Out) -> None:
    assert run(["laws", slug]) == 0
    printed = capsys.readouterr().out
    for section in ("Inputs:", "Valid for:", "Source:", "Changes nothing at"):
        assert section in printed


def test_a_part_takes_columns_in_parentheses(capsys: Out) -> None:
    assert run(["laws", "precision(bits_weights)"]) == 0
    printed = capsys.readouterr().out
    assert " gamma_w " in printed
    assert " gamma_kv " not in printed


def test_a_composed_law_says_whose_each_parameter_is(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "law.json"
    assert run(["laws", "muennighoff * precision(bits_weights) -> loss-to-error", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    (entry,) = json.loads(out.read_text())["laws"]
    assert [(p["name"], p["of"]) for p in entry["parameters"]][-6:] == [
        ("R_D", "muennighoff"), ("gamma_w", "precision"), ("n_w", "precision"),
        ("epsilon", "loss-to-error"), ("k", "loss-to-error"), ("gamma", "loss-to-error"),
    ]  # fmt: skip
    assert entry["assumed_separable"] == [["muennighoff", "precision"]]
    assert entry["target"] == "error"
    assert "assumed separable: muennighoff and precision" in " ".join(printed.split())


@pytest.mark.parametrize("slug", SCHEDULE_LAWS)
def test_laws_of_schedules_are_named_and_shown_and_not_fitted_as_others(slug: str, capsys: Out) -> None:
    assert run(["laws"]) == 0
    assert slug in capsys.readouterr().out
    assert run(["laws", slug]) == 0
    printed = capsys.readouterr().out
    for said in ("S1^-alpha", "Valid for:", " L0 ", "Target: loss"):
        assert said in printed
    assert run(["fit", slug, "curves.csv"]) == 2
    assert f"`isoloss schedule fit {slug} CURVES`" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "says"),
    [("precisio", "Factors: .*precision.*Terms: .*ptq"), ("hoffmann * ptq", r"goes after \+")],
)
def test_wrong_names_say_what_there_is(name: str, says: str, capsys: Out) -> None:
    import re

    assert run(["laws", name]) == 2
    assert re.search(says, " ".join(capsys.readouterr().err.split()))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a fit of the loss, one parameter borrowed, and of a link."""
    folder = tmp_path_factory.mktemp("stages")
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4)))
    loss = 1.8 + 480 * n**-0.35 + 2000 * d**-0.3658
    noise = np.random.default_rng(0).normal(size=(2, 16))
    base = isoloss.fit(
        "hoffmann", {"params": n, "tokens": d, "loss": loss * np.exp(0.002 * noise[0])}, draws=60,
        uncertainty="laplace", sensitivity=False,
        constraints=isoloss.Constraints(borrow={"beta": "besiroglu-2024"}),
    )  # fmt: skip
    error = 0.857 - 2.21 * np.exp(-0.715 * loss) + 0.003 * noise[1]
    link = isoloss.fit(
        "loss-to-error", {"loss": loss, "error": error}, draws=60, uncertainty="laplace", sensitivity=False
    )
    for fit, name in ((base, "loss.json"), (link, "error.json")):
        fit.save(folder / name)
    return folder / "loss.json", folder / "error.json"


def test_predict_with_a_link_is_the_chain(stages: tuple[Path, Path], tmp_path: Path, capsys: Out) -> None:
    base, link = stages
    out = tmp_path / "p.json"
    words = [
        "predict",
        str(base),
        "--params",
        "1B,7B",
        "--tokens",
        "100B",
        "--link",
        str(link),
        "--json",
        str(out),
    ]
    assert run(words) == 0
    printed = capsys.readouterr().out
    document = json.loads(out.read_text())
    want = isoloss.chain(isoloss.load(base), isoloss.load(link)).predict(params=[1e9, 7e9], tokens=1e11)  # type: ignore[arg-type]
    assert [p["median"] for p in document["predictions"]] == want.median.tolist()
    assert document["target"] == "error"
    assert "hoffmann -> loss-to-error: error" in printed
    assert [w["code"] for w in document["warnings"]] == ["borrowed"]
    assert "beta = 0.3658 is borrowed from besiroglu-2024" in " ".join(printed.split())


def test_a_link_that_does_not_fit_is_refused(stages: tuple[Path, Path], tmp_path: Path, capsys: Out) -> None:
    base, link = stages
    at = ["--params", "1B", "--tokens", "100B"]
    assert run(["predict", str(base), *at, "--link", str(base)]) == 2
    assert "reads loss alone" in " ".join(capsys.readouterr().err.split())
    assert run(["predict", str(base), *at, "--link", str(link), "--ledger", str(tmp_path / "l.db")]) == 2
    assert "Leave --ledger out" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "l.db").exists()


def test_the_report_holds_what_is_borrowed(stages: tuple[Path, Path]) -> None:
    assert "is borrowed from besiroglu-2024" in str(cautions(isoloss.load(stages[0]).warnings))


def test_error_alone_exits_without_an_answer_and_says_what_to_do(tmp_path: Path, capsys: Out) -> None:
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4)))
    error = 0.857 - 2.21 * np.exp(-0.715 * (1.8 + 480 * n**-0.35 + 2000 * d**-0.37))
    rows = [
        "params,tokens,error",
        *(f"{a:.17g},{b:.17g},{c:.17g}" for a, b, c in zip(n, d, error, strict=True)),
    ]
    (tmp_path / "e.csv").write_text("\n".join(rows) + "\n")
    words = ["fit", "hoffmann -> loss-to-error", str(tmp_path / "e.csv"), "--draws", "20", "--no-sensitivity"]
    assert run([*words, "--uncertainty", "laplace", "--starts", "16"]) == 3
    err = " ".join(capsys.readouterr().err.split())
    assert "cannot tell E, A, B, k and gamma apart" in err
    assert "isoloss.chain" in err

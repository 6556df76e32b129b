"""No broken table and no wrong option is fitted in silence: exit 2 or 3 with one line, or named in the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoloss.cli import run
from tests.runs.test_broken import BROKEN, GOOD, written

Make = Callable[[Path], Path]


def one_line(text: str) -> str:
    """The message on standard error, which must be one line and no traceback."""
    assert text.startswith("isoloss: "), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(("name", "make", "expected"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_broken_table(
    name: str, make: Make, expected: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = make(tmp_path), tmp_path / "fit.json"
    code = run(
        [
            "fit",
            "hoffmann",
            str(table),
            "--draws",
            "20",
            "--starts",
            "16",
            "--uncertainty",
            "laplace",
            "--no-sensitivity",
            "--json",
            str(out),
        ]
    )
    printed = capsys.readouterr()
    kind, what = expected
    if kind == "error":
        assert code == 2
        assert table.name in one_line(printed.err)
        return
    if code in (2, 3):
        one_line(printed.err)
    if code == 2:
        return
    document = json.loads(out.read_text())
    said = {entry["code"] for entry in (*document["warnings"], *document["rows_removed"])}
    # Replicates are no defect, and the one finding that a fit has no reason to repeat.
    assert what in said or what == "replicates", (name, said)
    for entry in document["warnings"]:
        assert entry["text"]
        assert entry["why"]
        assert f"[{entry['code']}]" in printed.out


OPTIONS: list[tuple[list[str], str]] = [
    (["fit", "hofmann", "T"], "no law named 'hofmann'"),
    (["fit", "hoffmann(params)", "T"], "fixed axes"),
    (["fit", "my_laws.py:Mine", "T"], "no file 'my_laws.py'"),
    (["fit", "no.such.module:Mine", "T"], "cannot import"),
    (["fit", "hoffmann"], "Missing argument"),
    (["fit", "hoffmann", "absent.csv"], "absent.csv"),
    (["fit", "hoffmann", "T", "--columns", "params"], "params=N,tokens=D"),
    (["fit", "hoffmann", "T", "--columns", "params=size"], "size"),
    (["fit", "kaplan-nd", "T"], "params_nonembedding"),
    (["fit", "hoffmann", "T", "--where", "corpus == 'c4'"], "corpus"),
    (["fit", "hoffmann", "T", "--where", "params > 1e30"], "matches none of 25 rows"),
    (["fit", "hoffmann", "T", "--where", "params >"], "cannot be read"),
    (["fit", "hoffmann", "T", "--by", "corpus"], "corpus"),
    (["fit", "hoffmann", "T", "--units", "loss=furlongs"], "furlongs"),
    (["fit", "hoffmann", "T", "--drop", "outliers"], "unknown code 'outliers'"),
    (["fit", "hoffmann", "T", "--objective", "l1"], "--objective needs one of"),
    (["fit", "hoffmann", "T", "--objective", "student-t", "--delta", "1"], "--delta belongs to"),
    (["fit", "hoffmann", "T", "--delta", "-1"], "delta must be"),
    (["fit", "hoffmann", "T", "--delta", "nan"], "delta must be"),
    (["fit", "hoffmann", "T", "--residual", "cubic"], "residual must be"),
    (["fit", "hoffmann", "T", "--reduction", "max"], "reduction must be"),
    (["fit", "hoffmann", "T", "--fix", "E"], "NAME=VALUE"),
    (["fit", "hoffmann", "T", "--fix", "E=low"], "needs a number"),
    (["fit", "hoffmann", "T", "--fix", "E=-1"], "above 0"),
    (["fit", "hoffmann", "T", "--fix", "e=1.7"], "no parameter 'e'"),
    (["fit", "hoffmann", "T", "--fix", "E=1.7", "--fix", "E=1.8"], "twice"),
    (["fit", "hoffmann", "T", "--fix", "E=1.7", "--borrow", "E=besiroglu-2024"], "held twice"),
    (["fit", "hoffmann", "T", "--tie", "alpha"], "--tie needs"),
    (["fit", "hoffmann", "T", "--tie", "alpha=A"], "cannot tie"),
    (["fit", "hoffmann", "T", "--bound", "alpha=1:0.1"], "low < high"),
    (["fit", "hoffmann", "T", "--bound", "alpha=0.1"], "LOW:HIGH"),
    (["fit", "hoffmann", "T", "--prior", "beta=0.37"], "--prior needs"),
    (["fit", "hoffmann", "T", "--prior", "beta~0.37+-0"], "sd > 0"),
    (["fit", "hoffmann", "T", "--borrow", "beta=chinchilla"], "no published fit 'chinchilla'"),
    (["fit", "hoffmann", "T", "--weights", "importance"], "importance"),
    (["fit", "hoffmann", "T", "--cluster", "family"], "family"),
    (["fit", "hoffmann", "T", "--uncertainty", "mcmc"], "uncertainty must be one of auto, posterior"),
    (["fit", "hoffmann", "T", "--draws", "0"], "--draws"),
    (["fit", "hoffmann", "T", "--coverage", "95"], "--coverage"),
    (["fit", "hoffmann", "T", "--seed", "-1"], "--seed"),
    (["fit", "hoffmann", "T", "--md", "--latex"], "exclude each other"),
    (["fit", "hoffmann", "T", "--json", "no/such/folder/fit.json"], "cannot write"),
    (["fit", "hoffmann", "T", "--frobnicate"], "No such option"),
    (["fit", "hoffmann", "T", "--json", "."], "it is a folder"),
    (["level", "hestness", "T", "--json", "no/level.json"], "cannot write"),
    (["report", "absent.json", "--out", "."], "it is a folder"),
    (["versus", "absent.json", "absent.json", "--json", "."], "it is a folder"),
    (["fit", "hoffmann", "T", "--profile", "E,gamma"], "got 'gamma'"),
    (["fit", "hoffmann", "T", "--profile", "E,"], "got ''"),
    (["fit", "hoffmann", "T", "--profile", "E,E"], "names E twice"),
    (["fit", "hoffmann", "T", "--profile", "alpha", "--tie", "alpha=beta"], "alpha is tied"),
    (["fit", "hoffmann", "T", "--profile", "E", "--fix", "E=1.7"], "E is fixed"),
    (["fit", "hoffmann", "T", "--profile", "E", "--borrow", "E=besiroglu-2024"], "E is borrowed"),
    (["fit", "hoffmann", "T", "--profile", "E", "--cluster", "run"], "treats rows as independent"),
    (["plan", "hoffmann@besiroglu-2024", "--flops", "1e21", "--utilisation", "0.4"], "add --peak"),
    (["plan", "hoffmann@besiroglu-2024", "--flops", "1e21", "--peak", "1e15"], "add --utilisation"),
    (
        ["plan", "hoffmann@besiroglu-2024", "--flops", "1e21", "--price-per-device-hour", "2"],
        "add --peak, --utilisation",
    ),
    (
        ["plan", "hoffmann@besiroglu-2024", "--flops", "1e21", "--serve-utilisation", "0.2"],
        "add --peak, --utilisation, --price-per-device-hour, --serve-tokens",
    ),
    (["predict", "absent.json", "--params", "7B"], "cannot read the fit"),
    (["predict", "T", "--params", "7B", "--tokens", "1T"], "not JSON"),
    (["plan", "absent.json", "--flops", "1e21"], "cannot read the fit"),
    (["laws", "chinchilla"], "no law named"),
    (["check", "T", "--law", "nothing"], "no law named"),
    (["forecast"], "No such command"),
]


@pytest.mark.parametrize(
    ("words", "said"), OPTIONS, ids=[" ".join(words[:1] + words[-2:]) for words, _ in OPTIONS]
)
def test_wrong_option(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    table = written(GOOD)(tmp_path)
    code = run([str(table) if word == "T" else word for word in words])
    assert code == 2
    assert said in one_line(capsys.readouterr().err)


def test_enough_kinds() -> None:
    assert len(BROKEN) >= 40
    assert len(OPTIONS) >= 40

"""``isoloss predict --ledger`` and ``isoloss ledger`` end to end: what they print and write, how they exit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import isoloss
from isoloss.cli import run
from isoloss.study.records import Outcome

Out = pytest.CaptureFixture[str]
SIZES = np.geomspace(1e6, 1e9, 10)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fit.json``: a power law of tokens with one per cent of noise."""
    folder = tmp_path_factory.mktemp("fit")
    noise = 0.01 * np.random.default_rng(0).standard_normal(10)
    rows = [f"{d:.8g},{20 * d**-0.1 * np.exp(e):.8g}" for d, e in zip(SIZES, noise, strict=True)]
    (folder / "runs.csv").write_text("\n".join(["tokens,loss", *rows]) + "\n")
    words = ["fit", "power", str(folder / "runs.csv"), "--draws", "200", "--json", str(folder / "fit.json")]
    assert run(words) == 0
    return folder


@pytest.fixture
def folder(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with the fit in it, to work in."""
    shutil.copy(fitted / "fit.json", tmp_path)
    shutil.copy(fitted / "runs.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(*words: str) -> dict:
    """Run with ``--json`` and give the document."""
    assert run([*words, "--json", "out.json"]) == 0
    return json.loads(Path("out.json").read_text())


def test_a_prediction_is_written_down_measured_and_scored(folder: Path, capsys: Out) -> None:
    words = ["predict", "fit.json", "--tokens", "2e9,8e9"]
    document = written(*words, "--ledger", "led.db", "--note", "before the large ones")
    assert [entry["id"] for entry in document["predictions"]] == [1, 2]
    assert document["ledger"] == "led.db"
    assert document["of"] == "mean"
    assert "for one new run each: predictions 1, 2" in capsys.readouterr().out
    # what is shown stays the mean; what is kept is the run, which is wider
    kept = isoloss.Store("led.db").predictions()
    shown = document["predictions"][0]
    assert kept[0]["high"] - kept[0]["low"] > 1.3 * (shown["high"] - shown["low"])
    assert (kept[0]["asked"], kept[0]["note"], kept[0]["source"]) == (
        "mean",
        "before the large ones",
        "fit.json",
    )

    assert run(["ledger", "led.db"]) == 0
    printed = capsys.readouterr().out
    assert "2 predictions of one new run each: 0 scored, 2 open, 0 late" in printed
    assert "before the large ones" in " ".join(printed.split())

    document = written(
        "ledger", "led.db", "--record", "1=2.35", "--record", "2=9", "--measured", "2100-01-01"
    )
    printed = capsys.readouterr().out
    assert "recorded 2 outcomes" in printed
    assert "as written down: 1 of 2 inside their interval" in printed
    assert [(s["distance"], s["n"], s["inside"]) for s in document["scores"]] == [
        ("1-3x", 1, 1),
        ("3-10x", 1, 0),
        ("all", 2, 1),
    ]
    assert document["corrections"][0]["shift"] is None
    assert document["predictions"][1]["pit"] > 0.99
    assert document == {**isoloss.Ledger.read("led.db").to_json()}
    assert run(["ledger", "led.db", "--record", "1=2.35"]) == 0
    assert "recorded 0 outcomes, 1 were there" in capsys.readouterr().out
    assert run(["ledger", "led.db", "--record", "1=2.4"]) == 2
    assert "--correct" in capsys.readouterr().err
    assert run(["ledger", "led.db", "--record", "1=2.4", "--correct"]) == 0
    assert "corrected after the fact: prediction 1" in capsys.readouterr().out


def test_a_table_of_outcomes_is_matched_on_the_axes(folder: Path, capsys: Out) -> None:
    assert run(["predict", "fit.json", "--tokens", "2e9,8e9,1e6", "--of", "run", "--ledger", "led.db"]) == 0
    Path("new.csv").write_text("D,val\n2e9,2.33\n2e9,2.35\n5e9,2.2\n1e6,5.0\n8e9,nan\n")
    named = ["--columns", "tokens=D,loss=val"]
    assert run(["ledger", "led.db", "--outcomes", "new.csv", *named]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "recorded 1 outcome; 1 stay open, 3 of 5 rows match none; where several rows match (1), the first counts"
        in printed
    )
    assert "1 scored, 1 open, 1 late" in printed
    assert isoloss.Ledger.read("led.db").fates[2].why == "the fit holds 1 row at this point"
    (outcome,) = isoloss.Store("led.db").outcomes()
    assert (outcome["prediction"], outcome["value"], outcome["source"]) == (1, 2.33, "new.csv, row 1")
    Path("bytes.csv").write_text("tokens,loss\n8e9,2.2\n")
    assert run(["ledger", "led.db", "--outcomes", "bytes.csv", "--units", "loss=nats/byte"]) == 2
    assert "they cannot be compared" in capsys.readouterr().err


def test_what_was_measured_before_is_late(folder: Path, capsys: Out) -> None:
    assert run(["predict", "fit.json", "--tokens", "2e9", "--ledger", "led.db"]) == 0
    assert run(["ledger", "led.db", "--record", "1=2.3", "--measured", "2020-01-01"]) == 0
    assert "0 scored, 0 open, 1 late" in capsys.readouterr().out


def test_history_recalibrates_and_says_so(folder: Path, capsys: Out) -> None:
    words = ["predict", "fit.json", "--ledger", "led.db", "--of", "run"]
    first = written(*words, "--tokens", "2e9", "--recalibrate")
    assert first["recalibration"]["shift"] is None
    assert (
        "not recalibrated: too few scored predictions to recalibrate: needs 9 for 90 %, got 0"
        in capsys.readouterr().out
    )
    store, fit = isoloss.Store("led.db"), isoloss.load("fit.json")
    numbers = store.add_predictions(isoloss.promise(fit, {"tokens": np.geomspace(1.1e9, 9e9, 12)}))
    medians = {p["id"]: p["quantiles"][51] for p in store.predictions()}
    store.add_outcomes([Outcome(n, medians[n] + 0.3) for n in numbers])
    plain = written(*words, "--tokens", "5e9")["predictions"][0]
    wider = written(*words, "--tokens", "5e9", "--recalibrate")
    assert "recalibrated, empirical, from 12 scored predictions of power(tokens)" in capsys.readouterr().out
    change = wider["recalibration"]["shift"] * (plain["high"] - plain["low"])
    assert change > 0.1
    (entry,) = wider["predictions"]
    assert (entry["low"], entry["high"]) == pytest.approx((plain["low"] - change, plain["high"] + change))
    assert entry["median"] == pytest.approx(plain["median"], rel=1e-4)
    assert run(["ledger", "led.db"]) == 0
    assert "*: recalibrated" in capsys.readouterr().out


@pytest.mark.parametrize("style", ["--md", "--latex"])
def test_tables_for_documents_and_export(folder: Path, capsys: Out, style: str) -> None:
    assert run(["predict", "fit.json", "--tokens", "2e9", "--ledger", "led.db"]) == 0
    assert run(["ledger", "led.db", "--record", "1=2.3", style, "--export", "all"]) == 0
    printed = capsys.readouterr().out
    assert ("| law " if style == "--md" else r"\begin{tabular}") in printed
    assert {file.name for file in Path("all").iterdir()} == {"predictions.csv", "outcomes.csv"}
    assert run(["ledger", "led.db", "--export", "all", "--parquet"]) == 0
    assert Path("all/predictions.parquet").is_file()


def test_exit_codes(folder: Path, capsys: Out) -> None:
    assert run(["predict", "fit.json", "--tokens", "2e9", "--ledger", "led.db"]) == 0
    for words, text in (
        (["ledger", "none.db"], "no store at"),
        (["ledger", "runs.csv"], "is no store"),
        (["ledger", "led.db", "--record", "1"], "needs ID=VALUE"),
        (["ledger", "led.db", "--record", "one=2"], "needs ID=VALUE"),
        (["ledger", "led.db", "--record", "1=nan"], "finite"),
        (["ledger", "led.db", "--record", "9=2"], "no prediction 9"),
        (["ledger", "led.db", "--record", "1=2", "--measured", "soon"], "needed a time"),
        (["ledger", "led.db", "--correct"], "--correct needs --record or --outcomes"),
        (["ledger", "led.db", "--parquet"], "--parquet needs --export"),
        (["predict", "fit.json", "--tokens", "2e9", "--recalibrate"], "--recalibrate needs a ledger"),
        (["predict", "fit.json", "--tokens", "2e9", "--note", "x"], "--note needs a ledger"),
        (["predict", "fit.json", "--tokens", "2e9", "--ledger", "led.db", "--recalibrate"], "needs --of run"),
        (["predict", "fit.json", "--at", "runs.csv", "--ledger", "new.db"], "takes predictions made before"),
        (["predict", "fit.json", "--tokens", "2e9", "--ledger", "no/led.db"], "cannot make the store"),
    ):
        assert run(words) == 2, words
        assert text in capsys.readouterr().err, words
    assert not Path("none.db").exists()
    assert not Path("new.db").exists()
    assert len(isoloss.Store("led.db")) == 1


def test_a_stack_promises_too(folder: Path, capsys: Out) -> None:
    isoloss.auto(isoloss.read("runs.csv"), ["power", "hestness"], draws=50, fold_draws=50).save("stack.json")
    document = written("predict", "stack.json", "--tokens", "2e9", "--of", "run", "--ledger", "led.db")
    (kept,) = isoloss.Store("led.db").predictions()
    assert kept["law"] == "stack"
    assert kept["low"] == pytest.approx(document["predictions"][0]["low"])
    assert kept["distance"] == pytest.approx(2.0)

"""``isoloss schedule`` end to end: what it prints and writes, and how it exits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from isoloss.cli import run
from isoloss.fitting.schedule_fit import ScheduleFit
from isoloss.laws.schedules import get
from isoloss.laws.schedules.schedule import Schedule

Out = pytest.CaptureFixture[str]
THETA = [2.0, 1.0, 0.5, 20.0, 2.0, 0.5, 0.6]
SHAPE = "steps=600,peak=0.01,warmup=60"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``curves.csv`` of two planted runs, and ``fit.json``."""
    folder = tmp_path_factory.mktemp("schedules")
    steps, rng = np.arange(60, 601, 20), np.random.default_rng(0)
    lines = ["curve,step,lr,loss"]
    for words in (f"cosine:{SHAPE},end=0.001", f"two-stage:{SHAPE},end=0.002,at=300"):
        made = Schedule.parse(words)
        loss = get("multi-power").value(THETA, made, steps) * np.exp(5e-4 * rng.normal(size=len(steps)))
        name = words.partition(":")[0]
        lines += [
            f"{name},{s},{float(made.rates[s])!r},{y!r}"
            for s, y in zip(steps.tolist(), loss.tolist(), strict=True)
        ]
    (folder / "curves.csv").write_text("\n".join(lines) + "\n")
    words = ["multi-power", str(folder / "curves.csv"), "--warmup", "60", "--draws", "20", "--starts", "4"]
    assert run(["schedule", "fit", *words, "--json", str(folder / "fit.json")]) == 0
    return folder


def test_fit_says_parameters_and_curves(files: Path, capsys: Out) -> None:
    words = [
        "lr-annealing",
        str(files / "curves.csv"),
        "--warmup",
        "60",
        "--draws",
        "10",
        "--fix",
        "memory=90",
    ]
    assert run(["schedule", "fit", *words]) == 0
    printed = capsys.readouterr().out
    for said in ("L0 + A S1^-alpha - C S2", "2 curves, 56 losses", "fixed", "two-stage", "result: fitted"):
        assert said in printed
    assert ScheduleFit.load(files / "fit.json").rows == 56


def test_predict_gives_what_python_gives(files: Path, capsys: Out) -> None:
    words = ["--schedule", f"wsd:{SHAPE},end=0.001,decay=120", "--steps", "300,600", "--json", "-"]
    assert run(["schedule", "predict", str(files / "fit.json"), *words]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "one new run under wsd:steps=600" in " ".join(err.split())
    seen = ScheduleFit.load(files / "fit.json").predict(f"wsd:{SHAPE},end=0.001,decay=120", [300, 600])
    assert document == seen.to_json()
    assert document["predictions"][0]["at"] == {"step": 300.0}


def test_choose_writes_the_rates_it_sought(files: Path, capsys: Out) -> None:
    rates, out = files / "rates.csv", files / "choice.json"
    asked = ["--steps", "600", "--peak", "0.01", "--end", "0.001", "--warmup", "60"]
    words = [*asked, "--best", str(rates), "--json", str(out), "--schedule", f"constant:{SHAPE}"]
    assert run(["schedule", "choose", str(files / "fit.json"), *words]) == 0
    printed = capsys.readouterr().out
    assert "not resolved between" in printed
    document = json.loads(out.read_text())
    assert document["winner"] is None
    assert document["candidates"][0]["name"] == "best"
    assert f"constant:{SHAPE}" in [entry["name"] for entry in document["candidates"]]
    with rates.open(newline="") as file:
        written = [float(row["lr"]) for row in csv.DictReader(file)]
    best = Schedule.from_json(document["candidates"][0]["schedule"])
    assert written == best.rates.tolist()
    assert (
        run(
            ["schedule", "predict", str(files / "fit.json"), "--schedule", str(rates), "--of", "mean", "--md"]
        )
        == 0
    )
    assert "| 600 " in capsys.readouterr().out


def test_exit_codes(files: Path, capsys: Out, tmp_path: Path) -> None:
    curves, fit = str(files / "curves.csv"), str(files / "fit.json")
    flat = tmp_path / "flat.csv"
    flat.write_text("curve,step,lr,loss\n" + "".join(f"a,{s},0.01,{4 - s / 20}\n" for s in range(1, 20)))
    annealed = tmp_path / "annealed.json"
    assert (
        run(
            [
                "schedule",
                "fit",
                "lr-annealing",
                curves,
                "--warmup",
                "60",
                "--draws",
                "5",
                "--json",
                str(annealed),
            ]
        )
        == 0
    )
    asked = ["--steps", "600", "--peak", "0.01", "--warmup", "60"]
    cases = {
        ("fit", "multi-power", curves): (2, "--warmup STEPS"),
        ("fit", "hoffmann", curves): (2, "There are: lr-annealing, multi-power"),
        ("fit", "multi-power", curves, "--warmup", "60", "--fix", "beta"): (2, "--fix needs NAME=VALUE"),
        ("fit", "multi-power", str(flat)): (3, "lowers its learning rate"),
        ("predict", fit, "--schedule", "cosine:steps=600"): (2, "missing: peak, end"),
        ("predict", fit, "--schedule", f"constant:{SHAPE}", "--of", "all"): (2, "--of must be"),
        ("predict", fit, "--schedule", f"constant:{SHAPE}", "--steps", "700"): (2, "from 1 to 600"),
        ("predict", curves, "--schedule", f"constant:{SHAPE}"): (2, "is not JSON"),
        ("predict", fit, "--schedule", "rates.csv"): (2, "there is no file 'rates.csv'"),
        ("choose", fit, *asked, "--end", "0.02"): (2, "last rate at or below the peak 0.01"),
        ("choose", str(annealed), *asked, "--best", str(tmp_path / "r.csv")): (3, "artefact"),
    }
    for words, (code, said) in cases.items():
        capsys.readouterr()
        assert run(["schedule", *words]) == code, words
        assert said in capsys.readouterr().err, words

"""The verbs end to end: what they print, what they write, how they exit, how light they are."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import isoloss
from isoloss.cli import run

Out = pytest.CaptureFixture[str]
THETA = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}


def planted(path: Path, ray: bool = False, noise: float = 0.002) -> Path:
    """A table made from known parameters: a 5 x 5 grid, or one fixed ratio of tokens to parameters."""
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(2e8, 2e10, 5)))
    if ray:
        d = 20 * n
    rng = np.random.default_rng(1)
    loss = 1.8 + 480 * n**-0.35 + 2000 * d**-0.37
    loss = loss * np.exp(noise * rng.standard_normal(len(n)))
    rows = [
        f"{a:.10g},{b:.10g},{c:.12g},{'ab'[i % 2]}"
        for i, (a, b, c) in enumerate(zip(n, d, loss, strict=True))
    ]
    path.write_text("\n".join(["N,D,val,corpus", *rows]) + "\n")
    return path


COLUMNS = ["--columns", "params=N,tokens=D,loss=val"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a table and the fit of it, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("fitted"), io.StringIO()
    table, out = planted(folder / "t.csv"), folder / "fit.json"
    with contextlib.redirect_stdout(printed):
        assert run(["fit", "hoffmann", str(table), *COLUMNS, "--json", str(out), "--draws", "200"]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def fitted(made: tuple[Path, str], tmp_path: Path) -> Path:
    """A fit file, beside its table."""
    for name in ("t.csv", "fit.json"):
        shutil.copy(made[0] / name, tmp_path / name)
    return tmp_path / "fit.json"


def test_fit_writes_what_it_prints(fitted: Path, made: tuple[Path, str]) -> None:
    document, printed = json.loads(fitted.read_text()), made[1]
    assert document["schema"] == "isoloss/fit/1"
    for name, truth in THETA.items():
        entry = document["parameters"][name]
        assert entry["low"] < truth < entry["high"]
        assert set(entry) == {"value", "stderr", "low", "high", "status"}
        assert name in printed
    assert document["rows_used"] == 25
    assert len(document["draws"]["E"]) == 200
    assert document["result"] == "identified"
    wanted = {
        "law",
        "objective",
        "agreeing_starts",
        "rows_removed",
        "warnings",
        "coverage",
        "seed",
        "data",
        "noise",
    }
    assert wanted <= set(document)


def test_python_says_the_same(tmp_path: Path, capsys: Out) -> None:
    table, out = planted(tmp_path / "t.csv"), tmp_path / "fit.json"
    run(["fit", "hoffmann", str(table), *COLUMNS, "--json", str(out), "--draws", "100", "--seed", "3"])
    runs = isoloss.read(table, columns="params=N,tokens=D,loss=val")
    here = isoloss.fit("hoffmann", runs, draws=100, seed=3).to_json()
    there = json.loads(out.read_text())
    assert here["parameters"] == there["parameters"]
    assert here["draws"] == there["draws"]


def test_fit_by_group_and_choose_one(tmp_path: Path, capsys: Out) -> None:
    table, out = planted(tmp_path / "t.csv"), tmp_path / "fits.json"
    words = ["fit", "gadre", str(table), *COLUMNS, "--by", "corpus", "--json", str(out), "--draws", "50"]
    assert run(words) == 0
    assert list(json.loads(out.read_text())["groups"]) == ["a", "b"]
    assert run(["predict", str(out), "--params", "1B", "--tokens", "1T"]) == 2
    assert "--group" in capsys.readouterr().err
    assert run(["predict", str(out), "--params", "1B", "--tokens", "1T", "--group", "b"]) == 0


def test_one_group_without_an_answer_loses_no_other(tmp_path: Path, capsys: Out) -> None:
    table, out = planted(tmp_path / "t.csv"), tmp_path / "fits.json"
    table.write_text(table.read_text() + "1e8,1e9,3.0,lonely\n")
    words = ["fit", "gadre", str(table), *COLUMNS, "--by", "corpus", "--json", str(out), "--draws", "50"]
    assert run(words) == 3
    assert "corpus = lonely" in capsys.readouterr().err
    assert list(json.loads(out.read_text())["groups"]) == ["a", "b"]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, capsys: Out) -> None:
    table = planted(tmp_path / "t.csv")
    assert run(["fit", "hoffmann", str(table), *COLUMNS, "--json", str(tmp_path / "no" / "fit.json")]) == 2
    printed = capsys.readouterr()
    assert "cannot write" in printed.err
    assert not printed.out


def test_a_profile_without_an_answer_is_a_line_and_the_fit_is_written(tmp_path: Path, capsys: Out) -> None:
    table, out = planted(tmp_path / "t.csv", noise=0.0), tmp_path / "fit.json"
    words = ["fit", "hoffmann", str(table), *COLUMNS, "--draws", "20", "--no-sensitivity", "--json", str(out)]
    assert run([*words, "--profile", "E, alpha"]) == 0
    printed = capsys.readouterr().out
    for name in ("E", "alpha"):
        assert f"{name}: no profile: the law passes through every row" in printed
    assert json.loads(out.read_text())["result"] == "identified"


def test_a_link_is_written_through_and_kept(tmp_path: Path, fitted: Path) -> None:
    (tmp_path / "kept").mkdir()
    target, link = tmp_path / "kept" / "fit.json", tmp_path / "link.json"
    link.symlink_to(target)
    isoloss.load(fitted).save(link)
    assert link.is_symlink()
    assert target.read_text() == fitted.read_text()
    assert list((tmp_path / "kept").iterdir()) == [target]
    with pytest.raises(ValueError, match="it is a folder"):
        isoloss.load(fitted).save(tmp_path / "kept")


def test_predict_does_not_compare_units(fitted: Path, tmp_path: Path, capsys: Out) -> None:
    table = str(tmp_path / "t.csv")
    words = ["predict", str(fitted), "--at", table, *COLUMNS, "--units", "loss=nats/byte"]
    assert run(words) == 2
    assert "nats/byte" in capsys.readouterr().err
    assert run(["predict", str(fitted), "--params", "1B", "--axis", "params=2e9", "--tokens", "1T"]) == 2
    assert "given twice" in capsys.readouterr().err


def test_a_unit_in_the_cell_and_one_for_the_column_are_refused(tmp_path: Path, capsys: Out) -> None:
    table = planted(tmp_path / "t.csv")
    table.write_text(table.read_text().replace("10000000,", "10M,", 1))
    assert run(["fit", "hoffmann", str(table), *COLUMNS, "--units", "params=millions"]) == 2
    assert "'10M'" in capsys.readouterr().err


def test_a_fixed_ratio_has_no_answer(tmp_path: Path, capsys: Out) -> None:
    table, out = planted(tmp_path / "t.csv", ray=True), tmp_path / "fit.json"
    code = run(["fit", "gadre", str(table), *COLUMNS, "--json", str(out), "--draws", "50"])
    printed = capsys.readouterr()
    assert code == 3
    assert printed.err.startswith("isoloss: no answer:")
    assert "Needed:" in printed.err
    assert json.loads(out.read_text())["result"] == "not-identified"
    assert run(["plan", str(out), "--flops", "1e21"]) == 3
    assert "Needed:" in capsys.readouterr().err


def test_predict_points_and_table(fitted: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "p.json"
    words = [
        "predict",
        str(fitted),
        "--params",
        "7B,1B",
        "--tokens",
        "2T",
        "--coverage",
        "0.5",
        "--json",
        str(out),
    ]
    assert run(words) == 0
    document = json.loads(out.read_text())
    assert (document["coverage"], document["of"]) == (0.5, "mean")
    assert [p["at"]["params"] for p in document["predictions"]] == [7e9, 1e9]
    for p in document["predictions"]:
        truth = 1.8 + 480 * p["at"]["params"] ** -0.35 + 2000 * p["at"]["tokens"] ** -0.37
        assert p["low"] < p["median"] < p["high"]
        assert abs(p["median"] / truth - 1) < 0.02
    assert (
        run(
            [
                "predict",
                str(fitted),
                "--at",
                str(tmp_path / "t.csv"),
                *COLUMNS,
                "--of",
                "run",
                "--json",
                str(out),
            ]
        )
        == 0
    )
    document = json.loads(out.read_text())
    inside = [p["low"] <= p["measured"] <= p["high"] for p in document["predictions"]]
    assert len(inside) == 25
    assert sum(inside) >= 19  # 90 % of 25, less three standard deviations
    assert f"{sum(inside)} of 25 measured values" in capsys.readouterr().out


def test_predict_refuses_wrong_points(fitted: Path, capsys: Out) -> None:
    for words, said in [
        (["--params", "7B"], "missing: tokens"),
        (["--params", "7B", "--tokens", "1T", "--flops", "1e21"], "not used: flops"),
        (["--params", "7 giraffes", "--tokens", "1T"], "giraffes"),
        (["--params", "7B", "--tokens", "0"], "tokens"),
        (["--params", "7B", "--tokens", "1T", "--of", "median"], "--of needs mean or run"),
    ]:
        assert run(["predict", str(fitted), *words]) == 2
        assert said in capsys.readouterr().err


def test_json_on_standard_output_is_json_alone(fitted: Path, tmp_path: Path, capsys: Out) -> None:
    for words in (
        ["fit", "gadre", str(tmp_path / "t.csv"), *COLUMNS, "--draws", "20"],
        ["predict", str(fitted), "--params", "7B", "--tokens", "1T"],
        ["plan", str(fitted), "--flops", "1e22"],
        ["check", str(tmp_path / "t.csv"), *COLUMNS],
    ):
        assert run([*words, "--json", "-"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["schema"].startswith("isoloss/")
        assert printed.err


def test_drop_names_what_left(tmp_path: Path, capsys: Out) -> None:
    table, out = planted(tmp_path / "t.csv"), tmp_path / "fit.json"
    lines = table.read_text().splitlines()
    lines[5] = ",".join([*lines[5].split(",")[:2], "9.5", "a"])
    table.write_text("\n".join(lines) + "\n")
    words = [
        "fit",
        "hoffmann",
        str(table),
        *COLUMNS,
        "--drop",
        "diverged",
        "--json",
        str(out),
        "--draws",
        "50",
    ]
    assert run(words) == 0
    document = json.loads(out.read_text())
    assert [(r["row"], r["code"]) for r in document["rows_removed"]] == [(5, "diverged")]
    assert document["rows_used"] == 24
    assert "removed row 5 [diverged]" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["--md", "--latex"])
def test_other_tables(fitted: Path, form: str, capsys: Out) -> None:
    assert run(["predict", str(fitted), "--params", "7B", "--tokens", "2T", form]) == 0
    printed = capsys.readouterr().out
    assert ("| params | tokens |" if form == "--md" else r"\begin{tabular}") in printed


def test_laws_lists_every_law_once(capsys: Out) -> None:
    from isoloss.laws import LAWS

    assert run(["laws", "--md"]) == 0
    printed = capsys.readouterr().out
    for slug in LAWS:
        assert f"| {slug}" in printed
    assert "same as hoffmann" in printed
    for slug in LAWS:
        assert run(["laws", slug]) == 0


def test_check_exit_codes(tmp_path: Path, capsys: Out) -> None:
    table, out = planted(tmp_path / "t.csv"), tmp_path / "check.json"
    assert run(["check", str(table), *COLUMNS, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["findings"] == []
    text = table.read_text().replace("10000000,", "-1,", 1)
    table.write_text(text)
    assert run(["check", str(table), *COLUMNS, "--json", str(out)]) == 2
    assert json.loads(out.read_text())["findings"][0]["code"] == "nonpositive-count"


HEAVY = {"scipy", "pandas", "torch", "matplotlib", "pyarrow"}


@pytest.mark.parametrize(
    ("words", "forbidden"),
    [
        (["--help"], {*HEAVY, "numpy"}),
        (["fit", "--help"], {*HEAVY, "numpy"}),
        (["laws"], HEAVY),
        (["check", "T", *COLUMNS], HEAVY),
        (["fit", "hoffmann", "T", *COLUMNS, "--draws", "20"], HEAVY),
    ],
)
def test_light_to_start(words: list[str], forbidden: set[str], tmp_path: Path) -> None:
    """What a verb imports, in a process of its own."""
    table = planted(tmp_path / "t.csv")
    code = (
        "import sys\nfrom isoloss.cli import run\n"
        f"assert run({[str(table) if w == 'T' else w for w in words]!r}) == 0\n"
        "print('MODULES', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.rpartition("MODULES")[2].split())
    assert not modules & forbidden


def test_a_closed_pipe_is_no_error_and_a_law_that_exits_is_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    closed = "import os, sys; from isoloss.cli import run; os.close(1); r, w = os.pipe(); os.close(r); "
    closed += "os.dup2(w, 1); sys.exit(run(['laws']))"
    done = subprocess.run(
        [sys.executable, "-c", closed], capture_output=True, text=True, cwd=root, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "leaves.py").write_text("raise SystemExit(5)\n")
    with pytest.raises(SystemExit):
        leave()
    assert run(["laws", f"{tmp_path / 'leaves.py'}:Law"]) == 2


def leave() -> None:
    """A SystemExit that has nothing to do with a pipe passes through ``run``."""
    from unittest.mock import patch

    with patch("isoloss.cli.app.app", side_effect=SystemExit(5)):
        run(["laws"])

"""``isoloss study``: a file in, a ladder done, a prediction scored; and what a user does wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isoloss.cli import run
from tests.study.trainers import ladder

TRAINER = Path(ladder.__file__)
FILE = f"""
name = "s"
[objective]
unit = "nats"
draws = 100
[trainer]
run = "{TRAINER}:train"
axes = "{TRAINER}:axes"
[trainer.settings]
pause = 0.0
[[rungs]]
params = [1e5, 2e5, 4e5]
tokens = [1e6, 2e6, 4e6]
[target]
params = 8e5
tokens = 16e6
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_from_a_file_to_a_scored_prediction_and_a_page(file, capsys):
    assert (
        run(["study", "run", "study.toml", "--report", "page.html", "--fit", "f.json", "--json", "told.json"])
        == 0
    )
    out = capsys.readouterr().out
    assert "rung 1 (1 of 2): 9 runs" in out
    assert out.index("1 prediction of target written down") < out.index("target (2 of 2): 1 run")
    told = json.loads(Path("told.json").read_text())
    assert told["schema"] == "isoloss/study/1"
    assert list(told["statuses"].values()) == ["done"] * 10
    assert told["ledger"]["counts"]["scored"] == 1
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Predicted before the run, then measured" in page
    assert run(["predict", "f.json", "--params", "8e5", "--tokens", "16e6", "--of", "run"]) == 0
    assert f"{told['ledger']['predictions'][0]['median']:.4f}" in capsys.readouterr().out
    (key,) = told["targets"]
    assert key.partition("@")[0] in page

    assert run(["study", "status", "study.toml", "--json", "status.json"]) == 0
    assert "complete" in capsys.readouterr().out
    status = json.loads(Path("status.json").read_text())
    assert [rung["done"] for rung in status["rungs"]] == [9, 1]

    assert run(["study", "run", "study.toml"]) == 2
    assert "has begun: 10 runs" in capsys.readouterr().err
    assert run(["study", "resume", "study.toml"]) == 0
    assert "10 done" in capsys.readouterr().out

    # the store is a table like any other
    assert run(["fit", "hoffmann", "s.db", "--draws", "100", "--json", "fit.json"]) == 0
    assert run(["ledger", "s.db"]) == 0
    assert "1 scored" in capsys.readouterr().out
    assert run(["fit", "hoffmann", "s.db", "--units", "loss=bits/token"]) == 2
    assert "is a store" in capsys.readouterr().err


def test_status_before_and_on_the_way(file, capsys):
    assert run(["study", "status", "study.toml"]) == 0
    assert "10 of 10 runs left. Do: isoloss study run study.toml" in capsys.readouterr().out
    file.write_text(FILE.replace("pause = 0.0", "pause = 0.5"), encoding="utf-8")
    command = [sys.executable, "-m", "isoloss", "study", "run", "study.toml"]
    there = {**os.environ, "PYTHONPATH": str(TRAINER.parents[3])}
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=there)
    deadline = time.monotonic() + 20
    while not list(file.parent.glob("s.runs/*/journal.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.2)
    assert run(["study", "status", "study.toml"]) == 0
    seen = capsys.readouterr().out
    assert "begun: " in seen
    assert "% done, loss " in seen
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=30)
    assert driver.returncode == 130, err
    assert "nothing is lost. Go on with: isoloss study resume study.toml" in out
    assert not [
        p
        for p in Path("/proc").glob("[0-9]*/cmdline")
        if b"study.worker" in _read(p) and str(file.parent).encode() in _cwd(p)
    ]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _cwd(path):
    try:
        return os.readlink(path.parent / "cwd").encode()
    except OSError:
        return b""


def test_what_failed_is_said_with_its_log_and_tried_again_where_asked(file, capsys, monkeypatch):
    rung = '[[rungs]]\nparams = 3e5\ntokens = 5e6\ntrouble = "mended"\n[target]'
    file.write_text(FILE.replace("[target]", rung), encoding="utf-8")
    assert run(["study", "run", "study.toml"]) == 0
    out = capsys.readouterr().out
    (log,) = file.parent.glob("s.runs/*/log.txt")
    assert f"not mended yet, log: {log}" in out
    assert "isoloss study resume study.toml --retry-failed" in out
    assert run(["study", "status", "study.toml", "--json", "status.json"]) == 0
    assert f"not mended yet. Log: {log}" in capsys.readouterr().out
    (bad,) = json.loads(Path("status.json").read_text())["ended_badly"]
    assert bad["log"] == str(log)
    assert "not mended yet" in log.read_text()
    monkeypatch.setenv("LADDER_MENDED", "1")
    assert run(["study", "resume", "study.toml"]) == 0
    assert "10 done, 1 failed" in capsys.readouterr().out
    assert run(["study", "resume", "study.toml", "--retry-failed"]) == 0
    assert "11 done" in capsys.readouterr().out


def test_the_bar_of_a_rung_counts_work_not_runs(file):
    from isoloss.cli.watch import Watch
    from isoloss.study.steps import Began, Ended, Moved
    from isoloss.study.study import Study

    class Bars:
        """What a progress display was told, by task."""

        def __init__(self):
            self.at = []

        def add_task(self, name, **_):
            self.at.append(0.0)
            return len(self.at) - 1

        def update(self, task, completed=None, **_):
            self.at[task] = completed

        def remove_task(self, task):
            pass

    watch = Watch(Study.read(file))
    watch._bars = bars = Bars()
    watch.tell(Began("rung 1", 1, 1, 4, ("a", "b", "c", "d"), (0.1, 0.2, 0.3, 0.4), 1e6))
    watch.tell(Moved("a", ("a",), 0.5, {"loss": 1.0}))
    assert bars.at[0] == pytest.approx(0.05)
    watch.tell(Ended("a", "a", "done", 1.0, "", 1.0, None))
    watch.tell(Moved("trunk", ("b", "c"), 0.5, {}))
    assert bars.at[0] == pytest.approx(0.1 + 0.25)
    for key, of in (("b", "trunk"), ("c", "trunk"), ("d", "d")):
        watch.tell(Ended(key, of, "done", 1.0, "", 1.0, None))
    assert bars.at[0] == pytest.approx(1.0)


@pytest.mark.parametrize("verb", ["run", "resume", "status"])
def test_a_file_that_is_not_there_is_said_with_what_to_do(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["study", verb, "study.toml"]) == 2
    assert "isoloss study init study.toml" in capsys.readouterr().err


def test_init_writes_a_study_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["study", "init"]) == 0
    assert run(["study", "status", "study.toml"]) == 0
    assert "15 of 15 runs left" in capsys.readouterr().out
    assert run(["study", "init"]) == 2


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (f'"{TRAINER}:train"', '"nothing.py:train"', "nothing.py"),
        (f'"{TRAINER}:train"', f'"{TRAINER}:treino"', "treino"),
        (f'"{TRAINER}:train"', '"json:loads"', "json"),
        ('name = "s"', 'nome = "s"', "name is missing; nome is no setting"),
        ("draws = 100", 'laws = ["hofmann"]', "hofmann"),
        ("[target]", "[goal]", "goal is no setting"),
        ("params = 8e5", "params = 1e5\nseed = 0", "PASS"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(file, capsys, before, after, said):
    file.write_text(FILE.replace(before, after), encoding="utf-8")
    code = run(["study", "run", "study.toml"])
    err = capsys.readouterr().err
    if said == "PASS":
        assert code == 0
        return
    assert code == 2 or "json:loads" in after
    if code == 2:
        assert said in err
        assert len(err.strip().splitlines()) == 1


def test_a_report_that_cannot_be_written_is_refused_before_the_runs(file, capsys):
    assert run(["study", "run", "study.toml", "--report", "no/such/page.html"]) == 2
    assert "no/such" in capsys.readouterr().err
    assert not list(file.parent.glob("s.db"))


def test_a_study_that_a_limit_ends_is_not_complete(file, capsys):
    file.write_text(FILE + "[limits]\nflops = 1e13\n", encoding="utf-8")
    assert run(["study", "run", "study.toml"]) == 3
    assert "limits.flops" in capsys.readouterr().out


def test_the_group_alone_prints_its_help(capsys):
    assert run(["study"]) == 2
    assert len(capsys.readouterr().err.splitlines()) > 5

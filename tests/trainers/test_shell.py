"""Commands as trainers: what they print is what comes, how they end is said, and none is left behind."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import pytest

from isoloss.trainers import shell
from isoloss.trainers.shell import Command, train


def python(code: str, **settings) -> dict:
    """A run of Python code; placeholders go in as arguments, so that braces in the code mean nothing."""
    return {"command": ["{python}", "-c", code, *(f"{{{name}}}" for name in settings)], **settings}


def test_lines_are_measurements_or_log(capfd, tmp_path):
    code = """
import json, sys
print("starting")
print(json.dumps({"step": 1, "loss": 2.5, "data": "abc"}))
print(json.dumps({"loss": 1.0}))
print('{"step": 2, "loss": NaN, "top": Infinity}')
print("{not json")
print("[1, 2]")
print('  {"step": 3.0, "loss": 2, "low": -Infinity}')
print("complaint", file=sys.stderr)
"""
    found = list(train({**python(code), "folder": str(tmp_path)}))
    assert found[0] == (1, {"loss": 2.5, "data": "abc"})
    assert found[1][0] == 2
    assert math.isnan(found[1][1]["loss"])
    assert found[1][1]["top"] == math.inf
    assert found[2] == (3, {"loss": 2, "low": -math.inf})
    out, err = capfd.readouterr()
    assert out == 'starting\n{"loss": 1.0}\n{not json\n[1, 2]\n'
    assert err == "complaint\n"


def test_placeholders_are_filled_in_words_folder_and_environment(tmp_path, capfd):
    code = """
import json, os, sys
print(json.dumps({"step": 0, "words": " ".join(sys.argv[1:]), "here": os.getcwd(), "variable": os.environ["SIZE"]}))
"""
    config = python(code, lr=1e-5, name="a b", flag=True, sizes=[1, 2])
    config["command"] += ["--x={lr}", "{{lr}}", "{{}}", "{ lr }"]
    config |= {"cwd": f"{tmp_path}/in {{name}}", "env": {"SIZE": "<{sizes}>"}, "seed": 3}
    (tmp_path / "in a b").mkdir()
    [(_, found)] = train(config)
    assert found["words"] == "1e-05 a b true [1, 2] --x=1e-05 {lr} {{}} { lr }"
    assert found["here"] == str((tmp_path / "in a b").resolve())
    assert found["variable"] == "<[1, 2]>"
    assert capfd.readouterr().err == "settings that the command does not name: seed\n"


def test_lines_come_as_they_are_printed(tmp_path):
    """The second line waits for a file that is made once the first has come."""
    code = """
import pathlib, sys, time
print('{"step": 1, "loss": 1}')
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
print('{"step": 2, "loss": 0}')
"""
    runs = train(python(code, mark=str(tmp_path / "mark")))
    assert next(runs) == (1, {"loss": 1})
    (tmp_path / "mark").touch()
    assert list(runs) == [(2, {"loss": 0})]


def test_the_child_has_no_input_and_stays_in_the_group():
    code = 'import os, sys\nprint(\'{"step": %d, "input": "%s"}\' % (os.getpgid(0), sys.stdin.read()))'
    assert list(train(python(code))) == [(os.getpgid(0), {"input": ""})]


@pytest.mark.parametrize("stubborn", [False, True], ids=["saves-itself", "killed"])
def test_a_closed_run_ends_its_child(stubborn, tmp_path, monkeypatch):
    """It gets SIGTERM and may save itself, even with its pipe full; one that does not end is killed."""
    monkeypatch.setattr(shell, "GRACE", 0.5 if stubborn else 10.0)
    code = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(*_):
    if sys.argv[2] == "false":
        (folder / "saved").touch()
        os._exit(0)
signal.signal(signal.SIGTERM, save)
print('{"step": %d}' % os.getpid(), flush=True)
while True:
    print("x" * 1000)
"""
    runs = train(python(code, folder=str(tmp_path), stubborn=stubborn))
    child, _ = next(runs)
    time.sleep(0.2)  # the pipe fills
    started = time.monotonic()
    runs.close()
    assert time.monotonic() - started < 5
    assert (tmp_path / "saved").exists() != stubborn
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_program_that_fails_is_quoted():
    code = "import sys\nprint('{\"step\": 1, \"loss\": 1}')\nfor k in range(99): print('line', k, file=sys.stderr)\nsys.exit(3)"
    runs = train(python(code))
    assert next(runs) == (1, {"loss": 1})
    with pytest.raises(RuntimeError, match=r"exit code 3.*\nline 79\n(.*\n)*line 98$") as caught:
        next(runs)
    assert "line 78" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"ended by signal 9\. It said nothing"):
        list(train(python("import os; os.kill(os.getpid(), 9)")))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("hello", "printed none"),
        ('{"step": 1.5, "loss": 1}', "whole number as step"),
        ('{"step": "1", "loss": 1}', "whole number as step"),
        ('{"step": Infinity}', "whole number as step"),
        ('{"step": 1, "loss": null}', "number or text as loss, got null"),
        ('{"step": 1, "ok": true}', "number or text as ok, got true"),
    ],
)
def test_lines_that_are_no_measurement_are_named(line, match):
    with pytest.raises(ValueError, match=match):
        list(train(python("import sys; print(sys.argv[1])", line=line)))


@pytest.mark.parametrize(
    ("config", "error", "match"),
    [
        ({}, ValueError, "lack command"),
        ({"command": "train --lr 3"}, TypeError, "list of texts"),
        ({"command": ["train", 3]}, TypeError, "list of texts"),
        ({"command": []}, ValueError, "empty list"),
        ({"command": ["x", "{lr}"]}, ValueError, r"{lr}, got only none. Add it, or write {{lr}}"),
        ({"command": ["x"], "cwd": "{where}", "lr": 1}, ValueError, "cwd: needed a setting for {where}, got only lr"),
        ({"command": ["x"], "cwd": 3}, TypeError, "cwd: needed text"),
        ({"command": ["x"], "env": {"A": 1}}, TypeError, "env: needed texts"),
        ({"command": ["x"], "env": {"A": "{b}"}}, ValueError, "env A: needed a setting"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(config, error, match):
    with pytest.raises(error, match=match):
        Command.of(config)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(OSError, match="no-such-program"):
        next(train({"command": ["./no-such-program"]}))


def test_it_loads_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import isoloss.trainers.shell, sys, json; print(json.dumps('torch' in sys.modules))"],
        capture_output=True, text=True, check=True, cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert json.loads(done.stdout) is False

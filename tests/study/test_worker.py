"""The worker by itself: its messages, its limits, its end; and how trainers are found."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isoloss.study import entry as entries
from isoloss.study import worker as workers
from isoloss.study.machine import environment
from tests.test_layers import HEAVY, modules_after

TRAINERS = Path(__file__).parent / "trainers"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


class Talk:
    """A worker, spoken to by hand."""

    def __init__(self, trainer, *, axes=None, memory=None, root=TRAINERS):
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "isoloss.study.worker"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(1), start_new_session=True,
        )  # fmt: skip
        self.say(do="load", trainer=trainer, axes=axes, root=str(root), memory=memory, grace=0.1)
        self.answer = self.hear()

    def say(self, **command):
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def run(self, folder, config=None, *, horizons=None, until=None):
        self.say(
            do="run", key="k", folder=str(folder), config=config or {}, target="loss",
            horizons=horizons, until=until,
        )  # fmt: skip
        heard = [self.hear()]
        while "end" not in heard[-1]:
            heard.append(self.hear())
        return heard

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.process:
            self.process.kill()


@pytest.fixture(scope="module")
def broken():
    """One warm worker for each function of broken.py that is asked for."""
    talks = {}

    def talk(name):
        if name not in talks:
            talks[name] = Talk(f"broken.py:{name}")
        return talks[name]

    yield talk
    for one in talks.values():
        one.__exit__()


def test_worker_and_driver_load_nothing_heavy():
    modules = modules_after("import isoloss.study.worker, isoloss.study.local")
    assert not modules & (HEAVY | {"numpy"})


def test_a_run_is_told_point_by_point_and_written_down(tmp_path):
    with Talk("curve.py:train") as talk:
        digest = hashlib.sha256((TRAINERS / "curve.py").read_bytes()).hexdigest()
        assert talk.answer == {"loaded": True, "sha256": {"file": digest}}
        heard = talk.run(tmp_path / "k", {"steps": 4, "a": 1.0, "seed": 0})
        talk.say(do="axes", configs=[{"steps": 4, "a": 1.0}])
        assert talk.hear() == {"axes": [{"params": 10.0, "tokens": 8}]}
    assert heard[-1] == {"key": "k", "end": "done"}
    assert [message["step"] for message in heard[:-1]] == [1, 2, 3, 4]
    assert all(message["key"] == "k" for message in heard)
    lines = [json.loads(text) for text in (tmp_path / "k" / "journal.jsonl").read_text().splitlines()]
    assert lines[0] == {"attempt": 1, "pid": talk.process.pid, "crc32": lines[0]["crc32"]}
    assert [one["measured"] for one in lines[1:-1]] == [one["measured"] for one in heard[:-1]]
    assert lines[-1]["end"] == "done"
    walls = [one["wall"] for one in lines[1:]]
    assert walls == sorted(walls)
    assert sorted(path.name for path in (tmp_path / "k").iterdir()) == ["journal.jsonl", "log.txt", "work"]


def test_without_a_function_the_axes_are_the_numeric_settings(broken):
    talk = broken("raises")
    talk.say(do="axes", configs=[{"width": 64, "lr": 1e-3, "name": "a", "tied": True, "tokens": [1, 2]}])
    assert talk.hear() == {"axes": [{"width": 64, "lr": 1e-3}]}


def test_axes_may_be_named_and_their_failure_is_told(tmp_path):
    with Talk("broken.py:raises", axes="curve.py:axes") as talk:
        talk.say(do="axes", configs=[{"steps": 4, "a": 1.0}, {"steps": 4}])
        assert talk.hear() == {"error": "KeyError: 'a'", "config": 1}


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("raises", {}, "ValueError: the learning rate is negative"),
        (
            "returns",
            {},
            "needed a generator that yields (step, measurements) from broken.py:returns, got dict: {'loss': 3.0}",
        ),
        ("nothing", {}, "broken.py:nothing yielded nothing"),
        ("no_target", {}, "the last yield of broken.py:no_target has no 'loss', only train_loss"),
        ("yields", {"what": "dict"}, "needed a yield of (step, measurements), got dict: {'loss': 3.0}"),
        ("yields", {"what": "list"}, "needed a number or text as 'loss', got list: [3.0]"),
        ("yields", {"what": "step"}, "needed a finite number as the step, got nan"),
        ("yields", {"what": "text"}, "needed a number as 'loss', got the text 'low'"),
        ("yields", {"what": "name"}, "needed text as the name of a measurement, got 2"),
        ("exits", {}, "SystemExit: enough"),
        ("deaf", {"until": 0.002}, "RuntimeError: generator ignored GeneratorExit"),
    ],
)
def test_a_trainer_that_fails_says_why(broken, tmp_path, name, config, why):
    end = broken(name).run(tmp_path / "k", config, until=config.get("until"))[-1]
    assert end["end"] == "failed"
    assert end["why"].startswith(why)
    assert "Traceback" in end["trace"]
    assert end["trace"] in (tmp_path / "k" / "log.txt").read_text()


def test_a_number_that_is_none_diverges_and_closes_the_trainer(broken, tmp_path):
    heard = broken("diverges").run(tmp_path / "k")
    assert heard[0]["measured"]["norm"] == float("inf")
    assert heard[1]["measured"]["loss"] != heard[1]["measured"]["loss"]
    assert heard[2:] == [{"key": "k", "end": "diverged"}]
    assert (tmp_path / "k" / "work" / "closed").exists()


def test_a_full_disk_behind_another_error_is_no_failure_of_the_run(broken, tmp_path):
    config = {"flag": str(tmp_path / "flag")}
    end = broken("full_disk").run(tmp_path / "k", config)[-1]
    assert (end["end"], end["errno"]) == ("failed", 28)
    assert '"end"' not in (tmp_path / "k" / "journal.jsonl").read_text()
    (tmp_path / "flag").touch()
    assert broken("full_disk").run(tmp_path / "k", config)[-1]["end"] == "done"


def test_a_forked_child_holds_nothing_and_says_nothing(broken, tmp_path):
    heard = broken("forks").run(tmp_path / "k")
    assert [message.get("step") for message in heard] == [1, 2, None]
    assert heard[-1]["end"] == "done"


def test_prints_go_to_the_log_of_their_run(broken, tmp_path):
    for word in ("one", "two"):
        heard = broken("chatty").run(tmp_path / word, {"word": word})
        assert [message.get("step") for message in heard] == [1, None]
        assert heard[0]["measured"]["threads"] == 1
    for word in ("one", "two"):
        said = (tmp_path / word / "log.txt").read_text().splitlines()
        assert sorted(said) == sorted(
            [f"said by Python {word}", f"said by C {word}", f"said by a child {word}", "complaint"]
        )


def test_seconds_count_children_and_earlier_attempts(broken, tmp_path):
    config = {"seconds": 0.05, "yields": 2, "child": True}
    first = broken("works").run(tmp_path / "k", config, until=0.0)
    assert first[-1]["end"] == "done"  # no "done" in what it yields: never paused
    assert first[-2]["seconds"]["cpu"] > 0.25
    text = (tmp_path / "k" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "k" / "journal.jsonl").write_text("".join(text[:-1]))  # as if it died before its end
    second = broken("works").run(tmp_path / "k", config)
    for name in ("cpu", "wall"):
        assert second[0]["seconds"][name] > first[-2]["seconds"][name] + 0.2


@pytest.mark.parametrize("how", ["python", "numpy"])
def test_memory_beyond_the_limit_fails_with_the_limit_named(tmp_path, how):
    with Talk("broken.py:eats", memory=256 * 2**20) as talk:
        end = talk.run(tmp_path / "k", {"how": how, "bytes": 2**30})[-1]
        assert end["end"] == "failed"
        assert end["why"].startswith("out of memory; the limit is 0.25 GiB a worker (")
        assert "MemoryError" in end["why"]
        assert talk.run(tmp_path / "l", {"how": how, "bytes": 2**20})[-1]["end"] == "done"


def test_stop_closes_the_run_at_its_next_yield_which_saves_and_goes_on_later(tmp_path):
    config = {"steps": 200, "a": 1.0, "seed": 0, "pause": 0.005, "every": 1000}
    command = {"key": "k", "folder": str(tmp_path / "k"), "target": "loss", "horizons": None, "until": None}
    with Talk("curve.py:train") as talk:
        talk.say(do="run", config=config, **command)
        assert (last := talk.hear()["step"]) == 1
        talk.say(do="stop")
        while "step" in (message := talk.hear()):
            last = message["step"]
        assert message == {"key": "k", "end": "paused"}
        talk.say(do="run", config={**config, "pause": 0.0}, **command)
        assert talk.hear()["step"] == last + 1


def test_the_end_of_the_driver_ends_the_worker_and_what_it_started(tmp_path):
    with Talk("broken.py:shell") as talk:
        talk.say(do="run", key="k", folder=str(tmp_path), config={}, target="loss", horizons=None, until=None)
        child = talk.hear()["measured"]["child"]
        assert alive(child)
        talk.process.stdin.close()
        assert gone(child)
        assert talk.process.wait(5) == -9


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("train", "needed a function as"),
        ("curve.py:", "needed a function as"),
        ("absent.py:train", "there is no file"),
        ("absent.module:train", "there is no module 'absent'"),
        ("json.absent:train", "there is no module 'json.absent'"),
        ("curve.py:fit", "the function 'fit' in curve.py, but it is not there"),
        ("broken.py:not_a_function", "but it is a int"),
        (
            "lopsided.py:train",
            "importing .*lopsided.py failed: KeyError: 'not importable' .lopsided.py, line 1",
        ),
        ("builtins:print", "has no source file"),
    ],
)
def test_a_trainer_that_cannot_be_found_says_why(text, why, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match=why):
        entries.resolve(text, TRAINERS)


def test_an_error_at_loading_is_an_answer():
    with Talk("lopsided.py:train") as talk:
        assert "not importable" in talk.answer["error"]


def test_a_module_beside_the_study_is_found_and_may_have_a_common_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "family_of_toys").mkdir()
    (tmp_path / "family_of_toys" / "__init__.py").write_text("from family_of_toys.small import train\n")
    (tmp_path / "family_of_toys" / "small.py").write_text("def train(config):\n    yield 1, {'loss': 1.0}\n")
    found = entries.resolve("family_of_toys:train", tmp_path)
    assert found.file == (tmp_path / "family_of_toys" / "small.py").resolve()
    (tmp_path / "json.py").write_text("def train(config):\n    yield 1, {'loss': 2.0}\n")
    assert next(entries.resolve("json.py:train", tmp_path).function({})) == (1, {"loss": 2.0})
    assert json.loads("1") == 1


def test_numbers_of_other_libraries_become_plain():
    import numpy as np

    assert [workers.plain(v, "x") for v in (np.float32(0.5), np.int64(3), True, np.array(2.0), "t")] == [
        0.5, 3.0, 1, 2.0, "t",
    ]  # fmt: skip
    with pytest.raises(workers.Breach, match="as 'x', got ndarray"):
        workers.plain(np.zeros(3), "x")


def test_reasons_are_short():
    assert workers.said(ValueError("a\nb")) == "ValueError: a"
    assert workers.said(ValueError()) == "ValueError"
    assert len(workers.said(ValueError("x" * 1000))) == workers.LONGEST_WHY


def test_a_system_without_posix_is_told_so(monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(ValueError, match="needs a POSIX system"):
        workers.journals.require_posix()

"""The loop: predict, make, score; and the same numbers whatever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import isoloss
from isoloss.study import steps
from isoloss.study.study import Study
from tests.study.trainers import ladder

ROOT = Path(__file__).parents[2]
TRAINER = {
    "run": str(Path(ladder.__file__)) + ":train",
    "axes": str(Path(ladder.__file__)) + ":axes",
}
RUNGS = [
    {"params": [1e5, 2e5, 4e5], "tokens": [1e6, 2e6, 4e6]},
    {"params": [2e5, 4e5, 8e5], "tokens": 8e6},
]
TARGET = {"params": 16e5, "tokens": 32e6}


def study(root, **changes):
    tables = {
        "name": "s", "root": root, "trainer": TRAINER, "rungs": RUNGS, "target": TARGET,
        "objective": {"unit": "nats", "draws": 200}, "workers": {"count": 2},
    }  # fmt: skip
    settings = changes.pop("settings", None)
    tables |= changes
    if settings:
        tables["trainer"] = {**tables["trainer"], "settings": settings}
    return Study(**tables)


def numbers(root):
    """Everything a study has found, without times."""
    store = isoloss.Store(root / "s.db", read_only=True)
    runs = {
        (
            e["key"],
            e["status"],
            tuple(sorted(e["measured"].items())),
            tuple(sorted(e["axes"].items())),
            e["costs"].get("flops"),
        )
        for e in store.run_entries()
    }
    predictions = [
        (p["key"], p["law"], tuple(p["quantiles"]), p["low"], p["high"], p["fit"], p["data"])
        for p in store.predictions()
    ]
    curves = store.curves()
    points = sorted(
        zip(curves["run"].tolist(), curves["step"].tolist(), curves["loss"].tolist(), strict=True)
    )
    return runs, sorted(predictions), points


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    told = study(root).run()
    return numbers(root), told


def test_it_predicts_before_it_runs_and_scores_after(undisturbed, tmp_path):
    (runs, predictions, points), told = undisturbed
    assert len(runs) == 13
    assert len(points) == 13 * ladder.STEPS
    assert [law for _, law, *_ in predictions] == ["hoffmann"] * 4  # the second rung and the target
    assert told.complete
    assert len(told.ledger.which("scored")) == 4
    target = told.ledger.predictions[-1]
    truth = ladder.end({"params": 16e5, "tokens": 32e6})
    assert told.ledger.fates[-1].value == pytest.approx(truth, rel=1e-12)
    assert target["low"] < truth < target["high"]
    assert target["distance"] == pytest.approx(16e5 * 32e6 / (8e5 * 8e6))


def test_the_fit_of_the_target_is_that_of_its_rows(undisturbed):
    _, told = undisturbed
    n, d = np.array(
        [(p, t) for p in (1e5, 2e5, 4e5) for t in (1e6, 2e6, 4e6)] + [(p, 8e6) for p in (2e5, 4e5, 8e5)]
    ).T
    losses = [ladder.end({"params": float(a), "tokens": float(b)}) for a, b in zip(n, d, strict=True)]
    wanted = isoloss.fit(
        "hoffmann", {"params": n, "tokens": d, "loss": losses}, objective=isoloss.StudentT(), draws=200, sensitivity=False
    )  # fmt: skip
    np.testing.assert_allclose(told.fits["hoffmann"].theta, wanted.theta, rtol=1e-6)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_number(workers, undisturbed, tmp_path):
    study(tmp_path, workers={"count": workers}).run()
    assert numbers(tmp_path) == undisturbed[0]


def test_what_is_done_is_not_made_again(undisturbed, tmp_path):
    log = tmp_path / "log.txt"
    study(tmp_path, settings={"log": str(log)}).run()
    lines = log.read_text().splitlines()
    told = study(tmp_path, settings={"log": str(log)}).run()
    assert log.read_text().splitlines() == lines
    assert len(lines) == 13
    assert told.complete
    assert "hoffmann" in told.fits


DRIVER = """
import sys
sys.path.insert(0, {root!r})
from tests.study.test_loop import study
from pathlib import Path
study(Path({place!r}), settings={{"pause": 0.03, "log": {log!r}}}).run()
"""


@pytest.mark.parametrize("after", [0.6, 1.3, 2.0])
def test_a_driver_killed_at_any_moment_loses_nothing(after, tmp_path):
    place, log = tmp_path / "killed", tmp_path / "log.txt"
    place.mkdir()
    code = DRIVER.format(root=str(ROOT), place=str(place), log=str(log))
    for wait in (after, after / 2):
        driver = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(wait)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    study(place, settings={"pause": 0.03, "log": str(log)}).run()
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    study(quiet, settings={"pause": 0.03, "log": str(log)}).run()
    assert numbers(place) == numbers(quiet)


def test_workers_killed_on_the_way_lose_nothing(undisturbed, tmp_path):
    killed = []

    def tell(step):
        if isinstance(step, steps.Moved) and len(killed) < 3 and step.done == 0.5 and step.key not in killed:
            killed.append(step.key)
            for entry in (tmp_path / "s.runs").glob("*/journal.jsonl"):
                pids = [
                    line.split('"pid":')[1].split(",")[0]
                    for line in entry.read_text().splitlines()
                    if '"pid"' in line
                ]
                if entry.parent.name == step.key:
                    os.kill(int(pids[-1]), signal.SIGKILL)

    told = study(tmp_path, settings={"pause": 0.01}, workers={"count": 2, "retries": 3}).run(tell)
    assert len(killed) == 3
    assert told.complete
    other = tmp_path / "other"
    other.mkdir()
    study(other, settings={"pause": 0.01}).run()
    assert numbers(tmp_path) == numbers(other)


def test_failed_and_diverged_runs_are_rows_and_the_study_goes_on(tmp_path):
    rungs = [{**RUNGS[0]}, {"params": 3e5, "tokens": 5e6, "trouble": ["raise", "die", "diverge"]}]
    ended = []
    told = study(tmp_path, rungs=rungs).run(lambda s: ended.append(s) if isinstance(s, steps.Ended) else None)
    ways = {e.key.split("trouble=")[1].partition("@")[0]: e for e in ended if "trouble" in e.key}
    assert {name: e.status for name, e in ways.items()} == {
        "raise": "failed",
        "die": "failed",
        "diverge": "diverged",
    }
    assert "on strike" in ways["raise"].why
    assert told.complete
    assert list(told.statuses.values()).count("done") == 10
    store = isoloss.Store(tmp_path / "s.db", read_only=True)
    assert len(store.runs("s")) == 10
    assert any(
        "on strike" in e["config"].get("why", "") for e in store.run_entries() if e["status"] == "failed"
    )
    (diverged,) = (e for e in store.run_entries() if e["status"] == "diverged")
    assert diverged["measured"]["loss"] is None
    # the log of what failed is kept, that of the others is not
    assert {p.parent.name for p in (tmp_path / "s.runs").glob("*/journal.jsonl")} == {
        e.key for e in ways.values() if e.status == "failed"
    }


def test_a_longer_file_adds_runs_and_repeats_none(tmp_path):
    log = tmp_path / "log.txt"
    study(tmp_path, target=None, rungs=RUNGS[:1], settings={"log": str(log)}).run()
    before = log.read_text().splitlines()
    told = study(tmp_path, settings={"log": str(log)}).run()
    after = log.read_text().splitlines()
    assert len(before) == 9
    assert after[:9] == before
    assert len(after) == 13
    assert len(told.ledger.which("scored")) == 4


def test_another_trainer_or_other_data_is_refused(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(Path(ladder.__file__).read_text())
    trainer = {"run": f"{own}:train", "axes": f"{own}:axes"}
    study(tmp_path, trainer=trainer, rungs=RUNGS[:1], target=None).run()
    own.write_text(own.read_text() + "\n# better\n")
    with pytest.raises(isoloss.StoreError, match=r"not the file that made run .*--changed-trainer"):
        study(tmp_path, trainer=trainer).run()
    assert study(tmp_path, trainer=trainer).run(changed_trainer=True).complete
    mixed = [{**RUNGS[0], "data": "one"}, {**RUNGS[1], "data": "two"}]
    with pytest.raises(ValueError, match="differ in data_sha256"):
        study(tmp_path, name="mixed", rungs=mixed, settings={}).run()


def test_axes_that_are_missing_or_wrong_are_said(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def train(config):\n    yield 1, {'loss': 1.0, 'params': 2 * config['params']}\n")
    trainer = {"run": "own.py:train"}
    with pytest.raises(ValueError, match="hoffmann reads tokens, got params for run params=1@"):
        study(tmp_path, rungs=[{"params": [1, 2]}], target=None, trainer=trainer).run()
    rungs = [{"params": [1, 2], "tokens": 3}]
    with pytest.raises(
        ValueError, match=r"trainer.axes says params 1, the trainer measured 2. Do: make them agree"
    ):
        study(tmp_path, name="wrong", rungs=rungs, target=None, trainer=trainer, workers={"count": 1}).run()


def test_a_second_driver_is_refused(tmp_path):
    def tell(step):
        if isinstance(step, steps.Began) and step.number == 1:
            with pytest.raises(isoloss.StoreError, match=f"being run by process {os.getpid()}"):
                study(tmp_path).run()

    assert study(tmp_path, rungs=RUNGS[:1], target=None).run(tell).complete


def test_the_best_of_several_targets_is_run_and_stays_the_choice(tmp_path):
    target = {"params": [4e5, 16e5, 64e5], "tokens": 32e6, "pick": "best", "flops": 6 * 17e5 * 32e6}
    told = study(tmp_path, target=target).run()
    assert [key.split("@")[0] for key in told.targets] == ["params=1600000,tokens=32000000"]
    assert study(tmp_path, target=target).run().targets == told.targets


def test_limits_stop_before_a_rung_and_more_lets_it_go_on(tmp_path):
    ladder_flops = sum(6 * p * t for p in RUNGS[0]["params"] for t in RUNGS[0]["tokens"])
    told = study(tmp_path, limits={"flops": 1.1 * ladder_flops}).run()
    assert not told.complete
    assert "limits.flops" in told.why
    assert list(told.statuses.values()).count("done") == 9
    assert study(tmp_path).run().complete


def test_hopeless_runs_are_stopped_and_the_stops_are_in_the_ledger(tmp_path):
    sweep = {"params": 4e5, "tokens": 8e6, "lr": [1.0, 3.0, 1e4, 1e6]}
    told = study(tmp_path, rungs=[RUNGS[0], sweep], target=None, early_stop={"at": 0.5}).run()
    ends = {
        key.split("lr=")[1].partition(",")[0]: status for key, status in told.statuses.items() if "lr=" in key
    }
    assert ends["1"] == "done"
    assert ends["1000000"] == ends["10000"] == "stopped"
    outlooks = [p for p in told.ledger.predictions if p["law"] == "early-stop"]
    assert len(outlooks) == 4
    scored = [
        f.status
        for p, f in zip(told.ledger.predictions, told.ledger.fates, strict=True)
        if p["law"] == "early-stop"
    ]
    assert scored.count("open") == list(ends.values()).count("stopped")
    assert (
        study(tmp_path, rungs=[RUNGS[0], sweep], target=None, early_stop={"at": 0.5}).run().statuses
        == told.statuses
    )


def test_no_stop_without_the_switch(tmp_path):
    sweep = {"params": 4e5, "tokens": 8e6, "lr": [1.0, 1e6]}
    told = study(tmp_path, rungs=[RUNGS[0], sweep], target=None).run()
    assert set(told.statuses.values()) == {"done"}


def test_a_full_disk_ends_the_study_and_room_lets_it_go_on(tmp_path, monkeypatch):
    from isoloss.study.store import Store

    real, calls = Store.add_run, []

    def full(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise isoloss.StoreError("no room")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Store, "add_run", full)
    with pytest.raises(isoloss.StoreError, match="no room"):
        study(tmp_path).run()
    monkeypatch.setattr(Store, "add_run", real)
    assert study(tmp_path).run().complete

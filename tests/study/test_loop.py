"""The loop: predict, make, score; and the same numbers whatever is killed on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import isoloss
from isoloss.study import loop, steps
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
        "objective": {"unit": "nats", "draws": 100}, "workers": {"count": 2},
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
    runs = sorted(runs, key=str)
    return runs, sorted(predictions), points


@pytest.fixture(scope="module", autouse=True)
def _one_fit_for_the_same_rows_in_the_same_order():
    """Fits are exact functions of their rows (tests/fitting), and most studies here have the same ones."""
    real, known = loop.fit_law, {}

    def fit(law, table, **how):
        rows = [np.asarray(table[name]).tobytes() for name in (*law.axes, law.target)]
        key = (law.spec, *rows, str(how))
        if key not in known:
            known[key] = real(law, table, **how)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fit_law", fit)
        yield


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
        "hoffmann", {"params": n, "tokens": d, "loss": losses}, objective=isoloss.StudentT(), draws=100, sensitivity=False
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
from tests.study.test_loop import {how} as study
from pathlib import Path
study(Path({place!r})).run()
"""


def killed(how, place, *waits):
    """Begin a study that many times, each killed after a while; every step of a run takes 40 ms."""
    code = DRIVER.format(root=str(ROOT), place=str(place), how=how)
    for wait in waits:
        driver = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "LADDER_PAUSE": "0.04"})
        deadline = time.monotonic() + 20
        while not (place / "s.runs" / "lock").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(wait)
        driver.kill()
        driver.wait()


@pytest.mark.parametrize("waits", [(0.5, 0.6), (1.6,)])
def test_a_driver_killed_at_any_moment_loses_nothing(waits, undisturbed, tmp_path):
    killed("study", tmp_path, *waits)
    study(tmp_path).run()
    assert numbers(tmp_path) == undisturbed[0]


def test_workers_killed_on_the_way_lose_nothing(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("LADDER_PAUSE", "0.01")
    killed = []

    def tell(step):
        if isinstance(step, steps.Moved) and len(killed) < 3 and step.done == 0.5 and step.key not in killed:
            killed.append(step.key)
            text = (tmp_path / "s.runs" / step.key / "journal.jsonl").read_text()
            os.kill(int(text.rpartition('"pid":')[2].partition(",")[0]), signal.SIGKILL)

    told = study(tmp_path, workers={"count": 2, "retries": 3}).run(tell)
    assert len(killed) == 3
    assert told.complete
    assert numbers(tmp_path) == undisturbed[0]


def trunk(root, **changes):
    """Three rungs on three trunks; of three targets the best is taken."""
    tables = {
        "trainer": {**TRAINER, "run": TRAINER["run"].replace(":train", ":branches"), "horizon": "tokens"},
        "rungs": [
            {"params": [1e5, 2e5, 4e5], "tokens": [1e6, 2e6, 4e6]},
            {"params": [2e5, 4e5], "tokens": 8e6},
        ],
        "target": {"params": [1e5, 2e5, 4e5], "tokens": 16e6, "pick": "best"},
        "objective": {"unit": "nats", "draws": 100, "laws": ["hoffmann", "hestness"]},
    }
    return study(root, **tables | changes)


@pytest.fixture(scope="module")
def quiet_trunk(tmp_path_factory):
    root = tmp_path_factory.mktemp("trunk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADDER_LOG", str(root / "log.txt"))
        told = trunk(root, workers={"count": 3}).run()
    return numbers(root), told, (root / "log.txt").read_text().splitlines()


def test_longer_horizons_go_on_from_the_trunk_and_leave_no_folder(quiet_trunk):
    (runs, predictions, _), told, log = quiet_trunk
    assert told.complete
    assert len(runs) == 12
    assert sorted(log) == [
        "100000 1e+06,2e+06,4e+06 1",
        "200000 1e+06,2e+06,4e+06 1",
        "200000 8e+06 5",
        "400000 1.6e+07 9",
        "400000 1e+06,2e+06,4e+06 1",
        "400000 8e+06 5",
    ]
    losses = {key: dict(measured)["loss"] for key, _, measured, *_ in runs}
    assert losses[told.targets[0]] == ladder.end({"params": 4e5, "tokens": 16e6})
    assert sorted(law for _, law, *_ in predictions) == ["hestness(tokens)"] * 3 + ["hoffmann"] * 3


@pytest.mark.parametrize("wait", [0.5, 1.4])
def test_trunks_that_are_killed_give_the_same(wait, quiet_trunk, tmp_path):
    killed("trunk", tmp_path, wait)
    trunk(tmp_path, workers={"count": 1}).run()
    assert numbers(tmp_path) == quiet_trunk[0]


class Gone(BaseException):
    """The driver dies here."""


def dies_at(kind, chosen=lambda step: True):
    def tell(step):
        if isinstance(step, kind) and chosen(step):
            raise Gone

    return tell


def test_the_choice_of_a_target_stands_when_the_driver_dies_after_the_promise(quiet_trunk, tmp_path):
    for kind, chosen in [
        (steps.Promised, lambda s: s.rung == "target"),
        (steps.Began, lambda s: s.rung == "target"),
        (steps.Ended, lambda s: "tokens=16000000" in s.key),
    ]:
        with pytest.raises(Gone):
            trunk(tmp_path).run(dies_at(kind, chosen))
    assert trunk(tmp_path).run().targets == quiet_trunk[1].targets
    assert numbers(tmp_path) == quiet_trunk[0]


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


def test_what_failed_is_tried_again_only_where_asked_and_from_its_checkpoint(tmp_path, monkeypatch):
    log = tmp_path / "log.txt"
    monkeypatch.setenv("LADDER_LOG", str(log))
    rungs = [RUNGS[0], {"params": 3e5, "tokens": 5e6, "trouble": "mended"}]

    def told(tell=None, **how):
        return study(tmp_path, rungs=rungs).run(tell, **how).statuses

    def failed(statuses):
        return [key for key, status in statuses.items() if status == "failed"]

    (key,) = failed(told())
    before = log.read_text().splitlines()
    assert failed(told()) == [key]
    assert log.read_text().splitlines() == before  # nothing is made
    assert failed(told(retry_failed=True)) == [key]  # tried again in vain, it has failed again
    assert failed(told()) == [key]
    monkeypatch.setenv("LADDER_MENDED", "1")
    # a driver that dies after it was asked to try again goes on with it
    with pytest.raises(Gone):
        told(dies_at(steps.Began), retry_failed=True)
    assert set(told().values()) == {"done"}
    assert log.read_text().splitlines()[-1] == "300000 5e+06 0 3"
    ledger = isoloss.Ledger.read(tmp_path / "s.db")
    assert len(ledger.which("scored")) == len(ledger.predictions) == 2


def test_a_failed_trunk_is_tried_again_with_the_ends_it_lacks(tmp_path, monkeypatch):
    rungs = [{"params": [1e5, 2e5, 4e5], "tokens": [1e6, 4e6], "trouble": ["", "mended"]}]
    told = trunk(tmp_path, rungs=rungs, target=None).run()
    assert sorted(told.statuses.values()) == ["done"] * 9 + ["failed"] * 3
    monkeypatch.setenv("LADDER_MENDED", "1")
    told = trunk(tmp_path, rungs=rungs, target=None).run(retry_failed=True)
    assert set(told.statuses.values()) == {"done"}
    assert not list((tmp_path / "s.runs").glob("trunk*"))


def test_where_every_run_failed_nothing_dearer_is_begun(tmp_path):
    rungs = [{"params": [1e5, 2e5], "tokens": 1e6, "trouble": "raise"}, RUNGS[1]]
    for _ in range(2):
        told = study(tmp_path, rungs=rungs, workers={"retries": 0}).run()
        assert "rung 2 is not begun: no run before it is done" in told.why
        assert list(told.statuses.values()).count("missing") == 4


def test_what_has_begun_is_not_predicted_by_a_law_that_is_new(tmp_path, monkeypatch):
    monkeypatch.setenv("LADDER_PAUSE", "0.01")
    begun = []

    def tell(step):
        if isinstance(step, steps.Moved) and "tokens=8000000" in step.key:
            begun.append(step.key)
            raise Gone

    with pytest.raises(Gone):
        study(tmp_path, workers={"count": 1}).run(tell)
    objective = {"unit": "nats", "draws": 100, "laws": ["hoffmann", "hestness"]}
    told = study(tmp_path, objective=objective).run()
    laws = {}
    for p in told.ledger.predictions:
        laws.setdefault(p["key"], set()).add(p["law"].partition("(")[0])
    assert laws.pop(begun[0]) == {"hoffmann"}
    assert list(laws.values()) == [{"hoffmann", "hestness"}] * 3
    assert len(told.ledger.which("scored")) == 7


def test_a_fit_that_is_interrupted_predicts_nothing(tmp_path, monkeypatch):
    real = loop.fit_law
    monkeypatch.setattr(loop, "fit_law", lambda *a, **k: replace(real(*a, **k), result="interrupted"))
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path).run()
    assert not isoloss.Store(tmp_path / "s.db", read_only=True).predictions()


OWN = """
import math
def train(config):
    for step in (1, 2):
        yield step, {RESULT}
"""


def own(tmp_path, result, **changes):
    (tmp_path / "own.py").write_text(OWN.replace("RESULT", result))
    trainer = {"run": "own.py:train"}
    return study(tmp_path, trainer=trainer, rungs=RUNGS[:1], **changes)


def test_a_law_that_is_not_defined_for_the_rows_ends_no_study(tmp_path):
    said = []
    told = own(tmp_path, "'loss': -1.0 - 1 / config['params']").run(said.append)
    assert told.complete
    assert "hoffmann needs loss above 0" in next(s.why for s in said if isinstance(s, steps.Fitted))


def test_measurements_with_names_of_the_tables_own_columns_are_kept_beside_them(tmp_path):
    result = "'loss': 1.0, 'run': 3, 'study': 4, 'step': 5, 'entry': 6, 'cpu_seconds': 7, 'x': math.nan"
    own(tmp_path, result, target=None).run()
    runs = isoloss.Store(tmp_path / "s.db", read_only=True).runs("s")
    for name, value in {"run": 3, "study": 4, "step": 5, "entry": 6, "cpu_seconds": 7}.items():
        assert set(runs[f"{name}_measured"]) == {value}
    assert runs["run"][0].startswith("params=")
    target = {"params": 1, "tokens": 1, "run": 2}
    with pytest.raises(ValueError, match="run cannot be an axis"):
        own(tmp_path, "'loss': 1.0", name="other", target=target).run()


def test_a_number_that_no_float_holds_fails_the_run(tmp_path):
    told = own(tmp_path, "'loss': 10**400", target=None).run()
    assert set(told.statuses.values()) == {"failed"}


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
    began = []
    told = study(tmp_path, limits={"flops": 1.1 * ladder_flops}).run(
        lambda s: began.append(s) if isinstance(s, steps.Began) else None
    )
    wanted = {
        f"params={p:.0f},tokens={t:.0f}": 6 * p * t for p in RUNGS[0]["params"] for t in RUNGS[0]["tokens"]
    }
    (first,) = began
    for key, share in zip(first.todo, first.shares, strict=True):
        assert share == pytest.approx(wanted[key.partition("@")[0]] / ladder_flops)
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


def test_early_stops_are_those_of_a_study_that_was_not_killed(tmp_path, monkeypatch):
    sweep = {"params": 4e5, "tokens": 8e6, "lr": [1.0, 3.0, 1e4, 1e6]}
    pair = {"params": 8e5, "tokens": 8e6, "trouble": ["", "diverge"]}

    def stopping(root):
        rungs = [RUNGS[0], sweep, pair]
        return study(root, rungs=rungs, target=None, early_stop={"at": 0.5}, workers={"count": 1})

    quiet, place = tmp_path / "quiet", tmp_path / "place"
    for root in (quiet, place):
        root.mkdir()
    stopping(quiet).run()
    for kind, chosen in [
        (steps.Moved, lambda s: "lr" in s.key and s.done == 0.5),  # the last step of the first leg
        (steps.Ended, lambda s: s.status == "stopped"),  # between two stops
        (steps.Moved, lambda s: "lr" in s.key and s.done > 0.5),  # in the second leg
        (steps.Ended, lambda s: s.status == "diverged"),  # in the first leg, before the other is looked at
        (steps.Moved, lambda s: "8e5" in s.key and s.done > 0.5),
    ]:
        with contextlib.suppress(Gone):
            stopping(place).run(dies_at(kind, chosen))
    told = stopping(place).run()
    assert told.complete
    assert str(numbers(place)) == str(numbers(quiet))
    # what a stopped run measured before is kept
    store = isoloss.Store(place / "s.db", read_only=True)
    stopped = [e for e in store.run_entries() if e["status"] == "stopped"]
    assert stopped
    assert all(e["costs"]["cpu_seconds"] > 0 for e in stopped)
    curves = store.curves()
    assert all(4 <= list(curves["run"]).count(e["key"]) < ladder.STEPS for e in stopped)


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


def test_limits_without_flops_are_refused(tmp_path):
    (tmp_path / "own.py").write_text("def train(config):\n    yield 1, {'loss': 1.0}\n")
    rungs = [{"params": [1, 2], "tokens": 3}]
    asked = study(
        tmp_path, rungs=rungs, target=None, trainer={"run": "own.py:train"}, limits={"core_hours": 1}
    )
    with pytest.raises(ValueError, match="limits need the axis flops"):
        asked.run()

"""The executor: many runs, dying workers, dying drivers, full disks, second drivers; each run once and whole."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from isoloss.errors import StoreError
from isoloss.study import journal as journals
from isoloss.study import machine
from isoloss.study.local import Event, Point, Task, Workers, by_horizon
from tests.study.test_worker import TRAINERS, alive, gone

ROOT = Path(__file__).parents[2]
SETTINGS = {"steps": 20, "a": 1.0, "every": 5}


def tasks(count=3, **more):
    return [Task(f"run{n}", {**SETTINGS, "seed": n, **more}, cost=float(n)) for n in range(count)]


def workers(folder, trainer="curve.py:train", **settings):
    return Workers(trainer, None, TRAINERS, folder, **{"count": 2, "grace": 5.0, **settings})


def ends(events):
    return {event.key: event for event in events if event.kind not in ("point", "note")}


def measured(event):
    return [(point.step, point.measured) for point in event.points]


def calls(folder, key):
    return (folder / key / "work" / "calls").read_text().split()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the curves are when nobody interferes: computed in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with workers(folder) as pool:
        found = ends(pool.run(tasks()))
    return {key: measured(event) for key, event in found.items()}


def test_the_curves_are_those_of_the_trainer_called_by_hand(undisturbed, tmp_path):
    code = (TRAINERS / "curve.py").read_text()
    names = {}
    exec(compile(code, "curve.py", "exec"), names)
    for task in tasks():
        (tmp_path / task.key).mkdir()
        by_hand = list(names["train"]({**task.config, "folder": str(tmp_path / task.key)}))
        assert undisturbed[task.key] == [(float(step), found) for step, found in by_hand]


def test_events_come_as_they_happen_dearest_first_and_ended_runs_are_not_made_again(tmp_path, undisturbed):
    with workers(tmp_path, count=1) as pool:
        events = list(pool.run(tasks()))
        assert [event.key for event in events if event.kind == "done"] == ["run2", "run1", "run0"]
        assert [event.points[0].step for event in events if event.kind == "point"] == [*range(1, 21)] * 3
        assert len({calls(tmp_path, f"run{n}")[0] for n in range(3)}) == 1  # one warm worker
        assert events[-1].attempts == 1
        for end in ends(events).values():
            assert [point.wall for point in end.points] == sorted(point.wall for point in end.points)
    with workers(tmp_path) as pool:
        again = list(pool.run(tasks()))
        assert pool._processes == []
    assert {event.kind for event in again} == {"done"}
    assert {event.key: measured(event) for event in again} == undisturbed
    assert [len(calls(tmp_path, f"run{n}")) for n in range(3)] == [1, 1, 1]


def test_digest_and_axes_are_asked_in_a_worker(tmp_path):
    with workers(tmp_path) as pool:
        assert re.fullmatch("[0-9a-f]{64}", pool.sha256["file"])
        assert pool.axes([{"a": 2.0, "steps": 3}, {"a": 1.0, "steps": 4}]) == [
            {"params": 20.0, "tokens": 6},
            {"params": 10.0, "tokens": 8},
        ]
        assert pool.axes([]) == []
        with pytest.raises(ValueError, match=r"axes of curve\.py:train failed: KeyError: 'steps'"):
            pool.axes([{"a": 2.0}])
        assert len(pool._processes) == 1
        # In the middle of runs, too, when every worker is busy.
        running = pool.run(tasks(2, pause=0.01))
        next(running)
        assert pool.axes([{"a": 3.0, "steps": 1}]) == [{"params": 30.0, "tokens": 2}]
        assert set(ends(running)) == {"run0", "run1"}


def test_a_worker_that_kills_itself_is_replaced_and_the_curve_is_whole(tmp_path, undisturbed):
    with workers(tmp_path) as pool:
        events = list(pool.run(tasks(die_at=13)))
    assert {key: measured(event) for key, event in ends(events).items()} == undisturbed
    notes = [event for event in events if event.kind == "note"]
    assert len(notes) == 3
    assert "attempt 1 failed: was ended by signal 9 (SIGKILL" in notes[0].why
    assert {event.attempts for event in ends(events).values()} == {2}


def test_a_worker_killed_from_outside_at_any_moment(tmp_path, undisturbed):
    picks = random.Random(3)
    events = []
    with workers(tmp_path, retries=50) as pool:
        for event in pool.run(tasks(pause=0.002)):
            events.append(event)
            if picks.random() < 0.15 and pool._processes:
                os.kill(picks.choice(pool._processes).popen.pid, signal.SIGKILL)
    assert {key: measured(event) for key, event in ends(events).items()} == undisturbed
    assert sum(event.kind == "done" for event in events) == 3
    assert sum(event.kind == "note" for event in events) > 2


def test_attempts_are_counted_across_drivers(tmp_path):
    task = [Task("a", {})]
    with workers(tmp_path, "broken.py:dies", retries=0) as pool:
        assert ends(pool.run(task))["a"].attempts == 1
    with workers(tmp_path, "broken.py:dies", retries=1) as pool:
        end = ends(pool.run(task))["a"]
        assert (end.kind, end.attempts) == ("failed", 2)
        assert end.why == "ended its process with status 7"
        assert [point.measured for point in end.points] == [{"loss": 3.0}]
    with workers(tmp_path, "broken.py:dies", retries=1) as pool:
        end = ends(pool.run(task))["a"]
        assert (end.kind, end.attempts, end.why) == ("failed", 2, "ended its process with status 7")
        assert pool._processes == []


def test_a_failure_is_tried_again_in_a_new_process(tmp_path):
    with workers(tmp_path, "broken.py:raises_once") as pool:
        events = list(pool.run([Task("a", {}), Task("b", {})]))
    assert {event.kind for event in ends(events).values()} == {"done"}
    assert [event.why for event in events if event.kind == "note"] == [
        "attempt 1 failed: RuntimeError: once; it is tried again"
    ] * 2
    log = (tmp_path / "a" / "log.txt").read_text()
    assert log.count("RuntimeError: once") == 1
    assert "Traceback" in log


def test_runs_that_diverge_or_fail_do_not_hold_up_others(tmp_path):
    with workers(tmp_path, "broken.py:yields", retries=0) as pool:
        found = ends(pool.run([Task("a", {"what": "text"}), Task("b", {"what": "list"})]))
    assert {event.kind for event in found.values()} == {"failed"}
    with workers(tmp_path, "broken.py:diverges") as pool:
        assert ends(pool.run([Task("c", {})]))["c"].kind == "diverged"
        assert len(pool._processes) == 1


def test_a_share_is_paused_and_gone_on_with(tmp_path, undisturbed):
    def rung(until):
        return [Task("run1", {**SETTINGS, "seed": 1}, until=until)]

    with workers(tmp_path) as pool:
        half = ends(pool.run(rung(0.5)))["run1"]
        assert (half.kind, len(half.points)) == ("paused", 10)
        assert measured(ends(pool.run(rung(0.5)))["run1"]) == measured(half)
        assert len(calls(tmp_path, "run1")) == 1
        assert len(ends(pool.run(rung(0.75)))["run1"].points) == 15
        whole = ends(pool.run(rung(None)))["run1"]
    assert (whole.kind, whole.attempts) == ("done", 3)
    assert measured(whole) == undisturbed["run1"]
    assert half.points[-1].cpu < whole.points[-1].cpu


def test_horizons_share_a_trunk_and_each_has_its_curve(tmp_path):
    def task(*horizons, **more):
        return [Task("a", {"tokens": list(horizons), **more}, horizons=horizons)]

    with workers(tmp_path, "trunk.py:train", retries=0) as pool:
        events = list(pool.run(task(2.0, 4.0)))
        closing = [
            event.points[0]
            for event in events
            if event.kind == "point" and "horizon" in event.points[0].measured
        ]
        assert [point.measured["horizon"] for point in closing] == [2.0, 4.0]
        curves = by_horizon(ends(events)["a"].points)
        assert {h: [(p.step, p.measured["loss"]) for p in curve] for h, curve in curves.items()} == {
            2.0: [(1, 6.0), (2, 3.5)],
            4.0: [(1, 6.0), (2, 4.0), (3, 2 + 4 / 3), (4, 2.75)],
        }
        # One more horizon is more to do.
        assert set(by_horizon(ends(pool.run(task(2.0, 4.0, 5.0)))["a"].points)) == {2.0, 4.0, 5.0}
        assert ends(pool.run(task(2.0, 5.0)))["a"].attempts == 2
    with workers(tmp_path, "trunk.py:train", retries=0) as pool:
        other = Task("b", {"tokens": [2, 4], "skip": 4}, horizons=(2, 4))
        third = Task("c", {"tokens": [2, 4], "as": 3}, horizons=(2, 4))
        found = ends(pool.run([other, third]))
    assert found["b"].why == "trunk.py:train ended without a yield that closes the horizon 4"
    assert found["c"].why == "a yield closes the horizon 3, which is not among those asked for: 2, 4"


def test_of_two_points_of_a_step_the_later_counts(tmp_path):
    journal, _ = journals.open_journal(tmp_path / "a", wait=0.0)
    steps = [(2, {"loss": 9.0}), (1, {"loss": 1.0}), (2, {"loss": 2.0}), (2, {"loss": 5.0, "horizon": 7})]
    for second, (step, found) in enumerate(steps):
        journal.append({"step": step, "measured": found, "cpu": second, "wall": second})
    journal.append({"end": "done"})
    journal.close()
    with workers(tmp_path) as pool:
        (event,) = pool.run([Task("a", {})])
    assert event.points == (
        Point(1, {"loss": 1.0}, 1, 1),
        Point(2, {"loss": 2.0}, 2, 2),
        Point(2, {"loss": 5.0, "horizon": 7}, 3, 3),
    )


def test_stop_lets_runs_save_and_the_next_driver_goes_on(tmp_path, undisturbed):
    with workers(tmp_path, count=1) as pool:
        running, events = pool.run(tasks(pause=0.005)), []
        for event in running:
            events.append(event)
            if len(events) == 7:
                threading.Thread(target=pool.stop).start()
    (paused,) = ends(events).values()
    assert paused.kind == "paused"
    assert 7 <= len(paused.points) < 20
    with workers(tmp_path) as pool:
        found = ends(pool.run(tasks()))
    assert {key: measured(event) for key, event in found.items()} == undisturbed
    assert found["run2"].attempts == 2
    steps = [entry["step"] for entry in journals.read(tmp_path / "run2").points]
    assert steps == list(range(1, 21))  # a stopped run repeats nothing


def test_leaving_the_loop_stops_runs_and_grace_has_an_end(tmp_path):
    with workers(tmp_path, "broken.py:shell", count=1, grace=0.2) as pool:
        begun = time.monotonic()
        for event in pool.run([Task("a", {})]):
            child, pid = event.points[0].measured["child"], pool._processes[0].popen.pid
            assert alive(child)
            break
        pool.close()
        assert time.monotonic() - begun < 3
    assert gone(pid)
    assert gone(child)
    assert journals.read(tmp_path / "a").failures == 0


def test_an_interrupt_lets_runs_save(tmp_path):
    def interrupted():
        with workers(tmp_path, count=1) as pool:
            for event in pool.run(tasks(1, pause=0.005)):
                if any(point.step >= 3 for point in event.points):  # several may come at once
                    os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    contents = journals.read(tmp_path / "run0")
    assert contents.end["end"] == "paused"
    assert (tmp_path / "run0" / "work" / "state.json").exists()


def test_a_killed_worker_takes_its_children_along(tmp_path):
    with workers(tmp_path, "broken.py:shell", count=1, retries=0) as pool:
        running = pool.run([Task("a", {})])
        child = next(running).points[0].measured["child"]
        os.kill(pool._processes[0].popen.pid, signal.SIGKILL)
        assert next(running).kind == "failed"
        assert gone(child)


DRIVER = """
import sys
sys.path[:0] = {path!r}
from tests.study.test_local import *
with workers(Path(sys.argv[1]), {trainer!r}) as pool:
    for event in pool.run({tasks}):
        print(event.key, event.kind, flush=True)
"""


def driver(folder, trainer="curve.py:train", todo="tasks(pause=0.004)"):
    code = DRIVER.format(path=[str(ROOT), *sys.path], trainer=trainer, tasks=todo)
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def worker_pids(folder):
    pids = [journals.read(folder / f"run{n}").pid for n in range(3)]
    return {pid for pid in pids if pid is not None}


def test_a_driver_killed_at_any_moment(tmp_path, undisturbed):
    picks = random.Random(5)
    for _ in range(4):
        with driver(tmp_path) as process:
            for _ in range(picks.randrange(1, 14)):
                process.stdout.readline()
            process.kill()
        # No wait: the next one comes while the workers of this one may still be there.
    with workers(tmp_path) as pool:
        found = ends(pool.run(tasks()))
    assert {key: measured(event) for key, event in found.items()} == undisturbed
    assert all(journals.read(tmp_path / key).failures == 0 for key in found)
    assert all(gone(pid) for pid in worker_pids(tmp_path))
    for key in found:
        said = [entry.get("end") for entry in journals.read(tmp_path / key).entries]
        assert said.count("done") == 1
        assert said[-1] == "done"


def test_a_driver_that_dies_takes_workers_and_their_children_along(tmp_path):
    with driver(tmp_path, "broken.py:shell", "[Task('run0', {})]") as process:
        assert process.stdout.readline() == "run0 point\n"
        contents = journals.read(tmp_path / "run0")
        child = contents.points[0]["measured"]["child"]
        process.kill()
    assert gone(contents.pid)
    assert gone(child)


def test_a_worker_that_outlives_its_driver_is_named(tmp_path):
    with driver(tmp_path, "broken.py:shell", "[Task('run0', {})]") as process:
        process.stdout.readline()
        pid = journals.read(tmp_path / "run0").pid
        os.kill(pid, signal.SIGSTOP)  # it cannot notice
        while any(
            task.read_text().rpartition(")")[2].split()[0] != "T"
            for task in Path(f"/proc/{pid}/task").glob("*/stat")
        ):
            time.sleep(0.001)
        process.kill()
    held = pytest.raises(StoreError, match=f"held by process {pid}, which still runs")
    with workers(tmp_path, "broken.py:shell", grace=0.1) as pool, held:
        list(pool.run([Task("run0", {})]))
    os.killpg(pid, signal.SIGKILL)
    assert gone(pid)


def test_two_drivers_at_once_are_refused(tmp_path):
    with workers(tmp_path, count=1) as first, workers(tmp_path, count=1) as second:
        running = first.run(tasks(1, pause=0.005))
        next(running)
        with pytest.raises(StoreError, match=f"are being made by process {os.getpid()}"):
            second.run(tasks(1))
        with pytest.raises(ValueError, match="one run at a time"):
            next(first.run(tasks(1)))
        assert set(ends(running)) == {"run0"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_stops_the_study_and_is_no_failure(tmp_path, undisturbed):
    (tmp_path / "run0").mkdir()
    (tmp_path / "run0" / journals.NAME).symlink_to("/dev/full")
    with workers(tmp_path) as pool, pytest.raises(StoreError, match=r"no room on the disk of .*run0"):
        list(pool.run(tasks()))
    (tmp_path / "run0" / journals.NAME).unlink()
    with workers(tmp_path) as pool:
        found = ends(pool.run(tasks()))
    assert {key: measured(event) for key, event in found.items()} == undisturbed
    assert {event.attempts for event in found.values()} <= {1, 2}


def test_a_trainer_without_room_stops_the_study_and_is_no_failure(tmp_path):
    task = [Task("a", {"flag": str(tmp_path / "flag")})]
    for _ in range(3):
        with workers(tmp_path, "broken.py:full_disk") as pool, pytest.raises(StoreError, match="no room"):
            list(pool.run(task))
    (tmp_path / "flag").touch()
    with workers(tmp_path, "broken.py:full_disk") as pool:
        assert ends(pool.run(task))["a"].kind == "done"


def test_a_damaged_journal_is_set_aside_and_the_run_made_afresh(tmp_path, undisturbed):
    with workers(tmp_path) as pool:
        list(pool.run(tasks()))
    path = tmp_path / "run1" / journals.NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    tail = tmp_path / "run2" / journals.NAME
    tail.write_bytes(tail.read_bytes()[:-30])
    with workers(tmp_path) as pool:
        events = list(pool.run(tasks()))
    assert {key: measured(event) for key, event in ends(events).items()} == undisturbed
    assert [(event.key, event.kind) for event in events if event.kind == "note"] == [("run1", "note")]
    assert "run1.damaged-1" in next(event.why for event in events if event.kind == "note")
    assert (tmp_path / "run1.damaged-1" / "work" / "state.json").exists()
    assert [len(calls(tmp_path, f"run{n}")) for n in range(3)] == [1, 1, 2]


def test_a_trainer_that_cannot_be_loaded_is_said(tmp_path):
    with workers(tmp_path, "absent.py:train") as pool:
        with pytest.raises(ValueError, match="there is no file"):
            pool.sha256  # noqa: B018
        with pytest.raises(ValueError, match="there is no file"):
            list(pool.run(tasks(1)))
    (tmp_path / "dies.py").write_text(
        "import os, sys\nprint('too old', file=sys.stderr, flush=True)\nos._exit(4)\n"
    )
    said = pytest.raises(ValueError, match="ended its process with status 4 while it was loaded: too old")
    with Workers("dies.py:train", None, tmp_path, tmp_path / "runs", count=1) as pool, said:
        list(pool.run(tasks(1)))


def test_a_trainer_that_changes_under_way_is_refused(tmp_path):
    code = "import os\ndef train(config):\n    yield 1, {'loss': 1.0}\n    os._exit(1)\n"
    (tmp_path / "changing.py").write_text(code)
    with Workers("changing.py:train", None, tmp_path, tmp_path / "runs", count=1) as pool:
        running = pool.run([Task("a", {})])
        next(running)
        (tmp_path / "changing.py").write_text(code + "\n")
        with pytest.raises(ValueError, match="changed since its first worker was started"):
            list(running)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"count": 0}, "needed count of at least 1, got 0"),
        ({"threads": 0}, "needed threads"),
        ({"retries": -1}, "needed retries"),
        ({"memory": 0}, "needed memory"),
        ({"grace": float("nan")}, "needed grace"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, why):
    with pytest.raises(ValueError, match=why):
        workers(tmp_path, **settings)


def test_tasks_that_cannot_be_are_refused(tmp_path):
    with workers(tmp_path) as pool:
        pool.run([Task("@0a1b2c3d", {}), Task("lr=1e-3,width=32@0a1b2c3d", {})]).close()
        for key in ("", "a/b", "..", ".driver", "a b", "a" * 241):
            with pytest.raises(ValueError, match="needed a key"):
                pool.run([Task(key, {})])
        with pytest.raises(ValueError, match="comes twice"):
            pool.run([Task("a", {}), Task("a", {})])
        with pytest.raises(TypeError, match="settings of a as JSON"):
            pool.run([Task("a", {"x": object()})])
        assert list(pool.run([])) == []
    with pytest.raises(ValueError, match="the folder of the study file"):
        Workers("curve.py:train", None, tmp_path / "absent", tmp_path)


def test_the_machine_is_shared_by_the_workers(tmp_path):
    pool = Workers("curve.py:train", None, TRAINERS, tmp_path)
    assert 1 <= pool.count <= (os.cpu_count() or 1)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert pool.memory * pool.count <= 0.9 * total
    assert machine.environment(3)["MKL_NUM_THREADS"] == "3"


def test_control_groups_limit_cores_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert machine.memory() == 1000000
    assert machine.cores() == 1
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.memory() > 1000000
    assert machine.cores() >= 1


def test_a_curve_of_a_horizon_has_no_other_horizons_points():
    trunk = [Point(step, {"loss": 1.0}, 0, 0) for step in (1, 2, 3)]
    closing = [Point(2.5, {"loss": 0.5, "horizon": 10}, 0, 0), Point(3, {"loss": 0.4, "horizon": 20}, 0, 0)]
    curves = by_horizon([*trunk, *closing])
    assert curves == {10: (*trunk[:2], closing[0]), 20: (*trunk[:2], closing[1])}
    assert by_horizon(trunk) == {}


def test_an_event_without_points_is_whole():
    assert Event("a", "note", why="x") == Event("a", "note", (), "x", 0)

"""takes runs to be made, gives what they measure: worker processes of this machine, kept busy and replaced."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoloss.errors import StoreError
from isoloss.study import journal as journals
from isoloss.study import machine
from isoloss.study.events import Event, Point, Task, by_horizon, point_of, points_of
from isoloss.study.process import Process, fate, ready, start

__all__ = ["Event", "Point", "Task", "Workers", "by_horizon"]

LOCK = ".driver"
POLL_SECONDS = 0.2
_KEY = re.compile(r"(?!\.)[A-Za-z0-9_.=+,@-]{1,240}\Z")


class Workers:
    """Worker processes with one trainer, which they load once and keep for many runs.

    A run's folder is ``folder/KEY``: ``journal.jsonl`` (what it measured, attempts, its end), ``log.txt``
    (what it printed) and ``work`` (the trainer's own: ``config["folder"]``). What a journal says to have ended
    is not run again. One driver at a time works on a folder. Needs a POSIX system.

    Args:
        trainer: ``package.module:function`` or ``path/to/file.py:function``, relative to ``root``.
        axes: the same for the function that says what is known of a run before it; None: the function
            ``axes`` beside the trainer, or where there is none, the run's numeric settings.
        root: the folder of the study file; the workers' working directory.
        folder: of all runs.
        count: runs at once; None: as many as this process may use cores, by ``threads``.
        threads: of each worker, for OpenMP, OpenBLAS, MKL and numexpr.
        memory: bytes that a worker may allocate; None: nine tenths of the machine's (or its control
            group's), shared by ``count``. Kept on Linux only.
        retries: further attempts for a run that failed or whose worker died. They are counted in its journal.
        grace: seconds for a run to save what it has when it is stopped, and to wait for a worker that was
            left over by another driver.

    Raises:
        ValueError: a setting is out of range, or the root is no folder.
        StoreError: the system is not POSIX.

    Example:
        >>> code = "def train(config):\\n    for step in (1, 2):\\n        yield step, {'loss': config['a'] / step}\\n"
        >>> _ = Path("toy.py").write_text(code)
        >>> with Workers("toy.py:train", None, ".", "runs", count=1) as workers:
        ...     for event in workers.run([Task("a3", {"a": 3.0})]):
        ...         print(event.kind, event.points[-1].measured)
        point {'loss': 3.0}
        point {'loss': 1.5}
        done {'loss': 1.5}
    """

    def __init__(
        self,
        trainer: str,
        axes: str | None,
        root: str | Path,
        folder: str | Path,
        *,
        count: int | None = None,
        threads: int = 1,
        memory: int | None = None,
        retries: int = 1,
        grace: float = 10.0,
    ) -> None:
        journals.require_posix()
        for name, value, least in (("threads", threads, 1), ("count", count, 1), ("retries", retries, 0)):
            if value is not None and value < least:
                raise ValueError(f"needed {name} of at least {least}, got {value}")
        if memory is not None and memory < 1:
            raise ValueError(f"needed memory in bytes above 0, got {memory}")
        if not grace >= 0:
            raise ValueError(f"needed grace in seconds of at least 0, got {grace}")
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            raise ValueError(f"needed the folder of the study file, got {self.root}, which is none")
        self.trainer = trainer
        self.axes_entry = axes
        self.folder = Path(folder).absolute()
        self.threads = threads
        self.count = max(1, machine.cores() // threads) if count is None else count
        self.memory = int(0.9 * machine.memory() / self.count) if memory is None else memory
        self.retries = retries
        self.grace = grace
        self._sha256: dict[str, str] | None = None
        self._processes: list[Process] = []
        self._deaths_at_load = 0
        self._stopping = False
        self._running = False
        self._lock: int | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def sha256(self) -> dict[str, str]:
        """``{"file": digest of the trainer's source file}``; starts a worker to find it.

        Raises:
            ValueError: the trainer cannot be loaded.
        """
        if self._sha256 is None:
            self._idle()
        assert self._sha256 is not None
        return self._sha256

    def axes(self, configs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """What is known of runs before they run, asked in a worker; the horizon is one number here.

        Raises:
            ValueError: the trainer cannot be loaded, or its function fails or gives something else.
        """
        asked = [_jsonable(config, f"the settings {number}") for number, config in enumerate(configs)]
        if not asked:
            return []
        process = self._idle()
        sent = process.send({"do": "axes", "configs": asked})
        answer = self._answer(process) if sent else None
        if answer is None:
            died = fate(self._discard(process), self.memory)
            raise ValueError(f"{self._axes_name} {died} while it was asked for the axes of {len(asked)} runs")
        if "error" in answer:
            settings = asked[answer["config"]]
            raise ValueError(f"{self._axes_name} failed: {answer['error']}. The settings were {settings}")
        return [dict(found) for found in answer["axes"]]

    def run(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """Make runs, dearest first; events in the order in which they come.

        Closing the iterator, or an interrupt, stops what is running: each run may save what it has within
        ``grace`` seconds, and goes on from there the next time.

        Raises:
            TypeError: the settings of a task are not JSON's.
            ValueError: a key is no name for a folder or comes twice; the trainer cannot be loaded or changed.
            StoreError: the folder is another driver's, a run's folder is held by a process that still runs
                or cannot be written to, or the disk is full.
        """
        ordered = sorted(tasks, key=lambda task: -task.cost)
        for task in ordered:
            if not _KEY.match(task.key):
                raise ValueError(
                    f"needed a key of at most 240 letters, digits and _.=+,@- as a run's name, got {task.key!r}"
                )
            _jsonable(task.config, f"the settings of {task.key}")
        if len({task.key for task in ordered}) < len(ordered):
            raise ValueError("needed a key of its own for each task, but one comes twice")
        if self._running:
            raise ValueError(
                "needed one run at a time of these workers, but one is going on. Exhaust or close it"
            )
        self._hold()
        return self._events(ordered)

    def stop(self) -> None:
        """Let no further task begin and ask the runs in hand to save what they have.

        The iterator of `run` gives them as ``paused`` and ends. Of tasks that were not begun it says nothing.
        May be called from a signal handler or another thread; without a run in progress it does nothing.
        """
        self._stopping = self._running

    def close(self) -> None:
        """Stop what is running, as `stop` does, and end all workers."""
        try:
            self._settle()
        finally:
            for process in list(self._processes):
                self._discard(process)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    # The loop

    def _events(self, ordered: list[Task]) -> Iterator[Event]:
        if self._running:
            raise ValueError(
                "needed one run at a time of these workers, but one goes on. Exhaust or close it"
            )
        self._running, self._stopping = True, False
        waiting: deque[Task] = deque()
        events: list[Event] = []
        try:
            for task in ordered:
                ended = self._ended(task)
                if ended is None:
                    waiting.append(task)
                else:
                    events.append(ended)
            deadline = None
            while True:
                if self._stopping:
                    waiting.clear()
                    deadline = time.monotonic() + self.grace if deadline is None else deadline
                    events += self._press(deadline)
                else:
                    self._hand_out(waiting)
                yield from events
                events = []
                if not waiting and not self._busy():
                    return
                for process in ready(self._processes, POLL_SECONDS):
                    events += self._heard(process, waiting)
        finally:
            self._running = self._stopping = False
            self._settle()

    def _hand_out(self, waiting: deque[Task]) -> None:
        """Give waiting tasks to idle workers, and start workers where there are too few."""
        for process in [one for one in self._processes if one.loaded and one.task is None]:
            if not waiting or len(self._busy()) >= self.count:
                break
            if process.popen.poll() is not None or not self._give(process, waiting[0]):
                self._discard(process)
                continue
            waiting.popleft()
        free = sum(one.task is None for one in self._processes)
        for _ in range(min(len(waiting), self.count - len(self._busy())) - free):
            self._start()

    def _give(self, process: Process, task: Task) -> bool:
        process.task, process.told = task, False
        process.seen = self._contents(task).size
        command = {
            "do": "run",
            "key": task.key,
            "folder": str(self.folder / task.key),
            "config": task.config,
            "target": task.target,
            "horizons": None if task.horizons is None else list(task.horizons),
            "until": task.until,
        }
        return process.send(command)

    def _heard(self, process: Process, waiting: deque[Task]) -> list[Event]:
        """What a worker's messages and its death mean."""
        alive = process.receive()
        events: list[Event] = []
        while process.inbox:
            message = process.inbox.popleft()
            if "key" not in message:
                self._loaded(process, message)
            elif "end" in message:
                events += self._ended_as(process, message, waiting)
            elif "note" in message:
                events.append(Event(message["key"], "note", why=message["note"]))
            else:
                events.append(Event(message["key"], "point", (point_of(message, message["seconds"]),)))
        if not alive and process in self._processes:
            events += self._died(process, waiting)
        return events

    def _ended_as(self, process: Process, message: dict[str, Any], waiting: deque[Task]) -> list[Event]:
        task = process.task
        assert task is not None
        process.task = None
        if message["end"] == "refused" or message.get("errno") in journals.NO_ROOM:
            full = message["end"] == "failed"
            raise StoreError(journals.no_room(self.folder / task.key) if full else message["why"])
        if message["end"] != "failed":
            return [self._event(task, message["end"])]
        self._discard(process)  # what a failure leaves in a process is unknown
        return self._failed(task, message["why"], waiting)

    def _died(self, process: Process, waiting: deque[Task]) -> list[Event]:
        task, loaded = process.task, process.loaded
        printed = process.said()
        why = fate(self._discard(process), self.memory)
        if not loaded:
            # Somebody may have ended it; a trainer that cannot be loaded does it again.
            self._deaths_at_load += 1
            if self._deaths_at_load > self.retries:
                raise ValueError(
                    f"{self.trainer} {why} while it was loaded{': ' + printed if printed else ''}. "
                    "Load it by hand to see why"
                )
        if task is None:
            return []
        contents = self._contents(task)
        end = contents.end if contents.size > process.seen else None
        if end is None:
            if self._stopping:
                return [self._event(task, "paused")]
            contents = self._count_failure(task, why)
        elif end["end"] == "paused":
            return [self._event(task, "paused")]
        elif end["end"] != "failed":
            return [self._event(task, end["end"])]
        else:
            why = end["why"]
        return self._failed(task, why, waiting)

    def _count_failure(self, task: Task, why: str) -> journals.Contents:
        """Write into the journal what its worker no longer could."""
        journal, _ = journals.open_journal(self.folder / task.key, wait=self.grace)
        try:
            cpu, wall = journal.contents.seconds
            journal.append(
                {"end": "failed", "why": why, "trace": "", "errno": None, "cpu": cpu, "wall": wall}
            )
            journal.sync()
        finally:
            journal.close()
        return self._contents(task)

    def _failed(self, task: Task, why: str, waiting: deque[Task]) -> list[Event]:
        contents = self._contents(task)
        if contents.failures > self.retries:
            return [self._event(task, "failed", why)]
        if self._stopping:
            return [self._event(task, "paused")]
        waiting.appendleft(task)
        note = f"attempt {contents.attempts} failed: {why}; it is tried again"
        return [Event(task.key, "note", why=note, attempts=contents.attempts)]

    # What journals say

    def _contents(self, task: Task) -> journals.Contents:
        """A damaged journal says nothing here: the worker that opens it sets it aside and tells."""
        try:
            return journals.read(self.folder / task.key)
        except journals.Damaged:
            return journals.Contents()

    def _ended(self, task: Task) -> Event | None:
        contents = self._contents(task)
        verdict = contents.verdict(task.horizons, task.until, self.retries)
        if verdict is None:
            return None
        why = next((e["why"] for e in reversed(contents.entries) if e.get("end") == "failed"), "")
        return Event(
            task.key, verdict, points_of(contents), why if verdict == "failed" else "", contents.attempts
        )

    def _event(self, task: Task, kind: str, why: str = "") -> Event:
        contents = self._contents(task)
        return Event(task.key, kind, points_of(contents), why, contents.attempts)

    # Processes

    def _busy(self) -> list[Process]:
        return [process for process in self._processes if process.task is not None]

    def _start(self) -> Process:
        """A new worker that is told to load; what it answers is heard later."""
        process = start(self.root, self.threads)
        self._processes.append(process)
        process.send(
            {
                "do": "load",
                "trainer": self.trainer,
                "axes": self.axes_entry,
                "root": str(self.root),
                "memory": self.memory,
                "grace": self.grace,
            }
        )
        return process

    def _loaded(self, process: Process, message: dict[str, Any]) -> None:
        if "error" in message:
            self._discard(process)
            raise ValueError(message["error"])
        if self._sha256 is None:
            self._sha256 = message["sha256"]
        if self._sha256 != message["sha256"]:
            self._discard(process)
            raise ValueError(
                f"the file of {self.trainer} changed since its first worker was started, so that runs would differ "
                "in more than their settings. Run again"
            )
        process.loaded = True

    def _idle(self) -> Process:
        """A worker that is loaded and has nothing to do; waits for it where it must be started."""
        for process in [one for one in self._processes if one.loaded and one.task is None]:
            if process.popen.poll() is None:
                return process
            self._discard(process)
        loading = [process for process in self._processes if not process.loaded]
        process = loading[0] if loading else self._start()
        while (message := self._answer(process)) is None:
            self._died(process, deque())
            process = self._start()
        self._loaded(process, message)
        return process

    def _answer(self, process: Process) -> dict[str, Any] | None:
        """The next message of a worker that has no run; None where it died."""
        while not process.inbox:
            ready([process], POLL_SECONDS)
            if not process.receive() and not process.inbox:
                return None
        return process.inbox.popleft()

    def _discard(self, process: Process) -> int:
        self._processes.remove(process)
        return process.kill()

    def _press(self, deadline: float) -> list[Event]:
        """Ask the runs in hand to end; end those that have not at the deadline."""
        events = []
        for process in self._busy():
            if not process.told:
                process.told = True
                process.send({"do": "stop"})
            elif time.monotonic() > deadline:
                assert process.task is not None
                events.append(self._event(process.task, "paused"))
                self._discard(process)
        return events

    def _settle(self) -> None:
        """Bring the runs in hand to their ends, as far as ``grace`` goes, without a word."""
        deadline = time.monotonic() + self.grace
        try:
            while self._busy():
                self._press(deadline)
                for process in ready(self._busy(), POLL_SECONDS):
                    alive = process.receive()
                    ends = [message["end"] for message in process.inbox if "end" in message]
                    process.inbox.clear()
                    if ends:
                        process.task = None
                    if not alive or ends not in ([], ["paused"], ["done"], ["diverged"]):
                        self._discard(process)
        finally:
            for process in self._busy():  # a second interrupt
                self._discard(process)

    def _hold(self) -> None:
        """Make the folder of all runs this driver's own, until it closes or dies."""
        if self._lock is not None:
            return
        path = self.folder / LOCK
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            if not journals.try_lock(lock):
                holder = os.pread(lock, 32, 0).decode().strip() or "unknown"
                raise StoreError(
                    f"the runs in {self.folder} are being made by process {holder}. Do: wait for it or stop it, "
                    "then run again"
                )
            os.ftruncate(lock, 0)
            with contextlib.suppress(OSError):  # a full disk: the lock holds without the name
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    @property
    def _axes_name(self) -> str:
        return self.axes_entry or f"axes of {self.trainer}"


def _jsonable(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise TypeError(f"needed {name} as JSON has them, got {error}") from error
    return dict(config)

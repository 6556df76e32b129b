"""takes runs as lines on its standard input, gives what they measure as lines on its standard output.

``python -m isoloss.study.worker`` is one process with one trainer, warm for many runs. It imports only the
standard library before the trainer, so that limits hold from the trainer's first import on.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import queue
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from isoloss.study import entry as entries
from isoloss.study import journal as journals

OWN = "work"
LONGEST_WHY = 300
LIFELINE_SECONDS = 1.0


class Breach(Exception):
    """A trainer did something other than what trainers do; the text is the whole story."""


class Worker:
    """The process's channels, its trainer and the run in hand."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.commands = os.dup(0)
        self.messages = os.dup(1)
        self.fallback = os.dup(2)  # where prints go that belong to no run
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(self.fallback, 1)
        self.journal: journals.Journal | None = None
        self.trainer: entries.Entry | None = None
        self.axes: entries.Entry | None = None
        self.memory: int | None = None
        self.grace = 10.0
        self.stopping = threading.Event()
        self.waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        """A forked child holds neither the lock nor the channels: they end with this process."""
        own = [self.commands, self.messages, self.fallback]
        for descriptor in own + ([self.journal.descriptor] if self.journal else []):
            os.close(descriptor)

    def send(self, message: Mapping[str, Any]) -> None:
        """One message; a driver that is gone ends the process."""
        if os.getpid() != self.pid:
            os._exit(1)  # a child that the trainer forked came back through its code
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self.messages, data) :]
        except BrokenPipeError:
            end_group()

    def listen(self) -> None:
        """Take commands until the driver goes, then end this process and what it started, at once."""
        parent, pending = os.getppid(), b""
        try:
            while True:
                ready, _, _ = select.select([self.commands], [], [], LIFELINE_SECONDS)
                if os.getppid() != parent:
                    return
                if not ready:
                    continue
                data = os.read(self.commands, 1 << 16)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    if command["do"] == "stop":
                        self.stopping.set()
                        continue
                    if command["do"] == "run":
                        self.stopping.clear()
                    self.waiting.put(command)
        finally:
            end_group()

    def serve(self) -> None:
        """Do what is asked, one command after another, for ever."""
        threading.Thread(target=self.listen, daemon=True).start()
        while True:
            command = self.waiting.get()
            if command["do"] == "load":
                self.send(self.load(command))
            elif command["do"] == "axes":
                self.send(self.tell_axes(command["configs"]))
            else:
                self.send({"key": command["key"], **self.run(command)})

    def load(self, command: dict[str, Any]) -> dict[str, Any]:
        """Set the limits, then import the trainer."""
        self.memory = limit_memory(command["memory"])
        self.grace = command["grace"]
        root = Path(command["root"])
        try:
            self.trainer = entries.resolve(command["trainer"], root)
            named = command["axes"]
            self.axes = entries.resolve(named, root) if named else entries.beside(self.trainer, "axes")
        except ValueError as error:
            return {"error": self.with_limit(error, str(error))}
        return {"loaded": True, "sha256": {"file": self.trainer.sha256}}

    def tell_axes(self, configs: list[dict[str, Any]]) -> dict[str, Any]:
        """What is known of runs before they run: the function's answer, or else their numeric settings."""
        found = []
        for number, config in enumerate(configs):
            try:
                found.append(self._axes(config))
            except Exception as error:
                return {"error": self.with_limit(error, said(error)), "config": number}
        return {"axes": found}

    def _axes(self, config: dict[str, Any]) -> dict[str, float]:
        if self.axes is None:
            return {k: v for k, v in config.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        made = self.axes.function(dict(config))
        if not isinstance(made, Mapping):
            raise Breach(f"needed a mapping of names to numbers from {self.axes.text}, got {shown(made)}")
        axes = {}
        for name, value in made.items():
            axes[str(name)] = number = plain(value, str(name))
            if isinstance(number, str) or not math.isfinite(number):
                raise Breach(f"needed a finite number as the axis {name!r}, got {number!r}")
        return axes  # type: ignore[return-value]  # no text is left

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """One run, to its end or to where it is stopped; the message that says how it ended."""
        folder = Path(command["folder"])
        try:
            journal, note = journals.open_journal(folder, wait=self.grace, stopping=self.stopping.is_set)
        except journals.JournalError as error:
            if self.stopping.is_set():
                return {"end": "paused"}
            return {"end": "refused", "why": str(error), "errno": error.errno}
        if note:
            self.send({"key": command["key"], "note": note})
        self.journal = journal
        try:
            verdict = journal.contents.verdict(command["horizons"], command["until"], None)
            # The process that held the lock before may have ended the run.
            return {"end": verdict} if verdict else self._attempt(command, journal, folder)
        except journals.JournalError as error:
            return {"end": "refused", "why": str(error), "errno": error.errno}
        finally:
            self.journal = None
            journal.close()

    def _attempt(self, command: dict[str, Any], journal: journals.Journal, folder: Path) -> dict[str, Any]:
        run = Run(self, command, journal, folder / OWN)
        journal.append({"attempt": journal.contents.attempts + 1, "pid": self.pid})
        try:
            (folder / OWN).mkdir(exist_ok=True)
            log = os.open(folder / journals.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            return {"end": "refused", "why": f"cannot write {folder}: {error.strerror}", "errno": error.errno}
        divert(log)
        os.close(log)
        try:
            end = run.train()
        except journals.JournalError:
            raise
        except BaseException as error:
            end = self.failure(error)
        finally:
            if os.getpid() != self.pid:
                os._exit(1)
            divert(self.fallback)
        if end.get("errno") not in journals.NO_ROOM:  # a full disk is no failure of the run
            journal.append({**end, **run.seconds()})
        journal.sync()
        return end

    def failure(self, error: BaseException) -> dict[str, Any]:
        """How a run ended that raised: a short reason, and the traceback, which goes to the log too."""
        trace = "".join(traceback.format_exception(error))
        with_room = _chain_errno(error)
        try:
            sys.stderr.write(trace)
        except OSError as full:
            with_room = with_room or full.errno
        why = self.with_limit(error, str(error) if isinstance(error, Breach) else said(error))
        error.__traceback__ = None
        gc.collect()  # what the frames held, arrays among them, is free for the next run
        return {"end": "failed", "why": why, "trace": trace, "errno": with_room}

    def with_limit(self, error: BaseException, why: str) -> str:
        """The reason with the limit where memory ran out."""
        texts = " ".join(str(one) for one in _chain(error))
        memory = any(isinstance(one, MemoryError) for one in _chain(error))
        if not (memory or "an't allocate memory" in texts or "annot allocate memory" in texts):
            return why
        limit = "" if self.memory is None else f"; the limit is {self.memory / 2**30:.3g} GiB a worker"
        return f"out of memory{limit} ({why})"


class Run:
    """One attempt at a run: its settings, its clock and what it has yielded."""

    def __init__(
        self, worker: Worker, command: dict[str, Any], journal: journals.Journal, folder: Path
    ) -> None:
        self.worker = worker
        self.journal = journal
        self.key: str = command["key"]
        self.config = {**command["config"], "folder": str(folder)}
        self.target: str = command["target"]
        self.horizons: list[float] | None = command["horizons"]
        self.until: float | None = command["until"]
        self.missing = journal.contents.missing(self.horizons)
        cpu, wall = journal.contents.seconds
        self._cpu = cpu - cpu_seconds()
        self._wall = wall - time.monotonic()

    def seconds(self) -> dict[str, float]:
        """Over all attempts."""
        cpu, wall = self._cpu + cpu_seconds(), self._wall + time.monotonic()
        return {"cpu": round(cpu, 6), "wall": round(wall, 6)}

    def train(self) -> dict[str, Any]:
        """Write down and send on what the trainer yields, until it ends or is to be closed."""
        trainer = self.worker.trainer
        assert trainer is not None  # the driver loads before it runs
        made = trainer.function(self.config)
        if not isinstance(made, Iterator):
            raise Breach(
                f"needed a generator that yields (step, measurements) from {trainer.text}, got {shown(made)}. "
                "Use `yield` instead of `return`"
            )
        points = self.journal.contents.points
        last: Mapping[str, Any] | None = points[-1]["measured"] if points else None
        for item in made:
            step, last = self.taken(item)
            seconds = self.seconds()
            self.journal.append({"step": step, "measured": last, **seconds})
            self.worker.send({"key": self.key, "step": step, "measured": last, "seconds": seconds})
            value = last.get(self.target)
            if value is not None and not math.isfinite(value):
                try:
                    close(made)
                except Exception:
                    traceback.print_exc()  # it diverged before; the log keeps this
                return {"end": "diverged"}
            if self.until is not None and last.get("done", -math.inf) >= self.until:
                close(made)
                return {"end": "paused"}
            if self.worker.stopping.is_set():
                close(made)
                return {"end": "paused"}
        if last is None:
            raise Breach(f"{trainer.text} yielded nothing; the last thing yielded is the run's result")
        if self.missing:
            names = ", ".join(f"{one:g}" for one in self.missing)
            raise Breach(f"{trainer.text} ended without a yield that closes the horizon {names}")
        if self.target not in last:
            raise Breach(f"the last yield of {trainer.text} has no {self.target!r}, only {', '.join(last)}")
        return {"end": "done"}

    def taken(self, item: object) -> tuple[float, dict[str, Any]]:
        """A yield as plain numbers and texts.

        Raises:
            Breach: it is not what trainers yield.
        """
        if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Mapping)):
            raise Breach(f"needed a yield of (step, measurements), got {shown(item)}")
        step = plain(item[0], "step")
        if isinstance(step, str) or not math.isfinite(step):
            raise Breach(f"needed a finite number as the step, got {step!r}")
        measured = {}
        for name, value in item[1].items():
            if not isinstance(name, str):
                raise Breach(f"needed text as the name of a measurement, got {name!r}")
            measured[name] = plain(value, name)
        for name in (self.target, "done", "horizon"):
            if isinstance(measured.get(name), str):
                raise Breach(f"needed a number as {name!r}, got the text {measured[name]!r}")
        if self.horizons is not None and "horizon" in measured:
            self._close_horizon(measured)
        return step, measured

    def _close_horizon(self, measured: Mapping[str, Any]) -> None:
        assert self.horizons is not None
        horizon = measured["horizon"]
        if horizon not in self.horizons:
            asked = ", ".join(f"{one:g}" for one in self.horizons)
            raise Breach(
                f"a yield closes the horizon {horizon:g}, which is not among those asked for: {asked}"
            )
        if self.target not in measured:
            raise Breach(f"the yield that closes the horizon {horizon:g} has no {self.target!r}")
        self.missing = [one for one in self.missing if one != horizon]


def plain(value: Any, name: str) -> float | str:
    """A number or text of any library as Python's own."""
    if isinstance(value, str):
        return str(value)
    try:
        number = float(value)
        return int(value) if isinstance(value, bool | int) else number
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise Breach(f"needed a number or text as {name!r}, got {shown(value)}") from None


def close(made: Iterator[Any]) -> None:
    """Ask a generator to end where it stands; it may save what it has."""
    closing = getattr(made, "close", None)
    if closing is not None:
        closing()


def shown(value: object) -> str:
    """A value as an error names it: ``a list: [1, 2]``."""
    text = repr(value)
    return f"{type(value).__name__}: {text if len(text) <= 80 else text[:77] + '...'}"


def said(error: BaseException) -> str:
    """The last line of the traceback, or the first of what would be several."""
    lines = f"{type(error).__name__}: {error}".splitlines()
    text = lines[0] if str(error) else type(error).__name__
    return text if len(text) <= LONGEST_WHY else text[: LONGEST_WHY - 3] + "..."


def _chain(error: BaseException) -> list[BaseException]:
    """The error, what caused it, what caused that."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def _chain_errno(error: BaseException) -> int | None:
    """The system's number of the error; of a full disk where that is behind it."""
    numbers = [one.errno for one in _chain(error) if isinstance(one, OSError) and one.errno is not None]
    full = [number for number in numbers if number in journals.NO_ROOM]
    return next(iter(full or numbers), None)


def cpu_seconds() -> float:
    """Of this process with its threads, and of its children that have ended."""
    import resource

    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def limit_memory(limit: int | None) -> int | None:
    """Let allocations beyond ``limit`` bytes fail in this process; the limit that now holds.

    Linux counts anonymous memory. Elsewhere the system may have no such limit (None) or not keep it.
    """
    import resource

    kind = getattr(resource, "RLIMIT_DATA", None)
    if limit is None or kind is None:
        return None
    hard = resource.getrlimit(kind)[1]
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    try:
        resource.setrlimit(kind, (soft, hard))
    except (ValueError, OSError):
        return None
    return soft


def divert(descriptor: int) -> None:
    """Send prints of Python and of C from here on to an open file; what is still held goes where it belongs."""
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # no room, or the trainer closed it
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def end_group() -> None:
    """End this process and everything it started that stayed in its group."""
    if os.getpgrp() != os.getpid():
        os._exit(1)  # a child that the trainer forked
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Serve a driver on the standard channels."""
    journals.require_posix()
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # started by hand: never end somebody else's group
    worker = Worker()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
    try:
        worker.serve()
    finally:
        traceback.print_exc()
        end_group()  # not the interpreter's own end, which would wait for the trainer's threads


if __name__ == "__main__":
    main()

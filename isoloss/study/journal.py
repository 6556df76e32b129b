"""takes what a run says, gives a file of lines that a crash leaves readable and one process at a time writes.

Every line is one JSON object whose last member is the CRC-32 of the rest:

    {"attempt":1,"pid":4711,"crc32":"..."}
    {"step":100,"measured":{"loss":4.1},"cpu":1.9,"wall":2.0,"crc32":"..."}
    {"end":"done","cpu":20.3,"wall":21.0,"crc32":"..."}

A run that failed for good and is to be tried again has a line ``{"again":{KEY:1},"crc32":"..."}``, with the
runs that it serves and how often each was given up; failures before it count no more.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from isoloss.errors import StoreError

NAME = "journal.jsonl"
LOG = "log.txt"  # beside it: what the run printed
SYNC_SECONDS = 5.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
POLL_SECONDS = 0.02
_TAIL = len(',"crc32":"00000000"}')


class JournalError(StoreError):
    """The journal of a run cannot be opened, locked or written; ``errno`` is the system's, where there is one."""

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.errno = number


class Damaged(JournalError):
    """A line that was once complete is not what was written."""


@dataclass(frozen=True)
class Contents:
    """What a journal says.

    Args:
        entries: its lines in order: points (``step``, ``measured``, ``cpu``, ``wall``), attempts, ends.
        size: bytes of the complete lines.
    """

    entries: tuple[dict[str, Any], ...] = ()
    size: int = 0

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every measurement in the order in which it was written."""
        return [entry for entry in self.entries if "step" in entry]

    @property
    def end(self) -> dict[str, Any] | None:
        """How the last attempt ended; None where it did not say."""
        return self.entries[-1] if self.entries and "end" in self.entries[-1] else None

    @property
    def failures(self) -> int:
        """How often it failed, since it was last to be tried again. An attempt that just stops, because the
        driver went, is none."""
        begun = max((i for i, entry in enumerate(self.entries) if "again" in entry), default=0)
        return sum(entry.get("end") == "failed" for entry in self.entries[begun:])

    @property
    def again(self) -> dict[str, int]:
        """Key of a run -> how many times it had been given up when it was last to be tried again."""
        return {key: count for entry in self.entries for key, count in entry.get("again", {}).items()}

    @property
    def attempts(self) -> int:
        """How often it was begun."""
        return max(sum("attempt" in entry for entry in self.entries), self.failures)

    @property
    def pid(self) -> int | None:
        """The process that wrote last."""
        return next((entry["pid"] for entry in reversed(self.entries) if "attempt" in entry), None)

    @property
    def seconds(self) -> tuple[float, float]:
        """CPU and wall seconds that all attempts took, as far as they are written down."""
        last = next((entry for entry in reversed(self.entries) if "cpu" in entry), {"cpu": 0.0, "wall": 0.0})
        return last["cpu"], last["wall"]

    def missing(self, horizons: Iterable[float] | None) -> list[float]:
        """The horizons that no point closes."""
        if horizons is None:
            return []
        closed = {point["measured"].get("horizon") for point in self.points}
        return [horizon for horizon in horizons if horizon not in closed]

    def verdict(
        self, horizons: Iterable[float] | None, until: float | None, retries: int | None
    ) -> str | None:
        """``done``, ``diverged``, ``failed`` or ``paused`` where nothing is left to do; None where there is.

        Args:
            horizons: those asked for; a run that is done but lacks one has more to do.
            until: the share asked for; a run that was paused there or later has nothing to do.
            retries: failures that are followed by another attempt; None: all are.
        """
        said = self.end["end"] if self.end else None
        if said == "diverged" or (said == "done" and not self.missing(horizons)):
            return str(said)
        if retries is not None and self.failures > retries:
            return "failed"
        if said == "paused" and until is not None:
            reached = [point["measured"].get("done", 0.0) for point in self.points[-1:]]
            return "paused" if reached and reached[0] >= until else None
        return None


def line(entry: Mapping[str, Any]) -> bytes:
    """One entry as a line.

    Example:
        >>> line({"end": "done"})
        b'{"end":"done","crc32":"b95daf52"}\\n'
    """
    body = json.dumps(entry, separators=(",", ":")).encode()
    return b'%s,"crc32":"%08x"}\n' % (body[:-1], crc32(body))


def parse(data: bytes) -> Contents:
    """The entries of complete lines; what follows the last line's end was cut by a crash and is left out.

    Raises:
        Damaged: a complete line is not what was written.
    """
    whole = data[: data.rfind(b"\n") + 1]
    bodies = []
    for number, text in enumerate(whole.split(b"\n")[:-1], 1):
        body = text[:-_TAIL] + b"}"
        if text[-_TAIL:] != b',"crc32":"%08x"}' % crc32(body):
            raise Damaged(f"line {number} of the journal is not what was written")
        bodies.append(body)
    return Contents(tuple(json.loads(b"[%s]" % b",".join(bodies))), len(whole))


def read(folder: Path) -> Contents:
    """What the journal in a run's folder says; nothing where there is none. Needs no lock.

    Raises:
        Damaged: a line is not what was written.
        JournalError: it cannot be read.
    """
    try:
        with (folder / NAME).open("rb", buffering=0) as file:
            return parse(file.read(os.fstat(file.fileno()).st_size) or b"")
    except FileNotFoundError:
        return Contents()
    except OSError as error:
        raise _refusal("read", folder, error) from error


class Journal:
    """A journal that this process alone writes to until it closes it. Made by `open_journal`."""

    def __init__(self, descriptor: int, folder: Path, contents: Contents) -> None:
        self.descriptor = descriptor
        self.folder = folder
        self.contents = contents
        self._size = contents.size
        self._synced = time.monotonic()

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line; on the disk at the latest with the first line after `SYNC_SECONDS`.

        Raises:
            JournalError: no room, or the disk fails. A part of a line is taken back.
        """
        data = line(entry)
        try:
            written = os.write(self.descriptor, data)
            while written < len(data):
                written += os.write(self.descriptor, data[written:])
            self._size += len(data)
        except OSError as error:
            if error.errno != errno.EBADF and os.fstat(self.descriptor).st_size > self._size:
                os.ftruncate(self.descriptor, self._size)
            raise _refusal("write", self.folder, error) from error
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Wait until the disk has every line.

        Raises:
            JournalError: the disk fails.
        """
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise _refusal("write", self.folder, error) from error
        self._synced = time.monotonic()

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self.descriptor)


def open_journal(
    folder: Path, *, wait: float, stopping: Callable[[], bool] = lambda: False
) -> tuple[Journal, str | None]:
    """Lock the journal of a run's folder and read it; both are made where missing.

    A last line that was cut by a crash is removed. Where a line is damaged, the folder is set aside under the
    name ``FOLDER.damaged-1`` (2, ...) and an empty one made.

    Args:
        folder: of the run.
        wait: seconds to wait for another process that holds it.
        stopping: asked while waiting; true ends the wait.

    Returns:
        The journal, and what to tell the reader where the folder was set aside.

    Raises:
        JournalError: another process holds it, or it cannot be made, read or written.
    """
    note = None
    deadline = time.monotonic() + wait
    while True:
        descriptor = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / NAME
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            while not try_lock(descriptor):
                if time.monotonic() > deadline or stopping():
                    raise JournalError(_held(folder))
                time.sleep(POLL_SECONDS)
            # While we waited, the holder may have set the folder aside: lock the one that is there now.
            if _is_at(descriptor, path):
                contents = _take(descriptor)
                if contents is not None:
                    journal, descriptor = Journal(descriptor, folder, contents), None
                    return journal, note
                aside = set_aside(folder)
                note = f"its journal was damaged: the folder is now {aside.name}, and the run starts afresh"
        except OSError as error:
            raise _refusal("open", folder, error) from error
        finally:
            if descriptor is not None:
                os.close(descriptor)


def try_again(folder: Path, given_up: Mapping[str, int], *, wait: float = 10.0) -> None:
    """Let a run that failed for good be tried again, from its checkpoint; asked twice is asked once.

    Args:
        folder: of the run, or of the trunk that several share.
        given_up: key of a run -> how many times it was given up.
        wait: seconds to wait for another process that holds the journal.

    Raises:
        JournalError: as `open_journal`.
    """
    journal, _ = open_journal(folder, wait=wait)
    try:
        before = journal.contents.again
        if any(before.get(key, 0) < count for key, count in given_up.items()):
            journal.append({"again": dict(given_up)})
            journal.sync()
    finally:
        journal.close()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _take(descriptor: int) -> Contents | None:
    """What a journal that we hold says, after its cut last line is removed; None where it is damaged."""
    size = os.fstat(descriptor).st_size
    try:
        contents = parse(os.pread(descriptor, size, 0))
    except Damaged:
        return None
    if size > contents.size:
        os.ftruncate(descriptor, contents.size)
    return contents


def set_aside(folder: Path) -> Path:
    """Rename ``FOLDER`` to ``FOLDER.damaged-1``, or the first number that is free."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file, without waiting; whether that worked.

    The lock goes with the process, however it ends.

    Raises:
        StoreError: the system has no such locks.
    """
    require_posix()
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def require_posix() -> None:
    """Refuse a system on which runs cannot be kept apart.

    Raises:
        StoreError: it is not Linux, macOS or another POSIX system.
    """
    if os.name != "posix":
        raise StoreError(
            f"running a study needs a POSIX system (file locks, process groups), got {os.name!r}. "
            "Do: run it on Linux, macOS or in WSL; the stored results can be read everywhere"
        )


def _held(folder: Path) -> str:
    try:
        pid = read(folder).pid
    except JournalError:
        pid = None
    who = "another process" if pid is None else f"process {pid}"
    return f"{folder / NAME} is held by {who}, which still runs. Do: end that process, then run again"


def _refusal(what: str, folder: Path, error: OSError) -> JournalError:
    if error.errno in NO_ROOM:
        return JournalError(no_room(folder), error.errno)
    return JournalError(f"cannot {what} {folder / NAME}: {error.strerror or error}", error.errno)


def no_room(folder: Path) -> str:
    """What to say where the disk is full."""
    return f"no room on the disk of {folder}. Do: make room and run again; what was done is kept"

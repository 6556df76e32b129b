"""takes a folder and a number of threads, gives a worker process: its pipes, its messages, its end."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from isoloss.study import machine
from isoloss.study.events import Task

PIPE_BYTES = 1 << 20
SAID_BYTES = 4000


@dataclass(eq=False)
class Process:
    """One worker as its driver sees it.

    Args:
        popen: the process.
        prints: the file for what it prints outside runs.
        loaded: it has said that it has its trainer.
        task: the run it was given.
        seen: bytes of that run's journal when it was given.
        told: to stop that run.
    """

    popen: subprocess.Popen[bytes]
    prints: IO[bytes]
    loaded: bool = False
    task: Task | None = None
    seen: int = 0
    told: bool = False
    pending: bytes = b""
    inbox: deque[dict[str, Any]] = field(default_factory=deque)

    @property
    def out(self) -> int:
        """The descriptor of its messages."""
        assert self.popen.stdout is not None
        return self.popen.stdout.fileno()

    def send(self, command: Mapping[str, Any]) -> bool:
        """Whether it could be sent: false where the process has died."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(command).encode() + b"\n")
            self.popen.stdin.flush()
        except OSError:
            return False
        return True

    def receive(self) -> bool:
        """Take what is there into the inbox; false where nothing more can come."""
        try:
            data = os.read(self.out, 1 << 18)
        except BlockingIOError:
            # Silent: is it alive? A child of its own may hold the channel open.
            return self.popen.poll() is None
        *lines, self.pending = (self.pending + data).split(b"\n")
        self.inbox.extend(json.loads(line) for line in lines)
        return bool(data)

    def kill(self) -> int:
        """End it and what it started; its exit status, below 0 a signal's number."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        status = self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self.prints.close()
        return status

    def said(self) -> str:
        """The last line it printed outside runs."""
        size = os.fstat(self.prints.fileno()).st_size
        text = os.pread(self.prints.fileno(), SAID_BYTES, max(0, size - SAID_BYTES)).decode(errors="replace")
        return (text.strip().splitlines() or [""])[-1]


def start(root: Path, threads: int) -> Process:
    """A worker in a session of its own, so that an interrupt from the terminal does not reach it."""
    prints = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
    popen = subprocess.Popen(
        [sys.executable, "-P", "-m", "isoloss.study.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=prints,
        cwd=root,
        env=machine.environment(threads),
        start_new_session=True,
    )
    process = Process(popen, prints)
    os.set_blocking(process.out, False)
    machine.widen(process.out, PIPE_BYTES)
    return process


def ready(processes: Sequence[Process], timeout: float) -> list[Process]:
    """Those with news; all of them where there is none in time, to see which are alive."""
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.out, selectors.EVENT_READ, process)
        found = [key.data for key, _ in selector.select(timeout)]
    return found or list(processes)


def fate(status: int, memory: int) -> str:
    """How a process ended, in words.

    Example:
        >>> fate(3, 2**30)
        'ended its process with status 3'
    """
    if status >= 0:
        return f"ended its process with status {status}"
    name = signal.Signals(-status).name
    hint = f"; perhaps out of memory, the limit is {memory / 2**30:.3g} GiB a worker"
    return f"was ended by signal {-status} ({name}{hint if name in ('SIGKILL', 'SIGABRT') else ''})"

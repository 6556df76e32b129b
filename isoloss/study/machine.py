"""takes nothing, gives what this process may use: cores, memory, and the environment that keeps a worker to it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may use: its affinity, and its control group's quota where it has one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for text in _limits("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit():
            allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def memory() -> int:
    """Bytes of memory: the machine's, or the control group's limit where that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [*_limits("memory.max"), *_limits("memory/memory.limit_in_bytes")]
    return min([total, *(int(text) for text in limits if text.isdigit())])


def _limits(name: str) -> list[str]:
    """What the files ``name`` say of this process's control group and of those around it."""
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].partition("\n")[0].strip("/")
    except OSError:
        own = ""
    folder, found = GROUPS / own, []
    while folder == GROUPS or GROUPS in folder.parents:
        with contextlib.suppress(OSError):
            found.append((folder / name).read_text().strip())
        folder = folder.parent
    return found


def environment(threads: int) -> dict[str, str]:
    """The variables of a worker: this process's, its number of threads, and where this package is."""
    variables = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    home = Path(__file__).parents[2]
    # An installed package is found anyway, and a search path must not put its neighbours before Python's own.
    if home.name not in ("site-packages", "dist-packages"):
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), variables.get("PYTHONPATH")]))
    return variables


def widen(descriptor: int, size: int) -> None:
    """Let a pipe hold more, where the system can, so that a writer need not wait for a reader."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size)

"""The memory of this process as the system counts it: a cross-check of what torch says it allocated."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR, _MACHINE = (
    Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo"),
)  # fmt: skip
_FORGET_THE_PEAK = "5"  # what clear_refs takes as: the peak is from now on
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
_SMALL, _LARGE = 1 << 16, 1 << 25


@dataclass
class Resident:
    """Filled when the block of :func:`resident_peak` ends.

    Attributes:
        grown: the most that was resident within the block, over what was before it [byte]; NaN where the system
            does not say.
    """

    grown: float = math.nan


@contextlib.contextmanager
def resident_peak() -> Iterator[Resident]:
    """How far the resident memory grows within the block at its most.

    Free memory that the allocator held is given back first, and within the block it takes every tensor of more than
    64 kB from the system and gives it back there: otherwise the holes between tensors count too, half as much again
    as the tensors of a training step. Afterwards it keeps blocks of up to 32 MB, as it comes to do by itself.

    Example:
        >>> with resident_peak() as found:
        ...     block = bytearray(b"x" * 50_000_000)
        >>> math.isnan(found.grown) or found.grown > 40_000_000
        True
    """
    gc.collect()
    _allocator("malloc_trim", 0)
    _allocator("mallopt", _MMAP_THRESHOLD, _SMALL)
    found, before = Resident(), _line(_STATUS, "VmRSS")
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_FORGET_THE_PEAK)
    try:
        yield found
        found.grown = _line(_STATUS, "VmHWM") - before
    finally:
        _allocator("mallopt", _MMAP_THRESHOLD, _LARGE)
        _allocator("mallopt", _TRIM_THRESHOLD, 2 * _LARGE)


def _allocator(function: str, *arguments: int) -> None:
    """Tell glibc's allocator; another has no such function and is left alone."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def available() -> float:
    """Bytes of memory that could be used now: the machine's, as the system estimates them.

    Example:
        >>> available() > 0
        True
    """
    known = _line(_MACHINE, "MemAvailable")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if math.isnan(known) else known


def _line(path: Path, name: str) -> float:
    """A number of kB in a file of the system, in bytes; NaN where it is not there."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024.0 * float(line.split()[1])
    return math.nan

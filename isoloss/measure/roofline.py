r"""What this machine reaches: matrix products per second and cold bytes read per second, for each number of threads.

An operator of F FLOPs that moves B bytes takes at least :math:`\max(F/P, B/W)`: P the measured peak, W the measured
bandwidth, ridge :math:`P/W`. Both are measured with torch, because that is what a model could reach here: P is the
fastest of square products of several sizes; W is of reading blocks of 16 MB in rotation over more memory than the
caches hold, the rate that a quarter of the blocks reach.

Source: Williams, Waterman, Patterson 2009, Roofline, Communications of the ACM 52(4).
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isoloss.files import json_text, write_atomically

TYPES = ("float32", "bfloat16")
SIDES = (512, 1024, 2048)
BLOCK_SIDE = 2048  # of a float32 block of 16 MB
LEAST_BYTES = 128 << 20  # of all blocks together
SCHEMA = "isoloss/roofline/1"


@dataclass(frozen=True)
class Ceiling:
    """The roofline of one type and number of threads.

    Attributes:
        threads: of torch.
        dtype: ``float32`` or ``bfloat16``.
        flops: of matrix products [FLOP/s].
        bandwidth: of reading memory that no cache holds [byte/s].
    """

    threads: int
    dtype: str
    flops: float
    bandwidth: float

    @property
    def ridge(self) -> float:
        """Intensity from which on products bound, not memory [FLOP/byte]."""
        return self.flops / self.bandwidth

    def seconds(self, flops: float, moved: float) -> float:
        """The least time of an operator, :math:`max(F/P, B/W)`.

        Example:
            >>> Ceiling(1, "float32", 1e11, 1e10).seconds(2e9, 1e9)
            0.1
        """
        return max(flops / self.flops, moved / self.bandwidth)


@dataclass(frozen=True)
class Roofline:
    """The measured ceilings of a machine.

    Attributes:
        machine: processor, and cores that this process may use.
        torch: its version.
        ceilings: for every number of threads and type.
        rotated: bytes that the blocks took together.
        load: load average before and after; NaN where the system has none. Above 0 others were at work too, and the
            ceilings may be too low.
        day: when it was measured.
    """

    machine: str
    torch: str
    ceilings: tuple[Ceiling, ...]
    rotated: int
    load: tuple[float, float]
    day: str

    def at(self, threads: int, dtype: str = "float32") -> Ceiling:
        """The ceiling of so many threads.

        Raises:
            ValueError: it was not measured; the message lists what was.
        """
        for ceiling in self.ceilings:
            if (ceiling.threads, ceiling.dtype) == (threads, dtype):
                return ceiling
        known = ", ".join(f"{c.threads} x {c.dtype}" for c in self.ceilings)
        raise ValueError(f"no roofline of {threads} threads in {dtype}. There are: {known}")

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        load = [None if math.isnan(value) else value for value in self.load]
        ceilings = [asdict(ceiling) for ceiling in self.ceilings]
        return {"schema": SCHEMA, **asdict(self), "ceilings": ceilings, "load": load}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Roofline:
        """The opposite of :meth:`to_json`.

        Raises:
            ValueError: it is another document.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(f"needed a document {SCHEMA}, got {document.get('schema')!r}")
        try:
            before, after = (math.nan if value is None else float(value) for value in document["load"])
            return cls(
                str(document["machine"]), str(document["torch"]),
                tuple(Ceiling(**entry) for entry in document["ceilings"]),
                int(document["rotated"]), (before, after), str(document["day"]),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(f"the document {SCHEMA} is incomplete: {error}") from error


def measure_roofline(
    threads: Sequence[int] | None = None, seconds: float = 0.5, rotated: int | None = None
) -> Roofline:
    """Measure the ceilings of this machine.

    Args:
        threads: numbers of threads; 1, 2, 4 ... up to the cores that this process may use if not given.
        seconds: for each of the measurements: two types and one bandwidth for each number of threads.
        rotated: bytes that are read in rotation; twice the last cache, at least 128 MB and at most an eighth of
            the free memory, if not given.

    Raises:
        ValueError: fewer than one thread.

    Example:
        >>> found = measure_roofline(threads=[1], seconds=0.02, rotated=1 << 26)
        >>> ceiling = found.at(1)
        >>> ceiling.flops > 1e8 and ceiling.bandwidth > 1e7
        True
    """
    import torch

    from isoloss.measure.latency import load
    from isoloss.measure.resident import available

    wanted = list(threads) if threads is not None else _powers(cores())
    if not wanted or min(wanted) < 1:
        raise ValueError(f"needed numbers of threads of 1 or more, got {wanted}")
    block = 4 * BLOCK_SIDE**2
    size = rotated or int(min(max(LEAST_BYTES, 2 * _last_cache()), available() / 8))
    before, had = load(), torch.get_num_threads()
    blocks = [torch.ones(BLOCK_SIDE, BLOCK_SIDE) for _ in range(max(2, size // block))]
    found = []
    try:
        for count in wanted:
            torch.set_num_threads(count)
            bandwidth = block / _quarter(_reads(blocks, seconds))
            for dtype in TYPES:
                found.append(Ceiling(count, dtype, _products(dtype, seconds), bandwidth))
    finally:
        torch.set_num_threads(had)
    return Roofline(
        machine(), torch.__version__, tuple(found), len(blocks) * block, (before, load()),
        time.strftime("%Y-%m-%d"),
    )  # fmt: skip


def _products(dtype: str, seconds: float) -> float:
    """The best FLOP/s of square products."""
    import torch

    best = 0.0
    for side in SIDES:
        a, b = torch.randn(2, side, side).to(getattr(torch, dtype))
        out = a @ b
        end = time.perf_counter() + seconds / len(SIDES)
        while True:
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            now = time.perf_counter()
            best = max(best, 2 * side**3 / (now - began))
            if now > end:
                break
    return best


def _reads(blocks: Sequence[Any], seconds: float) -> list[float]:
    """Seconds of reading each block once, in rotation: by a sum and by a product with a vector, the faster."""
    import torch

    vector, out = torch.ones(BLOCK_SIDE), torch.ones(BLOCK_SIDE)
    ways = (lambda block: block.sum(), lambda block: torch.mv(block, vector, out=out))
    found: list[list[float]] = []
    for way in ways:
        took: list[float] = []
        end = time.perf_counter() + seconds / len(ways)
        at = 0
        while len(took) < 4 or time.perf_counter() < end:
            began = time.perf_counter()
            way(blocks[at % len(blocks)])
            took.append(time.perf_counter() - began)
            at += 1
        found.append(took)
    return min(found, key=_quarter)


def _quarter(values: Sequence[float]) -> float:
    """The value that a quarter lie at or below."""
    return sorted(values)[(len(values) - 1) // 4]


def _powers(most: int) -> list[int]:
    """1, 2, 4 ... and the most."""
    return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _last_cache() -> int:
    """Bytes of the largest cache of the first core, 0 where the system does not say."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with suppress(OSError, ValueError):
            text = path.read_text().strip()
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
            sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes)


def machine() -> str:
    """Processor and cores, to know a machine by.

    Example:
        >>> machine().endswith("cores")
        True
    """
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = " ".join(line.partition(":")[2].split())
                break
    return f"{name}, {cores()} cores"


def roofline(path: str | Path | None = None, fresh: bool = False) -> Roofline:
    """The roofline of this machine: read from a file where it was measured before, else measured and kept there.

    Args:
        path: of the file; ``roofline.json`` in the folder of :func:`cache_folder` if not given. A file of another
            machine or version of torch is measured anew and written over.
        fresh: measure in any case.

    Raises:
        ValueError: the file is no roofline, or cannot be written.
    """
    import torch

    place = Path(path) if path is not None else cache_folder() / "roofline.json"
    if place.is_file() and not fresh:
        try:
            known = Roofline.from_json(json.loads(place.read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is no JSON. Do: remove it, or name another file") from error
        if (known.machine, known.torch) == (machine(), torch.__version__):
            return known
    found = measure_roofline()
    if path is None:
        place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json_text(found.to_json()))
    return found


def cache_folder() -> Path:
    """Where what was measured of the machine is kept: ``isoloss`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "isoloss"

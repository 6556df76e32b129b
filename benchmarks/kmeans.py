"""k-means of the rows of a matrix: CPU time of one thread and excess over the optimum, beside other libraries.

    python -m benchmarks.kmeans [--peer-python PYTHON] [--rows 4096] [--out docs/kmeans.md]

A matrix of 4096 x 4096 float32 by default. Peers run on its first rows, in a process of their own with one thread, and
their time is scaled to all rows; the excess of each row is computed here, from the peer's labels and their means. Peers
that are not installed are left out: numba, ckwrap, kmeans1d, fast1dkmeans, flash1dkmeans, scikit-learn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.page import machine, put, table
from isoloss import native
from isoloss.compress import kmeans_numpy
from isoloss.compress.kmeans import kmeans_rows
from isoloss.native import kmeans as native_kmeans

Array = NDArray[np.float64]
PEER = Path(__file__).parent / "peers" / "kmeans_peers.py"
COLUMNS = 4096


@dataclass(frozen=True)
class Peer:
    """A library: how many rows it is given, and whether it takes weights."""

    name: str
    rows: int
    weighted: bool


PEERS = (
    Peer("ckwrap", 64, True),
    Peer("fast1dkmeans", 32, False),
    Peer("kmeans1d", 32, False),
    Peer("flash1dkmeans", 256, True),
    Peer("scikit-learn", 16, True),
)
SHAPES = {
    "normal numbers, gamma weights": lambda rng, size: (rng.standard_normal(size), rng.gamma(1, 1, size)),
    "Student t, 3 degrees of freedom, gamma weights": lambda rng, size: (
        rng.standard_t(3, size), rng.gamma(1, 1, size)
    ),
    "normal numbers, no weights": lambda rng, size: (rng.standard_normal(size), np.ones(size)),
}  # fmt: skip


def excess(x: Array, w: Array, labels: NDArray[np.int64], least: Array) -> Array:
    """What each row's labels cost with the best centre of each, as a share above the least."""
    found = []
    for row, weight, label, best in zip(x, w, labels, least, strict=True):
        mass = np.bincount(label, weight)
        near = row - np.median(row)
        mean = np.bincount(label, weight * near) / np.where(mass > 0, mass, 1)
        found.append((weight * (near - mean[label]) ** 2).sum() / best - 1)
    return np.array(found)


def ours(x: NDArray[np.float32], w: NDArray[np.float32], levels: int, way: str) -> tuple[float, Array]:
    """Seconds and costs by one of our ways."""
    centres, codes, cost = np.empty((len(x), levels)), np.empty(x.shape, np.uint8), np.empty(len(x))
    began = time.process_time()
    if way == "NumPy":
        kmeans_numpy.kmeans_rows(x, w, centres, codes, cost)
    else:
        native_kmeans.kmeans_rows(x, w, centres, codes, cost, way)
    return time.process_time() - began, cost


def theirs(
    python: str, peer: Peer, levels: int, x: Array, w: Array
) -> tuple[float, NDArray[np.int64], str] | None:
    """Seconds, labels and version of a peer, or nothing where it does not run."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(source, x=x, w=w)
        alone = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        done = subprocess.run(
            [python, str(PEER), peer.name, str(levels), str(source), str(target)],
            capture_output=True, text=True, check=False, env={**os.environ, **alone},
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{peer.name} left out: {last}", file=sys.stderr)
            return None
        given = np.load(target)
        return float(given["seconds"]), given["labels"].astype(np.int64), str(given["version"])


def lines(name: str, rows: int, levels: int, python: str) -> list[list[str]]:
    """The rows of the table for one matrix and number of levels."""
    rng = np.random.default_rng(0)
    x, w = (part.astype(np.float32) for part in SHAPES[name](rng, (rows, COLUMNS)))
    weighted = not name.endswith("no weights")
    best = min(ours(x, w, levels, native.status().sets[0])[0] for _ in range(2))
    least = kmeans_rows(x, w, levels).cost
    head = [f"{name}", str(levels)]

    def line(who: str, seconds: float, given: int, over: Array | None) -> list[str]:
        share = "" if over is None else f"{100 * over.mean():.2f} (worst {100 * over.max():.1f})"
        share = "0" if over is not None and np.abs(over).max() < 1e-9 else share
        return [*head, who, f"{seconds:.3g}", f"{seconds / best:.3g}", share, str(given)]

    found = [line(f"isoloss, native ({native.status().sets[0]})", best, rows, np.zeros(1))]
    for way, given in [*((one, rows) for one in native.status().sets[1:]), ("NumPy", min(rows, 32))]:
        seconds, cost = ours(x[:given], w[:given], levels, way)
        who = "isoloss without native code" if way == "NumPy" else f"isoloss, native ({way})"
        found.append(line(who, seconds * rows / given, given, cost / least[:given] - 1))
    for peer in PEERS:
        if weighted and not peer.weighted:
            continue
        given = min(rows, peer.rows)
        wide, weigh = x[:given].astype(np.float64), w[:given].astype(np.float64)
        result = theirs(python, peer, levels, wide, weigh)
        if result is not None:
            seconds, labels, version = result
            over = excess(wide, weigh, labels, least[:given])
            found.append(line(f"{peer.name} {version}", seconds * rows / given, given, over))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kmeans", description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--levels", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--out", type=Path, help="page to put the table into")
    options = parser.parse_args()
    if not native.available():
        print(native.status(), file=sys.stderr)
        return 1
    found = [
        line for name in SHAPES for levels in options.levels
        for line in lines(name, options.rows, levels, options.peer_python)
    ]  # fmt: skip
    head = ["rows of", "levels", "who", "CPU s", "ratio", "excess over the optimum, %", "rows run"]
    text = f"{options.rows} rows of {COLUMNS} float32. {machine()}\n\n{table(head, found, right=(1, 3, 4, 5, 6))}"
    print(text)
    if options.out is not None:
        put(options.out, "kmeans", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

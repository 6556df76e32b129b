"""Models compressed to the same stored bits by the project's methods and by others', judged by one piece of code.

    python -m benchmarks.quality [--only MODEL/METHOD,...] [--peer-python PYTHON] [--cache FOLDER] [--out docs/quality.md]

``--only`` takes patterns (``minilm/*``, ``*/hqq*``). Peers run in processes of their own, by the Python that
``--peer-python`` names, in which ``{}`` stands for the peer's package (``/envs/{}/bin/python``); one that is not there is
a row with the reason. Every row is kept in the cache's folder as it is done, so that work that was cut off goes on. Some
hours of one core in all.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import page
from benchmarks.networks import Absent
from benchmarks.quality_cases import CASES, Case
from benchmarks.quality_page import section
from benchmarks.quality_rows import OURS, PEERS, Row
from isoloss.compress import find

PEER = Path(__file__).parent / "peers" / "quality_peers.py"
LIMIT = 3600  # seconds of a peer


def judged(case: Case, original: Sequence[Tensor], model: nn.Module) -> dict[str, tuple[float, float]]:
    """What the case measures of a compressed model."""
    found = case.measure(original, case.outputs(model))
    return {name: (one.value, one.se) for name, one in found.items()}


def ours(case: Case, original: Sequence[Tensor], method: str, draw: int) -> dict[str, Any]:
    """A row of a method of the project's."""
    from benchmarks.quality_ours import run

    made = run(case, method, draw)
    return {
        "bits": made.bits, "seconds": made.seconds, "note": made.note, "measures": judged(case, original, made.model)
    }  # fmt: skip


def peer(
    case: Case, original: Sequence[Tensor], method: str, draw: int, python: str, cache: Path, target: Path
) -> dict[str, Any]:
    """A row of a peer's: its decoded weights in a copy of the model; why there is none."""
    package = method.partition(" ")[0]
    target.mkdir(parents=True, exist_ok=True)
    for one in target.iterdir():
        one.unlink()
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [python.replace("{}", package), "-W", "ignore", str(PEER), case.name, method, str(draw), str(cache), str(target)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
        cwd=root, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    told = target / "told.json"
    if not told.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1][:200] if lines else f"ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    weights = load_file(target / "weights.safetensors")
    model = copy.deepcopy(case.model)
    layers = {layer.name: layer for layer in find(model).layers}
    changed = 0
    for layer in case.layers():
        matrix = weights[layer.name].float()
        changed += not torch.equal(matrix, layer.matrix())
        layers[layer.name].put(matrix)
    if not changed:
        return {"error": "it left all these layers as they were"}
    return {**found, "measures": judged(case, original, model)}


def kept(cache: Path, row: Row) -> Path:
    """The file of a row."""
    key = hashlib.sha256(f"{row.method} {row.draw}".encode()).hexdigest()[:12]
    return cache / "rows" / row.case / f"{key}.json"


def measured(rows: Sequence[Row], python: str | None, cache: Path) -> None:
    """Make the rows that are not in the cache."""
    for name in CASES:
        todo = [row for row in rows if row.case == name and not kept(cache, row).is_file()]
        if not todo:
            continue
        try:
            case = CASES[name](cache)
        except Absent as error:
            print(f"{name}: {error}", flush=True)
            continue
        _tell(case, cache)
        original = case.outputs(case.model)
        for row in todo:
            path = kept(cache, row)
            if path.is_file():  # by a run beside this one
                continue
            began = time.monotonic()
            try:
                if not row.peer:
                    found = ours(case, original, row.method, row.draw)
                elif python is None:
                    continue
                else:
                    found = peer(
                        case, original, row.method, row.draw, python, cache, cache / f"peer-{os.getpid()}"
                    )
            except Exception as error:  # a row that fails says why, and the others go on
                found = {"error": f"{type(error).__name__}: {error}"[:200]}
            if row.peer or "error" not in found:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({**row.to_json(), **found}), encoding="utf-8")
            print(f"{time.monotonic() - began:.0f} s", json.dumps({**row.to_json(), **found}), flush=True)


def _tell(case: Case, cache: Path) -> None:
    """What the page says of a case, beside its rows."""
    path = cache / "cases" / f"{case.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {
        "words": case.words, "weights": sum(layer.tensor.numel() for layer in case.layers()), "rest": case.rest(),
        "original": dict(case.facts),
    }  # fmt: skip
    path.write_text(json.dumps(known), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows and put their tables into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="MODEL/METHOD patterns, with commas between")
    parser.add_argument("--peer-python", help="Python of the peers; {} stands for a peer's package")
    parser.add_argument("--cache", type=Path, default=Path("out/quality"))
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    parser.add_argument("--picture", type=Path, help="where to draw them")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cache = given.cache.resolve()
    patterns = given.only.split(",") if given.only else ["*"]
    rows = [row for row in (*OURS, *PEERS) if any(fnmatchcase(row.key, one) for one in patterns)]
    measured(rows, given.peer_python, cache)
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (kept(cache, row) for row in (*OURS, *PEERS))
        if path.is_file()
    ]
    text = section(found, {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in ((name, cache / "cases" / f"{name}.json") for name in CASES)
        if path.is_file()
    })  # fmt: skip
    if given.out:
        page.put(given.out, "quality", text)
    else:
        print(text)
    if given.picture:
        from benchmarks.quality_page import draw

        draw(found, given.picture)


if __name__ == "__main__":
    sys.exit(main())

"""Matrix times vector from stored bits on a GPU, beside torch's fp16: ``python -m benchmarks.gpu_matvec [--out PAGE]``.

Needs a CUDA device and triton. Weights are cold: each way has copies of its matrix that together take more than 256 MB, and
goes through them in turn in one CUDA graph, so that launching does not count. Ways are replayed in rounds, one after another,
and the best of all rounds counts. Reading is a sum over as many bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks import page
from benchmarks.matvec import copies, widened
from isoloss.compress import formats
from isoloss.deploy import gpu, pack_weight

SPECS = (
    ("table2", "int8"), ("table3", "int8"), ("table4", "int8"), ("table3", "float"), ("table4", "float"),
    ("table3+0.45%", "int8"), ("int2/g64", "int8"), ("int3/g128", "int8"), ("int4/g128", "int8"), ("int8", "int8"),
)  # fmt: skip


@dataclass
class Way:
    """One way to multiply: a graph of calls over all its copies, and what one call reads."""

    name: str
    bytes: int
    calls: list[Callable[[], object]]
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calls[0]()  # compiled outside of the graph
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._kept = [call() for call in self.calls]

    def go(self) -> None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        self.times.append(1e3 * start.elapsed_time(end) / len(self.calls))


def ours(spec: str, activations: str, rows: int, columns: int, x: torch.Tensor) -> Way:
    first = pack_weight(formats.get(spec).encode(torch.randn(64, columns)), activations)
    packed = [widened(first, rows, spec).to("cuda") for _ in range(copies(first.bytes * rows // 64))]
    name = f"isoloss {spec}, {first.kind}"
    return Way(name, packed[0].bytes, [lambda p=p: gpu.product(p, x) for p in packed])


def half(rows: int, columns: int, x: torch.Tensor) -> Way:
    weights = [
        torch.randn(rows, columns, device="cuda").to(x.dtype) for _ in range(copies(2 * rows * columns))
    ]
    call = torch.nn.functional.linear
    return Way(
        f"torch {x.dtype}".replace("torch.", ""),
        2 * rows * columns,
        [lambda w=w: call(x, w) for w in weights],
    )


def reading(size: int) -> Way:
    data = [torch.zeros(size // 4, dtype=torch.int32, device="cuda") for _ in range(copies(size))]
    return Way("reading alone", size, [lambda one=one: one.sum() for one in data])


def torchao(rows: int, columns: int, x: torch.Tensor) -> Way:
    """Its weight-only 4 bits, groups of 128."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    size = rows * columns // 2 + rows * columns // 128 * 4
    made = []
    for _ in range(copies(size)):
        made.append(torch.nn.Linear(columns, rows, bias=False, device="cuda", dtype=x.dtype))
        quantize_(made[-1], Int4WeightOnlyConfig(group_size=128))
    return Way("torchao int4", size, [lambda one=one: one(x) for one in made])


def table(shape: str, tokens: int, dtype: torch.dtype, rounds: int) -> str:
    rows, columns = map(int, shape.split("x"))
    x = torch.randn(tokens, columns, device="cuda").to(dtype)
    ways = [reading(rows * columns // 2), half(rows, columns, x)]
    ways += [ours(spec, activations, rows, columns, x) for spec, activations in SPECS]
    if find_spec("torchao") is not None:
        ways.append(torchao(rows, columns, x))
    for _ in range(rounds):
        for way in ways:
            way.go()
    best = {way.name: min(way.times) for way in ways}
    speed, usual = ways[0].bytes / best[ways[0].name], best[ways[1].name]
    lines = [
        [one.name, f"{one.bytes / 1e6:.2f}", f"{best[one.name]:.1f}", f"{usual / best[one.name]:.2f}",
         f"{one.bytes / best[one.name] / speed:.0%}"]
        for one in ways
    ]  # fmt: skip
    head = ["way", "MB", "best µs", "times as fast as torch", "of reading"]
    return f"{shape}, {tokens} tokens:\n\n" + page.table(head, lines, right=(1, 2, 3, 4))


def main() -> None:
    """A table for each shape and number of tokens."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64])
    parse.add_argument("--shapes", nargs="+", default=["4096x4096", "2048x8192"])
    parse.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parse.add_argument("--rounds", type=int, default=40)
    parse.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    asked = parse.parse_args()
    missing = [
        name
        for name, there in (("a CUDA device", torch.cuda.is_available()), ("triton", find_spec("triton")))
        if not there
    ]
    if missing:
        sys.exit(
            f"needed {' and '.join(missing)}, found none. Run it where there is a GPU and triton is installed"
        )
    parts = [f"{torch.cuda.get_device_name()}; torch {torch.__version__}; {asked.dtype} activations"]
    for shape in asked.shapes:
        for tokens in asked.tokens:
            parts.append(table(shape, tokens, getattr(torch, asked.dtype), asked.rounds))
            print(parts[-1], flush=True)
    if asked.out:
        page.put(asked.out, "gpu matvec", "\n\n".join(parts))


if __name__ == "__main__":
    main()

"""Every kind of packed weight beside torch's float32, one after another: ``python -m benchmarks.kinds [--tokens 1 4 16]``.

Weights are cold: each way has copies of its matrix that together take more than 256 MB, and goes through them in turn. All
ways take part in every round, torch's float32 first and last; a ratio is of that round's float32 over the way's own time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.matvec import copies
from isoloss import native
from isoloss.compress import formats
from isoloss.deploy import pack_sparse, pack_weight, product
from isoloss.deploy.packing import Activations, Packed

SPECS: tuple[tuple[str, Activations], ...] = (
    ("fp16", "int8"), ("bf16", "int8"), ("fixed6.8", "int8"), ("fp8-e4m3", "int8"), ("fp8-e5m2", "int8"),
    ("mxfp8-e4m3", "int8"), ("mxfp6-e2m3", "int8"), ("mxfp6-e3m2", "int8"), ("nvfp4", "int8"), ("table7", "int8"),
    ("table8", "int8"), ("table5/tensor", "int8"), ("vq4-256", "int8"), ("vq2-16", "int8"), ("vq8-4096", "int8"),
    ("int4/g128+lr16", "int8"), ("int4/g128", "float"), ("nf4", "float"),
)  # fmt: skip
PATTERNS = (("2:4", torch.float32), ("2:4", torch.float16), ("1:4", torch.float16), ("4:8", torch.float16))
SMALL = (
    64  # rows that are encoded; the matrix is they again and again, as time does not depend on the numbers
)


def higher(packed: Packed, times: int) -> Packed:
    """A packed weight of 64 rows, again and again."""
    tensors: dict[str, Tensor] = {}
    for name, one in packed.tensors.items():
        shared = name == "codebook" or name.startswith("right") or (name == "table" and one.ndim == 1)
        if shared or (name == "table" and len(one) == 1):
            tensors[name] = one.clone()
        elif packed.kind == "vectors":
            tensors[name] = one.repeat(1, times)
        elif name == "tiles":
            tensors[name] = torch.cat([one[:1], *(one[1:] + one[-1] * k for k in range(times))]).int()
        else:
            tensors[name] = one.repeat(times, *[1] * (one.ndim - 1))
    rows, factors = packed.shape[0] * times, packed.factors
    if factors:
        words = json.loads(factors[0])
        factors = (json.dumps([words[0], rows, *words[2:]]), factors[1])
    return replace(packed, shape=(rows, packed.shape[1]), tensors=tensors, factors=factors)


def pruned(weight: Tensor, n: int, m: int) -> Tensor:
    """The largest n of every m columns."""
    cut = weight.reshape(len(weight), -1, m)
    order = cut.abs().argsort(dim=2, descending=True).argsort(dim=2)
    return (cut * (order < n)).reshape(weight.shape)


def ways(rows: int, columns: int) -> dict[str, tuple[Packed, Activations]]:
    """Name -> packed weight of 64 rows."""
    weight = torch.randn(SMALL, columns, generator=torch.Generator().manual_seed(0))
    out: dict[str, tuple[Packed, Activations]] = {}
    for spec, activations in SPECS:
        name = spec if activations == "int8" else f"{spec}, float activations"
        out[name] = pack_weight(formats.get(spec).encode(weight), activations), activations
    for pattern, dtype in PATTERNS:
        n, m = map(int, pattern.split(":"))
        name = f"{pattern} of {str(dtype).removeprefix('torch.')}"
        out[name] = pack_sparse(pruned(weight, n, m).to(dtype), pattern), "int8"
    kept = torch.rand(SMALL // 16, columns // 32, generator=torch.Generator().manual_seed(1)) < 0.25
    mask = kept.repeat_interleave(16, 0).repeat_interleave(32, 1)
    out["a quarter of blocks 16 x 32 of float16"] = pack_sparse(weight.half(), "blocks32", mask), "int8"
    return out


def table(rows: int, columns: int, tokens: int, threads: int, rounds: int, only: list[str]) -> None:
    """Print the times of one shape."""
    torch.set_num_threads(threads)
    x = torch.randn(tokens, columns)
    dense = [torch.randn(rows, columns) for _ in range(copies(4 * rows * columns))]
    chosen = {
        name: one
        for name, one in ways(rows, columns).items()
        if not only or any(word in name for word in only)
    }
    calls: dict[str, list[Callable[[], Tensor]]] = {}
    sizes = {}
    for name, (small, activations) in chosen.items():
        first = higher(small, rows // SMALL)
        sizes[name] = first
        own = [higher(small, rows // SMALL) for _ in range(copies(first.bytes))]
        calls[name] = [lambda p=p, a=activations: product(p, x, a, threads) for p in own]
    times: dict[str, list[float]] = {name: [] for name in calls}
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    floats = []
    for turn in range(rounds):
        before = seconds(lambda t=turn: torch.nn.functional.linear(x, dense[2 * t % len(dense)]))
        took = {name: seconds(some[turn % len(some)]) for name, some in calls.items()}
        after = seconds(lambda t=turn: torch.nn.functional.linear(x, dense[(2 * t + 1) % len(dense)]))
        floats += [before, after]
        for name, one in took.items():
            times[name].append(one)
            ratios[name].append((before + after) / 2 / one)
    print(f"\n{rows} x {columns}, {tokens} token(s), {threads} thread(s), load {os.getloadavg()[0]:.1f}\n")
    print("| way | packed as | bits a weight | best µs | median µs | float32 / best | float32 / median |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    best, middle = min(floats), float(np.median(floats))
    print(f"| torch float32 | | 32 | {best * 1e6:.0f} | {middle * 1e6:.0f} | 1 | 1 |")
    for name, own_times in times.items():
        packed, least = sizes[name], min(own_times)
        print(
            f"| {name} | {packed.kind} | {8 * packed.bytes / rows / columns:.2f} | {least * 1e6:.0f} "
            f"| {np.median(own_times) * 1e6:.0f} | {best / least:.2f} | {np.median(ratios[name]):.2f} |"
        )


def seconds(call: Callable[[], Tensor]) -> float:
    """That a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print a table per tokens and threads."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--threads", type=int, nargs="+", default=[1])
    parse.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16])
    parse.add_argument("--shape", default="4096x4096")
    parse.add_argument("--rounds", type=int, default=16)
    parse.add_argument("--only", nargs="*", default=[])
    asked = parse.parse_args()
    rows, columns = map(int, asked.shape.split("x"))
    print(native.status())
    for threads in asked.threads:
        for tokens in asked.tokens:
            table(rows, columns, tokens, threads, asked.rounds, asked.only)


if __name__ == "__main__":
    main()

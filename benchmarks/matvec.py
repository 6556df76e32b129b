"""Matrix times vector from stored bits beside the usual ways: ``python -m benchmarks.matvec [--threads 1 2]``.

Weights are cold: each way has copies of its matrix that together take more than 256 MB, and goes through them in turn. Ways
are timed in rounds, one call of each after another, and the best of all rounds counts: the machine may have other work. The
bandwidth is that of reading such copies and doing nothing else, in the same rounds.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from isoloss import native
from isoloss.compress import formats
from isoloss.deploy import pack_weight, product
from isoloss.deploy.packing import Packed
from isoloss.native.products import read_bytes

COLD = 256 << 20
SPECS = ("table2", "table3", "table4", "table3+0.45%", "int2/g64", "int3/g128", "int4/g128", "int8")


@dataclass
class Way:
    """One way to multiply: calls over its copies, and what they read."""

    name: str
    bytes: int
    calls: list[Callable[[], object]]
    times: list[float] = field(default_factory=list)

    def go(self, turn: int) -> None:
        call = self.calls[turn % len(self.calls)]
        start = time.perf_counter()
        call()
        self.times.append(time.perf_counter() - start)


def copies(size: int) -> int:
    return max(2, math.ceil(COLD / size))


def ours(spec: str, rows: int, columns: int, tokens: int, threads: int, activations: str) -> Way:
    small = formats.get(spec).encode(torch.randn(64, columns))
    # Time does not depend on the numbers: 64 rows are encoded, and codes of the whole drawn.
    first = pack_weight(small, activations)
    packed = [widened(first, rows, spec) for _ in range(copies(first.bytes * rows // 64))]
    x = torch.randn(tokens, columns)
    name = f"isoloss {spec}, {activations} activations"
    return Way(name, packed[0].bytes, [lambda p=p: product(p, x, activations, threads) for p in packed])


def widened(packed: Packed, rows: int, spec: str) -> Packed:
    """The same rows again and again."""
    times = rows // 64
    tensors = {}
    for name, one in packed.tensors.items():
        if name == "outliers.rows":
            count = int(one[-1])
            tensors[name] = torch.cat([one[:1], *(one[1:] + count * k for k in range(times))]).int()
        elif name == "table" and packed.kind == "levels":
            tensors[name] = one
        else:
            tensors[name] = one.repeat(times, *[1] * (one.ndim - 1)).contiguous()
    return Packed(
        packed.kind, (rows, packed.shape[1]), packed.bits, packed.group, tensors, packed.times, packed.offset
    )


def floats(rows: int, columns: int, tokens: int, dtype: torch.dtype) -> Way:
    size = rows * columns * dtype.itemsize
    weights = [torch.randn(rows, columns).to(dtype) for _ in range(copies(size))]
    x = torch.randn(tokens, columns).to(dtype)
    name = f"torch {str(dtype).removeprefix('torch.')}"
    return Way(name, size, [lambda w=w: torch.nn.functional.linear(x, w) for w in weights])


def dynamic(rows: int, columns: int, tokens: int) -> Way:
    """torch's int8 linear layer with activations rounded as they come."""
    made = []
    for _ in range(copies(rows * columns)):
        net = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False))
        made.append(torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, torch.qint8))
    x = torch.randn(tokens, columns)
    return Way("torch int8, dynamic", rows * columns, [lambda one=one: one(x) for one in made])


def onnx(rows: int, columns: int, tokens: int, bits: int, threads: int) -> Way:
    """ONNX Runtime's MatMulNBits with int8 activations (level 4), groups of 128."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    groups = columns // 128
    size = rows * columns * bits // 8 + rows * groups * 4
    rng = np.random.default_rng(0)
    made = []
    for _ in range(copies(size)):
        codes = rng.integers(0, 256, (rows, groups, 16 * bits), np.uint8)
        scale = np.full(rows * groups, 0.01, np.float32)
        node = helper.make_node(
            "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=columns, N=rows, bits=bits, block_size=128,
            accuracy_level=4,
        )  # fmt: skip
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [tokens, columns])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [tokens, rows])],
            [numpy_helper.from_array(codes, "b"), numpy_helper.from_array(scale, "s")],
        )  # fmt: skip
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
            ir_version=10,
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        made.append(
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        )
    feed = {"x": rng.standard_normal((tokens, columns)).astype(np.float32)}
    return Way(f"ONNX Runtime MatMulNBits {bits} bits", size, [lambda s=s: s.run(None, feed) for s in made])


def reading(size: int) -> Way:
    """Copies read and nothing else, one thread."""
    memory = [np.ones(size, np.uint8) for _ in range(copies(size))]
    return Way("reading alone, one thread", size, [lambda m=m: read_bytes(m) for m in memory])


def table(rows: int, columns: int, tokens: int, threads: int, rounds: int, only: list[str]) -> None:
    torch.set_num_threads(threads)
    makes = [lambda: reading(rows * columns // 2)]
    makes += [lambda spec=spec: ours(spec, rows, columns, tokens, threads, "int8") for spec in SPECS]
    makes += [
        lambda spec=spec: ours(spec, rows, columns, tokens, threads, "int16")
        for spec in ("table3", "int4/g128")
    ]
    if tokens == 1:
        makes += [
            lambda spec=spec: ours(spec, rows, columns, tokens, threads, "float")
            for spec in ("table3", "table4")
        ]
    makes += [
        lambda: floats(rows, columns, tokens, torch.float32),
        lambda: floats(rows, columns, tokens, torch.bfloat16),
    ]
    makes += [lambda: dynamic(rows, columns, tokens)]
    makes += [lambda bits=bits: onnx(rows, columns, tokens, bits, threads) for bits in (2, 4)]
    best = 0.0
    print(f"\n{rows} x {columns}, {tokens} token(s), {threads} thread(s), load {os.getloadavg()[0]:.1f}\n")
    print("| way | MB | best µs | median µs | GB/s | of reading |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for make in makes:
        try:
            way = make()
        except Exception as error:
            print(f"| not run: {str(error).splitlines()[0][:80]} | | | | | |")
            continue
        if only and not any(word in way.name for word in (*only, "reading")):
            continue
        beside = reading(way.bytes) if not way.name.startswith("reading") else way
        for turn in range(max(rounds, 2 * len(way.calls))):
            way.go(turn)
            if beside is not way:
                beside.go(turn)
        rate = beside.bytes / min(beside.times)
        best = max(best, rate)
        fast, middle = min(way.times), float(np.median(way.times))
        own = way.bytes / fast
        print(
            f"| {way.name} | {way.bytes / 1e6:.2f} | {fast * 1e6:.0f} | {middle * 1e6:.0f} | {own / 1e9:.1f} | {own / rate:.0%} |"
        )


def main() -> None:
    """Print a table per shape, tokens and threads."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parse.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16])
    parse.add_argument("--shapes", nargs="+", default=["4096x4096", "2048x8192"])
    parse.add_argument("--rounds", type=int, default=40)
    parse.add_argument("--only", nargs="*", default=[])
    asked = parse.parse_args()
    print(native.status())
    for threads in asked.threads:
        for shape in asked.shapes:
            rows, columns = map(int, shape.split("x"))
            for tokens in asked.tokens:
                table(rows, columns, tokens, threads, asked.rounds, asked.only)


if __name__ == "__main__":
    main()

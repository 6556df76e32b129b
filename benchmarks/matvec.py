"""Matrix times vector from stored bits beside the usual ways: ``python -m benchmarks.matvec [--threads 1 2]``.

Weights are cold: each way has copies of its matrix that together take more than 256 MB, and goes through them in turn. Ways
are timed in rounds, one call of each after another (of ours the native one, of others that of their library), and the best of
all rounds counts: the machine may have other work. Threads are held to the first cores. The bandwidth is that of reading such
copies and doing nothing else, in the same rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks import page
from isoloss import native
from isoloss.compress import formats
from isoloss.deploy import pack_weight, product
from isoloss.deploy.bench import pinned
from isoloss.deploy.linear import PackedLinear
from isoloss.deploy.packing import Packed
from isoloss.native.products import read_bytes

COLD = 256 << 20
SPECS = ("table2", "table3", "table4", "table3+0.45%", "int2/g64", "int3/g128", "int4/g128", "int8")
OTHERS = {"int16": ("table3", "int4/g128"), "float": ("table3", "table4")}
"""Activations that are not rounded to 8 bits -> formats."""
LAYERS = ("table3", "int4/g128")
AVX2 = ("table2", "table3", "table4", "int4/g128")


@dataclass
class Way:
    """One way to multiply: calls over its copies, and what they read."""

    name: str
    bytes: int
    calls: list[Callable[[], object]]
    times: list[float] = field(default_factory=list)
    done: Callable[[], object] = lambda: None

    def go(self, turn: int) -> None:
        call = self.calls[turn % len(self.calls)]
        start = time.perf_counter()
        call()
        self.times.append(time.perf_counter() - start)


def copies(size: int) -> int:
    return max(2, math.ceil(COLD / size))


def ours(
    spec: str,
    rows: int,
    columns: int,
    tokens: int,
    threads: int,
    activations: str,
    instructions: str | None = None,
) -> Way:
    small = formats.get(spec).encode(torch.randn(64, columns))
    # Time does not depend on the numbers: 64 rows are encoded, and codes of the whole drawn.
    first = pack_weight(small, activations)
    packed = [widened(first, rows, spec) for _ in range(copies(first.bytes * rows // 64))]
    x, out, parts = (
        torch.randn(tokens, columns),
        torch.empty(tokens, rows),
        2 if activations == "int16" else 1,
    )
    given = x.data_ptr(), tokens, parts, None, out.data_ptr(), threads, instructions
    calls: list[Callable[[], object]] = [lambda one=one.ready: one.product(*given) for one in packed]
    name = f"isoloss {spec}, {activations} activations"
    return Way(name, packed[0].bytes, calls, done=lambda: (x, out))  # kept as long as their addresses


def layers(spec: str, rows: int, columns: int, tokens: int, threads: int) -> Way:
    """The same through modules: what a call in PyTorch costs when caches are full of weights comes on top."""
    first = pack_weight(formats.get(spec).encode(torch.randn(64, columns)))
    size = first.bytes * rows // 64
    modules = [PackedLinear(widened(first, rows, spec)) for _ in range(copies(size))]
    x = torch.randn(tokens, columns)
    torch.set_num_threads(threads)
    return Way(f"isoloss {spec}, a layer", size, [lambda m=m: m(x) for m in modules])


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


class _Init(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _Plan(ctypes.Structure):
    """What ``ggml_graph_plan`` gives; room behind for what newer versions add."""

    _fields_ = [("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("rest", ctypes.c_uint64 * 14)]


class _Threads(ctypes.Structure):
    _fields_ = [
        ("mask", ctypes.c_bool * 512), ("threads", ctypes.c_int), ("priority", ctypes.c_int),
        ("poll", ctypes.c_uint32), ("strict", ctypes.c_bool), ("paused", ctypes.c_bool),
    ]  # fmt: skip


class Ggml:
    """A library that has ggml's processor code, such as ``libggml-cpu.so`` of the package ``llama-cpp-python``."""

    def __init__(self, path: Path) -> None:
        self.all = ctypes.CDLL(str(path))
        pointers = {
            "ggml_init": [_Init],
            "ggml_new_graph": [ctypes.c_void_p],
            "ggml_get_data": [ctypes.c_void_p],
        }
        pointers["ggml_new_tensor_2d"] = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        pointers["ggml_mul_mat"] = [ctypes.c_void_p] * 3
        for name, takes in pointers.items():
            function = getattr(self.all, name)
            function.argtypes, function.restype = takes, ctypes.c_void_p
        self.all.ggml_build_forward_expand.argtypes = [ctypes.c_void_p] * 2
        self.all.ggml_nbytes.argtypes, self.all.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
        self.all.ggml_free.argtypes = [ctypes.c_void_p]
        self.all.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        self.all.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.all.ggml_graph_plan.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        self.all.ggml_graph_plan.restype = _Plan
        self.all.ggml_graph_compute.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.all.ggml_threadpool_new.argtypes = [ctypes.c_void_p]
        self.all.ggml_threadpool_new.restype = ctypes.c_void_p
        self.all.ggml_cpu_init()

    def sets(self) -> str:
        """Instruction sets that it was built with and this processor has."""
        known = ("avx2", "avx512", "avx512_vbmi", "avx512_vnni", "avx_vnni", "amx_int8")
        return ", ".join(name for name in known if getattr(self.all, f"ggml_cpu_has_{name}")())


GGML_TYPES = {"Q4_0": 2, "Q3_K": 11, "Q4_K": 12}


def ggml(library: Ggml, rows: int, columns: int, tokens: int, kind: str, threads: int) -> Way:
    """Its product of a matrix as its files store it (not rearranged) with float32 activations."""
    base, number = library.all, GGML_TYPES[kind]
    some = np.random.default_rng(0).standard_normal((64, columns)).astype(np.float32)
    encoded = np.empty(some.nbytes, np.uint8)
    used = base.ggml_quantize_chunk(number, some.ctypes.data, encoded.ctypes.data, 0, 64, columns, None)
    size = used * rows // 64
    count = copies(size)
    context = base.ggml_init(_Init(count * (size + (1 << 20)) + (64 << 20), None, False))
    x = base.ggml_new_tensor_2d(context, 0, columns, tokens)
    ctypes.memset(base.ggml_get_data(x), 0x3F, 4 * columns * tokens)
    asked = _Threads(threads=threads, poll=50)
    pool = base.ggml_threadpool_new(ctypes.addressof(asked))
    calls, kept = [], []
    for _ in range(count):
        weight = base.ggml_new_tensor_2d(context, number, columns, rows)
        assert base.ggml_nbytes(weight) == size
        whole = np.tile(encoded[:used], rows // 64)
        ctypes.memmove(base.ggml_get_data(weight), whole.ctypes.data, size)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, weight, x))
        plan = base.ggml_graph_plan(graph, threads, pool)
        work = np.empty(plan.size + 64, np.uint8)
        plan.memory = work.ctypes.data
        kept.append((plan, work))
        calls.append(lambda graph=graph, plan=plan: base.ggml_graph_compute(graph, ctypes.byref(plan)))
    way = Way(f"ggml {kind}", size, calls)
    way.done = lambda: base.ggml_free(context) if kept else None
    return way


def reading(size: int) -> Way:
    """Copies read and nothing else, one thread."""
    memory = [np.ones(size, np.uint8) for _ in range(copies(size))]
    return Way("reading alone, one thread", size, [lambda m=m: read_bytes(m) for m in memory])


@dataclass(frozen=True)
class Timed:
    """A way as it was timed: its seconds, and those of reading as many bytes in the same rounds."""

    bytes: int
    times: tuple[float, ...]
    reading: tuple[float, ...]

    def shares(self) -> tuple[float, float]:
        """Of the speed of reading: by the best times, by the medians."""
        return min(self.reading) / min(self.times), float(np.median(self.reading) / np.median(self.times))


def timed(
    rows: int, columns: int, tokens: int, threads: int, rounds: int, only: list[str], library: Ggml | None
) -> dict[str, Timed | str]:
    """Every way by its name; why not, where it cannot be run."""
    makes: dict[str, Callable[[], Way]] = {
        "reading alone, one thread": lambda: reading(rows * columns // 2),
        **{
            f"isoloss {spec}": lambda spec=spec: ours(spec, rows, columns, tokens, threads, "int8")
            for spec in SPECS
        },
    }
    for activations, specs in OTHERS.items():
        for spec in specs if activations != "float" or tokens == 1 else ():
            makes[f"isoloss {spec}, {activations} activations"] = lambda spec=spec, kind=activations: ours(
                spec, rows, columns, tokens, threads, kind
            )
    for spec in LAYERS:
        makes[f"isoloss {spec}, a layer"] = lambda spec=spec: layers(spec, rows, columns, tokens, threads)
    for spec in AVX2 if "avx2" in native.status().sets[1:] else ():
        makes[f"isoloss {spec}, by AVX2 alone"] = lambda spec=spec: ours(
            spec, rows, columns, tokens, threads, "int8", "avx2"
        )
    makes["torch float32"] = lambda: floats(rows, columns, tokens, torch.float32)
    makes["torch bfloat16"] = lambda: floats(rows, columns, tokens, torch.bfloat16)
    makes["torch int8, dynamic"] = lambda: dynamic(rows, columns, tokens)
    for bits in (2, 4):
        makes[f"ONNX Runtime MatMulNBits {bits} bits"] = lambda bits=bits: onnx(
            rows, columns, tokens, bits, threads
        )
    for kind in GGML_TYPES if library is not None else ():
        makes[f"ggml {kind}"] = lambda kind=kind: ggml(library, rows, columns, tokens, kind, threads)
    found: dict[str, Timed | str] = {}
    for name, make in makes.items():
        if only and not any(word in name for word in (*only, "reading")):
            continue
        try:
            way = make()
        except Exception as error:
            found[name] = str(error).splitlines()[0][:80]
            continue
        beside = reading(way.bytes) if not name.startswith("reading") else way
        for turn in range(max(rounds, 2 * len(way.calls))):
            way.go(turn)
            if beside is not way:
                beside.go(turn)
        way.done()
        found[name] = Timed(way.bytes, tuple(way.times), tuple(beside.times))
    return found


def around(rounds: int) -> str:
    """What a product costs beside its arithmetic: one so small that it has next to none."""
    x = torch.randn(1, 64)
    linear = torch.nn.Linear(64, 16)
    layer = PackedLinear.of(formats.get("table3").encode(linear.weight), linear.bias)
    calls: dict[str, Callable[[], object]] = {
        "a product": lambda: product(layer.packed, x),
        "a packed layer": lambda: layer(x),
        "`nn.Linear`": lambda: linear(x),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(max(rounds, 20)):
            for name, call in calls.items():
                start = time.perf_counter()
                for _ in range(100):
                    call()
                found[name].append((time.perf_counter() - start) / 100)
    each = (f"{name} {1e6 * float(np.median(one)):.1f} µs" for name, one in found.items())
    return f"Of 16 × 64 numbers, one thread, medians: {', '.join(each)}."


def table(shape: str, threads: int, columns: dict[int, dict[str, Timed | str]], load: float) -> str:
    """Of one shape: a row for each way, by tokens."""
    head = ["way", "MB"]
    for tokens in columns:
        head += [f"{plural(tokens)}, best µs", "median"]
        head += ["of reading", "by medians"] if tokens == 1 else []
    lines, absent = [], {}
    for name in dict.fromkeys(name for own in columns.values() for name in own):
        size = next((one.bytes for own in columns.values() if isinstance(one := own.get(name), Timed)), None)
        if size is None:
            absent[name] = next(own[name] for own in columns.values() if name in own)
            continue
        line = [name, f"{size / 1e6:.2f}"]
        for tokens, own in columns.items():
            one = own.get(name)
            if not isinstance(one, Timed):
                line += [""] * (4 if tokens == 1 else 2)
                continue
            line += [f"{min(one.times) * 1e6:.0f}", f"{float(np.median(one.times)) * 1e6:.0f}"]
            line += [f"{share:.0%}" for share in one.shares()] if tokens == 1 else []
        lines.append(line)
    where = f"{shape.replace('x', ' × ')}, {plural(threads, 'thread')}, load {load:.1f}:"
    text = f"{where}\n\n{page.table(head, lines, range(1, len(head)))}"
    return text + "".join(f"\n\nNot run: {name}: {why}" for name, why in absent.items())


def plural(count: int, what: str = "token") -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def main() -> None:
    """A table for each shape and number of threads."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parse.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16])
    parse.add_argument("--shapes", nargs="+", default=["4096x4096", "2048x8192"])
    parse.add_argument("--rounds", type=int, default=40)
    parse.add_argument("--only", nargs="*", default=[])
    parse.add_argument(
        "--ggml",
        type=Path,
        help="libggml-cpu.so, as llama-cpp-python compiles it for the machine, for its rows",
    )
    parse.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    asked = parse.parse_args()
    library = Ggml(asked.ggml) if asked.ggml else None
    parts = [f"{page.machine()} torch {torch.__version__}; kernels: {', '.join(native.status().sets)}"]
    if library is not None:
        parts[0] += f"; ggml built for {library.sets()}"
    with pinned(1):
        parts.append(around(asked.rounds))
    print(parts[-1], flush=True)
    for threads in asked.threads:
        for shape in asked.shapes:
            rows, columns = map(int, shape.split("x"))
            load = os.getloadavg()[0]
            with pinned(threads):
                found = {
                    tokens: timed(rows, columns, tokens, threads, asked.rounds, asked.only, library)
                    for tokens in asked.tokens
                }
            parts.append(table(shape, threads, found, load))
            print(parts[-1], flush=True)
    if asked.out:
        page.put(asked.out, "matvec", "\n\n".join(parts))


if __name__ == "__main__":
    main()

"""QONNX files and hls4ml projects before and after: `python -m benchmarks.qonnx --out docs/export.md`.

Needs `isoloss[fpga]` and g++. Data are synthetic: jets of five classes as Gaussians of 16 features with correlated noise;
pictures with a bar in one of five directions.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.page import put, table
from isoloss.compress import Choice, compress
from isoloss.compress.activations import Activations, ranges, rounded_inputs, samples
from isoloss.compress.compressed import Compressed
from isoloss.compress.export.circuits import resources, totals
from isoloss.compress.export.hls4ml import write_hls4ml
from isoloss.compress.export.onnx import Example
from isoloss.compress.export.qonnx import Inputs, graph_of, round_biases
from isoloss.compress.export.running import run_by_package, run_qonnx
from isoloss.compress.layers import find

COUNT = 1000  # inputs on which outputs are compared
JETS = {"0": ("int6/tensor/scale-m1", "int8"), "2": ("int4/scale-m1", "int6/asym"),
        "4": ("int3/scale-m1", "int5/asym"), "6": ("int6/tensor/scale-m1", "int6/asym")}  # fmt: skip
PICTURES = {
    "0": ("int6/scale-m1", "int8"),
    "3": ("int4/tensor/scale-m1", "int5/asym"),
    "7": ("int6/scale-m1", "int6/asym"),
}
WORDS = {
    "embedding": ("int8", None), "attention": ("int6", "int8"), "out": ("int4/asym", "int8/asym"),
    "up": ("int3", "int6"), "down": ("int2/bipolar", "int8/asym"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """A compressed model, with inputs to compare on."""

    name: str
    net: nn.Module
    compressed: Compressed
    inputs: Inputs
    x: Tensor
    y: Tensor | None
    before: float  # accuracy in float32

    def outputs(self) -> np.ndarray[Any, Any]:
        with torch.no_grad(), rounded_inputs(self.net, self.inputs.how, self.inputs.ranges):
            found: np.ndarray[Any, Any] = self.net(self.x).numpy()
        return found


class Block(nn.Module):
    """A transformer block with a tied head."""

    def __init__(self, width: int = 16, heads: int = 2):
        super().__init__()
        self.embedding, self.heads = nn.Embedding(20, width), heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        batch, length, width = x.shape
        parts = self.attention(self.before(x)).reshape(batch, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        y: Tensor = self.head(x + self.down(nn.functional.gelu(self.up(self.after(x)))))
        return y


def jets(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features, standardised, and classes."""
    fixed = torch.Generator().manual_seed(7)
    means, mix = 0.7 * torch.randn(5, 16, generator=fixed), torch.randn(16, 16, generator=fixed) / 4
    y = torch.randint(0, 5, (count,), generator=generator)
    x = means[y] + torch.randn(count, 16, generator=generator) @ (torch.eye(16) + mix)
    return (x - x.mean(0)) / x.std(0), y


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A bar in one of five directions, with noise."""
    y = torch.randint(0, 5, (count,), generator=generator)
    angle = y * torch.pi / 5
    row, column = torch.meshgrid(torch.arange(8.0) - 3.5, torch.arange(8.0) - 3.5, indexing="ij")
    away = (column * angle.sin()[:, None, None] - row * angle.cos()[:, None, None]).abs()
    return torch.exp(-away.square())[:, None] + 0.3 * torch.randn(count, 1, 8, 8, generator=generator), y


def trained(net: nn.Module, x: Tensor, y: Tensor, steps: int = 300) -> nn.Module:
    """A few hundred steps of Adam."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(steps):
        some = torch.arange(128 * step, 128 * (step + 1)) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[some]), y[some]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()


def case(name: str, net: nn.Module, x: Tensor, y: Tensor | None, plan: Mapping[str, Any], step: Any) -> Case:
    """Compressed as planned, biases on steps."""
    test, known = x[-COUNT:], None if y is None else y[-COUNT:]
    before = float("nan") if known is None else accuracy(net(test).detach().numpy(), known)
    made = compress(net, {layer: Choice(weight) for layer, (weight, _) in plan.items()})
    how = {n: Activations(f, "static", "mse", step=step) for n, (_, f) in plan.items() if f is not None}
    seen = samples(net, [one for one in find(net).layers if one.name in how], [x[:COUNT]])
    own = Inputs(how, {n: ranges({n: one}, how[n])[n] for n, one in seen.items()})
    round_biases(net, made, own)
    return Case(name, net, made, own, test, known, before)


def accuracy(found: np.ndarray[Any, Any], y: Tensor) -> float:
    """Share of right classes."""
    return float((found.argmax(axis=1) == y.numpy()).mean())


def cases() -> list[Case]:
    """The three models."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x, y = jets(8000, generator)
    parts = [[nn.Linear(n, m), nn.ReLU()] for n, m in itertools.pairwise((16, 64, 32, 32, 5))]
    mlp = trained(nn.Sequential(*list(itertools.chain.from_iterable(parts))[:-1]), x[:-COUNT], y[:-COUNT])
    found = [case("MLP 16-64-32-32-5, jets", mlp, x, y, JETS, "power")]
    x, y = pictures(5000, generator)
    cnn = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    found.append(case("CNN, two convolutions", trained(cnn, x[:-COUNT], y[:-COUNT]), x, y, PICTURES, "power"))
    ids = torch.randint(0, 20, (2 * COUNT, 8), generator=generator)
    return [*found, case("transformer block, 8 tokens", Block().eval(), ids, None, WORDS, "free")]


def round_trip(one: Case) -> list[str]:
    """A row: our nodes and the package against torch."""
    name = "ids" if one.x.dtype == torch.int64 else "input"
    made, kinds = graph_of(one.compressed, one.net, Example({name: one.x}), one.inputs)
    wanted, x = one.outputs(), {name: one.x.numpy()}
    cells = [one.name, ", ".join(weight.kind for weight in kinds.values())]
    for found in (run_qonnx(made, x)[0], run_by_package(made, x)[0]):
        cells += [f"{np.abs(found - wanted).max():.1e}", f"{100 * np.mean(found == wanted):.1f} %"]
    return cells


def emulated(one: Case) -> list[list[str]]:
    """Rows: hls4ml as it comes, and exact."""
    wanted, rows = one.outputs(), []
    assert one.y is not None
    for exact in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "project"
            project = write_hls4ml(
                one.compressed, one.net, place, Example({"input": one.x}), inputs=one.inputs, exact=exact
            )
            found = project.emulated(one.x.numpy())
        sums = [
            str(layer.types["accum_t"].precision.width)
            for layer in project.made.get_layers()
            if layer.class_name in ("Dense", "Conv2D")
        ]
        rows.append([
            one.name, "exact types" if exact else "hls4ml's own",
            f"{100 * np.mean(found == wanted):.1f} %", f"{np.abs(found - wanted).max():.2g}",
            f"{100 * np.mean(found.argmax(1) == wanted.argmax(1)):.1f} %",
            f"{100 * accuracy(found, one.y):.1f} %", ", ".join(sums),
        ])  # fmt: skip
    return rows


def taken(one: Case) -> list[list[str]]:
    """What each layer takes."""
    found = resources(one.compressed, one.net, one.x[:1], one.inputs)
    rows = [
        [
            own.layer, "x".join(map(str, own.shape)), f"{own.multiply_adds:,}", f"{own.multipliers:,}", f"{own.shifts:,}",
            f"{own.zeros:,}", f"{own.weight_bits:g}", f"{own.input_bits:g}", str(own.accumulator_bits),
            str(own.exact_accumulator_bits), f"{own.bops:,.0f}", f"{own.bops_with_sums:,.0f}",
        ]
        for own in found
    ]  # fmt: skip
    every = totals(found)
    names = ("multiply_adds", "multipliers", "shifts", "zeros")
    rows.append(["all", "", *(f"{every[n]:,}" for n in names), "", "", "", "",
                 f"{every['bops']:,.0f}", f"{every['bops_with_sums']:,.0f}"])  # fmt: skip
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    started = time.process_time()
    every = cases()
    head = [
        "model",
        "weights",
        "in NumPy: largest difference",
        "equal",
        "by qonnx: largest difference",
        "equal",
    ]
    trips = table(head, [round_trip(one) for one in every], (2, 3, 4, 5))
    head = ["model", "types", "equal outputs", "largest difference", "same class", "accuracy", "bits of sums"]
    projects = table(head, [row for one in every[:2] for row in emulated(one)], (2, 3, 4, 5))
    head = [
        "layer",
        "shape",
        "MACs",
        "multipliers",
        "shifts",
        "zeros",
        "b_w",
        "b_a",
        "sum bits",
        "exact",
        "BOPs",
        "with sums",
    ]
    layers = table(head, taken(every[0]), tuple(range(2, 12)))
    versions = ", ".join(f"{name} {version(name)}" for name in ("qonnx", "hls4ml", "onnx", "torch"))
    floats = ", ".join(f"{100 * one.before:.1f} % ({one.name.split(',')[0]})" for one in every[:2])
    seconds = time.process_time() - started
    put(
        out,
        "qonnx",
        f"Outputs of {COUNT:,} inputs, before and after:\n\n{trips}\n\n"
        f"The C emulation against the same outputs; accuracy in float32 was {floats}:\n\n{projects}\n\n"
        f"The layers of the MLP:\n\n{layers}\n\n{versions}; {seconds:.0f} s of one core, without g++.",
    )


if __name__ == "__main__":
    main()

"""Bits per layer of a trained ResNet-20: traces, the allocation, and what the models so made are worth.

    python -m benchmarks.allocation [--pictures 2000] [--out docs/allocation.md]

Network and pictures lie beside a checkout in `../shared/data`. About three minutes of one core.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import page
from benchmarks.networks import CIFAR, Absent, batches, pictures, resnet
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.products import hessian
from isoloss.measure.subject import Subject
from isoloss.measure.traces import layer_traces
from isoloss.planning.allocate import Allocated, Option, allocate, pareto

BITS = (2, 3, 4, 6, 8)
PROBES = 20  # random vectors of Hutchinson
PLANS = 16  # random plans whose loss is measured


@torch.no_grad()
def rounded(weight: Tensor, bits: int) -> Tensor:
    """Symmetric, integers from -(2^(b-1) - 1) up, one scale per output channel: of 40 shares of its largest weight the
    one with the least squared error."""
    top, flat = 2 ** (bits - 1) - 1, weight.flatten(1)
    shares = torch.linspace(0.25, 1, 40).view(-1, 1, 1)
    scale = shares * flat.abs().amax(1).clamp_min(1e-12).view(1, -1, 1) / top
    tried = (flat / scale).round().clamp(-top, top) * scale
    best = (tried - flat).square().sum(2).argmin(0)
    return tried[best, torch.arange(len(flat))].view_as(weight)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """What is rounded: the weights of convolutions and of the linear layer."""
    return {f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def size(weight: Tensor, bits: int) -> int:
    """Bytes: codes, and a scale of 32 bits for each output channel."""
    return math.ceil(weight.numel() * bits / 8) + 4 * weight.shape[0]


def with_bits(model: nn.Module, bits: Mapping[str, int]) -> nn.Module:
    """A copy with rounded weights."""
    out = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in weights_of(out).items():
            weight.copy_(rounded(weight, bits[name]))
    return out


@torch.inference_mode()
def tested(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Cross-entropy and whether right, of every picture."""
    found = [
        (F.cross_entropy(z, y, reduction="none"), z.argmax(1) == y)
        for z, y in ((model(x), y) for x, y in data)
    ]
    losses, right = zip(*found, strict=True)
    return torch.cat(losses), torch.cat(right).float()


@dataclass(frozen=True)
class Timed:
    """What was found, and the CPU time that it took in gradients."""

    found: Any
    gradients: float


def timed(work: Callable[[], Any], unit: float) -> Timed:
    began = time.process_time()
    found = work()
    return Timed(found, (time.process_time() - began) / unit)


def one_gradient(subject: Subject) -> None:
    with subject.measuring():
        for batch in subject.batches:
            torch.autograd.grad(subject.loss(batch), list(subject.parameters().values()))


def hutchinson(subject: Subject) -> dict[str, tuple[float, float]]:
    """Trace and standard error of every block, one random vector for all: products with the Hessian."""
    generator = torch.Generator().manual_seed(0)
    with hessian(subject) as product:
        each = []
        for _ in range(PROBES):
            v = {
                name: torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
                for name, p in product.like.items()
            }
            hv = product(v)
            each.append({name: float((v[name] * hv[name]).sum()) for name in v})
    values = {name: np.array([one[name] for one in each]) for name in each[0]}
    return {name: (float(v.mean()), float(v.std(ddof=1)) / math.sqrt(PROBES)) for name, v in values.items()}


def traces(subject: Subject, names: Sequence[str]) -> tuple[dict[str, float], str]:
    """Exact traces per layer, and the table beside the estimates."""
    unit = min(timed(lambda: one_gradient(subject), 1.0).gradients for _ in range(5))
    exact = timed(lambda: layer_traces(subject), unit)
    sampled = timed(lambda: layer_traces(subject, 0.05), unit)
    peer = timed(lambda: hutchinson(subject), unit)
    weights, rows = dict(subject.model.named_parameters()), []
    off, off_peer = [], []
    for name in names:
        true, n = exact.found.values[name], weights[name].numel()
        one, its = sampled.found.values[name], peer.found[name]
        off.append(abs(one / true - 1))
        off_peer.append(abs(its[0] / true - 1))
        rows.append([
            f"`{name.removesuffix('.weight')}`", f"{n:,}", f"{true / n:.5f}", f"{one / n:.5f}",
            f"{its[0] / n:.5f} ± {its[1] / n:.5f}",
        ])  # fmt: skip
    rows.append(["largest error", "", "", f"{100 * max(off):.1f} %", f"{100 * max(off_peer):.0f} %"])
    rows.append(
        [
            "cost in gradients",
            "",
            f"{exact.gradients:.1f}",
            f"{sampled.gradients:.1f}",
            f"{peer.gradients:.0f}",
        ]
    )
    head = ["layer", "weights", "exact", "sampled, to 5 %", f"Hutchinson, {PROBES} vectors"]
    return {name: exact.found.values[name] for name in names}, page.table(head, rows, (1, 2, 3, 4))


def options(weights: Mapping[str, Tensor], trace: Mapping[str, float] | None) -> list[Option]:
    """Half the mean trace times the squared distance, or the distance alone."""
    found = []
    for name, weight in weights.items():
        for bits in BITS:
            moved = float((rounded(weight, bits) - weight.detach()).double().square().sum())
            loss = moved if trace is None else 0.5 * trace[name] / weight.numel() * moved
            found.append(Option(name, str(bits), loss, {"bytes": size(weight, bits)}))
    return found


def reversed_ranks(weights: Mapping[str, Tensor], trace: Mapping[str, float]) -> dict[str, float]:
    """Mean traces in the wrong order: the layer with the largest has the smallest, and so on."""
    mean = {name: trace[name] / weights[name].numel() for name in weights}
    ranked = sorted(mean, key=lambda name: mean[name])
    return {
        name: mean[other] * weights[name].numel()
        for name, other in zip(ranked, reversed(ranked), strict=True)
    }


def one_by_one(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> list[Option]:
    """What each layer adds to the loss when it alone is rounded, measured."""
    base, weights = tested(model, data)[0], weights_of(model)
    changed, found = copy.deepcopy(model), []
    for name, weight in weights_of(changed).items():
        for bits in BITS:
            with torch.no_grad():
                weight.copy_(rounded(weights[name], bits))
            loss = change(base, tested(changed, data)[0])[0]
            found.append(Option(name, str(bits), loss, {"bytes": size(weight, bits)}))
        with torch.no_grad():
            weight.copy_(weights[name])
    return found


def bits_of(plan: Allocated) -> dict[str, int]:
    return {name: int(bits) for name, bits in plan.chosen.items()}


def change(base: Tensor, now: Tensor) -> tuple[float, float]:
    """Mean difference on the same pictures, with its standard error."""
    off = (now - base).double()
    return float(off.mean()), float(off.std()) / math.sqrt(len(off))


def worth(
    model: nn.Module, ways: Mapping[str, Sequence[Option]], data: Sequence[tuple[Tensor, Tensor]]
) -> str:
    """Allocations against the same bits everywhere, at the same size."""
    base = tested(model, data)
    price = {(o.item, o.name): o.loss for o in next(iter(ways.values()))}
    weights = weights_of(model)

    def line(what: str, plan: Mapping[str, int]) -> list[str]:
        losses, right = tested(with_bits(model, plan), data)
        total = sum(size(weights[name], bits) for name, bits in plan.items())
        foretold = sum(price[name, str(bits)] for name, bits in plan.items())
        up, se = change(base[0], losses)
        lost, lost_se = change(base[1], right)
        held = " ".join(str(plan[name]) for name in weights)
        return [
            what, held, f"{total / 1024:.1f}", f"{foretold:.4f}", f"{up:+.4f} ± {se:.4f}",
            f"{100 * float(right.mean()):.1f}", f"{100 * lost:+.2f} ± {100 * lost_se:.2f}",
        ]  # fmt: skip

    rows = [["float32", "", f"{sum(4 * w.numel() for w in weights.values()) / 1024:.1f}", "0", "0",
             f"{100 * float(base[1].mean()):.1f}", "0"]]  # fmt: skip
    for bits in BITS[1:-1]:
        same = dict.fromkeys(weights, bits)
        limit = sum(size(weight, bits) for weight in weights.values())
        rows.append(line(f"all at {bits} bits", same))
        for what, choice in ways.items():
            rows.append(line(f"same size, by {what}", bits_of(allocate(choice, {"bytes": limit}))))
    head = ["", "bits of the layers", "KiB", "Ω foretold", "loss, measured", "right, %", "points"]
    return page.table(head, rows, (2, 3, 4, 5, 6))


def ordered(model: nn.Module, choice: Sequence[Option], data: Sequence[tuple[Tensor, Tensor]]) -> str:
    """Foretold against measured loss of random plans, over all sizes."""
    rng = np.random.default_rng(0)
    base, names = tested(model, data)[0], list(weights_of(model))
    price = {(o.item, o.name): o.loss for o in choice}
    foretold, measured = [], []
    for k in range(PLANS):
        lowest = BITS[k % (len(BITS) - 1)]  # so that coarse and fine plans are there
        plan = {name: int(rng.choice([b for b in BITS if b >= lowest])) for name in names}
        foretold.append(sum(price[name, str(bits)] for name, bits in plan.items()))
        measured.append(change(base, tested(with_bits(model, plan), data)[0])[0])
    ranks = [np.argsort(np.argsort(values)) for values in (foretold, measured)]
    spearman = float(np.corrcoef(*ranks)[0, 1])
    small = [k for k in range(PLANS) if foretold[k] < 0.1]
    ratio = np.median([measured[k] / foretold[k] for k in small]) if small else math.nan
    return (
        f"{PLANS} random plans, foretold from {min(foretold):.4f} to {max(foretold):.3g} nats, measured from "
        f"{min(measured):+.4f} to {max(measured):+.3g}: Spearman {spearman:.2f}. Measured over foretold, median of the "
        f"{len(small)} plans below 0.1 nats: {ratio:.2f}."
    )


def measure(count: int) -> str:
    model = resnet(20)
    x, y = pictures("sets/cifar10-jpeg/train6000.npz", 0, 128, CIFAR)
    subject = Subject(model, batches(x, y, 64), CrossEntropy(), "resnet20")
    weights = weights_of(model)
    trace, layers = traces(subject, list(weights))
    by_trace = options(weights, trace)
    ways = {
        "trace": by_trace,
        "distance alone": options(weights, None),
        "traces in reverse": options(weights, reversed_ranks(weights, trace)),
        "layers measured one by one": one_by_one(model, subject.batches),
    }
    front = timed(lambda: pareto(by_trace, "bytes"), 1.0)
    limit = sum(size(weight, 4) for weight in weights.values())
    solve = timed(lambda: allocate(by_trace, {"bytes": limit}), 1.0)
    data = batches(*pictures("sets/cifar10-jpeg/test.npz", 0, count, CIFAR), 250)
    return "\n\n".join([
        f"{page.machine()} torch {torch.__version__}. Traces on 128 training pictures, in eval mode; mean per weight.",
        layers,
        f"{count:,} test pictures; differences from float32 on the same pictures, with their standard error. Ω is half the "
        "mean trace times the squared distance, summed.",
        worth(model, ways, data),
        f"The whole frontier of {len(BITS)}^{len(weights)} choices has {len(front.found):,} points and takes "
        f"{front.gradients:.2f} s; one allocation {1000 * solve.gradients:.0f} ms.",
        ordered(model, by_trace, data[: max(1, len(data) // 4)]),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=2000, help="test pictures")
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        text = measure(given.pictures)
    except Absent as error:
        raise SystemExit(f"{error}") from None
    if given.out:
        page.put(given.out, "allocation", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

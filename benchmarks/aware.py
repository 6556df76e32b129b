"""Two and three bits a weight: rounded after training, and trained with rounded weights; word lengths that change in training.

    python -m benchmarks.aware [--seeds 3] [--nets digits,gpt,resnet20,words] [--out docs/aware.md]

A small network on scikit-learn's digits and a byte GPT, both trained here for every seed, and a ResNet-20 for CIFAR-10
that is trained on (weights, pictures and text lie beside a checkout in `../shared/data`). About five minutes of one core.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor, nn

from benchmarks import page
from benchmarks.networks import CIFAR, Absent, pictures, resnet, small_gpt
from isoloss.compress import Choice, compress
from isoloss.compress.activations import Activations, rounded_inputs
from isoloss.compress.training.adapt import Adapt, adapting
from isoloss.compress.training.aware import Aware, prepare

BITS = (2, 3)
WORDS = "words"  # in place of a network: lengths that change


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network, what it is trained on with, and what it is measured on."""

    net: str
    model: nn.Module
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    calibration: list[Tensor]
    test: list[tuple[Tensor, Tensor]]
    steps: int
    rate: float
    norms: str = "train"


def digits(seed: int) -> Case:
    """Four layers on the digits."""
    x, y = _digits(seed)
    net = _mlp(seed)
    _fit(net, lambda g: _picked(x[:1000], y[:1000], 50, g), 240, 3e-3, seed)
    return Case(
        "digits",
        net,
        lambda g: _picked(x[:1000], y[:1000], 50, g),
        [x[:256]],
        [(x[1000:], y[1000:])],
        240,
        2e-3,
    )


def gpt(seed: int) -> Case:
    """The reference trainer's network, small, on Shakespeare's bytes."""
    net, windows = small_gpt(seed)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return windows(False, 32, generator)

    _fit(net, draw, 200, 4e-3, seed)
    own = torch.Generator().manual_seed(1000 + seed)
    tests = [windows(True, 64, own) for _ in range(4)]
    return Case("gpt", net, draw, [windows(False, 64, own)[0]], tests, 100, 2e-3)


def resnet20(seed: int) -> Case:
    """Trained on CIFAR-10; the seed chooses the order and the pictures to calibrate on. The set has 5,999 to train on."""
    net = resnet(20)
    name = "sets/cifar10-jpeg/train6000.npz"  # number 2497 is an empty file
    x, y = (
        torch.cat(parts)
        for parts in zip(pictures(name, 0, 2497, CIFAR), pictures(name, 2498, 3502, CIFAR), strict=True)
    )
    tests = pictures("sets/cifar10-jpeg/test.npz", 0, 1000, CIFAR)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        part, label = _picked(x, y, 64, generator)
        return (part.flip(3) if torch.rand((), generator=generator) < 0.5 else part), label

    at = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:256]
    return Case(
        "resnet20", net, draw, [x[at]], list(zip(*(t.split(250) for t in tests), strict=True)), 60, 5e-4
    )


NETS: dict[str, Callable[[int], Case]] = {"digits": digits, "gpt": gpt, "resnet20": resnet20}


def _digits(seed: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return (x.float() / 16)[order], y[order]


def _mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sizes = [64, 64, 48, 32]
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def _picked(x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    at = torch.randint(0, len(x), (count,), generator=generator)
    return x[at], y[at]


def _loss(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, -2), y.flatten())


def _fit(
    net: nn.Module,
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
    seed: int,
    after: Callable[[int], None] | None = None,
) -> None:
    """The loop of all runs: Adam, ten steps of warm-up, then linear to 0."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    net.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 10, (steps - step) / steps)
        x, y = draw(generator)
        optimizer.zero_grad()
        _loss(net(x), y).backward()
        optimizer.step()
        if after is not None:
            after(step)
    net.eval()


@torch.no_grad()
def _measured(net: nn.Module, test: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """Losses of the examples of the test data [nats], and the share of right answers."""
    losses, right, count = [], 0, 0
    for x, y in test:
        z = net(x)
        each = F.cross_entropy(z.flatten(0, -2), y.flatten(), reduction="none")
        losses.append(each.reshape(len(y), -1).mean(1).double())
        right += int((z.argmax(-1) == y).sum())
        count += y.numel()
    return torch.cat(losses), right / count


@dataclass(frozen=True)
class Seen:
    """What a way of rounding came to."""

    net: str
    bits: int
    way: str
    losses: Tensor
    right: float
    stored: float
    seconds: float


def run(case: Case, seed: int) -> list[Seen]:
    found = []

    def note(bits: int, way: str, net: nn.Module, stored: float, began: float) -> None:
        spent = time.process_time() - began
        found.append(Seen(case.net, bits, way, *_measured(net, case.test), stored, spent))

    note(32, "float", case.model, 32.0, time.process_time())
    began, net = time.process_time(), copy.deepcopy(case.model)
    _fit(net, case.draw, case.steps, case.rate, seed)
    note(32, "float, trained on", net, 32.0, began)
    for bits in BITS:
        starts = {}
        for way, choice in (
            ("nearest", Choice(f"int{bits}/asym/mse2")),
            ("gptq", Choice(f"int{bits}/asym", "gptq")),
        ):
            began, net = time.process_time(), copy.deepcopy(case.model)
            starts[way] = compress(net, choice, case.calibration)
            note(bits, way, net, starts[way].bits_per_weight, began)
        for way, start, settings in (
            ("trained, steps learned", f"int{bits}/asym", Aware()),
            ("trained, steps fitted", f"int{bits}/asym/mse2-10-0.8", Aware("fitted")),
            ("trained from gptq", starts["gptq"], Aware()),
        ):
            if case.net != "digits" and "gptq" not in way:
                continue
            began, net = time.process_time(), copy.deepcopy(case.model)
            training = prepare(net, start, settings)
            _fit(net, case.draw, case.steps, case.rate, seed)
            made = training.finish()
            note(bits, way, net, made.bits_per_weight, began)
    if case.net == "digits":
        for way, learned in (("inputs static", "static"), ("inputs learned", "learned")):
            began, net = time.process_time(), copy.deepcopy(case.model)
            training = prepare(net, "int3/asym", Aware(inputs="int3/asym", ranges=learned), case.calibration)
            _fit(net, case.draw, case.steps, case.rate, seed)
            ranges = training.ranges
            made = training.finish()
            with rounded_inputs(net, Activations("int3/asym", "static"), ranges):
                note(3, f"trained, {way} in int3", net, made.bits_per_weight, began)
    return found


def _interval(values: Sequence[float], digits: int, each: Sequence[Tensor] = ()) -> str:
    """Mean and 90 % interval over the seeds; of a single one over its examples."""
    mean = statistics.mean(values)
    if len(values) > 1:
        reach = student.ppf(0.95, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    elif each:
        reach = 1.645 * float(each[0].std()) / math.sqrt(len(each[0]))
    else:
        return f"{mean:+.{digits}f}"
    return f"{mean:+.{digits}f} ({mean - reach:+.{digits}f} to {mean + reach:+.{digits}f})"


def _rise(own: Sequence[Seen], other: Sequence[Seen]) -> str:
    each = [o.losses - b.losses for o, b in zip(own, other, strict=True)]
    return _interval([float(d.mean()) for d in each], 3, each)


def told(seen: Sequence[Sequence[Seen]]) -> str:
    lines = []
    for example in seen[0]:
        own = [next(o for o in run if (o.bits, o.way) == (example.bits, example.way)) for run in seen]
        control = [next(o for o in run if o.way == "float, trained on") for run in seen]
        before = [next(o for o in run if o.way == "float") for run in seen]
        lines.append([
            example.way, "" if example.bits == 32 else f"{example.stored:.2f}",
            f"{statistics.mean(float(o.losses.mean()) for o in own):.4f}",
            _rise(own, before),
            _rise(own, control),
            f"{100 * statistics.mean(o.right for o in own):.1f} %",
            f"{statistics.mean(o.seconds for o in own):.1f}",
        ])  # fmt: skip
    head = [
        "way", "stored bits a weight", "test loss", "rise over float", "over float trained on", "right", "CPU s"
    ]  # fmt: skip
    return page.table(head, lines, (1, 2, 5, 6))


def adaptive(seeds: int) -> str:
    """Word lengths over the training of the digits' network, and what it came to beside float32."""
    rows, ledger = [], ""
    for seed in range(seeds):
        x, y = _digits(seed)

        def draw(generator: torch.Generator, x: Tensor = x, y: Tensor = y) -> tuple[Tensor, Tensor]:
            return _picked(x[:1000], y[:1000], 50, generator)

        plain, net = _mlp(seed), _mlp(seed)
        _fit(plain, draw, 600, 3e-3, seed)
        adapt = adapting(net, Adapt(seed=seed))
        _fit(net, draw, 600, 3e-3, seed, lambda step, adapt=adapt: adapt.step())
        cost = adapt.modelled_cost
        made = adapt.finish()
        test = [(x[1000:], y[1000:])]
        (l0, a0), (l1, a1) = _measured(plain, test), _measured(net, test)
        rows.append((float((l1 - l0).mean()), a1 - a0, cost, made.bits_per_weight))
        if not seed:
            layers = list(dict.fromkeys(one.layer for one in adapt.ledger))
            at = sorted({one.step for one in adapt.ledger})
            shown = at[:: max(1, len(at) // 8)] + (
                [at[-1]] if at[-1] not in at[:: max(1, len(at) // 8)] else []
            )
            lines = []
            for step in shown:
                known = {one.layer: one for one in adapt.ledger if one.step <= step}
                lines.append([
                    str(step),
                    *(f"<{known[n].word},{known[n].fraction}>, {known[n].lookback}" for n in layers),
                ])  # fmt: skip
            ledger = page.table(["step", *(f"layer {name}" for name in layers)], lines, (0,))
    text = [
        f"Digits, 600 steps, {seeds} seeds, against float32 with the same loop: test loss {_interval([r[0] for r in rows], 3)} nats, "
        f"right {_interval([100 * r[1] for r in rows], 2)} points; modelled cost of the training over float32's "
        f"{statistics.mean(r[2] for r in rows):.2f}, stored bits a weight {statistics.mean(r[3] for r in rows):.2f}.",
        "Word and fractional lengths, and the steps to the next look, of the first seed:",
        ledger,
    ]
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", default=",".join((*NETS, WORDS)))
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for net in given.nets.split(","):
        began = time.process_time()
        try:
            text = table_of(net, given.seeds)
        except Absent as error:
            text = f"Not measured, {net}: {error}."
        head = f"{page.machine()} torch {torch.__version__}, {time.process_time() - began:.0f} CPU seconds."
        if given.out:
            page.put(given.out, f"aware {net}", f"{head}\n\n{text}")
        else:
            print(head, text, sep="\n\n", end="\n\n", flush=True)


def table_of(net: str, seeds: int) -> str:
    """The section of a network, or of word lengths."""
    if net == WORDS:
        return adaptive(seeds)
    seeds = 1 if net == "resnet20" else seeds
    found = told([run(NETS[net](seed), seed) for seed in range(seeds)])
    over = f"90 % intervals over {seeds} seeds" if seeds > 1 else "90 % intervals over the test examples"
    return f"{over}; rises of each run against its own network in float.\n\n{found}"


if __name__ == "__main__":
    main()

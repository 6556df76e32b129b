"""Bits by sensitivity: automatic plans against the same bits everywhere, plans in reverse and random ones of equal size.

    python -m benchmarks.hawq [--seeds 3] [--nets mlp,gpt,resnet20] [--out docs/sensitivity.md]

A small network on scikit-learn's digits and a byte GPT, both trained here for every seed, and a ResNet-20 for CIFAR-10
(weights and pictures lie beside a checkout in `../shared/data`, text too). About four minutes of one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch import nn

from benchmarks import page
from benchmarks.networks import CIFAR, Absent, batches, pictures, resnet, small_gpt
from isoloss.compress import Choice, find
from isoloss.compress.candidates import Candidates, candidates
from isoloss.compress.mixed import best
from isoloss.compress.sensitivity import score
from isoloss.compress.sensitivity.changes import Change, changes, one_by_one
from isoloss.compress.sensitivity.ranking import Agreement, agreement
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.subject import Subject, resized

FORMATS = tuple(Choice(f"int{bits}/asym", "gptq") for bits in (2, 3, 4, 6))
SAME = ("int3/asym", "int4/asym")  # sizes of the plans
RANDOM = 3  # random plans for each seed and size
ALWAYS = ("output-error", "kronecker", "block-fisher")
FIRST = ("hawq", "hawq-v2", "fisher", *ALWAYS, "pd", "measured")  # with the first seed
CURVED = ("hawq", "hawq-v2")  # products with the Hessian: on fewer examples


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network, data to calibrate on, and others to measure on."""

    net: str
    seed: int
    calibration: Subject
    test: Subject
    few: int = 256  # examples for products with the Hessian

    def tried(self) -> Candidates:
        model = self.calibration.model
        inputs = [x for x, _ in self.calibration.batches]
        return candidates(model, find(model).layers, FORMATS, inputs)


def mlp(seed: int) -> Case:
    """Four layers on the digits."""
    from sklearn.datasets import load_digits

    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 48),
        nn.ReLU(),
        nn.Linear(48, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 3e-3, weight_decay=1e-4)
    for _ in range(12):
        for part in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    loss = CrossEntropy()
    return Case(
        "mlp", seed, Subject(net, [(x[:256], y[:256])], loss), Subject(net, [(x[1000:], y[1000:])], loss)
    )


def gpt(seed: int) -> Case:
    """The reference trainer's network, small, on Shakespeare's bytes."""
    net, windows = small_gpt(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.01)
    loss, steps = CrossEntropy(), 150
    net.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min((step + 1) / 20, (steps - step) / steps)
        x, y = windows(False, 32, generator)
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
    x, y = windows(False, 64, generator)
    tests = windows(True, 128, generator)
    net.eval()
    return Case(
        "gpt", seed, Subject(net, batches(x, y, 64), loss), Subject(net, batches(*tests, 64), loss), 12
    )


def resnet20(seed: int) -> Case:
    """Trained on CIFAR-10; the seed chooses the pictures to calibrate on."""
    net, loss = resnet(20), CrossEntropy()
    x, y = pictures("sets/cifar10-jpeg/train6000.npz", 200 * seed, 64, CIFAR)
    tests = pictures("sets/cifar10-jpeg/test.npz", 400 * seed, 200, CIFAR)
    return Case(
        "resnet20",
        seed,
        Subject(net, batches(x, y, 64), loss),
        Subject(net, batches(*tests, 100), loss),
        12,
    )


NETS: dict[str, Callable[[int], Case]] = {"mlp": mlp, "gpt": gpt, "resnet20": resnet20}


def permuted(tried: Candidates, scores: Scores, order: Callable[[list[str]], list[str]]) -> Scores:
    """The scores of a method whose layers have each other's sensitivity: score over squared distance at the second format."""
    at = FORMATS[1].format
    own = {name: scores.table[name][at] / max(one[at].distance, 1e-30) for name, one in tried.of.items()}
    ranked = sorted(own, key=lambda name: own[name])
    table = {
        name: {f: own[other] * one.distance for f, one in tried.of[name].items()}
        for name, other in zip(ranked, order(ranked), strict=True)
    }
    return Scores("permuted", {name: table[name] for name in tried.of}, "", "")


@dataclass(frozen=True, eq=False)
class Seen:
    """What the plans of a case came to on the test data: (size, plan) -> change; and scores of the first seed."""

    case: Case
    changes: Mapping[tuple[str, str], list[Change]]
    agreements: Mapping[str, Agreement]
    costs: Mapping[str, tuple[float, float]]
    sums: tuple[str, ...] = ()


def run(case: Case, methods: Sequence[str], ranked: bool) -> Seen:
    tried = case.tried()
    small = Subject(
        case.calibration.model, [resized(case.calibration.batches[0], case.few)], case.calibration.criterion
    )
    scores = {
        name: score(name, small if name in CURVED else case.calibration, tried, case.seed) for name in methods
    }
    rng = np.random.default_rng(case.seed)
    plans: list[tuple[str, str, dict[str, str]]] = []
    for same in SAME:
        uniform = tried.uniform(same)
        limit = tried.bits(uniform) / tried.weights
        plans.append((same, "same bits", uniform))
        for name, own in scores.items():
            plans.append((same, name, dict(best(tried, own, bits=limit).plan)))
        main = scores["block-fisher"]
        back = permuted(tried, main, lambda ranked: ranked[::-1])
        plans.append((same, "in reverse", dict(best(tried, back, bits=limit).plan)))
        for _ in range(RANDOM):
            drawn = permuted(tried, main, lambda ranked: list(rng.permutation(ranked)))
            plans.append((same, "random", dict(best(tried, drawn, bits=limit).plan)))
    found: dict[tuple[str, str], list[Change]] = {}
    for (same, what, _), change in zip(plans, changes(case.test, tried, [p for *_, p in plans]), strict=True):
        found.setdefault((same, what), []).append(change)
    agreements = {}
    sums = ()
    if ranked:
        few = Subject(case.test.model, [case.test.batches[0]], case.test.criterion)
        truth = {n: {f: c.difference for f, c in own.items()} for n, own in one_by_one(few, tried).items()}
        agreements = {name: agreement(own, truth) for name, own in scores.items()}
        main = scores["block-fisher"]
        sums = tuple(
            f"{same}: {main.added(plan):.4f} added, {main.together(plan):.4f} with the terms between layers, "
            f"{found[same, 'same bits'][0].difference:.4f} measured"
            for same, what, plan in plans
            if what == "same bits"
        )
    costs = {name: (own.spent.cpu_seconds, own.spent.gradients) for name, own in scores.items()}
    return Seen(case, found, agreements, costs, sums)


def exhaustive(case: Case) -> str:
    """All plans of the network with four layers measured, and what the automatic frontier is worth among them."""
    tried = case.tried()
    names = list(tried.of)
    every = [
        dict(zip(names, picked, strict=True))
        for picked in itertools.product([choice.format for choice in FORMATS], repeat=len(names))
    ]
    truth = changes(case.test, tried, every)
    sizes = np.array([tried.bits(plan) for plan in every])
    losses = np.array([change.difference for change in truth])
    index = {tuple(plan.values()): i for i, plan in enumerate(every)}
    limits = sorted(set(sizes))[:: max(1, len(set(sizes)) // 24)]
    lines = []
    for method in ("output-error", "hawq-v2", "block-fisher", "pd", "measured"):
        scores = score(method, case.calibration, tried)
        excess, first, ranks = [], 0, []
        for limit in limits:
            plan = best(tried, scores, bits=limit / tried.weights * (1 + 1e-12)).plan
            here = losses[sizes <= limit]
            got = losses[index[tuple(plan.values())]]
            excess.append(math.log(max(got, 1e-9) / max(here.min(), 1e-9)))
            ranks.append(float((here < got).mean()))
            first += got <= here.min() * (1 + 1e-9)
        lines.append([
            f"`{method}`", f"{first} of {len(limits)}", f"{math.exp(statistics.mean(excess)):.2f}",
            f"{math.exp(max(excess)):.2f}", f"{100 * statistics.mean(ranks):.1f} %",
        ])  # fmt: skip
    head = [
        "plans by",
        "the best there is",
        "KL over the best's, mean",
        "at worst",
        "plans within the size that are better",
    ]
    return (
        f"All {len(every)} plans of the digits' network (seed {case.seed}), measured on the test data; best of each of "
        f"{len(limits)} sizes.\n\n" + page.table(head, lines, (1, 2, 3, 4))
    )


def ratio(seen: Sequence[Seen], net: str | None, what: str) -> tuple[float, float, float, int, int]:
    """KL of a kind of plan over that of the automatic plan: geometric mean, 90 % interval over seeds, wins; of all networks
    where none is named."""
    logs, wins, of = [], 0, 0
    for one in seen:
        if net is not None and one.case.net != net:
            continue
        own = []
        for same in SAME:
            auto = one.changes[same, "block-fisher"][0].difference
            for change in one.changes.get((same, what), []):
                own.append(math.log(max(change.difference, 1e-9) / max(auto, 1e-9)))
                wins += change.difference > auto
                of += 1
        if own:
            logs.append(statistics.mean(own))
    if not logs:
        return math.nan, math.nan, math.nan, 0, 0
    mean = statistics.mean(logs)
    reach = (
        float(student.ppf(0.95, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
        if len(logs) > 1
        else math.nan
    )
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach), wins, of


def told(seen: Sequence[Seen], seeds: int) -> str:
    nets = list(dict.fromkeys(one.case.net for one in seen))
    rows = []
    for what in ("same bits", "in reverse", "random", *(name for name in FIRST if name != "block-fisher")):
        cells = []
        for net in (*nets, None):
            middle, low, high, wins, of = ratio(seen, net, what)
            cells.append("" if math.isnan(middle) else f"{middle:.2f} ({low:.2f} to {high:.2f}), {wins} of {of}"
                         if not math.isnan(low) else f"{middle:.2f}, {wins} of {of}")  # fmt: skip
        rows.append([f"by `{what}`" if what in FIRST else what, *cells])
    plans = page.table(["plan of equal size", *nets, "all"], rows)
    rows = []
    for net in nets:
        for same in SAME:
            cells = [net, same]
            for what in ("same bits", "block-fisher", "in reverse", "random"):
                own = [c for one in seen if one.case.net == net for c in one.changes[same, what]]
                cells.append(
                    f"{statistics.mean(c.difference for c in own):.4f}, {statistics.mean(c.rise for c in own):+.4f}"
                )
            rows.append(cells)
    levels = page.table(
        ["network", "size of", "same bits", "by `block-fisher`", "in reverse", "random"], rows
    )
    first = [one for one in seen if one.agreements]
    rows = []
    for name in FIRST:
        cells = []
        for one in first:
            if name not in one.agreements:
                cells += ["", ""]
                continue
            a, (seconds, gradients) = one.agreements[name], one.costs[name]
            cells += [f"{a.layers:.2f} ({a.low:.2f} to {a.high:.2f})", f"{seconds:.1f} s, {gradients:.0f}"]
        rows.append([f"`{name}`", *cells])
    head = ["method", *itertools.chain(*([one.case.net, "cost"] for one in first))]
    ranks = page.table(head, rows)
    sums = "\n".join(f"- {one.case.net}, {line}" for one in first for line in one.sums)
    return "\n\n".join([
        f"KL divergence from the model itself on test data, over that of the plan by `block-fisher` of the same size: geometric "
        f"mean over {seeds} seeds and two sizes, 90 % interval over the seeds, and how often the automatic plan was "
        "better. Above 1 the automatic plan wins.",
        plans,
        "Means behind it: KL [nats], and the rise of the loss [nats].",
        levels,
        "Spearman's correlation over the layers, mean over the formats, with the measured KL of one layer alone on test "
        "data; 90 % interval over resampled layers. Cost in CPU seconds and in gradients; `hawq` and `hawq-v2` see 12 examples of the "
        "GPT's and the ResNet's.",
        ranks,
        "All layers together, KL foretold and measured:",
        sums,
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    seen, absent, search = [], [], ""
    for net in given.nets.split(","):
        for seed in range(given.seeds):
            try:
                case = NETS[net](seed)
            except Absent as error:
                absent.append(f"{net}: {error}")
                break
            methods = ALWAYS if seed else FIRST
            seen.append(run(case, methods, not seed))
            if net == "mlp" and not seed:
                search = exhaustive(case)
            print(f"{net} {seed}: {time.process_time() - began:.0f} s", flush=True)
    text = "\n\n".join([
        f"{page.machine()} torch {torch.__version__}, {time.process_time() - began:.0f} CPU seconds in all. GPTQ, formats "
        f"{', '.join(choice.format for choice in FORMATS)}; plans as large as {' and '.join(SAME)} everywhere.",
        told(seen, given.seeds),
        search,
        *(f"Not measured, {line}." for line in absent),
    ])  # fmt: skip
    if given.out:
        page.put(given.out, "sensitivity", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

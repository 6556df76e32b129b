"""Which score of a plan orders measured losses: plain proxies, sensitivities, and proxies that were evolved on other plans.

    python -m benchmarks.proxies [--plans 80] [--splits 3] [--nets mlp,resnet20] [--out docs/proxies.md]

Plans are drawn at random, every layer in a format of its own, and measured. Networks and data are those of
``benchmarks.hawq``. Under a minute of one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import page
from benchmarks.hawq import FORMATS, NETS, Case
from benchmarks.networks import Absent
from isoloss.compress.sensitivity import score
from isoloss.compress.sensitivity.changes import changes
from isoloss.compress.sensitivity.emq import Search, Trial, bits_of, errors_of, features, trial
from isoloss.compress.sensitivity.plans import Judged, judge
from isoloss.compress.sensitivity.proxies import PROXIES
from isoloss.compress.sensitivity.proxies import score as proxy
from isoloss.measure.subject import Subject, resized

SOUND = ("hawq", "hawq-v2", "fisher", "output-error", "block-fisher")
CURVED = ("bhawq", "bhawq-v2", "hawq", "hawq-v2")  # on few examples
EVALUATIONS = 200


def run(case: Case, count: int, splits: int) -> tuple[str, ...]:
    tried = case.tried()
    rng = np.random.default_rng(case.seed)
    names = [choice.format for choice in FORMATS]
    plans = [{layer.name: str(rng.choice(names)) for layer in tried.layers} for _ in range(count)]
    plans = [dict(items) for items in dict.fromkeys(tuple(plan.items()) for plan in plans)]
    losses = np.array([change.difference for change in changes(case.test, tried, plans)])
    sizes = np.array([tried.bits(plan) for plan in plans], dtype=float)
    few = Subject(
        case.calibration.model, [resized(case.calibration.batches[0], case.few)], case.calibration.criterion
    )
    known: dict[str, tuple[np.ndarray, float]] = {"size alone": (-sizes, 0.0)}
    for name in (*PROXIES, *SOUND):
        subject = few if name in CURVED else case.calibration
        found = proxy(name, subject, tried) if name in PROXIES else score(name, subject, tried)
        scores = np.array([found.together(plan) for plan in plans])
        known[name] = (scores, found.spent.cpu_seconds)
    began = time.process_time()
    own = features(case.calibration, tried)
    by_bits, by_errors = (
        [trial(own, x, losses, sizes, Search(evaluations=EVALUATIONS, seed=seed)) for seed in range(splits)]
        for x in (bits_of(tried, plans), errors_of(tried, plans))
    )
    spent = (time.process_time() - began) / splits / 4
    trials, test = by_bits, by_bits[0].test
    rows = []
    for name, (scores, seconds) in known.items():
        one = judge(scores[list(test)], losses[list(test)], sizes[list(test)])
        means = [judge(scores[list(t.test)], losses[list(t.test)], sizes[list(t.test)]) for t in trials]
        rows.append(_row(name if name == "size alone" else f"`{name}`", one, means, seconds))
    for by, own_trials in (("bits", by_bits), ("errors", by_errors)):
        for name, judged in (
            (f"best of {EVALUATIONS} random programs, times {by}", [t.random_judged for t in own_trials]),
            (f"evolved, {EVALUATIONS} evaluations, times {by}", [t.judged for t in own_trials]),
        ):
            rows.append(_row(name, judged[0], judged, spent))
    head = [
        case.net, "with the loss", "given size", f"mean of {splits} splits", "given size", "CPU s"
    ]  # fmt: skip
    text = page.table(head, rows, (5,))
    count = len(plans)
    return text, _programs(f"{case.net}, {count} plans, bits", by_bits) + "\n\n" + _programs(
        f"{case.net}, {count} plans, errors", by_errors
    )


def _row(name: str, one: Judged, all: Sequence[Judged], seconds: float) -> list[str]:
    return [
        name,
        f"{one.rho:.2f} ({one.low:.2f} to {one.high:.2f})",
        ""
        if np.isnan(one.partial)
        else f"{one.partial:.2f} ({one.partial_low:.2f} to {one.partial_high:.2f})",
        f"{statistics.mean(j.rho for j in all):.2f}",
        "" if np.isnan(one.partial) else f"{statistics.mean(j.partial for j in all):.2f}",
        f"{seconds:.1f}",
    ]


def _programs(what: str, trials: Sequence[Trial]) -> str:
    lines = [
        f"- `{'' if t.found.sign > 0 else '-'}{t.found.program.words}`: {t.found.rho:.2f} on the plans that it was evolved on, "
        f"{t.judged.rho:.2f} on others; random search {t.random.rho:.2f} and {t.random_judged.rho:.2f}"
        for t in trials
    ]
    won = sum(t.judged.rho > t.random_judged.rho for t in trials)
    return (
        f"{what}: half of each split to evolve on. Evolution beat random search on held-out plans in {won} of "
        f"{len(trials)} splits:\n\n" + "\n".join(lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", type=int, default=80)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--nets", default="mlp,resnet20")
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    for net in given.nets.split(","):
        try:
            parts = run(NETS[net](0), given.plans, given.splits)
        except Absent as error:
            parts = (f"Not measured, {net}: {error}.",)
        head = f"{page.machine()} torch {torch.__version__}, {time.process_time() - began:.0f} CPU seconds."
        text = "\n\n".join([head, *parts])
        if given.out:
            page.put(given.out, f"proxies {net}", text)
        else:
            print(text, end="\n\n")
        began = time.process_time()


if __name__ == "__main__":
    main()

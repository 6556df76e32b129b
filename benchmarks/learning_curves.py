"""How well the far end of a learning curve is told from its cheap part: stack, single laws, last value.

``python -m benchmarks.learning_curves [--curves 50] [--out docs/learning-curves.md]``
``python -m benchmarks.learning_curves --choose [--curves 200]``: on the other half, what the defaults were chosen by
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import machine, put, table
from benchmarks.tables import LAWS, rows
from isoloss.comparing.recency import COLUMN, RECENCY
from isoloss.comparing.scores import crps
from isoloss.errors import NoAnswer

Array = np.ndarray[Any, np.dtype[Any]]

STEP = 4.0  # the fitted part ends at the largest size over this
LEAST = 9  # sizes in the fitted part: what a law of five parameters needs for one back-test
DRAWS, STARTS, FOLDS = 100, 8, 2  # less than a user would take: minutes instead of hours
SINGLE = {"M1": "power", "M2": "hestness", "M3": "m3", "M4": "m4", "broken law": "broken1"}
WEIGHTED = {"M2, rows weighted as in the stack": "hestness"}
STACK, LAST = "stack", "last value"
RESAMPLES = 4000
BIG = 50.0  # a log of the target beyond this is an overflow


@dataclass(frozen=True)
class Curve:
    """Sizes and losses to fit, and those to predict; ``family`` is what curves are resampled by."""

    name: str
    family: str
    x: Array
    y: Array
    far: Array
    truth: Array


@dataclass(frozen=True)
class Score:
    """Of one method on one curve: means over its held-back points, all in logs."""

    error: float
    inside: float
    crps: float


def lcdb(half: int) -> tuple[list[Curve], dict[str, int]]:
    """The usable curves of one half of the data sets of LCDB, and how many are not, by reason."""
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    with gzip.open(LAWS / "lcdb" / "learning_curves.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            points = found.setdefault((int(row["openmlid"]), row["learner"]), [])
            points.append((float(row["size_train"]), float(row["error_test"])))
    ids = sorted({key[0] for key in found})
    mixed = np.random.default_rng(0).permutation(ids)
    first = set(mixed[: len(ids) // 2].tolist())
    curves, left = [], {"an error of 0": 0, f"fewer than {LEAST} sizes to fit": 0}
    for (data, learner), points in found.items():
        if (data in first) != (half == 0):
            continue
        x, y = np.array(sorted(points)).T
        seen = x <= x[-1] / STEP * 1.0001
        if (y <= 0).any():
            left["an error of 0"] += 1
        elif seen.sum() < LEAST:
            left[f"fewer than {LEAST} sizes to fit"] += 1
        else:
            curves.append(Curve(f"{data} {learner}", str(data), x[seen], y[seen], x[-1:], y[-1:]))
    return curves, left


def others() -> list[Curve]:
    """Machine translation and addition, held back as their tables say."""
    out = []
    translation = rows("learning_curves_nmt/curves.csv")
    for model in dict.fromkeys(row["model"] for row in translation):
        mine = [row for row in translation if row["model"] == model]
        out.append(_split(f"translation, {model}", mine, "examples_seen", "loss_nats"))
    return [*out, _split("addition", rows("addition_break/curve.csv"), "examples", "test_loss_nats")]


def _split(name: str, mine: Sequence[Mapping[str, str]], size: str, loss: str) -> Curve:
    x, y = (np.array([float(row[key]) for row in mine]) for key in (size, loss))
    seen = np.array([row["is_train"] == "1" for row in mine])
    return Curve(name, name, x[seen], y[seen], x[~seen], y[~seen])


Forecast = Callable[[Curve], Array]


def last_value(curve: Curve) -> Array:
    """The last fitted loss, for sure: one draw at each point."""
    return np.full((1, len(curve.far)), curve.y[-1])


def one_law(name: str, weighted: bool, curve: Curve) -> Array:
    """Draws of one new run by a single law, by the objective of the stack."""
    columns = {"tokens": curve.x, "loss": curve.y}
    if weighted:
        columns[COLUMN] = (curve.x / curve.x[-1]) ** RECENCY
    fit = isoloss.fit(
        name, columns, objective=isoloss.StudentT(), weights=COLUMN if weighted else None, draws=DRAWS,
        starts=STARTS, sensitivity=False,
    )  # fmt: skip
    return fit.predict(of="run", tokens=curve.far).draws


def stacked(curve: Curve) -> Array:
    """Draws of one new run by what ``isoloss.auto`` gives on its own."""
    found = isoloss.auto(
        {"tokens": curve.x, "loss": curve.y}, folds=FOLDS, fold_draws=DRAWS, draws=DRAWS, starts=STARTS
    )
    return found.predict(of="run", tokens=curve.far).draws


METHODS: dict[str, Forecast] = {
    STACK: stacked,
    LAST: last_value,
    **{label: partial(one_law, name, False) for label, name in SINGLE.items()},
    **{label: partial(one_law, name, True) for label, name in WEIGHTED.items()},
}


def score(draws: Array, truth: Array) -> Score:
    """Mean absolute log error of the median, share inside the 90% interval, CRPS of the logs."""
    logs, goal = np.clip(np.log(np.maximum(draws, 1e-300)), -BIG, BIG), np.log(truth)
    low, middle, high = np.quantile(logs, [0.05, 0.5, 0.95], axis=0)
    inside = np.mean((low <= goal) & (goal <= high)) if len(draws) > 1 else np.nan
    return Score(float(np.mean(np.abs(middle - goal))), float(inside), float(np.mean(crps(logs, goal))))


def run_all(curves: Iterable[Curve], total: int) -> list[dict[str, Score | None]]:
    """Every method on every curve; None where it has no answer. Ctrl-C keeps the curves that are done."""
    out: list[dict[str, Score | None]] = []
    try:
        for k, curve in enumerate(curves):
            out.append(run_one(curve))
            print(f"{k + 1}/{total} {curve.name}, {time.process_time():.0f} s", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"stopped after {len(out)} of {total} curves", file=sys.stderr)
    return out


def run_one(curve: Curve) -> dict[str, Score | None]:
    """Every method on one curve."""
    line: dict[str, Score | None] = {}
    for label, forecast in METHODS.items():
        try:
            line[label] = score(forecast(curve), curve.truth)
        except (NoAnswer, ValueError) as error:
            print(f"{curve.name}: {label}: {error}", file=sys.stderr)
            line[label] = None
    return line


def by_family(values: Array, families: Sequence[str]) -> tuple[float, float]:
    """95% interval of a mean over curves: whole families drawn anew."""
    names, which = np.unique(families, return_inverse=True)
    sums, counts = np.bincount(which, values), np.bincount(which).astype(float)
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def lines_of(found: Sequence[Mapping[str, Score | None]], families: Sequence[str]) -> list[list[str]]:
    """A table line a method."""
    out = []
    for label in METHODS:
        pairs = [
            (mine, stack, family)
            for line, family in zip(found, families, strict=True)
            if (mine := line[label]) is not None and (stack := line[STACK]) is not None
        ]
        groups = [family for *_, family in pairs]
        error = np.array([mine.error for mine, *_ in pairs])
        gap = np.array([stack.error for _, stack, _ in pairs]) - error
        inside = float(np.mean([mine.inside for mine, *_ in pairs]))
        low, high = by_family(error, groups)
        less, more = by_family(gap, groups)
        verdict = "lower" if more < 0 else "higher" if less > 0 else "not resolved"
        out.append([
            label, str(len(pairs)), f"{error.mean():.3f} ({low:.3f} to {high:.3f})", f"{np.median(error):.3f}",
            "" if label == STACK else f"{gap.mean():+.3f} ({less:+.3f} to {more:+.3f}), {verdict}",
            "" if label == STACK else f"{np.mean(gap < 0):.0%}",
            "none" if np.isnan(inside) else f"{inside:.0%}",
            f"{np.mean([mine.crps for mine, *_ in pairs]):.3f}",
        ])  # fmt: skip
    return out


def choice(curves: Sequence[Curve]) -> str:
    """Mean absolute log error of single laws by recency, and of means of their logs: best parameters, no draws."""
    truth = np.log([curve.truth[0] for curve in curves])

    def error(logs: Any) -> str:
        return f"{np.mean(np.abs(np.clip(logs, -BIG, BIG) - truth)):.3f}"

    out = []
    for recency in (0.0, 0.25, 0.5, 1.0):
        logs = {label: np.array([_far(name, recency, c) for c in curves]) for label, name in SINGLE.items()}
        three = np.mean([logs["M2"], logs["M3"], logs["M4"]], axis=0)
        two = np.mean([logs["M2"], logs["M4"]], axis=0)
        out.append([f"{recency:g}", *(error(values) for values in logs.values()), error(three), error(two)])
        print(f"recency {recency:g}, {time.process_time():.0f} s", file=sys.stderr)
    last = error(np.log([curve.y[-1] for curve in curves]))
    head = ["recency", *SINGLE, "mean of the logs of M2, M3, M4", "of M2 and M4"]
    return f"{len(curves)} curves; last value {last}\n\n" + table(head, out, right=range(1, len(head)))


def _far(name: str, recency: float, curve: Curve) -> float:
    weights = (curve.x / curve.x[-1]) ** recency
    fit = isoloss.fit(
        name, {"tokens": curve.x, "loss": curve.y, COLUMN: weights}, objective=isoloss.StudentT(), weights=COLUMN,
        draws=0, starts=12, sensitivity=False,
    )  # fmt: skip
    return float(np.log(fit.law.evaluate(fit.theta, tokens=curve.far)[0]))


def main(argv: Sequence[str] | None = None) -> None:
    """Run it and write the block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=50, help="how many of LCDB's, drawn at random")
    parser.add_argument(
        "--choose", action="store_true", help="print the table of the choosing half, and stop"
    )
    parser.add_argument("--half", type=int, default=1, choices=(0, 1), help="0: where settings were chosen")
    parser.add_argument("--out", type=Path, help="page to put the block in; default: print it")
    args = parser.parse_args(argv)
    if args.choose:
        usable, _ = lcdb(0)
        print(choice([usable[k] for k in np.random.default_rng(11).permutation(len(usable))[: args.curves]]))
        return
    usable, left = lcdb(args.half)
    order = np.random.default_rng(3).permutation(len(usable))[: args.curves]
    curves = [usable[k] for k in order]
    extra = others()
    small = run_all(extra, len(extra))
    found = run_all(curves, len(curves))
    curves = curves[: len(found)]  # in random order, so that the first ones are a sample too
    families = [curve.family for curve in curves]
    failed = sum(line[STACK] is None for line in found)
    head = [
        "method", "curves", "mean absolute log error", "median", "stack less it", "stack nearer", "inside 90%", "CRPS",
    ]  # fmt: skip
    text = "\n".join([
        f"{len(curves)} of the {len(usable)} usable curves of LCDB's {'judging' if args.half else 'choosing'} half, "
        f"of {len(set(families))} data sets. Left out in that half: "
        + ", ".join(f"{count} with {why}" for why, count in left.items())
        + f"; without an answer of the stack: {failed}.",
        "",
        table(head, lines_of(found, families), right=range(1, 8)),
        "",
        "Mean absolute log error on the other curves, each held back as its table says (translation the last "
        "point, addition the last three):",
        "",
        table(
            ["method", *(curve.name for curve in extra)],
            [
                [label, *("no answer" if (s := line[label]) is None else f"{s.error:.3f}" for line in small)]
                for label in METHODS
            ],
            right=range(1, len(extra) + 1),
        ),
        "",
        f"{time.process_time() / 60:.0f} minutes of processor time. {machine()}",
    ])  # fmt: skip
    if args.out:
        put(args.out, "learning curves", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

"""Published tables: what the public default says of the dearest tenth, beside a plain Hoffmann fit.

``python -m benchmarks.real_tables [--choose] [--out docs/comparing.md]``

Half A of the tables chooses the settings, half B judges them: groups of tables that share training runs go to A
and B in turn, in the order of :func:`tables`. Of each table the dearest tenth of the runs is held out; the CRPS
and the error of a prediction are divided by the loss that came.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import machine, put, table
from benchmarks.tables import LAWS, needed, rows
from isoloss.comparing.aggregate import conformal
from isoloss.comparing.compare import compare, stacked
from isoloss.comparing.scores import coverage_band, crps
from isoloss.comparing.stack import LEAST, Stack
from isoloss.errors import NoAnswer
from isoloss.fitting.objective import Huber, Objective, StudentT
from isoloss.fitting.result import Fit

Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Array]

COVERAGE = 0.9
SAME_COST = 1e-6  # relative: the runs of one IsoFLOP budget, whose token counts are rounded, stay together
LEAST_HELD = 3
RESAMPLES = 10_000

OBJECTIVES: dict[str, Objective] = {"huber 1e-3": Huber(), "student-t": StudentT()}
PULLS = (0.0, 0.3, 1.0, 3.0)
Setting = tuple[str, float, bool]


@dataclass(frozen=True, eq=False)
class Table:
    """One published table.

    Attributes:
        source: the study. runs: tables of a study with the same entry share training runs. name: which part.
        plain: what one fits by following the literature: hoffmann, or on one axis its part, hestness.
        columns: axes and loss.
    """

    source: str
    runs: str
    name: str
    plain: str
    columns: Columns

    def parts(self) -> tuple[Columns, Columns]:
        """The rows to fit, and the dearest tenth, at least three; rows of one cost are never parted."""
        cost = self.columns["tokens"] * self.columns.get("params", 1.0)
        order = np.argsort(cost, kind="stable")
        groups = np.concatenate([[0], np.cumsum(np.diff(np.log(cost[order])) > SAME_COST)])
        wanted = max(LEAST_HELD, len(cost) / 10)
        last = next(g for g in range(groups[-1], -1, -1) if np.sum(groups >= g) >= wanted)
        held = np.isin(np.arange(len(cost)), order[groups >= last])
        return _rows(self.columns, ~held), _rows(self.columns, held)


AXES = {"params": "params", "tokens": "tokens"}
SWEEPS = (("llama", "2048"), ("llama", "8192"), ("llama", "16384"), ("mlstm", "8192"), ("mlstm", "16384"))
SETTING = ("dataset", "hparams", "warmup", "decay", "param_count", "val")
DIVERGED, LEAST_ERROR = 4.5, 0.01
GADRE_LOSSES = ("c4", "openlm", "paloma_dolma_100_programing_languages")
LEARNERS = (
    "SVC_rbf",
    "sklearn.ensemble.GradientBoostingClassifier",
    "sklearn.ensemble.RandomForestClassifier",
    "sklearn.linear_model.LogisticRegression",
    "sklearn.neighbors.KNeighborsClassifier",
    "sklearn.neural_network.MLPClassifier",
)


def tables() -> Iterator[Table]:
    """All tables."""
    loss = {**AXES, "loss": "loss_nats"}
    points = needed("chinchilla/points.csv", loss, {"outlier_excluded": "0"})
    yield Table("Chinchilla", "figure 4", "figure 4", "hoffmann", points)
    for corpus in ("c4_original", "rpj", "rw_original"):
        for what in GADRE_LOSSES:
            keep = {**AXES, "loss": f"loss_nats_{what}"}
            part = needed("gadre_overtraining/runs.csv", keep, {"train_dataset": corpus})
            yield Table("Gadre", corpus, f"{corpus}, {what.rpartition('_')[2]}", "hoffmann", part)
    for arch, context in SWEEPS:
        where = {"arch": arch, "seq_len": context, "completed": "1"}
        part = needed("xlstm_isoflops/runs.csv", {**AXES, "loss": "val_loss_nats"}, where)
        name = f"{arch}, context {context}"
        yield Table("xLSTM", name, name, "hoffmann", _rows(part, part["loss"] < DIVERGED))
    part = needed("misfitting/final.csv", {**loss, "lr": "lr_peak"})
    for rate in np.unique(part["lr"]):
        one, name = _rows(part, part["lr"] == rate), f"peak rate {rate:g}"
        yield Table("misfitting", name, name, "hoffmann", {column: one[column] for column in loss})
    for flag, name in (("1", "published fit"), ("0", "other runs")):
        keep = {**loss, "tokens_unique": "tokens_unique"}
        part = needed("data_constrained/runs.csv", keep, {"in_published_fit": flag})
        yield Table("data-constrained", name, name, "hoffmann", part)
    found = rows("porian_discrepancies/isoflop_points.csv")
    for setting in sorted({tuple(row[part] for part in SETTING) for row in found}):
        where = dict(zip(SETTING, setting, strict=True))
        part = needed("porian_discrepancies/isoflop_points.csv", {**loss, "flops": "flops"}, where)
        yield Table("Porian", ", ".join(setting[:4]), ", ".join(setting), "hoffmann", part)
    for model in ("6 Enc, 6 Dec", "6 Enc, 28 Dec", "Dec-only"):
        keep = {"tokens": "examples_seen", "loss": "loss_nats"}
        part = needed("learning_curves_nmt/curves.csv", keep, {"model": model})
        yield Table("NMT curves", model, model, "hestness", part)
    yield from _lcdb()


def _lcdb() -> Iterator[Table]:
    """One curve a learner: of the most sizes, then of the lowest set; no set twice, none flat or near zero."""
    curves: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with gzip.open(LAWS / "lcdb/learning_curves.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = (float(row["size_train"]), float(row["error_test"]))
            curves.setdefault((row["learner"], int(row["openmlid"])), []).append(point)
    used: set[int] = set()
    for learner in LEARNERS:
        fit = {
            number: sorted(points)
            for (name, number), points in curves.items()
            if name == learner and number not in used and _falls([error for _, error in points])
        }
        number = max(fit, key=lambda number: (len(fit[number]), -number))
        used.add(number)
        size, error = np.array(fit[number]).T
        name = f"{learner.rpartition('.')[2]}, set {number}"
        yield Table("LCDB curves", name, name, "hestness", {"tokens": size, "loss": error})


def _falls(error: list[float]) -> bool:
    return LEAST_ERROR < min(error) < 0.9 * max(error)


def _rows(columns: Mapping[str, Array], keep: Array) -> Columns:
    return {name: values[keep] for name, values in columns.items()}


def halves() -> list[tuple[Table, str]]:
    """Every table and its half."""
    found, groups = [], list[tuple[str, str]]()
    for one in tables():
        if (one.source, one.runs) not in groups:
            groups.append((one.source, one.runs))
        found.append((one, "AB"[groups.index((one.source, one.runs)) % 2]))
    return found


@dataclass(frozen=True)
class Score:
    """Of one prediction of the held-out runs: means relative to the loss, and how many lie inside."""

    error: float
    crps: float
    hits: int


@dataclass(frozen=True, eq=False)
class Line:
    """What was found on one table; a missing score has its reason in ``lost``."""

    table: Table
    half: str
    fitted: int
    held: int
    plain: Score | None
    ours: Score | None
    weights: str
    settings: Mapping[Setting, Score]
    lost: str


def score(draws: Array, y: Array) -> Score:
    """Draws (K, n) against what came."""
    low, middle, high = np.quantile(draws, [(1 - COVERAGE) / 2, 0.5, (1 + COVERAGE) / 2], axis=0)
    return Score(
        float(np.mean(np.abs(middle / y - 1))), float(np.mean(crps(draws, y) / y)), int(np.sum((low <= y) & (y <= high)))
    )  # fmt: skip


def plain(one: Table, seen: Columns, held: Columns) -> Score:
    """Huber 1e-3, percentile case bootstrap, and the residuals as the scatter of a run."""
    fit = isoloss.fit(one.plain, seen, uncertainty="bootstrap", sensitivity=False)
    at: dict[str, Any] = {axis: held[axis] for axis in fit.law.axes}
    return score(fit.predict(of="run", **at).draws, held["loss"])


def ours(stack: Stack, held: Columns) -> Score:
    """The stack's prediction of one new run."""
    at: dict[str, Any] = {axis: held[axis] for axis in AXES if axis in held}
    if "tokens_unique" in stack.axes:
        at["tokens_unique"] = held["tokens_unique"]
    return score(stack.predict(of="run", **at).draws, held["loss"])


def every_setting(seen: Columns, held: Columns) -> dict[Setting, Score]:
    """The stack by every setting, from one comparison for each objective; tables of several axes only."""
    runs = isoloss.read(seen).derive()
    out: dict[Setting, Score] = {}
    for name, objective in OBJECTIVES.items():
        found = compare("auto", runs, objective=objective)
        tests = [standing.backtest for standing in found.standings]
        fits: dict[str, Fit] = {}
        for pull in PULLS:
            share, shift, *_ = stacked(tests, COVERAGE, pull)
            kept = [(s.law, w) for s, w in zip(found.standings, share, strict=True) if w >= LEAST]
            for law, _ in kept:
                if law not in fits:
                    fits[law] = isoloss.fit(law, runs, objective=objective, sensitivity=False)
            if not kept:
                raise NoAnswer("no law answered in every fold", "more rows")
            total = sum(w for _, w in kept)
            members, shares = tuple(fits[law] for law, _ in kept), tuple(w / total for _, w in kept)
            for wide in (True, False):
                width = shift if wide else conformal([], [], [], COVERAGE)
                out[name, pull, wide] = ours(Stack(members, shares, replace(found, conformal=width)), held)
    return out


def measure(one: Table, half: str, choose: bool) -> Line:
    """Both on one table, the stack by ``isoloss.auto`` as it comes; to choose, on half A by every setting too."""
    seen, held = one.parts()
    lost, settings, weights = [], dict[Setting, Score](), ""
    literature = stack_score = None
    try:
        literature = plain(one, seen, held)
    except (NoAnswer, ValueError) as error:
        lost.append(f"plain: {error}")
    try:
        stack = isoloss.auto(seen)
        stack_score = ours(stack, held)
        if (
            choose and half == "A" and len(stack.leading.law.axes) > 1
        ):  # curves: see benchmarks.learning_curves
            settings = every_setting(seen, held)
        pairs = sorted(zip(stack.weights, stack.members, strict=True), key=lambda pair: -pair[0])
        weights = ", ".join(f"{w:.2f} {fit.law.slug}" for w, fit in pairs)
    except (NoAnswer, ValueError) as error:
        lost.append(f"stack: {error}")
    return Line(
        one, half, len(seen["loss"]), len(held["loss"]), literature, stack_score, weights, settings, "; ".join(lost)
    )  # fmt: skip


def interval(lines: Sequence[Line]) -> tuple[float, float]:
    """95% interval of the ratio of the totals: groups of tables that share runs drawn anew."""
    names = [(line.table.source, line.table.runs) for line in lines]
    which = np.array([names.index(name) for name in names])
    _, which = np.unique(which, return_inverse=True)
    pairs = np.array([(line.ours.crps, line.plain.crps) for line in lines if line.ours and line.plain])
    sums = np.stack([np.bincount(which, column) for column in pairs.T])
    drawn = np.random.default_rng(0).integers(0, sums.shape[1], (RESAMPLES, sums.shape[1]))
    low, high = np.quantile(sums[0][drawn].sum(axis=1) / sums[1][drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def total(name: str, lines: Sequence[Line]) -> list[str]:
    """A line of the summary."""
    both = [(line.plain, line.ours) for line in lines if line.plain and line.ours]
    n = sum(line.held for line in lines)
    sums = [sum(pair[k].crps for pair in both) for k in (0, 1)]
    low, high = interval(lines)
    out = [name, str(len(lines)), str(n), f"{100 * sums[0]:.2f}", f"{100 * sums[1]:.2f}"]
    out.append(f"**{sums[1] / sums[0]:.3f}** ({low:.3f} to {high:.3f})")
    out += [f"{100 * np.mean([pair[k].error for pair in both]):.2f}" for k in (0, 1)]
    for k in (0, 1):
        hits = sum(pair[k].hits for pair in both)
        a, b = coverage_band(hits, n)
        out.append(f"{hits} of {n}: {100 * hits / n:.1f}% ({100 * a:.1f} to {100 * b:.1f})")
    return out


def block(lines: Sequence[Line], seconds: float) -> str:
    """All of it in Markdown."""
    good = [line for line in lines if not line.lost]
    chosen = [line for line in good if line.settings]
    literature = sum(line.plain.crps for line in chosen if line.plain)
    grid = []
    for name, wide in product(OBJECTIVES, (True, False)):
        sums = [
            sum(line.settings[name, pull, wide].crps for line in chosen) / max(literature, 1e-300)
            for pull in PULLS
        ]
        grid.append([name, "yes" if wide else "no", *(f"{value:.3f}" for value in sums)])
    detail = [
        [
            line.half, line.table.source, line.table.name, str(line.fitted), str(line.held),
            *(f"{100 * s.error:.2f}" for s in (line.plain, line.ours)),
            *(f"{100 * s.crps:.3f}" for s in (line.plain, line.ours)), f"{line.ours.crps / line.plain.crps:.2f}",
            *(str(s.hits) for s in (line.plain, line.ours)), line.weights,
        ]
        for line in good if line.plain and line.ours
    ]  # fmt: skip
    apart = [
        f"- {line.half}, {line.table.source}, {line.table.name} ({line.fitted} rows): {line.lost}"
        for line in lines if line.lost
    ]  # fmt: skip
    pulls = [f"pull {pull:g}" for pull in PULLS]
    choice = [
        f"The choice, {len(chosen)} tables of half A with several axes: total CRPS over that of the plain fit.", "",
        table(["objective", "widened", *pulls], grid, range(2, 2 + len(PULLS))), "",
    ]  # fmt: skip
    return "\n".join([
        *(choice if chosen else ()),
        "Totals, of `isoloss.auto(runs)` as it comes (Student-t, pull 3, widened); CRPS and error in % of the loss, the CRPS summed over "
        "tables, its ratio with a 95% interval by resampling groups of tables that share runs; coverage of the 90% "
        "intervals with its exact binomial band, as if held-out runs were independent (those of a table share a fit "
        "and are not: the true band is wider).", "",
        table(
            ["half", "tables", "runs held out", "CRPS, plain", "stack", "ratio", "error, plain", "stack",
             "inside, plain", "inside, stack"],
            [total(f"{half}, {what}", [line for line in good if line.half == half])
             for half, what in (("A", "chose"), ("B", "judges"))], range(1, 10),
        ), "",
        "Every table; error and CRPS in % of the loss.", "",
        table(
            ["half", "study", "table", "rows", "held out", "error, plain", "stack", "CRPS, plain", "stack", "ratio",
             "inside, plain", "stack", "weights"],
            detail, range(3, 12),
        ), "",
        f"Without an answer, not counted above: {len(apart)}.", "", *apart, "",
        f"{seconds:.0f} seconds of CPU: {machine()}",
    ])  # fmt: skip


def main() -> None:
    """Measure every table and print or write the page's block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--choose", action="store_true", help="also every setting on half A: twice as long")
    asked = parser.parse_args()
    lines = []
    for one, half in halves():
        lines.append(measure(one, half, asked.choose))
        line = lines[-1]
        ratio = f"{line.ours.crps / line.plain.crps:.3f}" if line.ours and line.plain else line.lost
        said = f"{half} {one.source}, {one.name}: {ratio}; {line.weights}; {time.process_time():.0f} s"
        print(said, file=sys.stderr, flush=True)
    text = block(lines, time.process_time())
    if asked.out:
        put(asked.out, "real tables", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

"""Published tables: what the public default says of the dearest tenth, beside a plain Hoffmann fit."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.tables import LAWS, needed, rows

Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Array]

SAME_COST = 1e-6  # relative: the runs of one IsoFLOP budget, whose token counts are rounded, stay together
LEAST_HELD = 3


@dataclass(frozen=True, eq=False)
class Table:
    """One published table.

    Attributes:
        source: the study. runs: tables with the same entry share training runs. name: which part.
        plain: the law that one fits by following the literature: hoffmann, or on one axis ``hestness``.
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
        held = order[groups >= last]
        rest = np.setdiff1d(np.arange(len(cost)), held)
        return {k: v[rest] for k, v in self.columns.items()}, {k: v[held] for k, v in self.columns.items()}


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
    """Groups of tables that share runs go to half A and B in turn, through the whole list."""
    found, groups = [], list[tuple[str, str]]()
    for table in tables():
        if (table.source, table.runs) not in groups:
            groups.append((table.source, table.runs))
        found.append((table, "AB"[groups.index((table.source, table.runs)) % 2]))
    return found

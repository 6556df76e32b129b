"""Published tables: what the public default says of the dearest tenth, beside a plain Hoffmann fit."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.tables import LAWS, needed

Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Array]

SAME_COST = 1e-6  # relative: the runs of one IsoFLOP budget, whose token counts are rounded, stay together
LEAST_HELD = 3


@dataclass(frozen=True, eq=False)
class Table:
    """One published table.

    Attributes:
        source: the study. name: which part of it.
        plain: the law that one fits by following the literature: hoffmann, or on one axis ``hestness``.
        columns: axes and loss.
    """

    source: str
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
    """All tables, in the order of their halves: A, B, A, B within each source."""
    loss = {**AXES, "loss": "loss_nats"}
    yield Table(
        "Chinchilla", "figure 4", "hoffmann", needed("chinchilla/points.csv", loss, {"outlier_excluded": "0"})
    )
    for corpus in ("c4_original", "rpj", "rw_original"):
        for what in GADRE_LOSSES:
            keep = {**AXES, "loss": f"loss_nats_{what}"}
            part = needed("gadre_overtraining/runs.csv", keep, {"train_dataset": corpus})
            yield Table("Gadre", f"{corpus}, {what}", "hoffmann", part)
    for arch, context in (
        ("llama", "2048"),
        ("llama", "8192"),
        ("llama", "16384"),
        ("mlstm", "8192"),
        ("mlstm", "16384"),
    ):
        where = {"arch": arch, "seq_len": context, "completed": "1"}
        part = needed("xlstm_isoflops/runs.csv", {**AXES, "loss": "val_loss_nats"}, where)
        yield Table("xLSTM", f"{arch}, context {context}", "hoffmann", _rows(part, part["loss"] < 4.5))
    part = needed("misfitting/final.csv", {**loss, "lr": "lr_peak"})
    for rate in (0.0004, 0.001, 0.002, 0.004, 0.008):
        one = _rows(part, part["lr"] == rate)
        yield Table("misfitting", f"peak rate {rate:g}", "hoffmann", {k: one[k] for k in loss})
    for flag, what in (("1", "in the published fit"), ("0", "the others")):
        keep = {**AXES, "tokens_unique": "tokens_unique", "loss": "loss_nats"}
        part = needed("data_constrained/runs.csv", keep, {"in_published_fit": flag})
        yield Table("data-constrained", what, "hoffmann", part)
    yield from _porian()
    for model in ("6 Enc, 6 Dec", "6 Enc, 28 Dec", "Dec-only"):
        keep = {"tokens": "examples_seen", "loss": "loss_nats"}
        part = needed("learning_curves_nmt/curves.csv", keep, {"model": model})
        yield Table("learning curves (NMT)", model, "hestness", part)
    yield from _lcdb()


def _porian() -> Iterator[Table]:
    """The 15 settings."""
    import itertools

    names = ("dataset", "hparams", "warmup", "decay", "param_count", "val")
    with (LAWS / "porian_discrepancies/isoflop_points.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    key = lambda row: tuple(row[name] for name in names)  # noqa: E731
    for setting, part in itertools.groupby(sorted(rows, key=key), key):
        columns = {
            ours: np.array([float(row[theirs]) for row in part]) if False else None
            for ours, theirs in ()
        }
        part = list(part)
        columns = {
            ours: np.array([float(row[theirs]) for row in part])
            for ours, theirs in {**AXES, "flops": "flops", "loss": "loss_nats"}.items()
        }
        yield Table("Porian", ", ".join(setting), "hoffmann", columns)


def _lcdb() -> Iterator[Table]:
    """For each learner the curve with the most sizes, of those the one of the lowest data set id."""
    curves: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with gzip.open(LAWS / "lcdb/learning_curves.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["learner"] in LEARNERS:
                point = (float(row["size_train"]), float(row["error_test"]))
                curves.setdefault((row["learner"], int(row["openmlid"])), []).append(point)
    for learner in LEARNERS:
        best = max((k for k in curves if k[0] == learner), key=lambda k: (len(curves[k]), -k[1]))
        size, error = np.array(sorted(curves[best])).T
        short = learner.rpartition(".")[2]
        yield Table("learning curves (LCDB)", f"{short}, set {best[1]}", "hestness", {"tokens": size, "loss": error})


def _rows(columns: Mapping[str, Array], keep: Array) -> Columns:
    return {name: values[keep] for name, values in columns.items()}

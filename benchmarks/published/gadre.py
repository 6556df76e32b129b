"""Gadre et al. 2024: over-training and downstream error, three corpora."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import isoloss
from benchmarks import tables
from benchmarks.published.line import Line, Section, arxiv, line

PAPER = "2403.08540"
LINEAR = isoloss.LeastSquares(residual="linear")
FIVE = {(10_569_312, 1), (78_914_048, 1), (153_677_376, 1), (411_616_256, 1), (10_569_312, 16)}
LINK = FIVE | {(1_439_795_200, 1)}
MIDDLE = 153_677_376
PRINTED = {
    "c4_original": (
        "C4",
        {"E": "1.51", "a": "141", "b": "190", "eta": "0.121"},
        {"epsilon": "0.850", "k": "2.08", "gamma": "0.756"},
    ),
    "rpj": (
        "RedPajama",
        {"E": "1.84", "a": "212", "b": "367", "eta": "0.136"},
        {"epsilon": "0.857", "k": "2.21", "gamma": "0.715"},
    ),
    "rw_original": (
        "RefinedWeb",
        {"E": "1.73", "a": "157", "b": "246", "eta": "0.127"},
        {"epsilon": "0.865", "k": "2.21", "gamma": "0.707"},
    ),
}
FAR = {
    "1.4B at 640 tokens per parameter": ((1_439_795_200, 32), "0.7103", "3.6365"),
    "6.9B at 20 tokens per parameter": ((6_889_410_560, 1), "0.7320", "0.0464"),
}
Row = Mapping[str, str]


def section() -> Section:
    """All corpora: the loss law, the error law, and RedPajama's extrapolations."""
    runs = {
        corpus: {(int(row["params"]), float(row["chinchilla_multiplier"])): row for row in rows}
        for corpus in PRINTED
        for rows in [tables.rows("gadre_overtraining/runs.csv", {"train_dataset": corpus})]
    }
    error = errors(runs)
    lines = [entry for corpus in PRINTED for entry in corpus_lines(corpus, runs[corpus], error)]
    about = (
        f"{arxiv(PAPER)}. Laws `gadre` and `loss-to-error`, least squares on the loss and on the error as in "
        "the paper, from the five runs of the paper (the error law: six). Loss on C4; error is the mean over the "
        f"{len(subset(runs))} tasks that a 0.154B model beats chance on by 10 points."
    )
    return Section("Gadre et al. 2024", about, lines)


def corpus_lines(corpus: str, runs: Mapping[Any, Row], error: Mapping[str, float]) -> Iterator[Line]:
    """Constants of one corpus; of RedPajama the predictions too."""
    name, loss_law, error_law = PRINTED[corpus]
    law = isoloss.fit("gadre", frame(runs, FIVE), objective=LINEAR, draws=0, sensitivity=False)
    for parameter, value in loss_law.items():
        yield line(f"{name}: {parameter}", f"{PAPER}, coefficients", value, law.values[parameter])
    used = [row for key, row in runs.items() if key in LINK]
    pairs = {
        "loss": np.array([float(row["loss_nats_c4"]) for row in used]),
        "error": np.array([error[row["run"]] for row in used]),
    }
    link = isoloss.fit("loss-to-error", pairs, objective=LINEAR, draws=0, sensitivity=False)
    for parameter, value in error_law.items():
        yield line(f"{name}: {parameter} (error)", f"{PAPER}, coefficients", value, link.values[parameter])
    if name != "RedPajama":
        return
    for what, (key, of_loss, of_error) in FAR.items():
        row = runs[key]
        loss = float(law.law.evaluate(law.theta, params=float(row["params"]), tokens=float(row["tokens"])))
        wrong = float(link.law.evaluate(link.theta, loss=loss))
        off = 100 * abs(loss / float(row["loss_nats_c4"]) - 1)
        yield line(f"{name}: error of the predicted loss [%], {what}", f"{PAPER}, code", of_loss, off)
        off = 100 * abs(wrong / error[row["run"]] - 1)
        yield line(f"{name}: error of the predicted task error [%], {what}", f"{PAPER}, code", of_error, off)


def frame(runs: Mapping[Any, Row], keys: set[tuple[int, int]]) -> dict[str, np.ndarray[Any, Any]]:
    """Params, tokens and loss of some runs."""
    names = {"params": "params", "tokens": "tokens", "loss": "loss_nats_c4"}
    used = [row for key, row in runs.items() if key in keys]
    return {ours: np.array([float(row[theirs]) for row in used]) for ours, theirs in names.items()}


def scores() -> dict[str, dict[str, tuple[float, float]]]:
    """Run -> task -> (accuracy, chance)."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for row in tables.rows("gadre_overtraining/downstream.csv"):
        out.setdefault(row["run"], {})[row["task"]] = (
            float(row["accuracy"]),
            float(row["random_baseline"]),
        )
    return out


def subset(runs: Mapping[str, Mapping[Any, Row]]) -> list[str]:
    """The tasks of the paper's mean."""
    found = scores()
    middle = [row["run"] for group in runs.values() for (n, _), row in group.items() if n == MIDDLE]
    tasks = {task for run in middle for task, (got, chance) in found[run].items() if got - chance >= 0.1}
    return sorted(tasks)


def errors(runs: Mapping[str, Mapping[Any, Row]]) -> dict[str, float]:
    """Run -> mean error over the tasks of the subset."""
    tasks = subset(runs)
    return {
        run: 1 - float(np.mean([entry[task][0] for task in tasks]))
        for run, entry in scores().items()
        if set(tasks) <= set(entry)
    }

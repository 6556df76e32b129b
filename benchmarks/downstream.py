"""From loss to error on public runs, and two planted benchmarks whose truth is known.

``python -m benchmarks.downstream [--out docs/downstream.md]``

Gadre et al.: 104 runs on three corpora, 46 tasks. The law from loss to error is fitted to the runs below a billion
parameters and predicts those above: single tasks, and the mean over the 17 tasks on which a model of 0.154B
parameters beats chance by ten points on some corpus.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import put, table
from benchmarks.tables import rows
from isoloss.errors import NoAnswer
from isoloss.observing import fit_instances, linearity, predict_accuracy, score_choices
from isoloss.planning.movement import loss_that_moves

Array = np.ndarray[Any, np.dtype[Any]]

CORPORA = {"C4": "c4_original", "RedPajama": "rpj", "RefinedWeb": "rw_original"}
REFERENCE = 153_677_376  # parameters of the model that chooses the tasks
AHEAD = 0.10
SMALL = 1e9
LEAST_SQUARES = isoloss.LeastSquares(residual="linear")


def main(arguments: list[str] | None = None) -> None:
    """Print the tables; with ``--out`` put them on a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    texts = {"task-law": task_law(), "choices": choices()}
    try:
        texts = {"published-errors": published(), "tasks": tasks(), **texts}
    except FileNotFoundError as error:
        print(f"skipped the public runs: {error}", file=sys.stderr)
    for name, text in texts.items():
        print(f"{name}\n{text}\n")
        if options.out:
            put(options.out, name, text)


def load() -> tuple[list[dict[str, str]], dict[str, dict[str, float]], list[str]]:
    """Runs, error of each task by run, and the chosen tasks."""
    runs = rows("gadre_overtraining/runs.csv")
    error: dict[str, dict[str, float]] = defaultdict(dict)
    chance: dict[str, float] = {}
    for row in rows("gadre_overtraining/downstream.csv"):
        error[row["task"]][row["run"]] = 1 - float(row["accuracy"])
        chance[row["task"]] = float(row["random_baseline"])
    small = [run["run"] for run in runs if int(run["params"]) == REFERENCE]
    chosen = [t for t in error if 1 - min(error[t][run] for run in small) >= chance[t] + AHEAD]
    return runs, error, sorted(chosen)


def published() -> str:
    """RedPajama: the authors' five runs predict the losses and mean errors of the two largest."""
    runs, error, chosen = load()
    own = {
        (int(r["params"]), float(r["chinchilla_multiplier"])): r for r in runs if r["train_dataset"] == "rpj"
    }
    five = [(10_569_312, 1), (78_914_048, 1), (153_677_376, 1), (411_616_256, 1), (10_569_312, 16)]

    def columns(keys: list[tuple[int, float]]) -> dict[str, Array]:
        found = [own[key] for key in keys]
        means = [np.mean([error[task][r["run"]] for task in chosen]) for r in found]
        numbers = {name: np.array([float(r[name]) for r in found]) for name in ("params", "tokens")}
        return {
            **numbers,
            "loss": np.array([float(r["loss_nats_c4"]) for r in found]),
            "error": np.array(means),
        }

    def keep(table: dict[str, Array], *names: str) -> dict[str, Array]:
        return {name: table[name] for name in names}

    loss = isoloss.fit(
        "gadre", keep(columns(five), "params", "tokens", "loss"), objective=LEAST_SQUARES, draws=0
    )
    six = columns([*five, (1_439_795_200, 1)])
    link = isoloss.fit("loss-to-error", keep(six, "loss", "error"), objective=LEAST_SQUARES, draws=0)
    held = columns([(1_439_795_200, 32), (6_889_410_560, 1)])
    at = loss.law.evaluate(loss.theta, **keep(held, "params", "tokens"))
    mean = link.law.evaluate(link.theta, loss=at)
    body = [
        [
            name, f"{held['loss'][i]:.4f}", f"{100 * (at[i] / held['loss'][i] - 1):+.3f} %",
            f"{held['error'][i]:.4f}", f"{100 * (mean[i] / held['error'][i] - 1):+.2f} %", printed,
        ]
        for i, (name, printed) in enumerate(
            [("1.4B, 640 tokens per parameter", "0.71 %, 3.64 %"), ("6.9B, 20 tokens per parameter", "0.73 %, 0.05 %")]
        )
    ]  # fmt: skip
    head = ["run", "loss", "predicted", f"error, mean of {len(chosen)}", "predicted", "published sizes"]
    return table(head, body, right=(1, 2, 3, 4))


def tasks() -> str:
    """Single tasks against their mean: predicted from the measured losses of runs above a billion."""
    runs, error, chosen = load()
    body = []
    for corpus, code in CORPORA.items():
        own = [r for r in runs if r["train_dataset"] == code]
        loss = np.array([float(r["loss_nats_c4"]) for r in own])
        large = np.array([float(r["params"]) > SMALL for r in own])
        series = {task: np.array([error[task][r["run"]] for r in own]) for task in error}
        means = {"17 tasks": chosen, "46 tasks": list(error)}
        for name, group in means.items():
            mean = np.mean([series[task] for task in group], axis=0)
            body.append([corpus, f"mean of {name}", *summary([judged(loss, mean, large)])])
        single = [judged(loss, series[task], large) for task in chosen]
        body.append([corpus, "each of 17", *summary(single)])
    head = [
        "corpus", "what", "scatter of a run", "off, on average", "inside 90 %", "fall of the loss from 3.0 that is seen",
        "never seen",
    ]  # fmt: skip
    return table(head, body, right=(2, 3, 4, 5, 6))


def judged(loss: Array, error: Array, large: Array) -> dict[str, Any] | None:
    """Scatter, errors of prediction, hits, and the fall that is seen; None where nothing can be predicted."""
    columns = {"loss": loss[~large], "error": error[~large]}
    fit = isoloss.fit("loss-to-error", columns, objective=LEAST_SQUARES, draws=400)
    try:
        predicted = fit.predict(of="run", loss=loss[large])
    except NoAnswer:
        return None
    try:
        fall = 3.0 - loss_that_moves(fit, 3.0).after
    except NoAnswer:
        fall = math.inf
    off = np.abs(predicted.median - error[large])
    inside = (predicted.low <= error[large]) & (error[large] <= predicted.high)
    dof = len(columns["loss"]) - 3
    return {
        "scatter": math.sqrt(float(np.sum(fit.residuals**2)) / dof),
        "off": off,
        "inside": inside,
        "fall": fall,
    }


def summary(found: list[dict[str, Any] | None]) -> list[str]:
    known = [entry for entry in found if entry is not None]
    inside = np.concatenate([entry["inside"] for entry in known])
    falls = np.array([entry["fall"] for entry in known])
    middle = float(np.median(falls))
    return [
        f"{np.median([entry['scatter'] for entry in known]):.4f}",
        f"{np.mean(np.concatenate([entry['off'] for entry in known])):.4f}",
        f"{inside.sum()} of {len(inside)}",
        f"{middle:.2f}" if math.isfinite(middle) else "none",
        f"{int(np.isinf(falls).sum())} of {len(falls)}",
    ]


def task_law(tasks: int = 40, instances: int = 60, samples: int = 200) -> str:
    """Planted tasks: does the interval at four times the largest model hold the mean pass rate?"""
    sizes = np.geomspace(3e7, 2.4e9, 6)
    middle = float(np.exp(np.log(sizes).mean()))
    x, ahead = np.log(sizes / middle), math.log(1e10 / middle)
    body = []
    for bend, name in ((0.0, "the law"), (-0.03, "accelerated"), (0.03, "slowed")):
        inside, naive, off, verdicts = 0, [], [], []
        for seed in range(tasks):
            rng = np.random.default_rng(seed)
            a, alpha = rng.normal(1.2, 1.0, (instances, 1)), rng.normal(0.35, 0.08, (instances, 1))
            rates = np.exp(-np.exp(a - alpha * x + bend * x**2))
            truth = float(np.exp(-np.exp(a - alpha * ahead + bend * ahead**2)).mean())
            passes = rng.binomial(samples, rates)
            found = fit_instances(sizes, passes, samples, resamples=30, seed=seed).predict(1e10)
            inside += found.low <= truth <= found.high
            off.append(abs(found.value - truth))
            verdicts.append(linearity(sizes, passes, samples, resamples=30, seed=seed).verdict)
            line = np.polyfit(x, np.log(-np.log(passes.sum(axis=0) / samples / instances)), 1)
            naive.append(abs(float(np.exp(-np.exp(np.polyval(line, ahead)))) - truth))
        said = "no bend seen" if bend == 0 else name
        body.append(
            [name, f"{inside} of {tasks}", f"{np.mean(off):.4f}", f"{np.mean(naive):.4f}",
             f"{verdicts.count(said)} of {tasks}"]
        )  # fmt: skip
    head = ["planted", "inside 90 %", "off", "off, rates averaged first", "test says so"]
    return table(head, body, right=(1, 2, 3, 4))


def choices(worlds: int = 30, samples: int = 300) -> str:
    """Planted questions: accuracy at a hundred times the compute, simulated or read off its own line."""
    compute = np.geomspace(1e18, 1e21, 7)
    middle = np.log(compute).mean()
    x, ahead = np.log(compute) - middle, math.log(1e23) - middle
    ours, lines, inside = [], [], 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        start, slope = rng.normal(-5, 1, (samples, 4)), rng.normal(0.05, 0.08, (samples, 4))
        start[:, 0] -= 0.3
        slope[:, 0] += 0.15
        clean = start + slope * x[:, None, None]
        logs = np.minimum(clean + 0.1 * rng.standard_normal(clean.shape), 0.0)
        new = np.minimum(start + slope * ahead + 0.1 * rng.standard_normal(start.shape), 0.0)
        right = np.zeros(samples, dtype=int)
        truth = float(score_choices(new, right).accuracy.mean())
        found = predict_accuracy(logs, right, compute, 1e23, draws=400, seed=seed)
        inside += found.accuracy.low <= truth <= found.accuracy.high
        ours.append(abs(found.accuracy.value - truth))
        seen = score_choices(logs, right).accuracy.mean(axis=1)
        line = np.polyfit(x, np.log(seen / (1 - seen)), 1)
        lines.append(abs(1 / (1 + math.exp(-np.polyval(line, ahead))) - truth))
    body = [
        ["log p of every choice, accuracy simulated", f"{np.mean(ours):.4f}", f"{inside} of {worlds}"],
        ["a logistic line through accuracy", f"{np.mean(lines):.4f}", ""],
    ]
    return table(["forecast of accuracy", "off, on average", "inside 90 %"], body, right=(1, 2))


if __name__ == "__main__":
    main()

"""Laws of data on public tables: vocabulary, mixtures, filtering; beside what is printed.

``python -m benchmarks.data_laws [--out docs/data-laws.md]``: about a minute of CPU
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import put, table
from benchmarks.tables import LAWS, Columns, needed
from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.data_filtering import DataFiltering
from isoloss.laws.mixing import Mixing
from isoloss.laws.vocabulary import Vocabulary, tokens_per_character
from isoloss.planning.mixture import best_mixture
from isoloss.planning.vocabulary import best_vocabulary

Array = np.ndarray[Any, np.dtype[Any]]

LEAST_FLOPS = 2.18e17  # of the published fit
TIED = isoloss.Constraints(tie=(("beta", "alpha_1"),))
ASKED = {
    "params_nonembedding": 2.87e9,
    "flops": 1.1868e21,
}  # the authors' largest model at their compute for it
WIDTH = 3200  # of that model
DRAWS = 200

# The Pile's parts in the groups of the authors' notebook, and their weights (mixinglaws, valid_weight.json).
GROUPS = {
    "academic": {
        "ArXiv": 0.10185185, "PubMed_Abstracts": 0.02391975, "PhilPapers": 0.00501543, "NIH_ExPorter": 0.00192901,
        "FreeLaw": 0.05439815, "USPTO_Backgrounds": 0.02854938, "PubMed_Central": 0.125,
    },
    "prose": {"PG19": 0.01851852, "Books3": 0.12654321, "BookCorpus2": 0.00694444},
    "dialogue": {
        "Ubuntu_IRC": 0.00810185, "OpenSubtitles": 0.0158179, "EuroParl": 0.00810185, "Enron_Emails": 0.00115741,
        "HackerNews": 0.00733025, "YoutubeSubtitles": 0.00964506,
    },
    "symbolic": {"DM_Mathematics": 0.02160494, "Github": 0.09529321},
    "internet": {
        "Pile-CC": 0.15702160, "OpenWebText2": 0.09066358, "StackExchange": 0.05516975, "Wikipedia_en": 0.03742284,
    },
}  # fmt: skip
PRINTED = {"academic": 5.682876e-4, "prose": 1.2334295e-4, "dialogue": 5.513424e-4, "symbolic": 1.4281989e-4, "internet": 8.165961e-5}  # fmt: skip
"""Mean Huber loss of the authors' fits to all mixtures, as their notebook prints it."""
THEIRS = isoloss.Huber(residual="linear", delta=0.05, reduction="mean")

# Pools of T-MARS scores, tenths of the data, best first (scaling_laws_data_filtering, parameter_values.jsonl).
B, TAU = (-0.16, -0.125, -0.1, -0.085), (6.7272727, 8.5454545, 5.2727273, 2.2727273)
SCALE, FLOOR, POOL = 1e5 / 0.025, 0.1, 12.8e6
BUDGETS = (32e6, 64e6, 128e6, 640e6, 2e9)


def vocabulary() -> str:
    """Approach 3 with tokens as its code counts them, as the paper's formula does, and with characters."""
    names = (
        "vocab_size",
        "d_model",
        "characters",
        "params_nonvocab",
        "flops",
        "loss_unigram_normalized_nats",
    )
    raw = needed("vocabulary/runs.csv", {name: name for name in names})
    raw = {name: values[raw["flops"] >= LEAST_FLOPS] for name, values in raw.items()}
    v, characters = raw["vocab_size"], raw["characters"]
    logs = np.log(v / 1000)
    counts = {
        "characters x f(V/1000), as the code": characters
        * (0.00639222 * logs**2 - 0.15811069 * logs + 1.20470122),
        "characters x f(V), as the formula": characters * tokens_per_character(v),
        "characters": characters,
    }
    lines = []
    for words, tokens in counts.items():
        columns = {
            "params_nonembedding": raw["params_nonvocab"],
            "vocab_params": v * raw["d_model"],
            "tokens": tokens,
            "loss_unigram_normalized": raw["loss_unigram_normalized_nats"],
            "curve": raw["params_nonvocab"] + v,
        }
        published = {"characters x f(V/1000), as the code": "tao-2024", "characters x f(V), as the formula": "tao-2024-tokens"}.get(words)  # fmt: skip
        if published:
            lines.append(_printed(words, published, columns))
        fit = isoloss.fit(
            "vocabulary", columns, constraints=TIED, draws=DRAWS, uncertainty="bootstrap", cluster="curve",
            starts=32, sensitivity=False,
        )  # fmt: skip
        lines.append(_fitted(words, fit))
    head = [
        "tokens",
        "constants",
        "Huber objective",
        "R2",
        "E",
        "alpha_1 = beta",
        "alpha_2",
        "best vocabulary, K entries",
    ]
    return table(head, lines, right=range(2, len(head)))


def _printed(words: str, name: str, columns: Columns) -> list[str]:
    law = Vocabulary()
    theta = law.theta(name)
    y = columns["loss_unigram_normalized"]
    e = y - law.evaluate(theta, **{axis: columns[axis] for axis in law.axes})
    objective = float(np.sum(isoloss.Huber().rho(e)))
    r2 = 1 - e @ e / np.sum((y - y.mean()) ** 2)
    best = best_vocabulary(name, params_nonembedding=ASKED["params_nonembedding"], flops=ASKED["flops"])
    values = dict(zip(law.names, theta, strict=True))
    return [
        words, f"`{name}`", f"{objective:.6f}", f"{r2:.4f}", f"{values['E']:.3f}", f"{values['beta']:.4f}",
        f"{values['alpha_2']:.3f}", f"{best.vocab_params.value / WIDTH / 1e3:.1f}",
    ]  # fmt: skip


def _fitted(words: str, fit: Fit) -> list[str]:
    p = fit.parameters
    try:
        best = best_vocabulary(fit, params_nonembedding=ASKED["params_nonembedding"], flops=ASKED["flops"])
        value, low, high = (
            q / WIDTH / 1e3 for q in (best.vocab_params.value, best.vocab_params.low, best.vocab_params.high)
        )
        told = f"{value:.1f} ({low:.0f} to {high:.0f})"
    except NoAnswer:
        told = "not determined"
    return [
        words, f"fit, {fit.result}", f"{fit.value:.6f}", f"{fit.r2:.4f}", f"{p['E'].value:.3f}",
        f"{p['beta'].value:.4f} ({p['beta'].low:.3f} to {p['beta'].high:.3f})",
        f"{p['alpha_2'].value:.3f} ({p['alpha_2'].low:.2f} to {p['alpha_2'].high:.2f})",
        told,
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Shares (runs, domains) and the loss of each run by validation set."""

    law: Mixing
    shares: Array
    losses: dict[str, Array]

    def fit(self, name: str, rows: Array, objective: isoloss.Huber, draws: int, starts: int = 24) -> Fit:
        """The law on some of the runs."""
        x = {axis: self.shares[rows, j] for j, axis in enumerate(self.law.axes)}
        return isoloss.fit(
            self.law, {**x, "loss": self.losses[name][rows]}, objective=objective, draws=draws, starts=starts,
            sensitivity=False,
        )  # fmt: skip


def mixtures(experiment: str, size: str, step: str, names: Sequence[str]) -> Mixtures:
    """Runs of one size at one step; groups of the Pile are weighed together where the experiment has five domains.

    Raises:
        FileNotFoundError: the table is absent.
    """
    path = LAWS / "data_mixing" / "curves.csv.gz"
    if not path.is_file():
        raise FileNotFoundError(f"needed the public table {path.name} in {path.parent}, got nothing there")
    runs: dict[str, dict[str, float]] = {}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["experiment"], row["model_size"], row["step"]) == (experiment, size, step):
                runs.setdefault(row["run"], {})[row["validation_domain"]] = float(row["loss_nats"])
    shares = np.array([[float(part) for part in run.split("-")[1:]] for run in runs])
    groups = GROUPS if experiment == "5Mix" else {name: {name: 1.0} for name in next(iter(runs.values()))}
    losses = {
        group: np.array(
            [sum(w * run[p] for p, w in parts.items()) / sum(parts.values()) for run in runs.values()]
        )
        for group, parts in groups.items()
    }
    return Mixtures(Mixing(tuple(f"share_{name}" for name in names)), shares, losses)


def mixing() -> str:
    """Objectives beside the printed ones; every mixture predicted from the others."""
    lines = []
    for words, found in (
        ("five domains, 70M, 30,000 steps", mixtures("5Mix", "70M", "30000", tuple(GROUPS))),
        (
            "three domains, 410M, 60,000 steps",
            mixtures("3Mix", "410M", "60000", ("first", "second", "third")),
        ),
    ):
        n = len(found.shares)
        for name, y in found.losses.items():
            whole = found.fit(name, np.arange(n), THEIRS, 0)
            errors: dict[str, list[float]] = {"law": [], "line": [], "mean": []}
            for i in range(n):
                others = np.arange(n) != i
                fit = found.fit(name, others, THEIRS, 0, 12)
                at = {axis: found.shares[i, j] for j, axis in enumerate(found.law.axes)}
                line = np.linalg.lstsq(found.shares[others], y[others], rcond=None)[0]
                errors["law"].append(abs(float(fit.law.evaluate(fit.theta, **at)) - y[i]))
                errors["line"].append(abs(float(found.shares[i] @ line) - y[i]))
                errors["mean"].append(abs(float(y[others].mean()) - y[i]))
            printed = f"{PRINTED[name]:.6e}" if words.startswith("five") else ""
            means = [f"{np.mean(e):.4f}" for e in errors.values()]
            lines.append([words, name, str(n), printed, f"{whole.value:.6e}", *means])
    head = [
        "runs", "loss on", "mixtures", "objective, printed", "objective, isoloss", "error of the law",
        "error of a linear law", "error of the mean",
    ]  # fmt: skip
    return table(head, lines, right=range(2, len(head)))


def best() -> str:
    """The mixture of five domains that is best for the Pile, by the 70M runs."""
    found = mixtures("5Mix", "70M", "30000", tuple(GROUPS))
    rows = np.arange(len(found.shares))
    fits = {name: found.fit(name, rows, THEIRS, DRAWS) for name in GROUPS}
    weights = {name: sum(parts.values()) for name, parts in GROUPS.items()}
    seen = found.shares[int(np.argmin(sum(w * found.losses[g] for g, w in weights.items())))]
    told = best_mixture(fits, weights, against=dict(zip(GROUPS, seen, strict=True)))
    lines = [
        [name, f"{weights[name]:.3f}", f"{seen[j]:.3f}", f"{q.value:.3f}", f"{q.low:.3f} to {q.high:.3f}"]
        for j, (name, q) in enumerate(told.shares.items())
    ]
    head = ["domain", "weight in the loss", "best mixture that was run", "best mixture", "90% interval"]
    assert told.gain is not None
    words = (
        f"Weighted loss {told.loss.value:.3f} ({told.loss.low:.3f} to {told.loss.high:.3f}); "
        f"{told.gain.value:.3f} ({told.gain.low:.3f} to {told.gain.high:.3f}) less than the law says of the best "
        "mixture that was run."
    )
    return f"{table(head, lines, right=range(1, 5))}\n\n{words}"


def filtering() -> str:
    """How many tenths of the data are best, by the formula and by the authors' code, with their constants."""
    names = tuple(f"pool_{j}" for j in range(4))
    law = DataFiltering(names)
    theta = [SCALE, FLOOR, *(value for pair in zip(B, TAU, strict=True) for value in pair)]
    lines = []
    for samples in BUDGETS:
        by_formula, by_code = [], []
        for count in range(1, 5):
            sizes = {name: POOL * (j < count) for j, name in enumerate(names)}
            error = float(law.evaluate(theta, samples=samples, **sizes))
            first = float(law.evaluate(theta, samples=min(samples, count * POOL), **sizes))
            by_formula.append(error)
            # The code adds d before it multiplies by the later epochs.
            by_code.append(first * (error - FLOOR) / (first - FLOOR))
        lines.append(
            [
                f"{samples / 1e6:,.0f}M",
                *(f"{e:.4f}" for e in by_formula),
                f"{10 * (1 + int(np.argmin(by_formula)))} %",
                f"{10 * (1 + int(np.argmin(by_code)))} %",
            ]
        )
    head = ["samples seen", "best 10 %", "20 %", "30 %", "40 %", "best by the formula", "best by the code"]
    return table(head, lines, right=range(7))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or put them on a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="page to put the tables on")
    parser.add_argument("--only", help="one of the tables")
    args = parser.parse_args(argv)
    for name, make in (
        ("vocabulary", vocabulary),
        ("mixing", mixing),
        ("best mixture", best),
        ("filtering", filtering),
    ):
        if args.only not in (None, name):
            continue
        try:
            text = make()
        except FileNotFoundError as error:
            print(f"{name}: left out: {error}")
            continue
        print(f"{name}\n\n{text}\n")
        if args.out:
            put(args.out, name, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Laws of experts and of parallel streams on public runs, beside what is printed.

``python -m benchmarks.experts [--out docs/experts.md]``: about 10 seconds of CPU
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import put, table
from benchmarks.tables import LAWS, Columns, rows
from isoloss.fitting.derived import cutoff
from isoloss.fitting.result import Fit
from isoloss.laws.clark import Clark
from isoloss.observing import Measured

Array = np.ndarray[Any, np.dtype[Any]]

RUNS = "routed_moe/curves.csv"
ROUTERS = {"S-Base": 937e9, "RL-R": 85e9, "Hash": 83e9}
"""The routers of the table, and the N_cutoff that the paper prints."""
DRAWS = 1000
FLOORED = "henighan(params_active) * routed"
LARGEST = 1e9  # dense size of the runs that are held back

STREAMS = np.repeat([1.0, 2.0, 4.0, 8.0], 6)
SIZES = np.array([
    535813376, 693753856, 1088376320, 1571472384, 2774773760, 4353203200,
    538195842, 696738818, 1092762882, 1577522690, 2784937986, 4368529922,
    540577412, 699722756, 1097148164, 1583571460, 2795100164, 4383854084,
    545340552, 705690632, 1105918728, 1595669000, 2815424520, 4414502408,
], dtype=float)  # fmt: skip
"""Parameters without embeddings of Chen et al.'s 24 runs, those of the streams included (arXiv:2505.10475 and its code)."""
LOSSES = {
    "Stack-V2 Python": np.array([
        1.1722, 1.1496, 1.1131, 1.0817, 1.0451, 1.0213, 1.1507, 1.1262, 1.0940, 1.0623, 1.0244, 1.0025,
        1.1354, 1.1124, 1.0808, 1.0490, 1.0126, 0.9906, 1.1231, 1.0997, 1.0688, 1.0383, 1.0016, 0.9794,
    ]),
    "the Pile": np.array([
        2.1113, 2.0671, 2.0027, 1.9539, 1.8876, 1.8451, 2.0772, 2.0363, 1.9730, 1.9266, 1.8610, 1.8137,
        2.0544, 2.0128, 1.9509, 1.9040, 1.8394, 1.7938, 2.0364, 1.9933, 1.9318, 1.8856, 1.8218, 1.7772,
    ]),
}  # fmt: skip
"""Their final losses."""


def routed(router: str) -> Columns:
    """The router's runs and the dense ones at their last step: every second layer, one expert a token, seed 42.

    Raises:
        FileNotFoundError: the table is absent.
    """
    last: dict[str, dict[str, str]] = {}
    for row in rows(RUNS, {"routing_frequency": "0.5", "top_k": "1", "seed": "42"}):
        known = last.get(row["hyper_id"])
        if known is None or float(row["step"]) > float(known["step"]):
            last[row["hyper_id"]] = row
    kept = [row for row in last.values() if row["router_type"] in (router, "Dense")]
    names = {"params_active": "params_active", "experts": "experts", "loss": "loss_nats_validation"}
    return {ours: np.array([float(row[theirs]) for row in kept]) for ours, theirs in names.items()}


def streams(corpus: str) -> Columns:
    """The 24 runs on a corpus."""
    return {"params_nonembedding": SIZES, "streams": STREAMS, "loss": LOSSES[corpus]}


def part(columns: Columns, keep: Array) -> Columns:
    """Some of the rows."""
    return {name: values[keep] for name, values in columns.items()}


def clark_lines(router: str, found: Fit) -> list[list[str]]:
    """Parameters beside the printed ones."""
    printed = Clark.published[f"{router.lower()}-2022"].values
    out = [
        [router, f"`{name}`", f"{printed[name]:g}", f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}"]
        for name, e in found.parameters.items()
    ]
    edge = cutoff(found)
    return [*out, [router, "N_cutoff", f"{ROUTERS[router]:.3g}", f"{edge.value:.3g}", _ends(edge)]]


def _ends(edge: Measured) -> str:
    return f"{edge.low:.3g} to " + (f"{edge.high:.3g}" if np.isfinite(edge.high) else "no end")


def floor_lines(router: str, clark: Fit) -> list[list[str]]:
    """The law as printed, and the same factor on a base with a floor: scatter, cutoff, the largest runs held back."""
    runs = routed(router)
    big = runs["params_active"] > LARGEST
    out = []
    for spec in ("clark", FLOORED):
        found = clark if spec == "clark" else least_squares(spec, runs)
        edge, scatter = cutoff(found), float(np.sqrt(np.mean(found.residuals**2)))
        error, inside = held_back(least_squares(spec, part(runs, ~big)), part(runs, big))
        out.append([router, f"`{spec}`", f"{scatter:.2%}", f"{edge.value:.3g}", _ends(edge), error, inside])
    return out


def least_squares(spec: str, runs: Columns) -> Fit:
    """The paper's objective."""
    return isoloss.fit(spec, runs, objective=isoloss.LeastSquares(), draws=DRAWS, sensitivity=False)


def held_back(fit: Fit, held: Columns) -> tuple[str, str]:
    """Mean error of the predicted medians, and how many runs lie in their 90 % intervals."""
    told = fit.predict(of="run", **{axis: held[axis] for axis in fit.law.axes})
    gap = np.log(told.median / held["loss"])
    inside = int(np.sum((told.low <= held["loss"]) & (held["loss"] <= told.high)))
    return f"{np.mean(np.abs(gap)):.2%} ({np.mean(gap):+.2%})", f"{inside} of {len(gap)}"


def stream_lines(corpus: str, printed: float) -> list[list[str]]:
    """Both forms of the streams on a corpus; and P = 8 predicted from fewer."""
    out = []
    runs = streams(corpus)
    for spec in ("henighan * parscale", "henighan * parscale-theory"):
        found = isoloss.fit(spec, runs, draws=DRAWS, sensitivity=False)
        few = isoloss.fit(spec, part(runs, STREAMS < 8), draws=DRAWS, sensitivity=False)
        values = ", ".join(
            f"{name} {e.value:.4g} ({e.low:.3g} to {e.high:.3g})" for name, e in found.parameters.items()
        )
        worst = float(np.max(np.abs(np.expm1(found.residuals))))
        scatter = float(np.sqrt(np.mean(found.residuals**2)))
        known = f"k {printed:g}" if spec.endswith("parscale") else ""
        error, inside = held_back(few, part(runs, STREAMS == 8))
        out.append([corpus, f"`{spec}`", known, values, f"{scatter:.2%}, {worst:.2%}", error, inside])
    return out


def block() -> str:
    """The tables.

    Raises:
        FileNotFoundError: the table of routed runs is absent.
    """
    fits = {router: least_squares("clark", routed(router)) for router in ROUTERS}
    held = ["mean error (bias)", "in 90 % intervals"]
    head = ["router", "", "printed", "isoloss", "90 % interval"]
    text = [table(head, [line for pair in fits.items() for line in clark_lines(*pair)], right=(2, 3)), ""]
    text += ["With a floor, and the 1.3B runs predicted from the smaller ones:", ""]
    head = ["router", "law", "scatter", "N_cutoff", "90 % interval", *held]
    text += [table(head, [line for pair in fits.items() for line in floor_lines(*pair)], right=(2, 3)), ""]
    text += ["Parallel streams, and the runs with 8 streams predicted from those with 4 or fewer:", ""]
    head = ["corpus", "law", "printed", "isoloss (90 % interval)", "scatter, largest error", *held]
    lines = [line for pair in zip(LOSSES, (0.39, 0.33), strict=True) for line in stream_lines(*pair)]
    return "\n".join([*text, table(head, lines)])


def main(argv: Sequence[str] | None = None) -> None:
    """Run it and write the block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="page to put the block in; default: print it")
    args = parser.parse_args(argv)
    if not (LAWS / RUNS).is_file():
        print(f"skipped: the public table {RUNS} is not in {LAWS}")
        return
    text = block()
    if args.out:
        put(args.out, "experts", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

"""Critical batches from published steps to a target, beside the numbers their authors printed.

``python -m benchmarks.batch [--out docs/batch.md]``

The table of Zhang et al. 2025 (arXiv:2410.21676): steps to one loss per model at nine batch sizes. Their notebook
takes 20 % overhead over linear scaling from 256 sequences; the definition without a reference is beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import put, table
from benchmarks.tables import needed
from isoloss.observing import critical_batch_size

STEPS = "critical_batch_size/steps_to_target.csv"
PRINTED = {"85M": 745.3, "151M": 955.2, "302M": 1393.7, "604M": 1888.5, "1.2B": 2533.4}
PRINTED_LINE = (93.197, 0.46828)
REFERENCE = 256.0


def steps_of(model: str) -> tuple[float, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Parameters, batches in sequences and steps of one model."""
    names = {"params": "params", "batch": "batch_sequences", "steps": "steps_to_target"}
    found = needed(STEPS, names, {"model": model})
    return float(found["params"][0]), found["batch"], found["steps"]


def tables() -> str:
    """Both tables in Markdown."""
    lines, sizes, critical, plain = [], [], [], []
    for model, printed in PRINTED.items():
        params, batch, steps = steps_of(model)
        ours = critical_batch_size(batch, steps, reference=REFERENCE).critical
        bare = critical_batch_size(batch, steps).critical
        free = isoloss.fit(
            "critical-batch-free(batch_sequences)", {"batch_sequences": batch, "steps": steps},
            draws=1000, sensitivity=False,
        ).parameters["alpha"]  # fmt: skip
        sizes.append(params)
        critical.append(ours.value)
        plain.append(bare.value)
        lines.append(
            [
                model, f"{printed:.1f}", f"{ours.value:.1f}", f"{ours.low:.0f} to {ours.high:.0f}",
                f"{bare.value:.1f}", f"{bare.low:.0f} to {bare.high:.0f}",
                f"{free.value:.3f} ({free.low:.3f} to {free.high:.3f})",
            ]
        )  # fmt: skip
    head = ["model", "printed", "isoloss", "90 % interval", "no reference", "90 % interval", "free exponent"]
    parts = [table(head, lines, right=(1, 2, 4)), "", "Their line through the five, N in millions:", ""]
    rows = [["printed", f"{PRINTED_LINE[0]:.3f}", f"{PRINTED_LINE[1]:.5f}", ""]]
    for name, values in (("isoloss", critical), ("isoloss, no reference", plain)):
        fit = isoloss.fit(
            "critical-batch-growth", {"params": sizes, "critical_batch": values},
            draws=1000, sensitivity=False,
        )  # fmt: skip
        c = fit.parameters["c"]
        rows.append(
            [name, f"{fit.values['b'] * 1e6**c.value:.3f}", f"{c.value:.5f}", f"{c.low:.3f} to {c.high:.3f}"]
        )
    return "\n".join([*parts, table(["", "size at 1M", "exponent", "90 % interval"], rows, right=(1, 2))])


def main() -> None:
    """Print the tables, or put them into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the page that takes them; printed otherwise")
    arguments = parser.parse_args()
    text = tables()
    if arguments.out:
        put(arguments.out, "batch", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

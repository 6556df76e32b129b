"""Three training curves predict six others: mean errors, pairs put in order, intervals, and the time it takes.

``python -m benchmarks.schedules [--out docs/schedules.md] [--picture docs/images/schedules.png] [--peer]``
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import machine, put, table
from benchmarks.tables import LAWS
from isoloss.fitting.curves import Curve, curves_of
from isoloss.fitting.schedules import fit_schedules
from isoloss.laws.schedules import SCHEDULE_LAWS, get
from isoloss.laws.schedules.schedule import Schedule
from isoloss.planning.schedules import best_schedule, choose, family, stable_share

Array = np.ndarray[Any, np.dtype[Any]]

FITTED = ("constant_24000", "cosine_24000", "wsdcon_9")
SIZES = ("25m", "100m")
PEAK, WARMUP = 3e-4, 2160
APART = 0.01  # nats: pairs whose ends differ by less are not judged


def curves(size: str) -> dict[str, Curve]:
    """The nine curves of a size by name."""
    path = LAWS / "lr_schedules" / f"curves_{size}.csv"
    found, _ = curves_of(isoloss.read(path, columns="curve=schedule,loss=loss_nats"), warmup=WARMUP)
    return {curve.name: curve for curve in found}


def score(predict: Mapping[str, Array], measured: Mapping[str, Curve]) -> list[str]:
    """Mean absolute error over the curves not fitted, worst curve, relative error of the ends, pairs in order."""
    unseen = [name for name in measured if name not in FITTED]
    errors = [float(np.mean(np.abs(predict[n] - measured[n].loss))) for n in unseen]
    ends = [abs(float(np.log(predict[n][-1] / measured[n].loss[-1]))) for n in unseen]
    cells = [
        f"{np.mean(errors):.5f}",
        f"{max(errors):.4f}",
        f"{100 * np.sqrt(np.mean(np.square(ends))):.2f} %",
    ]
    for names in (unseen, list(measured)):
        right = [
            (predict[a][-1] < predict[b][-1]) == (measured[a].loss[-1] < measured[b].loss[-1])
            for a, b in itertools.combinations(names, 2)
            if abs(measured[a].loss[-1] - measured[b].loss[-1]) > APART
        ]
        cells.append(f"{sum(right)} of {len(right)}")
    return cells


def along(law: str, theta: Array, measured: Mapping[str, Curve]) -> dict[str, Array]:
    """The law's losses at the measured steps."""
    return {name: get(law).value(theta, c.schedule, c.steps) for name, c in measured.items()}


def measured_rows(sizes: Sequence[str]) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Rows of errors, of intervals and of choices."""
    errors, held, chosen = [], [], []
    for size, law in itertools.product(sizes, SCHEDULE_LAWS):
        every = curves(size)
        begun = time.process_time()
        found = fit_schedules(law, [every[name] for name in FITTED])
        seconds = time.process_time() - begun
        begun = time.process_time()
        fit_schedules(law, [every[name] for name in FITTED], draws=0)
        alone = time.process_time() - begun
        errors.append(
            [size, law, *score(along(law, found.theta, every), every), f"{alone:.1f}", f"{seconds:.1f}"]
        )
        held.append([size, law, *intervals(found, every)])
        chosen.append([size, law, *choices(found)])
        if law == "lr-annealing":
            held_fit = fit_schedules(law, [every[name] for name in FITTED], draws=0, fix={"memory": 1000})
            cells = score(along(law, held_fit.theta, every), every)
            errors.append([size, f"{law}, lambda held at 0.999", *cells, "", ""])
        if law == "multi-power":
            half = fit_schedules(
                law, [every[name] for name in FITTED], draws=0, fix={"beta": 0.5, "gamma": 0.5}
            )
            cells = score(along(law, half.theta, every), every)
            errors.append([size, f"{law}, beta and gamma held at 0.5", *cells, "", ""])
            theta = get(law).theta(f"luo-2025-{size}")
            errors.append(
                [size, f"{law}, published constants", *score(along(law, theta, every), every), "", ""]
            )
    return errors, held, chosen


def intervals(found: Any, every: Mapping[str, Curve]) -> list[str]:
    """Shares of rows, and counts of ends, of the unseen curves within their 90 % intervals."""
    cells = []
    unseen = [c for c in every.values() if c.name not in FITTED]
    for of in ("mean", "run"):
        seen = [found.predict(c.schedule, c.steps, of=of) for c in unseen]
        inside = [(p.low <= c.loss) & (c.loss <= p.high) for p, c in zip(seen, unseen, strict=True)]
        width = np.median([p.high[-1] - p.low[-1] for p in seen])
        cells += [
            f"{np.mean([i.mean() for i in inside]):.2f}",
            f"{sum(bool(i[-1]) for i in inside)} of {len(unseen)}",
        ]
        cells.append(f"{width:.3f}")
    return cells


def choices(found: Any) -> list[str]:
    """The lowest of the named schedules, how far behind cosine is, and the schedule sought freely."""
    shape: dict[str, Any] = {"steps": 24000, "peak": PEAK, "end": PEAK / 10, "warmup": WARMUP}
    made = choose(found, family(**shape))
    cosine = next(c for c in made.candidates if c.name == "cosine")
    tied = sum(c.tied for c in made.candidates) - 1
    behind = f"{cosine.behind:.3f} ({cosine.behind_low:.3f} to {cosine.behind_high:.3f})"
    cells = [made.candidates[0].name, str(tied), behind]
    if found.law.gains_at_rest:
        return [*cells, "refused", ""]
    free = best_schedule(found, **shape)
    less = cosine.loss - float(found.law.value(found.theta, free)[0])
    return [*cells, f"{less:.3f}", f"{stable_share(free):.0%}"]


def peer_row(size: str) -> list[str]:
    """The published procedure on the same three curves, and its CPU time over ours in this run."""
    from benchmarks.peers import multi_power_torch

    every = curves(size)
    named = {
        "constant_24000": Schedule.constant(steps=24000, peak=PEAK, warmup=WARMUP),
        "cosine_24000": Schedule.cosine(steps=24000, peak=PEAK, end=PEAK / 10, warmup=WARMUP),
        "wsdcon_9": Schedule.two_stage(steps=16000, peak=PEAK, end=9e-5, at=8000, warmup=WARMUP),
    }
    begun = time.process_time()
    fit_schedules("multi-power", [every[name] for name in FITTED], draws=0)
    ours = time.process_time() - begun
    begun = time.process_time()
    data = [(named[n].rates.copy(), every[n].steps.astype(int), every[n].loss) for n in FITTED]
    theta = multi_power_torch.fit(data, PEAK)
    theirs = time.process_time() - begun
    cells = score(along("multi-power", theta, every), every)
    return [size, *cells, f"{ours:.1f}", f"{theirs:.0f}", f"{theirs / ours:.0f}"]


def draw(path: Path) -> None:
    """The six unseen curves of the larger model, measured and predicted from the three others."""
    from isoloss.report.canvas import new_axes
    from isoloss.report.schedules import draw_schedules

    every = curves(SIZES[-1])
    found = fit_schedules("multi-power", [every[name] for name in FITTED])
    axes = new_axes()
    draw_schedules(axes, found, [curve for name, curve in every.items() if name not in FITTED])
    axes.get_figure(root=True).savefig(path)  # type: ignore[union-attr]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or put them on a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="page to put the tables on")
    parser.add_argument("--picture", type=Path, help="file for the picture of the 100M curves")
    parser.add_argument("--peer", action="store_true", help="also the published procedure, in torch: minutes")
    options = parser.parse_args(arguments)
    if not (LAWS / "lr_schedules").is_dir():
        print("skipped: the published curves are not beside this checkout", file=sys.stderr)
        return 0
    errors, held, chosen = measured_rows(SIZES)
    head = ["size", "law", "mean error", "worst curve", "ends, RMS", "pairs, unseen", "pairs, all nine"]
    parts = {
        "errors": table([*head, "fit, s", "with 200 draws, s"], errors, right=range(2, 9)),
        "held": table(
            ["size", "law", "rows in", "ends in", "width", "rows in (run)", "ends in (run)", "width (run)"],
            held,
            right=range(2, 8),
        ),
        "chosen": table(
            [
                "size",
                "law",
                "lowest",
                "tied with it",
                "cosine behind",
                "sought freely: below cosine",
                "stable",
            ],
            chosen,
            right=(3, 5, 6),
        ),
    }
    if options.peer:
        rows = [peer_row(size) for size in SIZES]
        names = ["size", *head[2:], "ours, s", "published procedure, s", "ratio"]
        parts["peer"] = table(names, rows, right=range(1, 9)) + f"\n\nCPU seconds on {machine()}"
    if options.picture:
        draw(options.picture)
    for name, text in parts.items():
        print(f"{text}\n")
        if options.out:
            put(options.out, f"schedules {name}", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

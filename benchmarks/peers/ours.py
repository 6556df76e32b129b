"""isoloss on the same points, on a long table, and with its other laws."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks.peers.report import DRAWS, Task, task, timed
from isoloss import Runs, fit, read


def repeated(work: Callable[[], Any], times: int) -> tuple[Any, float]:
    """The median of some runs, the cold first one among them: these are short enough to jitter."""
    taken = [timed(work) for _ in range(times)]
    return taken[0][0], statistics.median(seconds for _, seconds in taken)


def chinchilla(job: Task) -> dict[str, Any]:
    """Fit and bootstrap of the 240 points, with sampled resamples for the judge."""
    runs = read({"params": job.params, "tokens": job.tokens, "loss": job.loss})
    found, fit_s = repeated(lambda: fit("hoffmann", runs, draws=0), 9)
    full, all_s = repeated(lambda: fit("hoffmann", runs, draws=DRAWS), 5)
    return {
        "what": "64 starts",
        "cpu_s": fit_s,
        "theta": found.theta.tolist(),
        "value": found.value,
        "starts": found.starts,
        "measured": found.starts,
        "agree": found.agreeing_starts,
        "boot_s": all_s - fit_s,
        "boot_measured": DRAWS,
        "stderr": np.std(full.draws, axis=0, ddof=1).tolist(),
        "sample": _resamples(runs),
    }


def _resamples(runs: Runs) -> dict[str, Any]:
    """100 sampled replicates of the run above, with the row weights they were drawn with.

    The bootstrap keeps parameters, not resamples; watching the solver it calls gives both.
    """
    uncertainty: Any = importlib.import_module("isoloss.fitting.uncertainty")
    seen: list[np.ndarray[Any, np.dtype[Any]]] = []
    inner = uncertainty.minimise

    def watch(problem: Any, psi: Any, w: Any, **rest: Any) -> Any:
        seen.append(np.array(w))
        return inner(problem, psi, w, **rest)

    uncertainty.minimise = watch
    try:
        found = fit("hoffmann", runs, draws=DRAWS)
    finally:
        uncertainty.minimise = inner
    weights = np.concatenate([w for i, w in enumerate(seen) if i == 0 or w is not seen[i - 1]])
    if len(weights) != DRAWS:  # several minima refit the same resamples
        weights = _distinct(seen)
    at = np.random.default_rng(1).choice(DRAWS, size=100, replace=False)
    order = np.argsort(found.rows)  # fits sort their rows: back to the order of the points
    return {"counts": weights[at][:, order].tolist(), "theta": found.draws[at].tolist()}


def _distinct(seen: list[Any]) -> Any:
    kept = [seen[0]]
    for w in seen[1:]:
        if not np.array_equal(w, kept[-1]):
            kept.append(w)
    return np.concatenate(kept)


def others() -> list[dict[str, Any]]:
    """A long table and the other laws, each with the default 1,000 draws."""
    out: list[dict[str, Any]] = []
    for name, law, source, settings in tables.cases():
        if source is None:
            out.append({"what": name, "skipped": "its table is absent"})
            continue
        runs = read(source)
        found, fit_s = timed(lambda: fit(law, runs, draws=0, **settings))  # noqa: B023
        _, all_s = timed(lambda: fit(law, runs, draws=1000, **settings))  # noqa: B023
        out.append(
            {
                "what": name,
                "rows": len(found.y),
                "fit_s": fit_s,
                "cpu_s": all_s,
                "value": found.value,
                "agree": found.agreeing_starts,
                "result": found.result,
            }
        )
    return out


def main() -> None:
    """Measure everything of ours."""
    job = task()
    job.finish(fits=[chinchilla(job)], others=others())


if __name__ == "__main__":
    main()

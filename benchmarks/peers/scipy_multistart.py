"""SciPy used well: centred coordinates, exact gradient or Jacobian, 100 starts, resamples from the best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize

from benchmarks.peers.report import DRAWS, Array, Task, natural, resample, sampled, task, timed
from benchmarks.robust import DELTA, Robust

Solver = Callable[[Robust, Array], Any]
STARTS = 100


def lbfgsb(problem: Robust, start: Array) -> Any:
    """L-BFGS-B; its default tolerances stop orders of magnitude early on this sum of small numbers."""
    return minimize(
        problem.value,
        start,
        jac=problem.gradient,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000, "maxfun": 20000},
    )


def huber(problem: Robust, start: Array) -> Any:
    """``least_squares(loss="huber")``: the same objective; ``fun`` renamed to mean its value."""
    found = least_squares(
        problem.residuals, start, jac=problem.jacobian, loss="huber", f_scale=DELTA,
        ftol=1e-14, xtol=1e-14, gtol=1e-14, max_nfev=1000,
    )  # fmt: skip
    found.fun = found.cost
    return found


def starts(problem: Robust, count: int, rng: np.random.Generator) -> Array:
    """Terms between 1 and 100 % of the median loss at the centre, exponents 0 to 1."""
    middle = float(np.median(problem.log_loss))
    low = np.array([middle - 4.6, middle - 4.6, middle - 1.5, 0.0, 0.0])
    return low + rng.random((count, 5)) * (np.array([middle, middle, middle, 1.0, 1.0]) - low)


def measure(job: Task, name: str, solver: Solver) -> dict[str, Any]:
    """Starts, then resamples, with one solver."""
    rng = np.random.default_rng(0)
    problem = Robust.of(job.params, job.tokens, job.loss)
    begins = starts(problem, STARTS, rng)
    ends, fit_s = timed(lambda: [solver(problem, begin) for begin in begins])
    values = np.array([end.fun for end in ends])
    best = ends[int(np.nanargmin(values))].x
    draws = DRAWS // 20 if job.quick else DRAWS
    picks = [resample(rng, len(job.loss)) for _ in range(draws)]

    def refit(rows: Array) -> Array:
        return np.asarray(solver(_rows(problem, rows), best).x)

    thetas, boot_s = timed(lambda: [problem.uncentred(refit(rows)) for rows in picks])
    return {
        "what": name,
        "cpu_s": fit_s,
        "theta": natural(problem.uncentred(best)),
        "starts": STARTS,
        "measured": STARTS,
        "agree": float(np.mean(values <= np.nanmin(values) * (1 + 1e-6))),
        "success": float(np.mean([end.success for end in ends])),
        "boot_s": boot_s * DRAWS / draws,
        "boot_measured": draws,
        "stderr": np.std([natural(t) for t in thetas], axis=0, ddof=1).tolist(),
        "sample": sampled(picks, thetas, len(job.loss)),
    }


def _rows(problem: Robust, rows: Array) -> Robust:
    return Robust(
        problem.log_n[rows], problem.log_d[rows], problem.log_loss[rows],
        problem.weights[rows], problem.centre,
    )  # fmt: skip


def main() -> None:
    """Measure both solvers."""
    job = task()
    np.seterr(all="ignore")
    job.finish(
        fits=[
            measure(job, "L-BFGS-B, exact gradient, 100 starts", lbfgsb),
            measure(job, 'least_squares(loss="huber"), exact Jacobian, 100 starts', huber),
        ]
    )


if __name__ == "__main__":
    main()

"""The replication's procedure, written anew from its description. Besiroglu et al. 2024, arXiv:2404.10102.

Log-sum-exp of the three terms, Huber losses of delta 1e-3 on log residuals, summed; a quasi-Newton method
of SciPy with its default settings and gradient by finite differences, as such scripts do; 4,500 starts on a
grid, best kept; then 4,000 resamples, each from the best point. BFGS is what the description names;
L-BFGS-B is the other default that notebooks copy, so it is measured too.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from scipy.optimize import minimize

from benchmarks.peers.report import DRAWS, Array, Task, natural, resample, sampled, task, timed

DELTA = 1e-3
GRID = list(
    itertools.product(
        np.arange(0.0, 26.0, 5.0), np.arange(0.0, 26.0, 5.0), np.arange(-1.0, 1.1, 0.5),
        np.arange(0.0, 2.1, 0.5), np.arange(0.0, 2.1, 0.5),
    )
)  # fmt: skip


def objective(theta: Array, log_n: Array, log_d: Array, log_loss: Array) -> float:
    """Summed Huber loss of the log residuals; logaddexp is the fastest safe way to write it."""
    a, b, e, alpha, beta = theta
    predicted = np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)
    size = np.abs(log_loss - predicted)
    return float(np.sum(np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))))


def measure(job: Task, method: str) -> dict[str, Any]:
    """The starts and the bootstrap with one method."""
    rng = np.random.default_rng(0)
    data = (np.log(job.params), np.log(job.tokens), np.log(job.loss))
    n = len(job.loss)
    chosen = rng.choice(len(GRID), size=len(GRID) // 10, replace=False) if job.quick else range(len(GRID))
    ends, fit_s = timed(lambda: [minimize(objective, GRID[i], args=data, method=method) for i in chosen])
    values = np.array([end.fun for end in ends])
    best = ends[int(np.nanargmin(values))]
    draws = DRAWS // 20 if job.quick else DRAWS
    picks = [resample(rng, n) for _ in range(draws)]

    def refit(rows: Array) -> Array:
        return np.asarray(minimize(objective, best.x, args=tuple(v[rows] for v in data), method=method).x)

    thetas, boot_s = timed(lambda: [refit(rows) for rows in picks])
    return {
        "what": f"{method}, finite differences, 4,500 starts",
        "cpu_s": fit_s * len(GRID) / len(ends),
        "theta": natural(best.x),
        "starts": len(GRID),
        "measured": len(ends),
        "agree": float(np.mean(values <= np.nanmin(values) * (1 + 1e-6))),
        "success": float(np.mean([end.success for end in ends])),
        "boot_s": boot_s * DRAWS / draws,
        "boot_measured": draws,
        "stderr": np.std([natural(t) for t in thetas], axis=0, ddof=1).tolist(),
        "sample": sampled(picks, thetas, n),
    }


def main() -> None:
    """Measure both methods."""
    job = task()
    np.seterr(all="ignore")
    job.finish(fits=[measure(job, method) for method in ("BFGS", "L-BFGS-B")])


if __name__ == "__main__":
    main()

"""The package simple-scaling-laws: ``separable-power``, least squares of the loss, wild bootstrap."""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

import numpy as np
import polars as pl
import simple_scaling_laws as peer

from benchmarks.peers.report import DRAWS, Task, task, timed

TARGET = "test_loss__nats"
SIZE, DATA = "model_size__params", "dataset_size__tokens"


def table(job: Task) -> pl.DataFrame:
    """The points under the package's column names."""
    n = len(job.loss)
    return pl.DataFrame(
        {
            "training_run_id": [f"run{i}" for i in range(n)],
            "train_set_id": ["one"] * n,
            "test_set_id": ["one"] * n,
            SIZE: job.params,
            DATA: job.tokens,
            TARGET: job.loss,
        }
    )


def raw(model: Any, draws: bool = False) -> Any:
    """E, A, B, alpha, beta in raw units: the package fits predictors divided by a reference."""
    law, domain = model.law, model.observed_domain
    reference = np.array([domain[name]["reference"] for name in law.predictors])
    vectors = model.draws[TARGET].params if draws else [[model.params(TARGET)[k] for k in law.param_names]]
    rows = [law.raw_scale_params(np.asarray(vector, float), reference) for vector in vectors]
    order = ("E", "A", "B", "alpha", "beta")
    return np.array([[row[name] for name in order] for row in rows])


def main() -> None:
    """Measure a fit with one draw (the least it takes) and one with all."""
    job = task()
    warnings.simplefilter("ignore")
    frame = table(job)
    times = []
    for _ in range(5):
        model, seconds = timed(lambda: peer.fit(frame, n_draws=1))
        times.append(seconds)
    full, all_s = timed(lambda: peer.fit(frame, n_draws=DRAWS))
    job.finish(
        version=importlib.metadata.version("simple-scaling-laws"),
        fits=[
            {
                "what": "separable-power, its default start grid",
                "cpu_s": float(np.median(times)),
                "theta": raw(model)[0].tolist(),
                "boot_s": all_s - float(np.median(times)),
                "boot_measured": DRAWS,
                "stderr": np.std(raw(full, draws=True), axis=0, ddof=1).tolist(),
            }
        ],
    )


if __name__ == "__main__":
    main()

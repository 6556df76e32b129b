"""Takes raw counts of an experiment, gives a measured value with its interval: passes, choices, noise, sweeps.

``__all__`` is the registry that documentation and tests read: one method, one file, one paper. A file is
imported when a name of it is asked for. What a function here returns is a row to be fitted: a law's target.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.observing.choices import (
        AccuracyForecast,
        MetricVerdict,
        Scores,
        Survival,
        correlations,
        metric_to_fit,
        predict_accuracy,
        score_choices,
        survival,
    )
    from isoloss.observing.critical_batch import CriticalBatchSize, critical_batch_size, steps_to_target
    from isoloss.observing.instances import Linearity, Population, TaskFit, fit_instances, linearity
    from isoloss.observing.lr_sensitivity import learning_rate_sensitivity
    from isoloss.observing.lr_sweep import sweep_optimum
    from isoloss.observing.measured import Measured
    from isoloss.observing.noise_scale import NoiseScale, gradient_noise_scale
    from isoloss.observing.optimum import GridOptimum, Optima, grid_optima
    from isoloss.observing.passuntil import PassRate, pass_until
    from isoloss.observing.tries import at_least_one, pass_at_k

_HOME: dict[str, str] = {
    "AccuracyForecast": "choices",
    "CriticalBatchSize": "critical_batch",
    "GridOptimum": "optimum",
    "Linearity": "instances",
    "Measured": "measured",
    "MetricVerdict": "choices",
    "NoiseScale": "noise_scale",
    "Optima": "optimum",
    "PassRate": "passuntil",
    "Population": "instances",
    "Scores": "choices",
    "Survival": "choices",
    "TaskFit": "instances",
    "at_least_one": "tries",
    "correlations": "choices",
    "critical_batch_size": "critical_batch",
    "fit_instances": "instances",
    "gradient_noise_scale": "noise_scale",
    "grid_optima": "optimum",
    "learning_rate_sensitivity": "lr_sensitivity",
    "linearity": "instances",
    "metric_to_fit": "choices",
    "pass_at_k": "tries",
    "pass_until": "passuntil",
    "predict_accuracy": "choices",
    "score_choices": "choices",
    "steps_to_target": "critical_batch",
    "survival": "choices",
    "sweep_optimum": "lr_sweep",
}
"""Public name -> module of this folder."""

__all__ = [
    "AccuracyForecast",
    "CriticalBatchSize",
    "GridOptimum",
    "Linearity",
    "Measured",
    "MetricVerdict",
    "NoiseScale",
    "Optima",
    "PassRate",
    "Population",
    "Scores",
    "Survival",
    "TaskFit",
    "at_least_one",
    "correlations",
    "critical_batch_size",
    "fit_instances",
    "gradient_noise_scale",
    "grid_optima",
    "learning_rate_sensitivity",
    "linearity",
    "metric_to_fit",
    "pass_at_k",
    "pass_until",
    "predict_accuracy",
    "score_choices",
    "steps_to_target",
    "survival",
    "sweep_optimum",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"isoloss.observing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'isoloss.observing' has no attribute {name!r}")

"""isoloss finds the cheapest model at the loss you need, says how sure it is, and checks its prediction.

Takes a table of runs, gives a fitted law with joint uncertainty and a plan under a budget:

    runs = isoloss.read("runs.csv", columns="params=N,tokens=D,loss=val_loss")
    fit = isoloss.fit("hoffmann", runs)
    fit.predict(params=7e9, tokens=2e12)
    isoloss.plan(fit, isoloss.Budget(flops=1e22))

Names load when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.errors import NoAnswer
    from isoloss.fitting.approaches import envelope, isoflop
    from isoloss.fitting.constraints import Constraints
    from isoloss.fitting.estimate import fit
    from isoloss.fitting.objective import Gaussian, Huber, LeastSquares, StudentT
    from isoloss.fitting.result import Fit, load
    from isoloss.planning.budget import Budget
    from isoloss.planning.optimum import plan
    from isoloss.planning.result import Plan
    from isoloss.report.pictures import plot
    from isoloss.runs import Runs, check, read

__version__ = "0.1.0"

_HOME = {
    "Budget": "isoloss.planning.budget",
    "Constraints": "isoloss.fitting.constraints",
    "Fit": "isoloss.fitting.result",
    "Gaussian": "isoloss.fitting.objective",
    "Huber": "isoloss.fitting.objective",
    "LeastSquares": "isoloss.fitting.objective",
    "NoAnswer": "isoloss.errors",
    "Plan": "isoloss.planning.result",
    "Runs": "isoloss.runs",
    "StudentT": "isoloss.fitting.objective",
    "check": "isoloss.runs",
    "envelope": "isoloss.fitting.approaches",
    "fit": "isoloss.fitting.estimate",
    "isoflop": "isoloss.fitting.approaches",
    "load": "isoloss.fitting.result",
    "plan": "isoloss.planning.optimum",
    "plot": "isoloss.report.pictures",
    "read": "isoloss.runs",
}

__all__ = [
    "Budget",
    "Constraints",
    "Fit",
    "Gaussian",
    "Huber",
    "LeastSquares",
    "NoAnswer",
    "Plan",
    "Runs",
    "StudentT",
    "check",
    "envelope",
    "fit",
    "isoflop",
    "load",
    "plan",
    "plot",
    "read",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'isoloss' has no attribute {name!r}")

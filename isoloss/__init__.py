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

from isoloss.version import VERSION

if TYPE_CHECKING:
    from isoloss.comparing.backtest import Backtest, backtest
    from isoloss.comparing.compare import compare
    from isoloss.comparing.comparison import Comparison
    from isoloss.comparing.files import load
    from isoloss.comparing.level import Level, level
    from isoloss.comparing.stack import Stack, auto
    from isoloss.comparing.versus import versus
    from isoloss.comparing.versus_result import Versus
    from isoloss.errors import NoAnswer, StoreError
    from isoloss.fitting.approaches import envelope, isoflop
    from isoloss.fitting.borrow import borrow
    from isoloss.fitting.chain import Chain, chain
    from isoloss.fitting.constraints import Constraints
    from isoloss.fitting.estimate import fit
    from isoloss.fitting.objective import Gaussian, Huber, LeastSquares, StudentT
    from isoloss.fitting.profile import Profile, profile
    from isoloss.fitting.result import Fit
    from isoloss.planning.budget import Budget
    from isoloss.planning.optimum import plan
    from isoloss.planning.result import Plan
    from isoloss.report.page import write_report
    from isoloss.report.pictures import plot
    from isoloss.runs import Runs, check, read
    from isoloss.study.ledger import Ledger
    from isoloss.study.promise import promise
    from isoloss.study.store import Store
    from isoloss.study.study import Study

__version__ = VERSION

_HOME = {
    "Backtest": "isoloss.comparing.backtest",
    "Budget": "isoloss.planning.budget",
    "Chain": "isoloss.fitting.chain",
    "Comparison": "isoloss.comparing.comparison",
    "Constraints": "isoloss.fitting.constraints",
    "Fit": "isoloss.fitting.result",
    "Gaussian": "isoloss.fitting.objective",
    "Huber": "isoloss.fitting.objective",
    "LeastSquares": "isoloss.fitting.objective",
    "Ledger": "isoloss.study.ledger",
    "Level": "isoloss.comparing.level",
    "NoAnswer": "isoloss.errors",
    "Plan": "isoloss.planning.result",
    "Profile": "isoloss.fitting.profile",
    "Runs": "isoloss.runs",
    "Stack": "isoloss.comparing.stack",
    "Store": "isoloss.study.store",
    "StoreError": "isoloss.errors",
    "StudentT": "isoloss.fitting.objective",
    "Study": "isoloss.study.study",
    "Versus": "isoloss.comparing.versus_result",
    "auto": "isoloss.comparing.stack",
    "backtest": "isoloss.comparing.backtest",
    "borrow": "isoloss.fitting.borrow",
    "chain": "isoloss.fitting.chain",
    "check": "isoloss.runs",
    "compare": "isoloss.comparing.compare",
    "envelope": "isoloss.fitting.approaches",
    "fit": "isoloss.fitting.estimate",
    "isoflop": "isoloss.fitting.approaches",
    "level": "isoloss.comparing.level",
    "load": "isoloss.comparing.files",
    "plan": "isoloss.planning.optimum",
    "plot": "isoloss.report.pictures",
    "profile": "isoloss.fitting.profile",
    "promise": "isoloss.study.promise",
    "read": "isoloss.runs",
    "versus": "isoloss.comparing.versus",
    "write_report": "isoloss.report.page",
}

__all__ = [
    "Backtest",
    "Budget",
    "Chain",
    "Comparison",
    "Constraints",
    "Fit",
    "Gaussian",
    "Huber",
    "LeastSquares",
    "Ledger",
    "Level",
    "NoAnswer",
    "Plan",
    "Profile",
    "Runs",
    "Stack",
    "Store",
    "StoreError",
    "StudentT",
    "Study",
    "Versus",
    "auto",
    "backtest",
    "borrow",
    "chain",
    "check",
    "compare",
    "envelope",
    "fit",
    "isoflop",
    "level",
    "load",
    "plan",
    "plot",
    "profile",
    "promise",
    "read",
    "versus",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'isoloss' has no attribute {name!r}")

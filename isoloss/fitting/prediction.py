"""A prediction: the distribution of the target at points, made before they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "isoloss/predict/1"


def quantiles(draws: Array, coverage: float) -> tuple[float, float]:
    """Ends of the central interval of ``coverage`` over the draws."""
    low, high = np.quantile(draws, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Draws of the target at each point, and their summary.

    Attributes:
        of: ``"mean"`` (level of the law) or ``"run"`` (one new run).
        coverage: of ``low`` to ``high``.
        x: axis -> points, shape X.
        draws: (K, *X).
        reach: per point the largest factor by which an axis leaves the fitted rows; 1 inside.
    """

    of: Literal["mean", "run"]
    coverage: float
    x: Mapping[str, Array]
    draws: Array
    reach: Array

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, got {self.coverage}")

    @property
    def median(self) -> Array:
        """Median of the draws, shape X."""
        return np.asarray(np.median(self.draws, axis=0))

    @property
    def low(self) -> Array:
        """Lower end of the interval, shape X."""
        return np.asarray(np.quantile(self.draws, (1 - self.coverage) / 2, axis=0))

    @property
    def high(self) -> Array:
        """Upper end of the interval, shape X."""
        return np.asarray(np.quantile(self.draws, (1 + self.coverage) / 2, axis=0))

    def to_json(self) -> dict[str, Any]:
        """The document of ``isoloss predict --json``, points in the order given."""
        flat = {axis: np.ravel(values) for axis, values in self.x.items()}
        low, median, high = np.ravel(self.low), np.ravel(self.median), np.ravel(self.high)
        reach = np.ravel(self.reach)
        return {
            "schema": SCHEMA,
            "coverage": self.coverage,
            "of": self.of,
            "predictions": [
                {
                    "at": {axis: float(values[i]) for axis, values in flat.items()},
                    "median": float(median[i]),
                    "low": float(low[i]),
                    "high": float(high[i]),
                    "reach": float(reach[i]),
                }
                for i in range(len(median))
            ],
        }

    def __repr__(self) -> str:
        parts = [
            f"{m:.4f} ({lo:.4f} to {hi:.4f})"
            for m, lo, hi in zip(np.ravel(self.median), np.ravel(self.low), np.ravel(self.high), strict=True)
        ]
        return f"Prediction of the {self.of}, {100 * self.coverage:g}%: " + "; ".join(parts[:8])

    def _repr_html_(self) -> str:
        axes = "".join(f"<th>{axis}</th>" for axis in self.x)
        rows = "".join(
            "<tr>"
            + "".join(f"<td>{value:.4g}</td>" for value in p["at"].values())
            + f"<td>{p['median']:.4f}</td><td>{p['low']:.4f} to {p['high']:.4f}</td></tr>"
            for p in self.to_json()["predictions"]
        )
        what = "one new run" if self.of == "run" else "mean"
        return f"<table><tr>{axes}<th>{what}</th><th>{100 * self.coverage:g}%</th></tr>{rows}</table>"

"""Row weights for curves: the dear end counts more, because it is the end that is carried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isoloss.comparing.backtest import training_cost
from isoloss.laws.law import Law
from isoloss.runs import Runs

Array = np.ndarray[Any, np.dtype[Any]]

RECENCY = 0.5  # chosen on one half of the data sets of LCDB, judged on the other: docs/learning-curves.md
COLUMN = "recency weight"


def recency_of(laws: Sequence[Law], recency: float | None) -> float:
    """The exponent: as given; by default 1/2 where all laws read one and the same axis, else 0.

    Raises:
        ValueError: below 0 or not finite; or above 0 where the laws read several axes.
    """
    axes = dict.fromkeys(axis for law in laws for axis in law.axes)
    if recency is None:
        return RECENCY if len(axes) == 1 else 0.0
    if not (np.isfinite(recency) and recency >= 0):
        raise ValueError(f"recency must be at or above 0, got {recency}")
    if recency > 0 and len(axes) > 1:
        raise ValueError(
            f"recency weighs the rows of a curve, got laws of {', '.join(axes)}. Set recency=0, or name laws of "
            "one axis"
        )
    return float(recency)


def weighted(runs: Runs, laws: Sequence[Law], recency: float, weights: str | None) -> tuple[Runs, str | None]:
    r"""The table with a column of weights, and that column's name.

    .. math:: w_i \propto v_i \, (x_i / \max x)^{recency}

    with x the one axis (for a law of the loss 1/loss: the cost that orders a back-test) and v the user's own
    weights. A law of few parameters is wrong somewhere along a long curve; with equal weights the many small
    sizes decide where, and the end, from which the prediction starts, is missed. On points at equal ratios r
    the exponent 1 leaves the information of ``(r + 1)/(r - 1)`` of them (Kish's effective sample size): 6 at
    ``r = sqrt(2)``; the exponent 1/2 that of ``(sqrt(r) + 1)/(sqrt(r) - 1)``, 12.

    Raises:
        ValueError: no such column of weights.

    Example:
        >>> import isoloss
        >>> from isoloss.laws import Power
        >>> runs = isoloss.read({"tokens": [1e6, 2e6, 4e6], "loss": [3.0, 2.5, 2.0]})
        >>> table, name = weighted(runs, [Power()], 1.0, None)
        >>> table[name].tolist()
        [0.25, 0.5, 1.0]
    """
    if recency == 0:
        return runs, weights
    axis = laws[0].axes[0]
    column = axis if axis in runs else laws[0].defaults.get(axis, axis)
    if column not in runs:
        return runs, weights  # the comparison says which column is missing
    (x,) = runs.numeric(column)
    usable = np.isfinite(x) & (x > 0)
    w = np.ones(len(runs))  # of unusable rows too: what is wrong with them is their axis
    if usable.any():
        cost, _ = training_cost({axis: x[usable]})
        w[usable] = (cost / np.max(cost)) ** recency
    if weights is not None:
        (own,) = runs.numeric(weights)
        w = w * own
    return replace(runs, columns={**runs.columns, COLUMN: w}), COLUMN

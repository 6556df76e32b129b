"""Su et al. 2024, Unraveling the Mystery of Scaling Laws: Part I, arXiv:2403.06563: whole curves at any batch.

The published procedure goes in stages, each taking the one before as exact; the law ``su-unraveling`` is all of
them at once. Both are here: the stages show what the rows say of the critical batch, the joint fit carries every
doubt into the predicted curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.estimate import fit
from isoloss.fitting.objective import Objective, StudentT
from isoloss.fitting.prediction import Prediction
from isoloss.fitting.result import Fit
from isoloss.observing.critical_batch import critical_batch_size, steps_to_target
from isoloss.observing.measured import Measured
from isoloss.runs import Runs, read

Array = np.ndarray[Any, np.dtype[Any]]

COLUMNS = ("params_nonembedding", "batch_tokens", "step", "loss")
LEAST_BATCHES = 5  # the paper's own least
LEAST_HYPERBOLAS = 3  # for a line through two parameters with something left over


@dataclass(frozen=True)
class Hyperbola:
    """The hyperbola of steps and batch at one target loss, of one size.

    Attributes:
        params_nonembedding: the size. loss: the target.
        steps_min: steps at a batch without end. tokens_min: tokens at a vanishing batch.
        critical: the critical batch, ``tokens_min / steps_min``; an end is 0 or inf where it is open.
        batches: how many batch sizes the hyperbola goes through.
    """

    params_nonembedding: float
    loss: float
    steps_min: float
    tokens_min: float
    critical: Measured
    batches: int


@dataclass(frozen=True)
class Left:
    """A size or a target loss without a hyperbola, and why; ``loss`` is NaN for a whole size, or a run of it."""

    params_nonembedding: float
    loss: float
    why: str


@dataclass(frozen=True, eq=False, repr=False)
class Unraveled:
    """The constants of Kaplan's laws for one set-up, in stages and jointly.

    Attributes:
        hyperbolas: stage 1, one for each size and target loss. left: those without one, and why.
        staged: the six parameters of ``su-unraveling`` as the published stages give them.
        joint: the fit of ``su-unraveling`` to every row, runs resampled whole; what :meth:`predict` uses.
    """

    hyperbolas: tuple[Hyperbola, ...]
    left: tuple[Left, ...]
    staged: dict[str, float]
    joint: Fit

    def predict(
        self, params_nonembedding: Any, batch_tokens: Any, step: Any, *, coverage: float | None = None
    ) -> Prediction:
        """The learning curve of a size at a batch: the fixed point of the law for every draw.

        Args:
            params_nonembedding, batch_tokens, step: numbers or arrays that broadcast.
            coverage: default the fit's.

        Raises:
            ValueError: a value that is not positive. NoAnswer: the fit has no draws.
        """
        return self.joint.predict(
            coverage=coverage, params_nonembedding=params_nonembedding, batch_tokens=batch_tokens, step=step
        )

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value:.4g}" for name, value in self.joint.values.items())
        return f"Unraveled({inner}; {len(self.hyperbolas)} hyperbolas, {len(self.left)} left out)"


def unravel(
    rows: Runs | Any,
    *,
    losses: int | Sequence[float] = 8,
    run: str = "run",
    objective: Objective | None = None,
    draws: int = 500,
    coverage: float = 0.9,
    seed: int = 0,
) -> Unraveled:
    r"""Estimate the constants of loss curves at any size and batch from small runs.

    Stage 1: for every size that was run at five or more batches, the steps to each of a ladder of target losses,
    and through them :math:`(S/S_{min} - 1)(E/E_{min} - 1) = 1`, which gives :math:`B_{crit}(L)`. Stage 2: the line of
    its log against log L. Stage 3: every logged step becomes :math:`S_{min} = s/(1 + B_{crit}(L)/B)`, and
    ``kaplan-ns`` is fitted to the losses. Then all at once: ``su-unraveling`` on the same rows.

    Args:
        rows: one row for each logged step, with ``params_nonembedding``, ``batch_tokens``, ``step``, ``loss`` and a
            column that names the run; past warm-up, at a constant learning rate, tuned at each batch. Anything
            :func:`isoloss.read` takes.
        losses: target losses, or how many to put between the losses that all batches of a size have.
        run: the column that names the run. Where several runs have one size and batch, the fastest counts in stage
            1.
        objective: of the joint fit; default Student-t, whose intervals follow the scatter of logged losses.
        draws: of the joint fit, by resampling runs: with few runs they are too narrow.
        coverage, seed: of the joint fit.

    Raises:
        ValueError: a column is missing, or a value is not finite and positive.
        NoAnswer: no size has five batches, or fewer than three hyperbolas came of them.
    """
    table = rows if isinstance(rows, Runs) else read(rows)
    columns = dict(zip(COLUMNS, table.numeric(*COLUMNS), strict=True))
    for name, values in columns.items():
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise ValueError(
                f"needed {name} finite and above 0, got {values[bad][0]:g} in row {int(table.rows[bad][0])} "
                f"({int(bad.sum())} such rows). Leave them out with where="
            )
    names = np.unique(np.asarray(table[run]), return_inverse=True)[1]
    curves, short = _curves(columns, names)
    found, left = _ladders(curves, losses)
    left = [*short, *left]
    if len(found) < LEAST_HYPERBOLAS:
        why = f": {left[0].why}" if left else ""
        raise NoAnswer(
            f"{len(found)} hyperbolas of steps against batch are too few{why}",
            f"a size run at {LEAST_BATCHES} or more batches, from well below the critical batch to well above",
        )
    batch = fit(
        "kaplan-bcrit",
        {"loss": [h.loss for h in found], "critical_batch": [h.critical.value for h in found]},
        draws=0,
        sensitivity=False,
    )
    critical = batch.law.evaluate(batch.theta, loss=columns["loss"])
    curve = fit(
        "kaplan-ns",
        {
            "params_nonembedding": columns["params_nonembedding"],
            "steps_min": columns["step"] / (1 + critical / columns["batch_tokens"]),
            "loss": columns["loss"],
        },
        draws=0,
        sensitivity=False,
    )
    joint = fit(
        "su-unraveling", table, objective=objective or StudentT(), draws=draws, uncertainty="bootstrap",
        cluster=run, coverage=coverage, seed=seed, sensitivity=False,
    )  # fmt: skip
    return Unraveled(tuple(found), tuple(left), {**curve.values, **batch.values}, joint)


Curve = tuple[float, float, Array, Array]


def _curves(columns: dict[str, Array], names: Array) -> tuple[list[Curve], list[Left]]:
    """Size, batch, steps and losses of each run, steps rising; and the runs of a single row, which are no curves."""
    out: list[Curve] = []
    short: list[Left] = []
    for number in range(int(names.max()) + 1):
        mine = np.flatnonzero(names == number)
        mine = mine[np.argsort(columns["step"][mine])]
        size, batch = columns["params_nonembedding"][mine], columns["batch_tokens"][mine]
        if np.ptp(size) > 0 or np.ptp(batch) > 0:
            raise ValueError(
                f"needed one size and one batch in each run, got sizes {size.min():g} to {size.max():g} and "
                f"batches {batch.min():g} to {batch.max():g} in one. Give each run its own name"
            )
        if len(mine) > 1:
            out.append((float(size[0]), float(batch[0]), columns["step"][mine], columns["loss"][mine]))
        else:
            short.append(Left(float(size[0]), float("nan"), f"a run at batch {batch[0]:g} has one row"))
    return out, short


def _ladders(curves: list[Curve], losses: int | Sequence[float]) -> tuple[list[Hyperbola], list[Left]]:
    """A hyperbola for every size with enough batches and every target loss that all its batches reach."""
    out: list[Hyperbola] = []
    left: list[Left] = []
    for size in sorted({curve[0] for curve in curves}):
        mine = [curve for curve in curves if curve[0] == size]
        batches = sorted({curve[1] for curve in mine})
        if len(batches) < LEAST_BATCHES:
            left.append(Left(size, float("nan"), f"{len(batches)} batch sizes, fewer than {LEAST_BATCHES}"))
            continue
        for target in _targets(mine, losses):
            steps = [_fastest(mine, batch, target) for batch in batches]
            try:
                found = critical_batch_size(batches, steps, overhead=1.0)
            except NoAnswer as no:
                left.append(Left(size, target, no.reason))
                continue
            out.append(Hyperbola(size, target, found.a, found.b, found.critical, len(batches)))
    return out, left


def _targets(curves: list[Curve], losses: int | Sequence[float]) -> list[float]:
    """The target losses, even in logs strictly between what all curves start above and all end below."""
    if not isinstance(losses, int):
        return [float(loss) for loss in losses]
    top, bottom = min(curve[3][0] for curve in curves), max(curve[3].min() for curve in curves)
    if bottom >= top:
        return []
    return [float(loss) for loss in np.geomspace(top, bottom, losses + 2)[1:-1]]


def _fastest(curves: list[Curve], batch: float, target: float) -> float:
    """Steps of the fastest run at that batch; NaN if none reaches the target."""
    steps = [float(steps_to_target(c[2], c[3], target)) for c in curves if c[1] == batch]
    reached = [step for step in steps if np.isfinite(step)]
    return min(reached) if reached else float("nan")

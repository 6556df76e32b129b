"""Several fitted laws as one prediction: weights from held-out runs, and the verb ``auto``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from isoloss.comparing.aggregate import widened
from isoloss.comparing.backtest import DRAWS, STARTS, Progress
from isoloss.comparing.candidates import named
from isoloss.comparing.compare import compare
from isoloss.comparing.comparison import Comparison, Standing
from isoloss.comparing.recency import recency_of, weighted
from isoloss.errors import NoAnswer
from isoloss.files import json_text, write_atomically
from isoloss.fitting.estimate import default_objective
from isoloss.fitting.estimate import fit as fit_law
from isoloss.fitting.objective import Objective, StudentT
from isoloss.fitting.prediction import Prediction
from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.runs import Runs, read

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "isoloss/stack/1"
DERIVED = ("params", "tokens", "flops")  # any of which the two others give
LEAST = 0.05  # weight below which a law is not refitted: it would move no quantile that anyone reads


@dataclass(frozen=True, eq=False, repr=False)
class Stack:
    """Fits of several laws to the same rows, their weights, and the comparison that gave them.

    Attributes:
        members: fits, the heaviest first.
        weights: one a member, of sum 1.
        comparison: the back-test behind the weights, with the laws that got none.
        recency: exponent of the row weights in all its fits, see :func:`auto`; 0 is none.

    Example:
        >>> import isoloss
        >>> runs = {"tokens": [2.0**k for k in range(16)], "loss": [1 + 8 / 2**k for k in range(16)]}
        >>> isoloss.auto(runs, ["power", "hestness"], draws=50, fold_draws=50).leading.law.spec
        'hestness(tokens)'
    """

    members: tuple[Fit, ...]
    weights: tuple[float, ...]
    comparison: Comparison
    recency: float = 0.0

    def __post_init__(self) -> None:
        if not self.members or len(self.members) != len(self.weights):
            raise ValueError(
                f"a stack needs one weight a member, got {len(self.members)} members, {len(self.weights)} weights"
            )
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"a stack needs weights at or above 0 of sum 1, got {self.weights}")

    @property
    def leading(self) -> Fit:
        """The member of most weight."""
        return self.members[int(np.argmax(self.weights))]

    @property
    def axes(self) -> tuple[str, ...]:
        """Every axis that a member reads."""
        return tuple(dict.fromkeys(axis for fit in self.members for axis in fit.law.axes))

    def predict(
        self, *, of: Literal["mean", "run"] = "mean", coverage: float | None = None, **axes: Any
    ) -> Prediction:
        """The distribution of the target at a point: the members' quantiles, averaged with the weights.

        Quantile k of the stack is the weighted mean of the members' quantiles k, in logs where the residuals
        are logs. Of ``"run"`` the draws are
        then stretched so that the interval is as wide as the held-out runs asked for (never narrowed; see
        ``comparison.conformal``). The correction is made at the comparison's coverage.

        Args:
            of: ``"mean"``, the level of the laws; or ``"run"``, one new run.
            coverage: of the interval; default the comparison's.
            axes: one number or array per axis of any member; flops, params or tokens may be left out where
                ``flops = 6 * params * tokens`` gives them.

        Raises:
            ValueError: an axis is missing or not positive. NoAnswer: a member has no draws.
        """
        x = self._inputs(axes)
        wanted = self.comparison.coverage if coverage is None else coverage
        parts = [
            fit.predict(of=of, coverage=wanted, **{axis: x[axis] for axis in fit.law.axes})
            for fit in self.members
        ]
        count = min(len(part.draws) for part in parts)
        quantiles = np.array([_quantiles(part.draws, count) for part in parts])
        if self.leading.objective.residual == "log" and (quantiles > 0).all():
            draws = np.exp(np.tensordot(self.weights, np.log(quantiles), axes=1))
        else:
            draws = np.tensordot(self.weights, quantiles, axes=1)
        if of == "run":
            draws = widened(draws, self.comparison.conformal)
        reach = np.max([part.reach for part in parts], axis=0)
        return Prediction(of, wanted, {axis: x[axis] for axis in self.axes}, draws, reach)

    def _inputs(self, axes: Mapping[str, Any]) -> dict[str, Any]:
        """Every axis of a member, in one shape: given, a law's default, or derived from the others."""
        known: dict[str, Any] = dict(axes)
        unknown = [name for name in known if name not in (*self.axes, *DERIVED)]
        if unknown:
            raise ValueError(
                f"the stack reads {', '.join(self.axes)}, got also {', '.join(unknown)}. Leave it out"
            )
        for fit in self.members:
            for axis, source in fit.law.defaults.items():
                if axis not in known and source in known:
                    known[axis] = known[source]
        try:
            arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in known.values()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the stack needs numbers, one of each axis or equally many: {error}") from None
        shape = arrays[0].shape if arrays else (0,)
        flat = {name: array.ravel() for name, array in zip(known, arrays, strict=True)}
        table = Runs(
            flat, np.arange(1, len(next(iter(flat.values()), [])) + 1), {}, {}, source="the point"
        ).derive()
        if all(name in flat for name in DERIVED):
            told = 6.0 * flat["params"] * flat["tokens"]
            if not np.allclose(told, flat["flops"], rtol=0.01):
                raise ValueError(
                    f"flops {flat['flops'][0]:g} are not 6 * params * tokens = {told[0]:g}. Leave one of the three out"
                )
        missing = [axis for axis in self.axes if axis not in table]
        if missing:
            raise ValueError(
                f"the stack needs {', '.join(self.axes)}, got {', '.join(known) or 'nothing'}. "
                f"Add {', '.join(missing)}"
            )
        return {axis: np.asarray(table[axis]).reshape(shape) for axis in self.axes}

    def save(self, path: str | Path) -> None:
        """Write the stack as JSON (``docs/json.md``), atomically."""
        write_atomically(Path(path), json_text(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """The document that ``isoloss fit auto --json`` writes; schema in ``docs/json.md``."""
        return {
            "schema": SCHEMA,
            "weights": list(self.weights),
            "recency": self.recency,
            "comparison": self.comparison.to_json(),
            "members": [fit.to_json() for fit in self.members],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Stack:
        """The stack that :meth:`to_json` wrote.

        Raises:
            ValueError: not a stack of this schema, or a part is missing or of the wrong kind.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(
                f"needed a stack of schema {SCHEMA!r}, got {document.get('schema')!r}. Make it with "
                "`isoloss fit auto TABLE --json FILE`"
            )
        try:
            return cls(
                tuple(Fit.from_json(member) for member in document["members"]),
                tuple(float(weight) for weight in document["weights"]),
                Comparison.from_json(document["comparison"]),
                float(document["recency"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the stack file is incomplete or damaged: {error!r}") from error

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{w:.2f} {fit.law.spec}" for w, fit in zip(self.weights, self.members, strict=True)
        )
        return f"Stack({parts}; {len(self.leading.y)} rows, {len(self.comparison.best.backtest)} held out)"


def auto(
    runs: Runs | Any,
    laws: Sequence[Law | str] | Law | str = "auto",
    *,
    objective: Objective | None = None,
    cluster: str | None = None,
    weights: str | None = None,
    recency: float | None = None,
    folds: int = 4,
    fold_draws: int = DRAWS,
    draws: int = 1000,
    starts: int = 64,
    coverage: float = 0.9,
    seed: int = 0,
    progress: Progress | None = None,
) -> Stack:
    """Compare laws on held-out runs, fit those that earned a weight to all rows, and stack them.

    Args:
        runs: a table, or anything :func:`isoloss.read` takes.
        laws: as in :func:`isoloss.compare`.
        objective: of all fits. Default Student-t (4 degrees of freedom), as chosen on one half of published
            tables (``docs/comparing.md``, ``docs/learning-curves.md``).
        cluster, weights, folds, coverage, seed: as there.
        recency: rows count by ``(x / max x)^recency`` (times ``weights``) in every fit. Default 1/2 where all
            laws read one and the same axis (a curve), else 0: see :func:`isoloss.comparing.recency.weighted`.
        fold_draws: draws of each fit of the back-test.
        draws, starts: of the fits to all rows.
        progress: called with (what, done, total).

    Returns:
        The stack, whose leading fit has a table of sensitivity; laws of a weight below 0.05 are in its comparison only.

    Raises:
        ValueError: as :func:`isoloss.compare`. NoAnswer: too few rows to hold any back, or no law answered
            in every fold.

    Example:
        >>> import isoloss
        >>> runs = {"tokens": [2.0**k for k in range(16)], "loss": [1 + 8 / 2**k for k in range(16)]}
        >>> found = auto(runs, ["power", "hestness"], draws=50, fold_draws=50)
        >>> abs(float(found.predict(tokens=2.0**20).median[0]) - 1) < 1e-4
        True
    """
    table = (runs if isinstance(runs, Runs) else read(runs)).derive()
    asked, added, _ = named(laws, table)
    objective = objective or StudentT(residual=default_objective([*asked, *added][0]).residual)
    recency = recency_of([*asked, *added], recency)
    table, weights = weighted(table, [*asked, *added], recency, weights)
    found = compare(
        laws, table, objective=objective, cluster=cluster, weights=weights, folds=folds, draws=fold_draws,
        starts=min(STARTS, starts), coverage=coverage, seed=seed, progress=progress,
    )  # fmt: skip
    kept = sorted((s for s in found.standings if s.weight >= LEAST), key=lambda s: -s.weight)
    if not kept:
        raise NoAnswer(
            "no law answered in every fold of the back-test, so none has a weight",
            f"more rows, or one law by name: isoloss fit {found.best.law}",
        )
    by_name = {law.spec: law for law in (*asked, *added)}
    kept = _same_axes(kept, by_name)
    same = table.take(_usable(table, found))
    members = tuple(
        fit_law(
            by_name[s.law], same, objective=objective, cluster=cluster, weights=weights,
            draws=draws, starts=starts, coverage=coverage, seed=seed, sensitivity=s is kept[0],
            progress=progress,
        )
        for s in kept
    )  # fmt: skip
    total = sum(s.weight for s in kept)
    return Stack(members, tuple(s.weight / total for s in kept), found, recency)


def _same_axes(kept: list[Standing], laws: Mapping[str, Law]) -> list[Standing]:
    """Members that read no more than the heaviest one does, so that a prediction needs no further input."""
    given = {*laws[kept[0].law].axes}
    if len(given & {*DERIVED}) > 1:
        given |= {*DERIVED}
    return [s for s in kept if {*laws[s.law].axes} - {*laws[s.law].defaults} <= given]


def _usable(table: Runs, found: Comparison) -> Array:
    """The rows that every law of the comparison can use."""
    return ~np.isin(table.rows, [row for row, _ in found.removed])


def _quantiles(draws: Array, count: int) -> Array:
    """Sorted draws, as many as asked: the quantiles at (k + 1/2)/count."""
    ordered = np.sort(draws, axis=0)
    if len(ordered) == count:
        return ordered
    return np.asarray(np.quantile(ordered, (np.arange(count) + 0.5) / count, axis=0))

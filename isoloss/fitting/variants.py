"""Makes the sensitivity table of a fit: one refit per choice changed, everything else as it was.

The list of choices follows the survey of Li, Kudugunta and Zettlemoyer 2025, (Mis)Fitting, arXiv:2502.18969.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.checkpoints import subsets
from isoloss.fitting.constraints import Constraints
from isoloss.fitting.objective import Huber, LeastSquares, Objective, StudentT
from isoloss.fitting.search import AGREED, nearby, pose
from isoloss.fitting.sensitivity import STEP, Variant, What
from isoloss.fitting.uncertainty import robust_sd
from isoloss.laws import get
from isoloss.laws.law import Law
from isoloss.runs import Runs
from isoloss.runs.derive import is_measured

if TYPE_CHECKING:
    from isoloss.fitting.result import Fit

Array = np.ndarray[Any, np.dtype[Any]]

SIZES = ("params", "params_nonembedding")
COUNTS = (*SIZES, "params_active", "tokens", "flops", "steps")  # more of it costs more
PAIRS = (("alpha", "beta"), ("alpha_N", "alpha_D"), ("eta_1", "eta_2"))  # one exponent per axis
FLOOR = 1e-12  # stands for none: coefficients are fitted as logs
SHARP = 0.01  # delta in robust sd at which Huber's loss is least absolute deviations to a per cent
TUNED = 1.345  # delta in sd: 95 % efficient for Gaussian noise
FAR_OUT = 5.0  # robust sd
EXACT = 1e-10  # residuals below this are rounding


@dataclass(frozen=True, eq=False)
class _Change:
    """A variant to make: all settings of its refit, or why there is none."""

    what: What
    setting: str
    law: Law
    runs: Runs
    objective: Objective
    held: Constraints
    at: Mapping[str, float]
    dropped: tuple[int, ...] = ()
    why: str = ""


def variants(fit: Fit, runs: Runs, weights: str | None = None) -> tuple[Variant, ...]:
    """The fit and what it would have been with one choice changed, refitted without draws.

    Objective: Huber with delta 1e-3 and with 1.345 robust standard deviations, least squares, least
    absolute, Huber on the other kind of residual, Student-t. Form: tied exponents, no floor, another law of
    the same axes. Rows: without the cheapest tenth, the dearest tenth, the largest residuals. Checkpoints:
    final, last 20 %, all. Counting: parameters with and without embeddings, FLOPs measured and ``6 N D``.

    Args:
        fit: the fit.
        runs: the table it was made from.
        weights: its column of row weights.

    Source:
        The sensitivity questions of Li et al. 2025, (Mis)Fitting, arXiv:2502.18969.

    Example:
        >>> import isoloss
        >>> table = isoloss.read({"tokens": [1, 2, 4, 8, 16], "loss": [16, 8, 4, 2.1, 1]})
        >>> found = isoloss.fit("power", table, draws=0, sensitivity=False)
        >>> [v.setting for v in variants(found, table) if v.what == "rows"][:2]
        ['cheapest tenth dropped', 'dearest tenth dropped']
    """
    base = _Change("fit", "as fitted", fit.law, runs, fit.objective, fit.constraints, _reference(fit))
    itself = Variant(
        "fit", base.setting, fit.law.spec, fit.values, len(fit.y), (), base.at,
        float(fit.law.evaluate(fit.theta, **base.at)),
        "not-converged" if fit.result == "not-converged" else "fitted",
    )  # fmt: skip
    if len(fit.y) <= fit.free:
        why = f"{len(fit.y)} rows cannot determine {fit.free} parameters, whatever the choice"
        return (itself, _absent(replace(base, what="rows", setting="any other choice", why=why)))
    scale = robust_sd(fit.residuals, fit.free)
    changes = (
        *_objectives(base, scale),
        *_forms(base),
        *_rows(base, fit, scale),
        *_checkpoints(base, fit),
        *_counting(base, fit),
    )
    return (itself, *(_refit(change, fit, scale, weights) for change in changes))


def _refit(change: _Change, fit: Fit, scale: float, weights: str | None) -> Variant:
    if change.why:
        return _absent(change)
    law = change.law
    try:
        held = change.held.resolve(law)
        posed = pose(law, change.runs, change.objective, held, weights)
        near = fit.theta if law.spec == fit.law.spec else None
        alone = change.what in ("objective", "rows") and fit.agreeing_starts >= AGREED
        _, found = nearby(posed, near, scale, alone)
    except (ValueError, NoAnswer) as error:
        return _absent(replace(change, why=str(error)))
    best = int(np.argmin(found.value))
    theta = posed.place.theta(found.psi[best])
    if not held.named:
        theta = law.canonical(theta)
    prediction = float(law.evaluate(theta, **change.at))
    if not (np.isfinite(found.value[best]) and np.isfinite(theta).all() and math.isfinite(prediction)):
        return _absent(replace(change, why=f"{law.slug} is undefined on these rows"))
    return Variant(
        change.what,
        change.setting,
        law.spec,
        dict(zip(law.names, theta.tolist(), strict=True)),
        len(posed.data),
        change.dropped,
        change.at,
        prediction,
        "fitted" if found.converged[best] else "not-converged",
    )


def _absent(change: _Change) -> Variant:
    return Variant(
        change.what, change.setting, change.law.spec, {}, 0, (), {}, None, "not-applicable", change.why
    )


# Where the predictions are compared


def _spent(x: Mapping[str, Array]) -> Array | None:
    """What a row costs, up to a factor; None where no axis is a count."""
    counts = [values for axis, values in x.items() if axis in COUNTS]
    return np.asarray(np.prod(counts, axis=0)) if counts else None


def _dearest(fit: Fit) -> int:
    spent = _spent(fit.x)
    return int(np.argmin(fit.y) if spent is None else np.argmax(spent))


def _reference(fit: Fit) -> dict[str, float]:
    """Ten times the dearest run along its ray; the row of least target where no axis is a count."""
    i = _dearest(fit)
    return _scaled({axis: float(values[i]) for axis, values in fit.x.items()})


def _scaled(point: Mapping[str, float]) -> dict[str, float]:
    spent = [axis for axis in point if axis in COUNTS]
    factor = STEP ** (1 / len(spent)) if spent else 1.0
    moved = {*spent, "tokens_unique", "params_trainable"}
    return {axis: value * factor if axis in moved and spent else value for axis, value in point.items()}


# The choices


def _objectives(base: _Change, scale: float) -> Iterator[_Change]:
    kind = base.objective.residual
    other, plain = ("linear", "raw") if kind == "log" else ("log", "log")
    of = "log" if kind == "log" else "raw"
    choices: list[tuple[str, Objective]] = [(f"{of} huber, delta 0.001", Huber(kind))]
    if scale > EXACT:
        tuned, sharp = TUNED * scale, SHARP * scale
        choices += [
            (f"{of} huber, delta {tuned:.2g} ({TUNED} sd)", Huber(kind, delta=tuned)),
            (f"{of} least absolute", Huber(kind, delta=sharp)),
        ]
    else:
        why = "the law passes through the rows: no scatter to set a delta by"
        yield replace(base, what="objective", setting=f"{of} huber, delta {TUNED} sd", why=why)
        yield replace(base, what="objective", setting=f"{of} least absolute", why=why)
    choices += [
        (f"{of} least squares", LeastSquares(kind)),
        (f"{plain} huber, delta 0.001", Huber(other)),  # type: ignore[arg-type]
        (f"{of} student-t, 4 df", StudentT(kind)),
    ]
    for setting, objective in choices:
        if objective != replace(base.objective, reduction="sum"):
            yield replace(base, what="objective", setting=setting, objective=objective)


def _forms(base: _Change) -> Iterator[_Change]:
    law, held = base.law, base.held
    kinds = {parameter.name: parameter.scale for parameter in law.parameters}
    pair = next((p for p in PAIRS if all(kinds.get(name) == "linear" for name in p)), None)
    tied = replace(base, what="form", setting="tied exponents")
    if pair is None:
        yield replace(tied, why=f"{law.slug} has no exponent for each of two axes")
    elif set(pair) & held.named:
        yield replace(tied, why=f"{' or '.join(pair)} is held")
    else:
        words = f"tied exponents ({'='.join(pair)})"
        yield replace(tied, setting=words, held=replace(held, tie=(*held.tie, pair)))
    floor = floor_of(law)
    bare = replace(base, what="form", setting="no floor")
    if floor is None:
        yield replace(bare, why=f"{law.slug} has no floor")
    elif floor in held.named:
        yield replace(bare, why=f"{floor} is held")
    else:
        setting = f"no floor ({floor} = 0)"
        yield replace(bare, setting=setting, held=replace(held, fix={**held.fix, floor: FLOOR}))
    yield from _other_laws(base)


def floor_of(law: Law) -> str | None:
    """The parameter that the target tends to as the axes grow, if the law has one."""
    return next((p.name for p in law.parameters if p.meaning.startswith(("irreducible", "limit"))), None)


def _other_laws(base: _Change) -> Iterator[_Change]:
    law = base.law
    size = next((axis for axis in law.axes if axis in SIZES), None)
    if size is None or set(law.axes) != {size, "tokens"}:
        yield replace(
            base, what="form", setting="another law", why=f"{law.spec} is not a law of size and tokens"
        )
        return
    for name in ("hoffmann", "kaplan-nd"):
        other = get(name)
        if name in (law.slug, law.alias_of):
            continue
        if other.target != law.target:
            yield replace(base, what="form", setting=f"law {name}", why=f"{name} gives {other.target}")
            continue
        change = replace(base, what="form", setting=f"law {name}", law=other, held=Constraints())
        if base.held.named:
            yield replace(change, why=f"what is held are parameters of {law.slug}")
            continue
        own = next(axis for axis in other.axes if axis in SIZES)
        runs = base.runs if own == size else _with_axis(base.runs, own, _column(base.runs, size))
        at = {own if axis == size else axis: value for axis, value in base.at.items()}
        yield replace(change, runs=runs, at=at)


def _rows(base: _Change, fit: Fit, scale: float) -> Iterator[_Change]:
    spent, n = _spent(fit.x), len(fit.y)
    tenth = max(1, n // 10)
    order = np.argsort(spent, kind="stable") if spent is not None else None
    for words, part in (("cheapest", slice(None, tenth)), ("dearest", slice(n - tenth, None))):
        setting = f"{words} tenth dropped"
        if order is None:
            yield replace(
                base, what="rows", setting=setting, why=f"no axis of {fit.law.spec} is a count with a cost"
            )
        else:
            yield _without(base, fit, setting, order[part])
    size = np.abs(fit.residuals)
    if scale <= EXACT:
        why = "the law passes through the rows"
        yield replace(base, what="rows", setting="largest residuals dropped", why=why)
        return
    wild = np.flatnonzero(size > FAR_OUT * scale)
    if len(wild):
        yield _without(base, fit, f"residuals above {FAR_OUT:g} robust sd dropped", wild)
    else:
        worst = np.argsort(-size, kind="stable")[: max(1, n // 20)]
        yield _without(base, fit, "largest 5 % of residuals dropped", worst)


def _without(base: _Change, fit: Fit, setting: str, which: Array) -> _Change:
    rows = tuple(sorted(fit.rows[which].tolist()))
    change = replace(base, what="rows", setting=setting, dropped=rows)
    left = len(fit.y) - len(rows)
    if left <= fit.free:
        return replace(
            change, why=f"{left} row{'' if left == 1 else 's'} would be left for {fit.free} parameters"
        )
    return replace(change, runs=base.runs.take(~np.isin(base.runs.rows, rows)))


def _checkpoints(base: _Change, fit: Fit) -> Iterator[_Change]:
    parts, why = subsets(base.runs, fit.law.axes, fit.law.target)
    if why:
        yield replace(base, what="checkpoints", setting="final, last 20 %, all", why=why)
        return
    own = base.runs.rows
    for setting, runs in parts.items():
        change = replace(base, what="checkpoints", setting=setting, runs=runs)
        if runs.source == base.runs.source and np.array_equal(runs.rows, own):
            yield replace(change, why="this is what was fitted")
        else:
            yield change


def _counting(base: _Change, fit: Fit) -> Iterator[_Change]:
    size = next((axis for axis in fit.law.axes if axis in SIZES), None)
    other = {"params": "params_nonembedding", "params_nonembedding": "params"}.get(size or "")
    setting = f"N counts {'all parameters' if other == 'params' else 'no embeddings'}"
    change = replace(base, what="counting", setting=setting)
    if size is None or other is None:
        yield replace(change, setting="N without embeddings", why=f"{fit.law.spec} does not read a size")
    elif other not in base.runs:
        yield replace(change, why=f"the table has no {other}")
    else:
        yield _counted(change, fit, size, base.runs.numeric(other)[0], f"{other} is {size} in every row")
    yield _flops(base, fit, size)


def _flops(base: _Change, fit: Fit, size: str | None) -> _Change:
    """Measured FLOPs against ``6 N D``: on an axis of FLOPs, or as the size that the FLOPs imply."""
    runs = base.runs
    change = replace(base, what="counting", setting="C as 6 N D")
    missing = [name for name in ("flops", "params", "tokens") if not is_measured(runs, name)]
    if missing:
        return replace(change, why=f"the table has no measured {' and no measured '.join(missing)}")
    flops, params, tokens = runs.numeric("flops", "params", "tokens")
    if "flops" in fit.law.axes:
        return _counted(change, fit, "flops", 6 * params * tokens, "flops is 6 N D in every row")
    if size is None or "tokens" not in fit.law.axes:
        return replace(change, why=f"{fit.law.spec} does not read FLOPs, or both size and tokens")
    change = replace(change, setting="N as flops / (6 D)")
    return _counted(change, fit, size, flops / (6 * tokens), "flops is 6 N D in every row")


def _counted(change: _Change, fit: Fit, axis: str, values: Array, same: str) -> _Change:
    """The change with other numbers on an axis, its reference point from the same run in those numbers."""
    old = _column(change.runs, axis)
    used = np.isin(change.runs.rows, fit.rows)
    if not np.isfinite(values[used]).all():
        return replace(change, why=f"the other count of {axis} is missing in rows of the fit")
    if np.max(np.abs(values[used] / old[used] - 1)) <= 0.01:
        return replace(change, why=same)
    i = int(np.flatnonzero(change.runs.rows == fit.rows[_dearest(fit)])[0])
    point = {name: float(v[_dearest(fit)]) for name, v in fit.x.items()}
    return replace(
        change,
        runs=_with_axis(change.runs, axis, values),
        at=_scaled({**point, axis: float(values[i])}),
    )


def _column(runs: Runs, name: str) -> Array:
    """A count column, derived where it is absent or has gaps."""
    return np.asarray(runs.derive().numeric(name)[0])


def _with_axis(runs: Runs, name: str, values: Array) -> Runs:
    """The table with other numbers in a column; for a refit only, so the measured ones are not at risk."""
    return replace(
        runs,
        columns={**runs.columns, name: np.asarray(values, dtype=float)},
        units={**runs.units, name: "FLOP" if name == "flops" else "count"},
    )

"""Hoffmann et al. 2022, approaches 1 and 2 (arXiv:2203.15556, sections 3.1 and 3.2): optima without a law.

Both read the optimal size off the runs at several budgets and draw a line through the logs. They are here
because people compare; a fitted law with :func:`isoloss.plan` uses every run and any limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.prediction import quantiles
from isoloss.runs import Runs, read

Array = np.ndarray[Any, np.dtype[Any]]

LEAST_SIZES = 3  # a parabola has three coefficients


@dataclass(frozen=True)
class Exponent:
    """The slope of a line through logs, with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal point read off at one budget: counts, FLOPs, and the loss there.

    Of approach 2 also the parabola, ``loss + curvature * ln(N / params)**2``, and the runs it goes through.
    """

    flops: float
    params: float
    tokens: float
    loss: float
    runs: int
    curvature: float = math.nan
    sizes: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A budget or rows that gave no optimum, and why; ``rows`` as in the source."""

    flops: float
    why: str
    rows: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Allocation:
    r"""How the optimum grows with compute: :math:`N_{opt} = k_N C^a`, :math:`D_{opt} = k_D C^b`.

    Attributes:
        approach: ``"envelope"`` or ``"isoflop"``.
        a, b: exponents of parameters and tokens.
        params_scale, tokens_scale: k_N and k_D, with C in FLOPs.
        optima: the points the lines go through.
        left_out: budgets and rows without an optimum.
        coverage, draws, seed: of the intervals; ``draws`` counts the resamples that gave a line.
    """

    approach: str
    a: Exponent
    b: Exponent
    params_scale: float
    tokens_scale: float
    optima: tuple[Optimum, ...]
    left_out: tuple[LeftOut, ...]
    coverage: float
    draws: int
    seed: int

    def at(self, flops: float) -> tuple[float, float]:
        """Optimal parameters and tokens at a training budget in FLOPs."""
        return self.params_scale * flops**self.a.value, self.tokens_scale * flops**self.b.value

    def __repr__(self) -> str:
        return (
            f"Allocation({self.approach}: N ~ C^{self.a.value:.3f} ({self.a.low:.3f} to {self.a.high:.3f}), "
            f"D ~ C^{self.b.value:.3f}; {len(self.optima)} optima, {len(self.left_out)} left out)"
        )


def line(flops: Array, values: Array) -> tuple[float, float]:
    """Exponent and scale of ``values = scale * flops**exponent``, least squares in logs.

    Example:
        >>> exponent, scale = line(np.array([1.0, 100.0]), np.array([3.0, 30.0]))
        >>> round(exponent, 6), round(scale, 6)
        (0.5, 3.0)
    """
    exponent, offset = np.polyfit(np.log(flops), np.log(values), 1)
    return float(exponent), math.exp(offset)


def isoflop(
    runs: Runs | Any,
    budgets: Sequence[float] | None = None,
    tolerance: float = 0.1,
    *,
    span: float = 8.0,
    draws: int = 1000,
    coverage: float = 0.9,
    seed: int = 0,
) -> Allocation:
    """Approach 2: at each FLOP budget a parabola of the loss in ln N, and a line through the vertices.

    Args:
        runs: a table with ``params``, ``loss``, and ``flops`` or ``tokens``; anything
            :func:`isoloss.read` takes.
        budgets: training FLOPs; a run belongs to one within ``tolerance`` of it. If not given, runs whose
            FLOPs follow each other within ``tolerance`` are one budget.
        tolerance: a share.
        span: sizes farther than this factor from the lowest run's are left out: the loss is a parabola
            only near its minimum (wide sweeps bias the vertex; ``math.inf`` keeps all).
        draws: bootstrap resamples of the runs within each budget.
        coverage: of the intervals.
        seed: same seed, same intervals.

    Raises:
        ValueError: a column is missing or not positive. NoAnswer: fewer than two budgets have an optimum.

    Example:
        >>> best = np.repeat([1e8, 1e9], 5)  # at 6e16 and 6e18 FLOPs
        >>> n = best * np.tile([0.25, 0.5, 1, 2, 4], 2)
        >>> table = {"params": n, "tokens": best**2 / n, "loss": 2 + np.log(n / best) ** 2}
        >>> isoflop(table, draws=50)
        Allocation(isoflop: N ~ C^0.500 (0.500 to 0.500), D ~ C^0.500; 2 optima, 0 left out)
    """
    if not (tolerance > 0 and span > 1 and draws >= 0 and 0 < coverage < 1):
        got = f"{tolerance}, {span}, {draws}, {coverage}"
        raise ValueError(f"isoflop needs tolerance > 0, span > 1, draws >= 0, 0 < coverage < 1, got {got}")
    points, left_out = _points(runs)
    groups, strays = _budgets(points, budgets, tolerance)
    if len(strays):
        rows = tuple(points.rows[strays].tolist())
        left_out.append(LeftOut(math.nan, f"not within {tolerance:.0%} of a budget", rows))
    rng = np.random.default_rng(seed)
    optima, clouds = [], []
    for group in groups:
        part = points.take(group)
        distant = np.abs(np.log(part.params / part.params[np.argmin(part.loss)])) > math.log(span)
        if distant.any():
            why = f"more than {span:g} times smaller or larger than the lowest run of this budget"
            left_out.append(LeftOut(part.budget, why, tuple(part.rows[distant].tolist())))
            part = part.take(~distant)
        found, why = _vertex(part, tolerance)
        if found is None:
            left_out.append(LeftOut(part.budget, why, tuple(part.rows.tolist())))
            continue
        optima.append(found)
        clouds.append(_resampled_vertices(part, draws, rng))
    return _allocation("isoflop", optima, np.array(clouds), left_out, coverage, seed)


def envelope(
    runs: Runs | Any,
    bins: int = 1500,
    *,
    draws: int = 200,
    coverage: float = 0.9,
    seed: int = 0,
) -> Allocation:
    """Approach 1: which run is lowest at each FLOP value, and a line through those sizes and tokens.

    Rows that share a ``run``, or the curves of the table, are training curves: they are interpolated in
    logs at ``bins`` FLOP values. Without curves each row is a point of its own, and the envelope is made
    of the runs that no cheaper run beats.

    Args:
        runs: as in :func:`isoflop`, one row per checkpoint with the same ``run``; or with curves.
        bins: FLOP values, log-spaced over the runs.
        draws: bootstrap resamples of the runs (whole curves).
        coverage: of the intervals.
        seed: same seed, same intervals.

    Raises:
        ValueError: a column is missing or not positive. NoAnswer: fewer than three points on the envelope.

    Example:
        >>> n, d = np.meshgrid(np.logspace(7, 9, 15), np.logspace(7, 9, 40))
        >>> table = {"params": n.ravel(), "tokens": d.ravel(), "loss": (1 / n + 1 / d).ravel() ** 0.3,
        ...          "run": [f"size {size:.3g}" for size in n.ravel()]}
        >>> round(envelope(table, bins=200, draws=0).a.value, 1)
        0.5
    """
    if not (bins >= 3 and draws >= 0 and 0 < coverage < 1):
        raise ValueError(
            f"envelope needs bins >= 3, draws >= 0, 0 < coverage < 1, got {bins}, {draws}, {coverage}"
        )
    points, left_out = _points(runs, curves=True)
    names, run = np.unique(points.run, return_inverse=True)
    points, run = _on_grid(points, run, bins)
    best = np.flatnonzero(_lowest(points.loss))
    if len(best) < 3:
        raise NoAnswer(f"the envelope has {len(best)} points", "runs of several sizes over a range of FLOPs")
    optima = [
        Optimum(
            float(points.flops[i]), float(points.params[i]), float(points.tokens[i]), float(points.loss[i]), 1
        )
        for i in best
    ]
    rng = np.random.default_rng(seed)
    slopes = []
    for _ in range(draws):
        drawn = np.isin(np.arange(len(names)), rng.choice(len(names), len(names)))
        low = _lowest(np.where(drawn[run], points.loss, math.inf))
        if low.sum() >= 3:
            values = (points.params[low], points.tokens[low])
            slopes.append([line(points.flops[low], value)[0] for value in values])
    return _result("envelope", optima, np.array(slopes).reshape(-1, 2), left_out, coverage, seed)


@dataclass(frozen=True, eq=False)
class _Points:
    """Measured points, all positive and finite, each (n,)."""

    flops: Array
    params: Array
    tokens: Array
    loss: Array
    rows: Array
    run: Array

    def take(self, which: Array) -> _Points:
        return _Points(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    @property
    def budget(self) -> float:
        return math.exp(float(np.mean(np.log(self.flops))))


def _points(runs: Runs | Any, curves: bool = False) -> tuple[_Points, list[LeftOut]]:
    """The usable rows, and what was left out."""
    table = runs if isinstance(runs, Runs) else read(runs)
    if curves and table.curves is not None:
        table = _joined(table, table.curves)
    table = table.derive()
    values = table.numeric("flops", "params", "tokens", "loss")
    good = np.logical_and.reduce([np.isfinite(v) & (v > 0) for v in values])
    names = table["run"] if "run" in table else np.full(len(table), "")
    # rows without a name are runs of their own
    own = np.array([str(name) or f"row {row}" for name, row in zip(names, table.rows, strict=True)])
    left_out = []
    if not good.all():
        why = "params, tokens, flops or loss is missing, infinite or not above 0"
        left_out.append(LeftOut(math.nan, why, tuple(table.rows[~good].tolist())))
    if not good.any():
        raise NoAnswer("no row has params, flops and loss", "rows with all three above 0")
    flops, params, tokens, loss = (value[good] for value in values)
    return _Points(flops, params, tokens, loss, table.rows[good], own[good]), left_out


def _joined(table: Runs, curves: Runs) -> Runs:
    """The curves of a table, with each run's size."""
    if "params" in curves:
        return curves
    sizes = dict(zip(table["run"].tolist(), table["params"].tolist(), strict=True))
    return curves.with_column(
        "params", np.array([sizes.get(run, math.nan) for run in curves["run"].tolist()]), unit="count"
    )


def _budgets(points: _Points, budgets: Sequence[float] | None, tolerance: float) -> tuple[list[Array], Array]:
    """Positions per budget, cheapest first, and positions that belong to none."""
    log_flops = np.log(points.flops)
    if budgets is None:
        order = np.argsort(log_flops, kind="stable")
        jumps = np.flatnonzero(np.diff(log_flops[order]) > math.log1p(tolerance)) + 1
        return np.split(order, jumps), np.empty(0, dtype=int)
    targets = np.sort(np.asarray(budgets, dtype=float))
    if len(targets) == 0 or not (np.isfinite(targets) & (targets > 0)).all():
        raise ValueError(f"isoflop needs budgets as FLOPs above 0, got {list(budgets)}")
    nearest = np.argmin(np.abs(log_flops[:, None] - np.log(targets)), axis=1)
    inside = np.abs(points.flops / targets[nearest] - 1.0) <= tolerance
    groups = [np.flatnonzero(inside & (nearest == j)) for j in range(len(targets))]
    return [group for group in groups if len(group)], np.flatnonzero(~inside)


def _vertex(part: _Points, tolerance: float) -> tuple[Optimum | None, str]:
    """The lowest point of the parabola through one budget, or why there is none."""
    spread = float(part.flops.max() / part.flops.min())
    if spread > (1 + tolerance) ** 4:
        return None, f"its FLOPs differ by a factor of {spread:.3g}, so it is no one budget: give budgets="
    sizes = len(np.unique(part.params))
    if sizes < LEAST_SIZES:
        return None, f"{sizes} sizes at this budget; a parabola needs {LEAST_SIZES}"
    vertex, curvature, loss = _parabolas(part, np.ones((1, len(part.loss))))
    if not curvature[0] > 0:
        return None, "the parabola opens downwards: the losses have no minimum over the sizes"
    x = np.log(part.params)
    if not x.min() <= vertex[0] <= x.max():
        end = "smallest" if vertex[0] < x.min() else "largest"
        return None, f"the minimum lies beyond the {end} size at this budget: add runs on that side"
    size = math.exp(float(vertex[0]))
    tokens = part.budget / (_per_token(part) * size)
    measured = tuple(part.params.tolist()), tuple(part.loss.tolist())
    return Optimum(part.budget, size, tokens, float(loss[0]), len(x), float(curvature[0]), *measured), ""


def _per_token(part: _Points) -> float:
    """FLOPs per parameter and token: 6 unless FLOPs were measured."""
    return math.exp(float(np.mean(np.log(part.flops / (part.params * part.tokens)))))


def _parabolas(part: _Points, weights: Array) -> tuple[Array, Array, Array]:
    """Vertex in ln N, curvature and lowest loss of the weighted parabolas, each (K,); weights (K, n)."""
    x = np.log(part.params)
    centre, scale = x.mean(), max(float(np.ptp(x)), 1e-12)
    basis = np.stack([np.ones_like(x), (x - centre) / scale, ((x - centre) / scale) ** 2], axis=1)
    normal = np.einsum("kn,ni,nj->kij", weights, basis, basis)
    right = np.einsum("kn,ni,n->ki", weights, basis, part.loss)
    c = np.einsum("kij,kj->ki", np.linalg.pinv(normal, rcond=1e-12, hermitian=True), right)
    with np.errstate(all="ignore"):
        place = -c[:, 1] / (2.0 * c[:, 2])
    return centre + scale * place, c[:, 2] / scale**2, c[:, 0] + 0.5 * c[:, 1] * place


def _resampled_vertices(part: _Points, draws: int, rng: np.random.Generator) -> Array:
    """ln of the optimal size in resamples of the runs; NaN where a resample has none. (draws,)"""
    n = len(part.loss)
    weights = rng.multinomial(n, np.full(n, 1.0 / n), size=draws).astype(float)
    vertex, curvature, _ = _parabolas(part, weights)
    x = np.log(part.params)
    _, codes = np.unique(x, return_inverse=True)
    distinct = ((weights @ np.eye(codes.max() + 1)[codes]) > 0).sum(axis=1)
    good = (curvature > 0) & (distinct >= LEAST_SIZES) & (vertex >= x.min()) & (vertex <= x.max())
    return np.where(good, vertex, math.nan)


def _allocation(
    approach: str, optima: list[Optimum], clouds: Array, left_out: list[LeftOut], coverage: float, seed: int
) -> Allocation:
    """The lines through the optima and through each resample's optima (budgets, draws)."""
    if len(optima) < 2:
        whys = "; ".join(f"{entry.flops:.3g} FLOPs: {entry.why}" for entry in left_out) or "one budget only"
        raise NoAnswer(
            f"{len(optima)} budgets have an optimum ({whys})",
            "at least 2 budgets with runs of at least 3 sizes, some on each side of the minimum",
        )
    flops = np.log([entry.flops for entry in optima])
    tokens = np.log([entry.tokens * entry.params for entry in optima])[:, None] - clouds
    slopes = np.stack([_slopes(flops, clouds), _slopes(flops, tokens)], axis=1)
    return _result(approach, optima, slopes[np.isfinite(slopes).all(axis=1)], left_out, coverage, seed)


def _slopes(x: Array, y: Array) -> Array:
    """Slope of each column of ``y`` (m, K) on ``x`` (m,), NaN entries left out."""
    known = np.isfinite(y)
    count = known.sum(axis=0)
    with np.errstate(all="ignore"):
        mean_x = np.where(known, x[:, None], 0.0).sum(axis=0) / count
        dx = np.where(known, x[:, None] - mean_x, 0.0)
        slope = (dx * np.where(known, y, 0.0)).sum(axis=0) / (dx**2).sum(axis=0)
    return np.where(count >= 2, slope, math.nan)


def _result(
    approach: str, optima: list[Optimum], slopes: Array, left_out: list[LeftOut], coverage: float, seed: int
) -> Allocation:
    flops = np.array([entry.flops for entry in optima])
    a, params_scale = line(flops, np.array([entry.params for entry in optima]))
    b, tokens_scale = line(flops, np.array([entry.tokens for entry in optima]))
    ends = [quantiles(s, coverage) if len(s) >= 2 else (math.nan, math.nan) for s in slopes.T]
    return Allocation(
        approach, Exponent(a, *ends[0]), Exponent(b, *ends[1]), params_scale, tokens_scale,
        tuple(optima), tuple(left_out), coverage, len(slopes), seed,
    )  # fmt: skip


def _on_grid(points: _Points, run: Array, bins: int) -> tuple[_Points, Array]:
    """Training curves at common FLOP values, single points as they are; cheapest first, then lowest."""
    grid = np.log(np.geomspace(points.flops.min(), points.flops.max(), bins))
    parts, owners = [], []
    for owner, rows in enumerate(np.split(np.argsort(run, kind="stable"), np.cumsum(np.bincount(run))[:-1])):
        part = points.take(rows[np.argsort(points.flops[rows], kind="stable")])
        if len(rows) > 1:
            x = np.log(part.flops)
            inside = grid[(grid >= x[0]) & (grid <= x[-1])]
            tokens, loss = (np.exp(np.interp(inside, x, np.log(y))) for y in (part.tokens, part.loss))
            same = np.zeros(len(inside), dtype=int)
            part = _Points(np.exp(inside), part.params[same], tokens, loss, part.rows[same], part.run[same])
        parts.append(part)
        owners.append(np.full(len(part.loss), owner))
    everything = _Points(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(points)}
    )
    order = np.lexsort((everything.loss, everything.flops))
    return everything.take(order), np.concatenate(owners)[order]


def _lowest(loss: Array) -> Array:
    """The mask of the envelope: points in order of FLOPs that nothing cheaper beats."""
    before = np.concatenate([[math.inf], np.minimum.accumulate(loss)[:-1]])
    return np.asarray(loss < before)

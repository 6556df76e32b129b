"""Two training procedures by their fitted laws: where they cross, and what one is worth in the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoloss.comparing.crossings import Crossings, crossings
from isoloss.comparing.levels import Level, observed, scale_of
from isoloss.comparing.versus_cautions import unit_of, warnings
from isoloss.comparing.versus_result import Crossing, Curve, Pairing, Point, Verdict, Versus
from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.law import UNITS
from isoloss.planning.result import Quantity, spread
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]
Ends = tuple[float, float]

POINTS = 9  # of the table over the range
STEP_FRONTIER, STEP_AXIS = 0.25, 0.1  # of the grid on which crossings are looked for, in ln of the scale


def versus(
    a: Fit,
    b: Fit,
    *,
    at: float | Sequence[float] | None = None,
    stretch: float = 10.0,
    coverage: float | None = None,
    seed: int = 0,
    names: tuple[str, str] = ("A", "B"),
) -> Versus:
    r"""Which of two training procedures is better at which scale, and how sure that is.

    The scale is training compute where both laws read a size and tokens: each draw's loss is then its own
    compute-optimal frontier, :math:`L^*(C) = \min_N L(N, C/(6N))`. Two laws of the same one axis are compared
    over that axis. Everything is computed draw by draw, for pairs of draws of the two fits:

    - the multiplier :math:`m(C) = L_B^{-1}(L_A(C)) / C`: how many times the scale B needs for the loss that A
      reaches at C (infinite where B never gets there);
    - all crossings from the smallest observed scale to ``stretch`` times the largest;
    - the difference of the losses, and the share of pairs in which A's is lower.

    A ranking at a scale is refused ("not resolved") where the interval of the difference covers 0; where the
    scale lies more than ``stretch`` beyond the rows of either fit; and behind a crossing that the rows of one
    of them do not reach beyond. The rule is that of crossing curves, Xiao 2024, arXiv:2409.15156; comparing
    procedures by laws fitted to compute-optimal points is Nezhurina et al. 2025, arXiv:2506.04598.

    Args:
        a, b: fits of one target in one unit.
        at: scales to rank at: training FLOPs, or amounts of the common axis.
        stretch: how far beyond its rows, as a factor, a fit may take part in a ranking.
        coverage: of the intervals; default the fits', the larger where they differ.
        seed: of the pairing of the draws. Two bootstraps of the same rows with the same seed are paired
            resample by resample instead, so that the noise they share cancels; a fit and itself likewise.
        names: of the two, for tables and pictures.

    Raises:
        ValueError: the laws have no scale in common, the target or its unit differs, or an argument is out of
            range. NoAnswer: a fit is not identified, or has no draws.

    Example:
        >>> import isoloss
        >>> tokens = [1e6, 2e6, 4e6, 8e6, 16e6, 32e6]
        >>> loss = lambda b, c: [b * (1 + 1e-3 * (-1) ** i) * x**-c for i, x in enumerate(tokens)]
        >>> a = isoloss.fit("power", {"tokens": tokens, "loss": loss(20, 0.1)}, draws=100)
        >>> b = isoloss.fit("power", {"tokens": tokens, "loss": loss(40, 0.15)}, draws=100)
        >>> found = versus(a, b, at=[8e6, 1e8])
        >>> [point.verdict for point in found.asked], found.crossing.better_below
        (['B', 'B'], 'A')
    """
    _check(a, b, stretch, coverage, names)
    share = coverage or max(a.coverage, b.coverage)
    scale = _common_scale(a, b, names)
    asked = _asked(at, scale)
    rows: tuple[Ends, Ends] = (_ends(observed(a)), _ends(observed(b)))
    low, high = min(rows[0][0], rows[1][0]), stretch * max(rows[0][1], rows[1][1])
    pairing, order_a, order_b = _pairs(a, b, seed)
    levels = Level(a.law, a.draws[order_a]), Level(b.law, b.draws[order_b])
    grid = _grid(low, high, len(a.law.axes) > 1 or len(b.law.axes) > 1)
    (loss_a, slope_a), (loss_b, slope_b) = (level.over(grid) for level in levels)
    found = crossings(*levels, grid, loss_a - loss_b, slope_a - slope_b, loss_a)
    rule = _Rule(names, rows, stretch, share, found)
    table = np.geomspace(low, high, POINTS)
    points = _points(levels, np.concatenate([table, asked]), share, rule)
    both = max(rows[0][0], rows[1][0]), min(rows[0][1], rows[1][1])
    return Versus(
        names=names,
        laws=(a.law.spec, b.law.spec),
        scale=scale,
        target=a.law.target,
        unit=unit_of(a),
        coverage=share,
        stretch=stretch,
        pairing=pairing,
        pairs=len(order_a),
        seed=seed,
        observed=rows,
        overlap=both if both[0] <= both[1] else None,
        limits=(low, high),
        points=points[:POINTS],
        asked=points[POINTS:],
        crossing=_summary(found, share),
        warnings=tuple(warnings(a, b, names, scale, both, (slope_a, slope_b))),
        curves=(_curve(grid, loss_a, share), _curve(grid, loss_b, share)),
    )


def _check(a: Fit, b: Fit, stretch: float, coverage: float | None, names: tuple[str, str]) -> None:
    for fit in (a, b):
        if not isinstance(fit, Fit):
            raise TypeError(
                f"versus needs two fits, got {type(fit).__name__}. Make one with isoloss.fit or isoloss.load"
            )
    if not 1 <= stretch < math.inf:
        raise ValueError(f"stretch must be a factor of at least 1, got {stretch:g}. Leave it out for 10")
    if coverage is not None and not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if len(names) != 2 or names[0] == names[1] or not all(names):
        raise ValueError(f"versus needs two different names, got {list(names)}")
    for name, fit in zip(names, (a, b), strict=True):
        if fit.result == "not-identified":
            causes = [w for w in fit.warnings if w.level == "error"]
            raise NoAnswer(
                f"{name}: the data do not determine {fit.law.spec}: " + "; ".join(w.text for w in causes),
                "; ".join(dict.fromkeys(w.do for w in causes)) or "runs that vary every axis on its own",
            )
        if len(fit.draws) < 2:
            raise NoAnswer(f"{name} has no draws, so nothing says how sure it is", "fit with draws=1000")
        if any(entry.code == "too-few-rows" for entry in fit.warnings):
            raise NoAnswer(
                f"{name}: {len(fit.y)} rows leave no residual to judge {fit.free} parameters by",
                f"at least {fit.free + 3} rows, or fixed, tied or borrowed parameters",
            )


def _common_scale(a: Fit, b: Fit, names: tuple[str, str]) -> str:
    """What both losses are curves over; raises where they cannot be compared."""
    first, second = scale_of(a.law), scale_of(b.law)
    if first is None or first != second or (len(a.law.axes) == 1) != (len(b.law.axes) == 1):
        raise ValueError(
            "versus needs two laws of a size and tokens, or two of the same one axis; got "
            f"{a.law.spec} of {', '.join(a.law.axes)} and {b.law.spec} of {', '.join(b.law.axes)}. Fit both with "
            "one law"
        )
    if a.law.target != b.law.target:
        raise ValueError(
            f"versus needs one target, got {a.law.target} ({names[0]}) and {b.law.target} ({names[1]}). Fit both "
            "to the same column"
        )
    if unit_of(a) != unit_of(b):
        raise ValueError(
            f"versus needs one unit of {a.law.target}, got {unit_of(a)} ({names[0]}) and {unit_of(b)} ({names[1]}). "
            "Convert both to nats per byte, which holds for any tokeniser, and fit again"
        )
    for axis in set(a.law.axes) & set(b.law.axes):
        units = [fit.units.get(axis) or UNITS.get(axis, "") for fit in (a, b)]
        if units[0] != units[1]:
            raise ValueError(
                f"versus needs one unit of {axis}, got {units[0]} and {units[1]}. Convert one of them"
            )
    return first


def _asked(at: float | Sequence[float] | None, scale: str) -> Array:
    out = np.atleast_1d(np.asarray([] if at is None else at, dtype=float))
    least = 6.0 if scale == "flops" else 0.0
    bad = ~(np.isfinite(out) & (out > least))
    if out.ndim > 1 or bad.any():
        raise ValueError(f"at needs finite {scale} above {least:g}, got {at}. Write 1e21, or [1e21, 1e22]")
    return out


def _ends(values: Array) -> Ends:
    return float(np.min(values)), float(np.max(values))


def _pairs(a: Fit, b: Fit, seed: int) -> tuple[Pairing, Array, Array]:
    """Which draw of A stands beside which of B.

    A bootstrap's resample k is a function of the seed, the number of rows and the number of draws alone, as
    long as no prior takes random numbers in between; on the same rows in the same order it is the same one.
    """
    one = a.law.spec == b.law.spec and np.array_equal(a.draws, b.draws)
    resamples = (
        a.seed == b.seed
        and a.fingerprint == b.fingerprint
        and a.uncertainty == b.uncertainty
        and a.uncertainty.startswith("bootstrap")
        and len(a.draws) == len(b.draws)
        and np.array_equal(a.rows, b.rows)
        and not (a.constraints.priors or b.constraints.priors)
    )
    if one or resamples:
        own = np.arange(len(a.draws))
        return "by draw", own, own
    rng = np.random.default_rng(seed)
    count = max(len(a.draws), len(b.draws))
    first, second = (np.resize(rng.permutation(len(fit.draws)), count) for fit in (a, b))
    return "independent", first, second


def _grid(low: float, high: float, frontier: bool) -> Array:
    width = math.log(high / low)
    count = max(17, 1 + math.ceil(width / (STEP_FRONTIER if frontier else STEP_AXIS)))
    return np.linspace(math.log(low), math.log(high), count)


def _points(levels: tuple[Level, Level], scale: Array, share: float, rule: _Rule) -> tuple[Point, ...]:
    """Both losses, their difference and the multiplier at every scale, with the verdict."""
    a, b = levels
    s = np.log(scale)
    loss_a, loss_b = a.over(s)[0], b.over(s)[0]
    count = len(loss_a)
    rows, start = np.repeat(np.arange(count), len(s)), np.tile(s, count)
    with np.errstate(over="ignore"):
        times = np.exp(b.reaching(rows, loss_a.ravel(), start) - start).reshape(count, len(s))
    out = []
    for i, amount in enumerate(scale.tolist()):
        difference = _quantity(loss_a[:, i] - loss_b[:, i], share)
        lower = float(np.mean(loss_a[:, i] < loss_b[:, i]) + 0.5 * np.mean(loss_a[:, i] == loss_b[:, i]))
        verdict, reason = rule.verdict(amount, difference)
        out.append(
            Point(
                scale=amount,
                loss_a=_quantity(loss_a[:, i], share),
                loss_b=_quantity(loss_b[:, i], share),
                difference=difference,
                multiplier=_quantity(times[:, i], share),
                never=float(np.mean(np.isinf(times[:, i]))),
                p_a_lower=lower,
                verdict=verdict,
                reason=reason,
            )
        )
    return tuple(out)


def _quantity(values: Array, share: float) -> Quantity:
    """Median and interval; endless draws count."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return Quantity(math.nan, math.nan, math.nan)
    middle = np.quantile(known, 0.5, method="linear" if np.isfinite(known).all() else "higher")
    return Quantity(float(middle), *spread(values, share))


def _curve(grid: Array, loss: Array, share: float) -> Curve:
    low, middle, high = np.quantile(loss, [(1 - share) / 2, 0.5, (1 + share) / 2], axis=0)
    return Curve(np.exp(grid), middle, low, high)


def _summary(found: Crossings, share: float) -> Crossing:
    place, rising = found.first()
    counts = found.counts()
    probability, several = float(np.mean(counts > 0)), float(np.mean(counts > 1))
    if not len(place):
        return Crossing(probability, several, Quantity(math.nan, math.nan, math.nan), None, None, math.nan)
    below: Literal["A", "B"] = "A" if np.mean(rising) >= 0.5 else "B"
    above: Literal["A", "B"] = "B" if below == "A" else "A"
    agree = float(np.mean(rising == (below == "A")))
    return Crossing(probability, several, _quantity(np.exp(place), share), below, above, agree)


@dataclass(frozen=True, eq=False)
class _Rule:
    """When a ranking may be said."""

    names: tuple[str, str]
    rows: tuple[Ends, Ends]
    stretch: float
    share: float
    found: Crossings

    def verdict(self, amount: float, difference: Quantity) -> tuple[Verdict, str]:
        """Who is lower at a scale, and why that may be said or not."""
        for name, (low, high) in zip(self.names, self.rows, strict=True):
            factor = max(amount / high, low / amount)
            if factor > self.stretch * (1 + 1e-9):
                side = f"above the largest of {name}'s rows ({format_count(high)})"
                if amount < low:
                    side = f"below the smallest of {name}'s rows ({format_count(low)})"
                return "not resolved", f"{factor:.3g} times {side}: no ranking beyond {self.stretch:g} times"
        percent = f"{100 * self.share:g}%"
        if not (difference.low > 0 or difference.high < 0):
            return "not resolved", f"the {percent} interval of the difference covers 0"
        before = self.found.last_before(math.log(amount))
        crossed = len(before) / self.found.draws
        reach = min(high for _, high in self.rows)
        if crossed > 1 - self.share:
            end = math.exp(spread(before, self.share)[1])
            if reach < end:
                short = self.names[0] if self.rows[0][1] <= self.rows[1][1] else self.names[1]
                return "not resolved", (
                    f"the curves cross before it in {crossed:.0%} of the draws, up to {format_count(end)}, and "
                    f"{short}'s rows end at {format_count(reach)}"
                )
        return "A" if difference.high < 0 else "B", f"the {percent} interval of the difference excludes 0"

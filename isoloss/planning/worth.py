"""What compression costs in parameters and tokens, what a bit is worth, and whether a smaller model would do better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.planning.belief import Belief, belief
from isoloss.planning.frontier import Variant, hull, places, variants
from isoloss.planning.result import Quantity, spread
from isoloss.planning.search import bisect, tokens_for
from isoloss.planning.surface import EDGE, SIZES, Surface
from isoloss.planning.worth_result import Choice, Rated, Row, Smaller, Step, Worth
from isoloss.runs import Runs
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]

REACH = math.log(1e6)  # more than this factor of parameters is any number
ALONE = 1000  # draws of the measurement's error where the law has none of its own
TRAINED = 16.0  # bits of a smaller model, where nothing else is said
BETWEEN = 61  # sizes of the picture's curve


def worth(
    runs: Runs,
    source: Fit | Law | str | None = None,
    *,
    theta: Any = None,
    tokens: float | None = None,
    against: Sequence[float] = (TRAINED,),
    at: float | None = None,
    hold: Mapping[str, float] | None = None,
    coverage: float | None = None,
    seed: int = 0,
) -> Worth:
    r"""The frontier of a table of variants and, with a law, what compression is worth.

    With L the law, N and D parameters and tokens of the model and r the measured rise of a variant:

    - equal parameters :math:`N'` with :math:`L(N', D) = L(N, D) + r`, equal tokens :math:`D'` with
      :math:`L(N, D') = L(N, D) + r`, as shares of N and D;
    - a bit, between neighbours on the hull: :math:`\Delta r / \Delta b`, and by which factor :math:`N'` and :math:`D'`
      change for it;
    - a smaller model of the same bytes S, :math:`N_s = 8 S / b_0`, on the same tokens, or on the same training FLOPs with
      :math:`D_s = D N / N_s`: :math:`L(N_s, D_s) - L(N, D) - r`, above 0 where compression is better.

    Only differences of the law count, so that the model's own loss need not be on the law; rise and law must be in the same
    unit and on like data. Every draw of the law gets a rise of its own, :math:`r + s z` with s its standard error.

    Args:
        runs: what ``isoloss compress --frontier`` writes.
        source: a fit, or a law with ``theta``, of a size (and tokens); without it the frontier alone.
        theta: of a law: the name of a published fit, or values.
        tokens: that the model was trained on; by default those for which its size is compute-optimal by the law, or the
            column ``tokens`` of the table.
        against: bits that a smaller model is stored in.
        at: bits a weight at which a bit is asked for.
        hold: further axes of the law.
        coverage: of intervals; default the fit's, or 0.9.
        seed: of the draws of the measurement's error.

    Raises:
        ValueError: columns, or values of a further axis, are missing; the law reads no size.
        NoAnswer: the fit says that its data do not determine the law; ``at`` lies outside the frontier.

    Example:
        >>> from isoloss.runs import from_rows
        >>> rows = [{"model": "m", "variant": "original", "params": 1e9, "bits_post": 16, "bytes": 2e9, "rise": 0, "rise_se": 0},
        ...         {"model": "m", "variant": "int4", "params": 1e9, "bits_post": 4, "bytes": 5e8, "rise": 0.02, "rise_se": 0.001}]
        >>> found = worth(from_rows(rows), "hoffmann@besiroglu-2024", tokens=2e10)
        >>> row = found.models[0].rows[0]  # from the smallest on
        >>> round(row.params_equal.value, 3), row.smaller[0].verdict
        (0.855, 'compress')
    """
    if coverage is not None and not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if not all(bits > 0 for bits in against):
        raise ValueError(f"needed bits above 0 for a smaller model, got {list(against)}")
    held = None if source is None else belief(source, theta, coverage)
    if held is None and (tokens is not None or hold):
        raise ValueError(
            "tokens and held axes are read by a law, and none was given. Give one, or leave them out"
        )
    share = coverage if coverage is not None else (held.coverage if held else 0.9)
    size = _size(held)
    found = variants(runs, size)
    where = places(found, share)
    models: list[Rated] = []
    notes: list[str] = []
    for key in dict.fromkeys((v.model, v.data) for v in found):
        own = [(v, p) for v, p in zip(found, where, strict=True) if (v.model, v.data) == key]
        own.sort(key=lambda pair: pair[0].bytes)
        asked = (
            None if held is None else _question(held, runs, [v for v, _ in own], tokens, hold, share, seed)
        )
        models.append(_rated(own, asked, against, at, share, seed))
        notes += () if asked is None else asked.notes
    if any(math.isnan(v.rise_se) for v in found):
        notes.append("the error of some rises is not known: there is no interval where they count")
    if held is not None and not len(held.draws):
        notes.append("the law has no draws: intervals hold the error of the measurement alone")
    return Worth(
        source=runs.source,
        law=held.law.spec if held else None,
        size=size,
        coverage=share,
        against=tuple(float(bits) for bits in against) if held else (),
        models=tuple(models),
        notes=tuple(dict.fromkeys(notes)),
    )


def _size(held: Belief | None) -> str:
    if held is None:
        return "params"
    sizes = [axis for axis in held.law.axes if axis in SIZES]
    if not sizes:
        raise ValueError(
            f"needed a law of params, got {held.law.spec} on {list(held.law.axes)}. Fit one to runs of several sizes"
        )
    return sizes[0]


@dataclass(frozen=True, eq=False)
class _Question:
    """One model on the law: plug-in in the first row, draws in the others; ln N and ln D of the model."""

    belief: Belief
    surface: Surface
    x: float
    d: float
    how: str
    plane: bool
    coverage: float
    noise: Any  # np.random.Generator
    notes: tuple[str, ...]

    @property
    def rows(self) -> int:
        return len(self.surface.theta)

    def loss(self, x: float | Array, d: float | Array, bits: float | None = None) -> Array:
        """(rows,)."""
        surface = self.surface if bits is None else _in_bits(self.surface, bits)
        return surface.loss(np.reshape(x, (-1, 1)), np.reshape(d, (-1, 1)))[:, 0]

    def rise(self, variant: Variant) -> Array:
        """The measured rise, (rows,): as measured in the first row, with its error in the others; NaN if that is unknown."""
        drawn = variant.rise + variant.rise_se * self.noise.standard_normal(self.rows)
        drawn[0] = variant.rise
        return np.asarray(drawn)

    def equal(self, rise: Array) -> tuple[Array, Array]:
        """ln of the shares of N and of D that the loss with the rise is worth, (rows,) each."""
        x, d = np.full((1, 1), self.x), np.full((1, 1), self.d)
        target = self.loss(self.x, self.d)[:, None] + rise[:, None]
        low, high = (np.full((self.rows, 1), end) for end in (max(self.x - REACH, 0.0), self.x + REACH))
        size = bisect(lambda at: self.surface.loss(at, d) < target, low, high)
        worse, better = self.surface.loss(low, d) < target, self.surface.loss(high, d) > target
        size = np.where(better, np.inf, np.where(worse, -np.inf, size)) - self.x
        tokens = tokens_for(self.surface, target, x) - self.d if self.plane else np.nan
        unknown = np.isnan(target)
        return np.where(unknown, np.nan, size)[:, 0], np.where(unknown, np.nan, tokens)[:, 0]

    def quantity(self, values: Array) -> Quantity:
        return Quantity(float(values[0]), *spread(values[1:], self.coverage))


def _in_bits(surface: Surface, bits: float) -> Surface:
    """The surface of models trained in these bits, where the law knows that."""
    if "bits_weights" not in surface.law.axes:
        return surface
    return replace(surface, others={**surface.others, "bits_weights": bits})


def _question(
    held: Belief,
    runs: Runs,
    own: Sequence[Variant],
    tokens: float | None,
    hold: Mapping[str, float] | None,
    coverage: float,
    seed: int,
) -> _Question:
    size = {v.params for v in own}
    if len(size) != 1 or not math.isfinite(next(iter(size))):
        raise ValueError(
            f"needed one number of {_size(held)} for the model {own[0].model!r}, got {sorted(size)}. Name the column "
            f"with --columns {_size(held)}=COLUMN"
        )
    others = _others(held.law, dict(hold or {}), _size(held))
    draws = held.draws if len(held.draws) else np.repeat(held.theta[None], ALONE, axis=0)
    surface = Surface(held.law, np.concatenate([held.theta[None], draws]), others=others)
    x, plane, notes = math.log(next(iter(size))), "tokens" in held.law.axes, list[str]()
    if tokens is None and plane and "tokens" in runs:
        rows = [int(np.flatnonzero(runs.rows == v.row)[0]) for v in own]
        known = runs.numeric("tokens")[0][rows]
        tokens = float(known[0]) if np.isfinite(known).all() and len(set(known)) == 1 else None
    how = "given" if tokens is not None else "compute-optimal by the law"
    d = 0.0
    if plane:
        d = math.log(tokens) if tokens is not None else _optimal(surface, x)
        if tokens is None:
            notes.append(
                f"{own[0].model or 'the model'}: tokens are not known, so those are taken for which its size is "
                f"compute-optimal by the law, {format_count(math.exp(d))}"
            )
    return _Question(held, surface, x, d, how, plane, coverage, np.random.default_rng(seed), tuple(notes))


def _others(law: Law, hold: dict[str, float], size: str) -> dict[str, float]:
    """Further axes of the law: held, in 16 bits, or absent where the law allows that."""
    unknown = [axis for axis in hold if axis not in law.axes or axis in (size, "tokens", "tokens_unique")]
    if unknown:
        raise ValueError(
            f"{law.spec} has no further axis {unknown[0]}: it reads {', '.join(law.axes)}. Leave it out"
        )
    out = {**({"bits_weights": TRAINED} if "bits_weights" in law.axes else {}), **hold}
    left = [
        axis
        for axis in law.given([size, "tokens", *out]).axes
        if axis not in (size, "tokens", "tokens_unique", *out)
    ]
    if left:
        raise ValueError(
            f"{law.spec} reads {left[0]}, of which nothing is said: hold it (--hold {left[0]}=VALUE)"
        )
    return out


def _optimal(surface: Surface, x: float) -> float:
    """ln of the tokens for which ``x`` is the best size of its training FLOPs, by the best parameters.

    There a step of ln N gives as much as one of ln D, as :math:`C = 6 N D` trades the one for the other.
    """
    one = surface.rows_at(np.array([0]))
    at = np.full((1, 1), x)

    def enough(d: Array) -> Array:
        _, by_size, by_tokens = one.slopes(at, d)
        return by_tokens > by_size  # both are negative: tokens give less than parameters

    ends = np.zeros((1, 1)), np.full((1, 1), EDGE)
    if bool(enough(ends[0])[0, 0]) or not bool(enough(ends[1])[0, 0]):
        raise NoAnswer(
            f"{surface.law.spec} has no number of tokens for which {format_count(math.exp(x))} parameters are best",
            "the tokens of the model: --tokens",
        )
    return float(bisect(enough, *ends)[0, 0])


def _rated(
    own: Sequence[tuple[Variant, Any]],
    asked: _Question | None,
    against: Sequence[float],
    at: float | None,
    coverage: float,
    seed: int,
) -> Rated:
    edge = hull([v for v, _ in own])
    rises: dict[int, Array] = {}
    equal: dict[int, tuple[Array, Array]] = {}
    if asked is not None:
        rises = {v.row: asked.rise(v) for v, _ in own}
        equal = {row: asked.equal(rise) for row, rise in rises.items()}
    rows = tuple(_row(v, place, v in edge, asked, rises, equal, against) for v, place in own)
    steps = tuple(
        _step(a, b, asked, rises, equal, coverage, seed)
        for a, b in itertools.pairwise(edge)
        if b.bits > a.bits
    )
    here = None
    if at is not None:
        here = next((step for step in steps if step.low <= at <= step.high), None)
        if here is None:
            ends = f"{edge[0].bits:.4g} to {max(v.bits for v in edge):.4g}"
            raise NoAnswer(
                f"{at:g} bits a weight lie outside the frontier, {ends}", "variants around it, measured"
            )
    first = own[0][0]
    original = next((v for v, _ in own if v.is_original), None)
    return Rated(
        model=first.model,
        data=first.data,
        params=None if math.isnan(first.params) else first.params,
        tokens=math.exp(asked.d) if asked and asked.plane else None,
        tokens_how=asked.how if asked and asked.plane else None,
        original_bytes=None if original is None else original.bytes,
        rows=rows,
        steps=steps,
        at=here,
        best=_best(own, asked, equal, against),
        curve=_curve(asked, own, against) if asked else (),
    )


def _row(
    v: Variant,
    place: Any,
    on_hull: bool,
    asked: _Question | None,
    rises: Mapping[int, Array],
    equal: Mapping[int, tuple[Array, Array]],
    against: Sequence[float],
) -> Row:
    params = tokens = None
    smaller: list[Smaller] = []
    if asked is not None:
        size, data = equal[v.row]
        with np.errstate(over="ignore"):
            params = asked.quantity(np.exp(size))
            tokens = asked.quantity(np.exp(data)) if asked.plane else None
        if not v.is_original:
            smaller = [one for bits in against for one in _smaller(v, asked, rises[v.row], bits)]
    return Row(
        v.name, v.solver, v.bits, v.bytes, v.loss, v.loss_se, v.rise, v.rise_se, place, on_hull, params, tokens,
        tuple(smaller),
    )  # fmt: skip


def _smaller(v: Variant, asked: _Question, rise: Array, bits: float) -> list[Smaller]:
    """Against models of fewer parameters and the same bytes; none where the original fits in these bits."""
    x = math.log(8.0 * v.bytes / bits)
    if x >= asked.x:
        return []
    before = asked.loss(asked.x, asked.d) + rise
    ways = [("same tokens", asked.d)]
    if asked.plane:
        ways.append(("same training FLOPs", asked.d + asked.x - x))
    out = []
    for what, d in ways:
        delta = asked.loss(x, d, bits) - before
        found = asked.quantity(delta)
        drawn = delta[1:]
        better = float(np.mean(drawn > 0)) if not np.isnan(drawn).any() else math.nan
        verdict = "compress" if found.low > 0 else "train smaller" if found.high < 0 else "not resolved"
        tokens = math.exp(d) if asked.plane else None
        out.append(Smaller(bits, what, math.exp(x), tokens, found, better, verdict, _reach(asked, x, d)))
    return out


def _reach(asked: _Question, x: float, d: float) -> float:
    """By which factor the point leaves the rows that the law was fitted to; 1 inside, NaN where they are not known."""
    fit = asked.belief.fit
    if fit is None:
        return math.nan
    point: dict[str, Any] = {asked.surface.size: math.exp(x), **asked.surface.others}
    if asked.plane:
        point["tokens"] = math.exp(d)
    if "tokens_unique" in asked.surface.law.axes:
        point["tokens_unique"] = math.exp(d)
    inputs = {name: np.atleast_1d(value) for name, value in fit.law.inputs(point).items()}
    return float(np.max(fit.reach(inputs)))


def _step(
    a: Variant,
    b: Variant,
    asked: _Question | None,
    rises: Mapping[int, Array],
    equal: Mapping[int, tuple[Array, Array]],
    coverage: float,
    seed: int,
) -> Step:
    """From one variant of the hull to the next larger one, for each bit."""
    bits = b.bits - a.bits
    if asked is None:
        noise = np.random.default_rng(seed).standard_normal((2, ALONE))
        drawn = [v.rise + v.rise_se * z for v, z in zip((a, b), noise, strict=True)]
        loss = Quantity((b.rise - a.rise) / bits, *spread((drawn[1] - drawn[0]) / bits, coverage))
        return Step(a.name, b.name, a.bits, b.bits, loss, None, None)
    with np.errstate(all="ignore"):
        params, tokens = (
            asked.quantity(np.exp((equal[b.row][i] - equal[a.row][i]) / bits)) for i in range(2)
        )
    loss = asked.quantity((rises[b.row] - rises[a.row]) / bits)
    return Step(a.name, b.name, a.bits, b.bits, loss, params, tokens if asked.plane else None)


def _best(
    own: Sequence[tuple[Variant, Any]],
    asked: _Question | None,
    equal: Mapping[int, tuple[Array, Array]],
    against: Sequence[float],
) -> tuple[Choice, ...]:
    """Of every variant the parameters that it is worth for each byte, and how often that is most of all.

    Where the share N'/N of a format does not depend on the size, the format with most is the one to store any number of bytes
    in. The original counts in the bits of ``against``, at no loss.
    """
    if asked is None:
        return ()
    n = math.exp(asked.x)
    names, values = [], []
    for v, _ in own:
        if not v.is_original:
            names.append((v.name, v.solver, v.bits))
            with np.errstate(over="ignore"):
                values.append(n * np.exp(equal[v.row][0]) / v.bytes)
    for bits in against:
        names.append((f"trained in {bits:g} bits", "", float(bits)))
        values.append(np.full(asked.rows, 8.0 / bits))
    table = np.array(values)
    first = np.full(len(names), math.nan)
    if not np.isnan(table).any():
        first = np.bincount(np.argmax(table[:, 1:], axis=0), minlength=len(names)) / (asked.rows - 1)
    return tuple(
        Choice(name, solver, bits, asked.quantity(table[i]), float(first[i]))
        for i, (name, solver, bits) in enumerate(names)
    )


def _curve(
    asked: _Question, own: Sequence[tuple[Variant, Any]], against: Sequence[float]
) -> tuple[tuple[float, tuple[tuple[float, Quantity], ...]], ...]:
    """For the picture: bits -> (bytes, rise of a smaller model on the same tokens) from the smallest variant's bytes on."""
    least = min(v.bytes for v, _ in own)
    out = []
    for bits in against:
        whole = math.exp(asked.x) * bits / 8.0
        if least >= whole:
            continue
        sizes = np.exp(np.linspace(math.log(least), math.log(whole), BETWEEN))
        before = asked.loss(asked.x, asked.d)
        points = tuple(
            (float(s), asked.quantity(asked.loss(math.log(8.0 * s / bits), asked.d, bits) - before))
            for s in sizes
        )
        out.append((float(bits), points))
    return tuple(out)

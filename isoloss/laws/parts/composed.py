"""Laws that compose: a base, factors of its axes, terms of its target, a link to another target."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Parameter, Published
from isoloss.laws.parts.part import Factor, LossTerm, Part
from isoloss.laws.power_sum import Term

# The axes that count as size; a factor or term of `params` takes the one that the base reads.
SIZES = ("params", "params_nonembedding", "params_active")
# Thetas times points that are computed at once: what stays in the cache is several times faster.
BLOCK = 2**15


class _Some(dict[str, float]):
    """Values of some slots; any other reads as NaN, which is no value to fix a slot at."""

    def __missing__(self, name: str) -> float:
        return math.nan


@dataclass(frozen=True)
class Composed(Law):
    """``link(base(axes * factors) + terms)``: itself a law.

    Factors read raw axes, so their order does not matter (they are kept by name). Terms read the axes as the base
    does, after the factors. A column that is absent is at the reference of its part: the law without that part,
    exactly. Where two pieces have a parameter of one name, that of the later piece carries the piece's name in
    front; the base keeps its own names.

    Attributes:
        base: the law that gives the target.
        factors: of its axes.
        terms: of its target.
        link: a law whose one axis is the base's target, or none.

    Raises:
        ValueError: a piece twice, or a piece that does not fit the base.

    Example:
        >>> from isoloss.laws import get
        >>> law = get("hoffmann * precision(bits_weights)")
        >>> law.names
        ('E', 'A', 'B', 'alpha', 'beta', 'gamma_w', 'n_w')
        >>> theta = [1.8, 480, 2000, 0.35, 0.37, 2.67, 0.30]
        >>> law.evaluate(theta, params=1e9, tokens=1e11, bits_weights=[4, 16]).round(3).tolist()
        [2.356, 2.31]
        >>> float(law.evaluate(theta, params=1e9, tokens=1e11).round(3))
        2.31
    """

    base: Law
    factors: tuple[Factor, ...] = ()
    terms: tuple[LossTerm, ...] = ()
    link: Law | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(sorted(self.factors, key=lambda part: part.slug)))
        object.__setattr__(self, "terms", tuple(sorted(self.terms, key=lambda part: part.slug)))
        slugs = [piece.slug for piece in self.pieces]
        twice = next((slug for slug in slugs if slugs.count(slug) > 1), None)
        if twice:
            raise ValueError(f"{twice} is in the law twice. Keep one")
        for factor in self.factors:
            self._axis(factor.scales, factor)
        for term in self.terms:
            for axis in ("params", "tokens"):
                self._axis(axis, term)
        if self.link is not None and self.link.axes != (self.base.target,):
            raise ValueError(
                f"a link after {self.base.spec} needs one axis, {self.base.target}; {self.link.spec} reads "
                f"{', '.join(self.link.axes)}"
            )
        for part in self.parts:
            if self.base.slug in part.within:
                raise ValueError(f"{self.base.spec} holds {part.slug} already. Leave it out")
            lacking = [name for name in part.shared if name not in self.base.names]
            if lacking:
                raise ValueError(f"{part.slug} reads {lacking[0]} of its base; {self.base.spec} has none")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"two parameters of {self.spec} would have one name: {', '.join(self.names)}")

    def _axis(self, axis: str, part: Part) -> str:
        """The base's axis behind ``params`` or ``tokens``."""
        found = next((a for a in (SIZES if axis == "params" else (axis,)) if a in self.base.axes), None)
        if found is None:
            raise ValueError(
                f"{part.slug} needs a base that reads {axis}; {self.base.spec} reads {', '.join(self.base.axes)}"
            )
        return found

    def _raw(self, x: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a factor reads: the raw axes, the size (if the base has one) always as ``params`` too."""
        size = next((axis for axis in SIZES if axis in self.base.axes), "params")
        return x if size == "params" else {**x, "params": x[size]}

    @property
    def parts(self) -> tuple[Part, ...]:
        """Factors, then terms."""
        return (*self.factors, *self.terms)

    @property
    def pieces(self) -> tuple[Law | Part, ...]:
        """Base, factors, terms, link: the order of theta."""
        return (self.base, *self.parts, *(() if self.link is None else (self.link,)))

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The base's, then the columns of the parts."""
        return tuple(dict.fromkeys((*self.base.axes, *(name for part in self.parts for name in part.reads))))

    @property
    def target(self) -> str:  # type: ignore[override]
        """The base's, or the link's."""
        return self.base.target if self.link is None else self.link.target

    @property
    def defaults(self) -> Mapping[str, str]:  # type: ignore[override]
        """The base's."""
        return self.base.defaults

    @property
    def may_be_zero(self) -> tuple[str, ...]:  # type: ignore[override]
        """The base's and the parts'."""
        return (*self.base.may_be_zero, *(name for part in self.parts for name in part.may_be_zero))

    @property
    def signed(self) -> bool:  # type: ignore[override]
        """Of the law that gives the target."""
        return (self.link or self.base).signed

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str] | None:
        """What the base and every part accept; in words, what the first needs that refuses a point."""
        asked = [self.base.accepts({axis: x[axis] for axis in self.base.axes})]
        verdicts = [
            v for v in (*asked, *(part.accepts(self._raw(x)) for part in self.parts)) if v is not None
        ]
        if not verdicts:
            return None
        words = next((needs for good, needs in verdicts if not good.all()), verdicts[0][1])
        return np.logical_and.reduce([good for good, _ in verdicts]), words

    @cached_property
    def slots(self) -> tuple[tuple[str, Parameter], ...]:
        """Slug of the piece and its own parameter, for each entry of theta."""
        return tuple((piece.slug, parameter) for piece in self.pieces for parameter in piece.parameters)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:  # type: ignore[override]
        """Of all pieces; those of later pieces are prefixed where a name is taken."""
        own = [parameter.name for _, parameter in self.slots]
        return tuple(
            parameter
            if slug == self.base.slug or own.count(parameter.name) == 1
            else replace(parameter, name=f"{slug.replace('-', '_')}_{parameter.name}")
            for slug, parameter in self.slots
        )

    @cached_property
    def slot_names(self) -> Mapping[tuple[str, str], str]:
        """(Slug of a piece, its own name of a parameter) -> the parameter's name in this law."""
        return {(slug, own.name): name for (slug, own), name in zip(self.slots, self.names, strict=True)}

    @property
    def slug(self) -> str:
        """The spec: a composed law has no shorter name."""
        return self.spec

    @property
    def spec(self) -> str:
        """``hoffmann * precision + ptq``; what :func:`isoloss.laws.get` reads."""
        head = " * ".join((self.base.spec, *(part.spec for part in self.factors)))
        text = " + ".join((head, *(part.spec for part in self.terms)))
        return text if self.link is None else f"{text} -> {self.link.spec}"

    @property
    def formula(self) -> str:  # type: ignore[override]
        """The pieces' formulas, one line."""
        parts = [self.base.formula]
        parts += [f"with {factor.scales} times {factor.formula}" for factor in self.factors]
        parts += [f"plus {term.formula}" for term in self.terms]
        return ", ".join(parts) + (f"; of this {self.link.formula}" if self.link is not None else "")

    @property
    def paper(self) -> str:  # type: ignore[override]
        """The pieces' papers, and which pieces nobody fitted together."""
        papers = "; ".join(dict.fromkeys(piece.paper for piece in self.pieces if piece.paper))
        apart = ", ".join(f"{a} and {b}" for a, b in self.assumed_separable)
        return f"{papers}; assumed separable: {apart}" if apart else papers

    @property
    def assumed_separable(self) -> tuple[tuple[str, str], ...]:
        """Pairs of base and parts that no paper fitted together: their product or sum is an assumption."""
        together = {part.slug: part.together for part in self.parts}
        slugs = [self.base.slug, *together]
        return tuple(
            (a, b)
            for a, b in itertools.combinations(slugs, 2)
            if b not in together.get(a, ()) and a not in together[b]
        )

    @property
    def published(self) -> Mapping[str, Published]:  # type: ignore[override]
        """The pieces' published fits, by name: a slot that a fit says nothing of is not in it, and reads as NaN."""
        values: dict[str, _Some] = {}
        texts: dict[str, list[str]] = {}
        for piece in self.pieces:
            for label, found in piece.published.items():
                own = {self.slot_names[piece.slug, key]: value for key, value in found.values.items()}
                values.setdefault(label, _Some()).update(own)
                texts.setdefault(label, []).append(found.source)
        return {
            label: Published(own, "; ".join(dict.fromkeys(texts[label]))) for label, own in values.items()
        }

    def given(self, columns: Collection[str]) -> Law:
        """The law on these columns: parts, or columns of parts, that are not among them are at their reference.

        Example:
            >>> from isoloss.laws import get
            >>> law = get("hoffmann * precision + ptq")
            >>> law.given(["params", "tokens", "bits_weights"]).spec
            'hoffmann * precision(bits_weights)'
            >>> law.given(["params", "tokens"]).spec
            'hoffmann'
        """
        factors = tuple(part for f in self.factors if (part := f.given(columns)) is not None)
        terms = tuple(term for t in self.terms if (term := t.given(columns)) is not None)
        if factors == self.factors and terms == self.terms:
            return self
        if not factors and not terms and self.link is None:
            return self.base
        return replace(self, factors=factors, terms=terms)

    def _kept(self, law: Law) -> list[int]:
        """Where the parameters of ``self.given(...)`` lie in theta."""
        if not isinstance(law, Composed):
            return list(range(len(self.base.parameters)))
        at = {(slug, own.name): i for i, (slug, own) in enumerate(self.slots)}
        return [at[slug, own.name] for slug, own in law.slots]

    def inputs(self, x: Mapping[str, Any]) -> dict[str, Array]:
        """As :meth:`isoloss.laws.law.Law.inputs`; columns of parts may be absent and stay so."""
        law = self if any(name not in self.axes for name in x) else self.given(x)
        return super().inputs(x) if law is self else law.inputs(x)

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`; NaN where a factor is not defined."""
        law = self.given(x)
        if law is not self:
            return law.value([theta[i] for i in self._kept(law)], x)
        numbers = all(isinstance(entry, np.ndarray) for entry in (*theta, *x.values()))
        if not numbers or any(entry.ndim != 2 for entry in theta) or any(v.ndim != 1 for v in x.values()):
            return self._value(theta, x)
        counts = {len(entry) for entry in theta}
        step = max(1, BLOCK // max(len(v) for v in x.values()))
        if len(counts) > 1 or max(counts) <= step:
            return self._value(theta, x)
        blocks = range(0, max(counts), step)
        return np.concatenate([self._value([e[i : i + step] for e in theta], x) for i in blocks])

    def _value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        out, _ = self._target(theta, x)
        if self.link is not None:
            own = list(theta)[len(self.names) - len(self.link.names) :]
            out = self.link.value(own, {self.base.target: out})
        return out

    def _target(self, theta: Sequence[Any], x: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The target before the link, and what each part is there: a factor or a term, by slug."""
        left = iter(theta)
        base = dict(zip(self.base.names, left, strict=False))
        own = {
            part.slug: {
                **{name: base[name] for name in part.shared},
                **dict(zip([p.name for p in part.parameters], left, strict=False)),
            }
            for part in self.parts
        }
        effective, effects, raw = dict(x), {}, self._raw(x)
        for factor in self.factors:
            axis = self._axis(factor.scales, factor)
            effects[factor.slug] = factor.value(own[factor.slug], raw)
            effective[axis] = effective[axis] * effects[factor.slug]
        out = self.base.value(list(base.values()), {axis: effective[axis] for axis in self.base.axes})
        for term in self.terms:
            seen = {**effective, "params": effective[self._axis("params", term)]}
            effects[term.slug] = term.value(own[term.slug], seen)
            out = out + effects[term.slug]
        return out, effects

    def effects(self, theta: Any, **axes: Any) -> dict[str, Array]:
        """What each part is at each point: the factor of its axis, or what it adds to the target.

        Args:
            theta: shape (..., P).
            axes: as in :meth:`isoloss.laws.law.Law.evaluate`; at an absent column a factor is 1, a term 0.

        Returns:
            By slug, each of shape (..., *X).

        Example:
            >>> from isoloss.laws import get
            >>> law = get("hoffmann * precision(bits_weights)")
            >>> found = law.effects(law.theta("kumar-2024"), params=1e8, tokens=1e10, bits_weights=[4, 16])
            >>> found["precision"].round(3).tolist()
            [0.696, 0.997]
        """
        x = self.inputs(axes)
        shape = next(iter(x.values())).shape
        theta = self._checked(theta)
        law = self.given(x)
        found: dict[str, Any] = {}
        if isinstance(law, Composed):
            kept = [theta[..., i, None] for i in self._kept(law)]
            _, found = law._target(kept, {axis: array.ravel() for axis, array in x.items()})
        none = {part.slug: float(isinstance(part, Factor)) for part in self.parts}
        full = (*theta.shape[:-1], math.prod(shape))
        return {
            slug: np.broadcast_to(np.asarray(found.get(slug, value), dtype=float), full).reshape(
                (*theta.shape[:-1], *shape)
            )
            for slug, value in none.items()
        }

    def elasticities(self, theta: Any, x: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """As :meth:`isoloss.laws.law.Law.elasticities`; 0 along a column that is absent."""
        law = self.given(x)
        if law is self:
            return super().elasticities(theta, x)
        value, slopes = law.elasticities(self._checked(theta)[..., self._kept(law)], x)
        return value, {axis: slopes.get(axis, np.zeros_like(value)) for axis in self.axes}

    def floor(self, theta: Array) -> Array | None:
        """The base's, if nothing is added to it or done with it."""
        if self.terms or self.link is not None:
            return None
        return self.base.floor(theta[..., : len(self.base.parameters)])

    def canonical(self, theta: Array) -> Array:
        """The base's part of theta, as the base reports it."""
        count = len(self.base.parameters)
        return np.concatenate([self.base.canonical(theta[..., :count]), theta[..., count:]], axis=-1)

    def power_terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """See :meth:`isoloss.laws.law.Law.power_terms`: the base's, at raw axes."""
        return self.base.power_terms({axis: log[axis] for axis in self.base.axes})

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The pieces' own, of the base only where there is no link (y is not its target then)."""
        out: dict[str, tuple[float, float]] = {}
        if self.link is None:
            out = self.base.ranges({axis: x[axis] for axis in self.base.axes}, y)
        for part in self.parts:
            ranges = part.ranges(self._raw(x), y)
            out |= {self.slot_names[part.slug, name]: ends for name, ends in ranges.items()}
        return out


def compose(law: Law, part: Part) -> Composed:
    """``law`` with one more factor or term."""
    law = law if isinstance(law, Composed) else Composed(law)
    if law.link is not None:
        raise ValueError(f"{law.spec} ends in a link. Add {part.slug} before it")
    if isinstance(part, Factor):
        return replace(law, factors=(*law.factors, part))
    if isinstance(part, LossTerm):
        return replace(law, terms=(*law.terms, part))
    raise TypeError(f"a law composes with a Factor or a LossTerm, got {part!r}")


def words(spec: str) -> list[str]:
    """A spec at its operators: ``["hoffmann", "*", "precision"]``; one word if it has none.

    Operators beside a law from a file stand between spaces: a path may hold any sign.

    Example:
        >>> words("hoffmann*precision(bits_weights) + ptq")
        ['hoffmann', '*', 'precision(bits_weights)', '+', 'ptq']
    """
    space = r"\s+" if ":" in spec else r"\s*"
    return re.split(rf"{space}(\*|\+|->){space}", spec.strip())


def composed(spec: str) -> Composed:
    """The composed law that a spec names; :func:`isoloss.laws.get` is the door.

    Raises:
        ValueError: an unknown piece, or a piece at the wrong operator.
    """
    from isoloss.laws import get

    base, *rest = words(spec)
    law = Composed(get(base))
    for sign, word in zip(rest[::2], rest[1::2], strict=True):
        if law.link is not None:
            raise ValueError(f"a link is the last piece of a law, got {spec!r}")
        law = replace(law, link=get(word)) if sign == "->" else compose(law, _part(sign, word))
    return law


def _part(sign: str, word: str) -> Part:
    from isoloss.laws import parts

    match = re.fullmatch(r"(.+:\w+|[\w-]+)\s*(?:\(([\w\s,]+)\))?", word)
    name = match[1] if match else word
    reads = tuple(column.strip() for column in match[2].split(",")) if match and match[2] else ()
    if match and ":" in name:
        from isoloss.laws.own import own_part

        return own_part(name, Factor if sign == "*" else LossTerm, reads)
    slug = name.lower().replace("_", "-")
    known, other = (parts.FACTORS, parts.TERMS) if sign == "*" else (parts.TERMS, parts.FACTORS)
    if match is None or slug not in known:
        kind = "factor" if sign == "*" else "term"
        hint = f" {slug} goes after {'+' if sign == '*' else '*'}" if slug in other else ""
        raise ValueError(
            f"no {kind} named {word!r}. There are: {', '.join(known)}; your own is FILE.py:ClassName.{hint}"
        )
    part: Part = getattr(parts, known[slug])(reads)
    return part

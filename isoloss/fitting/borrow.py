"""A fit with pieces of other papers beside it: its own draws, and borrowed slots."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoloss.fitting.cautions import about_law
from isoloss.fitting.checklist import restated
from isoloss.fitting.result import Fit
from isoloss.laws import get
from isoloss.laws.law import Array, Law, Parameter, slug_of
from isoloss.laws.parts.composed import Composed, words

Value = float | str


def law_and_origins(spec: str) -> tuple[Law, dict[str, str]]:
    """A law and the published fit of each piece that names one, from ``"hoffmann@besiroglu-2024 * precision@kumar-2024"``.

    Raises:
        ValueError: no such law, piece or published fit.

    Example:
        >>> law, origins = law_and_origins("hoffmann@besiroglu-2024 * data-constrained@muennighoff-2023")
        >>> law.spec, origins
        ('hoffmann * data-constrained', {'hoffmann': 'besiroglu-2024', 'data-constrained': 'muennighoff-2023'})
    """
    if "@" not in spec:
        return get(spec), {}
    pieces = [word.partition("@") for word in words(spec)]
    law = get(" ".join(piece.strip() for piece, _, _ in pieces))
    origins = {}
    for (piece, at, name), part in zip(pieces[::2], _in_order(law, pieces[::2]), strict=True):
        if at:
            _published(part, name.strip())
            origins[part.slug] = name.strip()
        elif not piece.strip():
            raise ValueError(f"a piece is missing in {spec!r}: needed LAW@PUBLISHED * PART@PUBLISHED")
    return law, origins


def _in_order(law: Law, pieces: list[tuple[str, str, str]]) -> list[Any]:
    """The pieces of the law as they are written: a composed law sorts its parts."""
    if not isinstance(law, Composed):
        return [law]
    by_slug = {piece.slug: piece for piece in law.pieces[1:]}
    return [law.base, *(by_slug[_slug(piece)] for piece, _, _ in pieces[1:])]


def _slug(word: str) -> str:
    """The slug of a piece as it is written: ``precision(bits_weights)``, or ``FILE.py:ClassName``."""
    name = re.sub(r"\s*\(.*", "", word).strip()
    _, own, given = name.rpartition(":")
    return slug_of(given) if own else name.lower().replace("_", "-")


def values_by_piece(law: Law, given: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Values of slots, and the published fit behind each that has one, from values by slot or published fits by piece.

    A slot's own value comes before that of its piece.

    Raises:
        ValueError: a name that is neither a slot nor a piece, no such published fit, or a value that is none.

    Example:
        >>> law = get("hoffmann * data-constrained")
        >>> values, origins = values_by_piece(law, {"hoffmann": "besiroglu-2024", "R_D": 15.4})
        >>> values["E"], values["R_D"], origins["E"]
        (1.8172, 15.4, 'besiroglu-2024')
    """
    pieces = {piece.slug: piece for piece in law.pieces} if isinstance(law, Composed) else {law.slug: law}
    values: dict[str, float] = {}
    origins: dict[str, str] = {}
    for name, label in given.items():
        if isinstance(label, str):
            if name not in pieces:
                raise ValueError(f"{law.spec} has no piece {name!r}, only {', '.join(pieces)}")
            found = _published(pieces[name], label)
            for own, value in found.items():
                slot = law.slot_names[name, own] if isinstance(law, Composed) else own
                values[slot], origins[slot] = float(value), label
    for name, value in given.items():
        if not isinstance(value, str):
            if name not in law.names:
                raise ValueError(
                    f"{law.spec} has no parameter {name!r}, only {', '.join(law.names)}; pieces with published fits "
                    f"are {', '.join(pieces)}"
                )
            if isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{law.spec} needs a finite number for {name}, got {value!r}")
            values[name] = float(value)
            origins.pop(name, None)
    lacking = [name for name in law.names if name not in values]
    if lacking and values:
        raise ValueError(
            f"{law.spec} has no value for {', '.join(lacking)}. Add {_published_for(law, pieces, lacking)}"
            f"theta={{'{lacking[0]}': NUMBER}}, or --value {lacking[0]}=NUMBER"
        )
    return values, origins


def _published_for(law: Law, pieces: Mapping[str, Any], lacking: list[str]) -> str:
    """The published fits that would give what is lacking, as they are written; empty where there are none."""
    out = []
    for slug, piece in pieces.items():
        own = {
            law.slot_names[slug, p.name] if isinstance(law, Composed) else p.name: p.name
            for p in piece.parameters
        }
        gives = [label for label, found in piece.published.items()
                 if any(own[slot] in found.values for slot in lacking if slot in own)]  # fmt: skip
        if gives:
            out.append(f"{slug}@{gives[-1]}" + (f" (or {', '.join(gives[:-1])})" if len(gives) > 1 else ""))
    return f"a published fit, {' and '.join(out)}; or " if out else ""


def _published(piece: Any, label: str) -> Mapping[str, float]:
    """Values of a published fit of a law or part."""
    if label not in piece.published:
        known = ", ".join(piece.published) or "none"
        raise ValueError(f"{piece.slug} has no published fit {label!r}. Known: {known}")
    values: Mapping[str, float] = piece.published[label].values
    return values


@dataclass(frozen=True)
class _Slot:
    """What a borrowed slot is: a value, and how it is drawn."""

    value: float
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan
    log: bool = False

    def draws(self, count: int, rng: np.random.Generator) -> Array:
        """(count,)."""
        if math.isfinite(self.low):
            if self.log:
                return np.exp(rng.uniform(math.log(self.low), math.log(self.high), count))
            return rng.uniform(self.low, self.high, count)
        if math.isfinite(self.sd):
            drawn = rng.normal(self.value, self.sd, count)
            while self.log and (below := drawn <= 0).any():  # a positive one: drawn again
                drawn[below] = rng.normal(self.value, self.sd, int(below.sum()))
            return drawn
        return np.full(count, self.value)


def borrow(fit: Fit, pieces: str, values: Mapping[str, Value] | None = None) -> Fit:
    """The fit composed with pieces that other papers fitted: its draws, and borrowed slots beside them.

    Rows, residuals and noise stay those of the fit, in which the columns of the pieces are absent: at their
    references, where a piece changes nothing. That the pieces hold beside this law is an assumption, which
    ``fit.law.assumed_separable`` names and a plan repeats.

    Args:
        fit: of the base.
        pieces: with their operators, each with its published fit or without,
            ``"* precision(bits_weights)@kumar-2024 + ptq(bits_post)@kumar-2024"``.
        values: of slots that no published fit gives, or in place of theirs: a number; ``"0.06:0.18"``, drawn
            between the ends (of a positive parameter evenly in the log); or ``"0.3+-0.05"``, drawn normally (of a
            positive parameter again where below 0). Drawn slots are independent of the fit and of each other.

    Raises:
        ValueError: no such piece or slot, or a slot without a value.

    Example:
        >>> import isoloss
        >>> n, d = np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e8, 4e8, 16e8])
        >>> loss = 1.8 + 480 * n**-0.3 + 2000 * d**-0.45
        >>> table = {"params": n.ravel(), "tokens": d.ravel(), "loss": loss.ravel()}
        >>> base = isoloss.fit("hoffmann", table, draws=50, sensitivity=False)
        >>> both = borrow(base, "* precision(bits_weights)@kumar-2024", {"n_w": "0.2:0.4"})
        >>> both.law.spec, both.status[-2:], both.draws.shape
        ('hoffmann * precision(bits_weights)', ('borrowed', 'borrowed'), (50, 7))
    """
    sign = pieces.strip()[:1]
    if sign not in ("*", "+", "-"):
        raise ValueError(f"pieces begin with their operator, '* precision@kumar-2024', got {pieces!r}")
    law, origins = law_and_origins(f"{fit.law.spec} {pieces.strip()}")
    if not isinstance(law, Composed):
        raise ValueError(f"needed pieces beside {fit.law.spec}, got {pieces!r}")
    kept = _places(fit.law, law)
    theirs = {name: parameter for i, (name, parameter) in enumerate(zip(law.names, law.parameters, strict=True))
              if i not in kept}  # fmt: skip
    slots, sources = _slots(law, theirs, origins, values or {})
    rng = np.random.default_rng([fit.seed, 2])
    theta, draws = np.empty(len(law.names)), np.empty((len(fit.draws), len(law.names)))
    status = ["borrowed"] * len(law.names)
    theta[kept], draws[:, kept] = fit.theta, fit.draws
    renamed = {old: law.names[i] for old, i in zip(fit.law.names, kept, strict=True)}
    for i, name in zip(kept, fit.law.names, strict=True):
        status[i] = fit.status[fit.law.names.index(name)]
    for name, slot in slots.items():
        i = law.names.index(name)
        theta[i], draws[:, i] = slot.value, slot.draws(len(fit.draws), rng)
        status[i] = (
            "borrowed" if name in sources or math.isfinite(slot.low) or math.isfinite(slot.sd) else "fixed"
        )
    held = fit.constraints
    constraints = replace(
        held,
        fix={**{renamed[n]: v for n, v in held.fix.items()},
             **{n: s.value for n, s in slots.items() if not (math.isfinite(s.low) or math.isfinite(s.sd))}},
        tie=tuple(tuple(renamed[n] for n in group) for group in held.tie),
        bounds={**{renamed[n]: v for n, v in held.bounds.items()},
                **{n: (s.low, s.high) for n, s in slots.items() if math.isfinite(s.low)}},
        priors={**{renamed[n]: v for n, v in held.priors.items()},
                **{n: (s.value, s.sd) for n, s in slots.items() if math.isfinite(s.sd)}},
        borrow={**{renamed[n]: v for n, v in held.borrow.items()}, **sources},
    )  # fmt: skip
    told = {(entry.code, entry.column) for entry in fit.warnings}
    notes = [note for note in about_law(law, law, constraints) if (note.code, note.column) not in told]
    both = replace(
        fit, law=law, theta=theta, draws=draws, status=tuple(status), constraints=constraints, sensitivity=(),
        warnings=(*fit.warnings, *notes),
    )  # fmt: skip
    return replace(both, checklist=restated(both))


def fitted_part(fit: Fit) -> Fit:
    """The fit without the pieces that it borrowed: what its own rows say, and can be tested on them.

    Example:
        >>> import isoloss
        >>> n, d = (axis.ravel() for axis in np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e8, 4e8, 16e8]))
        >>> table = {"params": n, "tokens": d, "loss": 1.8 + 480 * n**-0.3 + 2000 * d**-0.45}
        >>> base = isoloss.fit("hoffmann", table, draws=20, sensitivity=False)
        >>> fitted_part(borrow(base, "* precision(bits_weights)@kumar-2024")).law.spec
        'hoffmann'
    """
    own = fit.law.given(fit.x)
    if own is fit.law or not isinstance(fit.law, Composed):
        return fit
    kept = _places(own, fit.law)
    names = {fit.law.names[i]: name for i, name in zip(kept, own.names, strict=True)}
    held = fit.constraints

    def of_own(given: Mapping[str, Any]) -> dict[str, Any]:
        return {names[name]: value for name, value in given.items() if name in names}

    constraints = replace(
        held, fix=of_own(held.fix), bounds=of_own(held.bounds), priors=of_own(held.priors),
        borrow=of_own(held.borrow), tie=tuple(tuple(names[name] for name in group) for group in held.tie),
    )  # fmt: skip
    return replace(
        fit, law=own, theta=fit.theta[kept], draws=fit.draws[:, kept], constraints=constraints,
        status=tuple(fit.status[i] for i in kept),
    )  # fmt: skip


def loan_words(fit: Fit) -> list[str]:
    """The options of the command line that put beside a fit what this one borrowed; empty where it borrowed no piece.

    Example:
        >>> import isoloss
        >>> n, d = (axis.ravel() for axis in np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e8, 4e8, 16e8]))
        >>> table = {"params": n, "tokens": d, "loss": 1.8 + 480 * n**-0.3 + 2000 * d**-0.45}
        >>> base = isoloss.fit("hoffmann", table, draws=20, sensitivity=False)
        >>> loan_words(borrow(base, "* precision(bits_weights)@kumar-2024", {"n_w": "0.2:0.4"}))
        ['--borrow', '* precision(bits_weights)@kumar-2024', '--value', 'n_w=0.2:0.4']
    """
    own = fitted_part(fit)
    if own is fit or not isinstance(fit.law, Composed):
        return []
    held, pieces, values = fit.constraints, [], []
    mine = {piece.slug for piece in own.law.pieces[1:]} if isinstance(own.law, Composed) else set()
    for piece in (*fit.law.factors, *fit.law.terms):
        if piece.slug in mine:
            continue
        slots = [fit.law.slot_names[piece.slug, own_slot.name] for own_slot in piece.parameters]
        origin = next((f"@{held.borrow[name]}" for name in slots if name in held.borrow), "")
        pieces.append(f"{'*' if piece in fit.law.factors else '+'} {piece.spec}{origin}")
        for name in slots:
            if name in held.bounds:
                values.append(f"{name}={held.bounds[name][0]:g}:{held.bounds[name][1]:g}")
            elif name in held.priors:
                values.append(f"{name}={held.priors[name][0]:g}+-{held.priors[name][1]:g}")
            elif name not in held.borrow:
                values.append(f"{name}={held.fix[name]:g}")
    return ["--borrow", " ".join(pieces), *(word for value in values for word in ("--value", value))]


def _places(own: Law, law: Composed) -> list[int]:
    """Where the parameters of the fit's law lie in theta of the composed one."""
    at = {key: i for i, key in enumerate((slug, parameter.name) for slug, parameter in law.slots)}
    if isinstance(own, Composed):
        return [at[slug, parameter.name] for slug, parameter in own.slots]
    return list(range(len(own.names)))


def _slots(
    law: Composed, theirs: Mapping[str, Parameter], origins: Mapping[str, str], values: Mapping[str, Value]
) -> tuple[dict[str, _Slot], dict[str, str]]:
    """Every borrowed slot, and the published fit behind those that have one."""
    out: dict[str, _Slot] = {}
    sources: dict[str, str] = {}
    unknown = [name for name in values if name not in theirs]
    if unknown:
        raise ValueError(f"{unknown[0]} is not a slot of the borrowed pieces, only {', '.join(theirs)}")
    for piece in law.pieces[1:]:
        label = origins.get(piece.slug)
        for own, value in (_published(piece, label) if label else {}).items():
            name = law.slot_names[piece.slug, own]
            if name in theirs:
                out[name], sources[name] = _Slot(float(value)), str(label)
    for name, given in values.items():
        out[name] = _slot(name, given, theirs[name])
        sources.pop(name, None)
    lacking = [name for name in theirs if name not in out]
    if lacking:
        raise ValueError(
            f"{law.spec}: nothing gives {', '.join(lacking)}. Add values={{'{lacking[0]}': NUMBER}} or LOW:HIGH "
            f"(--value {lacking[0]}=LOW:HIGH), or a published fit of the piece after @"
        )
    return {name: out[name] for name in theirs}, sources


def _slot(name: str, given: Value, parameter: Parameter) -> _Slot:
    log = parameter.scale == "log"
    if not isinstance(given, str):
        numbers, kind = [float(given)], "value"
    else:
        text = given.strip()
        kind = "range" if ":" in text else "normal" if re.search(r"\+-|±", text) else "value"
        parts = text.split(":") if kind == "range" else re.split(r"\+-|±", text)
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
    wanted = 1 if kind == "value" else 2
    ok = len(numbers) == wanted and all(map(math.isfinite, numbers)) and (not log or min(numbers) > 0)
    if not ok or (kind == "range" and not numbers[0] < numbers[1]) or (kind == "normal" and numbers[1] <= 0):
        raise ValueError(
            f"{name} needs a number{' above 0' if log else ''}, LOW:HIGH or MEAN+-SD, got {given!r}"
        )
    if kind == "range":
        low, high = numbers
        return _Slot(math.sqrt(low * high) if log else (low + high) / 2, low=low, high=high, log=log)
    return _Slot(numbers[0], sd=numbers[1], log=log) if kind == "normal" else _Slot(numbers[0])

"""A learning-rate schedule: the rate of every step, by name or from a log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LONGEST = 10_000_000  # steps; the array of rates is held in full
SHAPES: Mapping[str, Callable[[Array], Array]] = {
    "linear": lambda u: 1.0 - u,
    "cosine": lambda u: 0.5 * (1.0 + np.cos(np.pi * u)),
    "sqrt": lambda u: 1.0 - np.sqrt(u),
}
"""Shapes of a decay by share ``u`` of its way, 1 at its begin and 0 at its end; ``exponential`` is in logs."""
DECAYS = ("exponential", *SHAPES)


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    r"""The learning rate of every step of a run.

    ``rates[t]`` is the rate of step t, t = 0 to T. The paper's sums are over t >= 1: ``rates[0]`` is only what the
    rate was before, 0 where there is a warm-up. Made by :meth:`constant`, :meth:`cosine`, :meth:`linear`,
    :meth:`wsd`, :meth:`two_stage`, :meth:`of_table` (a log), :meth:`of_rates`, or :meth:`parse` (words).

    Attributes:
        rates: shape (T+1,), at or above 0; above 0 from step 1 to step T-1.
        origin: what it was made of, as JSON: ``{"kind": "cosine", "steps": 24000, ...}``.

    Example:
        >>> Schedule.cosine(steps=8, peak=1.0, end=0.5, warmup=4)
        Schedule(cosine:steps=8,peak=1,end=0.5,warmup=4)
        >>> Schedule.cosine(steps=8, peak=1.0, end=0.5, warmup=4).rates.round(3).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0, 0.927, 0.75, 0.573, 0.5]
    """

    rates: Array
    origin: Mapping[str, Any]
    sums: Array = field(init=False)

    def __post_init__(self) -> None:
        rates = np.array(self.rates, dtype=float)
        if rates.ndim != 1 or not 2 <= len(rates) <= LONGEST + 1:
            raise ValueError(f"a schedule needs 1 to {LONGEST} steps, got an array of shape {rates.shape}")
        bad = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))
        if len(bad):
            raise ValueError(f"a schedule needs rates at or above 0, got {rates[bad[0]]} at step {bad[0]}")
        zero = np.flatnonzero(rates[1:-1] == 0) + 1
        if len(zero) or (len(rates) == 2 and rates[1] == 0):
            at = zero[0] if len(zero) else 1
            raise ValueError(
                f"a schedule needs rates above 0 before its last step, got 0 at step {at}. End it there"
            )
        rates.flags.writeable = False
        sums = np.concatenate([[0.0], np.cumsum(rates[1:])])
        sums.flags.writeable = False
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "sums", sums)

    @property
    def steps(self) -> int:
        """T, the last step."""
        return len(self.rates) - 1

    @property
    def peak(self) -> float:
        """The highest rate."""
        return float(self.rates.max())

    @property
    def warmup(self) -> int:
        """Steps of the rise that the schedule begins with: the first step that is followed by no higher rate."""
        falls = np.flatnonzero(np.diff(self.rates) <= 0)
        return int(falls[0]) if len(falls) else self.steps

    @classmethod
    def constant(cls, *, steps: int, peak: float, warmup: int = 0) -> Schedule:
        """One rate, after a linear warm-up of ``warmup`` steps from 0."""
        steps, warmup = _lengths(steps, warmup)
        peak = _rate("peak", peak)
        return cls(
            _warmed(np.full(steps + 1, peak), warmup),
            {"kind": "constant", "steps": steps, "peak": peak, "warmup": warmup},
        )

    @classmethod
    def cosine(cls, *, steps: int, peak: float, end: float, warmup: int = 0) -> Schedule:
        r"""``end + (peak - end)(1 + cos(pi u))/2``, u the share of the way from the warm-up's end to ``steps``."""
        return cls._decayed("cosine", steps, peak, end, warmup, "cosine", None)

    @classmethod
    def linear(cls, *, steps: int, peak: float, end: float, warmup: int = 0) -> Schedule:
        """A straight line from ``peak`` at the warm-up's end to ``end`` at step ``steps``."""
        return cls._decayed("linear", steps, peak, end, warmup, "linear", None)

    @classmethod
    def wsd(
        cls, *, steps: int, peak: float, end: float, decay: int, shape: str = "exponential", warmup: int = 0
    ) -> Schedule:
        """Warm-up, stable, decay: ``peak`` until the last ``decay`` steps, which go to ``end``.

        Args:
            steps: T.
            peak, end: rates.
            decay: steps of the decay, at most ``steps - warmup``.
            shape: of the decay: ``exponential`` (in logs), ``linear``, ``cosine`` or ``sqrt`` (1 - sqrt(u)).
            warmup: steps of the linear rise from 0.
        """
        return cls._decayed("wsd", steps, peak, end, warmup, shape, decay)

    @classmethod
    def two_stage(cls, *, steps: int, peak: float, end: float, at: int, warmup: int = 0) -> Schedule:
        """``peak`` before step ``at``, ``end`` from it on."""
        steps, warmup = _lengths(steps, warmup)
        peak, end = _rate("peak", peak), _rate("end", end)
        at = _whole("at", at)
        if not warmup < at <= steps:
            raise ValueError(
                f"two-stage needs the change after the warm-up, {warmup}, and by {steps}, got {at}"
            )
        rates = np.full(steps + 1, peak)
        rates[at:] = end
        origin = {"kind": "two-stage", "steps": steps, "peak": peak, "end": end, "at": at, "warmup": warmup}
        return cls(_warmed(rates, warmup), origin)

    @classmethod
    def of_table(
        cls, steps: Any, rates: Any, *, warmup: int | None = None, total: int | None = None
    ) -> Schedule:
        """The schedule behind a log of (step, rate).

        Between two logged steps the rate is a straight line, with one exception: where the rate stood still over
        the interval before and over the one after, the change is a jump, at the later of the two steps. Before the
        first logged step it rises linearly from 0 over ``warmup`` steps, then has the first logged rate (a log that
        rises from step 1 on begins its rise at 0); after the last it stays.

        Args:
            steps: logged steps, rising, (m,).
            rates: the rate at each, (m,).
            warmup: steps of the linear warm-up, at most the first logged step; needed where the log begins after
                step 1. 0 says that there was none.
            total: T; default the last logged step.

        Raises:
            ValueError: steps that do not rise, rates at or below 0, or no word about the steps before the log.

        Example:
            >>> Schedule.of_table([1, 3, 5, 7], [4, 4, 2, 2], total=8).rates.tolist()
            [4.0, 4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0]
        """
        at, logged = np.asarray(steps, dtype=float), np.asarray(rates, dtype=float)
        if at.shape != logged.shape or at.ndim != 1 or len(at) == 0:
            raise ValueError(
                f"a log of rates needs one rate a step, got shapes {at.shape} and {logged.shape}"
            )
        if (at != np.round(at)).any() or at[0] < 0 or (np.diff(at) <= 0).any():
            raise ValueError(
                "a log of rates needs whole steps that rise, each once. Sort it and drop repeats"
            )
        if not np.isfinite(logged).all() or (logged < 0).any():
            raise ValueError("a log of rates needs every rate finite and at or above 0")
        if warmup is None and at[0] > 1:
            raise ValueError(
                f"the log begins at step {at[0]:.0f}, and what the rate was before decides its sum. Say the steps of "
                "the warm-up: --warmup STEPS (in Python warmup=STEPS), 0 if there was none"
            )
        before = 0 if warmup is None else _whole("warmup", warmup)
        if before > at[0]:
            raise ValueError(
                f"a linear warm-up of {before} steps would still rise at the first logged step, {at[0]:.0f}: leave "
                "warmup out where the log shows it, or give at most that step"
            )
        last = int(at[-1]) if total is None else _whole("total", total)
        if last < at[-1]:
            raise ValueError(f"a schedule of {last} steps cannot hold a log up to step {at[-1]:.0f}")
        knots_at, knots = _jumps(at, logged)
        every = np.arange(last + 1, dtype=float)
        full = np.interp(every, knots_at, knots)
        if at[0] > 0:
            full[: int(at[0])] = logged[0]
            full = _warmed(full, before)
        if at[0] == 1 and before == 0 and logged[1:2] > logged[0]:
            full[0] = 0.0  # a log of a rise from step 1: before it there was none
        origin = {"kind": "table", "steps": at.astype(int).tolist(), "rates": logged.tolist()}
        return cls(full, {**origin, "warmup": warmup, "total": last})

    @classmethod
    def of_rates(cls, rates: Any) -> Schedule:
        """The schedule of these rates, of step 0 (what was before) to T."""
        return cls(rates, {"kind": "rates", "rates": np.asarray(rates, dtype=float).tolist()})

    @classmethod
    def parse(cls, words: str) -> Schedule:
        """A schedule in words: ``kind:name=value,...``.

        ``constant:steps=24000,peak=3e-4,warmup=2160``; ``cosine`` and ``linear`` with ``end`` too; ``wsd`` with
        ``end``, ``decay`` (steps) and ``shape``; ``two-stage`` with ``end`` and ``at``.

        Raises:
            ValueError: no such kind, or a value is missing, unknown or no number.

        Example:
            >>> Schedule.parse("two-stage:steps=4,peak=2,end=1,at=3").rates.tolist()
            [2.0, 2.0, 2.0, 1.0, 1.0]
        """
        kind, _, rest = words.strip().partition(":")
        origin: dict[str, Any] = {"kind": kind.strip()}
        for item in filter(None, (part.strip() for part in rest.split(","))):
            name, equals, value = (part.strip() for part in item.partition("="))
            if not (equals and value) or name in origin:
                raise ValueError(f"schedule {words!r}: cannot read {item!r}. Write name=value, each once")
            origin[name] = value if name == "shape" else _word(words, name, value)
        return cls.from_json(origin)

    @classmethod
    def from_json(cls, origin: Mapping[str, Any]) -> Schedule:
        """The schedule whose ``origin`` this is.

        Raises:
            ValueError: no such kind, or a value is missing or unknown.
        """
        kind = origin.get("kind")
        rest = {name: value for name, value in origin.items() if name != "kind"}
        if kind not in _KINDS:
            known = ", ".join(name for name in _KINDS if name not in ("table", "rates"))
            raise ValueError(f"no schedule named {kind!r}. There are: {known}")
        needed, optional = _KINDS[kind]
        missing, unknown = (
            [n for n in needed if n not in rest],
            [n for n in rest if n not in needed + optional],
        )
        if missing or unknown:
            told = f"missing: {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)}"
            raise ValueError(
                f"{kind} needs {', '.join(needed)}{' and takes ' + ', '.join(optional) if optional else ''}; {told}"
            )
        if kind == "rates":
            return cls.of_rates(rest["rates"])
        if kind == "table":
            return cls.of_table(
                rest["steps"], rest["rates"], warmup=rest.get("warmup"), total=rest.get("total")
            )
        made: Schedule = getattr(cls, str(kind).replace("-", "_"))(**rest)
        return made

    @property
    def words(self) -> str:
        """What :meth:`parse` takes, of a named schedule; else a short description."""
        kind = self.origin["kind"]
        if kind in ("table", "rates"):
            return f"{kind} of {self.steps} steps"
        return f"{kind}:" + ",".join(
            f"{name}={value:.12g}" if isinstance(value, int | float) else f"{name}={value}"
            for name, value in self.origin.items()
            if name != "kind" and value != (0 if name == "warmup" else None)
        )

    @classmethod
    def _decayed(
        cls, kind: str, steps: int, peak: float, end: float, warmup: int, shape: str, decay: int | None
    ) -> Schedule:
        steps, warmup = _lengths(steps, warmup)
        peak, end = _rate("peak", peak), _rate("end", end, zero=shape != "exponential")
        if end > peak:
            raise ValueError(f"{kind} needs its last rate at or below the peak {peak:g}, got {end:g}")
        length = steps - warmup if decay is None else _whole("decay", decay)
        if shape not in DECAYS:
            raise ValueError(f"a decay has the shape {', '.join(DECAYS)}; got {shape!r}")
        if not 1 <= length <= steps - warmup:
            raise ValueError(
                f"{kind} needs a decay of 1 to {steps - warmup} steps (those after the warm-up), got {length}"
            )
        u = np.clip((np.arange(steps + 1) - (steps - length)) / length, 0.0, 1.0)
        exponential = shape == "exponential"
        rates = peak * (end / peak) ** u if exponential else end + (peak - end) * SHAPES[shape](u)
        origin: dict[str, Any] = {"kind": kind, "steps": steps, "peak": peak, "end": end}
        if decay is not None:
            origin |= {"decay": length, "shape": shape}
        return cls(_warmed(rates, warmup), {**origin, "warmup": warmup})

    def __repr__(self) -> str:
        return f"Schedule({self.words})"


# Kind -> (values it needs, values it takes), as in :meth:`Schedule.from_json`.
_KINDS: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": (("steps", "peak"), ("warmup",)),
    "cosine": (("steps", "peak", "end"), ("warmup",)),
    "linear": (("steps", "peak", "end"), ("warmup",)),
    "wsd": (("steps", "peak", "end", "decay"), ("shape", "warmup")),
    "two-stage": (("steps", "peak", "end", "at"), ("warmup",)),
    "table": (("steps", "rates"), ("warmup", "total")),
    "rates": (("rates",), ()),
}


def _word(words: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"schedule {words!r}: {name} needs a number, got {value!r}") from None


def _whole(name: str, value: float) -> int:
    if isinstance(value, bool) or not math.isfinite(value) or value != round(value) or value < 0:
        raise ValueError(f"a schedule needs {name} as a whole number of steps, got {value!r}")
    return int(value)


def _rate(name: str, value: float, zero: bool = False) -> float:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"a schedule needs {name} above 0, got {value!r}")
    return float(value)


def _lengths(steps: float, warmup: float) -> tuple[int, int]:
    total, rise = _whole("steps", steps), _whole("warmup", warmup)
    if not 1 <= total <= LONGEST or rise >= total:
        raise ValueError(
            f"a schedule needs 1 to {LONGEST} steps and a warm-up shorter than that, got {total} and {rise}"
        )
    return total, rise


def _warmed(rates: Array, warmup: int) -> Array:
    """The rates with their first ``warmup`` steps a straight line from 0, in place."""
    if warmup:
        rates[: warmup + 1] = rates[warmup] * np.arange(warmup + 1) / warmup
    return rates


def _jumps(at: Array, rates: Array) -> tuple[Array, Array]:
    """The log with one more point a step before each change between two stretches of a constant rate."""
    flat = np.diff(rates) == 0
    sudden = ~flat[1:-1] & flat[:-2] & flat[2:]
    which = np.flatnonzero(sudden) + 2  # the row after the change
    which = which[at[which] - 1 > at[which - 1]]
    return np.insert(at, which, at[which] - 1), np.insert(rates, which, rates[which - 1])

"""What a user holds: fixed, tied, bounded, prior-carrying and borrowed parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoloss.laws.law import Law


@dataclass(frozen=True)
class Constraints:
    """Restrictions on the parameters of a law; every one is printed with the fit.

    Attributes:
        fix: ``{"E": 1.69}``.
        tie: groups of parameters that share one value, ``(("alpha", "beta"),)``.
        bounds: ``{"alpha": (0.1, 1.0)}``.
        priors: ``{"beta": (0.37, 0.05)}``, normal, mean and standard deviation in natural units.
        borrow: ``{"beta": "besiroglu-2024"}``: fixed at a published value, and said so.

    Example:
        >>> Constraints.parse(fix=["E=1.69"], tie=["alpha=beta"], prior=["A~400+-50"]).priors
        {'A': (400.0, 50.0)}
    """

    fix: Mapping[str, float] = field(default_factory=dict)
    tie: Sequence[Sequence[str]] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    priors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    borrow: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        fix: Sequence[str] = (),
        tie: Sequence[str] = (),
        bound: Sequence[str] = (),
        prior: Sequence[str] = (),
        borrow: Sequence[str] = (),
    ) -> Constraints:
        """Constraints from command-line words: ``E=1.69``, ``alpha=beta``, ``alpha=0.1:1``,
        ``beta~0.37+-0.05``, ``beta=besiroglu-2024``."""
        fixed = {name: _number(text, f"--fix {name}") for name, text in _pairs(fix, "--fix E=1.69")}
        bounds = {}
        for name, text in _pairs(bound, "--bound alpha=0.1:1"):
            ends = text.split(":")
            if len(ends) != 2:
                raise ValueError(f"--bound needs NAME=LOW:HIGH, got '{name}={text}'")
            bounds[name] = (_number(ends[0], "--bound"), _number(ends[1], "--bound"))
        priors = {}
        for text in prior:
            match = re.fullmatch(r"\s*(\w+)\s*~\s*(.+?)\s*(?:\+-|\+/-|±)\s*(.+?)\s*", text)
            if match is None:
                raise ValueError(f"--prior needs NAME~MEAN+-SD (beta~0.37+-0.05), got {text!r}")
            priors[match[1]] = (_number(match[2], "--prior"), _number(match[3], "--prior"))
        groups = [tuple(part.strip() for part in text.split("=")) for text in tie]
        for group, text in zip(groups, tie, strict=True):
            if len(group) < 2 or not all(group):
                raise ValueError(f"--tie needs NAME=NAME (alpha=beta), got {text!r}")
        return cls(fixed, tuple(groups), bounds, priors, dict(_pairs(borrow, "--borrow beta=NAME")))

    @property
    def named(self) -> set[str]:
        """Every parameter that something is said about."""
        tied = {name for group in self.tie for name in group}
        return {*self.fix, *tied, *self.bounds, *self.priors, *self.borrow}

    def resolve(self, law: Law) -> Constraints:
        """The same with borrowed values looked up into ``fix``, all names checked against the law."""
        self._check_names(law)
        fix = dict(self.fix)
        for name, source in self.borrow.items():
            values = law.published_fit(source).values
            if name not in values:
                raise ValueError(f"{law.slug}: {source} gives no {name}, only {', '.join(values)}")
            fix[name] = values[name]
        scale = {parameter.name: parameter.scale for parameter in law.parameters}
        for name, value in fix.items():
            if not math.isfinite(value) or (scale[name] == "log" and value <= 0):
                raise ValueError(f"{law.slug}: {name} must be finite and above 0, got fixed at {value}")
        for name, (low, high) in self.bounds.items():
            finite = math.isfinite(low) and math.isfinite(high)
            if not (finite and low < high) or (scale[name] == "log" and high <= 0):
                raise ValueError(f"{law.slug}: bounds of {name} need finite low < high, got {low}:{high}")
            if name in fix:
                raise ValueError(f"{law.slug}: {name} is fixed and bounded too: keep one")
        declared = {parameter.name: (parameter.low, parameter.high) for parameter in law.parameters}
        for name, (mean, sd) in self.priors.items():
            if not (math.isfinite(mean) and sd > 0):
                raise ValueError(f"{law.slug}: prior of {name} needs sd > 0, got {mean}+-{sd}")
            low, high = self.bounds.get(name, declared[name])
            if scale[name] == "linear" and not low <= mean <= high:
                raise ValueError(
                    f"{law.slug}: the prior mean of {name} must lie in its bounds {low:g}:{high:g}, got {mean:g}"
                )
        for group in self.tie:
            if len({scale[name] for name in group}) > 1:
                raise ValueError(
                    f"{law.slug}: cannot tie {'='.join(group)}: a positive size and an exponent differ in kind"
                )
            held = [name for name in group if name in fix or name in self.bounds or name in self.priors]
            if len(held) > 1 or (held and held[0] in fix):
                raise ValueError(
                    f"{law.slug}: {'='.join(group)} are tied and {held} held too. Fix them separately, or "
                    "bound only one of them"
                )
        if not set(law.names) - set(fix):
            raise ValueError(
                f"{law.slug}: every parameter is fixed, so nothing is left to fit. Leave one free, or use "
                "law.evaluate(theta, ...) with the values you have"
            )
        return Constraints(fix, self.tie, self.bounds, self.priors, self.borrow)

    def _check_names(self, law: Law) -> None:
        named: list[tuple[str, Any]] = [
            *((name, "fix") for name in self.fix),
            *((name, "tie") for group in self.tie for name in group),
            *((name, "bound") for name in self.bounds),
            *((name, "prior") for name in self.priors),
            *((name, "borrow") for name in self.borrow),
        ]
        for name, option in named:
            if name not in law.names:
                raise ValueError(
                    f"--{option} {name}: {law.slug} has no parameter {name!r}, only {', '.join(law.names)}"
                )
        # Resolved constraints, those of a fit, carry borrowed values in `fix` too.
        once = [
            name
            for name, option in named
            if option in ("borrow", "prior") or (option == "fix" and not self._is_borrowed(law, name))
        ]
        for name in once:
            if once.count(name) > 1:
                raise ValueError(f"{name} is held twice (fix, borrow, prior): keep one")
        tied = [name for group in self.tie for name in group]
        if len(tied) != len(set(tied)):
            raise ValueError(f"a parameter is in two ties: {tied}. Write one tie, alpha=beta=gamma")

    def _is_borrowed(self, law: Law, name: str) -> bool:
        source = law.published.get(self.borrow.get(name, ""))
        return source is not None and source.values[name] == self.fix[name]


def _pairs(texts: Sequence[str], example: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise ValueError(f"needed NAME=VALUE as in '{example}', got {text!r}")
        pairs.append((name.strip(), value.strip()))
    names = [name for name, _ in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{sorted(twice)[0]} is given twice in '{example.split()[0]}'")
    return pairs


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} needs a number, got {text!r}") from None

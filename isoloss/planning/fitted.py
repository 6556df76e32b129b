"""What a decision asks of a fit: draws, rows that determine its law, a target that is to be small."""

from __future__ import annotations

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.law import UNITS, Law

LEVELS = ("loss", "error")
"""Targets that a plan makes small, of those that isoloss has a unit for; an own law may name any other."""


def is_level(law: Law) -> bool:
    """Whether the law gives what is to be small: a loss, an error, or a target of one's own.

    Example:
        >>> from isoloss.laws import get
        >>> is_level(get("hoffmann")), is_level(get("step-law"))
        (True, False)
    """
    return law.target in LEVELS or law.target not in UNITS


def refuse_unusable(fit: Fit) -> None:
    """Refuse a fit that cannot say how sure a decision is.

    Raises:
        NoAnswer: it has no draws, too few rows, or says that its rows do not determine the law.

    Example:
        >>> import isoloss
        >>> refuse_unusable(isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=20))
    """
    if len(fit.draws) == 0:
        raise NoAnswer("this fit has no draws, so no interval", "fit with draws=1000")
    if any(entry.code == "too-few-rows" for entry in fit.warnings):
        raise NoAnswer(f"{len(fit.y)} rows for {fit.free} parameters", f"at least {fit.free + 3} rows")
    if fit.result == "not-identified":
        causes = [entry for entry in fit.warnings if entry.level == "error"]
        raise NoAnswer(
            f"the data do not determine {fit.law.spec}: {'; '.join(c.text for c in causes) or 'so the fit says'}",
            "; ".join(dict.fromkeys(c.do for c in causes))
            or "runs that vary every axis of the law on its own",
        )

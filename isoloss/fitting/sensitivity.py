"""How the answer of a fit moves when one choice behind it is another: what a row of that table holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from isoloss.runs import Finding
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]
What = Literal["fit", "objective", "form", "rows", "checkpoints", "counting"]
Made = Literal["fitted", "not-converged", "not-applicable"]

STEP = 10.0  # the reference point costs so many times the dearest run
JUDGED = ("objective", "rows")  # what a reasonable person might have chosen for the same law and columns


@dataclass(frozen=True)
class Variant:
    """The same fit with one choice changed; refitted without draws.

    Attributes:
        what: which choice: ``objective``, ``form``, ``rows``, ``checkpoints``, ``counting``; ``fit`` is the
            fit itself, the first of the table.
        setting: what it is in this variant, in words.
        law: the law refitted, as :func:`isoloss.laws.get` reads it.
        values: its parameters by name; empty where the variant was not made.
        rows: number of rows in the refit.
        dropped: row numbers that the fit has and this variant leaves out on purpose.
        at: the reference point beyond the data, in the axes of ``law``.
        prediction: the target there; None where the variant was not made.
        result: ``fitted``, ``not-converged`` or ``not-applicable``.
        why: why it was not made, ``""`` where it was.

    Example:
        >>> import isoloss
        >>> found = isoloss.fit("power", {"tokens": [1, 2, 4, 8, 16], "loss": [16, 8, 4, 2.1, 1]}, draws=0)
        >>> [v.setting for v in found.sensitivity if v.what == "rows" and v.values][0]
        'cheapest tenth dropped'
    """

    what: What
    setting: str
    law: str
    values: Mapping[str, float]
    rows: int
    dropped: tuple[int, ...]
    at: Mapping[str, float]
    prediction: float | None
    result: Made
    why: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of :attr:`theta`."""
        return tuple(self.values)

    @property
    def theta(self) -> Array:
        """The parameters, (P,); empty where the variant was not made."""
        return np.array(list(self.values.values()))

    def to_json(self) -> dict[str, Any]:
        """The variant as the fit's file holds it; keys in ``docs/json.md``."""
        return {**vars(self), "values": dict(self.values), "dropped": list(self.dropped), "at": dict(self.at)}


def made(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Those that could be refitted, the fit itself first."""
    return tuple(variant for variant in variants if variant.values)


def place(at: Mapping[str, float]) -> str:
    """The reference point in words.

    Example:
        >>> place({"params": 7e9, "tokens": 1.4e11})
        'params 7B, tokens 140B'
    """
    return ", ".join(
        f"{axis} {format_count(float(f'{value:.3g}')) if value >= 1 else format(value, '.3g')}"
        for axis, value in at.items()
    )


def outside(variants: Sequence[Variant], low: float, high: float) -> list[Variant]:
    """Reasonable variants whose prediction at the reference point leaves ``low`` to ``high``."""
    return [
        v
        for v in made(variants)
        if v.what in JUDGED and v.prediction is not None and not low <= v.prediction <= high
    ]


def sensitive_answer(
    variants: Sequence[Variant], low: float, high: float, coverage: float
) -> tuple[Finding, ...]:
    """A finding if a reasonable variant leaves the fit's own interval at the reference point."""
    moved = outside(variants, low, high)
    if not moved:
        return ()
    named = "; ".join(f"{v.setting} ({v.prediction:.4g})" for v in moved[:3])
    more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
    return (
        Finding(
            "sensitive-answer", "warning", (), None,
            f"at {place(variants[0].at)} the {100 * coverage:g} % interval is {low:.4g} to {high:.4g}, and other "
            f"reasonable choices lead outside it: {named}{more}",
            "the interval holds for this objective and these rows; it does not hold the doubt about the choice",
            "look at the rows that the variant weighs otherwise, state the choice beside the answer, or quote "
            "the range over the variants",
        ),
    )  # fmt: skip


def unfinished() -> Finding:
    """Ctrl-C came during the refits: the fit and its draws are kept."""
    return Finding(
        "interrupted", "warning", (), None,
        "the refits with other choices were not finished, so there is no sensitivity table",
        "how far the answer rests on the objective and the rows is unknown",
        "run again, or leave them out with --no-sensitivity",
    )  # fmt: skip


def read_variant(entry: Mapping[str, Any]) -> Variant:
    """The variant that :meth:`Variant.to_json` wrote.

    Raises:
        ValueError: a value of the wrong kind. KeyError: a key is missing.
    """
    prediction = entry["prediction"]
    if entry["what"] not in get_args(What) or entry["result"] not in get_args(Made):
        raise ValueError(
            f"the fit file is damaged: variant of kind {entry['what']!r}, result {entry['result']!r}"
        )
    if not entry["at"] and entry["result"] != "not-applicable":
        raise ValueError("the fit file is damaged: a variant is predicted at no point (at is empty)")
    return Variant(
        entry["what"],
        _text(entry["setting"]),
        _text(entry["law"]),
        {_text(name): _finite(value) for name, value in entry["values"].items()},
        int(_finite(entry["rows"])),
        tuple(int(_finite(row)) for row in entry["dropped"]),
        {_text(axis): _finite(value) for axis, value in entry["at"].items()},
        None if prediction is None else _finite(prediction),
        entry["result"],
        _text(entry["why"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the fit file is damaged: needed text, got {value!r}")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"the fit file is damaged: needed a number, got {value!r}")
    return float(value)

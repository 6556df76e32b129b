"""What variants of models are worth: the frontier, exchange rates, and the answer to "train smaller, or compress?"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from isoloss.planning.result import Quantity

SCHEMA = "isoloss/worth/1"


@dataclass(frozen=True)
class Smaller:
    """A model of fewer parameters and the same bytes, against the compressed one.

    Attributes:
        bits: that it is trained and stored in.
        how: ``same tokens`` or ``same training FLOPs``.
        params, tokens: of it; tokens None for a law of the size alone.
        difference: its expected loss less that of the compressed model; above 0 where compression is better.
        p_compress: share of the draws in which compression is better.
        verdict: ``compress``, ``train smaller`` or ``not resolved``.
        reach: by which factor it leaves the rows of the fit; 1 inside, NaN where they are not known.
    """

    bits: float
    how: str
    params: float
    tokens: float | None
    difference: Quantity
    p_compress: float
    verdict: str
    reach: float


@dataclass(frozen=True)
class Row:
    """One measured variant.

    Attributes:
        variant, solver: what it is.
        bits: stored for an encoded weight.
        bytes: of all tensors.
        loss, loss_se: measured.
        rise, rise_se: above the original's.
        place: ``frontier``, ``dominated`` or ``not resolved``, among all rows on the same data.
        hull: on the convex hull of its model.
        params_equal, tokens_equal: the share of the model's parameters, or tokens, with which the law has the same loss.
        smaller: what it is held against.
    """

    variant: str
    solver: str
    bits: float
    bytes: float
    loss: float
    loss_se: float
    rise: float
    rise_se: float
    place: str
    hull: bool
    params_equal: Quantity | None
    tokens_equal: Quantity | None
    smaller: tuple[Smaller, ...]


@dataclass(frozen=True)
class Step:
    """From one variant on the hull to the next larger one.

    Attributes:
        of, to: their names; low, high: their bits a weight.
        loss: its change for each bit.
        params, tokens: the factor of parameters, or tokens, that is worth as much as a bit.
    """

    of: str
    to: str
    low: float
    high: float
    loss: Quantity
    params: Quantity | None
    tokens: Quantity | None


@dataclass(frozen=True)
class Choice:
    """How much a byte holds in one way to store it.

    Attributes:
        variant, solver, bits: which; ``trained in 16 bits`` is the model as it is, stored so.
        params_per_byte: equal parameters over bytes.
        p_best: share of the draws in which no other has more; NaN where an error is not known.
    """

    variant: str
    solver: str
    bits: float
    params_per_byte: Quantity
    p_best: float


@dataclass(frozen=True, eq=False)
class Rated:
    """The variants of one model on one kind of data.

    Attributes:
        model, data: which; params, tokens, tokens_how: its own, and where the tokens come from.
        original_bytes: of the model as it was.
        rows: from the smallest on.
        steps: along the hull.
        at: of them the one that was asked for.
        best: what each way to store it makes of a byte.
        curve: bits -> (bytes, rise of a smaller model on the same tokens), for the picture.
    """

    model: str
    data: str
    params: float | None
    tokens: float | None
    tokens_how: str | None
    original_bytes: float | None
    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    at: Step | None
    best: tuple[Choice, ...]
    curve: tuple[tuple[float, tuple[tuple[float, Quantity], ...]], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Worth:
    """The answer of :func:`isoloss.planning.worth.worth`.

    Attributes:
        source: the table.
        law: None without one.
        size: what its parameters count.
        coverage: of all intervals.
        against: bits of smaller models.
        models: one for each model and kind of data.
        notes: what a reader must know.
    """

    source: str
    law: str | None
    size: str
    coverage: float
    against: tuple[float, ...]
    models: tuple[Rated, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        law = f" by {self.law}" if self.law else ""
        return f"Worth({sum(len(m.rows) for m in self.models)} variants of {len(self.models)} models{law})"

    def to_json(self) -> dict[str, Any]:
        """The document of ``isoloss worth --json``; unknown and infinite values are null."""
        models = []
        for model in self.models:
            entry = asdict(model)
            del entry["curve"]
            models.append(_finite(entry))
        return {
            "schema": SCHEMA,
            "source": self.source,
            "law": self.law,
            "size": self.size,
            "coverage": self.coverage,
            "against": list(self.against),
            "models": models,
            "notes": list(self.notes),
        }


def _finite(entry: Any) -> Any:
    """JSON has no NaN and no infinity: null, at any depth."""
    if isinstance(entry, Mapping):
        return {key: _finite(value) for key, value in entry.items()}
    if isinstance(entry, list | tuple):
        return [_finite(value) for value in entry]
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry

"""What a study tells while it runs, and what it has come to: results, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoloss.comparing.stack import Stack
from isoloss.fitting.result import Fit
from isoloss.study.ledger import Ledger
from isoloss.study.records import Promise

SCHEMA = "isoloss/study/1"


@dataclass(frozen=True)
class Began:
    """A rung begins: what of it is to be made, with the share of each run in the work to come."""

    rung: str
    number: int
    rungs: int
    runs: int
    todo: tuple[str, ...]
    shares: tuple[float, ...]
    flops: float


@dataclass(frozen=True)
class Moved:
    """A run has measured something; ``runs`` are those that it serves, itself or the ends of a trunk."""

    key: str
    runs: tuple[str, ...]
    done: float | None
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """A run is in the store, as ``done``, ``diverged``, ``stopped`` or ``failed``.

    ``of`` is the key of what made it, itself or the trunk that it is an end of; ``log`` is of one that failed.
    """

    key: str
    of: str
    status: str
    value: float | None
    why: str
    cpu: float
    log: Path | None


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a law says after a rung: the fit, or why there is none, and the target as it is seen now."""

    law: str
    rows: int
    found: Fit | Stack | None
    why: str
    target: tuple[Promise, ...]


@dataclass(frozen=True)
class Promised:
    """Predictions that are in the store now, before their runs begin."""

    rung: str
    promises: tuple[Promise, ...]


@dataclass(frozen=True)
class Note:
    """Something the reader must know."""

    text: str


Step = Began | Moved | Ended | Fitted | Promised | Note


@dataclass(frozen=True, eq=False)
class Told:
    """What a study has come to.

    Attributes:
        ledger: predictions of this study and what became of them.
        fits: law -> the fit that predicted the target (the last rung, where there is no target).
        statuses: key -> how the run ended, ``missing`` if it was not made.
        targets: keys of the runs that were the target.
        why: why runs are missing; empty if none is.
    """

    ledger: Ledger
    fits: Mapping[str, Fit | Stack]
    statuses: Mapping[str, str]
    targets: tuple[str, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        """As in ``docs/json.md``."""
        return {
            "schema": SCHEMA,
            "statuses": dict(self.statuses),
            "targets": list(self.targets),
            "why": self.why,
            "fits": {name: found.to_json() for name, found in self.fits.items()},
            "ledger": self.ledger.to_json(),
        }

    @property
    def complete(self) -> bool:
        """Whether every run has ended."""
        return "missing" not in self.statuses.values()

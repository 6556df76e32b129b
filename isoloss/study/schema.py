"""The tables of a store, as SQL that never changes once released and as SQLAlchemy sees them.

A change of the tables is one more entry of ``MIGRATIONS``; what is written stays readable. Nothing here
opens a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

APPLICATION_ID = 0x69736F6C  # "isol" in the header of the file: which program's it is
KINDS = ("run", "prediction", "outcome")

meta = sa.MetaData()

# One counter for all kinds, so that "before" and "after" are told by number, whatever the clock does.
entries = sa.Table(
    "entries", meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
)  # fmt: skip
runs = sa.Table(
    "runs", meta,
    sa.Column("id", sa.Integer, sa.ForeignKey("entries.id"), primary_key=True),
    sa.Column("study", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("axes", sa.Text, nullable=False),
    sa.Column("costs", sa.Text, nullable=False),
    sa.Column("measured", sa.Text, nullable=False),
    sa.Column("units", sa.Text, nullable=False),
)  # fmt: skip
curves = sa.Table(
    "curves", meta,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("step", sa.Float, primary_key=True),
    sa.Column("value", sa.Float),
    sa.Column("crc", sa.Integer, nullable=False),
)  # fmt: skip
predictions = sa.Table(
    "predictions", meta,
    sa.Column("id", sa.Integer, sa.ForeignKey("entries.id"), primary_key=True),
    sa.Column("law", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("quantiles", sa.Text, nullable=False),
    sa.Column("coverage", sa.Float, nullable=False),
    sa.Column("low", sa.Float, nullable=False),
    sa.Column("high", sa.Float, nullable=False),
    sa.Column("shift", sa.Float),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("reach", sa.Float, nullable=False),
    sa.Column("distance", sa.Float),
    sa.Column("cost_rule", sa.Text, nullable=False),
    sa.Column("known", sa.Integer, nullable=False),
    sa.Column("fit", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("study", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)  # fmt: skip
outcomes = sa.Table(
    "outcomes", meta,
    sa.Column("id", sa.Integer, sa.ForeignKey("entries.id"), primary_key=True),
    sa.Column("prediction", sa.Integer, sa.ForeignKey("predictions.id"), nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("measured", sa.Text),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("replaces", sa.Integer, sa.ForeignKey("outcomes.id")),
)  # fmt: skip

TABLES = {"run": runs, "prediction": predictions, "outcome": outcomes}


def _append_only(table: str, same: str) -> tuple[str, ...]:
    """Triggers that refuse to change or remove a row, also by INSERT OR REPLACE."""
    refuse = f"BEGIN SELECT RAISE(ABORT, 'append-only: {table}'); END"
    return (
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}",
        f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}",
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) {refuse}",
    )


_FIRST = (
    """CREATE TABLE entries (
        id INTEGER PRIMARY KEY, kind TEXT NOT NULL, created TEXT NOT NULL, digest TEXT NOT NULL)""",
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY REFERENCES entries(id), study TEXT NOT NULL, "key" TEXT NOT NULL,
        status TEXT NOT NULL, config TEXT NOT NULL, axes TEXT NOT NULL, costs TEXT NOT NULL,
        measured TEXT NOT NULL, units TEXT NOT NULL)""",
    """CREATE UNIQUE INDEX one_done_run ON runs(study, "key") WHERE status = 'done'""",
    """CREATE TABLE curves (
        run INTEGER NOT NULL REFERENCES runs(id), name TEXT NOT NULL, step REAL NOT NULL, value REAL,
        crc INTEGER NOT NULL, PRIMARY KEY (run, name, step)) WITHOUT ROWID""",
    """CREATE TABLE predictions (
        id INTEGER PRIMARY KEY REFERENCES entries(id), law TEXT NOT NULL, target TEXT NOT NULL,
        unit TEXT NOT NULL, at TEXT NOT NULL, quantiles TEXT NOT NULL, coverage REAL NOT NULL,
        low REAL NOT NULL, high REAL NOT NULL, shift REAL, asked TEXT NOT NULL, reach REAL NOT NULL,
        distance REAL, cost_rule TEXT NOT NULL, known INTEGER NOT NULL, fit TEXT NOT NULL,
        data TEXT NOT NULL, source TEXT NOT NULL, study TEXT NOT NULL, "key" TEXT NOT NULL,
        note TEXT NOT NULL)""",
    "CREATE INDEX predictions_of_fit ON predictions(fit)",
    """CREATE TABLE outcomes (
        id INTEGER PRIMARY KEY REFERENCES entries(id),
        prediction INTEGER NOT NULL REFERENCES predictions(id), value REAL NOT NULL, measured TEXT,
        source TEXT NOT NULL, replaces INTEGER REFERENCES outcomes(id))""",
    "CREATE INDEX outcomes_of_prediction ON outcomes(prediction)",
    # A wrong outcome is replaced once, and a prediction has one outcome that nothing replaces.
    "CREATE UNIQUE INDEX one_replacement ON outcomes(replaces) WHERE replaces IS NOT NULL",
    "CREATE UNIQUE INDEX one_first_outcome ON outcomes(prediction) WHERE replaces IS NULL",
    *_append_only("entries", "id = NEW.id"),
    *_append_only(
        "runs", """id = NEW.id OR (NEW.status = 'done' AND status = 'done' AND study = NEW.study
        AND "key" = NEW."key")"""
    ),
    *_append_only("curves", "run = NEW.run AND name = NEW.name AND step = NEW.step"),
    *_append_only("predictions", "id = NEW.id"),
    *_append_only("outcomes", "id = NEW.id OR replaces = NEW.replaces "
                  "OR (NEW.replaces IS NULL AND replaces IS NULL AND prediction = NEW.prediction)"),
)  # fmt: skip

# Entry k takes a file of version k to version k + 1. A released entry never changes.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST,)


def crc_of(run: int, name: str, step: float, value: float | None) -> int:
    """The checksum of a point of a curve; a curve has too many points for a digest each.

    Example:
        >>> crc_of(1, "loss", 2.0, None) == crc_of(1, "loss", 2.0, float("nan"))
        True
    """
    # SQLite keeps NaN as NULL
    missing = value is None or math.isnan(value)
    return zlib.crc32(struct.pack("<qd?d", run, step, missing, 0.0 if missing else value) + name.encode())


# ASCII, so that the text is the same for every version of Unicode
_ENCODE = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def digest_of(kind: str, number: int, created: str, values: Sequence[Any]) -> str:
    """The sha256 of an entry: what a changed bit, or a changed mind, would alter.

    Example:
        >>> digest_of("outcome", 2, "2026-01-01", [1, 2.5, None])[:8]
        '3fc04123'
    """
    return hashlib.sha256(_ENCODE([kind, number, created, *values]).encode()).hexdigest()

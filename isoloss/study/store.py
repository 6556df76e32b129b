"""One SQLite file of runs, curves, predictions and outcomes, to which entries are added and never changed."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from isoloss.errors import StoreError
from isoloss.runs import Runs, from_rows
from isoloss.study import opening, schema
from isoloss.study.records import Outcome, Promise

STATUSES = ("started", "done", "diverged", "failed", "stopped")


class Store:
    """A file of runs, curves, predictions and outcomes. Entries are added, never changed or removed.

    Runs, predictions and outcomes are numbered by one counter in the order in which they were committed.
    Every entry carries the time and a digest of its content, which each reading verifies; numbers have no
    gaps, so a removed entry is noticed too. An addition is one transaction, on the disk before the method
    returns. Several processes may add at once; each waits for the other. A file that is missing is made.

    Args:
        path: of the file. SQLite keeps ``PATH-wal`` and ``PATH-shm`` beside it while it is open.
        read_only: refuse to add, and open a file that cannot be written to.
        wait: seconds to wait for another process that is writing.

    Raises:
        StoreError: the file is damaged, newer, of another program, or cannot be made or opened.

    Example:
        >>> store = Store("runs.db")
        >>> store.add_run("ladder", "w32", axes={"params": 1e6, "tokens": 2e7}, measured={"loss": 3.2})
        1
        >>> store.runs("ladder")
        Runs(1 row of runs.db: params 1M, tokens 20M, loss 3.2 nats/token)
    """

    def __init__(self, path: str | Path, *, read_only: bool = False, wait: float = 10.0) -> None:
        self.path = Path(path).expanduser().absolute()
        self.read_only = read_only
        self.wait = wait
        self._name = str(path)
        opening.prepare(self.path, read_only=read_only, wait=wait)
        # A connection an operation: nothing to close, and safe across threads and forks.
        self._engine = sa.create_engine(
            "sqlite://",
            creator=lambda: opening.connect(self.path, read_only=read_only, wait=wait),
            poolclass=sa.pool.NullPool,
        )
        sa.event.listen(self._engine, "begin", _begin)

    # Writing

    def add_run(
        self,
        study: str,
        key: str,
        *,
        axes: Mapping[str, float],
        measured: Mapping[str, float],
        costs: Mapping[str, float] | None = None,
        config: Mapping[str, Any] | None = None,
        units: Mapping[str, str] | None = None,
        status: str = "done",
        curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    ) -> int:
        """Add a run, with its curves, in one transaction.

        Args:
            study: which loop it belongs to.
            key: its name there. A key has one run that is ``done``, and any number of others.
            axes, measured, costs: column -> number. A value that is NaN or infinite is kept as missing.
            config: everything else that made it; whatever JSON holds.
            units: column -> unit.
            status: ``started``, ``done``, ``diverged``, ``failed`` or ``stopped``.
            curves: name -> (steps, values).

        Returns:
            Its number. The same run once more gives the number that it has: a caller that died before the
            answer may simply try again.

        Raises:
            StoreError: the key is done with other content, or the file cannot be written. ValueError: a
                column stands in two places, a status is unknown, or the config is no JSON.
        """
        costs, units = dict(costs or {}), dict(units or {})
        if status not in STATUSES:
            raise ValueError(f"needed a status of {', '.join(STATUSES)}, got {status!r}")
        if not study or not key:
            raise ValueError(f"a run needs a study and a key, got {study!r} and {key!r}")
        names = [*axes, *costs, *measured]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"run {key}: {', '.join(twice)} stands among two of axes, costs and measured. Do: give it once"
            )
        values = {
            "study": study, "key": key, "status": status, "config": _text(dict(config or {})),
            "axes": _numbers(axes), "costs": _numbers(costs), "measured": _numbers(measured), "units": _text(units),
        }  # fmt: skip
        with self._writing() as connection:
            if status == "done":
                found = connection.execute(
                    sa.select(schema.runs).where(
                        schema.runs.c.study == study, schema.runs.c.key == key, schema.runs.c.status == "done"
                    )
                ).mappings().first()  # fmt: skip
                if found is not None and all(found[name] == value for name, value in values.items()):
                    return int(found["id"])
                if found is not None:
                    raise StoreError(
                        f"{self.path}: run {key!r} of study {study!r} is done already (entry {found['id']}), with "
                        "other content. Do: give the new run another key"
                    )
            (number,) = self._append(connection, "run", [values])
            for name, (steps, points) in (curves or {}).items():
                _add_curve(connection, number, name, steps, points)
        return number

    def add_curve(self, run: int, name: str, steps: Sequence[float], values: Sequence[float]) -> None:
        """Add points to a curve of a run: ``loss`` over steps, say.

        Raises:
            StoreError: no such run, or a step is there already. ValueError: lengths differ.
        """
        with self._writing() as connection:
            if connection.execute(sa.select(schema.runs.c.id).where(schema.runs.c.id == run)).first() is None:
                raise StoreError(f"{self.path} has no run {run}. Do: give the number that add_run returned")
            _add_curve(connection, run, name, steps, values)

    def add_predictions(self, promises: Iterable[Promise]) -> tuple[int, ...]:
        """Write predictions down, all or none.

        Returns:
            Their numbers. A prediction that stands there already (same fit, point, quantiles, interval, run)
            and has no outcome yet keeps its number: asked twice is promised once.

        Raises:
            StoreError: the file cannot be written.
        """
        rows = [_promise_row(promise) for promise in promises]
        compared = [c for c in schema.predictions.c if c.name not in ("id", "source", "note", "asked")]
        with self._writing() as connection:
            open_ = sa.not_(sa.exists().where(schema.outcomes.c.prediction == schema.predictions.c.id))
            there: dict[tuple[Any, ...], int] = {}
            for fit in {row["fit"] for row in rows}:
                same = sa.select(schema.predictions.c.id, *compared).where(
                    schema.predictions.c.fit == fit, open_
                )
                there |= {tuple(found[1:]): found[0] for found in connection.execute(same)}
            keys = [tuple(row[c.name] for c in compared) for row in rows]
            fresh = {key: row for key, row in zip(keys, rows, strict=True) if key not in there}
            numbers = self._append(connection, "prediction", list(fresh.values()))
            there |= dict(zip(fresh, numbers, strict=True))
        return tuple(there[key] for key in keys)

    def add_outcomes(self, outcomes: Iterable[Outcome]) -> tuple[int, ...]:
        """Add what was measured, all or none.

        Returns:
            Their numbers. The outcome that a prediction has already, given again with the same value, keeps
            its number.

        Raises:
            StoreError: no such prediction; it has another outcome and this one does not say ``corrects``; or
                the file cannot be written.
        """
        numbers = []
        with self._writing() as connection:
            o = schema.outcomes.c
            there = set(connection.execute(sa.select(schema.predictions.c.id)).scalars())
            # the outcome that stands: the last of a chain of corrections
            last = {
                p: (n, v)
                for n, p, v in connection.execute(sa.select(o.id, o.prediction, o.value).order_by(o.id)).all()
            }
            for outcome in outcomes:
                if outcome.prediction not in there:
                    raise StoreError(
                        f"{self.path} has no prediction {outcome.prediction}. Do: see `isoloss ledger {self._name}`"
                    )
                before, value = last.get(outcome.prediction, (None, math.nan))
                if value == outcome.value:
                    numbers.append(int(before))
                    continue
                if before is not None and not outcome.corrects:
                    raise StoreError(
                        f"{self.path}: prediction {outcome.prediction} has the outcome {value:g}, got "
                        f"{outcome.value:g}. Do: if that was wrong, correct it (`--correct`); both are kept"
                    )
                row = {
                    "prediction": outcome.prediction,
                    "value": float(outcome.value),
                    "measured": outcome.measured,
                    "source": outcome.source,
                    "replaces": before,
                }
                (number,) = self._append(connection, "outcome", [row])
                last[outcome.prediction] = (number, float(outcome.value))
                numbers.append(number)
        return tuple(numbers)

    # Reading

    def runs(self, study: str | None = None) -> Runs:
        """The runs that are done as a table: ``run`` (the key), ``study``, axes, costs, measured, ``config.*``.

        Row numbers are those of the entries.

        Raises:
            StoreError: there is none, runs disagree on a unit, or the file is damaged.
        """
        rows = [r for r in self.run_entries(study) if r["status"] == "done"]
        if not rows:
            raise StoreError(f"{self.path} has no finished run{f' of study {study!r}' if study else ''}")
        units: dict[str, str] = {}
        for row in rows:
            for name, unit in row["units"].items():
                if units.setdefault(name, unit) != unit:
                    raise StoreError(
                        f"{self.path}: {name} is in {units[name]} and, in entry {row['id']}, in {unit}: no one table. "
                        "Do: read one study"
                    )
        flat = [
            {"run": r["key"], "study": r["study"], **r["axes"], **r["costs"], **r["measured"],
             **{f"config.{k}": v for k, v in r["config"].items() if isinstance(v, int | float | str)}}
            for r in rows
        ]  # fmt: skip
        table = _with_names(from_rows(flat), flat)
        known = {name: unit for name, unit in units.items() if name in table}
        return replace(
            table, rows=np.array([r["id"] for r in rows]), units={**table.units, **known}, source=self._name
        )

    def curves(self, study: str | None = None) -> Runs:
        """The curves of all runs as one long table: ``run``, ``study``, ``step`` and a column a curve.

        Raises:
            StoreError: there is none, or the file is damaged.
        """
        table: dict[tuple[int, float], dict[str, Any]] = {}
        for key, of, run, step, name, value in self._curve_points(study):
            row = table.setdefault((run, step), {"run": key, "study": of, "entry": run, "step": step})
            row[name] = value
        if not table:
            raise StoreError(f"{self.path} has no curve{f' of study {study!r}' if study else ''}")
        rows = list(table.values())
        return replace(_with_names(from_rows(rows), rows), source=f"{self._name}, curves")

    def has_curves(self) -> bool:
        """Whether any run has a curve."""
        with self._reading() as connection:
            return connection.execute(sa.select(schema.curves.c.run).limit(1)).first() is not None

    def run_entries(self, study: str | None = None) -> list[dict[str, Any]]:
        """Every run, of whatever status, as it was added, with ``id`` and ``created``."""
        rows = self._entries("run", None if study is None else schema.runs.c.study == study)
        return _parsed(rows, ("config", "axes", "costs", "measured", "units"))

    def predictions(self) -> list[dict[str, Any]]:
        """Every prediction in order, by the names of :class:`Promise`, with ``id`` and ``created``."""
        return _parsed(self._entries("prediction"), ("at", "quantiles"))

    def outcomes(self) -> list[dict[str, Any]]:
        """Every outcome in order: ``prediction``, ``value``, ``measured``, ``source``, ``replaces``, ``id``, ``created``."""
        return self._entries("outcome")

    def __len__(self) -> int:
        """How many runs, predictions and outcomes there are."""
        with self._reading() as connection:
            return int(
                connection.execute(sa.select(sa.func.count()).select_from(schema.entries)).scalar_one()
            )

    def clock_jumps(self) -> tuple[int, ...]:
        """Numbers of the entries that are dated before the entry they follow."""
        e = schema.entries.c
        before = sa.func.lag(e.created).over(order_by=e.id).label("before")
        dated = sa.select(e.id, e.created, before).subquery()
        with self._reading() as connection:
            query = sa.select(dated.c.id).where(dated.c.created < dated.c.before).order_by(dated.c.id)
            return tuple(int(number) for number in connection.execute(query).scalars())

    def verify(self) -> None:
        """Read the whole file: SQLite's integrity check, every digest, no number missing.

        Raises:
            StoreError: something is not as it was written.
        """
        with self._reading() as connection:
            found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
            found += [
                f"foreign key of {row[0]} row {row[1]}"
                for row in connection.exec_driver_sql("PRAGMA foreign_key_check")
            ]
        if found != ["ok"]:
            raise opening.damaged(self.path, "; ".join(part for part in found[:3] if part != "ok"))
        total = sum(len(self._entries(kind)) for kind in schema.KINDS)
        if total != len(self):
            raise opening.damaged(self.path, f"{len(self)} entries are numbered, {total} are there")
        for _ in self._curve_points(None):
            pass  # each is checked on its way

    def export(self, folder: str | Path, format: str = "csv") -> tuple[Path, ...]:
        """Write ``runs``, ``curves``, ``predictions`` and ``outcomes``, each whole or not at all, if not empty.

        Args:
            folder: made if it is missing.
            format: ``csv`` or ``parquet``.

        Returns:
            The files written.

        Raises:
            ValueError: another format, pyarrow is missing, or the folder cannot be written to.
        """
        from isoloss.study.export import export

        return export(self, Path(folder), format)

    # How

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        if self.read_only:
            raise StoreError(f"{self.path} was opened read_only. Do: isoloss.Store({self._name!r})")
        with opening.refusals(self.path, self.wait), self._engine.connect() as connection:
            immediate = connection.execution_options(isoloss_writes=True)
            with immediate.begin():
                yield immediate

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with opening.refusals(self.path, self.wait), self._engine.connect() as connection, connection.begin():
            yield connection

    def _append(self, connection: sa.Connection, kind: str, rows: list[dict[str, Any]]) -> list[int]:
        if not rows:
            return []
        last = connection.execute(sa.select(sa.func.max(schema.entries.c.id))).scalar() or 0
        table, created = schema.TABLES[kind], _now()
        numbers = [last + 1 + k for k in range(len(rows))]
        columns = [c.name for c in table.c if c.name != "id"]
        heads = [
            {"id": n, "kind": kind, "created": created, "digest": schema.digest_of(kind, n, created, [row[c] for c in columns])}
            for n, row in zip(numbers, rows, strict=True)
        ]  # fmt: skip
        connection.execute(sa.insert(schema.entries), heads)
        connection.execute(sa.insert(table), [{"id": n, **row} for n, row in zip(numbers, rows, strict=True)])
        return numbers

    def _entries(self, kind: str, only: sa.ColumnElement[bool] | None = None) -> list[dict[str, Any]]:
        """The rows of a kind in order, each verified against its digest."""
        table, heads = schema.TABLES[kind], schema.entries
        columns = [c for c in table.c if c.name != "id"]
        query = sa.select(heads.c.id, heads.c.created, heads.c.digest, *columns).order_by(heads.c.id)
        query = query.join_from(heads, table, heads.c.id == table.c.id)
        with self._reading() as connection:
            rows = connection.execute(query if only is None else query.where(only)).all()
            # one snapshot for both questions
            last, count, of_kind = connection.execute(
                sa.select(
                    sa.func.coalesce(sa.func.max(heads.c.id), 0), sa.func.count(),
                    sa.func.count(sa.case((heads.c.kind == kind, 1))),
                )
            ).one()  # fmt: skip
        if last != count or (only is None and of_kind != len(rows)):
            raise opening.damaged(
                self.path, f"entries are missing ({count} of {last}, {len(rows)} of {of_kind} {kind}s)"
            )
        names = [c.name for c in columns]
        out = []
        for number, created, digest, *values in rows:
            if schema.digest_of(kind, number, created, values) != digest:
                raise opening.damaged(self.path, f"entry {number} is not what was written")
            out.append({"id": number, "created": created, **dict(zip(names, values, strict=True))})
        return out

    def _curve_points(self, study: str | None) -> Iterator[tuple[str, str, int, float, str, float | None]]:
        """Key, study, run, step, name and value of each point in order, each verified."""
        c, r = schema.curves.c, schema.runs.c
        query = sa.select(r.key, r.study, c.run, c.step, c.name, c.value, c.crc).join(
            schema.runs, r.id == c.run
        )
        if study is not None:
            query = query.where(r.study == study)
        with self._reading() as connection:
            for *point, crc in connection.execute(query.order_by(c.run, c.step)):
                key, of, run, step, name, value = point
                if schema.crc_of(run, name, step, value) != crc:
                    raise opening.damaged(self.path, f"curve {name} of run {run} is not what was written")
                yield key, of, run, step, name, value


def _begin(connection: sa.Connection) -> None:
    # IMMEDIATE takes the lock for writing at once, so that what is read first cannot be stale when written on.
    writes = connection.get_execution_options().get("isoloss_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _with_names(table: Runs, rows: Sequence[Mapping[str, Any]]) -> Runs:
    """The table with names as text also where all of them look like numbers."""
    texts = {name: np.array([row[name] for row in rows], dtype=np.str_) for name in ("run", "study")}
    return replace(table, columns={**table.columns, **texts})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _add_curve(
    connection: sa.Connection, run: int, name: str, steps: Sequence[float], values: Sequence[float]
) -> None:
    if name in ("run", "study", "entry", "step"):
        raise ValueError(f"a curve cannot be called {name!r}: that is a column of the table of curves")
    if len(steps) != len(values):
        raise ValueError(f"curve {name!r} needs as many values as steps, got {len(values)} and {len(steps)}")
    if len(steps):
        pairs = [(float(s), float(v)) for s, v in zip(steps, values, strict=True)]
        points = [
            {"run": run, "name": name, "step": s, "value": v, "crc": schema.crc_of(run, name, s, v)}
            for s, v in pairs
        ]
        connection.execute(sa.insert(schema.curves), points)


def _promise_row(promise: Promise) -> dict[str, Any]:
    row = {name: getattr(promise, name) for name in Promise.__dataclass_fields__}
    for name in ("coverage", "low", "high", "reach", "shift", "distance"):
        row[name] = None if row[name] is None else float(row[name])
    row["known"] = int(promise.known)
    # 9 digits say more than any draws know, in half the room
    row["quantiles"] = "[" + ",".join(f"{q:.9g}" for q in promise.quantiles) + "]"
    row["at"] = _numbers(promise.at)
    return row


def _numbers(values: Mapping[str, float]) -> str:
    """JSON of numbers; one that is not finite is null, which tables read as missing."""
    found = {str(name): float(value) for name, value in values.items()}
    return _text({name: value if math.isfinite(value) else None for name, value in found.items()})


def _text(document: Mapping[str, Any]) -> str:
    try:
        return json.dumps(document, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a store needs what JSON can hold: {error}") from None


def _parsed(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    for name in names:
        # one document for all rows is read several times as fast as one a row
        texts = json.loads("[" + ",".join(row[name] for row in rows) + "]")
        for row, value in zip(rows, texts, strict=True):
            row[name] = value
    return rows

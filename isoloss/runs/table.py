"""takes columns, gives Runs: the table that every part of the package reads and writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from isoloss.runs import clean, derive, query, show
from isoloss.runs.cells import to_array
from isoloss.runs.columns import listed, options

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Removed", "Runs"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Removed:
    """A row that cleaning took out of a table.

    Args:
        row: its 1-based data row in the source, header not counted.
        code: why, for machines: a check's code or ``not-final-checkpoint``, ``not-best-of-sweep``.
        why: why, for people.

    Example:
        >>> Removed(3, "diverged", "loss 10.8 where the trend is 3.1").code
        'diverged'
    """

    row: int
    code: str
    why: str


@dataclass(frozen=True, eq=False, repr=False)
class Runs:
    """One row per run: its axes, its costs, its measured losses, with units and row numbers.

    Args:
        columns: name -> float64 array (NaN is missing) or str array (``""`` is missing), each
            read-only.
        rows: 1-based row in the source, unique.
        units: column -> unit: ``count``, ``FLOP``, ``nats/token``, ``nats/byte`` …
        derived: column -> how it was computed, such as ``6 * params * tokens``.
        removed: rows that cleaning took out.
        source: where the table came from, with every subset asked for since.
        curves: the long table of the same runs (run, step, tokens, lr, loss …), or None; a subset of
            the runs keeps it whole.
        names: canonical column -> its name in the source, where that differs.

    Raises:
        ValueError: columns differ in length, or row numbers repeat.

    Example:
        >>> import isoloss.runs
        >>> runs = isoloss.runs.from_rows([
        ...     {"params": 1e8, "tokens": 2e9, "loss": 3.4}, {"params": 2e8, "tokens": 2e9, "loss": 3.2}])
        >>> runs
        Runs(2 rows of memory: params 100M to 200M, tokens 2B, loss 3.2 to 3.4 nats/token)
        >>> runs["loss"]
        array([3.4, 3.2])
    """

    columns: Mapping[str, Array]
    rows: npt.NDArray[np.int64]
    units: Mapping[str, str]
    derived: Mapping[str, str]
    removed: tuple[Removed, ...] = ()
    source: str = "memory"
    curves: Runs | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = _frozen(np.asarray(self.rows, dtype=np.int64))
        columns = {name: _frozen(np.asarray(values)) for name, values in self.columns.items()}
        for name, values in columns.items():
            if values.shape != rows.shape:
                raise ValueError(
                    f"{self.source}, column {name!r}: needed {len(rows)} values, got shape {values.shape}"
                )
        if len(np.unique(rows)) != len(rows):
            raise ValueError(
                f"{self.source}: row numbers repeat. Do: a row stands in a table once; resample"
                " arrays, not Runs"
            )
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "columns", MappingProxyType(columns))
        for name in ("units", "derived", "names"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[type[Runs], tuple[Any, ...]]:
        # a mapping proxy cannot be pickled, and runs travel to worker processes
        mappings = [dict(m) for m in (self.columns, self.units, self.derived, self.names)]
        return Runs, (
            mappings[0],
            self.rows,
            mappings[1],
            mappings[2],
            self.removed,
            self.source,
            self.curves,
            mappings[3],
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> Array:
        """The column, read-only.

        Raises:
            ValueError: there is none; the message lists the columns and the likely ``--columns``
                option.
        """
        if name in self.columns:
            return self.columns[name]
        raise ValueError(
            f"{self.source}: needed column {name!r}, got {listed(self.columns)}. Do: {self._how_to_get(name)}"
        )

    def _how_to_get(self, name: str) -> str:
        if derive.can_derive(self, name):
            return f"runs.derive() computes {name} from the others"
        wanted = [n for n in ("params", "tokens", "loss") if n not in self.columns]
        likely = options([*wanted, *([] if name in wanted else [name])], self.columns)
        if any(part.startswith(f"{name}=") for part in likely.split(",")):
            return f"--columns {likely} (in Python: columns={likely!r})"
        return f"say which column it is: --columns {name}=COLUMN (in Python: columns={{{name!r}: 'COLUMN'}})"

    def numeric(self, *names: str) -> tuple[Floats, ...]:
        """The columns as float arrays; a text column whose cells are all counts (``70B``) is read as such.

        Raises:
            ValueError: a column is missing, or is text: the first such row is named.

        Example:
            >>> import isoloss.runs
            >>> isoloss.runs.from_rows([{"experts": "8"}, {"experts": "1k"}]).numeric("experts")
            (array([   8., 1000.]),)
        """
        return tuple(self._floats(name) for name in names)

    def _floats(self, name: str) -> Floats:
        values = self[name]
        if values.dtype.kind != "f":
            place = f"{self.source}, column {name!r}"
            values = _frozen(to_array(values.tolist(), "count", place, self.rows))
        return values

    def take(self, which: npt.ArrayLike) -> Runs:
        """The rows that a boolean mask or an array of positions picks, in that order.

        This is a subset, not a cleaning: rows left out are not in ``removed``.

        Raises:
            ValueError: a mask of another length, a position outside the table or given twice.
        """
        index = np.asarray(which)
        if index.dtype == bool and index.shape != self.rows.shape:
            raise ValueError(f"needed a mask of {len(self)} values, got shape {index.shape}")
        if index.size == 0:
            index = index.astype(np.intp)
        try:
            columns = {name: values[index] for name, values in self.columns.items()}
            return replace(self, columns=columns, rows=self.rows[index])
        except IndexError as error:
            raise ValueError(f"needed positions in a table of {len(self)} rows: {error}") from None

    def where(self, expression: str) -> Runs:
        """The rows that match, by pandas' query language: ``"dataset == 'c4' and params > 1e8"``.

        A subset is a question, not a cleaning: ``source`` says it, ``removed`` stays as it is.
        Canonical names and names of the source both work; a name with a dot or a space stands in
        backticks.

        Raises:
            ValueError: the expression is no comparison of columns, or no row matches.

        Example:
            >>> import isoloss.runs
            >>> runs = isoloss.runs.from_rows([{"loss": 3.4, "data": "c4"}, {"loss": 3.2, "data": "pile"}])
            >>> runs.where("data == 'c4'")
            Runs(1 row of memory where data == 'c4': loss 3.4 nats/token)
        """
        return replace(
            self.take(query.matching(self, expression)), source=f"{self.source} where {expression}"
        )

    def by(self, column: str) -> dict[str, Runs]:
        """One table per value of a column, in order of first appearance; missing values under ``"missing"``.

        Raises:
            ValueError: there is no such column.
        """
        values = self[column]
        labels = [_label(value) for value in values.tolist()]
        array = np.array(labels, dtype=np.str_)
        return {
            label: replace(self.take(array == label), source=f"{self.source}, {column} = {label}")
            for label in dict.fromkeys(labels)
        }

    def without(self, rows: Sequence[int], code: str, why: str) -> Runs:
        """The table without some rows, which are then in ``removed``.

        Args:
            rows: row numbers of the source, as in ``runs.rows`` and in findings.
            code: why, for machines.
            why: why, for people.

        Raises:
            ValueError: a row is not in the table.

        Example:
            >>> import isoloss.runs
            >>> runs = isoloss.runs.from_rows([{"loss": 3.4}, {"loss": 10.8}])
            >>> runs.without([2], "diverged", "loss 10.8").removed
            (Removed(row=2, code='diverged', why='loss 10.8'),)
        """
        return self._without({int(row): why for row in rows}, code)

    def _without(self, reasons: Mapping[int, str], code: str) -> Runs:
        absent = sorted(set(reasons) - set(self.rows.tolist()))
        if absent:
            raise ValueError(
                f"{self.source}: no row {listed(absent, 8)} to remove; row numbers are those of the source"
            )
        kept = self.take(~np.isin(self.rows, list(reasons)))
        gone = tuple(Removed(row, code, reasons[row]) for row in sorted(reasons))
        return replace(kept, removed=self.removed + gone)

    def with_column(
        self, name: str, values: npt.ArrayLike, *, unit: str | None = None, how: str | None = None
    ) -> Runs:
        """The table with one more column.

        Args:
            name: of the column; a measured one is never overwritten, a derived one may be.
            values: one per row, or one for all; numbers or text.
            unit: of the values.
            how: how they were computed; a column with ``how`` counts as derived.

        Raises:
            ValueError: the column exists and was measured, or the length is wrong.
        """
        if derive.is_measured(self, name):
            raise ValueError(
                f"{self.source}: column {name!r} was measured and is never overwritten. Do: take another name"
            )
        array = np.asarray(values)
        if array.dtype.kind not in "fiubUO" or array.shape not in ((), self.rows.shape):
            raise ValueError(
                f"column {name!r}: needed {len(self)} numbers or texts, got {array.dtype} of shape"
                f" {array.shape}"
            )
        cells = np.broadcast_to(array, self.rows.shape)
        column = to_array(cells, None, f"column {name!r}", self.rows)
        units = {k: v for k, v in self.units.items() if k != name} | ({name: unit} if unit else {})
        derived = {k: v for k, v in self.derived.items() if k != name} | ({name: how} if how else {})
        return replace(self, columns={**self.columns, name: column}, units=units, derived=derived)

    def derive(self) -> Runs:
        """The table with ``flops``, ``tokens``, ``params`` and ``tokens_per_param`` filled from each other.

        ``flops = 6 * params * tokens`` (forward 2, backward 4 per parameter and token, attention
        scores not counted); with ``params_active``, those count instead of ``params``. Only
        missing cells are filled; ``derived`` says how, and in which rows where others were
        measured.

        Example:
            >>> import isoloss.runs
            >>> runs = isoloss.runs.from_rows([{"params": 1e9, "tokens": 2e10}]).derive()
            >>> runs["flops"], runs.derived["flops"]
            (array([1.2e+20]), '6 * params * tokens')
        """
        return derive.derive(self)

    def final_checkpoints(self, by: str | Sequence[str] = "run") -> Runs:
        """The last checkpoint of each run; the others are in ``removed`` as ``not-final-checkpoint``.

        Args:
            by: the column, or columns, that identify a run; a row without a name is a run of its
                own.

        The last is the largest ``step``, else ``fraction_of_run``, else ``tokens``; several rows
        there, such as one per validation set, all stay.

        Raises:
            ValueError: no column says which row is last, or it is missing in a row.
        """
        return self._without(
            clean.not_final(self, (by,) if isinstance(by, str) else tuple(by)),
            "not-final-checkpoint",
        )

    def best_of_sweep(
        self,
        over: str | Sequence[str] = ("lr",),
        at: Sequence[str] = ("params", "tokens"),
        target: str = "loss",
    ) -> Runs:
        """The best setting of a sweep at each point; the others are in ``removed`` as ``not-best-of-sweep``.

        The best setting has the lowest mean target over its rows (seeds), all of which stay; a
        setting with a missing or infinite target never wins. Choosing the best of many noisy runs
        makes the loss look lower than it is by about the noise between seeds.

        Args:
            over: the columns that were swept.
            at: the columns that make a point.
            target: what is to be low.

        Raises:
            ValueError: a column is missing.
        """
        swept = (over,) if isinstance(over, str) else tuple(over)
        return self._without(clean.not_best(self, swept, tuple(at), target), "not-best-of-sweep")

    def fingerprint(self, names: Sequence[str]) -> str:
        """The sha256 of some columns: their names, units and values, as hex.

        The order of rows and of ``names`` does not matter, a repeated row does. Row numbers and
        the source do not count, so the same data read from a copy has the same fingerprint.

        Raises:
            ValueError: a column is missing.
        """
        digest = hashlib.sha256()
        keys: list[Array] = []
        names = sorted(set(names))
        for name in names:
            digest.update(f"{name}\0{self.units.get(name, '')}\0".encode())
            values = self[name]
            if values.dtype.kind == "f":
                values = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN, one zero
            keys.append(values)
        order = np.lexsort(keys[::-1]) if keys else np.arange(0)
        for values in keys:
            ordered = values[order]
            if ordered.dtype.kind == "f":
                digest.update(ordered.astype("<f8").tobytes())
            else:
                digest.update("\0".join(ordered.tolist()).encode() + b"\0")
        return digest.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """A pandas data frame with the columns, copied, indexed by row number."""
        return show.frame(self)

    def to_csv(self, path: str | Path) -> None:
        """Write the columns as CSV, all or nothing; counts and nats as they are held, units not written.

        A table in nats per byte is read back with ``units="loss=nats/byte"``.
        """
        show.write_csv(self, Path(path))

    def __repr__(self) -> str:
        return f"Runs({show.describe(self)})"

    def _repr_html_(self) -> str:
        return show.html(self)


def _frozen(array: Array) -> Array:
    """A read-only array that nobody else can write to."""
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


def _label(value: object) -> str:
    if value == "" or value != value:
        return "missing"
    return f"{value:.12g}" if isinstance(value, float) else str(value)

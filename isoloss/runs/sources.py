"""takes a file, gives its raw columns: CSV and JSON by the standard library, Parquet through pyarrow."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoloss.runs.cells import Cells
from isoloss.runs.columns import listed

__all__ = [
    "FORMATS",
    "columns_of_file",
    "columns_of_frame",
    "columns_of_mapping",
    "columns_of_records",
    "flatten",
]

Columns = dict[str, Cells]

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")
_BY_SUFFIX = {
    ".csv": "csv", ".txt": "csv", ".dat": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_SEPARATORS = (",", "\t", ";", "|")


def columns_of_file(path: Path, format: str | None) -> Columns:
    """The raw columns of a file.

    Args:
        path: csv, tsv, json, jsonl (ndjson) or parquet; text formats may be gzipped.
        format: one of ``FORMATS``; None takes it from the name, else from the content.

    Raises:
        ValueError: the file is missing, is not readable as that format, or holds no rows.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}. Do: one of {listed(FORMATS)}")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if _by_name(p))
        raise ValueError(
            f"{path} is a directory. Do: name one table"
            + (f", such as {listed(inside, 5)}" if inside else "")
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.iterdir() if _by_name(p)) if path.parent.is_dir() else []
        raise ValueError(
            f"no file {path}" + (f"; that directory has {listed(near, 5)}" if near else "")
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: broken gzip file ({error}). Do: copy it again") from None
    if data[:4] == b"PAR1" or (format or _by_name(path)) == "parquet":
        return _parquet(path, data)
    text = _decode(path, data)
    if not text.strip():
        raise ValueError(f"{path} is empty. Do: a table needs a header line and one line per run")
    kind = format or _by_name(path) or {"{": "jsonl", "[": "json"}.get(text.lstrip()[0], "csv")
    if kind == "json":
        return _json(path, text)
    if kind == "jsonl":
        return _json_lines(path, text)
    return _csv(path, text, "\t" if kind == "tsv" else None)


def _by_name(path: Path) -> str | None:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return _BY_SUFFIX.get(suffix)


def _decode(path: Path, data: bytes) -> str:
    if data[:4] == b"PK\x03\x04" or path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise ValueError(f"{path} is a spreadsheet or an archive, not a table of text. Do: export it as CSV")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not"
            f" {encoding.removesuffix('-sig').upper()}. Do: save the file as UTF-8 (iconv -f latin1"
            " -t utf8)"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{path}, line {line}: holds a NUL byte, so it is no text table. Do: give a CSV, JSON"
            " or Parquet file"
        )
    return text


def _csv(path: Path, text: str, separator: str | None) -> Columns:
    lines = io.StringIO(text, newline="")
    first = next(line for line in lines if line.strip())
    if first.lower().startswith("sep=") and len(first.strip()) == 5:
        separator = first[4]  # Excel writes its separator in a line of its own
    else:
        lines.seek(0)
    if separator is None:
        separator = max(_SEPARATORS, key=_outside_quotes(first).count)
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        line = reader.line_num
        if "end of data" in str(error):  # a quote opened above: name its line, not the last one
            odd = (n for n, x in enumerate(text.split("\n"), 1) if x.count('"') % 2)
            line = next(odd, line)
        raise ValueError(f"{path}, line {line}: {error}. Do: check the quotes there") from None
    header, rows = [name.strip() for name in rows[0]], rows[1:]
    # a line of separators only is how spreadsheets write an empty row
    rows = [row for row in rows if any(row) or len(header) == 1]
    if not rows:
        raise ValueError(f"{path} has a header and no rows. Do: one line per run below {listed(header, 6)!r}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            _refuse_ragged(path, number, row, header, separator)
    cells = dict(enumerate(zip(*rows, strict=True)))
    if header[-1] == "" and not any(cells[len(header) - 1]):
        header.pop()  # a comma at the end of every line
    _check_header(path, header, separator)
    return {name: cells[i] for i, name in enumerate(header)}


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _refuse_ragged(
    path: Path, number: int, row: Sequence[str], header: Sequence[str], separator: str
) -> None:
    hint = "add the missing cells"
    if len(row) > len(header):
        hint = "quote text that holds the separator"
        if separator == ",":
            hint += "; write decimals with a point and counts without thousands separators"
    raise ValueError(
        f"{path}, row {number}: needed {len(header)} cells ({listed(header, 6)}), got {len(row)}: "
        f"{listed(row, 6)}. Do: {hint}"
    )


def _check_header(path: Path, header: list[str], separator: str) -> None:
    if header[0] == "":
        header[0] = "index"  # a data frame written with its index
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        places = [i + 1 for i, name in enumerate(header) if name == twice[0]]
        what = f"column name {twice[0]!r}" if twice[0] else "an empty column name"
        raise ValueError(
            f"{path}: {what} stands in the header {len(places)} times (columns {listed(places)})."
            " Do: rename or delete one"
        )
    if "" in header:
        raise ValueError(f"{path}: column {header.index('') + 1} has no name. Do: name it in the header")
    if all(_is_number(name) for name in header):
        raise ValueError(
            f"{path}: the first line, {listed(header, 6)}, is numbers. Do: put the column names in"
            " the first line"
        )
    if len(header) == 1 and len(header[0].split()) > 1:
        raise ValueError(
            f"{path}: one column named {header[0]!r}. Do: separate columns with a comma, tab,"
            " semicolon or |, not spaces"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json(path: Path, text: str) -> Columns:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip()[0] == "{":
            return _json_lines(path, text)
        raise ValueError(
            f"{path}, line {error.lineno}: broken JSON ({error.msg}). Do: correct it, or name JSON"
            " lines .jsonl"
        ) from None
    if isinstance(value, dict) and len(value) == 1:
        (inside,) = value.values()
        if isinstance(inside, list) and inside and isinstance(inside[0], dict):
            value = inside  # {"runs": [{…}, …]}
    if isinstance(value, dict) and value and all(isinstance(cells, list) for cells in value.values()):
        return columns_of_mapping(str(path), value)
    if not isinstance(value, list):
        raise ValueError(
            f"{path}: needed a list of objects, one per run, got {type(value).__name__}. Do: write"
            ' [{"params": …}, …]'
        )
    return columns_of_records(str(path), value, "item")


def _json_lines(path: Path, text: str) -> Columns:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: broken JSON ({error.msg} at column {error.colno}). Do: one"
                " object per line"
            ) from None
    return columns_of_records(str(path), records, "line")


def columns_of_records(source: str, records: Sequence[object], word: str = "row") -> Columns:
    """The columns of a list of dicts; nested dicts are flattened with dots, absent keys are missing cells.

    Raises:
        ValueError: there is no record, or one is no mapping.

    Example:
        >>> columns_of_records("memory", [{"loss": 2.0, "config": {"lr": 1e-3}}])
        {'loss': [2.0], 'config.lr': [0.001]}
    """
    if not records:
        raise ValueError(f"{source} holds no rows. Do: give one object per run")
    names: dict[str, None] = {}
    flat = []
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping):
            raise ValueError(
                f"{source}, {word} {number}: needed an object with a value per column, got"
                f" {type(record).__name__}"
            )
        flat.append(flatten(record))
        names.update(dict.fromkeys(flat[-1]))
    return {name: [record.get(name) for record in flat] for name in names}


def flatten(record: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined with dots.

    Example:
        >>> flatten({"config": {"lr": {"desc": None, "value": 0.1}}, "loss": 2})
        {'config.lr': 0.1, 'loss': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if name in flat:
            raise ValueError(f"key {name!r} stands twice, once nested. Do: rename one")
        if isinstance(value, Mapping) and set(value) == {"desc", "value"}:
            flat[name] = value["value"]  # how W&B writes a config entry
        elif isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def columns_of_mapping(source: str, columns: Mapping[Any, Any]) -> Columns:
    """The columns of a dict of columns.

    Raises:
        ValueError: a column is no sequence, or lengths differ.
    """
    if not columns:
        raise ValueError(f"{source} holds no columns. Do: give one sequence per column")
    raw: Columns = {}
    for name, cells in columns.items():
        if isinstance(cells, str) or not isinstance(cells, Iterable):
            raise ValueError(
                f"{source}, column {str(name)!r}: needed a sequence with one value per run, got"
                f" {type(cells).__name__}"
            )
        raw[str(name)] = cells if isinstance(cells, np.ndarray) else list(cells)
    lengths = {name: len(cells) for name, cells in raw.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{source}: columns differ in length: " + listed(f"{n} {k}" for n, k in lengths.items())
        )
    return raw


def columns_of_frame(frame: Any) -> Columns:
    """The columns of a pandas data frame, copied.

    Raises:
        ValueError: a column name stands twice.
    """
    names = [".".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"data frame: column name {twice[0]!r} stands twice. Do: rename or drop one")
    raw: Columns = {}
    for i, name in enumerate(names):
        series = frame.iloc[:, i]
        kind = getattr(series.dtype, "kind", "O")
        if kind in "fiu" and not series.hasnans:
            raw[name] = series.to_numpy(dtype=float, copy=True)
        else:
            raw[name] = series.astype(object).where(series.notna(), None).tolist()
    return raw


def _parquet(path: Path, data: bytes) -> Columns:
    try:
        # by name: pyarrow ships no types, and is not there at all in a plain installation
        pa: Any = importlib.import_module("pyarrow")
        pq: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f'{path}: Parquet needs pyarrow: pip install "isoloss[parquet]"') from None
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: broken Parquet file ({str(error).splitlines()[0]})") from None
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    raw: Columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in raw:
            raise ValueError(f"{path}: column name {name!r} stands twice. Do: rename or drop one")
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            raw[name] = column.cast(pa.float64(), safe=False).to_numpy()
        else:
            raw[name] = column.to_pylist()
    return raw

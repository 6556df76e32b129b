"""Broken tables: each is refused with a message that names the place, or read and named by a finding."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import isoloss.runs

Row = dict[str, Any]
Make = Callable[[Path], Path]
Expected = tuple[str, str]


def good_rows() -> list[Row]:
    """25 sound runs on a grid, on the Besiroglu law with a fixed wiggle of 0.2 per cent."""
    rows = []
    for i in range(25):
        n, d = 10 ** (7 + i // 5 / 2), 10 ** (9 + i % 5 / 2)
        n, d = round(n), round(d)
        loss = (1.8172 + 477.8 / n**0.3473 + 2143 / d**0.3672) * (1 + 0.002 * math.sin(7 * i))
        rows.append(
            {"run": f"r{i + 1}", "params": n, "tokens": d, "flops": float(6 * n * d), "loss": round(loss, 6)}
            | {"seed": 0, "lr": round(0.3 / n**0.3, 6), "state": "finished"}
        )
    return rows


def text_of(rows: Sequence[Row], separator: str = ",", end: str = "\n") -> str:
    """The rows as CSV text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def written(content: str | bytes, name: str = "runs.csv") -> Make:
    """A maker of a file with that content."""

    def make(folder: Path) -> Path:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return folder / name

    return make


def changed(change: Callable[[list[Row]], object]) -> Make:
    """A maker of the good table after a change of its rows (in place, or a new list returned)."""
    rows = good_rows()
    new = change(rows)
    return written(text_of(new if isinstance(new, list) else rows))


def cell(row: int, column: str, value: object) -> Make:
    """A maker of the good table with one cell (1-based row) changed."""
    return changed(lambda rows: rows[row - 1].__setitem__(column, value))


def column(name: str, function: Callable[[Row], object]) -> Make:
    """A maker of the good table with one column computed anew."""
    return changed(lambda rows: [row | {name: function(row)} for row in rows])


def lines(edit: Callable[[list[str]], list[str]]) -> Make:
    """A maker of the good table with its text lines edited (0 is the header)."""
    return written("\n".join(edit(text_of(good_rows()).rstrip("\n").split("\n"))) + "\n")


def without(*names: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{k: v for k, v in row.items() if k not in names} for row in rows]


def checkpoints(rows: list[Row]) -> list[Row]:
    early = [
        row
        | {"tokens": row["tokens"] // 2, "loss": row["loss"] * 1.05, "flops": row["flops"] / 2, "step": 50}
        for row in rows[:4]
    ]
    return [row | {"step": 100} for row in rows] + early


def parquet(build: Callable[[list[Row]], list[Row]]) -> Make:
    def make(folder: Path) -> Path:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(build(good_rows())), folder / "runs.parquet")
        return folder / "runs.parquet"

    return make


def folder_with_tables(folder: Path) -> Path:
    (folder / "a.csv").write_text("params\n1\n")
    return folder


GOOD = text_of(good_rows())
FIXED = [row for i, row in enumerate(good_rows()) if i // 5 == i % 5]

BROKEN: list[tuple[str, Make, Expected]] = [
    # the file
    ("missing-file", lambda folder: folder / "nowhere.csv", ("error", r"no file .*nowhere\.csv")),
    ("directory", folder_with_tables, ("error", r"is a directory.*a\.csv")),
    ("empty-file", written(""), ("error", r"is empty.*header line")),
    ("blank-file", written(" \n\n"), ("error", r"is empty")),
    ("header-only", lines(lambda x: x[:1]), ("error", r"header and no rows")),
    ("no-header", lines(lambda x: ["1e7,1e9,3.1"] * 3), ("error", r"first line, 1e7.*column names")),
    ("duplicate-header", lines(lambda x: [x[0].replace("seed", "loss"), *x[1:]]), ("error", r"'loss' stands in the header 2 times \(columns 5, 6\)")),
    ("unnamed-column", lines(lambda x: [x[0].replace("seed", ""), *x[1:]]), ("error", r"column 6 has no name")),
    ("short-row", lines(lambda x: [*x[:3], x[3].rsplit(",", 1)[0], *x[4:]]), ("error", r"row 3: needed 8 cells .* got 7")),
    ("long-row", lines(lambda x: [*x[:3], x[3] + ",7", *x[4:]]), ("error", r"row 3: needed 8 cells .* got 9")),
    ("spaces-as-separator", written("params tokens loss\n1e7 1e9 3.1\n"), ("error", r"one column named.*separate columns")),
    ("unclosed-quote", lines(lambda x: [*x[:4], '"' + x[4], *x[5:]]), ("error", r"line \d+: .*quotes")),
    ("text-after-quote", lines(lambda x: [*x[:4], '"r4"x' + x[4][2:], *x[5:]]), ("error", r"line 5: .*quotes")),
    ("latin-1", written(GOOD.replace("r3", "é").encode("latin-1")), ("error", r"line 4: byte 0xe9 is not UTF-8.*iconv")),
    ("nul-byte", written(GOOD.replace("r3", "r\0")), ("error", r"line 4: holds a NUL byte")),
    ("spreadsheet", written(b"PK\x03\x04rest", "runs.xlsx"), ("error", r"spreadsheet.*CSV")),
    ("spreadsheet-named-csv", written(b"PK\x03\x04rest"), ("error", r"spreadsheet.*CSV")),
    ("truncated-gzip", written(gzip.compress(GOOD.encode())[:-20], "runs.csv.gz"), ("error", r"broken gzip")),
    ("csv-named-parquet", written(GOOD, "runs.parquet"), ("error", r"broken Parquet|Parquet needs pyarrow")),
    ("broken-json-line", written('{"params": 1e7}\n{"params": 1e7,\n', "runs.jsonl"), ("error", r"line 2: broken JSON")),
    ("json-line-no-object", written('{"params": 1e7}\n[1, 2]\n', "runs.jsonl"), ("error", r"line 2: needed an object.*list")),
    ("broken-json", written('[{"params": 1e7},\n {"params" 2}]', "runs.json"), ("error", r"line 2: broken JSON")),
    ("json-number", written("3", "runs.json"), ("error", r"needed a list of objects.*int")),
    ("json-no-rows", written("[]", "runs.json"), ("error", r"holds no rows")),
    ("json-columns-differ", written('{"params": [1, 2], "loss": [3.0]}', "runs.json"), ("error", r"differ in length: params 2, loss 1")),
    ("json-boolean-loss", written(json.dumps([r | {"loss": True} for r in good_rows()]), "runs.json"), ("error", r"column 'loss', row 1: needed a number, got True")),
    ("json-list-cell", written(json.dumps([r | {"loss": [3.1, 3.2]} for r in good_rows()]), "runs.json"), ("error", r"column 'loss', row 1: needed a number")),
    ("json-huge-integer", written(json.dumps([r | {"flops": 10**400} for r in good_rows()]), "runs.json"), ("error", r"column 'flops', row 1: needed a number")),
    ("wandb-broken-summary", written("name,summary,config\na,\"{'loss': 2.1}\",{}\nb,\"{'loss': 2.1\",{}\n"), ("error", r"row 2, column 'summary'.*dict")),
    # cells
    ("word-in-loss", cell(7, "loss", "tbd"), ("error", r"column 'loss', row 7: needed a number, got 'tbd'")),
    ("word-in-params", cell(3, "params", "big"), ("error", r"column 'params', row 3: .*'big'")),
    ("decimal-comma", written(text_of([r | {"loss": str(r["loss"]).replace(".", ",")} for r in good_rows()], ";")), ("error", r"column 'loss', row 1: .*Do: write \d\.\d+, with a decimal point")),
    ("unquoted-decimal-comma", lines(lambda x: [*x[:2], x[2].replace(".", ","), *x[3:]]), ("error", r"row 2: needed 8 cells.*decimals with a point")),
    ("thousands-separators", cell(5, "params", "10,000,000"), ("error", r"row 5: .*Do: write 10000000, without thousands separators")),
    ("thousands-spaces", cell(5, "tokens", "10 000 000"), ("error", r"column 'tokens', row 5: .*write 10000000")),
    ("bytes-as-count", cell(5, "params", "14GB"), ("error", r"row 5: .*'14GB'.*bytes is not a count")),
    ("per-cent-sign", cell(5, "loss", "31%"), ("error", r"row 5: .*write the number alone, 31")),
    ("count-with-words", cell(5, "tokens", "1B tokens"), ("error", r"column 'tokens', row 5: .*'1B tokens'")),
    ("date-in-lr", cell(5, "lr", "2024-01-01"), ("error", r"column 'lr', row 5")),
    ("suffix-in-loss", cell(5, "loss", "3k"), ("error", r"column 'loss', row 5")),
    # a canonical column is not there
    ("other-names", lines(lambda x: [x[0].replace("params", "N").replace("loss", "val_loss"), *x[1:]]), ("error", r"--columns params=N,loss=val_loss")),
    ("no-loss", changed(without("loss")), ("error", r"needed column 'loss', got run, params.*--columns loss=COLUMN")),
    # values
    ("nan-loss", cell(4, "loss", "nan"), ("finding", "nonfinite-loss")),
    ("infinite-loss", cell(4, "loss", "inf"), ("finding", "nonfinite-loss")),
    ("diverged-word", cell(4, "loss", "diverged"), ("finding", "nonfinite-loss")),
    ("empty-loss", cell(4, "loss", ""), ("finding", "nonfinite-loss")),
    ("empty-params", changed(lambda rows: [row | {"params": "" if i == 3 else row["params"], "flops": ""} for i, row in enumerate(rows)]), ("finding", "missing-value")),
    ("none-tokens", cell(4, "tokens", "None"), ("finding", "missing-value")),
    ("infinite-tokens", cell(4, "tokens", "inf"), ("finding", "missing-value")),
    ("zero-loss", cell(4, "loss", 0), ("finding", "nonpositive-loss")),
    ("negative-loss", cell(4, "loss", -2.1), ("finding", "nonpositive-loss")),
    ("zero-params", cell(4, "params", 0), ("finding", "nonpositive-count")),
    ("negative-tokens", cell(4, "tokens", -1000), ("finding", "nonpositive-count")),
    ("wrapped-flops", column("flops", lambda r: (int(r["flops"]) + 2**63) % 2**64 - 2**63), ("finding", "integer-overflow")),
    ("saturated-tokens", column("tokens", lambda r: min(r["tokens"], 2**31 - 1)), ("finding", "integer-overflow")),
    ("wrapped-params", cell(4, "params", -1294967296), ("finding", "integer-overflow")),
    ("zero-loss-sd", column("loss_sd", lambda r: 0.0), ("finding", "bad-weight")),
    ("negative-weight", column("weight", lambda r: -1.0), ("finding", "bad-weight")),
    # units
    ("perplexity", column("loss", lambda r: math.exp(r["loss"] + 2)), ("finding", "loss-unit")),
    ("accuracy", column("loss", lambda r: 1.2 - r["loss"] / 6), ("finding", "loss-unit")),
    ("accuracy-per-cent", column("loss", lambda r: 120 - 100 * r["loss"] / 6), ("finding", "loss-unit")),
    ("bits-per-byte", column("loss", lambda r: 0.3 * r["loss"]), ("finding", "loss-unit")),
    ("params-in-millions", changed(lambda rows: [r | {"params": r["params"] / 1e6, "flops": ""} for r in rows]), ("finding", "count-unit")),
    ("tokens-in-billions", changed(lambda rows: [r | {"tokens": r["tokens"] / 1e9, "flops": ""} for r in rows]), ("finding", "count-unit")),
    ("one-row-in-millions", changed(lambda rows: rows[11].__setitem__("params", 100)), ("finding", "mixed-units")),
    ("flops-in-pf-days", column("flops", lambda r: r["flops"] / 8.64e19), ("finding", "flops-not-6nd")),
    ("flops-forward-only", column("flops", lambda r: r["flops"] / 3), ("finding", "flops-not-6nd")),
    ("flops-of-another-run", cell(4, "flops", 1e22), ("finding", "flops-not-6nd")),
    ("embeddings-in-some-rows", changed(lambda rows: [r | {"params_nonembedding": r["params"] * (1 if i < 5 else 0.8)} for i, r in enumerate(rows)]), ("finding", "mixed-param-counts")),
    ("flops-in-two-groups", changed(lambda rows: [r | {"flops": r["flops"] * (0.7 if i < 8 else 1)} for i, r in enumerate(rows)]), ("finding", "mixed-param-counts")),
    # rows
    ("row-twice", changed(lambda rows: [*rows, rows[6]]), ("finding", "duplicate-rows")),
    ("table-twice", changed(lambda rows: rows + rows), ("finding", "duplicate-rows")),
    ("row-per-task", changed(lambda rows: [row | {"task": t} for row in rows for t in ("arc", "mmlu", "piqa")]), ("finding", "duplicate-rows")),
    ("two-seeds", changed(lambda rows: [*rows, rows[6] | {"run": "again", "seed": 1, "loss": 3.2}]), ("finding", "replicates")),
    ("one-diverged", cell(13, "loss", 7.9), ("finding", "diverged")),
    ("slightly-diverged", changed(lambda rows: rows[12].__setitem__("loss", rows[12]["loss"] * 1.12)), ("finding", "diverged")),
    ("crashed", cell(4, "state", "crashed"), ("finding", "unfinished-run")),
    ("running", cell(4, "state", "Running"), ("finding", "unfinished-run")),
    ("not-completed", changed(lambda rows: [r | {"completed": int(i != 3)} for i, r in enumerate(rows)]), ("finding", "unfinished-run")),
    ("half-a-run", changed(lambda rows: [r | {"fraction_of_run": 0.5 if i == 3 else 1} for i, r in enumerate(rows)]), ("finding", "unfinished-run")),
    ("checkpoints", changed(checkpoints), ("finding", "mixed-checkpoints")),
    ("one-learning-rate", column("lr", lambda r: 3e-4), ("finding", "lr-not-tuned")),
    ("sweep-not-chosen", changed(lambda rows: [*rows, *(r | {"run": r["run"] + "b", "lr": 1.0, "loss": r["loss"] * 1.03} for r in rows)]), ("finding", "lr-not-tuned")),
    # the design
    ("one-size", changed(lambda rows: rows[:5]), ("finding", "few-values")),
    ("two-sizes", changed(lambda rows: rows[:10]), ("finding", "few-values")),
    ("fixed-tokens-per-param", written(text_of(FIXED)), ("finding", "fixed-ratio")),
    ("narrow-params", column("params", lambda r: round(1e8 * r["params"] ** 0.05)), ("finding", "narrow-range")),
    ("four-rows", changed(lambda rows: rows[::7]), ("finding", "few-rows")),
    ("constant-loss", column("loss", lambda r: 3.0), ("finding", "constant-loss")),
    ("flat-loss", column("loss", lambda r: 3.0 + r["loss"] / 1000), ("finding", "loss-range")),
    ("parquet-nulls", parquet(lambda rows: [r | {"loss": None if i == 3 else r["loss"]} for i, r in enumerate(rows)]), ("finding", "nonfinite-loss")),
    ("parquet-boolean-loss", parquet(lambda rows: [r | {"loss": True} for r in rows]), ("error", r"column 'loss', row 1: needed a number, got True")),
]  # fmt: skip
"""(name, make(folder) -> file, ("error", pattern of read's or check's message) or ("finding", code))."""

BROKEN_OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("columns-syntax", {"columns": "params:N"}, r"cannot read 'params:N'.*params=N"),
    ("columns-twice", {"columns": "params=run,params=tokens"}, r"'params' is given twice"),
    ("columns-unknown", {"columns": "loss=val_los"}, r"no column 'val_los'; the table has run, params"),
    ("columns-reversed", {"columns": "lr=weight_decay"}, r"no column 'weight_decay'"),
    ("columns-text", {"columns": "loss=state"}, r"column 'loss' \(from 'state'\), row 1: .*'finished'"),
    ("units-unknown", {"units": "loss=bananas"}, r"unknown unit 'bananas'.*bits/token"),
    ("units-per-what", {"units": "loss=bits"}, r"per.*bits/token or bits/byte"),
    ("units-no-column", {"units": "val_loss=bits/token"}, r"units val_loss=bits/token: no column"),
    ("units-of-a-loss-for-params", {"units": "params=bits/token"}, r"'bits/token' is no unit of parameters"),
    ("units-of-a-count-for-loss", {"units": "loss=millions"}, r"'millions' is no unit of cross-entropy"),
    ("where-unknown", {"where": "dataset == 'c4'"}, r"dataset.*not defined; columns are run, params"),
    ("where-no-match", {"where": "seed == 7"}, r"matches none of 25 rows; seed holds 0"),
    ("where-syntax", {"where": "params >"}, r"cannot be read"),
    ("where-assignment", {"where": "seed = 0"}, r"compare.*two ="),
    ("where-not-boolean", {"where": "params"}, r"not true or false in each row"),
    ("where-types", {"where": "state > 3"}, r"compare text columns with quoted text"),
    ("where-empty", {"where": "  "}, r"empty.*compare a column"),
    ("format-unknown", {"format": "xml"}, r"unknown format 'xml'"),
    ("curves-without-run", {"curves": [{"step": 1, "loss": 3.0}]}, r"needs a column 'run'"),
    ("curves-of-other-runs", {"curves": [{"run": "x", "step": 1}]}, r"no run of the curves \(x\) is in"),
]


def test_enough_kinds() -> None:
    names = [name for name, _, _ in BROKEN]
    assert len(names) == len(set(names)) >= 45
    assert {code for _, _, (kind, code) in BROKEN if kind == "finding"} == set(isoloss.runs.CODES)


def test_the_good_table_has_no_findings(tmp_path: Path) -> None:
    assert isoloss.runs.check(isoloss.runs.read(written(GOOD)(tmp_path))) == []


@pytest.mark.parametrize(("name", "make", "expected"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_broken_table(name: str, make: Make, expected: Expected, tmp_path: Path) -> None:
    path = make(tmp_path)
    kind, what = expected
    if kind == "error":
        with pytest.raises(ValueError, match=what) as caught:
            isoloss.runs.check(isoloss.runs.read(path))
        message = str(caught.value)
        assert path.name in message
        assert "\n" not in message
        assert len(message) < 600
        return
    findings = isoloss.runs.check(isoloss.runs.read(path))
    finding = next((f for f in findings if f.code == what), None)
    assert finding is not None, f"{name}: {[f.code for f in findings]}"
    assert finding.text.endswith(".")
    assert finding.why
    assert finding.do


@pytest.mark.parametrize(
    ("name", "options", "pattern"), BROKEN_OPTIONS, ids=[name for name, _, _ in BROKEN_OPTIONS]
)
def test_broken_option(name: str, options: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=pattern) as caught:
        isoloss.runs.read(written(GOOD)(tmp_path), **options)
    assert "\n" not in str(caught.value)
    assert not re.search(r"Traceback|<class", str(caught.value))


ROWS_NAMED = {
    "nan-loss": (4,), "empty-params": (4,), "infinite-tokens": (4,), "zero-loss": (4,), "zero-params": (4,),
    "wrapped-params": (4,), "one-row-in-millions": (12,), "flops-of-another-run": (4,), "row-twice": (26,),
    "embeddings-in-some-rows": (1, 2, 3, 4, 5), "flops-in-two-groups": tuple(range(1, 9)),
    "two-seeds": (7, 26), "one-diverged": (13,), "slightly-diverged": (13,), "crashed": (4,),
    "half-a-run": (4,), "not-completed": (4,), "checkpoints": (26, 27, 28, 29), "parquet-nulls": (4,),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS_NAMED)
def test_findings_name_the_rows(name: str, tmp_path: Path) -> None:
    make, (_, code) = next((make, expected) for n, make, expected in BROKEN if n == name)
    findings = isoloss.runs.check(isoloss.runs.read(make(tmp_path)))
    assert next(f.rows for f in findings if f.code == code) == ROWS_NAMED[name]

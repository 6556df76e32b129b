"""A store keeps what it acknowledged, through kills, full disks and damage, or says that it cannot."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

import isoloss
from isoloss.errors import StoreError
from isoloss.study import opening, schema
from isoloss.study import store as store_module
from isoloss.study.records import LEVELS, Outcome, Promise
from isoloss.study.store import Store

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def promise(**changed: Any) -> Promise:
    """A prediction of loss 3 to 3.2 at a point of 1e8 params and 2e9 tokens."""
    settings: dict[str, Any] = {
        "law": "hoffmann", "target": "loss", "unit": "nats/token", "at": {"params": 1e8, "tokens": 2e9},
        "quantiles": tuple(3 + 0.2 * LEVELS), "coverage": 0.9, "low": 3.01, "high": 3.19, "shift": None,
        "asked": "run", "reach": 2.0, "distance": 4.0, "cost_rule": "6 * params * tokens", "known": 0,
        "fit": "f" * 64, "data": "d" * 64,
    }  # fmt: skip
    return Promise(**{**settings, **changed})


def filled(path: Path) -> Store:
    """A store of one run with a curve, one prediction and its outcome: entries 1, 2 and 3."""
    store = Store(path)
    store.add_run(
        "ladder", "w32", axes={"params": 1e6, "tokens": 2e7}, measured={"loss": 3.2}, costs={"seconds": 5},
        config={"lr": 0.1, "seeds": [1, 2]}, units={"loss": "nats/token"}, curves={"loss": ([1, 2], [9.0, 3.2])},
    )  # fmt: skip
    store.add_predictions([promise()])
    store.add_outcomes([Outcome(2, 3.1, "2026-05-01", "by hand")])
    return store


def run_python(code: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, env=ENVIRONMENT, **options,
    )  # fmt: skip


# What it keeps


def test_everything_comes_back_as_it_was_added(tmp_path):
    filled(tmp_path / "a.db")
    store = Store(tmp_path / "a.db", read_only=True)
    (run,), (prediction,), (outcome,) = store.run_entries(), store.predictions(), store.outcomes()
    assert (run["id"], run["axes"], run["costs"]) == (1, {"params": 1e6, "tokens": 2e7}, {"seconds": 5.0})
    assert (run["config"], run["measured"]) == ({"lr": 0.1, "seeds": [1, 2]}, {"loss": 3.2})
    written = promise()
    for name in Promise.__dataclass_fields__:
        if name != "quantiles":
            assert prediction[name] == getattr(written, name), name
    np.testing.assert_allclose(prediction["quantiles"], written.quantiles, rtol=1e-8)
    assert (outcome["prediction"], outcome["value"], outcome["replaces"]) == (2, 3.1, None)
    assert outcome["measured"] == "2026-05-01T23:59:59+00:00"
    table = store.runs("ladder")
    assert table.units["loss"] == "nats/token"
    assert (table["run"].tolist(), table["loss"].tolist(), table.rows.tolist()) == (["w32"], [3.2], [1])
    assert store.curves()["loss"].tolist() == [9.0, 3.2]
    store.verify()
    assert sorted(os.listdir(tmp_path)) == ["a.db"]  # nothing is left beside it


def test_a_run_may_be_added_again_and_not_otherwise(tmp_path):
    store = filled(tmp_path / "a.db")
    point = {"axes": {"params": 1e6}, "measured": {"loss": 3.0}}
    first = store.add_run("s", "k", status="failed", **point)
    assert store.add_run("s", "k", status="failed", **point) == first + 1  # an attempt each
    done = store.add_run("s", "k", **point)
    assert store.add_run("s", "k", **point) == done
    assert store.add_run("123", "1", **point) == done + 1
    assert (store.runs("123")["study"][0], store.runs("123")["run"][0]) == ("123", "1")
    with pytest.raises(StoreError, match="done already"):
        store.add_run("s", "k", axes={"params": 1e6}, measured={"loss": 2.0})
    assert len(store.runs("s")) == 1
    with pytest.raises(ValueError, match="stands among two"):
        store.add_run("s", "x", axes={"flops": 1.0}, costs={"flops": 1.0}, measured={})
    with pytest.raises(StoreError, match="no run 99"):
        store.add_curve(99, "loss", [1], [2.0])
    with pytest.raises(ValueError, match="cannot be called 'step'"):
        store.add_curve(1, "step", [1], [2.0])
    with pytest.raises(StoreError, match="no finished run of study 'none'"):
        store.runs("none")


def test_missing_values_are_missing(tmp_path):
    store = Store(tmp_path / "a.db")
    for key, loss in (("a", float("nan")), ("b", float("inf")), ("c", 3.0)):
        store.add_run("s", key, axes={"params": 1e6}, measured={"loss": loss}, curves={"loss": ([1], [loss])})
    assert np.isnan(store.runs()["loss"]).tolist() == [True, True, False]
    curve = store.curves()["loss"]
    assert np.isnan(curve[0])
    assert curve[1:].tolist() == [np.inf, 3.0]


def test_a_prediction_is_promised_once_and_has_one_outcome(tmp_path):
    store = Store(tmp_path / "a.db")
    assert store.add_predictions([promise(), promise(), promise(low=2.9)]) == (1, 1, 2)
    assert store.add_predictions([promise(note="again")]) == (1,)
    assert store.add_outcomes([Outcome(1, 3.1)]) == (3,)
    assert store.add_outcomes([Outcome(1, 3.1)]) == (3,)
    with pytest.raises(StoreError, match=r"has the outcome 3\.1, got 3\.2"):
        store.add_outcomes([Outcome(2, 3.0), Outcome(1, 3.2)])
    assert len(store.outcomes()) == 1  # all or none
    assert store.add_outcomes([Outcome(1, 3.2, corrects=True)]) == (4,)
    assert [o["replaces"] for o in store.outcomes()] == [None, 3]
    assert store.add_predictions([promise()]) == (5,)  # a new one: the other has its outcome
    with pytest.raises(StoreError, match="no prediction 77"):
        store.add_outcomes([Outcome(77, 3.0)])


@pytest.mark.parametrize(
    "changed", [{"low": 4.0}, {"low": float("nan")}, {"quantiles": (1.0,)}, {"coverage": 1.0}]
)
def test_a_promise_that_cannot_be_scored_is_refused(changed):
    with pytest.raises(ValueError, match=r"order|finite|quantiles|coverage"):
        promise(**changed)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_export_holds_every_entry(tmp_path, format):
    store = filled(tmp_path / "a.db")
    files = store.export(tmp_path / "out", format)
    assert [file.name for file in files] == [
        f"{n}.{format}" for n in ("runs", "curves", "predictions", "outcomes")
    ]
    read = pd.read_csv if format == "csv" else pd.read_parquet
    runs, curves, predictions, outcomes = (read(file) for file in files)
    assert (runs["run"][0], runs["loss"][0], runs["config.lr"][0], runs["seconds"][0]) == ("w32", 3.2, 0.1, 5)
    assert curves["loss"].tolist() == [9.0, 3.2]
    assert predictions["at.params"][0] == 1e8
    assert predictions["q0.5"][0] == pytest.approx(3.1)
    assert outcomes["value"].tolist() == [3.1]
    table = isoloss.read(str(files[0]))
    assert table["loss"].tolist() == [3.2]
    with pytest.raises(ValueError, match="csv or parquet"):
        store.export(tmp_path, "xml")


# What it refuses


@pytest.mark.parametrize("table", ["entries", "runs", "curves", "predictions", "outcomes"])
def test_nothing_is_changed_or_removed(tmp_path, table):
    filled(tmp_path / "a.db")
    column = {"entries": "created", "curves": "value", "outcomes": "value"}.get(table, "study")
    for order in (
        f"UPDATE {table} SET {column} = 1",
        f"DELETE FROM {table}",
        f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
    ):
        with (
            closing(sqlite3.connect(tmp_path / "a.db")) as raw,
            pytest.raises(sqlite3.IntegrityError, match=f"append-only: {table}"),
        ):
            raw.execute(order)
    store = Store(tmp_path / "a.db")
    with pytest.raises(StoreError, match="got a change of an old one"), store._writing() as connection:
        connection.execute(sa.update(schema.runs).values(study="x"))
    with pytest.raises(StoreError, match="change of an old one"):
        store.add_curve(1, "loss", [2], [1.0])
    store.verify()


def test_a_change_behind_its_back_is_noticed(tmp_path):
    filled(tmp_path / "a.db")
    with closing(sqlite3.connect(tmp_path / "a.db")) as raw, raw:
        raw.execute("DROP TRIGGER outcomes_no_update")
        raw.execute("UPDATE outcomes SET value = 3.05")
    with pytest.raises(StoreError, match="damaged: entry 3 is not what was written"):
        Store(tmp_path / "a.db").outcomes()
    with closing(sqlite3.connect(tmp_path / "a.db")) as raw, raw:
        raw.execute("DROP TRIGGER curves_no_update")
        raw.execute("UPDATE curves SET value = 3.1 WHERE step = 2")
    with pytest.raises(StoreError, match="damaged: curve loss of run 1 is not what was written"):
        Store(tmp_path / "a.db").curves()
    filled(tmp_path / "b.db")
    with closing(sqlite3.connect(tmp_path / "b.db")) as raw, raw:
        raw.execute("DROP TRIGGER runs_no_delete")
        raw.execute("DROP TRIGGER curves_no_delete")
        raw.execute("DELETE FROM curves")
        raw.execute("DELETE FROM runs")
    with pytest.raises(StoreError, match="entries are missing"):
        Store(tmp_path / "b.db").runs()


def test_files_that_are_no_store(tmp_path):
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("params,tokens,loss\n" * 20)
    (tmp_path / "short.db").write_bytes(b"SQLite format 3\0 and no more")
    with closing(sqlite3.connect(tmp_path / "other.db")) as raw, raw:
        raw.execute("CREATE TABLE runs (id)")
    for name, text in (
        ("empty", "is empty"),
        ("text", "is no store"),
        ("short", "cut off"),
        ("other", "another program"),
    ):
        for read_only in (True, False):
            before = (tmp_path / f"{name}.db").read_bytes()
            with pytest.raises(StoreError, match=text):
                Store(tmp_path / f"{name}.db", read_only=read_only)
            assert (tmp_path / f"{name}.db").read_bytes() == before
    with pytest.raises(StoreError, match="no store at"):
        Store(tmp_path / "none.db", read_only=True)
    with pytest.raises(StoreError, match=r"cannot read|[Dd]irectory"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="cannot make the store"):
        Store(tmp_path / "no" / "folder.db")
    (tmp_path / "lost.db-wal").write_bytes(b"x" * 100)
    with pytest.raises(StoreError, match="holds its last entries"):
        Store(tmp_path / "lost.db")


def test_truncated_and_damaged_files_are_refused(tmp_path):
    store = filled(tmp_path / "a.db")
    store.add_predictions([promise(low=3 - k / 1000) for k in range(1, 60)])
    good = (store.predictions(), store.outcomes(), store.run_entries())
    whole = (tmp_path / "a.db").read_bytes()
    for share in (0.3, 0.6, 0.95):
        (tmp_path / "a.db").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(StoreError, match="damaged"):
            Store(tmp_path / "a.db")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(30):  # any byte: noticed, or in a place that holds nothing that was asked for
        spoiled = bytearray(whole)
        at = int(rng.integers(100, len(whole)))
        spoiled[at] ^= 0xFF
        (tmp_path / "a.db").write_bytes(spoiled)
        try:
            seen = Store(tmp_path / "a.db", read_only=True)
            found = (seen.predictions(), seen.outcomes(), seen.run_entries())
        except StoreError:
            refused += 1
            continue
        assert found == good
    assert refused > 8


def test_a_newer_file_is_refused_and_an_older_one_upgraded_whole(tmp_path, monkeypatch):
    store = filled(tmp_path / "a.db")
    before = store.predictions()
    old = schema.MIGRATIONS
    added = ("ALTER TABLE predictions ADD COLUMN extra TEXT", "CREATE TABLE more (id INTEGER)")
    monkeypatch.setattr(schema, "MIGRATIONS", (*old, (*added, "CREATE TABLE runs (id)")))
    with pytest.raises(StoreError, match="needed 2 to read it"):
        Store(tmp_path / "a.db", read_only=True)
    with pytest.raises(StoreError):
        Store(tmp_path / "a.db")  # the last statement fails, so nothing of the upgrade stays
    monkeypatch.setattr(schema, "MIGRATIONS", (*old, added))
    assert Store(tmp_path / "a.db").predictions() == before
    with closing(sqlite3.connect(tmp_path / "a.db")) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (2,)
        assert raw.execute("SELECT extra FROM predictions").fetchone() == (None,)
    monkeypatch.setattr(schema, "MIGRATIONS", old)
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"newer isoloss.*version 1.*got 2"):
            Store(tmp_path / "a.db", read_only=read_only)


def test_the_tables_are_those_that_sqlalchemy_is_told_of(tmp_path):
    store = Store(tmp_path / "a.db")
    seen = sa.inspect(store._engine)
    assert set(seen.get_table_names()) == set(schema.meta.tables)
    for name, table in schema.meta.tables.items():
        columns = {c["name"]: (str(c["type"]), c["nullable"]) for c in seen.get_columns(name)}
        expected = {c.name: ("REAL" if isinstance(c.type, sa.Float) else str(c.type)) for c in table.c}
        assert {n: kind for n, (kind, _) in columns.items()} == expected
        assert {n for n, (_, null) in columns.items() if null} - {"id"} == {
            c.name for c in table.c if c.nullable
        }
        assert {k["referred_table"] for k in seen.get_foreign_keys(name)} == {
            key.column.table.name for key in table.foreign_keys
        }


def test_a_locked_store_is_waited_for_then_refused(tmp_path):
    filled(tmp_path / "a.db")
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as raw:
        raw.execute("BEGIN IMMEDIATE")
        hurried = Store(tmp_path / "a.db", wait=0.1)
        begun = time.monotonic()
        with pytest.raises(StoreError, match=r"is locked: another process has held it for 0\.1 s"):
            hurried.add_predictions([promise(low=2.0)])
        assert time.monotonic() - begun < 5
        assert len(Store(tmp_path / "a.db", read_only=True).predictions()) == 1  # readers go on
        raw.execute("ROLLBACK")
    assert hurried.add_predictions([promise(low=2.0)]) == (4,)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    filled(tmp_path / "a.db")
    with closing(sqlite3.connect(tmp_path / "a.db")) as raw:
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
    monkeypatch.setattr(opening, "PRAGMAS", (*opening.PRAGMAS, f"max_page_count = {pages + 2}"))
    store = Store(tmp_path / "a.db")
    with pytest.raises(StoreError, match="disk or the quota is full"):
        store.add_predictions([promise(low=3 - k / 1000) for k in range(1, 40)])
    with pytest.raises(StoreError, match="disk or the quota is full"):
        store.add_run("s", "k", axes={}, measured={}, curves={"loss": (range(5000), range(5000))})
    monkeypatch.undo()
    store = Store(tmp_path / "a.db")
    assert (len(store.predictions()), len(store.run_entries()), len(store)) == (1, 1, 3)
    store.verify()
    assert store.add_predictions([promise(low=2.0)]) == (4,)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_write_that_the_system_refuses_leaves_nothing_half_written(tmp_path):
    filled(tmp_path / "a.db")
    code = """
import resource, sys
from isoloss.study.store import Store
store = Store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
for k in range(100):
    try:
        store.add_run("s", str(k), axes={}, measured={}, curves={"loss": (range(2000), range(2000))})
    except ValueError as error:
        print(k, error)
        break
"""
    out, err = run_python(code, str(tmp_path / "a.db")).communicate(timeout=60)
    assert "Nothing of this entry was written" in out, err
    store = Store(tmp_path / "a.db")
    store.verify()
    assert len(store.run_entries()) == 1 + int(out.split()[0])


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_what_cannot_be_written_to_can_be_read():
    code = """
import os, sys
from isoloss.study.store import Store
path = sys.argv[1]
Store(path, read_only=True).predictions()  # loads all there is to load
os.chmod(path, 0o444)
os.chmod(os.path.dirname(path), 0o555)
if os.getuid() == 0:
    os.setuid(65534)  # root may write anywhere: ask as somebody else
print(len(Store(path, read_only=True).predictions()))
for name in (path, path + "2"):
    try:
        Store(name)
    except ValueError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "a.db"
        filled(path)
        out, err = run_python(code, str(path)).communicate(timeout=60)
        assert out.startswith("1\n"), err
        assert "cannot be written to" in out
        assert "cannot make the store" in out
        assert os.listdir(folder) == ["a.db"]
        os.chmod(folder, 0o755)
        with pytest.raises(StoreError, match="was opened read_only"):
            Store(path, read_only=True).add_predictions([promise()])


# Several at once, and sudden ends

WRITER = """
import sys
from isoloss.study.store import Store
store = Store(sys.argv[1], wait=60)
for k in range(int(sys.argv[3])):
    number = store.add_run("s", f"{sys.argv[2]}-{k}", axes={"params": k + 1}, measured={"loss": 1.0},
                           curves={"loss": (range(50), range(50))})
    print(number, flush=True)
"""


def test_two_processes_write_at_once_from_the_first_moment(tmp_path):
    path = tmp_path / "a.db"
    writers = [run_python(WRITER, str(path), name, "25") for name in ("a", "b", "c")]
    numbers = []
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
        numbers += [int(line) for line in out.split()]
    assert sorted(numbers) == list(range(1, 76))
    store = Store(path)
    store.verify()
    assert len(store.runs()) == 75
    assert len(store.curves()) == 75 * 50


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path):
    path, acknowledged = tmp_path / "a.db", set()
    for turn in range(5):
        writer = run_python(WRITER, str(path), f"t{turn}", "100000")
        assert writer.stdout is not None
        acknowledged.add(int(writer.stdout.readline()))
        time.sleep(0.03 * turn)  # somewhere else each time
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate(timeout=60)
        acknowledged |= {int(line) for line in rest.split("\n")[:-1]}
        store = Store(path)
        store.verify()
        there = {run["id"] for run in store.run_entries()}
        assert acknowledged <= there
        assert there == set(range(1, len(there) + 1))
        assert len(there) - len(acknowledged) <= turn + 1  # at most the one it died over, each time
        assert len(store.curves()) == 50 * len(there)  # a run and its curve are one


def test_a_clock_set_back_changes_no_order(tmp_path, monkeypatch):
    store = filled(tmp_path / "a.db")
    monkeypatch.setattr(store_module, "_now", lambda: "1999-01-01T00:00:00.000000+00:00")
    assert store.add_predictions([promise(low=2.0)]) == (4,)
    assert store.clock_jumps() == (4,)
    assert [p["id"] for p in store.predictions()] == [2, 4]
    store.verify()

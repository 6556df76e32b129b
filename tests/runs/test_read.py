"""Every way into a table gives the same table."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloss.runs import Runs, from_rows, read

ROWS = [
    {"run": "a", "params": 1e8, "tokens": 2e9, "loss": 3.4, "dataset": "c4"},
    {"run": "b", "params": 2e8, "tokens": 2e9, "loss": math.nan, "dataset": "c4"},
    {"run": "c", "params": 7e10, "tokens": 1.4e12, "loss": 1.94, "dataset": "pile"},
]
CSV = "run,params,tokens,loss,dataset\na,1e8,2000000000,3.4,c4\nb,200M,2B,,c4\nc,70B,1.4T,1.94,pile\n"


def same(a: Runs, b: Runs) -> None:
    assert list(a.columns) == list(b.columns)
    assert a.rows.tolist() == b.rows.tolist()
    for name in a.columns:
        np.testing.assert_array_equal(a[name], b[name])
    assert a.units == b.units


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("runs.csv", CSV.encode()),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("windows.csv", CSV.replace("\n", "\r\n").encode()),
        ("old-mac.csv", CSV.replace("\n", "\r").encode()),
        ("semicolon.csv", CSV.replace(",", ";").encode()),
        ("excel.csv", ("sep=;\n" + CSV.replace(",", ";")).encode()),
        ("pipe.txt", CSV.replace(",", "|").encode()),
        ("tabs.tsv", CSV.replace(",", "\t").encode()),
        ("tabs.csv", CSV.replace(",", "\t").encode()),
        ("spaced.csv", CSV.replace(",", ", ").encode()),
        ("blank-lines.csv", CSV.replace("\n", "\n\n").encode() + b",,,,\n"),
        ("trailing-comma.csv", CSV.replace("\n", ",\n").encode()),
        ("quoted.csv", CSV.replace("c4", '"c4"').replace("70B", '"70B"').encode()),
        ("utf16.csv", CSV.encode("utf-16")),
        ("runs.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("runs.json", json.dumps(ROWS).encode()),
        ("wrapped.json", json.dumps({"runs": ROWS}).encode()),
        ("columns.json", json.dumps({k: [r[k] for r in ROWS] for k in ROWS[0]}).encode()),
        ("runs.jsonl", "\n".join(json.dumps(r) for r in ROWS).encode()),
        ("lines.json", "\n".join(json.dumps(r) for r in ROWS).encode()),
        ("runs.ndjson.gz", gzip.compress("\n".join(json.dumps(r) for r in ROWS).encode(), mtime=0)),
        ("no-suffix", CSV.encode()),
        ("no-suffix-lines", "\n".join(json.dumps(r) for r in ROWS).encode()),
    ],
)
def test_files(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    same(read(tmp_path / name), from_rows(ROWS))
    same(read(str(tmp_path / name)), from_rows(ROWS))


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    nulls = [row | {"loss": None if row["run"] == "b" else row["loss"]} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(nulls), tmp_path / "runs.parquet")
    same(read(tmp_path / "runs.parquet"), from_rows(ROWS))
    nested = pa.Table.from_pylist([{"summary": {"loss": 3.4}, "n": 2**62, "tag": None}])
    pq.write_table(nested, tmp_path / "nested.pq")
    runs = read(tmp_path / "nested.pq")
    assert runs["loss"].tolist() == [3.4]
    assert runs["n"].tolist() == [2.0**62]


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'Parquet needs pyarrow: pip install "isoloss\[parquet\]"'):
        read(tmp_path / "runs.parquet")


def test_data_frames() -> None:
    frame = pd.DataFrame(ROWS)
    same(read(frame), from_rows(ROWS))
    same(read(frame.astype({"params": "Int64", "dataset": "category"})), from_rows(ROWS))
    same(read(frame.set_index("run").reset_index()), from_rows(ROWS))
    same(read({name: frame[name] for name in frame}), from_rows(ROWS))
    same(read(read(frame)), from_rows(ROWS))
    frame.loc[0, "loss"] = 9.0
    assert read(frame)["loss"][0] == 9.0
    with pytest.raises(ValueError, match="'loss' stands twice"):
        read(pd.concat([frame, frame[["loss"]]], axis=1))
    with pytest.raises(ValueError, match=r"column 'loss', row 1: .*complex"):
        read(frame.assign(loss=1j))
    with pytest.raises(ValueError, match=r"column 'loss', row 1: .*True"):
        read(frame.assign(loss=True))


def test_a_frame_is_copied() -> None:
    frame = pd.DataFrame({"params": [1e8, 2e8], "loss": [3.4, 3.2]})
    runs = read(frame)
    frame.loc[0, "loss"] = 0.0
    assert runs["loss"].tolist() == [3.4, 3.2]
    out = runs.to_frame()
    out.loc[1, "loss"] = 0.0
    assert runs["loss"].tolist() == [3.4, 3.2]


def test_other_sources_are_refused() -> None:
    for source in (3, b"params\n1\n", None, np.ones(3)):
        with pytest.raises(TypeError, match="needed a path, a pandas data frame"):
            read(source)
    with pytest.raises(ValueError, match="holds no rows"):
        read([])
    with pytest.raises(ValueError, match="holds no columns"):
        read({})


def test_columns_by_option_or_mapping() -> None:
    rows = [{"N": 1e8, "D": 2e9, "val_loss": 3.4, "loss": 3.1}]
    runs = read(rows, columns="params=N, tokens=D, loss=val_loss")
    assert list(runs.columns) == ["params", "tokens", "loss", "loss_in_source"]
    assert runs["loss"].tolist() == [3.4]
    assert runs["loss_in_source"].tolist() == [3.1]
    assert dict(runs.names) == {"params": "N", "tokens": "D", "loss": "val_loss"}
    same(runs, read(rows, columns={"params": "N", "tokens": "D", "loss": "val_loss"}))
    same(runs, read(read(rows), columns="params=N,tokens=D,loss=val_loss"))
    swapped = read(rows, columns="loss=val_loss,loss_train=loss")
    assert swapped["loss_train"].tolist() == [3.1]


def test_text_stays_text_and_numbers_are_numbers() -> None:
    runs = read(
        {
            "run": [1, 2],
            "experiment": ["1_0", "1_1"],
            "model": ["7B", "13B"],
            "experts": ["8", ""],
            "ok": [True, False],
        }
    )
    assert runs["run"].tolist() == ["1", "2"]
    assert runs["experiment"].tolist() == ["1_0", "1_1"]
    assert runs["model"].tolist() == ["7B", "13B"]
    assert runs["ok"].tolist() == [1.0, 0.0]
    np.testing.assert_array_equal(runs["experts"], [8.0, np.nan])
    assert read({"model": ["7B"]}, columns="params=model")["params"].tolist() == [7e9]
    with pytest.raises(ValueError, match=r"column 'experiment', row 1: needed a number, got 'x'"):
        read({"experiment": ["x"]}).numeric("experiment")


def test_units() -> None:
    rows = [{"params": 7.0, "flops": 2.0, "loss": 8.0, "loss_sd": 0.8, "loss_c4": 1.0}]
    runs = read(rows, units="params=billions,flops=PF-days,loss=perplexity,loss_c4=bits/byte")
    assert runs["params"][0] == 7e9
    assert runs["flops"][0] == 2 * 8.64e19
    assert runs["loss"][0] == pytest.approx(math.log(8))
    assert runs["loss_sd"][0] == pytest.approx(0.8 / 8, rel=1e-5)  # d log(x) = dx / x
    assert runs["loss_c4"][0] == pytest.approx(math.log(2))
    assert dict(runs.units) == {
        "params": "count",
        "flops": "FLOP",
        "loss": "nats/token",
        "loss_sd": "nats/token",
        "loss_c4": "nats/byte",
    }
    with pytest.raises(ValueError, match="already and is in nats/token now"):
        read(runs, units="loss=perplexity")
    with pytest.raises(ValueError, match="row 1: needed a perplexity above 0, got 0"):
        read([{"loss": 0.0}], units="loss=perplexity")
    by_source_name = read([{"N": 7.0}], columns="params=N", units="N=billions")
    assert by_source_name["params"][0] == 7e9


def test_wandb_table_of_the_web_page(tmp_path: Path) -> None:
    (tmp_path / "wandb.csv").write_text(
        '"Name","State","config.n_params","eval/loss","train/loss"\n"run-a","finished","1e8","3.4","3.3"\n"run-b","crashed","2e8","",""\n'
    )
    runs = read(tmp_path / "wandb.csv", columns="params=n_params,loss=eval/loss")
    assert runs["run"].tolist() == ["run-a", "run-b"]
    assert runs["state"].tolist() == ["finished", "crashed"]
    assert runs["params"].tolist() == [1e8, 2e8]
    with pytest.raises(ValueError, match="could be eval/loss, train/loss"):
        read(tmp_path / "wandb.csv", columns="loss=loss")


def test_wandb_export_of_the_api(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "summary": [
                str({"val_loss": 3.4, "_step": 10}),
                str({"val_loss": math.nan, "note": "it's nan"}),
                "{}",
            ],
            "config": [
                str({"lr": 1e-3, "model": {"n": 10**8}}),
                str({"lr": {"desc": None, "value": 2e-3}}),
                "{}",
            ],
            "name": ["a", "b", "c"],
        }
    )
    frame.to_csv(tmp_path / "project.csv")
    runs = read(tmp_path / "project.csv", columns="loss=val_loss,params=n")
    np.testing.assert_array_equal(runs["loss"], [3.4, np.nan, np.nan])
    np.testing.assert_array_equal(runs["lr"], [1e-3, 2e-3, np.nan])
    assert runs["run"].tolist() == ["a", "b", "c"]
    assert runs["params"][0] == 1e8


def test_mlflow_export() -> None:
    frame = pd.DataFrame(
        {
            "run_id": ["x"],
            "status": ["FINISHED"],
            "params.n_params": ["100000000"],
            "metrics.loss": [3.4],
            "params.lr": ["0.001"],
        }
    )
    runs = read(frame, columns="params=n_params")
    assert (runs["run"][0], runs["state"][0]) == ("x", "FINISHED")
    assert (runs["params"][0], runs["loss"][0], runs["lr"][0]) == (1e8, 3.4, 1e-3)


def test_where_takes_both_names() -> None:
    runs = read(
        [{"N": 1e8, "data.set": "c4"}, {"N": 1e9, "data.set": "c4"}, {"N": 1e10, "data.set": "x"}],
        columns="params=N",
        where="N > 2e8 and `data.set` == 'c4'",
    )
    assert runs.rows.tolist() == [2]
    assert runs.removed == ()
    assert runs.source == "memory where N > 2e8 and `data.set` == 'c4'"
    same(runs, read(read({"params": [1e8, 1e9, 1e10], "data.set": ["c4", "c4", "x"]}).where("params == 1e9")))


def test_where_sees_no_variables_of_ours() -> None:
    with pytest.raises(ValueError, match="where"):
        read([{"params": 1e8}], where="params > @sys")


def test_curves() -> None:
    runs = [{"run": "a", "N": 1e8, "loss": 3.4}, {"run": "b", "N": 2e8, "loss": 3.2}]
    curves = [{"run": "a", "step": s, "loss": 8 / s} for s in (1, 2)]
    table = read(runs, columns="params=N", units="loss=bits/token", curves=curves)
    assert table.curves is not None
    assert table.curves["loss"][0] == pytest.approx(8 * math.log(2))
    assert "2 rows of curves" in repr(table)


def test_counts_beyond_64_bits() -> None:
    assert read([{"flops": 10**24}])["flops"][0] == 1e24
    assert read({"flops": np.array([2**63], dtype=np.uint64)})["flops"][0] == 2.0**63


def test_light_import() -> None:
    row = {"params": 1, "tokens": 1, "loss": 1}
    code = f"import sys, isoloss.runs as r; r.check(r.from_rows([{row}])); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    top = {name.split(".")[0] for name in loaded.stdout.split()}
    assert not top & {"pandas", "pyarrow", "scipy", "torch", "matplotlib", "rich", "typer"}

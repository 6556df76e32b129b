"""Runs: immutable, honest about what it derived and what it removed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.runs import Removed, Runs, from_rows, read

TABLE = from_rows(
    [
        {"run": "a", "params": 1e8, "tokens": 2e9, "loss": 3.4, "data": "c4"},
        {"run": "b", "params": 2e8, "tokens": 2e9, "loss": 3.2, "data": "pile"},
        {"run": "c", "params": 4e8, "tokens": 8e9, "loss": 2.9, "data": "c4"},
    ]
)


def test_arrays_and_mappings_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TABLE["loss"][0] = 0.0
    with pytest.raises(TypeError):
        TABLE.columns["loss"] = np.zeros(3)  # type: ignore[index]
    source = np.array([1.0, 2.0])
    runs = Runs({"loss": source}, np.array([1, 2]), {}, {})
    source[0] = 9.0
    assert runs["loss"][0] == 1.0


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"column 'loss': needed 2 values, got shape \(3,\)"):
        Runs({"loss": np.zeros(3)}, np.array([1, 2]), {}, {})
    with pytest.raises(ValueError, match="row numbers repeat"):
        Runs({"loss": np.zeros(2)}, np.array([1, 1]), {}, {})


def test_a_missing_column_names_the_option() -> None:
    runs = read([{"N": 1.0, "D": 2.0, "val_loss": 3.0}])
    with pytest.raises(
        ValueError,
        match=r"needed column 'params', got N, D, val_loss\. Do: --columns params=N,tokens=D,loss=val_loss",
    ):
        runs["params"]
    with pytest.raises(ValueError, match=r"runs\.derive\(\) computes flops"):
        TABLE["flops"]
    with pytest.raises(ValueError, match="--columns width=COLUMN"):
        TABLE["width"]
    assert "loss" in TABLE
    assert "flops" not in TABLE


def test_subsets() -> None:
    assert TABLE.take([2, 0]).rows.tolist() == [3, 1]
    assert TABLE.take(TABLE["loss"] < 3.3).rows.tolist() == [2, 3]
    assert len(TABLE.take([])) == 0
    assert list(TABLE.by("data")) == ["c4", "pile"]
    assert TABLE.by("data")["c4"].rows.tolist() == [1, 3]
    assert TABLE.by("data")["c4"].source == "memory, data = c4"
    assert list(TABLE.by("params")) == ["100000000", "200000000", "400000000"]
    assert list(from_rows([{"x": 1.0}, {"x": None}]).by("x")) == ["1", "missing"]
    for wrong in ([7], [True, False], [0, 0]):
        with pytest.raises(ValueError, match=r"needed|repeat"):
            TABLE.take(wrong)


def test_nothing_is_lost() -> None:
    runs = TABLE.without([2], "diverged", "looked odd").without([1], "by-hand", "wrong data")
    assert runs.rows.tolist() == [3]
    assert runs.removed == (Removed(2, "diverged", "looked odd"), Removed(1, "by-hand", "wrong data"))
    with pytest.raises(ValueError, match="no row 2 to remove"):
        runs.without([2], "diverged", "again")
    assert "2 removed" in repr(runs)


def test_with_column() -> None:
    runs = TABLE.with_column("gpu_hours", [1.0, 2.0, 4.0], unit="h").with_column("half", 0.5, how="a guess")
    assert runs["half"].tolist() == [0.5] * 3
    assert (runs.units["gpu_hours"], runs.derived["half"]) == ("h", "a guess")
    assert runs.with_column("half", 0.7, how="a better guess")["half"][0] == 0.7
    assert TABLE.with_column("tag", ["x", "y", "z"])["tag"].tolist() == ["x", "y", "z"]
    for name in ("loss", "gpu_hours"):
        with pytest.raises(ValueError, match="measured and is never overwritten"):
            runs.with_column(name, 1.0, how="no")
    with pytest.raises(ValueError, match="needed 3 numbers or texts"):
        TABLE.with_column("x", [1.0])


def test_derive_fills_only_what_is_missing() -> None:
    runs = TABLE.derive()
    assert runs["flops"].tolist() == (6 * TABLE["params"] * TABLE["tokens"]).tolist()
    assert runs.units["flops"] == "FLOP"
    assert runs["tokens_per_param"].tolist() == [20.0, 10.0, 20.0]
    partly = from_rows(
        [
            {"params": 1e8, "tokens": 2e9, "flops": 9e17},
            {"params": 1e8, "tokens": 2e9, "flops": None},
            {"params": 1e8, "tokens": None, "flops": 1.2e18},
            {"params": None, "tokens": 2e9, "flops": 1.2e18},
        ]
    ).derive()
    assert partly["flops"].tolist() == [9e17, 1.2e18, 1.2e18, 1.2e18]
    assert partly["tokens"][2] == 2e9
    assert partly["params"][3] == 1e8
    assert partly.derived["flops"] == "measured; 6 * params * tokens in rows 2"
    with pytest.raises(ValueError, match="never overwritten"):
        partly.with_column("flops", 0.0)


def test_derive_uses_active_parameters() -> None:
    moe = from_rows([{"params": 8e9, "params_active": 1e9, "tokens": 1e10}]).derive()
    assert moe["flops"][0] == 6e19
    assert moe.derived["flops"] == "6 * params_active * tokens"
    assert "params" not in from_rows([{"params_active": 1e9, "flops": 6e19}]).derive()


def test_derive_leaves_what_it_cannot_compute() -> None:
    runs = from_rows([{"params": -1e8, "tokens": 2e9}, {"params": 1e8, "tokens": 2e9}]).derive()
    np.testing.assert_array_equal(runs["flops"], [np.nan, 1.2e18])
    assert "flops" not in from_rows([{"tokens": 2e9}]).derive()


def test_final_checkpoints() -> None:
    rows = [
        {"run": run, "step": step, "loss": 5 / step, "val": val}
        for run in ("a", "b") for step in (1, 2, 3 if run == "a" else 2.5) for val in ("x", "y")
    ]  # fmt: skip
    last = from_rows(rows).final_checkpoints()
    assert last.rows.tolist() == [5, 6, 11, 12]
    assert [r.row for r in last.removed] == [1, 2, 3, 4, 7, 8, 9, 10]
    assert last.removed[0] == Removed(1, "not-final-checkpoint", "step 1 of a run that goes on to 3")
    assert from_rows(rows[::-1]).final_checkpoints()["loss"].tolist() == last["loss"].tolist()[::-1]
    with pytest.raises(ValueError, match="row 2, column 'step': missing"):
        from_rows([{"run": "a", "step": 1}, {"run": "a", "step": None}]).final_checkpoints()
    with pytest.raises(ValueError, match="step, fraction_of_run or tokens"):
        from_rows([{"run": "a", "loss": 1}]).final_checkpoints()
    unnamed = from_rows([{"run": "", "step": 1}, {"run": "", "step": 2}])
    assert len(unnamed.final_checkpoints()) == 2


def test_best_of_sweep_chooses_a_setting_and_keeps_its_seeds() -> None:
    rows = [
        {"params": 1e8, "tokens": 1e9, "lr": lr, "seed": seed, "loss": loss}
        for lr, losses in ((1e-3, (3.0, 3.4)), (2e-3, (3.1, 3.15)), (4e-3, (2.9, np.inf)))
        for seed, loss in enumerate(losses)
    ] + [{"params": 2e8, "tokens": 1e9, "lr": 1e-3, "seed": 0, "loss": 2.8}]
    best = from_rows(rows).best_of_sweep()
    # the lowest single loss belongs to a rate that diverged, the next to a rate that is worse on average
    assert best.rows.tolist() == [3, 4, 7]
    assert {r.code for r in best.removed} == {"not-best-of-sweep"}
    assert "lr 0.001: mean loss 3.2, the best setting at this point has 3.125" in best.removed[0].why
    assert len(from_rows(rows).best_of_sweep(at=("params",), over="lr").removed) == 4
    hopeless = from_rows([{"params": 1, "tokens": 1, "lr": lr, "loss": np.inf} for lr in (1, 2)])
    assert hopeless.best_of_sweep().removed == ()


@given(st.permutations(range(3)), st.permutations(["loss", "params", "data"]))
def test_fingerprint_ignores_order(order: list[int], names: list[str]) -> None:
    assert TABLE.take(order).fingerprint(names) == TABLE.fingerprint(["params", "data", "loss"])


def test_fingerprint_sees_values_units_names_and_repeats() -> None:
    prints = [
        TABLE.fingerprint(["loss"]),
        TABLE.fingerprint(["params"]),
        TABLE.take([0, 1]).fingerprint(["loss"]),
        read({"loss": [3.4, 3.2, 2.9000001]}).fingerprint(["loss"]),
        read({"loss": [3.4, 3.2, 2.9]}, units="loss=nats/byte").fingerprint(["loss"]),
        read({"loss": [3.4, 3.2, 2.9, 2.9]}).fingerprint(["loss"]),
        read({"x": ["ab", "c"]}).fingerprint(["x"]),
        read({"x": ["a", "bc"]}).fingerprint(["x"]),
        TABLE.fingerprint([]),
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 64 for p in prints)
    assert read({"loss": [2.9, 3.2, 3.4]}).fingerprint(["loss"]) == prints[0]
    assert read({"x": [0.0, np.nan]}).fingerprint(["x"]) == read({"x": [None, -0.0]}).fingerprint(["x"])


def test_csv_round_trip(tmp_path: Path) -> None:
    runs = from_rows(
        [
            {"run": 'a,"b"', "params": 123456789.0, "loss": 0.1 + 0.2, "x": None},
            {"run": "é", "params": 7e30, "loss": np.inf, "x": 1},
        ]
    )
    runs.to_csv(tmp_path / "out.csv")
    again = read(tmp_path / "out.csv")
    for name in runs.columns:
        np.testing.assert_array_equal(again[name], runs[name])
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "run,params,loss,x"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
    with pytest.raises(ValueError, match="cannot write"):
        runs.to_csv(tmp_path / "nowhere" / "out.csv")


def test_pickle_and_notebook() -> None:
    again = pickle.loads(pickle.dumps(TABLE.derive().without([1], "x", "y")))
    assert again.fingerprint(["loss", "data"]) == TABLE.take([1, 2]).fingerprint(["loss", "data"])
    assert again.removed == (Removed(1, "x", "y"),)
    html = from_rows([{"run": "<b>", "params": 7e9, "loss": None}])._repr_html_()
    assert "&lt;b&gt;" in html
    assert "7B" in html
    assert "<b>" not in html

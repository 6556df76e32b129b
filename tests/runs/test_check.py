"""check: the same findings whatever the order of rows or the unit; few false alarms on real tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss.runs import CODES, check, drop, from_rows, read
from isoloss.runs.columns import CANONICAL

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "laws"


def law(n: float, d: float) -> float:
    return 1.8172 + 477.8 / n**0.3473 + 2143 / d**0.3672


def grid() -> list[dict[str, Any]]:
    return [
        {"run": f"r{i}", "params": n, "tokens": d, "loss": law(n, d) * (1 + 0.002 * math.sin(7 * i))}
        for i, (n, d) in enumerate(
            (10.0 ** (7 + a / 2), 10.0 ** (9 + b / 2)) for a in range(5) for b in range(5)
        )
    ]


MUTATIONS: dict[str, tuple[str, Any]] = {
    "nonfinite-loss": ("loss", math.nan),
    "nonpositive-loss": ("loss", -1.0),
    "nonpositive-count": ("tokens", 0.0),
    "missing-value": ("params", math.inf),
    "integer-overflow": ("params", -1294967296),
    "diverged": ("loss", 9.5),
    "mixed-units": ("params", 40.0),
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(MUTATIONS)), st.integers(0, 24)),
        max_size=4,
        unique_by=(lambda m: m[0], lambda m: m[1]),
    ),
    st.permutations(range(25)),
)
def test_every_mutation_is_found_in_any_order(mutations: list[tuple[str, int]], order: list[int]) -> None:
    rows = grid()
    for code, i in mutations:
        column, value = MUTATIONS[code]
        rows[i] = rows[i] | {column: value}
    found = {f.code: f for f in check(from_rows(rows))}
    for code, i in mutations:
        assert code in found
        assert i + 1 in found[code].rows
    shuffled = check(from_rows([rows[i] for i in order]))
    moved = [tuple(sorted(order[row - 1] + 1 for row in f.rows)) for f in shuffled]
    assert [(f.code, rows, f.text) for f, rows in zip(shuffled, moved, strict=True)] == [
        (f.code, f.rows, f.text) for f in check(from_rows(rows))
    ]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(["millions", "B", "thousands", "1e3"]),
    st.integers(0, 24),
    st.sampled_from(sorted(MUTATIONS)),
)
def test_units_do_not_change_findings(unit: str, i: int, code: str) -> None:
    rows = grid()
    rows[i] = rows[i] | {MUTATIONS[code][0]: MUTATIONS[code][1]}
    factor = {"millions": 1e6, "B": 1e9, "thousands": 1e3, "1e3": 1e3}[unit]
    scaled = [row | {"params": row["params"] / factor, "loss": row["loss"] / math.log(2)} for row in rows]
    a = check(from_rows(rows))
    b = check(read(scaled, units=f"params={unit},loss=bits/token"))
    assert [(f.code, f.rows) for f in a] == [(f.code, f.rows) for f in b]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 24), st.sampled_from(["params", "tokens", "loss"]), st.text(min_size=1, max_size=8))
def test_any_text_in_a_cell_is_refused_or_read_as_a_number(i: int, column: str, text: str) -> None:
    rows = grid()
    rows[i] = rows[i] | {column: text}
    try:
        runs = read(rows)
    except ValueError as error:
        message = str(error)
    else:
        assert runs[column].dtype == np.float64
        message = ""
    assert not message or f"column {column!r}, row {i + 1}: needed a number, got" in message
    assert message or text.strip() == "" or not text.isalpha() or not np.isfinite(runs[column][i])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 24), min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_diverged_rows_are_found_and_no_others(which: list[int], random: Any) -> None:
    rows = grid()
    # above 8 %: the design's corners are single points, and the trend's own misfit there is near 1 %
    for i in which:
        rows[i] = rows[i] | {"loss": rows[i]["loss"] * random.uniform(1.15, 4)}
    found = [f for f in check(from_rows(rows)) if f.code == "diverged"]
    flagged = set(found[0].rows) if found else set()
    assert flagged <= {i + 1 for i in which}
    if len(which) <= 2:
        assert flagged == {i + 1 for i in which}


def test_nothing_is_changed_and_drop_accounts_for_every_row() -> None:
    rows = grid()
    rows[3]["loss"], rows[7]["loss"] = math.nan, 9.0
    runs = from_rows(rows)
    before = runs.fingerprint(["params", "tokens", "loss"])
    clean = drop(runs, ["nonfinite-loss", "diverged"])
    assert runs.fingerprint(["params", "tokens", "loss"]) == before
    assert sorted([*clean.rows.tolist(), *(r.row for r in clean.removed)]) == runs.rows.tolist()
    assert [(r.row, r.code) for r in clean.removed] == [(4, "nonfinite-loss"), (8, "diverged")]
    assert check(clean) == []
    with pytest.raises(ValueError, match="unknown code 'nan'"):
        drop(runs, "nan")
    with pytest.raises(ValueError, match="about the whole table"):
        drop(from_rows(rows[:5]), "few-values")
    assert drop(runs, "unfinished-run").removed == ()


def test_axes_and_target_are_chosen() -> None:
    rows = [{"tokens": 10.0 ** (8 + i / 4), "error": 0.9 / 2**i, "loss": math.nan} for i in range(8)]
    assert check(from_rows(rows), axes=["tokens"], target="error") == []
    with pytest.raises(ValueError, match="needed column 'params'"):
        check(from_rows(rows))
    with pytest.raises(ValueError, match="column 'tokens', row 1: needed a number"):
        check(
            from_rows([{"tokens_kind": "x"}]).with_column("tokens", ["many"]),
            axes=["tokens"],
            target="tokens",
        )


def test_unused_columns_give_warnings_at_most() -> None:
    rows = [row | {"flops_6nd": -(10**18), "tokens_unique": 0, "seq_len": None} for row in grid()]
    findings = check(from_rows(rows))
    assert [(f.code, f.column, f.level) for f in findings] == [
        ("nonpositive-count", "tokens_unique", "warning"),
        ("integer-overflow", "flops_6nd", "warning"),
    ]


def test_a_stated_unit_silences_the_guess() -> None:
    rows = [row | {"bits_per_token": row["loss"] / math.log(2)} for row in grid()]
    rows = [{k: v for k, v in row.items() if k != "loss"} for row in rows]
    assert [f.code for f in check(read(rows, columns="loss=bits_per_token"))] == ["loss-unit"]
    assert check(read(rows, columns="loss=bits_per_token", units="loss=bits/token")) == []


def test_docs_list_every_code() -> None:
    page = (ROOT / "docs" / "runs.md").read_text()
    table = page.split("| code | what was found |\n| --- | --- |\n")[1].split("\n\n")[0]
    assert [line.split("`")[1] for line in table.splitlines()] == list(CODES)
    for code, meaning in CODES.items():
        assert f"| `{code}` | {meaning} |" in page


def test_docs_list_every_column() -> None:
    page = (ROOT / "docs" / "runs.md").read_text()
    assert [name for name in CANONICAL if f"`{name}`" not in page] == []


def real(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip("the shared scaling-law tables are not here")
    return DATA / path


# table, --columns, --units, axes, target, findings (code -> rows; None: any rows)
REAL: list[tuple[str, str, str, tuple[str, ...], str, dict[str, tuple[int, ...] | None]]] = [
    ("chinchilla/points.csv", "loss=loss_nats", "", ("params", "tokens"), "loss", {"diverged": (1, 2, 3, 4, 5, 6, 11)}),
    ("chinchilla/isoflops_scalefit_extraction.csv", "loss=loss_nats,flops=flops_budget", "", ("params", "tokens"), "loss", {"diverged": (1,)}),
    ("gadre_overtraining/runs.csv", "loss=loss_nats_c4", "", ("params", "tokens"), "loss", {"diverged": (43,), "replicates": None}),
    ("gadre_overtraining/downstream.csv", "", "", ("random_baseline",), "accuracy", {"nonpositive-count": None, "replicates": None, "duplicate-rows": None, "nonpositive-loss": None, "few-values": ()}),
    ("porian_discrepancies/isoflop_points.csv", "loss=loss_nats", "", ("params", "tokens"), "loss", {"replicates": None}),
    ("porian_discrepancies/optima.csv", "params=params_opt,tokens=tokens_opt,loss=loss_nats_opt", "", ("params", "tokens"), "loss", {"missing-value": None, "nonfinite-loss": None, "replicates": None}),
    ("misfitting/final.csv", "loss=loss_nats", "", ("params", "tokens"), "loss", {"lr-not-tuned": None, "duplicate-rows": None, "replicates": None}),
    ("misfitting/checkpoints.csv", "loss=loss_nats", "", ("params", "tokens"), "loss", {"mixed-checkpoints": None, "lr-not-tuned": None, "duplicate-rows": None, "replicates": None, "diverged": None}),
    ("misfitting/moe_small.csv", "loss=c4_ppl,params=model", "", ("params", "tokens"), "loss", {"loss-unit": (), "unfinished-run": None, "lr-not-tuned": None, "diverged": None, "replicates": None}),
    ("misfitting/moe_small.csv", "loss=c4_ppl,params=model", "loss=perplexity", ("params", "tokens"), "loss", {"unfinished-run": None, "lr-not-tuned": None, "diverged": (118, 123, 136), "replicates": None}),
    ("routed_moe/curves.csv", "loss=loss_nats_validation,params=params_active", "", ("params", "experts"), "loss", {"nonfinite-loss": None, "diverged": None, "mixed-checkpoints": None, "replicates": None}),
    ("isoflops_llama3/isoflops.csv", "", "", ("params", "tokens"), "loss", {"replicates": None}),
    ("xlstm_isoflops/runs.csv", "loss=val_loss_nats,lr=lr_peak", "", ("params", "tokens"), "loss", {"diverged": (290, 319, 320, 321), "unfinished-run": (290,), "lr-not-tuned": None, "replicates": None}),
    ("gemstones/validation_losses.csv", "loss=loss_nats", "", ("params", "tokens"), "loss", {"integer-overflow": None, "mixed-checkpoints": None, "replicates": None}),
    ("data_constrained/runs.csv", "loss=loss_nats", "", ("params", "tokens"), "loss", {"diverged": None, "replicates": None}),
    ("vocabulary/runs.csv", "loss=loss_unigram_normalized_nats,params=params_nonvocab,tokens=characters", "", ("params", "tokens"), "loss", {"nonpositive-loss": tuple(range(1, 1201)), "flops-not-6nd": None, "few-rows": ()}),
    ("critical_batch_size/steps_to_target.csv", "", "", ("params", "batch_tokens"), "steps_to_target", {}),
    ("quantization_tables/ppl_vs_bits.csv", "loss=wikitext2_ppl", "loss=perplexity", ("params", "bits_weight"), "loss", {"missing-value": None, "replicates": None}),
    ("observational/base_llm_benchmark.csv", "params=params_billion,tokens=tokens_trillion,loss=MMLU", "", ("params", "tokens"), "loss", {"missing-value": None, "loss-unit": (), "count-unit": (), "replicates": None}),
    ("skills_leaderboard/df_full_v1.csv", "params=params_billion,tokens=tokens_trillion,flops=flops_1e21,loss=mmlu", "params=billions,tokens=trillions,flops=1e21", ("params", "tokens"), "loss", {"loss-unit": (), "replicates": None}),
    ("lcdb/learning_curves.csv.gz", "tokens=size_train", "", ("tokens",), "error_test", {"nonpositive-loss": None, "replicates": None}),
    ("learning_curves_nmt/curves.csv", "loss=loss_nats,tokens=examples_seen", "", ("tokens",), "loss", {"replicates": None}),
    ("lr_schedules/curves_25m.csv", "loss=loss_nats", "", ("step",), "loss", {"mixed-checkpoints": None, "replicates": None}),
    ("data_mixing/final_losses.csv", "loss=loss_nats,params=model_size", "", ("params", "step"), "loss", {"replicates": None, "duplicate-rows": None}),
    ("../hpo/steplaw/dense.csv", "", "", ("params", "tokens"), "loss", {"lr-not-tuned": None, "diverged": None, "narrow-range": (), "duplicate-rows": None, "replicates": None}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "columns", "units", "axes", "target", "expected"),
    REAL,
    ids=[f"{r[0]}-{i}" for i, r in enumerate(REAL)],
)
def test_real_tables(
    path: str,
    columns: str,
    units: str,
    axes: tuple[str, ...],
    target: str,
    expected: dict[str, tuple[int, ...] | None],
) -> None:
    runs = read(real(path), columns=columns, units=units)
    findings = check(runs, axes=axes, target=target)
    assert {f.code for f in findings} == set(expected)
    for finding in findings:
        rows = expected[finding.code]
        assert rows is None or finding.rows == rows


def test_every_real_table_is_read() -> None:
    paths = [p for p in DATA.rglob("*.csv*") if p.stat().st_size < 3e5]
    if not paths:
        pytest.skip("the shared scaling-law tables are not here")
    for path in paths:
        runs = read(path)
        assert len(runs) > 0
        assert runs.source == str(path)
    assert len(paths) > 20


def test_chinchilla_outliers_are_the_published_ones() -> None:
    runs = read(real("chinchilla/points.csv"), columns="loss=loss_nats")
    published = set(runs.rows[runs["outlier_excluded"] == 1].tolist())
    flagged = set(next(f.rows for f in check(runs) if f.code == "diverged"))
    assert published <= flagged
    assert len(flagged) - len(published) <= 2


def test_porian_settings_alone_have_no_false_alarms() -> None:
    runs = read(real("porian_discrepancies/isoflop_points.csv"), columns="loss=loss_nats")
    settings_of = [runs[c] for c in ("dataset", "hparams", "warmup", "decay", "param_count", "val")]
    runs = runs.with_column(
        "setting", ["-".join(x) for x in zip(*(c.tolist() for c in settings_of), strict=True)]
    )
    groups = runs.by("setting")
    assert len(groups) == 15
    alarms = sum(len(f.rows) for g in groups.values() for f in check(g) if f.code == "diverged")
    assert alarms <= 0.01 * len(runs)

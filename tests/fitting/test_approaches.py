"""Approaches 1 and 2: planted exponents, published tables, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss
from isoloss.fitting.approaches import line

THETA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
A_TRUE = 0.3658 / (0.3478 + 0.3658)


def loss_at(n, d):
    return THETA["E"] + THETA["A"] * n ** -THETA["alpha"] + THETA["B"] * d ** -THETA["beta"]


def planted(noise=0.0, per_budget=9, seed=0):
    rng = np.random.default_rng(seed)
    c = np.repeat(np.geomspace(1e18, 1e22, 7), per_budget)
    centre = 0.1 * c**0.5
    n = centre * np.tile(np.geomspace(0.15, 7, per_budget), 7)
    loss = loss_at(n, c / (6 * n)) * np.exp(rng.normal(0, noise, len(n)))
    return {"params": n, "tokens": c / (6 * n), "flops": c, "loss": loss}


def test_isoflop_finds_the_planted_exponent():
    found = isoloss.isoflop(planted(), draws=100)
    assert found.a.value == pytest.approx(A_TRUE, abs=0.01)
    assert found.a.value + found.b.value == pytest.approx(1, abs=1e-9)
    assert len(found.optima) == 7
    params, tokens = found.at(1e21)
    assert 6 * params * tokens == pytest.approx(1e21, rel=1e-6)


def test_isoflop_interval_holds_the_truth_and_repeats():
    table = planted(noise=0.002)
    found = isoloss.isoflop(table, draws=300)
    assert found.a.low < A_TRUE < found.a.high
    assert found == isoloss.isoflop(table, draws=300)
    assert found.a != isoloss.isoflop(table, draws=300, seed=1).a


def test_isoflop_does_not_mind_order_or_units():
    table = planted(noise=0.002)
    order = np.random.default_rng(0).permutation(len(table["loss"]))
    again = isoloss.isoflop({name: values[order] for name, values in table.items()}, draws=0)
    found = isoloss.isoflop(table, draws=0)
    assert again.a.value == pytest.approx(found.a.value, abs=1e-10)
    bits = isoloss.isoflop({**table, "loss": table["loss"] / np.log(2)}, draws=0)
    assert bits.a.value == pytest.approx(found.a.value, abs=1e-10)


def test_budgets_given_leave_the_rest_out():
    found = isoloss.isoflop(planted(), budgets=[1e18, 1e20, 1e22], draws=0)
    assert [round(np.log10(entry.flops), 6) for entry in found.optima] == [18, 20, 22]
    stray = next(entry for entry in found.left_out if "budget" in entry.why)
    assert len(stray.rows) == 36


def test_what_has_no_optimum_is_left_out_with_a_reason():
    table = planted()
    table = {name: values.copy() for name, values in table.items()}
    first, second, third, fourth = (table["flops"] == c for c in np.unique(table["flops"])[:4])
    table["loss"][first] = 3 - 0.1 * np.log(table["params"][first] / 1e8) ** 2
    table["loss"][second] = 10 - 0.1 * np.log(table["params"][second])
    table["params"][third] = table["params"][third][0]
    table["loss"][np.flatnonzero(fourth)[:2]] = np.nan
    found = isoloss.isoflop(table, draws=20)
    whys = " | ".join(entry.why for entry in found.left_out)
    assert "opens downwards" in whys or "beyond the" in whys
    assert "1 sizes at this budget" in whys
    assert "missing, infinite" in whys
    assert len(found.optima) == 4
    assert all(entry.rows for entry in found.left_out)


def test_a_table_without_budgets_is_no_answer():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(16, 23, 3000)), np.exp(rng.uniform(20, 26, 3000))
    with pytest.raises(isoloss.NoAnswer, match="no one budget: give budgets="):
        isoloss.isoflop({"params": n, "tokens": d, "loss": loss_at(n, d)})


def test_envelope_of_curves_finds_the_planted_exponent():
    n, d = np.meshgrid(np.geomspace(1e7, 1e10, 40), np.geomspace(2e8, 2e11, 60))
    table = {
        "params": n.ravel(), "tokens": d.ravel(), "loss": loss_at(n, d).ravel(),
        "run": [f"r{size:.6g}" for size in n.ravel()],
    }  # fmt: skip
    found = isoloss.envelope(table, draws=50)
    assert found.a.value == pytest.approx(A_TRUE, abs=0.02)
    assert found.a.low < found.a.value < found.a.high
    curves = isoloss.read({"run": [f"r{size:.6g}" for size in n[0]], "params": n[0], "loss": np.ones(40)}, curves={
        "run": table["run"], "tokens": table["tokens"], "loss": table["loss"], "step": table["tokens"],
    })  # fmt: skip
    assert isoloss.envelope(curves, draws=0).a.value == pytest.approx(found.a.value, abs=1e-9)


def test_envelope_needs_points():
    with pytest.raises(isoloss.NoAnswer, match="the envelope has 1 points"):
        isoloss.envelope({"params": [1e8, 1e9], "tokens": [1e9, 1e10], "loss": [3.0, 3.5]})
    with pytest.raises(isoloss.NoAnswer, match="no row has"):
        isoloss.envelope({"params": [1e8, 1e9], "tokens": [1e9, 1e10], "loss": [np.nan, np.inf]})


@pytest.mark.parametrize(
    "options", [{"tolerance": 0}, {"coverage": 1}, {"draws": -1}, {"span": 1}, {"budgets": [-1]}]
)
def test_bad_settings(options):
    with pytest.raises(ValueError, match="isoflop needs"):
        isoloss.isoflop(planted(), **options)


# --- published tables --------------------------------------------------------------------------------------


def columns(rows, **names):
    return {name: np.array([float(row[column]) for row in rows]) for name, column in names.items()}


def test_hoffmann_isoflops(table):
    rows = table("laws/chinchilla/isoflops_scalefit_extraction.csv")
    runs = columns(rows, params="params", tokens="tokens", flops="flops_budget", loss="loss_nats")
    found = isoloss.isoflop(runs)
    assert found.a.value == pytest.approx(0.49, abs=0.03)  # 0.49 (0.462 to 0.534) in the paper
    assert found.a.low > 0.462
    assert found.a.high < 0.545


def test_hoffmann_envelope(table):
    rows = table("laws/chinchilla/points.csv")
    found = isoloss.envelope(columns(rows, params="params", tokens="tokens", flops="flops", loss="loss_nats"))
    assert found.a.value == pytest.approx(0.50, abs=0.02)
    assert found.a.low < 0.5 < found.a.high


KEY = ("dataset", "hparams", "warmup", "decay", "param_count", "val")


def by_key(rows):
    out = {}
    for row in rows:
        out.setdefault(tuple(row[name] for name in KEY), []).append(row)
    return out


def test_porian_lines(table):
    optima = by_key(table("laws/porian_discrepancies/optima.csv"))
    published = table("laws/porian_discrepancies/published_fits.csv")
    assert len(published) == 15
    for row in published:
        found = [r for r in optima[tuple(row[name] for name in KEY)] if r["params_opt"]]
        points = columns(found, flops="flops", params="params_opt")
        assert line(points["flops"], points["params"])[0] == pytest.approx(float(row["n_exponent"]), abs=1e-3)


def test_porian_isoflops(table):
    """Parabolas where the paper interpolates: the same exponents within a few hundredths."""
    points = by_key(table("laws/porian_discrepancies/isoflop_points.csv"))
    gaps = []
    for row in table("laws/porian_discrepancies/published_fits.csv"):
        runs = columns(
            points[tuple(row[name] for name in KEY)],
            params="params",
            tokens="tokens",
            flops="flops",
            loss="loss_nats",
        )
        gaps.append(isoloss.isoflop(runs, draws=0).a.value - float(row["n_exponent"]))
    assert np.max(np.abs(gaps)) < 0.035
    assert abs(np.mean(gaps)) < 0.01


def test_xlstm_isoflops(table):
    rows = [row for row in table("laws/xlstm_isoflops/runs.csv") if row["completed"] == "1"]
    for arch in ("llama", "mlstm"):
        runs = columns(
            [r for r in rows if r["arch"] == arch], params="params", tokens="tokens", loss="val_loss_nats"
        )
        found = isoloss.isoflop(runs, draws=100)
        assert 0.45 < found.a.value < 0.62
        assert len(found.optima) >= 4

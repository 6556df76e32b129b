"""``isoloss optimum``: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import isoloss
from isoloss.cli import run


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Four grids with a known optimum, one of them beyond its rates; some runs diverged."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    lines = ["N,tokens,lr,batch_sequences,loss"]
    for size, tokens in ((1e8, 4e9), (1e8, 16e9), (4e8, 4e9), (4e8, 16e9)):
        best = 1e-3 * (size / 1e8) ** -0.7 * (tokens / 4e9) ** 0.3
        shift = 40.0 if (size, tokens) == (4e8, 16e9) else 1.0
        for rate in best / shift * 2.0 ** np.arange(-3, 4):
            for batch in 2.0 ** np.arange(4, 11):
                u, v = math.log(rate / best), math.log(batch * 2048 / (1e5 * (tokens / 4e9) ** 0.5))
                loss = 3 * math.exp(0.008 * u * u - 0.006 * u * v + 0.008 * v * v + 1e-4 * rng.normal())
                lines.append(f"{size},{tokens},{rate:.8g},{batch:g},{7 if u > 1.9 else loss:.8g}")
    (tmp_path / "grid.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


BASE = ["optimum", "grid.csv", "--columns", "params_nonembedding=N", "--by", "params_nonembedding,tokens"]


def test_it_prints_writes_and_feeds_a_fit(grid, capsys):
    code = run([*BASE, "--seq-len", "2048", "--out", "o.csv", "--kept", "k.csv", "--json", "o.json"])
    printed, problems = capsys.readouterr()
    assert code == 0, problems
    assert "4 grids, cubic in logs" in printed
    assert "the optimum lies outside the grid (rate above" in printed
    assert "left out, not guessed" in printed
    document = json.loads((grid / "o.json").read_text())
    assert document["schema"] == "isoloss/optimum/1"
    assert [entry["edge"] == "" for entry in document["grids"]] == [True, True, True, False]
    assert document["grids"][3]["lr"]["value"] is None
    first = document["grids"][0]
    assert first["at"] == {"params_nonembedding": 1e8, "tokens": 4e9}
    assert first["lr"]["value"] == pytest.approx(1e-3, rel=0.03)
    assert first["batch_tokens"]["value"] == pytest.approx(1e5, rel=0.03)
    rows = isoloss.read(grid / "o.csv")
    assert len(rows) == 4
    kept = isoloss.read(grid / "k.csv")
    assert len(kept) == sum(entry["used"] for entry in document["grids"][:3])
    assert kept["loss"].max() < 4
    found = isoloss.fit(
        "step-law", rows, constraints=isoloss.Constraints(fix={"b": 0.3}), draws=0, sensitivity=False
    )
    assert found.values["a"] == pytest.approx(-0.7, abs=0.03)
    assert [(entry.row, entry.code) for entry in found.removed] == [(4, "nonfinite-loss")]


def test_one_axis(grid, capsys):
    assert run([*BASE, "--where", "batch_sequences == 64", "--seq-len", "2048", "--md"]) in (0, 3)
    (grid / "one.csv").write_text(
        "params,tokens,lr,loss\n"
        + "\n".join(f"1e8,1e9,{r},{2 + 0.01 * math.log(r / 3e-3) ** 2}" for r in (1e-3, 2e-3, 4e-3, 8e-3))
    )
    capsys.readouterr()
    assert run(["optimum", "one.csv"]) == 0
    printed = capsys.readouterr().out
    assert "0.003" in printed
    assert "batch" not in printed


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (BASE, 2, "--seq-len 2048"),
        ([*BASE, "--seq-len", "2048", "--window", "2"], 2, "window"),
        ([*BASE[:-1], "", "--seq-len", "2048"], 2, "columns that make a grid"),
        ([*BASE[:-1], "nonsense", "--seq-len", "2048"], 2, "nonsense"),
        ([*BASE, "--seq-len", "2048", "--out", "no/where.csv"], 2, "no/where.csv"),
        ([*BASE[:-1], "lr", "--seq-len", "2048"], 3, "not varied"),
    ],
)
def test_it_refuses_with_a_reason(grid, capsys, words, code, says):
    assert run(words) == code
    assert says in capsys.readouterr().err

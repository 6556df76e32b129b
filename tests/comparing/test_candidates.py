"""Which laws auto takes up: by axes that vary apart, by rows, by effective rows; and its objective."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss
from isoloss.comparing import candidates
from isoloss.comparing.candidates import named
from isoloss.errors import NoAnswer


def grid(n: int = 4, slope: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Sizes times tokens, or with a slope sizes and tokens on one line in logs."""
    params, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e8, n), np.geomspace(1e8, 1e10, n)))
    if slope:
        tokens = 20 * params**slope
    noise = np.exp(0.003 * np.random.default_rng(seed).standard_normal(n * n))
    return {
        "params": params,
        "tokens": tokens,
        "loss": (1.8 + 480 * params**-0.35 + 2000 * tokens**-0.37) * noise,
    }


def test_laws_of_one_axis_are_left_out_where_size_and_tokens_vary_apart():
    _, chosen, left = named("auto", isoloss.read(grid()).derive())
    assert {"hoffmann", "gadre"} <= {law.spec for law in chosen}
    assert all(len(law.axes) > 1 for law in chosen)
    assert left["power(flops)"] == "reads flops alone, and params and tokens vary apart"
    asked, _, _ = named(["auto", "power(flops)"], isoloss.read(grid()).derive())
    assert [law.spec for law in asked] == ["power(flops)"]


def test_on_one_line_of_size_and_tokens_laws_of_compute_stay():
    _, chosen, _ = named("auto", isoloss.read(grid(slope=1.0)).derive())
    assert "hestness(flops)" in {law.spec for law in chosen}


@pytest.mark.parametrize(("rows", "taken"), [(6, False), (7, True)])
def test_on_a_curve_three_parameters_need_six_rows_and_leave_a_tenth(rows, taken):
    x = np.geomspace(1e6, 1e8, rows)
    _, chosen, _ = named("auto", isoloss.read({"tokens": x, "loss": 1 + x**-0.3}).derive())
    assert ("hestness(tokens)" in {law.spec for law in chosen}) is taken


def test_too_few_rows_for_any_law_are_no_answer_with_a_reason():
    table = {name: values[:7] for name, values in grid().items()}
    with pytest.raises(NoAnswer, match="7 rows"):
        isoloss.compare("auto", table)


def test_a_law_that_can_follow_the_effective_rows_is_no_yardstick(monkeypatch):
    monkeypatch.setattr(candidates, "LAWS", {"hestness": "Hestness", "broken2": "Broken2"})
    tokens = np.geomspace(1e6, 1e9, 20)
    loss = (1.5 + 60 * tokens**-0.3) * np.exp(0.003 * np.random.default_rng(1).standard_normal(20))
    steep = {"tokens": tokens, "loss": loss, "weight": tokens / tokens.max()}  # 7.5 effective rows
    got = isoloss.compare("auto", steep, weights="weight", draws=20, starts=4, folds=1)
    assert list(got.weights) == ["hestness(tokens)"]
    assert "can follow any" in got.left_out["broken2(tokens)"]


def test_a_stack_of_several_axes_is_fitted_by_student_t_unless_told_otherwise():
    quick = {"draws": 40, "fold_draws": 20, "starts": 4, "folds": 1}
    laws = ["gadre"]
    assert isoloss.auto(grid(), laws, **quick).leading.objective == isoloss.StudentT()
    asked = isoloss.auto(grid(), laws, objective=isoloss.Huber(), **quick)
    assert asked.leading.objective == isoloss.Huber()


def test_a_table_of_learning_rates_is_not_one_of_losses():
    rates = {"params": [1e8, 2e8, 4e8], "lr": [0.01, 0.005, 0.0025]}
    with pytest.raises(ValueError, match="auto needs a column loss or error, got params, lr"):
        named("auto", isoloss.read(rates).derive())


def test_a_law_of_the_batch_is_offered_the_batch():
    batch = 2.0 ** np.arange(4, 16)
    table = {"batch_sequences": batch, "tokens": batch * 1e5, "steps": 100 + 1e5 / batch}
    _, chosen, _ = named(["critical-batch(batch_sequences)", "auto"], isoloss.read(table).derive())
    assert [law.spec for law in chosen] == ["critical-batch-free(batch_sequences)"]

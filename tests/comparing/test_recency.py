"""Row weights of curves: the formula, whom they apply to, and what they do to a fit."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss
from isoloss.comparing.recency import COLUMN, recency_of, weighted
from isoloss.comparing.stack import Stack
from isoloss.laws import get

QUICK = {"draws": 20, "fold_draws": 20, "starts": 4, "folds": 1}
CURVE = [get("power"), get("hestness")]


def curve(n: int = 12) -> dict[str, np.ndarray]:
    tokens = np.geomspace(1e3, 1e6, n)
    noise = 0.01 * np.random.default_rng(0).normal(size=n)
    return {"tokens": tokens, "loss": (1 + 60 * tokens**-0.5) * np.exp(noise)}


@pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0])
def test_the_information_left_is_that_of_kish(ratio):
    runs = isoloss.read({"tokens": ratio ** np.arange(60.0), "loss": np.ones(60)})
    table, name = weighted(runs, CURVE, 1.0, None)
    w = table[name]
    assert w == pytest.approx(ratio ** np.arange(-59.0, 1.0))
    assert w.sum() ** 2 / (w**2).sum() == pytest.approx((ratio + 1) / (ratio - 1))


def test_the_users_weights_count_too_and_bad_rows_keep_theirs():
    runs = isoloss.read({"tokens": [1.0, 2.0, 4.0, np.nan], "loss": np.ones(4), "w": [1.0, 3.0, 5.0, 7.0]})
    table, name = weighted(runs, CURVE, 2.0, "w")
    assert (name, table[COLUMN].tolist()) == (COLUMN, [1 / 16, 3 / 4, 5.0, 7.0])
    assert weighted(runs, CURVE, 0.0, "w") == (runs, "w")


def test_a_law_of_the_loss_looks_to_the_lowest():
    runs = isoloss.read({"loss": [4.0, 2.0, 1.0], "error": [0.4, 0.3, 0.2]})
    table, _ = weighted(runs, [get("loss-to-error")], 1.0, None)
    assert table[COLUMN].tolist() == [0.25, 0.5, 1.0]


def test_only_curves_are_weighted_unless_asked():
    assert recency_of(CURVE, None) == 0.5
    assert recency_of(CURVE, 0.5) == 0.5
    assert recency_of([get("hoffmann")], None) == 0
    assert recency_of([get("power(flops)"), get("power(tokens)")], None) == 0
    for laws, given in (([get("hoffmann")], 1.0), (CURVE, -1.0), (CURVE, np.nan)):
        with pytest.raises(ValueError, match="recency"):
            recency_of(laws, given)


@pytest.mark.parametrize("recency", [0.0, 1.0])
def test_the_fits_of_a_stack_are_weighted_least_squares(recency):
    table = curve()
    found = isoloss.auto(table, "power", objective=isoloss.LeastSquares(), recency=recency, **QUICK)
    x, y = np.log(table["tokens"]), np.log(table["loss"])
    slope, height = np.polyfit(
        x, y, 1, w=table["tokens"] ** (recency / 2)
    )  # polyfit weighs residuals, not squares
    assert found.leading.law.evaluate(found.leading.theta, tokens=1e7) == pytest.approx(
        np.exp(height + slope * np.log(1e7)), rel=1e-6
    )


def test_it_is_the_default_of_a_curve_and_stands_in_the_file(tmp_path):
    found = isoloss.auto(curve(), "power", **QUICK)
    assert found.recency == 0.5
    assert found.leading.objective == isoloss.StudentT()
    found.save(tmp_path / "stack.json")
    back = isoloss.load(tmp_path / "stack.json")
    assert isinstance(back, Stack)
    assert back.recency == 0.5
    document = found.to_json()
    del document["recency"]
    with pytest.raises(ValueError, match="recency"):
        Stack.from_json(document)

"""Whether a benchmark will be seen to move: against least squares done by hand, and planted scatter."""

from __future__ import annotations

import math

import numpy as np
import pytest

import isoloss
from isoloss.errors import NoAnswer
from isoloss.planning.movement import benchmark_move, loss_that_moves

SQUARES = isoloss.LeastSquares(residual="linear")


def fitted(noise, seed=0, n=40, **settings):
    rng = np.random.default_rng(seed)
    loss = np.linspace(2.5, 4.5, n)
    error = 0.86 - 2.2 * np.exp(-0.71 * loss) + noise * rng.standard_normal(n)
    return isoloss.fit(
        "loss-to-error", {"loss": loss, "error": error}, objective=SQUARES, **settings, sensitivity=False
    )


@pytest.fixture(scope="module")
def fit():
    return fitted(0.01, draws=400)


def test_the_interval_is_that_of_two_runs(fit):
    move = benchmark_move(fit, 3.0, 2.8)
    gain = 2.2 * (math.exp(-0.71 * 2.8) - math.exp(-0.71 * 3.0))
    assert move.change.low < -gain < move.change.high
    # inside the rows the law is known well: what is left is the scatter of two runs, 2 x 1.645 x sqrt(2) x 0.01
    assert move.change.high - move.change.low == pytest.approx(2 * 1.645 * math.sqrt(2) * 0.01, rel=0.25)
    assert move.level.high - move.level.low < (move.change.high - move.change.low) / 3
    assert move.reach == 1
    back = benchmark_move(fit, 2.8, 3.0)
    assert back.change.value == pytest.approx(-move.change.value, abs=0.002)
    assert back.verdict == move.verdict


def test_the_verdict_is_the_side_of_zero(fit):
    seen, unseen = benchmark_move(fit, 3.0, 2.6), benchmark_move(fit, 3.0, 2.98)
    assert (seen.verdict, unseen.verdict) == ("resolved", "not resolved")
    assert seen.change.high < 0 < unseen.change.high
    assert "will be seen" in seen.reading
    assert "one run each will not tell" in unseen.reading


def test_two_simulated_runs_fall_within():
    rng = np.random.default_rng(5)
    move = benchmark_move(fitted(0.01, n=200, draws=200), 3.2, 2.9)
    truth = -2.2 * (math.exp(-0.71 * 2.9) - math.exp(-0.71 * 3.2))
    pairs = truth + 0.01 * (rng.standard_normal(20_000) - rng.standard_normal(20_000))
    held = np.mean((move.change.low <= pairs) & (pairs <= move.change.high))
    assert 0.85 < held < 0.95  # the scatter itself is known to 5 % from 200 rows


def test_the_smallest_fall_that_is_seen(fit):
    found = loss_that_moves(fit, 3.0)
    assert found.verdict == "resolved"
    assert benchmark_move(fit, 3.0, found.after + 2e-3).verdict == "not resolved"
    # by hand: slope 0.71 * 2.2 * exp(-0.71 * 3), one-sided 1.645 sqrt(2) 0.01
    by_hand = 1.645 * math.sqrt(2) * 0.01 / (0.71 * 2.2 * math.exp(-2.13))
    assert 3.0 - found.after == pytest.approx(by_hand, rel=0.3)
    louder = loss_that_moves(fitted(0.02, draws=400), 3.0)
    assert louder.after < found.after


def test_a_benchmark_that_does_not_move_says_so():
    rng = np.random.default_rng(1)
    loss = np.linspace(2.5, 4.5, 30)
    flat = isoloss.fit(
        "loss-to-error",
        {"loss": loss, "error": 0.75 + 0.02 * rng.standard_normal(30)},
        objective=SQUARES,
        draws=200,
        sensitivity=False,
    )
    with pytest.raises(NoAnswer, match="not seen to move"):
        loss_that_moves(flat, 3.0)


def test_other_laws_are_refused():
    other = isoloss.fit(
        "power", {"tokens": [1, 2, 4, 8, 16], "loss": [8, 4.1, 2, 1.0, 0.5]}, draws=50, sensitivity=False
    )
    with pytest.raises(ValueError, match="reads the loss alone"):
        benchmark_move(other, 3, 2)


def test_the_public_mean_is_foretold_as_printed(table):
    # Gadre et al.: 3.64 % and 0.05 % relative error of the 17-task mean; the same from their rows
    table("laws/gadre_overtraining/runs.csv")
    from benchmarks.downstream import load, published

    *_, chosen = load()
    assert len(chosen) == 17
    text = published()
    assert "+0.710 %" in text
    assert "+0.732 %" in text
    assert "+3.64 %" in text
    assert "+0.05 %" in text

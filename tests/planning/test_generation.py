"""What generation costs: the sheet's values, token-by-token sums; the frontier by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from isoloss.errors import NoAnswer
from isoloss.planning.generation import (
    Decoder,
    Machine,
    Sampled,
    cached_reads,
    frontier,
    generation_cost,
    sample_or_grow,
)

SMALL = Decoder("0.6B", 0.752e9, 16, 8, 28 * 128)
MIDDLE = Decoder("8B", 8.19e9, 32, 8, 36 * 128)
LARGE = Decoder("32B", 32.76e9, 64, 8, 64 * 128)


@pytest.mark.parametrize(
    ("model", "compute", "memory"), [(SMALL, 56.2, 8870), (MIDDLE, 349.5, 11_404), (LARGE, 1361.8, 20_274)]
)
def test_the_values_of_the_sheet(model, compute, memory):
    cost = generation_cost(model, 200, 16_384)
    assert cost.compute / 1e12 == pytest.approx(compute, abs=0.05)
    assert (cost.eflops - cost.compute) / 1e12 == pytest.approx(memory, abs=0.5)
    assert cost.eflops == pytest.approx(cost.compute + 562.5 * cost.traffic)


@pytest.mark.parametrize(
    ("prompt", "generated", "cache"), [(200, 500, 100), (200, 500, 450), (200, 500, 9000), (0, 64, 16)]
)
def test_reads_are_those_of_every_step(prompt, generated, cache):
    # step t reads what is held: halfway between counting the token itself and not
    before = sum(min(cache, prompt + t) for t in range(generated))
    after = sum(min(cache, prompt + t + 1) for t in range(generated))
    assert float(cached_reads(prompt, generated, cache)) == pytest.approx((before + after) / 2, abs=0.5)
    if cache == 9000:
        assert before == 224_750
    assert float(cached_reads(prompt, generated, cache)) > 0


def test_dense_generation_is_a_sum_over_steps():
    prompt, generated, trials = 30, 40, 3
    cost = generation_cost(SMALL, prompt, generated, trials)
    flops = moved = 0.0
    for t in range(generated):
        held = prompt + t + 0.5
        flops += trials * (
            2 * SMALL.params + 2 * 2 * held * 16 * SMALL.width
        )  # scores and values, 2 FLOPs each
        moved += 2 * 2 * (prompt + trials * (t + 0.5)) * 8 * SMALL.width  # keys and values, 2 bytes each
    assert cost.compute == pytest.approx(flops, rel=1e-12)
    assert cost.traffic == pytest.approx(moved, rel=1e-12)


def test_a_cache_for_everything_is_dense_attention_and_costs_never_turn_negative():
    dense = generation_cost(SMALL, 200, 500)
    for cache in (700, 701, 1e6):
        assert generation_cost(SMALL, 200, 500, cache=cache) == dense
    costs = [generation_cost(SMALL, 200, 500, cache=b).eflops for b in (1, 10, 200, 300, 600, 700)]
    assert costs == sorted(costs)
    assert costs[0] > 0
    # several trials share the prompt only with full attention
    assert generation_cost(SMALL, 200, 500, 4, cache=700).traffic == pytest.approx(4 * dense.traffic)
    assert generation_cost(SMALL, 200, 500, 4).traffic < 4 * dense.traffic


def test_a_search_of_blocks_adds_one_number_per_block():
    plain = generation_cost(SMALL, 200, 512, 2, cache=128)
    searched = generation_cost(SMALL, 200, 512, 2, cache=128, block=16)
    assert searched.compute - plain.compute == pytest.approx(2 * (400 + 512) / 16 * 512 * 16 * SMALL.width)
    assert searched.traffic - plain.traffic == pytest.approx((400 + 1024) / 16 * 512 * 8 * SMALL.width)


def test_lengths_are_averaged_over_not_averaged_first():
    lengths = [100, 900]
    costs = [generation_cost(SMALL, 50, n).eflops for n in lengths]
    assert generation_cost(SMALL, 50, lengths).eflops == pytest.approx(np.mean(costs))
    assert generation_cost(SMALL, 50, lengths).eflops > generation_cost(SMALL, 50, 500).eflops


def test_hardware_is_a_setting():
    cost = generation_cost(SMALL, 50, 100, machine=Machine(intensity=0))
    assert cost.eflops == cost.compute
    halved = generation_cost(SMALL, 50, 100, machine=Machine(intensity=100, cache_bytes=1))
    assert halved.traffic == pytest.approx(cost.traffic / 2)


def tried(model, rate, seed, questions=12, samples=8, tokens=1000, **settings):
    rng = np.random.default_rng(seed)
    right = rng.random((questions, samples)) < np.broadcast_to(rate, (questions, 1))
    return Sampled(
        model,
        np.full(questions, 100),
        rng.integers(tokens // 2, tokens, (questions, samples)),
        right,
        **settings,
    )


def slow_table(settings, trials):
    for s in settings:
        for n in trials:
            solved, cost = [], []
            for q in range(len(s.prompt)):
                subsets = list(itertools.combinations(s.correct[q], n))
                solved.append(np.mean([any(subset) for subset in subsets]))
                costs = [
                    generation_cost(s.model, s.prompt[q], g, n, cache=s.cache).eflops for g in s.generated[q]
                ]
                cost.append(np.mean(costs))
            yield np.array(solved), np.array(cost)


@pytest.mark.parametrize("per", ["task", "question"])
def test_the_frontier_is_that_of_enumeration(per):
    settings = [tried(SMALL, 0.2, 0), tried(SMALL, 0.15, 1, cache=64), tried(LARGE, 0.5, 2)]
    trials = (1, 2, 4)
    budgets = np.geomspace(5e12, 1e15, 6)
    table = list(slow_table(settings, trials))
    found = frontier(settings, budgets, trials=trials, per=per)
    for budget, got in zip(budgets, found, strict=True):
        if per == "task":
            want = max(solved.mean() for solved, cost in table if cost.mean() <= budget)
        else:
            best = [max(s[q] for s, c in table if c[q] <= budget) for q in range(12)]
            want = np.mean(best)
        assert got.accuracy.value == pytest.approx(want, abs=1e-12)
        assert got.eflops <= budget
        assert got.accuracy.low <= got.accuracy.high
    values = [got.accuracy.value for got in found]
    assert values == sorted(values)


def test_choosing_per_question_is_never_worse_than_one_setting_for_all():
    settings = [tried(SMALL, 0.2, 0), tried(LARGE, 0.5, 2)]
    one = frontier(settings, [3e14])[0].accuracy.value
    each = frontier(settings, [3e14], per="question")[0].accuracy.value
    assert each >= one


def test_sample_more_or_grow():
    hard = np.concatenate([np.full((20, 1), 0.3), np.full((20, 1), 0.0)])
    easy = np.full((40, 1), 0.5)
    small = tried(SMALL, hard, 0, questions=40)
    large = tried(LARGE, easy, 1, questions=40)
    cheap = generation_cost(LARGE, 100, 1000).eflops
    (found,) = sample_or_grow([small], [large], [8 * cheap], trials=(1, 2, 4, 8))
    assert found.verdict == "larger model"
    assert found.gain.low > 0
    assert found.gain.value == pytest.approx(found.larger.accuracy.value - found.more.accuracy.value)
    (same,) = sample_or_grow([small], [small], [8 * cheap], trials=(1, 2, 4, 8))
    assert (same.verdict, same.gain.value, same.gain.low, same.gain.high) == ("not resolved", 0, 0, 0)
    (turned,) = sample_or_grow([large], [small], [8 * cheap], trials=(1, 2, 4, 8))
    assert turned.verdict == "more samples"


def test_a_task_that_nothing_solves_may_be_solved_a_little():
    (never,) = frontier([tried(SMALL, 0.0, 0, questions=30)], [1e15])
    assert (never.accuracy.value, never.accuracy.low) == (0, 0)
    assert (1 - never.accuracy.high) ** 30 == pytest.approx(0.05)
    (always,) = frontier([tried(SMALL, 1.0, 0, questions=30)], [1e15])
    assert always.accuracy.low == pytest.approx(1 - never.accuracy.high)


def test_wrong_input_and_budgets_that_fit_nothing():
    one = tried(SMALL, 0.5, 0)
    with pytest.raises(NoAnswer, match="no setting costs"):
        frontier([one], [1.0])
    with pytest.raises(NoAnswer, match="no setting costs"):
        frontier([one], [1.0], per="question")
    for call, message in (
        (lambda: frontier([], [1e15]), "at least one setting"),
        (lambda: frontier([one, tried(SMALL, 0.5, 0, questions=3)], [1e15]), "same questions"),
        (lambda: frontier([one], [1e15], trials=(99,)), "number of trials"),
        (lambda: frontier([one], [1e15], per="each"), "'task' or 'question'"),
        (lambda: sample_or_grow([one], [tried(SMALL, 0.5, 0, questions=3)], [1e15]), "same questions"),
        (lambda: Sampled(SMALL, np.ones(2), np.ones((3, 4)), np.ones((3, 4))), "shapes"),
        (lambda: Sampled(SMALL, np.ones(2), np.ones((2, 4)), np.full((2, 4), np.nan)), "right or wrong"),
        (lambda: Decoder("x", 0, 1, 1, 1), "positive params"),
        (lambda: Machine(cache_bytes=0), "cache bytes above 0"),
        (lambda: generation_cost(SMALL, -1, 10), "prompt of 0"),
        (lambda: generation_cost(SMALL, 1, []), "lengths of 0"),
        (lambda: generation_cost(SMALL, 1, 10, 0), "one trial"),
        (lambda: generation_cost(SMALL, 1, 10, cache=0), "positive cache"),
        (lambda: generation_cost(SMALL, 1, 10, block=16), "needed a cache budget"),
        (lambda: generation_cost(SMALL, 1, math.nan), "lengths of 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

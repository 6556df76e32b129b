"""Formats for each layer: enumeration of small networks, limits kept, measurements that correct."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress, find  # noqa: E402
from isoloss.compress.candidates import candidates  # noqa: E402
from isoloss.compress.mixed import best, corrected, frontier, smallest, within, words  # noqa: E402
from isoloss.compress.sensitivity import score  # noqa: E402
from isoloss.compress.sensitivity.changes import changes  # noqa: E402
from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure import Subject  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from tests.compress.models import Language, filled  # noqa: E402

BITS = tuple(Choice(f"int{bits}/asym") for bits in (2, 3, 5))


@pytest.fixture(scope="module")
def linear():
    """Four layers in a row without a bend between them: (subject, candidates, every plan, its measured rise)."""
    net = filled(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 7), nn.Linear(7, 3)), 1)
    with torch.no_grad():
        for layer, gain in zip(net, (1.0, 4.0, 0.3, 1.0), strict=True):
            layer.weight *= gain
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        subject = Subject(net, [(x, net(x))], SquaredError())
    found = candidates(net, find(net).layers, BITS, [x])
    names = list(found.of)
    formats = [choice.format for choice in BITS]
    every = [dict(zip(names, picked, strict=True)) for picked in itertools.product(formats, repeat=4)]
    return subject, found, every, [change.rise for change in changes(subject, found, every)]


def test_the_best_plan_is_that_of_the_enumeration(linear):
    subject, found, every, _ = linear
    for name in ("output-error", "measured", "kronecker"):
        scores = score(name, subject, found)
        for bits in (5.6, 6.4, 7.1, 9.0):
            fitting = [plan for plan in every if found.bits(plan) <= bits * found.weights]
            mixed = best(found, scores, bits=bits)
            assert mixed.bits == found.bits(mixed.plan) <= bits * found.weights
            assert scores.added(mixed.plan) == pytest.approx(min(map(scores.added, fitting)))
            assert mixed.bytes == mixed.bits // 8 + found.plain_bytes


def test_the_smallest_plan_is_that_of_the_enumeration(linear):
    subject, found, every, _ = linear
    scores = score("kronecker", subject, found)
    for rise in np.quantile([scores.added(plan) for plan in every], [0.1, 0.4, 0.8]):
        fitting = [found.bits(plan) for plan in every if scores.added(plan) <= rise]
        chosen = smallest(found, scores, float(rise)).chosen
        assert found.bits(chosen) == min(fitting)


def test_terms_between_layers_never_make_it_worse_and_are_near_the_best(linear):
    subject, found, every, _ = linear
    scores = score("block-fisher", subject, found)
    alone = replace(scores, along=None)
    ranks = []
    for bits in np.linspace(min(map(found.bits, every)), max(map(found.bits, every)), 9) / found.weights:
        fitting = [plan for plan in every if found.bits(plan) <= bits * found.weights * (1 + 1e-12)]
        mixed = best(found, scores, bits=bits * (1 + 1e-12))
        without = best(found, alone, bits=bits * (1 + 1e-12))
        assert mixed.together <= scores.together(without.plan) * (1 + 1e-12)
        ranks.append(np.mean([scores.together(plan) < mixed.together * (1 - 1e-9) for plan in fitting]))
    assert np.mean(ranks) < 0.05


def test_a_limit_on_the_loss_is_kept_and_used(linear):
    subject, found, every, rises = linear
    for name in ("output-error", "block-fisher"):
        scores = score(name, subject, found)
        for share in (0.2, 0.5):
            limit = float(np.quantile(rises, share))
            mixed = within(subject, found, scores, limit)
            assert mixed.change.rise <= limit
            fitting = [found.bits(plan) for plan, rise in zip(every, rises, strict=True) if rise <= limit]
            assert mixed.bits <= min(fitting) * 1.35
            again = changes(subject, found, [mixed.plan])[0]
            assert again == mixed.change


def test_a_limit_on_the_loss_that_nothing_keeps_is_said(linear):
    subject, found, _, rises = linear
    scores = score("block-fisher", subject, found)
    with pytest.raises(NoAnswer, match=r"the loss rises by .* or more") as caught:
        within(subject, found, scores, min(rises) / 50)
    assert "a limit above" in caught.value.needed
    with pytest.raises(ValueError, match="above 0"):
        within(subject, found, scores, 0.0)


def test_measurements_around_a_choice_do_not_make_it_worse(linear):
    subject, found, every, rises = linear
    scores = score("output-error", subject, found)
    at = dict(zip((tuple(plan.values()) for plan in every), rises, strict=True))
    for bits in (6.0, 6.8):
        mixed = best(found, scores, bits=bits)
        better = corrected(subject, found, scores, mixed, limit=bits * found.weights, rounds=3)
        assert better.bits <= bits * found.weights
        assert better.change.rise == pytest.approx(at[tuple(better.plan.values())])
        assert better.change.rise <= at[tuple(mixed.plan.values())] * (1 + 1e-9)


def test_a_size_that_nothing_keeps_is_said(linear):
    subject, found, every, _ = linear
    scores = score("output-error", subject, found)
    least = min(map(found.bits, every))
    with pytest.raises(NoAnswer) as caught:
        best(found, scores, size=found.plain_bytes + least / 8 - 1)
    assert f"{least // 8 + found.plain_bytes} bytes" in caught.value.needed
    assert best(found, scores, size=found.plain_bytes + least / 8).bits == least
    with pytest.raises(ValueError, match="bits or bytes"):
        best(found, scores)


def test_tied_layers_take_one_format_and_tied_weights_count_once():
    model = filled(Language())
    x = torch.randint(0, 13, (8, 5), generator=torch.Generator().manual_seed(1))
    subject = Subject(model, [(x, x)], CrossEntropy())
    found = candidates(model, find(model).layers, BITS, [x])
    assert "head" not in found.of
    scores = score("block-fisher", subject, found)
    pairs = [(f"blocks.{i}.up", f"blocks.{i}.gate") for i in range(3)]
    mixed = best(found, scores, bits=5.0, ties=pairs)
    assert all(mixed.plan[a] == mixed.plan[b] for a, b in pairs)
    # What is promised is what the pipeline makes.
    made = compress(model, found.choices(mixed.plan), [x])
    assert made.bits == mixed.bits
    assert made.bytes == mixed.bytes
    assert {n: done.format for n, done in made.recipe.layers.items()} == dict(mixed.plan)
    assert torch.equal(model.head.weight, model.embedding.weight)


def test_the_frontier_is_a_table_of_runs(linear):
    subject, found, every, rises = linear
    scores = score("block-fisher", subject, found)
    every_row = frontier(subject, found, scores, points=6)
    assert (every_row["variant"][-1], every_row["rise"][-1]) == ("original", 0)
    runs = every_row.take(np.arange(len(every_row) - 1))
    assert (np.diff(runs["bits_post"]) > 0).all()
    assert (np.diff(runs["foretold"]) < 0).all()
    at = dict(zip((words(plan) + str(found.bits(plan)) for plan in every), rises, strict=True))
    assert len(at) <= len(every)
    sizes = {found.bits(plan) / found.weights for plan in every}
    for row in range(len(runs)):
        assert any(math.isclose(runs["bits_post"][row], size) for size in sizes)
        assert any(math.isclose(runs["rise"][row], rise, rel_tol=1e-6) for rise in rises)
        assert runs["loss"][row] == pytest.approx(runs["rise"][row], abs=1e-9)  # its own loss is 0
    with pytest.raises(ValueError, match="two points"):
        frontier(subject, found, scores, points=1)

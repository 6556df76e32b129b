"""Formats of weights and inputs together: enumeration, both limits kept, multiplications against a counter of torch."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from isoloss.compress import Choice, find  # noqa: E402
from isoloss.compress.activations import Activations, rounded_inputs  # noqa: E402
from isoloss.compress.candidates import candidates  # noqa: E402
from isoloss.compress.costs import Limit, bops, multiplications  # noqa: E402
from isoloss.compress.joint import AS_IS, best, inputs, judged  # noqa: E402
from isoloss.compress.mixed import best as best_weights  # noqa: E402
from isoloss.compress.sensitivity import score  # noqa: E402
from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure import Subject  # noqa: E402
from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from tests.compress.models import Language, filled  # noqa: E402

WEIGHTS = tuple(Choice(f"int{bits}/asym") for bits in (2, 4, 8))
INPUTS = (Activations("int3/asym"), Activations("int8"), Activations("int5", "static"))


@pytest.fixture(scope="module")
def small():
    net = filled(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)), 3)
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        subject = Subject(
            net, [(x[:30], net(x[:30]).argmax(1)), (x[30:], net(x[30:]).argmax(1))], CrossEntropy()
        )
    tried = candidates(net, find(net).layers, WEIGHTS, [x])
    return subject, tried, score("pd", subject, tried), inputs(subject, tried, INPUTS), x


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2, groups=2), nn.Conv2d(8, 6, 1)), (2, 4, 11, 9)),
        (nn.Sequential(nn.Conv1d(3, 5, 4, stride=3), nn.Flatten(), nn.Linear(5 * 3, 7)), (3, 3, 10)),
        (nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2, bias=False)), (2, 7, 5)),
    ],
)  # fmt: skip
def test_multiplications_are_half_of_what_torch_counts(net, shape):
    x = torch.randn(shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    assert 2 * sum(multiplications(net, find(net).layers, x).values()) == counter.get_total_flops()


def test_a_lookup_multiplies_nothing_and_a_tied_head_counts():
    net = filled(Language(), 0)
    ids = torch.zeros(2, 5, dtype=torch.long)
    counts = multiplications(net, find(net).layers, ids)
    embedding = next(layer for layer in find(net).layers if layer.kind == "embedding")
    rows, width = embedding.shape
    assert counts[embedding.name] == 2 * 5 * rows * width


def test_every_pair_of_formats_is_measured_as_the_model_with_that_input_rounded_moves(small):
    subject, tried, _, found, x = small
    net = subject.model
    with torch.no_grad():
        own = net(x).log_softmax(1)
        with rounded_inputs(net, {"2": INPUTS[0]}):
            other = net(x).log_softmax(1)
    assert found.table["2"]["int3/asym"] == pytest.approx(
        float((own.exp() * (own - other)).sum(1).mean()), rel=1e-4
    )
    assert set(found.table) == set(tried.of)
    assert set(found.static) == {"int5"}
    assert set(found.static["int5"]) == set(tried.of)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("bits", [None, 6.0])
def test_the_choice_is_the_best_of_all_pairs(small, share, bits):
    subject, tried, scores, found, x = small
    counts = multiplications(subject.model, tried.layers, x[:1])
    wide = {"int3/asym": 3, "int8": 8, "int5": 5}
    limit = share * sum(counts.values()) * 64
    got = best(tried, scores, found, counts, bits=bits, bops=limit)
    least = float("inf")
    layers = list(tried.of)
    for formats in itertools.product([choice.format for choice in WEIGHTS], repeat=len(layers)):
        if bits is not None and tried.bits(dict(zip(layers, formats, strict=True))) > bits * tried.weights:
            continue
        for others in itertools.product(wide, repeat=len(layers)):
            used = sum(
                counts[layer] * int(format[3]) * wide[other]
                for layer, format, other in zip(layers, formats, others, strict=True)
            )
            if used <= limit:
                loss = sum(
                    scores.table[layer][format] + found.table[layer][other]
                    for layer, format, other in zip(layers, formats, others, strict=True)
                )
                least = min(least, loss)
    assert got.foretold == pytest.approx(least, abs=1e-12)
    assert got.bops <= limit * (1 + 1e-9)
    assert got.bits == tried.bits(got.weights)


def test_a_choice_is_judged_with_both_changed_at_once_and_the_model_comes_back(small):
    subject, tried, scores, found, x = small
    net = subject.model
    before = {name: own.clone() for name, own in net.state_dict().items()}
    counts = multiplications(net, tried.layers, x[:1])
    chosen = judged(subject, tried, found, best(tried, scores, found, counts, bops=30 * sum(counts.values())))
    with torch.no_grad():
        own = net(x).log_softmax(1)
        with tried.applied(chosen.weights), found.applied(subject, chosen.inputs):
            other = net(x).log_softmax(1)
    assert chosen.difference.value == pytest.approx(
        float((own.exp() * (own - other)).sum(1).mean()), rel=1e-4
    )
    assert all(torch.equal(own, net.state_dict()[name]) for name, own in before.items())
    assert "measured" in repr(chosen)


def test_inputs_that_cannot_be_rounded_stay_and_cost_as_full_numbers():
    net = filled(Language(), 0)
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    subject = Subject(net, [(ids, ids)], CrossEntropy())
    layers = find(net).layers
    tried = candidates(net, layers, WEIGHTS[1:])
    found = inputs(subject, tried, [Activations("int8")])
    counts = multiplications(net, layers, ids)
    embedding = next(layer.name for layer in layers if layer.kind == "embedding")
    assert list(found.table[embedding]) == [AS_IS]
    got = best(tried, score("pd", subject, tried), found, counts, bits=8.9)
    parts = {
        name: counts[name] * int(format[3]) * (32 if name == embedding else 8)
        for name, format in got.weights.items()
    }
    assert got.bops == sum(parts.values())


def test_no_choice_within_the_limits_says_what_would_be_enough(small):
    subject, tried, scores, found, x = small
    counts = multiplications(subject.model, tried.layers, x[:1])
    with pytest.raises(NoAnswer, match="least of each alone are bops"):
        best(tried, scores, found, counts, bops=5.9 * sum(counts.values()))
    assert best(tried, scores, found, counts, bops=6 * sum(counts.values())).bops == 6 * sum(counts.values())
    with pytest.raises(ValueError, match="got none"):
        best(tried, scores, found, counts)
    with pytest.raises(ValueError, match="only order"):
        best(tried, score("output-error", subject, tried), found, counts, bits=8)
    with pytest.raises(ValueError, match="each once"):
        inputs(subject, tried, [INPUTS[0], INPUTS[0]])


def test_bit_operations_and_a_measured_time_limit_formats_of_weights(small):
    subject, tried, scores, _, x = small
    counts = multiplications(subject.model, tried.layers, x[:1])
    operations = bops(tried, counts, 8)
    seconds = {
        name: {format: 1.0 + (format == "int2/asym") for format in own} for name, own in tried.of.items()
    }
    limit = 0.6 * sum(max(own.values()) for own in operations.values())
    got = best_weights(
        tried, scores, limits={"bops": Limit(limit, operations), "seconds": Limit(4.0, seconds)}
    )
    layers = list(tried.of)
    every = [
        dict(zip(layers, formats, strict=True))
        for formats in itertools.product(tried.of[layers[0]], repeat=3)
    ]
    fitting = [
        plan
        for plan in every
        if sum(operations[name][format] for name, format in plan.items()) <= limit
        and sum(seconds[name][format] for name, format in plan.items()) <= 4.0
    ]
    assert 0 < len(fitting) < len(every)
    assert got.added == pytest.approx(min(scores.added(plan) for plan in fitting), abs=1e-12)
    with pytest.raises(NoAnswer, match="seconds 3"):
        best_weights(tried, scores, limits={"seconds": Limit(2.5, seconds)})
    with pytest.raises(ValueError, match="needed the bops of 0 in int2/asym"):
        best_weights(tried, scores, limits={"bops": Limit(1.0, {})})
    with pytest.raises(ValueError, match="above 0"):
        Limit(0, {})

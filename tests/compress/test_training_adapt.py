"""Word lengths that change in training: the checks of the sheet, enumeration, and what is stored."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress import formats, load, save  # noqa: E402
from isoloss.compress.formats import round_fixed  # noqa: E402
from isoloss.compress.training.adapt import (  # noqa: E402
    Adapt,
    adapting,
    disagreement,
    gradient_diversity,
    histogram_divergence,
    integer_bits,
    push_down,
)
from tests.compress.models import Language, convolutions, filled  # noqa: E402


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("word", [(3, 5), (1, 7), (4, 2), (0, 6), (-2, 9)])
@pytest.mark.parametrize("divergence", [0.0, None])
def test_weights_on_a_grid_need_its_word(word, divergence):
    integer, fraction = word
    count = 2 ** (integer + fraction)
    whole = torch.arange(-count // 2, count // 2).float() * 2.0**-fraction
    found = push_down(whole.repeat(8), bins=count, divergence=divergence)
    assert (found.integer, found.fraction, found.length) == (integer, fraction, integer + fraction)
    assert found.divergence == 0


def test_the_word_is_the_shortest_of_all_that_keep_the_limit():
    for seed in range(6):
        weight = drawn(500, seed=seed) * 10.0 ** (seed - 3)
        found = push_down(weight, bins=40)
        limit, kept = 39 / 1000, []
        for fraction in range(-12, 24):
            integer = integer_bits(weight, fraction)
            if not 1 <= integer + fraction <= 16:
                continue
            rounded = round_fixed(weight, integer, fraction)
            assert float((rounded - weight).abs().max()) <= 2.0**-fraction / 2 + 1e-7  # nothing is clipped
            if histogram_divergence(weight, rounded, 40) <= limit:
                kept.append(fraction)
        assert found.fraction in kept
        # Bisection takes the divergence to be monotone; with one bit less the limit was not kept.
        assert found.fraction - 1 not in kept
    assert push_down(torch.zeros(4), 8).length == 1
    assert push_down(drawn(4000), 64, divergence=0.0, most=6).length == 6
    with pytest.raises(ValueError, match="finite"):
        push_down(torch.tensor([math.nan]), 8)


def test_the_divergence_is_zero_only_if_all_bins_agree():
    x = drawn(400)
    assert histogram_divergence(x, x[torch.randperm(400)], 30) == 0
    for k in range(0, 400, 5):
        other = x.clone()
        other[k] = float(x.max()) if x[k] < 0 else float(x.min())
        assert histogram_divergence(x, other, 30) > 0
    # By hand: counts 3 and 1 against 2 and 2, half a count on each.
    a, b = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    want = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert histogram_divergence(a, b, 2) == pytest.approx(want)


def test_diversity_of_identical_and_of_orthogonal_gradients():
    for k in (2, 5, 17):
        same, crossed = torch.ones(k, 20), torch.eye(20)[:k] * 3
        for gradients, want in ((same, 1 / k), (crossed, 1.0)):
            found = gradient_diversity(
                float(gradients.square().sum()), float(gradients.sum(0).square().sum())
            )
            assert found == pytest.approx(want)
        assert disagreement(1 / k, k) == pytest.approx(0)
        assert disagreement(1.0, k) == pytest.approx(1)
    assert math.isinf(gradient_diversity(2.0, 0.0))
    assert disagreement(math.nan, 5) == 0


def test_a_training_sums_the_gradients_and_rounds_without_bias():
    net = filled(nn.Linear(6, 3, bias=False))
    weight = net.weight.detach().clone()
    adapt = adapting(
        net, Adapt(lookback=4, lookbacks=(2, 9), bins=64, most_bins=(64, 64), divergence=0.05, seed=3)
    )
    integer, fraction = (int(part) for part in adapt.words["model"].removeprefix("fixed").split("."))
    direction, copies = drawn(5, 6), []
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    for _ in range(100):
        optimizer.zero_grad()
        net(direction).sum().backward()  # always the same gradient
        optimizer.step()
        adapt.step()
        with torch.no_grad():
            copies.append(net.weight.clone())
    # Identical gradients: nothing on top, and ever longer to the next look.
    assert all(one.buffer == 0 for one in adapt.ledger)
    assert all(
        one.diversity == pytest.approx(1 / k, rel=1e-4)
        for one, k in zip(adapt.ledger[1:], [4, 8, 9, 9], strict=False)
    )
    assert adapt.ledger[1].step == 4
    assert adapt.ledger[2].step == 12
    assert adapt.ledger[-1].lookback == 9
    step = 2.0**-fraction
    stacked = torch.stack(copies)
    assert float((stacked - weight).abs().max()) < step + 1e-6
    assert torch.equal(stacked, (stacked / step).round() * step)
    se = step / 2 / math.sqrt(len(copies))
    assert float((stacked.mean(0) - weight).abs().max()) < 4.5 * se
    assert integer + fraction == adapt.ledger[0].word


def test_orthogonal_gradients_ask_for_the_whole_buffer():
    net = nn.Linear(8, 1, bias=False)
    adapt = adapting(net, Adapt(lookback=8, lookbacks=(2, 64), buffer=3, divergence=0.2))
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    for k in range(8):
        optimizer.zero_grad()
        net(torch.eye(8)[k]).sum().backward()
        optimizer.step()
        adapt.step()
    last = adapt.ledger[-1]
    assert last.diversity == pytest.approx(1)
    assert (last.buffer, last.lookback, last.bins) == (3, 4, 128)


@pytest.mark.parametrize("kind", ["language", "convolutions"])
def test_what_is_stored_is_what_the_forward_pass_computed_with(kind, tmp_path):
    def make(seed):
        return filled(Language() if kind == "language" else convolutions().eval(), seed)

    net = make(0)
    x = torch.randint(0, 13, (6, 5)) if kind == "language" else drawn(3, 3, 16, 16)
    adapt = adapting(net, Adapt(lookback=2, lookbacks=(2, 4), l1=1e-4, l2=1e-4, words=0.1))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        (net(x).square().mean() + adapt.penalty()).backward()
        optimizer.step()
        adapt.step()
    with torch.no_grad():
        last = net(x)
    twin, words = copy.deepcopy(net), adapt.words
    assert 0 < adapt.modelled_cost <= 0.5
    made = adapt.finish()
    with pytest.raises(ValueError, match="finished already"):
        adapt.finish()
    with torch.no_grad():
        assert torch.equal(net(x), last)
        assert torch.equal(twin(x), last)
        save(made, tmp_path)
        assert torch.equal(load(tmp_path, make(1))(x), last)
    for name, one in made.encoded.items():
        assert one.format.spec == words[name]
        assert one.bits == formats.get(words[name]).size(one.shape)


def test_the_penalty_and_the_cost_are_those_by_hand():
    net = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, 0.0, -0.25, 0.0], [0.0, 1.0, 0.0, 0.75]]))
    adapt = adapting(net, Adapt(l1=0.1, l2=0.01, words=2.0, divergence=0.0, bins=64))
    word = adapt.ledger[0].word
    assert (word, adapt.ledger[0].fraction) == (4, 2)
    found = adapt.penalty()
    assert found.item() == pytest.approx(0.1 * 2.5 + 0.01 * 1.875 + 2.0 * 4 / 32 * 0.5)
    assert adapt.modelled_cost == pytest.approx(4 / 32 * 0.5)
    found.backward()
    own = net.parametrizations.weight.original
    assert float(own.grad[0, 0]) == pytest.approx(0.1 + 0.01 * 2 * 0.5)


def test_what_cannot_be_is_said():
    for wrong, why in (
        ({"lookback": 1}, "lookback"),
        ({"bins": 1}, "bins"),
        ({"most": 17}, "2 to 16 bits"),
        ({"strategy": "x"}, "a strategy is"),
    ):
        with pytest.raises(ValueError, match=why):
            Adapt(**wrong)
    with pytest.raises(ValueError, match="at least one layer"):
        adapting(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="multiplications of every layer"):
        adapting(nn.Linear(2, 2), ops={})
    net = nn.Linear(2, 2)
    adapting(net)
    with pytest.raises(ValueError, match="computes its parameters"):
        adapting(net)

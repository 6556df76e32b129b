"""Scales by predictions: every share of a two-layer net tried by hand, models left as they are, recipes that keep the choice."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress  # noqa: E402
from isoloss.compress.activations import Activations, attach, detach, ranges, samples  # noqa: E402
from isoloss.compress.layers import find  # noqa: E402
from isoloss.compress.scales import input_scales, scaled, weight_scales  # noqa: E402
from isoloss.measure.criteria import SquaredError  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402

SHARES = [k / 100 for k in range(100, 0, -1)]


def net_and_data():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5))
    with torch.no_grad():
        net[0].weight[0, 0] = 4.0  # an outlier, so that the whole range is a bad one
        net[2].weight.mul_(3)
    return net, [torch.randn(40, 6), torch.randn(24, 6)]


def forward(x, first, second, net, inputs=(None, None)):
    """The net in float64 with other weights, and inputs of its layers rounded."""
    y = x.double() if inputs[0] is None else inputs[0](x.double())
    y = (y @ first.double().T + net[0].bias.double()).clamp(min=0)
    y = y if inputs[1] is None else inputs[1](y)
    return y @ second.double().T + net[2].bias.double()


def kl(own, other):
    p, q = own.softmax(-1), other.softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


def signed(w, bits, high):
    """Symmetric integers over the whole range of codes, in float64."""
    top = 2 ** (bits - 1) - 1
    step = high / top
    return (w.double() / step).round().clamp(-top - 1, top) * step


@torch.no_grad()
def test_scales_of_weights_are_the_best_of_all_that_there_are():
    net, batches = net_and_data()
    x, weights = torch.cat(batches), [net[0].weight.detach(), net[2].weight.detach()]
    found = weight_scales(net, Choice("int3/tensor/scale-fp32"), batches)
    own = forward(x, *weights, net)
    for place, name in enumerate(("0", "2")):
        own_max = float(weights[place].abs().max())
        by_hand, squares = [], []
        for share in SHARES:
            rounded = signed(weights[place], 3, own_max * share)
            squares.append(float((rounded - weights[place]).square().sum()))
            both = [rounded if i == place else w for i, w in enumerate(weights)]
            by_hand.append(kl(own, forward(x, *both, net)))
        one = found[name]
        assert [t.share for t in one.tried] == SHARES
        assert [t.difference for t in one.tried] == pytest.approx(by_hand, rel=2e-3, abs=1e-6)
        assert one.best.share == SHARES[by_hand.index(min(by_hand))]
        assert one.nearest.share == SHARES[squares.index(min(squares))]
        assert one.best.difference <= one.nearest.difference
    assert found["0"].best.share < 1


@torch.no_grad()
@pytest.mark.parametrize("format", ["int3", "int3/asym"])
def test_ranges_of_inputs_are_the_best_of_all_that_there_are(format):
    net, batches = net_and_data()
    x, weights = torch.cat(batches), [net[0].weight, net[2].weight]
    how = Activations(format, "static", "prediction")
    found = input_scales(net, how, batches)
    own = forward(x, *weights, net)
    hidden = (x @ weights[0].T + net[0].bias).clamp(min=0)
    for place, (name, seen) in enumerate((("0", x), ("2", hidden))):
        low, high = float(seen.min()), float(seen.max())
        by_hand = []
        for share in SHARES:
            if format == "int3":
                end = max(-low, high) * share
                rounding = lambda y, end=end: signed(y, 3, end)  # noqa: E731
            else:
                first, last = min(low, 0) * share, max(high, 0) * share
                step = (last - first) / 7
                zero = round(-first / step)
                rounding = lambda y, s=step, z=zero: (((y / s).round() + z).clamp(0, 7) - z) * s  # noqa: E731
            both = [rounding if i == place else None for i in range(2)]
            by_hand.append(kl(own, forward(x, *weights, net, both)))
        ends, one = found[name]
        assert [t.difference for t in one.tried] == pytest.approx(by_hand, rel=0.02, abs=2e-5)
        assert one.best.difference <= one.nearest.difference
        assert ends.high == pytest.approx(one.best.share * (high if format != "int3" else max(-low, high)))


def test_the_model_stays_and_the_choice_is_kept():
    net, batches = net_and_data()
    before = copy.deepcopy(net.state_dict())
    format = Choice("int3/g3/asym")
    found = weight_scales(net, format, batches, grid=20)
    assert all(torch.equal(before[name], own) for name, own in net.state_dict().items())
    choices = scaled(format, found)
    x = torch.cat(batches)
    with torch.no_grad():
        own = net(x).softmax(-1)
        for name, one in found.items():
            single = copy.deepcopy(net)
            made = compress(single, {name: choices[name]})
            assert made.recipe.layers[name].solver == choices[name].solver
            other = single(x).log_softmax(-1)
            difference = float((own * (own.log() - other)).sum(-1).mean())
            assert difference == pytest.approx(one.best.difference, rel=1e-3, abs=1e-7)
    numbers = Subject(net, [(b, torch.zeros(len(b), 5)) for b in batches], SquaredError())
    squared = weight_scales(net, format, batches, numbers, grid=5)
    assert squared["0"].tried[0].difference != found["0"].tried[0].difference


def test_compressed_models_round_inputs_within_such_ranges():
    net, batches = net_and_data()
    how = Activations("int3", "static", "prediction")
    own = copy.deepcopy(net)
    made = compress(own, Choice("int8"), batches, activations=how)
    assert set(made.recipe.inputs.ranges) == {"0", "2"}
    plain = copy.deepcopy(net)
    compress(plain, Choice("int8"), batches)
    wanted = input_scales(plain, how, batches)
    for name, one in made.recipe.inputs.ranges.items():
        assert one == wanted[name][0]
    by_error = Activations("int3", "static", "mse")
    attach(plain, by_error, ranges(samples(plain, find(plain).layers, batches), by_error))
    detach(plain)
    with pytest.raises(ValueError, match="input_scales"):
        ranges({}, how)


def test_what_cannot_be_scaled_is_refused():
    net, batches = net_and_data()
    with pytest.raises(ValueError, match="nearest"):
        weight_scales(net, Choice("int4", "gptq"), batches)
    with pytest.raises(TypeError, match="plain scales"):
        weight_scales(net, Choice("table3"), batches)
    with pytest.raises(ValueError, match="grid"):
        weight_scales(net, Choice("int4"), batches, grid=0)
    with pytest.raises(ValueError, match="above 0"):
        Choice("int4", "nearest(shrink=0)")

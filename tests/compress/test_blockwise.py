"""Blocks reconstructed: gains on data not learned from, gradients through the block, streams of both models, resuming."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress, formats  # noqa: E402
from isoloss.compress.blockwise import (  # noqa: E402
    Blockwise,
    Example,
    Part,
    in_place,
    mixed,
    reconstruct,
)
from isoloss.compress.layers import find  # noqa: E402
from isoloss.compress.originals import Originals  # noqa: E402
from isoloss.compress.replay import calibrating, survey  # noqa: E402
from tests.compress.models import Language, convolutions, filled  # noqa: E402

TUNE = Blockwise(steps=60, rounding=False, values=0.003)
LEARN = Blockwise(steps=80, drop=0.0)


def ids(count, seed):
    return torch.randint(0, 13, (8, 12), generator=torch.Generator().manual_seed(seed + 100 * count))


def language():
    return filled(Language(16, 2)), [ids(i, 1) for i in range(2)]


def off(model, other, x):
    with torch.no_grad():
        a, b = model(x), other(x)
    return float((a - b).square().sum() / a.square().sum())


@pytest.mark.parametrize(("spec", "solver", "how"), [("int3", "nearest", LEARN), ("int3", "nearest", TUNE), ("table3", "kmeans", TUNE), ("nf4/g8", "gptq", TUNE)])  # fmt: skip
def test_blocks_gain_on_data_that_were_not_learned_from(spec, solver, how):
    model, batches = language()
    choices = {"embedding": None, "*": Choice(spec, solver)}
    plain, learned = copy.deepcopy(model), copy.deepcopy(model)
    before = compress(plain, choices, batches)
    after = compress(learned, choices, batches, blockwise=how)
    x = ids(9, 7)
    assert off(model, learned, x) < 0.7 * off(model, plain, x)
    assert after.bits == before.bits
    assert any("learned anew" in note for note in after.recipe.notes)
    for name, one in after.encoded.items():  # the model has what is stored
        torch.testing.assert_close(find(learned)[name].matrix(), one.decode())


def test_work_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    model, batches = language()
    choices = {"embedding": None, "*": Choice("table2", "kmeans")}
    whole = compress(copy.deepcopy(model), choices, batches, blockwise=TUNE)

    def cut(what, done, of):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(copy.deepcopy(model), choices, batches, blockwise=TUNE, folder=tmp_path, progress=cut)
    again = compress(copy.deepcopy(model), choices, batches, blockwise=TUNE, folder=tmp_path)
    for name, one in whole.encoded.items():
        assert torch.equal(one.decode(), again.encoded[name].decode())
    with pytest.raises(ValueError, match="other choices"):
        compress(copy.deepcopy(model), choices, batches, folder=tmp_path)


def test_targets_are_what_the_uncompressed_model_gives():
    model, batches = language()
    layers = find(model).layers
    wanted: list[list[torch.Tensor]] = [[] for _ in batches]
    hooks = []
    with calibrating(model):
        plan = survey(model, layers, batches[0])
        for block in plan.blocks:
            hooks.append(block.modules[-1].register_forward_hook(lambda m, a, out: seen.append(out)))
        for i, x in enumerate(batches):
            seen = wanted[i]
            model(x)
        for hook in hooks:
            hook.remove()
        originals = Originals(model, plan, batches)
        layers[0].put(torch.zeros(layers[0].shape))  # the embedding, before the first block
        for stage in plan.stages:
            if stage.block:
                for i, (_, target) in enumerate(originals.through(stage)):
                    torch.testing.assert_close(target, wanted[i][stage.done])
                for layer in stage.layers:
                    layer.put(torch.zeros(layer.shape))


def test_weights_in_place_take_gradients_and_leave_no_trace():
    net = filled(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)))
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    layers = find(net).layers
    keys = list(net.state_dict())
    weights = {layer: layer.matrix().mul(2).requires_grad_() for layer in layers}
    with in_place(weights):
        inside = net(x)
        slopes = torch.autograd.grad(inside.sum(), list(weights.values()))
    assert all(slope.shape == layer.shape for slope, layer in zip(slopes, layers, strict=True))
    doubled = copy.deepcopy(net)
    for layer in find(doubled).layers:
        layer.put(2 * layer.matrix())
    torch.testing.assert_close(inside, doubled(x))
    assert list(net.state_dict()) == keys
    assert not torch.allclose(net(x), inside)


def test_a_convolutional_net_and_a_block_that_cannot_gain():
    net = filled(convolutions())
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    made = compress(
        copy.deepcopy(net), Choice("int3/tensor", "nearest"), [x], blockwise=Blockwise(steps=30, drop=0.0)
    )
    assert all(one.bits == formats.get("int3/tensor").size(one.shape) for one in made.encoded.values())
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-3, 4, (4, 4)))
    [layer] = find(linear).layers
    part = Part(
        layer,
        layer.matrix(),
        formats.get("int3/tensor")
        .given((4, 4), torch.ones(1, 1))
        .encoded(layer.matrix().add(4).to(torch.uint8)),
    )
    example = ((torch.randn(6, 4),), {})
    with torch.no_grad():
        target = linear(*example[0])
    found = reconstruct([linear], [part], [Example(example, example, target)], Blockwise(steps=20))
    assert found.before == found.after == 0
    assert found.encoded[layer.name] is part.encoded


def test_dropped_inputs_are_the_uncompressed_ones():
    one, full = (
        ((torch.zeros(1000),), {"mask": torch.ones(3), "n": 2}),
        ((torch.ones(1000),), {"mask": torch.ones(3), "n": 2}),
    )
    (x,), keywords = mixed(one, full, 0.3, torch.Generator().manual_seed(0))
    assert 250 < int(x.sum()) < 350
    assert torch.equal(keywords["mask"], torch.ones(3))
    assert mixed(one, full, 0.0, torch.Generator()) is one


def test_batches_that_judge_are_not_learned_from():
    """Batches to learn from that say nothing of the one that judges."""
    torch.manual_seed(3)
    net = nn.Linear(12, 6, bias=False)
    [layer] = find(net).layers
    part = Part(layer, layer.matrix(), formats.get("table2").encode(layer.matrix()))
    examples = []
    for wanted in (0.0, 0.0, 0.0, 1.0):
        inputs = ((torch.randn(16, 12),), {})
        with torch.no_grad():
            examples.append(Example(inputs, inputs, wanted * net(*inputs[0])))
    judged = reconstruct([net], [part], examples, TUNE)
    learned = reconstruct([net], [part], examples[:3], TUNE)
    assert judged.after > judged.before
    assert judged.encoded[layer.name] is part.encoded
    assert learned.after < learned.before


def test_padding_does_not_count():
    example = Example(
        ((), {}), ((), {}), torch.zeros(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    )
    assert example.gap(torch.ones(2, 3, 4)).shape == (3, 4)
    assert example.gap((torch.ones(2, 3, 4), None)).sum() == 12
    assert Example(((), {}), ((), {}), torch.zeros(2, 3, 4)).gap(torch.ones(2, 3, 4)).sum() == 24


def test_settings_that_do_not_fit_are_refused():
    for bad in ({"steps": 0}, {"drop": 2.0}, {"rounding": False, "values": 0.0}):
        with pytest.raises(ValueError, match=r"needed|neither"):
            Blockwise(**bad)
    with pytest.raises(ValueError, match="calibration data"):
        compress(nn.Linear(4, 4), Choice("int4"), blockwise=Blockwise())
    with pytest.raises(ValueError, match="examples"):
        reconstruct([nn.Linear(2, 2)], [], [], Blockwise())

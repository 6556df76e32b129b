"""Losses of blocks that look behind them: gradients against autograd, divergences in closed form, exact what stands behind."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress  # noqa: E402
from isoloss.compress.blockwise import Blockwise, Example, reconstruct  # noqa: E402
from isoloss.compress.layers import find  # noqa: E402
from isoloss.compress.originals import Originals  # noqa: E402
from isoloss.compress.predictions import Predictions  # noqa: E402
from isoloss.compress.relaxed import Part  # noqa: E402
from isoloss.compress.replay import calibrating, survey  # noqa: E402
from isoloss.compress.tails import Tails, outside  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from tests.compress.models import Language, Pair, Skips, filled  # noqa: E402


def ids(count, seed):
    return torch.randint(0, 13, (4, 6), generator=torch.Generator().manual_seed(seed + 100 * count))


def language():
    return filled(Language(8, 3)), [ids(i, 1) for i in range(2)]


def two_inputs(model):
    generator = torch.Generator().manual_seed(2)
    return model, [tuple(torch.randn(4, 8, generator=generator) for _ in range(2)) for _ in range(2)]


def all_zero(layers):
    for layer in layers:
        layer.put(torch.zeros(layer.shape))


@pytest.mark.parametrize(
    "made", [language, lambda: two_inputs(filled(Pair())), lambda: (filled(Skips()), [torch.randn(4, 8)] * 2)],
    ids=["tied head", "encoder and decoder", "skips"],
)  # fmt: skip
def test_behind_every_block_stands_the_uncompressed_model(made):
    model, batches = made()
    layers = find(model).layers
    with calibrating(model):
        wanted = [model(*x) if isinstance(x, tuple) else model(x) for x in batches]
        plan = survey(model, layers, batches[0])
        originals = Originals(model, plan, batches)
        tails = Tails(model, plan, Predictions(batches), outside(model, plan))
        for stage in plan.stages:
            if stage.block:
                full = originals.through(stage)
                all_zero(stage.layers)
                for i, (_, target) in enumerate(full):
                    found = tails.predicted(stage.done, i, target, originals.outputs[i].__getitem__)
                    torch.testing.assert_close(found, wanted[i])
            else:
                all_zero(stage.layers)


def test_squared_gradients_are_those_of_the_loss_at_the_blocks_output():
    model, batches = language()
    targets = [ids(i, 5) for i in range(2)]
    targets[0][1, 2:] = -100
    subject = Subject(model, list(zip(batches, targets, strict=True)), CrossEntropy())
    own, at = copy.deepcopy(model), None
    with calibrating(model):
        plan = survey(model, find(model).layers, batches[0])
        originals = Originals(model, plan, batches)
        tails = Tails(model, plan, Predictions(batches, subject), outside(model, plan))
        for stage in (stage for stage in plan.stages if stage.block):
            for i, (_, target) in enumerate(originals.through(stage)):
                found = tails.squares(stage.done, i, target, originals.outputs[i].__getitem__)
                with torch.enable_grad():
                    x = own.embedding(batches[i])
                    for k, block in enumerate(own.blocks):
                        x = block(x, bias=0.1 * k)
                        at = x if k == stage.done else at
                    logits = own.head(own.norm(x))
                    loss = nn.functional.cross_entropy(
                        logits.flatten(0, 1), targets[i].flatten(), ignore_index=-100, reduction="sum"
                    )
                [slope] = torch.autograd.grad(loss, [at])
                torch.testing.assert_close(found, slope.square())
    assert all(p.requires_grad for p in model.parameters())


def test_without_a_loss_squares_are_the_curvature_of_the_divergence():
    """Over many signs their mean is the diagonal of J' (diag p - p p') J, here of a linear tail."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    x = torch.randn(2, 3)
    many = x.repeat(20000, 1)
    with calibrating(model):
        plan = survey(model, find(model).layers, many)
        target = Originals(model, plan, [many]).through(plan.stages[0])[0][1]
        found = Tails(model, plan, Predictions([many]), {}).squares(0, 0, target, lambda j: None)
        p = model(x).softmax(-1)
    jacobian = model[1].weight.detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    wanted = torch.einsum("ci,bcd,di->bi", jacobian, curvature, jacobian)
    torch.testing.assert_close(found.reshape(-1, 2, 4).mean(0), wanted, rtol=0.05, atol=1e-4)


def test_divergence_in_closed_form():
    z, other = (
        torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 0.0]]),
    )
    for t in (1.0, 4.0):
        p, q = (z / t).softmax(-1), (other / t).softmax(-1)
        each = (p * (p / q).log()).sum(-1)
        torch.testing.assert_close(Predictions([z]).difference(z, other, 0, t), each.mean())
    targets = torch.tensor([-100, 0])
    counted = Predictions([z], Subject(nn.Identity(), [(z, targets)], CrossEntropy()))
    torch.testing.assert_close(counted.difference(z, other, 0, 4.0), each[1])
    numbers = Predictions([z], Subject(nn.Identity(), [(z, z)], SquaredError()))
    assert float(numbers.difference(z, other, 0)) == (1 + 4 + 4 + 25) / 4
    padded = Predictions([{"x": z, "attention_mask": torch.tensor([[1, 0], [1, 1]])}])
    wide = torch.randn(2, 2, 3)
    assert padded.rows(wide, 0).tolist() == [[True, False], [True, True]]


def test_losses_of_an_example():
    target, out = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)
    counts = torch.tensor([[True, True, False], [True, False, False]])
    weights = torch.arange(24.0).reshape(2, 3, 4)
    example = Example(((), {}), ((), {}), target, counts, weights, lambda got, t: got.sum() / t)
    assert float(example.error(out, Blockwise())) == 4 * 12
    assert float(example.error(out, Blockwise(loss="fisher"))) == 4 * float(weights[counts].sum())
    found = float(example.error(out, Blockwise(loss="prediction", predicted=2.0, temperature=3.0)))
    assert found == pytest.approx(4 * 12 / 6 + 2 * 48 / 3)
    picture = Example(((), {}), ((), {}), torch.zeros(2, 3, 4, 5), behind=lambda got, t: torch.zeros(()))
    assert float(picture.error(torch.ones(2, 3, 4, 5), Blockwise(loss="prediction"))) == 3
    for loss in ("fisher", "prediction"):
        with pytest.raises(ValueError, match="got n"):
            Example(((), {}), ((), {}), target).error(out, Blockwise(loss=loss))


def test_equal_weights_are_the_plain_loss():
    torch.manual_seed(1)
    net, x = nn.Linear(12, 6, bias=False), ((torch.randn(16, 12),), {})
    [layer] = find(net).layers
    with torch.no_grad():
        target = net(*x[0])
    part = Part(layer, layer.matrix(), encoded_as("int3", layer))
    made = [
        reconstruct([net], [part], [Example(x, x, target, None, torch.full((16, 6), 3.0))], Blockwise(loss=loss, steps=40))
        for loss in ("mse", "fisher")
    ]  # fmt: skip
    assert made[0].after == pytest.approx(made[1].after, rel=1e-4)
    torch.testing.assert_close(made[0].encoded["model"].codes(), made[1].encoded["model"].codes())


def encoded_as(spec, layer):
    from isoloss.compress import formats

    return formats.get(spec).encode(layer.matrix())


def test_an_output_that_does_not_matter_is_given_up():
    """Two outputs, of which the loss sees one: its error falls at the cost of the other's."""
    generator = torch.Generator().manual_seed(4)
    net = filled(nn.Sequential(nn.Linear(16, 2, bias=False)))
    shared = net[0].weight
    x = torch.randn(64, 16, generator=generator)
    [layer] = find(net).layers
    inputs = ((x,), {})
    with torch.no_grad():
        target = net(x)
    encoded = encoded_as("int2/tensor/scale-fp32", layer)  # one scale for both rows
    weights = torch.tensor([1.0, 0.0]).expand(64, 2)
    found = {
        loss: reconstruct([net], [Part(layer, layer.matrix(), encoded)], [Example(inputs, inputs, target, None, weights)],
                          Blockwise(loss=loss, steps=200, rounding=False, values=0.01)).encoded["0"].decode()
        for loss in ("mse", "fisher")
    }  # fmt: skip
    errors = {loss: ((shared.detach() - q) @ x.T).square().sum(1) for loss, q in found.items()}
    assert errors["fisher"][0] < errors["mse"][0]
    assert errors["fisher"][1] > errors["mse"][1]


@pytest.mark.parametrize("loss", ["fisher", "prediction"])
def test_whole_models_gain_with_and_without_a_subject(loss, tmp_path):
    model, batches = filled(Language(16, 2)), [ids(i, 1) for i in range(4)]
    how = Blockwise(loss=loss, steps=40, drop=0.0)
    choices = {"embedding": Choice("int4"), "*": Choice("int3", "nearest")}
    plain = copy.deepcopy(model)
    compress(plain, choices, batches)
    x = ids(9, 7)
    for with_loss in (True, False):
        own = copy.deepcopy(model)
        targets = [ids(i, 3) for i in range(4)]
        subject = (
            Subject(own, list(zip(batches, targets, strict=True)), CrossEntropy()) if with_loss else None
        )
        made = compress(
            own, choices, batches, blockwise=how, subject=subject, folder=tmp_path / str(with_loss)
        )
        with torch.no_grad():
            logits = [net(x).log_softmax(-1) for net in (model, plain, own)]
        before, after = ((logits[0].exp() * (logits[0] - one)).sum(-1).mean() for one in logits[1:])
        assert after < before
        assert any("learned anew" in note for note in made.recipe.notes)
        again = copy.deepcopy(model)
        compress(
            again, choices, batches, blockwise=how, folder=tmp_path / str(with_loss),
            subject=subject and Subject(again, subject.batches, subject.criterion),
        )  # fmt: skip
        torch.testing.assert_close(again(x), own(x))


def test_subjects_and_settings_that_do_not_fit_are_refused():
    model, batches = language()
    subject = Subject(model, [(batches[0], batches[0])], CrossEntropy())
    with pytest.raises(ValueError, match="calibration batches"):
        compress(model, Choice("int4"), batches, blockwise=Blockwise(), subject=subject)
    with pytest.raises(ValueError, match="another model"):
        compress(copy.deepcopy(model), Choice("int4"), batches, blockwise=Blockwise(), subject=subject)
    for bad in ({"loss": "kl"}, {"temperature": 0.0}, {"predicted": -1.0}):
        with pytest.raises(ValueError, match=r"needed|needs|loss"):
            Blockwise(**bad)

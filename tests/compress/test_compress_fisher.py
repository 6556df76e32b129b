"""Squared gradients against those of torch.func, example by example."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.func import functional_call, grad, vmap  # noqa: E402

from isoloss.compress.fisher import fisher  # noqa: E402
from isoloss.compress.layers import find  # noqa: E402
from isoloss.measure import Subject  # noqa: E402
from tests.compress.models import Experts, Language, convolutions, filled  # noqa: E402


def loss(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@pytest.mark.parametrize(
    ("make", "x", "y"),
    [
        (Language, torch.randint(0, 13, (5, 4)), torch.randint(0, 13, (5, 4))),
        (convolutions, torch.randn(5, 3, 9, 9), torch.randint(0, 5, (5,))),
    ],
    ids=["language", "convolutions"],
)
def test_against_gradients_of_single_examples(make, x, y):
    net = filled(make()).eval()
    names = dict(net.named_parameters())

    def one(parameters, x, y):
        return loss(functional_call(net, parameters, (x[None],)), y[None])

    expected = vmap(grad(one), in_dims=(None, 0, 0))({k: v.detach() for k, v in names.items()}, x, y)
    net.train()
    wanted = {name: p.requires_grad for name, p in net.named_parameters()}
    found = fisher(Subject(net, [(x[:3], y[:3]), (x[3:], y[3:])], loss))
    assert net.training
    assert {name: p.requires_grad for name, p in net.named_parameters()} == wanted
    assert all(p.grad is None for p in net.parameters())
    for layer in find(net).layers:
        own = expected[layer.path].square().mean(0)
        torch.testing.assert_close(found[layer.name], own.reshape(own.shape[0], -1), rtol=1e-4, atol=1e-9)


def test_experts_get_their_part_in_the_layout_of_the_matrix():
    x, y = torch.randn(6, 6), torch.randint(0, 12, (6,))
    results = []
    for transposed in (False, True):
        net = filled(Experts(transposed=transposed))
        if transposed:
            with torch.no_grad():
                net.up_proj.copy_(filled(Experts()).up_proj.mT)
                net.router.weight.copy_(filled(Experts()).router.weight)
        results.append(fisher(Subject(net, [(x, y)], loss)))
    for i in range(3):
        torch.testing.assert_close(results[0][f"up_proj.{i}"], results[1][f"up_proj.{i}"])
    assert results[0]["up_proj.0"].shape == (12, 6)
    assert not results[0]["router"].any()  # its choice has no gradient


def test_a_gradient_that_is_not_finite_is_refused_by_name():
    net = torch.nn.Linear(2, 2)
    subject = Subject(net, [(torch.ones(1, 2), None)], lambda out, _: out.sum() * float("inf"))
    with pytest.raises(ValueError, match="a gradient of weight is NaN or infinite"):
        fisher(subject)

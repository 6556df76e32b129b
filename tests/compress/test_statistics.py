"""Statistics against inputs that hooks caught, summed in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.compress.layers import find  # noqa: E402
from isoloss.compress.statistics import Collector  # noqa: E402
from tests.compress.models import Experts, Language, convolutions, filled  # noqa: E402


def collected(net, batches):
    collector = Collector(find(net).layers)
    for x in batches:
        with torch.no_grad(), collector.watching():
            net(x)
    return collector.statistics()


def hooked(net, names, batches):
    """Name -> all inputs that the module of that name got."""
    caught = {name: [] for name in names}
    hooks = [
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, args, to=caught[name]: to.append(args[0].clone())
        )
        for name in names
    ]
    with torch.no_grad():
        for x in batches:
            net(x)
    for hook in hooks:
        hook.remove()
    return caught


def moments(rows):
    rows = rows.double()
    return rows.T @ rows / len(rows)


def close(found, rows, group=0, groups=1):
    width = rows.shape[1]
    own = slice(group * width, (group + 1) * width)
    assert found.count == len(rows)
    assert found.second.shape == (groups, width, width)
    torch.testing.assert_close(found.second[group].double(), moments(rows), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean[own].double(), rows.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.low[own], rows.amin(0))
    torch.testing.assert_close(found.high[own], rows.amax(0))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_linear_layers_of_a_language_model():
    net = filled(Language())
    batches = [torch.randint(0, 13, (4, 7)), torch.randint(0, 13, (2, 5))]
    found = collected(net, batches)
    names = [f"blocks.{i}.{part}" for i in range(3) for part in ("up", "gate", "down")]
    for name, inputs in hooked(net, [*names, "head"], batches).items():
        close(found[name if name != "head" else "embedding"], torch.cat([x.flatten(0, 1) for x in inputs]))
    ids = torch.cat([x.flatten() for x in batches])
    assert torch.equal(found["embedding"].counts, torch.bincount(ids, minlength=13))
    assert found["blocks.0.up"].second is found["blocks.0.gate"].second  # one input, one matrix
    assert found["blocks.0.up"].second is not found["blocks.1.up"].second


@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=2, groups=2),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(4, 2, 1),
        nn.Conv2d(4, 2, (1, 5), padding="same"),
    ],
    ids=str,
)
def test_convolutions_against_unfold(net):
    batches = [normal(3, net.in_channels, 9, 8), normal(2, net.in_channels, 10, 9, seed=1)]
    [found] = collected(net, batches).values()
    k, d = net.kernel_size, net.dilation
    padding = (0, 2) if net.padding == "same" else net.padding
    rows = [F.unfold(x, k, d, padding, net.stride) for x in batches]
    groups = net.groups
    for group in range(groups):
        own = [x.unflatten(1, (groups, -1))[:, group].permute(0, 2, 1).flatten(0, 1) for x in rows]
        close(found, torch.cat(own), group, groups)


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Conv1d(4, 6, 3, padding=1, bias=False), normal(3, 4, 9)),
        (nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 2), groups=2, bias=False), normal(3, 2, 4, 5, 6)),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False), normal(2, 4, 6, 6)),
    ],
    ids=["1d", "3d", "circular"],
)
def test_the_moments_give_the_energy_of_a_convolutions_output(net, x):
    [layer], [found] = find(net).layers, collected(net, [x]).values()
    weight = layer.matrix().double().reshape(layer.groups, -1, layer.shape[1])
    energy = torch.einsum("goi,gij,goj->", weight, found.second.double(), weight)
    torch.testing.assert_close(
        energy, net(x).detach().double().square().sum() / found.count, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_an_expert_sees_its_own_rows(transposed):
    net = filled(Experts(transposed=transposed))
    x = normal(50, 6)
    found = collected(net, [x[:20], x[20:]])
    goes = net.router(x).argmax(-1)
    for i in range(3):
        close(found[f"up_proj.{i}"], x[goes == i])


def test_a_batch_of_products_with_all_experts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.expert = nn.Parameter(normal(3, 5, 4))

        def forward(self, x):
            return torch.einsum("eti,eoi->eto", x, self.expert)

    x = normal(3, 7, 4)
    found = collected(Net(), [x])
    for i in range(3):
        close(found[f"expert.{i}"], x[i])


def test_functions_are_seen_as_modules_are():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x):
            return F.linear(x, self.a.weight) + (self.b.weight @ x.T).T

    x = normal(9, 4)
    found = collected(Net(), [x])
    close(found["a"], x)
    close(found["b"], x)


def test_attention_with_its_own_projections():
    net = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = normal(3, 5, 8)
    collector = Collector(find(net).layers)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), collector.watching():
            net(x, x, x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    close(collector.statistics()["in_proj_weight"], x.flatten(0, 1))
    assert collector.statistics()["out_proj"].count == 15


def test_layers_share_sums_only_while_they_share_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 2) for _ in range(3))

        def forward(self, x):
            return self.a(x[0]) + self.b(x[0]) + self.c(x[1])

    net = Net()
    x, y = normal(5, 4), normal(5, 4, seed=1)
    found = collected(net, [(x, x), (x, y), (y, y)])
    assert found["a"].second is found["b"].second
    close(found["a"], torch.cat([x, x, y]))
    close(found["c"], torch.cat([x, y, y]))


def test_an_input_that_was_changed_in_place_is_another_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x.clone()
            self.a(x)
            return self.b(x.mul_(2))

    x = normal(6, 4)
    found = collected(Net(), [x])
    close(found["a"], x)
    close(found["b"], 2 * x)


def test_wide_inputs_are_summed_in_tiles():
    net = nn.Linear(500, 2)
    x = normal(30, 500)
    close(collected(net, [x])["model"], x)


def test_layers_that_nothing_comes_to_have_no_statistics():
    net = convolutions()
    net.append(nn.Identity())
    net.unused = nn.Linear(3, 3)
    found = Collector(find(net.unused).layers)
    with torch.no_grad(), found.watching():
        nn.Linear(3, 3)(normal(2, 3))
    assert found.statistics() == {}


def test_inputs_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match="the inputs of model hold NaN"):
        collected(nn.Linear(2, 2), [torch.tensor([[1.0, float("nan")]])])


def test_a_batch_that_failed_is_forgotten():
    net = nn.Linear(2, 2)
    collector = Collector(find(net).layers)

    def failing():
        with torch.no_grad(), collector.watching():
            net(torch.ones(1, 2))
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    with torch.no_grad(), collector.watching():
        net(torch.ones(3, 2))
    assert collector.statistics()["model"].count == 3


def test_padding_does_not_count():
    from isoloss.compress.statistics import counted

    net = filled(Language())
    ids = torch.randint(0, 13, (3, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    collector = Collector(find(net).layers)
    with torch.no_grad(), collector.watching(counted({"input_ids": ids, "attention_mask": mask})):
        net(ids)
    found = collector.statistics()
    [x] = hooked(net, ["blocks.1.down"], [ids])["blocks.1.down"]
    close(found["blocks.1.down"], x[mask.bool()])
    assert torch.equal(found["embedding"].counts, torch.bincount(ids[mask.bool()], minlength=13))
    assert counted({"attention_mask": torch.ones(2, 3)}) is None
    assert counted(ids) is None

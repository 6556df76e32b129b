"""Training with rounded weights: gradients in closed form and as torch has them, the stored bits are those of the forward pass."""

from __future__ import annotations

import copy
import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress, find, formats, load, save  # noqa: E402
from isoloss.compress.activations import Activations, Range, fake_round, rounded_inputs  # noqa: E402
from isoloss.compress.compressed import Compressed  # noqa: E402
from isoloss.compress.recipe import Recipe, identity  # noqa: E402
from isoloss.compress.training.aware import Aware, prepare  # noqa: E402
from isoloss.compress.training.inputs import RoundedInput  # noqa: E402
from isoloss.compress.training.steps import Steps, started  # noqa: E402
from tests.compress.models import Experts, Language, convolutions, filled  # noqa: E402


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "spec", ["int3", "int2/narrow", "int4/asym", "int3/tensor", "fp4-e2m1", "nf4/channel"]
)
def test_the_gradient_of_a_learned_scale_is_the_closed_formula(spec):
    format = formats.get(f"{spec}/scale-fp32")
    weight = drawn(5, 24).requires_grad_()
    start = started(format, weight.detach())
    steps = Steps(format, start)
    with torch.no_grad():
        steps.scale.mul_(0.7)  # so that some numbers are clipped
    toward = drawn(5, 24, seed=1)
    (steps(weight) * toward).sum().backward()
    grid = steps.grid(weight)
    scale, zero = grid.scale.double(), 0 if grid.zero is None else grid.zero.double()
    v = weight.detach().double() / scale
    everything = grid.decode(torch.arange(2**format.bits).repeat(5, 2)[:, :24]).double() / scale
    if spec == "int2/narrow":
        everything = everything.clamp(-1, 1)
    low, high = everything.amin(1, keepdim=True), everything.amax(1, keepdim=True)
    if spec == "int3/tensor":
        low, high = low.min(), high.max()
    inside = (v >= low) & (v <= high)
    assert 0 < float(inside.double().mean()) < 1
    nearest = grid.decode(grid.encode(weight)).double() / scale
    each = toward.double() * torch.where(inside, nearest - v, nearest)
    top = {"int3": 3, "int2/narrow": 1, "int4/asym": 15, "int3/tensor": 3, "fp4-e2m1": 6, "nf4/channel": 1}[
        spec
    ]
    n = 24 if spec != "int3/tensor" else 120
    want = (each.sum() if spec == "int3/tensor" else each.sum(1)) / math.sqrt(n * top)
    assert torch.allclose(steps.scale.grad.double().flatten(), want.flatten(), rtol=1e-4, atol=1e-5)
    assert torch.equal(weight.grad, toward * inside)
    assert zero is not None
    # The smooth part, codes held where they are: q(v0) + v - v0 within the range, the end beyond it.
    eps = 1e-6

    def smooth(s):
        x = weight.detach().double()
        return (toward * torch.where(inside, s * (nearest - v) + x, s * nearest)).sum(1)

    slope = (smooth(scale + eps) - smooth(scale - eps)) / (2 * eps)
    assert torch.allclose(
        slope.flatten() if spec != "int3/tensor" else slope.sum(),
        each.sum(1) if spec != "int3/tensor" else each.sum(),
        rtol=1e-4,
        atol=1e-6,
    )


def test_weights_and_scales_have_the_gradients_of_torch():
    weight = drawn(6, 40)
    scale = torch.full((6,), 0.4)
    v = weight / scale[:, None]
    # torch clips after rounding: numbers within half a step beyond the ends are apart, as documented.
    weight = torch.where((v > 3) & (v < 3.5) | (v < -4) & (v > -4.5), 0.1, weight)
    factor = 1 / math.sqrt(40 * 3)
    theirs, own_scale = weight.clone().requires_grad_(), scale.clone().requires_grad_()
    toward = drawn(6, 40, seed=2)
    out = torch._fake_quantize_learnable_per_channel_affine(
        theirs, own_scale, torch.zeros(6), 0, -4, 3, factor
    )
    (out * toward).sum().backward()
    format = formats.get("int3/scale-fp32")
    ours = weight.clone().requires_grad_()
    steps = Steps(format, format.given((6, 40), scale))
    found = steps(ours)
    (found * toward).sum().backward()
    assert torch.allclose(found, out, atol=1e-6)
    assert torch.equal(ours.grad, theirs.grad)
    assert torch.allclose(steps.scale.grad.flatten(), own_scale.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("group", ["", "/tensor", "/g5"])
def test_the_gradient_of_a_table_is_exact(group):
    format = formats.get(f"table2{group}")
    weight = drawn(3, 12)
    steps = Steps(format, started(format, weight))
    toward = drawn(3, 12, seed=3)
    (steps(weight) * toward).sum().backward()
    codes, n = steps.grid(weight).encode(weight), steps.count
    rows = steps.table.shape[0]
    bounds = steps.grid(weight).groups
    for r, (g, (a, b)), k in itertools.product(range(rows), enumerate(bounds), range(4)):
        own = slice(None) if rows == 1 else slice(r, r + 1)
        want = float((toward[own, a:b] * (codes[own, a:b] == k)).sum()) / math.sqrt(float(n[g]))
        assert float(steps.table.grad[r, g, k]) == pytest.approx(want, abs=1e-5)


def test_inputs_have_the_gradients_of_torch_and_the_numbers_of_fake_round():
    x, toward = drawn(4, 30).abs() * 1.5, drawn(4, 30, seed=4)
    high = 3 * 0.61
    v = x / 0.61
    x = torch.where((v > 3) & (v < 3.5), 0.1, x)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    rounded = RoundedInput("int3", Range(-high, high))
    out = rounded(ours)
    (out * toward).sum().backward()
    scale, factor = torch.tensor([0.61], requires_grad=True), 1 / math.sqrt(30 * 3)
    other = torch._fake_quantize_learnable_per_tensor_affine(theirs, scale, torch.zeros(1), -4, 3, factor)
    (other * toward).sum().backward()
    assert torch.allclose(out, other, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-6)
    assert torch.equal(ours.grad == 0, theirs.grad == 0)
    # The range ends at three steps.
    assert float(rounded.high.grad) == pytest.approx(float(scale.grad) / 3, rel=1e-4)
    for spec, low in (("int4", -1.3), ("int4/asym", -0.4), ("int3/narrow", -1.3), ("fp8-e4m3", -1.3)):
        y = drawn(200, seed=5)
        own = RoundedInput(spec, Range(low, 1.3))
        want = fake_round(y, torch.tensor(low), torch.tensor(1.3), spec)
        assert torch.equal(own(y.reshape(2, 100)).flatten(), want)


SPECS = ["int2", "int3/g5/asym", "int1/bipolar", "int4/mse", "fp4-e2m1", "mxfp4", "nvfp4", "nf4", "fixed1.4", "table2",
         "fp4-e2m1/g4/scale-m2", "fp8-e4m3/tensor"]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("steps", ["learned", "fitted", "held"])
def test_what_is_stored_is_what_the_forward_pass_computed_with(spec, steps, tmp_path):
    if spec == "table2" and steps == "fitted":
        with pytest.raises(ValueError, match="fitted at every step"):
            prepare(nn.Linear(4, 4), spec, Aware(steps))
        return
    net = filled(nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)), 1)
    x, y = drawn(32, 12), drawn(32, 3, seed=1)
    training = prepare(net, spec, Aware(steps))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(4):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        used, out = [net[0].weight.clone(), net[2].weight.clone()], net(x)
    made = training.finish()
    assert sorted(net.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert torch.equal(net(x), out)
    save(made, tmp_path)
    again = load(tmp_path, filled(nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)), 2))
    assert torch.equal(again(x), out)
    for layer, want in zip(("0", "2"), used, strict=True):
        assert torch.equal(made.encoded[layer].decode(), want)
        assert made.encoded[layer].bits == formats.get(spec).size(tuple(want.shape))


@pytest.mark.parametrize("kind", ["language", "convolutions", "experts", "attention"])
def test_all_kinds_of_layers_train_and_parameters_stay_the_same_objects(kind):
    if kind == "language":
        model, x = (
            filled(Language()),
            torch.randint(0, 13, (6, 5), generator=torch.Generator().manual_seed(0)),
        )
    elif kind == "convolutions":
        model, x = filled(convolutions()).eval(), drawn(4, 3, 16, 16)
    elif kind == "experts":
        model, x = filled(Experts(transposed=True)), drawn(24, 6)
    else:
        model, x = filled(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)), drawn(2, 5, 8)
    before = {name: p for name, p in model.named_parameters()}
    names = [layer.name for layer in find(model).layers]
    training = prepare(model, "int4/g4", Aware(inputs=None if kind == "experts" else "int8", ranges="token"))
    ids = {id(p) for p in model.parameters()}
    assert all(id(p) in ids for p in before.values())
    out = model(x)
    out.square().mean().backward()
    weights = [p for name, p in before.items() if p.ndim > 1 and "router" not in name]  # of an argmax
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in weights)
    assert all(
        p.grad is not None for name, own in training.rounders.items() if name != "router" for p in own.learned
    )
    torch.optim.SGD(model.parameters(), 1e-3).step()
    with torch.no_grad():
        last = model(x)
    if kind == "language":
        assert torch.equal(model.head.weight, model.embedding.weight)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(x), last)
    made = training.finish()
    with torch.no_grad():
        assert torch.equal(twin(x), last)  # a copy goes on
    assert list(made.encoded) == names
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in before.items()}
    with (
        torch.no_grad(),
        rounded_inputs(model, Activations("int8", "token")) if kind != "experts" else torch.no_grad(),
    ):
        # Attention takes another kernel for the same weights.
        assert (
            torch.allclose(model(x), last, atol=1e-5) if kind == "attention" else torch.equal(model(x), last)
        )


def test_training_begins_where_a_solver_ended():
    net = filled(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), 3)
    x = drawn(64, 16)
    for choice in (
        Choice("int3/g8/asym", "gptq"),
        Choice("table2", "lut-feedback"),
        Choice("fp4-e2m1", "gptq"),
    ):
        own = copy.deepcopy(net)
        made = compress(own, choice, [x])
        with torch.no_grad():
            want = own(x)
            training = prepare(own, made)
            assert torch.equal(own(x), want)
        again = training.finish()
        for name, one in made.encoded.items():
            assert all(torch.equal(one.parts[key], again.encoded[name].parts[key]) for key in one.parts)
    with pytest.raises(ValueError, match="no layer '0', which was compressed"):
        prepare(nn.Linear(2, 2), made)


def test_one_layer_reaches_the_best_of_all_codes_in_most_draws():
    """Least squares on four weights of two bits with a held step, against all 256 choices."""
    reached, nearest = 0, 0
    for seed in range(12):
        mixing = drawn(4, 4, seed=seed) * 0.5 + torch.eye(4)
        x, weight = drawn(64, 4, seed=100 + seed) @ mixing, drawn(1, 4, seed=200 + seed)
        y = x @ weight.T
        levels = torch.tensor([-2.0, -1.0, 0.0, 1.0]) * 0.75
        every = torch.cartesian_prod(levels, levels, levels, levels)
        losses = (x @ every.T - y).square().mean(0)
        net = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            net.weight.copy_(weight)
        format = formats.get("int2/tensor/scale-fp32")
        grid = format.given((1, 4), torch.tensor([[0.75]]))
        start = Compressed(
            {"model": grid.encoded(grid.encode(weight))}, {}, Recipe(identity(net), {}, {}), 0.0
        )
        training = prepare(net, start, Aware("held"))
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        best = math.inf
        for step in range(100):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 - step / 100)
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            best = min(best, loss.item())
            loss.backward()
            optimizer.step()
            nearest += step == 0 and loss.item() <= float(losses.min()) * (1 + 1e-5)
        reached += best <= float(losses.min()) * (1 + 1e-5)
        training.finish()
    assert reached >= 9, (reached, nearest)
    assert reached > nearest


def test_ranges_are_learned_from_calibration_and_kept_for_inference():
    net = filled(nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)), 5)
    x, y = drawn(64, 10), drawn(64, 4, seed=9)
    training = prepare(net, "int8", Aware(inputs="int4/asym"), [x])
    assert len(training.steps) == 2 + 4
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    before = dict(training.ranges)
    for _ in range(5):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        last = net(x)
    ranges = training.ranges
    assert ranges != before
    training.finish()
    with torch.no_grad(), rounded_inputs(net, Activations("int4/asym", "static"), ranges):
        assert torch.equal(net(x), last)


def test_norms_keep_their_statistics_when_frozen_and_are_measured_anew_when_asked():
    x = drawn(64, 6) * 3 + 1

    def make():
        return nn.Sequential(filled(nn.Linear(6, 5), 2), nn.BatchNorm1d(5))

    net = make()
    training = prepare(net, "int2", Aware(norms="frozen"))
    net.train()
    net(x).sum().backward()
    assert float(net[1].running_mean.abs().max()) == 0
    training.renormalise([x[:32], x[32:]])
    out = net[0](x)
    parts = [out[:32], out[32:]]
    assert torch.allclose(net[1].running_mean, torch.stack([p.mean(0) for p in parts]).mean(0), atol=1e-5)
    training.finish()
    assert not net[1]._forward_pre_hooks
    net = make()
    prepare(net, "int2")
    net.train()
    net(x)
    assert float(net[1].running_mean.abs().max()) > 0


def test_a_checkpoint_of_a_training_goes_on():
    def make(seed):
        net = filled(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), seed)
        return net, prepare(net, "int3", Aware(inputs="int8"), [drawn(8, 6)])

    (net, training), (other, _) = make(1), make(2)
    other.load_state_dict(net.state_dict())
    x = drawn(9, 6)
    with torch.no_grad():
        assert torch.equal(net(x), other(x))
    training.finish()
    with pytest.raises(ValueError, match="finished already"):
        training.finish()


def test_what_cannot_be_is_said():
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no layer is named 'x'"):
        prepare(net, {"x": "int4"})
    with pytest.raises(TypeError, match="one code for each weight"):
        prepare(net, "vq2-16")
    with pytest.raises(ValueError, match="need calibration data"):
        prepare(net, "int4", Aware(inputs="int8"))
    with pytest.raises(ValueError, match="steps are learned"):
        Aware("fixed")
    with pytest.raises(ValueError, match="norms are"):
        Aware(norms="batch")
    training = prepare(net, "int4")
    with pytest.raises(ValueError, match="computes its parameters from others"):
        prepare(net, "int4")
    with torch.no_grad():
        net[0].parametrizations.weight.original[0, 0] = math.nan
    with pytest.raises(ValueError, match="became NaN"):
        training.finish()


def test_a_layer_called_by_name_rounds_its_inputs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x):
            return self.layer(input=x)

    torch.manual_seed(0)
    net, x = Named(), torch.randn(16, 8)
    training = prepare(net, "int4", Aware(inputs="int4", ranges="token"))
    with torch.no_grad():
        found = net(x)
    training.finish()
    with torch.no_grad(), rounded_inputs(net, Activations("int4")):
        assert torch.equal(net(x), found)


def test_what_is_refused_changes_nothing_and_norms_train_again_afterwards():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    made = compress(copy.deepcopy(net), Choice("int2", "nearest"))
    before = {name: own.clone() for name, own in net.state_dict().items()}
    with pytest.raises(ValueError, match="calibration data"):
        prepare(net, made, Aware(inputs="int8"))
    assert all(torch.equal(own, before[name]) for name, own in net.state_dict().items())
    net.train()
    training = prepare(net, "int4", Aware(norms="frozen"))
    net(torch.randn(4, 8))
    assert not net[1].training
    training.finish()
    assert net[1].training

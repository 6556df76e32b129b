"""Traces per tensor against diagonals of dense Hessians, and what counts as piecewise linear."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.measure import traces as module  # noqa: E402
from isoloss.measure.activations import activation_traces  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.linearity import bent  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from isoloss.measure.traces import gauss_newton_traces, layer_traces, not_gauss_newton, pooled  # noqa: E402
from tests.oracles import curvature as dense  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_tensor(subject, matrix):
    diagonal = matrix.diagonal()
    sizes = [p.numel() for p in subject.parameters().values()]
    return dict(zip(subject.parameters(), (float(part.sum()) for part in diagonal.split(sizes)), strict=True))


def same(found, true, relative=1e-10):
    assert found.values.keys() == true.keys()
    size = sum(map(abs, true.values()))
    for name, value in true.items():
        assert abs(found.values[name] - value) < relative * size, name
    assert abs(found.total - sum(true.values())) < relative * size


RELU_NETS = {
    "mlp": lambda: dense.mlp(nn.ReLU),
    "cnn": lambda: Subject(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2),
            nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        ).double(),
        dense.batches(lambda n: torch.randn(n, 2, 6, 6).double(), (4, 3), 3),
        CrossEntropy(),
    ),
    "residual": lambda: Subject(
        Residual().double(), [(torch.randn(5, 4).double(), torch.randn(5, 2).double())], SquaredError()
    ),
}  # fmt: skip


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.slope = nn.PReLU()

    def forward(self, x):
        return self.c(F.relu6(x + self.b(self.slope(self.a(x)))).abs())


@pytest.mark.parametrize("name", RELU_NETS)
@pytest.mark.parametrize("numbers", [1 << 22, 200])
def test_piecewise_linear_nets_have_exact_traces_of_the_hessian(name, numbers, monkeypatch):
    """Also where batches are cut into pieces."""
    monkeypatch.setattr(module, "NUMBERS", numbers)
    torch.manual_seed(0)
    subject = RELU_NETS[name]()
    if name == "residual":  # PReLU's slope is no layer that hooks know
        assert "PReLU" in not_gauss_newton(subject)
        subject.model.slope.requires_grad_(False)
    found = layer_traces(subject)
    assert found.how.startswith("exact")
    assert not any(found.errors.values())
    same(found, by_tensor(subject, dense.dense_hessian(subject)))


@pytest.mark.parametrize("name", dense.SUBJECTS)
def test_gauss_newton_traces_are_exact_for_sequences_too(name):
    subject = dense.SUBJECTS[name]()
    if name == "encoder":
        with pytest.raises(TypeError, match="MultiheadAttention"):
            gauss_newton_traces(subject, None)
        return
    if name == "transformer":
        subject.model.places.requires_grad_(False)  # a parameter of no layer
    same(gauss_newton_traces(subject, None), by_tensor(subject, dense.dense_gauss_newton(subject)))


@pytest.mark.parametrize("draws", [1, 3])
def test_sampled_traces_are_unbiased_and_know_their_error(draws):
    subject = dense.transformer()
    subject.model.places.requires_grad_(False)
    true = by_tensor(subject, dense.dense_gauss_newton(subject))
    true[""] = sum(true.values())
    found = [gauss_newton_traces(subject, draws, seed) for seed in range(40)]
    for name, value in true.items():
        x = torch.tensor([one.values[name] if name else one.total for one in found])
        claimed = [one.errors[name] if name else one.total_error for one in found]
        se = math.sqrt(sum(e * e for e in claimed) / len(claimed))
        assert abs(float(x.mean()) - value) < 4 * float(x.std()) / math.sqrt(len(x)), name
        if draws > 1:
            assert 0.7 < se / float(x.std()) < 1.4, name
        else:  # with one draw the scatter among examples is in it
            assert se > 0.7 * float(x.std()), name


def test_independent_estimates_pool():
    subject = dense.mlp(nn.ReLU, sizes=(60, 40))
    true = layer_traces(subject)
    a, b = gauss_newton_traces(subject, 2, 0), gauss_newton_traces(subject, 6, 1)
    both = pooled(a, b)
    assert both.draws == 8
    assert both.total == pytest.approx(a.total / 4 + 3 * b.total / 4)
    assert both.total_error < min(a.total_error, 1.05 * b.total_error)
    assert abs(both.total - true.total) < 4 * both.total_error


def test_an_accuracy_is_met():
    subject = dense.mlp(nn.ReLU, sizes=(60, 40))
    true = layer_traces(subject)
    found = layer_traces(subject, accuracy=0.03)
    assert found.reached
    assert found.draws > 1
    for name, value in true.values.items():
        assert found.errors[name] <= 0.03 * max(found.values[name], 0.01 * found.total)
        assert abs(found.values[name] - value) < 4 * found.errors[name]
    assert not layer_traces(subject, accuracy=1e-4, most=4).reached


def test_a_stop_of_few_examples_is_not_by_luck():
    """Four examples tell little of the scatter over signs: the stop counts on its upper bound."""
    subject = dense.mlp(nn.ReLU, sizes=(4,))
    true = layer_traces(subject)
    z = []
    for seed in range(30):
        found = layer_traces(subject, accuracy=0.1, seed=seed)
        assert found.reached
        z.append((found.total - true.total) / found.total_error)
    assert sum(abs(one) < 1.96 for one in z) >= 26
    assert gauss_newton_traces(subject, 1).margin > 2 > gauss_newton_traces(subject, 8).margin > 1


def test_pieces_of_the_data_are_the_data(monkeypatch):
    from isoloss.measure import pieces

    subject = dense.mlp()
    assert len(pieces.split(subject, cut=True)) == 1
    monkeypatch.setattr(pieces, "ROWS", 3)
    for cut, count in ((True, 3), (False, 2)):
        parts = pieces.split(subject, cut)
        assert len(parts) == count
        assert sum(part.examples for part, _ in parts) == subject.examples
        whole = sum(share * dense.dense_hessian(part) for part, share in parts)
        assert float((whole - dense.dense_hessian(subject)).abs().max()) < 1e-12
    true = by_tensor(subject, dense.dense_hessian(subject))
    found = layer_traces(subject, accuracy=0.5)
    assert abs(found.total - sum(true.values())) < 4 * found.total_error
    assert all(abs(found.values[key] - true[key]) < 4.5 * found.errors[key] + 1e-12 for key in true)


@pytest.mark.parametrize("name", ["mlp", "encoder"])
def test_other_nets_are_estimated_and_say_why(name):
    subject = dense.SUBJECTS[name]()
    found = layer_traces(subject, accuracy=0.9, most=32, seed=5)
    assert "piecewise linear" in found.how
    assert ("Gauss-Newton leaves" in found.how) == (name == "mlp")
    true = by_tensor(subject, dense.dense_hessian(subject))
    for key, value in true.items():
        assert abs(found.values[key] - value) < 4.5 * found.errors[key] + 1e-12, key
    assert abs(found.total - sum(true.values())) < 4 * found.total_error


def test_any_criterion_has_sampled_traces():
    subject = dense.mlp(nn.ReLU)
    other = Subject(subject.model, subject.batches, lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1))
    found = layer_traces(other, accuracy=0.2)
    assert "unknown curvature" in found.how
    true = by_tensor(other, dense.dense_hessian(other))
    assert all(abs(found.values[name] - value) < 4 * found.errors[name] for name, value in true.items())


def test_the_same_seed_gives_the_same():
    subject = dense.mlp()
    a, b = (layer_traces(subject, accuracy=0.9, seed=2) for _ in range(2))
    assert (a.values, a.errors, a.total) == (b.values, b.errors, b.total)


class Through(nn.Module):
    """A function of the hidden numbers that no module shows."""

    def __init__(self, f):
        super().__init__()
        self.into, self.out, self.f = nn.Linear(4, 4), nn.Linear(4, 2), f

    def forward(self, x):
        return self.out(self.f(self, self.into(x)))


class Relu(torch.autograd.Function):
    """Of the name of a known operation."""

    @staticmethod
    def forward(ctx, x):
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        return g


STRAIGHT = {
    "relu": lambda net, h: F.relu(h),
    "in place": lambda net, h: F.relu_(h),
    "residual": lambda net, h: h + F.hardtanh(h).abs(),
    "maximum": lambda net, h: h.maximum(h.flip(-1)) / 3,
    "einsum": lambda net, h: torch.einsum("bi,ij->bj", h, torch.ones(4, 4).to(h)),
    "dropout": lambda net, h: F.dropout(h, training=False),
}
BENT = {
    "hidden swish": (lambda net, h: h * torch.sigmoid(h), "Sigmoid"),
    "square": (lambda net, h: h * h, "into.bias multiplied by itself"),
    "twice": (lambda net, h: net.into(F.relu(h)), "into.weight multiplied by itself"),
    "softmax": (lambda net, h: h.softmax(-1), "Softmax"),
    "norm": (lambda net, h: F.layer_norm(h, (4,)), "NativeLayerNorm"),
    "quotient": (lambda net, h: 1 / h, "Reciprocal"),
    "own backward": (lambda net, h: Relu.apply(h), "Relu"),
    "batch statistics": (lambda net, h: F.batch_norm(h, None, None, training=True), "NativeBatchNorm of the batch's own statistics"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*STRAIGHT, *BENT])
def test_the_graph_shows_what_bends(name):
    torch.manual_seed(0)
    f, why = (STRAIGHT[name], None) if name in STRAIGHT else BENT[name]
    net = Through(f).double()
    x = torch.randn(3, 4).double()
    assert bent(net(x), dict(net.named_parameters())) == why
    if why is None:  # the Hessian's blocks are then those of Gauss-Newton
        subject = Subject(net, [(x, torch.tensor([0, 1, 1]))], CrossEntropy())
        same(layer_traces(subject), by_tensor(subject, dense.dense_hessian(subject)))


def test_a_constant_bends_nothing():
    net = nn.Linear(2, 2)
    assert bent(torch.zeros(2), dict(net.named_parameters())) is None
    assert bent(net(torch.ones(1, 2)) * torch.ones(2).exp(), dict(net.named_parameters())) is None


def dense_activation_trace(subject, layer):
    """Hessian of the loss in what the layer puts out, example by example."""
    modules = dict(subject.model.named_modules())
    total = weight = 0.0
    for x, y in subject.batches:
        for b in range(len(x)):
            one, label = x[b : b + 1], y[b : b + 1]
            n = subject.criterion.rows(label)
            shape = []
            handle = modules[layer].register_forward_hook(lambda m, i, o: shape.append(o.shape))  # noqa: B023
            subject.model(one)
            handle.remove()

            def loss(a, one=one, label=label, n=n):
                handle = modules[layer].register_forward_hook(lambda m, i, o: o + a)
                out = subject.criterion(subject.model(one), label) * n
                handle.remove()
                return out

            zero = torch.zeros(shape[0]).double()
            total += float(torch.autograd.functional.hessian(loss, zero).reshape(zero.numel(), -1).trace())
            weight += n
    return total / weight


@pytest.mark.parametrize("name", ["relu", "mlp", "regression"])
def test_traces_in_what_layers_put_out(name):
    subject = dense.mlp(nn.ReLU) if name == "relu" else dense.SUBJECTS[name]()
    subject.model.eval()
    found = [activation_traces(subject, draws=3, seed=seed) for seed in range(30)]
    assert list(found[0].values) == [key for key, m in subject.model.named_modules() if key]
    assert ("piecewise linear" in found[0].how) == (name == "relu")
    for key in found[0].values:
        true = dense_activation_trace(subject, key)
        x = torch.tensor([one.values[key] for one in found])
        se = math.sqrt(sum(one.errors[key] ** 2 for one in found) / len(found))
        assert abs(float(x.mean()) - true) < 4 * float(x.std()) / math.sqrt(len(x)) + 1e-9, key
        assert float(x.std()) < 1e-9 or 0.6 < se / float(x.std()) < 1.6, key


def test_activations_to_an_accuracy():
    subject = dense.mlp(sizes=(40, 20))
    found = activation_traces(subject, draws=2, accuracy=0.1)
    assert found.reached
    assert found.draws > 2
    for key, value in found.values.items():
        assert found.errors[key] <= 0.1 * max(abs(value), 0.01 * sum(map(abs, found.values.values())))
        assert abs(value - dense_activation_trace(subject, key)) < 4 * found.errors[key] + 1e-9
    assert not activation_traces(subject, draws=2, accuracy=1e-4, most=4).reached


def test_activations_that_cannot_be_measured_are_named():
    subject = dense.mlp(nn.ReLU)
    with pytest.raises(ValueError, match="no module named 'x'"):
        activation_traces(subject, ["x"])
    with pytest.raises(ValueError, match="at least two draws"):
        activation_traces(subject, draws=1)
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(TypeError, match="behind '0' that mixes them"):
        activation_traces(Subject(norm, [(torch.randn(6, 4), torch.zeros(6).long())], CrossEntropy()))
    words = dense.transformer()
    assert "embedding" in activation_traces(words).values


def test_a_layer_that_the_outputs_do_not_read_is_left_out_and_named():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.spare = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x):
            h = self.a(x)
            self.spare(h)
            return h

    subject = Subject(Spare(), [(torch.randn(5, 3), torch.zeros(5).long())], CrossEntropy())
    found = activation_traces(subject)
    assert list(found.values) == ["a"]
    assert "not of spare, which the outputs do not depend on" in found.how
    with pytest.raises(ValueError, match="do not depend on layer 'spare'"):
        activation_traces(subject, ["spare"])

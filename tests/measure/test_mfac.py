"""Per-example gradients against one backward pass each; inverse Fisher products against the dense inverse."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.mfac import Window, block_fisher  # noqa: E402
from isoloss.measure.per_example import Gradients, fisher_gradients, loss_gradients  # noqa: E402
from isoloss.measure.products import flatten, gauss_newton, unflatten  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from isoloss.measure.woodbury import inverse_fisher, probe  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class Tied(nn.Module):
    """Embedding, one norm, a layer used twice, and a head that is the embedding."""

    def __init__(self, vocabulary=11, width=6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.mix(self.norm(x)).tanh()
        return self.head(x + self.mix(x.cumsum(1) / 5))


class Positions(nn.Module):
    """Position embeddings, whose input has no dimension of examples; a head that is the embedding; dropout."""

    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(11, 6), nn.Embedding(7, 6)
        self.mix, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(x + self.drop(self.mix(x.cumsum(1) / 5).tanh()))


class Hidden(nn.Module):
    """A head that uses the embedding's weight without a module: no hook sees it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)

    def forward(self, ids):
        return F.linear(self.embedding(ids).tanh(), self.embedding.weight)


class Own(nn.Module):
    """A parameter of a kind of layer that nobody knows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4)
        self.gain = nn.Parameter(torch.rand(4))

    def forward(self, x):
        return self.layer(x) * self.gain


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, stride=2),
        nn.GroupNorm(2, 8),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 20),
        nn.ReLU(),
        nn.Linear(20, 4),
    )


def ids(n, length=7):
    return torch.randint(0, 11, (n, length)), torch.randint(0, 11, (n, length))


def rows(n, width=5, classes=4):
    return torch.randn(n, width, dtype=torch.float64), torch.randint(0, classes, (n,))


def pictures(n):
    return torch.randn(n, 3, 6, 6, dtype=torch.float64), torch.randint(0, 4, (n,))


def mlp(width=5, hidden=7, classes=4):
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def long_sequences(n):
    x, y = torch.randn(n, 9, 30, dtype=torch.float64), torch.randint(0, 40, (n, 9))
    y[0, :5] = -100
    return x, y


CASES = {
    "mlp": (mlp, rows, "kept as factors"),
    "cnn": (convolutions, pictures, "kept as factors"),
    "tied": (Tied, ids, "kept as factors"),
    "positions": (Positions, ids, "kept as factors"),
    "sequences, wide": (lambda: nn.Linear(30, 40), long_sequences, "kept as factors"),
    "hidden use": (Hidden, ids, "used elsewhere too"),
    "own layer": (Own, rows, "one backward pass each"),
}


def subject_of(name, sizes=(5, 5, 3)):
    make, data, _ = CASES[name]
    model = make().double()
    batches = [data(n) for n in sizes]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return Subject(model, batches, CrossEntropy())


def one_by_one(subject):
    """Each example's share of the loss, by a backward pass of its own through a copy in float64."""
    batches = [(x.double() if x.is_floating_point() else x, y) for x, y in subject.batches]
    subject = Subject(copy.deepcopy(subject.model).double(), batches, subject.criterion)
    held = list(subject.parameters().values())
    counted = sum(int((y != -100).sum()) for _, y in subject.batches)
    found = []
    subject.model.eval()
    for x, y in subject.batches:
        for i in range(len(x)):
            z = subject.predict(x[i : i + 1])
            loss = F.cross_entropy(z.flatten(0, -2), y[i : i + 1].flatten(), reduction="sum")
            grads = torch.autograd.grad(loss * subject.examples / counted, held, allow_unused=True)
            found.append(
                torch.cat(
                    [
                        torch.zeros(p.numel()) if g is None else g.flatten()
                        for p, g in zip(held, grads, strict=True)
                    ]
                )
            )
    return torch.stack(found).double()


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_backward_pass_each(name):
    subject = subject_of(name)
    g, true = loss_gradients(subject), one_by_one(subject)
    assert CASES[name][2] in g.how
    assert (g.count, g.size) == true.shape
    v, u = torch.randn(g.size), torch.randn(g.count)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(g.dense(), true, **close)
    torch.testing.assert_close(g.gram(), true @ true.T, **close)
    torch.testing.assert_close(g.times(v), true @ v.double(), **close)
    torch.testing.assert_close(g.combine(u), true.T @ u.double(), **close)
    torch.testing.assert_close(g.squared_norms(), true.square().sum(1), **close)
    other = Subject(subject.model, subject.batches[1:], CrossEntropy())
    torch.testing.assert_close(g.gram(loss_gradients(other)), true @ one_by_one(other).T, **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["cnn", "positions", "own layer"])
def test_weights_of_16_bits_and_frozen_ones(name, dtype):
    """Gradients differ from those in float64 by the roundings of the model itself; a batch of one is a batch."""
    subject = subject_of(name, (4, 1))
    next(subject.model.parameters()).requires_grad_(False)
    model = subject.model.to(dtype).train()
    batches = [(x.to(dtype) if x.is_floating_point() else x, y) for x, y in subject.batches]
    subject = Subject(model, batches, CrossEntropy())
    g, true = loss_gradients(subject), one_by_one(subject)
    assert float((g.dense() - true).norm() / true.norm()) < 4 * torch.finfo(dtype).eps
    assert model.training
    v = torch.randn(g.size).double()
    close(inverse_fisher(g, 1e-3).flat(v), torch.linalg.solve(dense(g.dense(), 1e-3), v), 1e-9)


def test_their_mean_is_the_gradient_of_the_loss():
    subject = subject_of("tied")
    g = loss_gradients(subject)
    loss = sum(subject.loss(batch) * len(batch[0]) for batch in subject.batches) / subject.examples
    true = torch.autograd.grad(loss, list(subject.parameters().values()))
    mean = g.combine(torch.full((g.count,), 1 / g.count))
    torch.testing.assert_close(mean, torch.cat([part.flatten() for part in true]))


@pytest.mark.parametrize("criterion", [CrossEntropy(), SquaredError()], ids=["classes", "numbers"])
def test_exact_fisher_rows_are_the_gauss_newton_matrix(criterion):
    x, y = rows(6)
    targets = y if isinstance(criterion, CrossEntropy) else torch.randn(6, 4, dtype=torch.float64)
    subject = Subject(mlp().double(), [(x[:4], targets[:4]), (x[4:], targets[4:])], criterion)
    g = fisher_gradients(subject, draws=None).dense()
    with gauss_newton(subject) as product:
        torch.testing.assert_close(
            g.T @ g / len(g), torch.stack([product.flat(e) for e in torch.eye(g.shape[1]).double()])
        )


@pytest.mark.parametrize("flat", [False, True], ids=["apart", "examples and tokens as one"])
def test_exact_fisher_rows_of_sequences_take_a_token_at_a_time(flat):
    """Columns of all tokens at once would add products of different tokens."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            z = self.second(self.first(x).cumsum(1).tanh())
            return z.flatten(0, 1) if flat else z

    x, y = torch.randn(4, 3, 5).double(), torch.randint(0, 3, (4, 3))
    y[1, 2] = -100
    subject = Subject(Mixed().double(), [(x, y.flatten() if flat else y)], CrossEntropy())
    g = fisher_gradients(subject, draws=None).dense()
    with gauss_newton(subject) as product:
        torch.testing.assert_close(g.T @ g / len(g), product.dense())


def test_drawn_fisher_rows_are_the_gauss_newton_matrix_on_average():
    x, y = long_sequences(3)
    subject = Subject(nn.Linear(30, 40).double(), [(x[:, :, :30], y)], CrossEntropy())
    v = torch.randn(30 * 40 + 40).double()
    with gauss_newton(subject) as product:
        true = float(v @ product.flat(v))
    seen = torch.stack([fisher_gradients(subject, 1, seed).times(v).square().mean() for seed in range(100)])
    assert abs(float(seen.mean()) - true) < 4 * float(seen.std()) / 100**0.5


def test_layers_that_mix_examples_are_refused():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False)).double()
    with pytest.raises(TypeError, match="mixes examples"):
        loss_gradients(Subject(model, [rows(8)], CrossEntropy()))
    own = Subject(Own().double(), [rows(8)], lambda z, y: F.cross_entropy(z - z.mean(0), y))
    with pytest.raises(TypeError, match="mixes examples"):
        loss_gradients(own)


def dense(g, damping):
    g = g.double()
    return damping * torch.eye(g.shape[1], dtype=torch.float64) + g.T @ g / len(g)


def mfac_static(g, damping):
    """The published algorithm, gradient by gradient: products and diagonal of the inverse."""
    m, d = g.shape
    v, q = torch.zeros(m, d, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    for i in range(m):
        v[i] = g[i] / damping - (v[:i] @ g[i] / q[:i]) @ v[:i]
        q[i] = m + g[i] @ v[i]
    return lambda x: x / damping - (v @ x / q) @ v, 1 / damping - (v.square() / q[:, None]).sum(0)


def close(ours, true, within):
    assert float((ours - true).norm() / true.norm()) < within


@pytest.mark.parametrize("damping", [1e-1, 1e-3, 1e-5])
def test_products_equal_the_dense_inverse_to_1e_5_with_float32_gradients(damping):
    """Also in the span of the gradients, where the two terms of the product cancel."""
    x, y = rows(60, 8)
    subject = Subject(mlp(8, 24), [(x[:40].float(), y[:40]), (x[40:].float(), y[40:])], CrossEntropy())
    g = loss_gradients(subject)
    inverse, truth = inverse_fisher(g, damping), torch.linalg.inv(dense(g.dense(), damping))
    for v in (torch.randn(g.size), g.combine(torch.randn(60))):
        product = inverse.flat(v)
        close(product, truth @ v.double(), 1e-8)
        assert inverse.residual(v, product) < 1e-8
    u = torch.randn(60)
    close(inverse.of_rows(u), truth @ g.combine(u), 1e-8)
    close(inverse.diagonal(), truth.diagonal(), 1e-9)
    index = torch.tensor([3, 100, 7, 250])
    close(inverse.block(index), truth[index][:, index], 1e-9)
    close(inverse.between(g), g.dense() @ truth @ g.dense().T, 1e-8)
    test = loss_gradients(Subject(subject.model, [(x[:7].float(), (y[:7] + 1) % 4)], CrossEntropy()))
    close(inverse.between(test, g), test.dense() @ truth @ g.dense().T, 1e-6)
    close(inverse.between(test, test), test.dense() @ truth @ test.dense().T, 1e-8)
    fisher = dense(g.dense(), 0.0)
    assert inverse.effective_dimension() == pytest.approx(float(torch.trace(fisher @ truth)), rel=1e-8)
    v = unflatten(torch.randn(g.size), g.like)
    assert {part.dtype for part in inverse(v).values()} == {torch.float32}
    close(flatten(inverse(v)), truth @ flatten(v).double(), 1e-6)


def test_it_is_mfacs_static_algorithm():
    g = torch.randn(16, 40, dtype=torch.float64)
    product, diagonal = mfac_static(g, 1e-2)
    inverse = inverse_fisher(Gradients.of_rows(g, {"w": torch.zeros(8, 5)}), 1e-2)
    x = torch.randn(40, dtype=torch.float64)
    torch.testing.assert_close(inverse.flat(x), product(x))
    torch.testing.assert_close(inverse.diagonal(), diagonal)


@pytest.mark.parametrize("block", [1, 7, 16, 40, 100])
def test_blocks_equal_the_inverses_of_the_dense_blocks(block):
    g, damping = torch.randn(16, 40), 1e-4
    whole = dense(g, damping)
    truth = torch.zeros_like(whole)
    for start in range(0, 40, block):
        at = slice(start, min(start + block, 40))
        truth[at, at] = torch.linalg.inv(whole[at, at])
    ours = block_fisher(Gradients.of_rows(g, {"a": torch.zeros(3, 10), "b": torch.zeros(10)}), damping, block)
    x = torch.randn(40)
    torch.testing.assert_close(ours.flat(x), truth @ x.double())
    torch.testing.assert_close(ours.diagonal(), truth.diagonal())
    assert flatten(ours(unflatten(x, ours.like))).dtype == torch.float32
    in_parts = block_fisher((Gradients.of_rows(part, ours.like) for part in g.split(7)), damping, block)
    torch.testing.assert_close(in_parts.factors, ours.factors)


def test_a_window_holds_the_newest_gradients():
    like = {"a": torch.zeros(4, 6), "b": torch.zeros(6)}
    window, damping = Window(like, 8, 1e-5), 1e-5
    seen, x = torch.randn(21, 30), torch.randn(30)
    with pytest.raises(NoAnswer, match="at least one gradient"):
        window(unflatten(x, like))
    for i, row in enumerate(seen):
        window.add(unflatten(row, like))
        newest = seen[max(0, i - 7) : i + 1]
        close(window.flat(x), torch.linalg.solve(dense(newest, damping), x.double()), 1e-6)
        assert window.count == len(newest)
    close(flatten(window(unflatten(x, like))), torch.linalg.solve(dense(newest, damping), x.double()), 1e-6)


def test_what_cannot_be_is_refused():
    like = {"w": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"needed gradients \(m, 3\)"):
        Gradients.of_rows(torch.zeros(2, 4), like)
    for bad in (float("nan"), float("inf")):
        broken = Gradients.of_rows(torch.tensor([[1.0, 2, 3], [1.0, bad, 0]]), like)
        for inverted in (inverse_fisher, block_fisher):
            with pytest.raises(NoAnswer, match="not finite"):
                inverted(broken, 1e-3)
    window = Window(like, 2)
    with pytest.raises(ValueError, match="needed a finite gradient"):
        window.add({"w": torch.tensor([1.0, float("inf"), 0.0])})
    with pytest.raises(ValueError, match="over the window's parameters"):
        window.add({"w": torch.zeros(4)})
    assert window.count == 0
    g = Gradients.of_rows(torch.tensor([[1e9, 0, 0], [1e9, 1, 0]]), like)
    with pytest.raises(ValueError, match="damping above 0"):
        inverse_fisher(g, 0.0)
    with pytest.raises(NoAnswer, match="lost in rounding"):
        inverse_fisher(g, 1e-12)
    with pytest.raises(ValueError, match="same parameters"):
        g.gram(Gradients.of_rows(torch.zeros(1, 3), {"v": torch.zeros(3)}))
    with pytest.raises(ValueError, match="block of 1"):
        block_fisher(g, 1.0, 0)
    with pytest.raises(ValueError, match="got none"):
        block_fisher(iter([]), 1.0)
    with pytest.raises(ValueError, match="size of 1"):
        Window(like, 0)


def test_the_probe_says_what_it_measured():
    subject = subject_of("mlp")
    (found,) = probe(subject, damping=0.01)
    g = one_by_one(subject)
    fisher = g.T @ g / len(g)
    true = torch.trace(fisher @ torch.linalg.inv(fisher + 0.01 * torch.eye(len(fisher), dtype=torch.float64)))
    assert found.value == pytest.approx(float(true), rel=1e-9)
    assert found.se == 0
    assert "kept as factors" in found.how

"""K-FAC and EK-FAC against dense blocks of the Gauss-Newton matrix, where they are exact and where they are not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.kfac import kfac  # noqa: E402
from isoloss.measure.products import flatten, gauss_newton, unflatten  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def subject_of(model, x, y):
    criterion = SquaredError() if y.is_floating_point() else CrossEntropy()
    half = len(x) // 2 + 1  # unequal batches
    return Subject(model.double(), [(x[:half], y[:half]), (x[half:], y[half:])], criterion)


def classes(model, *shape, rows=20):
    return subject_of(model, torch.randn(rows, *shape).double(), torch.randint(0, 4, (rows,)))


def dense(product, size):
    return torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)], dim=1)


def approximated(found):
    size = sum(p.numel() for p in found.like.values())
    return dense(lambda v: flatten(found.times(unflatten(v, found.like))), size)


def true_blocks(subject):
    """The Gauss-Newton matrix with nothing across layers; a weight and its bias are one layer."""
    with gauss_newton(subject) as product:
        whole = dense(product.flat, product.size)
    owner = torch.cat(
        [torch.full((p.numel(),), hash(name.rpartition(".")[0])) for name, p in subject.parameters().items()]
    )
    return whole * (owner[:, None] == owner)


def distance(a, b):
    return float((a - b).norm() / b.norm())


def mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2), nn.Tanh(), nn.Conv2d(3, 4, 2, bias=False), nn.Flatten(), nn.Linear(4, 4)
    )


def test_kfac_is_exact_for_a_deep_linear_net_with_squared_error():
    """B does not depend on the example: the mean of the products is the product of the means."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3, bias=False), nn.Linear(3, 4))
    subject = subject_of(model, torch.randn(20, 5).double(), torch.randn(20, 4).double())
    for corrected in (False, True):
        assert distance(approximated(kfac(subject, 1e-3, corrected, None)), true_blocks(subject)) < 1e-12


@pytest.mark.parametrize(("make", "shape"), [(mlp, (5,)), (convolutions, (2, 6, 6))], ids=["mlp", "cnn"])
def test_ekfac_has_the_diagonal_of_the_blocks_in_its_basis(make, shape):
    subject = classes(make(), *shape)
    truth = true_blocks(subject)
    plain, corrected = (kfac(subject, 1e-3, c, None) for c in (False, True))
    assert distance(approximated(corrected), truth) < distance(approximated(plain), truth) < 0.7
    for block in corrected.blocks:
        for k, r in ((0, 0), (1, 2), (len(block.out) - 1, len(block.into) - 1)):
            direction = {name: torch.zeros_like(p) for name, p in corrected.like.items()}
            outer = torch.outer(block.out[:, k], block.into[:, r])
            widths = [corrected.like[name].reshape(len(block.out), -1).shape[1] for name in block.names]
            for name, part in zip(block.names, outer.split(widths, dim=1), strict=True):
                direction[name] = part.reshape(direction[name].shape)
            v = flatten(direction)
            assert float(block.eigenvalues[k, r]) == pytest.approx(float(v @ truth @ v), rel=1e-9, abs=1e-14)


def test_factors_are_the_means_over_examples_and_positions():
    """By the definition, on a layer over sequences."""
    x, y = torch.randn(6, 3, 5).double(), torch.randint(0, 4, (6, 3))
    model = nn.Linear(5, 4, bias=False).double()
    p = torch.softmax(model(x), -1).flatten(0, 1)
    rows = x.flatten(0, 1)
    a = rows.T @ rows / len(rows)
    b = torch.diag_embed(p).mean(0) - p.T @ p / len(p)
    found = kfac(subject_of(model, x, y), 1e-3, corrected=False, draws=None)
    torch.testing.assert_close(approximated(found), torch.kron(b, a).detach())


def test_signs_give_the_eigenvalues_on_average_over_sequences():
    x, y = torch.randn(4, 3, 5).double(), torch.randint(0, 4, (4, 3))
    subject = subject_of(nn.Linear(5, 4).double(), x, y)
    truth = float(torch.trace(true_blocks(subject)))
    seen = torch.stack(
        [sum(b.eigenvalues.sum() for b in kfac(subject, 1e-3, True, 2, s).blocks) for s in range(60)]
    )
    assert abs(float(seen.mean()) - truth) < 4 * float(seen.std()) / 60**0.5


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 4), nn.Linear(5, 4, bias=False), nn.Linear(5, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x))


def test_eigenvalues_are_exact_where_layers_mix_tokens():
    subject = subject_of(Attention(), torch.randn(5, 3, 5).double(), torch.randint(0, 3, (5, 3)))
    truth, at = true_blocks(subject), 0
    for block in kfac(subject, 1e-3, True, None).blocks:
        size = block.eigenvalues.numel()
        into = block.into
        if len(block.names) == 2:  # the weight row by row, then the biases
            order = torch.arange(size).view(len(block.out), -1)
            order = torch.cat([order[:, :-1].flatten(), order[:, -1]])
        else:
            order = torch.arange(size)
        basis = torch.kron(block.out, into)[order]
        diagonal = (basis.mT @ truth[at : at + size, at : at + size] @ basis).diagonal()
        torch.testing.assert_close(block.eigenvalues.flatten(), diagonal)
        at += size


def test_scales_of_norms_get_their_whole_block():
    subject = classes(nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 4)), 5)
    found, truth = approximated(kfac(subject, 1e-3, True, None)), true_blocks(subject)
    for start in (36, 42):  # scale and shift, each a block
        at = slice(start, start + 6)
        assert distance(found[at, at], truth[at, at]) < 1e-12


def test_the_inverse_is_that_of_what_is_approximated():
    subject = classes(convolutions(), 2, 6, 6)
    found = kfac(subject, 1e-2, draws=3, seed=1)
    v = torch.randn(sum(p.numel() for p in found.like.values())).double()
    truth = torch.linalg.solve(approximated(found) + 1e-2 * torch.eye(len(v)).double(), v)
    assert distance(found.flat(v), truth) < 1e-10
    again = kfac(subject, 1e-2, draws=3, seed=1)
    assert torch.equal(again.flat(v), found.flat(v))


class Hidden(nn.Module):
    """Uses its layer's weight once more where no hook sees it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.layer(x).tanh(), self.layer.weight)


def test_what_has_no_such_form_is_refused():
    ids = torch.randint(0, 9, (4, 3))
    with pytest.raises(TypeError, match=r"got 0\.weight of an embedding"):
        kfac(subject_of(nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 4)), ids, ids % 4))
    layers = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 4))
    layers[2].weight = layers[0].weight
    with pytest.raises(TypeError, match=r"0\.weight of 0 and 2"):
        kfac(classes(layers, 5))
    layers = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 4))
    layers[2].bias = layers[0].bias
    with pytest.raises(TypeError, match=r"0\.bias of several"):
        kfac(classes(layers, 5))
    with pytest.raises(TypeError, match="used elsewhere too"):
        kfac(classes(Hidden(), 4))
    with pytest.raises(TypeError, match="too many for a whole block"):
        kfac(classes(nn.Sequential(nn.Conv1d(32, 64, 3, groups=2), nn.Flatten(), nn.Linear(64, 4)), 32, 3))
    with pytest.raises(ValueError, match="damping above 0"):
        kfac(classes(mlp(), 5), 0.0)

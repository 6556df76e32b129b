"""Muon against the singular value decomposition."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from isoloss.trainers.muon import Muon, orthogonalise  # noqa: E402


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("value", "after"),
    [(0.05, 0.758120), (0.1, 0.712120), (0.3, 1.079592), (0.5, 0.765439), (0.7, 1.120323), (1.0, 0.696436)],
)
def test_singular_values_go_where_the_polynomial_sends_them(value, after):
    """p(s) = a s + b s^3 + c s^5 five times; ``value`` is a singular value of the normalised matrix."""
    rest = (1 - value**2) ** 0.5
    left, _ = torch.linalg.qr(matrix(2, 2, 1))
    right, _ = torch.linalg.qr(matrix(2, 2, 2))
    done = orthogonalise(
        left @ torch.diag(torch.tensor([value, rest], dtype=torch.float64)) @ right, dtype=torch.float64
    )
    found = left.T @ done @ right.T
    assert float(found[0, 0]) == pytest.approx(after, abs=2e-6)
    assert float(found[0, 1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
def test_it_is_nearly_the_polar_factor(shape):
    given = matrix(*shape)
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    polar = left @ right
    done = orthogonalise(given, dtype=torch.float64)
    cosine = (done * polar).sum() / (done.norm() * polar.norm())
    assert cosine > 0.95
    singular = torch.linalg.svdvals(done)
    assert 0.68 < singular.min() <= singular.max() < 1.21
    torch.testing.assert_close(orthogonalise(given * 1000, dtype=torch.float64), done, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(orthogonalise(given.T, dtype=torch.float64), done.T)


def test_it_turns_with_its_input():
    given = matrix(6, 9)
    left, _ = torch.linalg.qr(matrix(6, 6, 3))
    right, _ = torch.linalg.qr(matrix(9, 9, 4))
    turned = orthogonalise(left @ given @ right, dtype=torch.float64)
    torch.testing.assert_close(turned, left @ orthogonalise(given, dtype=torch.float64) @ right)


def test_a_step_is_decay_and_a_matched_update_of_each_part():
    start, gradient = matrix(6, 2, 5).float(), matrix(6, 2, 6).float()
    weight = torch.nn.Parameter(start.clone())
    optimizer = Muon([weight], lr=0.1, parts={weight: 3}, weight_decay=0.5)
    weight.grad = gradient.clone()
    optimizer.step()
    pieces = [orthogonalise(gradient[i : i + 2]) for i in (0, 2, 4)]
    expected = 0.95 * start - 0.1 * 0.2 * 2**0.5 * torch.cat(pieces)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_update_has_the_root_mean_square_of_adamw():
    weight = torch.nn.Parameter(torch.zeros(48, 32))
    optimizer = Muon([weight], lr=1.0, parts={}, weight_decay=0.0)
    weight.grad = matrix(48, 32).float()
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_momentum_is_nesterov():
    first, second = matrix(3, 4, 7).float(), matrix(3, 4, 8).float()
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = Muon([weight], lr=1.0, parts={}, weight_decay=0.0)
    weight.grad = first.clone()
    optimizer.step()
    after = weight.detach().clone()
    weight.grad = second.clone()
    optimizer.step()
    average = 0.95 * first + second
    update = orthogonalise(second + 0.95 * average)
    torch.testing.assert_close(weight.detach(), after - 0.2 * 4**0.5 * update, rtol=1e-4, atol=1e-5)
    assert optimizer.state[weight]["momentum"].equal(average)

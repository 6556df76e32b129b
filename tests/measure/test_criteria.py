"""Losses, their slopes and curvature in the outputs, against double backward and enumeration."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402

OUTPUTS = torch.tensor(
    [[0.0, 0, 0, 0], [3, -1, 0.5, 2], [9, -9, 1, 0], [50, 50, -50, -50], [1, 1, -2, -2]]
).double()
LABELS = torch.tensor([0, 2, -100, 1, 1])


def cases():
    yield CrossEntropy(), OUTPUTS, LABELS
    yield CrossEntropy(), OUTPUTS[None].expand(2, -1, -1), torch.stack([LABELS, torch.full((5,), -100)])
    yield SquaredError(), OUTPUTS, OUTPUTS.flip(0)


def row_losses(criterion, outputs, targets):
    """(row of outputs, function of it alone), counted rows."""
    flat = outputs.reshape(-1, outputs.shape[-1])
    labels = targets.reshape(-1) if isinstance(criterion, CrossEntropy) else targets.reshape(flat.shape)
    for i, (z, y) in enumerate(zip(flat, labels, strict=True)):
        if isinstance(criterion, CrossEntropy):
            if y == -100:
                continue
            yield i, z, lambda z, y=y: F.cross_entropy(z, y)
        else:
            yield i, z, lambda z, y=y: 0.5 * (z - y).square().sum()


@pytest.mark.parametrize(("criterion", "outputs", "targets"), list(cases()))
def test_losses_slopes_and_curvature(criterion, outputs, targets):
    rows = list(row_losses(criterion, outputs, targets))
    assert criterion.rows(targets) == len(rows)
    loss = sum(float(f(z)) for _, z, f in rows) / len(rows)
    assert float(criterion(outputs, targets)) == pytest.approx(loss)
    u = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).double()
    slope = criterion.slope(outputs, targets).reshape(-1, 4)
    curved = criterion.curvature(outputs, targets, u).reshape(-1, 4)
    columns = [column.reshape(-1, 4) for column in criterion.columns(outputs, targets)]
    seen = set()
    for i, z, f in rows:
        seen.add(i)
        hessian = torch.autograd.functional.hessian(f, z)
        torch.testing.assert_close(slope[i], torch.autograd.functional.jacobian(f, z))
        torch.testing.assert_close(curved[i], hessian @ u.reshape(-1, 4)[i] / len(rows))
        root = torch.stack([column[i] for column in columns], 1)
        torch.testing.assert_close(root @ root.T, hessian, rtol=1e-9, atol=1e-12)
    assert len(columns) == (3 if isinstance(criterion, CrossEntropy) else 4)
    for i in set(range(len(slope))) - seen:
        assert not slope[i].any()
        assert not curved[i].any()
        assert not any(column[i].any() for column in columns)


@pytest.mark.parametrize(("criterion", "outputs", "targets"), list(cases()))
def test_roots_with_signs_average_to_the_curvature(criterion, outputs, targets):
    """Over all patterns of signs, so without any luck."""
    total = torch.zeros(outputs.reshape(-1, 4).shape[0], 4, 4).double()
    squares = []
    for pattern in itertools.product((-1.0, 1.0), repeat=4):
        signs = torch.tensor(pattern).double().expand(outputs.shape)
        root = criterion.root(outputs, targets, signs).reshape(-1, 4)
        total += root.unsqueeze(2) * root.unsqueeze(1) / 16
        squares.append(root.square().sum(1))
    seen = set()
    for i, z, f in row_losses(criterion, outputs, targets):
        seen.add(i)
        torch.testing.assert_close(total[i], torch.autograd.functional.hessian(f, z), rtol=1e-9, atol=1e-12)
    for i in set(range(len(total))) - seen:
        assert not total[i].any()
    # Where all classes are as likely, and where two share all, every pattern gives the same square.
    spread = torch.stack(squares).std(0) / torch.stack(squares).mean(0).clamp_min(1e-30)
    assert float(spread[0]) < 1e-9
    assert float(spread[3]) < 1e-3


def test_labels_are_drawn_from_the_model():
    z = torch.tensor([[0.0, 1.0, -1.0, 3.0]]).expand(20000, -1)
    drawn = CrossEntropy().sampled(z, torch.zeros(20000).long(), torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / 20000
    p = torch.softmax(z[0], 0)
    assert ((share - p).abs() < 4 * (p * (1 - p) / 20000).sqrt() + 1e-4).all()
    kept = CrossEntropy().sampled(OUTPUTS, LABELS, torch.Generator())
    assert ((kept == -100) == (LABELS == -100)).all()
    noise = SquaredError().sampled(z, z, torch.Generator().manual_seed(0)) - z
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.var()) == pytest.approx(1, rel=0.03)


def test_single_precision_stays_finite():
    z = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0]])
    y = torch.tensor([1, 0])
    found = [
        CrossEntropy().root(z, y, torch.ones_like(z)),
        *CrossEntropy().columns(z, y),
        CrossEntropy().slope(z, y),
    ]
    assert all(one.isfinite().all() for one in found)

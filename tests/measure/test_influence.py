"""Influences against training again, and against dense inverses."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.influence import CURVATURES, influence, solve  # noqa: E402
from isoloss.measure.per_example import loss_gradients  # noqa: E402
from isoloss.measure.products import Product, gauss_newton, hessian  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402

TRAIN, TEST, WIDTH, CLASSES, L2 = 60, 12, 4, 3, 0.02


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def data(n):
    x = torch.randn(n, WIDTH).double()
    logits = x @ torch.tensor([[2.0, 0, -1], [0, 1, 0], [1, -1, 0], [0, 0, 0]]).double()
    return x, torch.distributions.Categorical(logits=logits).sample()


def optimum(x, y, weights, theta=None):
    """Multinomial logistic regression with an L2 term, by Newton's method on dense matrices."""

    def loss(theta):
        each = F.cross_entropy(x @ theta.view(CLASSES, WIDTH).T, y, reduction="none")
        return (weights * each).sum() / len(x) + L2 / 2 * theta.square().sum()

    theta = torch.zeros(CLASSES * WIDTH, dtype=torch.float64) if theta is None else theta
    for _ in range(20):
        theta = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(theta), theta)
        step = torch.linalg.solve(torch.autograd.functional.hessian(loss, theta), gradient)
        theta = theta - step
        if float(step.norm()) < 1e-10:  # the next would be its square
            break
    return theta.detach()


def losses(theta, x, y):
    return F.cross_entropy(x @ theta.view(CLASSES, WIDTH).T, y, reduction="none")


@pytest.fixture(scope="module")
def regression():
    torch.manual_seed(0)
    x, y = data(TRAIN)
    test_x, test_y = data(TEST)
    theta = optimum(x, y, torch.ones(TRAIN).double())
    model = nn.Linear(WIDTH, CLASSES, bias=False).double()
    model.weight.data = theta.view(CLASSES, WIDTH).clone()
    train = Subject(model, [(x[:50], y[:50]), (x[50:], y[50:])], CrossEntropy())
    return train, Subject(model, [(test_x, test_y)], CrossEntropy()), (x, y, test_x, test_y, theta)


def test_influence_is_the_derivative_of_the_optimum(regression):
    train, test, (x, y, test_x, test_y, _) = regression
    found = influence(train, test, damping=L2, tolerance=1e-10)
    h = 1e-3
    for i in (0, 17, 55):
        ends = []
        for sign in (1, -1):
            weights = torch.ones(TRAIN).double()
            weights[i] += sign * h
            ends.append(losses(optimum(x, y, weights), test_x, test_y))
        derivative = (ends[0] - ends[1]) / (2 * h) * TRAIN  # of the mean's weight, 1/n of an example's
        torch.testing.assert_close(found.scores[:, i], derivative, rtol=1e-5, atol=1e-7)
    assert float(found.residuals.max()) < 1e-9


def test_it_says_what_leaving_out_and_training_again_does(regression):
    train, test, (x, y, test_x, test_y, theta) = regression
    found = influence(train, test, damping=L2)
    before = losses(theta, test_x, test_y)
    true = []
    some = range(0, TRAIN, 2)
    for i in some:
        weights = torch.ones(TRAIN).double()
        weights[i] = 0
        true.append(losses(optimum(x, y, weights, theta), test_x, test_y) - before)
    true, left_out = torch.stack(true, dim=1), found.left_out[:, some]
    assert float(torch.corrcoef(torch.stack([true.flatten(), left_out.flatten()]))[0, 1]) > 0.99
    assert float((true - left_out).norm() / true.norm()) < 0.2  # the rest is of second order
    whole = influence(train, test, damping=L2, mean=True)
    torch.testing.assert_close(whole.scores[0], found.scores.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("criterion", [CrossEntropy(), SquaredError()], ids=["classes", "numbers"])
def test_scores_are_those_of_the_dense_matrix(curvature, criterion):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    (x, y), (test_x, test_y) = data(20), data(5)
    if isinstance(criterion, SquaredError):
        y, test_y = F.one_hot(y, CLASSES).double(), F.one_hot(test_y, CLASSES).double()
    train, test = Subject(model, [(x, y)], criterion), Subject(model, [(test_x, test_y)], criterion)
    g, t = loss_gradients(train).dense(), loss_gradients(test).dense()
    if curvature == "empirical_fisher":
        matrix = g.T @ g / len(g)
    else:
        with (hessian if curvature == "hessian" else gauss_newton)(train) as product:
            eye = torch.eye(product.size, dtype=torch.float64)
            matrix = torch.stack([product.flat(row) for row in eye], dim=1)
    damping = 2.0  # above the most negative curvature of this net
    truth = -t @ torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), g.T)
    found = influence(train, test, curvature, damping, tolerance=1e-10)
    torch.testing.assert_close(found.scores, truth, rtol=1e-6, atol=1e-8)
    assert float(found.residuals.max()) < 1e-8
    assert f"{curvature}, damping 2, residual at most" in str(found)
    assert (found.products == 0) == (curvature == "empirical_fisher")


def test_negative_curvature_is_no_answer():
    matrix = torch.diag(torch.tensor([1.0, -2.0]).double())
    product = Product("c", {"w": torch.zeros(2).double()}, lambda v: {"w": matrix @ v["w"]})
    with pytest.raises(NoAnswer, match="curvature"):
        solve(product, torch.tensor([1.0, 1.0]), damping=0.1)
    found = solve(product, torch.tensor([1.0, 1.0]), damping=3.0)
    torch.testing.assert_close(found.x, torch.tensor([0.25, 1.0]).double())


def test_a_solve_that_stops_early_says_so():
    matrix = torch.diag(torch.linspace(0.01, 9, 50).double())
    product = Product("c", {"w": torch.zeros(50).double()}, lambda v: {"w": matrix @ v["w"]})
    b = torch.randn(50).double()
    early = solve(product, b, damping=1e-6, most=10)
    assert not early.reached
    assert early.products == 10
    true = (b - matrix @ early.x - 1e-6 * early.x).norm() / b.norm()
    assert early.residual == pytest.approx(float(true))
    near = solve(product, b, damping=1e-6, most=10, near=lambda v: v / (matrix.diagonal() * 1.0001 + 1e-6))
    assert near.reached
    model = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    train, test = (Subject(model, [data(n)], CrossEntropy()) for n in (20, 2))
    assert "2 of 2 solves did not reach a residual of 1e-06" in str(
        influence(train, test, "gauss_newton", 1e-6, most=3)
    )
    assert "did not reach" not in str(influence(train, test, "gauss_newton", 1e-2))


def test_what_cannot_be_is_refused(regression):
    train, test, _ = regression
    with pytest.raises(ValueError, match="needed a curvature of"):
        influence(train, test, "fisher")
    with pytest.raises(ValueError, match="damping above 0"):
        influence(train, test, damping=0)
    other = Subject(nn.Linear(WIDTH, CLASSES).double(), test.batches, CrossEntropy())
    with pytest.raises(ValueError, match="got two models"):
        influence(train, other)

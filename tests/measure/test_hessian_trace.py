"""Estimates of traces against known ones: bias, claimed errors, coverage after a stop."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from isoloss.measure.estimates import (  # noqa: E402
    hutch_plus_plus,
    hutchinson,
    scatter_at_most,
    xtrace,
)
from isoloss.measure.hessian_trace import hessian_trace, probe  # noqa: E402
from isoloss.measure.linearity import kinked  # noqa: E402
from isoloss.measure.products import Product  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from tests.oracles import curvature as dense  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def known(n=60, decay=0.8, seed=0):
    """A = Q diag(decay^j) Q^T, as a product, and its trace."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator).double())[0]
    a = q @ torch.diag(decay ** torch.arange(n).double()) @ q.T
    return Product("known", {"w": a[0]}, lambda v: {"w": a @ v["w"]}), float(a.trace())


def relative(estimate, product, true, count=80):
    return torch.tensor([estimate(product, seed).value / true - 1 for seed in range(count)])


# Root mean squared relative errors of 300 repeats by the formulas, from the methods' authors' own definitions.
@pytest.mark.parametrize(
    ("products", "errors"),
    [(12, (0.12, 0.12, 0.12)), (36, (0.076, 0.016, 0.0062))],
)
def test_errors_are_those_of_the_methods(products, errors):
    product, true = known()
    methods = (
        lambda p, s: hutchinson(p, 1e-9, products, s),
        lambda p, s: hutch_plus_plus(p, products, s),
        lambda p, s: xtrace(p, products, s),
    )
    for method, error in zip(methods, errors, strict=True):
        found = relative(method, product, true)
        assert float(found.square().mean().sqrt()) == pytest.approx(error, rel=0.25)
        assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(len(found))


def test_xtrace_is_the_mean_over_what_is_left_out():
    """Its short form against the definition, one vector left out of the basis at a time."""
    product, _ = known(n=30)
    k = 6
    omega = (
        torch.randint(0, 2, (30, k), generator=torch.Generator().manual_seed(3), dtype=torch.int8).double()
        * 2
        - 1
    )
    a = product.dense()
    each = []
    for i in range(k):
        rest = [j for j in range(k) if j != i]
        q = torch.linalg.qr(a @ omega[:, rest])[0]
        left = omega[:, i] - q @ (q.T @ omega[:, i])
        each.append(float((q * (a @ q)).sum() + left @ a @ left))
    found = xtrace(product, 2 * k, seed=3)
    assert found.value == pytest.approx(sum(each) / k, rel=1e-12)
    assert found.se == pytest.approx(
        float(torch.tensor(each, dtype=torch.float64).std()) / math.sqrt(k), rel=1e-9
    )


def test_low_rank_is_exact_and_zero_is_zero():
    root = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double()
    product = Product("low", {"w": root[:, 0]}, lambda v: {"w": root @ (root.T @ v["w"])})
    true = float(root.square().sum())
    for seed in range(5):
        assert xtrace(product, 12, seed).value == pytest.approx(true, rel=1e-10)
        assert hutch_plus_plus(product, 15, seed).value == pytest.approx(true, rel=1e-10)
    nothing = Product("zero", {"w": root[:, 0]}, lambda v: {"w": 0 * v["w"]})
    for found in (hutchinson(nothing), hutch_plus_plus(nothing, 6), xtrace(nothing, 4)):
        assert (found.value, found.se) == (0.0, 0.0)


def test_numbers_of_products_that_cannot_be_are_refused():
    product, _ = known(n=8)
    for bad in (3, 7):
        with pytest.raises(ValueError, match="multiple of 3"):
            hutch_plus_plus(product, bad)
    for bad in (2, 5):
        with pytest.raises(ValueError, match="even number"):
            xtrace(product, bad)
    with pytest.raises(ValueError, match="fewer than 16 products for 8 rows"):
        xtrace(product, 16)


def test_the_bound_of_a_scatter_holds_as_often_as_it_says():
    x = torch.randn(4000, 9, generator=torch.Generator().manual_seed(0)).double()
    bounds = [scatter_at_most(float(row.std()), 9) for row in x]
    assert sum(bound >= 1 for bound in bounds) / len(bounds) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("accuracy", [0.1, 0.05])
def test_a_stop_is_not_by_luck(accuracy):
    """After stopping, intervals hold the truth nearly as often as with a number of vectors fixed before."""
    product, true = known(n=200, decay=0.95)
    held, products = 0, []
    for seed in range(200):
        found = hutchinson(product, accuracy, 2000, seed)
        assert found.reached
        assert found.se <= accuracy * found.value
        held += abs(found.value - true) < 1.96 * found.se
        products.append(found.products)
    assert held / 200 > 0.9
    variance = 2 * float((product.dense() ** 2).sum() - (product.dense().diagonal() ** 2).sum())
    need = variance / (accuracy * true) ** 2
    assert sum(products) / len(products) < 1.6 * need + 16


def test_the_same_seed_gives_the_same_and_most_is_a_limit():
    product, _ = known()
    assert hutchinson(product, seed=4) == hutchinson(product, seed=4)
    found = hutchinson(product, 1e-4, most=20)
    assert (found.products, found.reached) == (20, False)


# -- the whole Hessian ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "encoder", "regression"])
def test_the_trace_of_the_hessian_is_unbiased_and_knows_its_error(name):
    subject = dense.SUBJECTS[name]()
    if name == "transformer":
        subject.model.places.requires_grad_(False)  # then every layer is of a known kind
    true = float(dense.dense_hessian(subject).trace())
    accuracy, count = (0.3, 12) if name in ("mlp", "regression") else (0.7, 8)
    found = [hessian_trace(subject, accuracy, seed=100 * seed) for seed in range(count)]
    assert math.isnan(found[0].gauss_newton) or name != "encoder"
    z = torch.tensor([(one.value - true) / one.se for one in found])
    assert abs(float(z.mean())) < 4 / math.sqrt(len(z))
    assert float(z.square().mean()) < 2.5


def test_what_is_made_depends_on_the_network():
    smooth = hessian_trace(dense.mlp(), accuracy=0.1)
    assert smooth.products < 0.2 * smooth.forwards
    straight = dense.mlp(nn.ReLU)
    found = hessian_trace(straight, accuracy=0.05)
    assert (found.products, found.forwards) == (0, 0)
    assert abs(found.value - float(dense.dense_hessian(straight).trace())) < 4 * found.se
    kinked = hessian_trace(dense.cnn(nn.ReLU), accuracy=0.5)  # group norm bends, rectifiers have kinks
    assert kinked.forwards == 0
    assert kinked.products >= 12


def test_a_slope_that_jumps_is_seen_in_the_graph():
    x = torch.ones(3, requires_grad=True)
    for smooth in (F.gelu(x), x.softmax(0), x.relu().pow(3), x.relu() * x.relu(), F.layer_norm(x, (3,))):
        rectified = isinstance(smooth.grad_fn, type((x * x).grad_fn))
        assert kinked(smooth) == ("Relu" if rectified else None)
    once = x.relu()
    assert kinked(once * once) is None
    assert kinked(once * once + once) == "Relu"
    for sharp, name in (
        (x.abs(), "Abs"),
        (F.hardswish(x), "Hardswish"),
        (x.relu().pow(1.5), "Relu"),
        (F.elu(x), "Elu"),
    ):
        assert kinked(sharp) == name


def test_single_precision_and_any_criterion():
    subject = dense.mlp()
    true = float(dense.dense_hessian(subject).trace())
    single = Subject(subject.model.float(), [(x.float(), y) for x, y in subject.batches], CrossEntropy())
    found = hessian_trace(single, accuracy=0.1)
    assert abs(found.value - true) < 4 * found.se
    other = Subject(dense.mlp().model, dense.mlp().batches, lambda z, y: F.cross_entropy(z, y))
    whole = hessian_trace(other, accuracy=0.2)
    # Batches are then weighed by their examples, which here count all their rows: the same loss.
    assert abs(whole.value - true) < 4 * whole.se
    assert whole.draws == 0


def test_a_limit_is_kept_and_said():
    subject = dense.mlp()
    found = hessian_trace(subject, accuracy=1e-4, most=60)
    assert not found.reached
    assert found.cost < 63
    (measured,) = probe(dense.mlp(), accuracy=0.2)
    assert measured.name == "hessian_trace"
    assert "forward passes" in measured.how
    assert measured.spent.gradients > 0
    assert hessian_trace(subject, seed=3, accuracy=0.2) == hessian_trace(subject, seed=3, accuracy=0.2)

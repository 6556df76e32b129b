"""Eigenvalues against dense ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from torch import nn  # noqa: E402

from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.eigen import block_eigenvalues, blocks, blocks_probe, probe, top_eigenpairs  # noqa: E402
from isoloss.measure.products import Product, gauss_newton, hessian  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from tests.oracles import curvature as dense  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "end"), [("mlp", "magnitude"), ("cnn", "smallest"), ("transformer", "largest")]
)
def test_eigenpairs_are_those_of_the_dense_hessian(name, end):
    subject = dense.SUBJECTS[name]()
    true = np.linalg.eigvalsh(dense.dense_hessian(subject).numpy())
    order = {"magnitude": -np.abs(true), "largest": -true, "smallest": true}[end]
    true = true[np.argsort(order, kind="stable")][:4]
    with hessian(subject) as h:
        found = top_eigenpairs(h, 4, end, tolerance=1e-8)
        assert found.converged
        assert found.values == pytest.approx(true, abs=1e-7 * abs(true).max())
        for value, vector, residual in zip(found.values, found.vectors.T, found.residuals, strict=True):
            v = torch.from_numpy(np.ascontiguousarray(vector))
            assert float(v.norm()) == pytest.approx(1)
            assert float((h.flat(v) - value * v).norm()) == pytest.approx(residual, abs=1e-12)
    assert (found.residuals < 1e-6 * abs(true).max()).all()


def test_an_eigenvalue_lies_within_the_residual_also_when_it_did_not_converge():
    subject = dense.SUBJECTS["transformer"]()
    true = np.linalg.eigvalsh(dense.dense_hessian(subject).numpy())
    with hessian(subject) as h:
        rough = top_eigenpairs(h, 6, tolerance=1e-13, most=24)
    assert not rough.converged
    for value, residual in zip(rough.values, rough.residuals, strict=True):
        assert np.abs(true - value).min() <= residual + 1e-12


def test_repeated_and_no_eigenvalues():
    diagonal = torch.cat([torch.full((3,), 4.0), torch.linspace(-1, 1, 60)]).double()
    product = Product("repeated", {"w": diagonal}, lambda v: {"w": diagonal * v["w"]})
    # One start holds one vector of a repeated eigenvalue; rounding brings the others, or does not.
    found = top_eigenpairs(product, 4, tolerance=1e-10)
    assert all(np.abs(diagonal.numpy() - value).min() < 1e-8 for value in found.values)
    assert found.values[0] == pytest.approx(4)
    nothing = Product("zero", {"w": diagonal}, lambda v: {"w": 0 * v["w"]})
    found = top_eigenpairs(nothing, 2)
    assert found.values == pytest.approx([0, 0])
    assert found.converged


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_eigenvalues_of_a_small_matrix(size):
    torch.manual_seed(0)
    a = torch.randn(size, size).double()
    a = a + a.T
    product = Product("small", {"w": a[0]}, lambda v: {"w": a @ v["w"]})
    for count in range(1, size + 1):
        true = np.sort(np.linalg.eigvalsh(a.numpy()))[::-1][:count]
        assert top_eigenpairs(product, count, "largest", tolerance=1e-10).values == pytest.approx(
            true, abs=1e-8
        )


def test_blocks_are_layers_and_their_eigenvalues_those_of_dense_blocks():
    subject = dense.SUBJECTS["cnn"]()
    layers = blocks(subject)
    assert [name for names in layers.values() for name in names] == list(subject.parameters())
    for kind, whole in (
        ("hessian", dense.dense_hessian(subject)),
        ("gauss_newton", dense.dense_gauss_newton(subject)),
    ):
        found = block_eigenvalues(subject, kind, tolerance=1e-6)
        at, begin = {}, 0
        for name, p in subject.parameters().items():
            at[name] = list(range(begin, begin + p.numel()))
            begin += p.numel()
        for layer, names in layers.items():
            index = [i for name in names for i in at[name]]
            values = np.linalg.eigvalsh(whole[index][:, index].numpy())
            true = values[np.abs(values).argmax()]
            assert found[layer].values == pytest.approx([true], rel=1e-5)
    own = block_eigenvalues(subject, of={"first": ["0.weight"]}, tolerance=1e-6)
    assert list(own) == ["first"]


def test_single_precision_and_gauss_newton():
    subject = dense.SUBJECTS["mlp"]()
    true = np.linalg.eigvalsh(dense.dense_gauss_newton(subject).numpy())[::-1][:3]
    single = Subject(subject.model.float(), [(x.float(), y) for x, y in subject.batches], CrossEntropy())
    with gauss_newton(single) as g:
        found = top_eigenpairs(g, 3)
    assert found.converged
    assert found.values == pytest.approx(true, rel=1e-3)


def test_vectors_that_do_not_fit_are_no_answer():
    large = Product("large", {"w": torch.empty(1).expand(1 << 28)}, lambda v: v)
    with pytest.raises(NoAnswer, match=r"keeps 16 vectors of 268,435,456 numbers, 34\.4 GB"):
        top_eigenpairs(large, 5)


def test_what_cannot_be_is_refused():
    subject = dense.SUBJECTS["mlp"]()
    with hessian(subject) as h:
        with pytest.raises(ValueError, match="no end of a spectrum named 'top'"):
            top_eigenpairs(h, 2, "top")
        with pytest.raises(ValueError, match="from 1 to 89 eigenvalues, got 90"):
            top_eigenpairs(h, 90)
    with pytest.raises(ValueError, match="no curvature named 'fisher'"):
        block_eigenvalues(subject, "fisher")


def test_measurements_of_a_quadratic():
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    subject = Subject(nn.Linear(2, 1, bias=False), [(x, torch.zeros(2, 1))], SquaredError())
    first, second = probe(subject)
    assert (first.name, second.name, first.of) == ("hessian_eigenvalue_1", "hessian_eigenvalue_2", "")
    assert (first.value, second.value) == (pytest.approx(2), pytest.approx(0.5))
    assert first.se < 1e-6
    (only,) = blocks_probe(subject)
    assert only.value == pytest.approx(2)
    assert math.isfinite(only.spent.cpu_seconds)

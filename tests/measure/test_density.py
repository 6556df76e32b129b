"""Spectra against known ones: quadrature is exact for polynomials, nothing comes twice."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from isoloss.measure.density import Density, probe, spectral_density  # noqa: E402
from isoloss.measure.products import Product, hessian  # noqa: E402
from tests.oracles import curvature as dense  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of(values):
    """Q diag(values) Q^T."""
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0)).double())[0]
    a = q @ torch.diag(values.double()) @ q.T
    return Product("known", {"w": torch.zeros(n).double()}, lambda v: {"w": a @ v["w"]}), a


def first_vector(n, seed=0):
    v = (
        torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8).double()
        * 2
        - 1
    )
    return v / math.sqrt(n)


def test_quadrature_is_exact_up_to_degree_twice_the_steps():
    product, a = of(torch.linspace(-1, 2, 40))
    steps = 7
    found = spectral_density(product, steps, starts=1)
    v = first_vector(40)
    w = v.clone()
    for power in range(2 * steps + 2):
        quadrature = float(found.weights[0] @ found.nodes[0] ** power)
        exact = float(v @ w)
        if power < 2 * steps:
            assert quadrature == pytest.approx(exact, rel=1e-10, abs=1e-12)
        w = a @ w
    assert quadrature != pytest.approx(exact, rel=1e-10)


def test_nothing_comes_twice_far_past_fifty_steps():
    """Ten eigenvalues apart from a dense rest: without orthogonality they come again and again."""
    spikes = torch.tensor([100.0, 80, 60, 50, 40, 30, 25, 20, 15, 10])
    values = torch.cat([spikes, torch.linspace(0, 1, 390)])
    product, _ = of(values)
    v = first_vector(400)
    found = spectral_density(product, steps=200, starts=1)
    for spike in spikes.tolist():
        near = np.abs(found.nodes[0] - spike) < 1e-6
        assert near.sum() == 1, spike
    assert (found.nodes[0] > 1.001).sum() == len(spikes)
    vectors = torch.linalg.eigh(product.dense())[1]
    weight = found.weights[0][np.abs(found.nodes[0] - 100) < 1e-6][0]
    assert weight == pytest.approx(float(vectors[:, -1] @ v) ** 2, rel=1e-6)


def test_single_precision_has_no_ghosts_either():
    spikes = torch.tensor([100.0, 50, 20])
    values = torch.cat([spikes, torch.linspace(0, 1, 297)])
    _, a = of(values)
    a = a.float()
    product = Product("single", {"w": torch.zeros(300)}, lambda v: {"w": a @ v["w"]})
    found = spectral_density(product, steps=120, starts=2)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        assert (nodes > 1.01).sum() == 3
        assert weights.sum() == pytest.approx(1)


def test_traces_of_functions_are_unbiased_and_know_their_error():
    values = torch.cat([torch.tensor([5.0, 3.0]), torch.linspace(-0.5, 1, 78)])
    product, _ = of(values)
    true = {np.exp: float(values.double().exp().sum()), np.square: float(values.double().square().sum())}
    for f, trace in true.items():
        z = [
            (value - trace) / se
            for value, se in (spectral_density(product, 8, 16, seed).trace(f) for seed in range(30))
        ]
        assert abs(np.mean(z)) < 4 / math.sqrt(len(z)) * max(1.0, np.std(z))
        assert 0.7 < np.std(z) < 1.5


def test_a_share_is_known_no_better_than_the_nodes_beside_it():
    """Nearly all eigenvalues at 0 exactly, or close: one node holds them, on either side."""
    generator = torch.Generator().manual_seed(5)
    for spread in (1e-9, 1e-3, 0.3):
        values = torch.cat([torch.tensor([9.0, 4.0, -2.0]), spread * torch.randn(77, generator=generator)])
        product, _ = of(values)
        true = float((values < 0).float().mean())
        for steps in (6, 20):
            for seed in range(6):
                share, error = spectral_density(product, steps, 8, seed).below(0.0)
                assert abs(share - true) < 2.5 * error
    share, error = spectral_density(product, 80, 12).below(0.0)  # resolved
    assert abs(share - true) < 4 * error
    assert error < 0.05


def test_moments_are_traces_of_powers():
    product, a = of(torch.linspace(-1, 2, 40))
    found = spectral_density(product, 20, starts=40)
    power = torch.eye(40).double()
    for k in range(5):
        value, se = found.moment(k)
        assert abs(value - float(power.trace()) / 40) < 4 * se + 1e-12
        power = power @ a
    assert found.moment(0) == (pytest.approx(1), pytest.approx(0, abs=1e-12))


def test_a_start_that_has_seen_all_it_can_ends():
    values = torch.cat([torch.full((20,), 2.0), torch.full((30,), -1.0)])
    product, _ = of(values)
    found = spectral_density(product, 30, 3)
    assert found.products == 6
    for nodes in found.nodes:
        assert nodes == pytest.approx([-1, 2])
    nothing = Product("zero", {"w": torch.zeros(5)}, lambda v: {"w": 0 * v["w"]})
    assert spectral_density(nothing, 5, 2).nodes[0].tolist() == [0.0]


def test_all_steps_give_the_spectrum_of_a_model():
    subject = dense.SUBJECTS["mlp"]()
    true = np.linalg.eigvalsh(dense.dense_hessian(subject).numpy())
    with hessian(subject) as h:
        found = spectral_density(h, 89, 2)
    assert found.ends == (pytest.approx(true[0], rel=1e-8), pytest.approx(true[-1], rel=1e-8))


def test_a_smoothed_density_adds_up_to_one():
    density = Density(
        (np.array([0.0, 1.0]), np.array([0.5, 2.0])), (np.array([0.3, 0.7]), np.array([0.5, 0.5])), 10, 4
    )
    grid = np.linspace(-2, 4, 2001)
    mean, se = density.smoothed(grid, 0.1)
    assert np.trapezoid(mean, grid) == pytest.approx(1)
    at = np.abs(grid - 1.0).argmin()
    assert mean[at] == pytest.approx(0.5 * 0.7 / (0.1 * math.sqrt(2 * math.pi)), rel=1e-4)
    assert se[at] == pytest.approx(mean[at], rel=1e-4)  # there in one start of two
    assert np.isnan(Density(density.nodes[:1], density.weights[:1], 10, 2).smoothed(grid, 0.1)[1]).all()


def test_measurements():
    found = {one.name: one for one in probe(dense.SUBJECTS["mlp"](), steps=30, starts=6)}
    true = dense.dense_hessian(dense.SUBJECTS["mlp"]())
    norm = found["hessian_norm"]
    assert abs(norm.value - float(true.norm())) < 4 * norm.se
    negative = found["negative_trace"]
    below = torch.linalg.eigvalsh(true).clamp_max(0).sum()
    assert abs(negative.value - float(below)) < 4 * negative.se
    assert found["spectrum_high"].value == pytest.approx(float(torch.linalg.eigvalsh(true)[-1]), rel=1e-4)
    with pytest.raises(ValueError, match="at least one step"):
        spectral_density(of(torch.ones(3))[0], 0)

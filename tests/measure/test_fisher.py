"""Diagonals against those of dense matrices made row by row."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.measure import fisher as module  # noqa: E402
from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from isoloss.measure.fisher import diagonal_fisher, probe  # noqa: E402
from isoloss.measure.products import flatten  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from tests.oracles import curvature as dense  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name):
    subject = dense.SUBJECTS[name]()
    if name == "transformer":
        subject.model.places.requires_grad_(False)  # a parameter of no layer
    return subject


def close(a, b):
    assert float((a - b).abs().max()) < 1e-10 * float(b.abs().max())


NAMES = pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "regression"])


@NAMES
@pytest.mark.parametrize("numbers", [1 << 24, 300])
def test_exact_and_empirical_diagonals(name, numbers, monkeypatch):
    """Also where batches are cut into pieces."""
    monkeypatch.setattr(module, "NUMBERS", numbers)
    subject = made(name)
    found = diagonal_fisher(subject, "exact")
    close(flatten(found.values), dense.dense_gauss_newton(subject).diagonal())
    assert not any(error.any() for error in found.errors.values())
    empirical = diagonal_fisher(subject, "empirical")
    close(flatten(empirical.values), dense.dense_empirical_fisher(subject, together=True).diagonal())


@NAMES
def test_sampled_diagonals_are_unbiased_and_know_their_error(name):
    subject = made(name)
    true = dense.dense_gauss_newton(subject).diagonal()
    squares = []
    for seed in range(4):
        found = diagonal_fisher(subject, "sampled", draws=40, seed=seed)
        error = flatten(found.errors)
        drawn = error > 1e-9 * true.max()  # the others are the same in every draw
        z = (flatten(found.values) - true)[drawn] / error[drawn]
        assert float((flatten(found.values) - true)[~drawn].abs().sum()) < 1e-9 * float(true.max())
        assert float(z.abs().max()) < 6
        squares.append(float(z.square().mean()))
    assert 0.3 < sum(squares) / len(squares) < 2.2
    one = diagonal_fisher(subject, "sampled", draws=1)
    assert all(error.isnan().all() for error in one.errors.values())


def test_words_looked_up_twice_and_words_without_a_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(6, 3, padding_idx=2), nn.Flatten(), nn.Linear(12, 4)).double()
    ids = torch.tensor([[1, 1, 1, 4], [2, 0, 2, 0], [5, 4, 3, 1]])
    subject = Subject(net, [(ids, torch.tensor([0, 3, 1]))], CrossEntropy())
    close(flatten(diagonal_fisher(subject, "exact").values), dense.dense_gauss_newton(subject).diagonal())
    assert not diagonal_fisher(subject, "empirical").values["0.weight"][2].any()


def test_what_cannot_be_is_refused():
    subject = made("mlp")
    with pytest.raises(ValueError, match="no diagonal named 'true'"):
        diagonal_fisher(subject, "true")
    with pytest.raises(ValueError, match="at least one draw"):
        diagonal_fisher(subject, draws=0)
    with pytest.raises(TypeError, match="MultiheadAttention"):
        diagonal_fisher(dense.SUBJECTS["encoder"]())


def test_measurements_are_means_over_tensors():
    subject = made("mlp")
    exact = diagonal_fisher(subject, "exact")
    z: dict[str, list[float]] = {}
    for seed in range(25):
        for one in probe(subject, draws=4, seed=seed):
            z.setdefault(one.of, []).append((one.value - float(exact.values[one.of].mean())) / one.se)
    for name, each in z.items():
        assert abs(sum(each)) < 4 * len(each) ** 0.5, name
        assert 0.4 < sum(x * x for x in each) / len(each) < 2.2, name

"""Products against dense matrices: double backward, differences of gradients, Jacobians row by row."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.products import (  # noqa: E402
    Product,
    asymmetry,
    disagreement,
    empirical_fisher,
    fisher,
    flatten,
    gauss_newton,
    hessian,
    rest,
    switched,
    unflatten,
)
from isoloss.measure.subject import Subject  # noqa: E402
from tests.oracles import curvature as dense  # noqa: E402

EVERY = pytest.mark.parametrize("name", dense.SUBJECTS)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(a, b, relative=1e-10):
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= relative * float(b.abs().max())


def vectors(product, count=6):
    generator = torch.Generator().manual_seed(8)
    return torch.randn(count, product.size, generator=generator, dtype=torch.float64)


@EVERY
def test_the_hessian_is_that_of_double_backward_and_of_differences(name):
    subject = dense.SUBJECTS[name]()
    with hessian(subject) as h:
        found = h.dense()
    close(found, dense.dense_hessian(subject))
    close(found[:, ::19], dense.difference_hessian(subject, every=19), 1e-6)
    close(found, found.T)


@EVERY
def test_gauss_newton_and_rest_add_up_to_the_hessian(name):
    subject = dense.SUBJECTS[name]()
    truth = dense.dense_gauss_newton(subject)
    with hessian(subject) as h, gauss_newton(subject) as g, rest(subject) as r:
        for v in vectors(h):
            close(g.flat(v), truth @ v)
            close(g.flat(v) + r.flat(v), h.flat(v))


@EVERY
@pytest.mark.parametrize("together", [False, True])
def test_the_empirical_fisher_is_that_of_gradients_row_by_row(name, together):
    subject = dense.SUBJECTS[name]()
    truth = dense.dense_empirical_fisher(subject, together)
    with empirical_fisher(subject, together=together) as e:
        for v in vectors(e):
            close(e.flat(v), truth @ v)


@pytest.mark.parametrize("name", ["mlp", "regression"])
def test_the_sampled_fisher_is_fixed_within_its_block_and_gauss_newton_in_expectation(name):
    subject = dense.SUBJECTS[name]()
    torch.manual_seed(0)
    with fisher(subject, draws=2, seed=1) as f, fisher(subject, draws=2, seed=1, keep=False) as again:
        v = torch.randn(f.size).double()
        close(f.flat(v), f.flat(v), 1e-14)
        close(f.flat(v), again.flat(v))
        assert asymmetry(f) < 1e-13
    draws = []
    for seed in range(40):
        with fisher(subject, seed=seed) as f:
            draws.append(float(v @ f.flat(v)))
    truth = float(v @ dense.dense_gauss_newton(subject) @ v)
    draws = torch.tensor(draws)
    assert abs(float(draws.mean()) - truth) < 4 * float(draws.std()) / len(draws) ** 0.5
    assert float(draws.std()) > 0.01 * truth


@EVERY
def test_products_made_anew_are_those_of_kept_graphs(name):
    subject = dense.SUBJECTS[name]()
    for kind in (hessian, gauss_newton, rest, empirical_fisher):
        with kind(subject) as kept, kind(subject, keep=False) as anew:
            v = torch.randn(kept.size, generator=torch.Generator().manual_seed(2)).double()
            first = anew.flat(v)
            close(first, kept.flat(v))
            close(anew.flat(v), first, 1e-14)


@EVERY
def test_blocks_are_blocks_of_the_whole(name):
    subject = dense.SUBJECTS[name]()
    names = list(subject.parameters())[1:3]
    at, begin = [], 0
    for key, p in subject.parameters().items():
        at += range(begin, begin + p.numel()) if key in names else []
        begin += p.numel()
    for kind in (hessian, gauss_newton, rest, empirical_fisher):
        with kind(subject) as whole, kind(subject, only=names[::-1]) as block:
            assert list(block.like) == names
            v = torch.zeros(whole.size).double()
            v[at] = torch.randn(len(at), generator=torch.Generator().manual_seed(3)).double()
            close(block.flat(v[at]), whole.flat(v)[at])


def test_batch_norm_without_running_statistics_mixes_examples_and_is_exact():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    net = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2)).double().train()
    subject = Subject(net, dense.batches(lambda n: torch.randn(n, 3).double(), (5, 4), 2), CrossEntropy())
    with hessian(subject) as h, gauss_newton(subject) as g:
        close(h.dense(), dense.difference_hessian(subject), 1e-6)
        close(g.dense(), dense.dense_gauss_newton(subject))


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    net[2].eval()
    subject = Subject(net, dense.batches(lambda n: torch.randn(n, 3), (5,), 2), CrossEntropy())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    for kind in (hessian, gauss_newton, rest, fisher, empirical_fisher):
        with kind(subject) as product:
            product.flat(torch.randn(product.size))
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_frozen_parameters_are_left_out_and_unused_ones_are_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.frozen, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(torch.tanh(self.used(x)))

    torch.manual_seed(0)
    subject = Subject(
        Net().double(), dense.batches(lambda n: torch.randn(n, 3).double(), (5,), 2), CrossEntropy()
    )
    for kind, truth in ((hessian, dense.dense_hessian), (gauss_newton, dense.dense_gauss_newton)):
        with kind(subject) as product:
            assert list(product.like) == ["used.weight", "used.bias", "unused.weight", "unused.bias"]
            found = product.dense()
        close(found, truth(subject))
        assert not found[16:].any()


def test_any_function_has_a_hessian_and_no_more():
    subject = dense.mlp()
    other = Subject(subject.model, subject.batches, lambda z, y: (F.softplus(z).sum(1) - y).square().mean())
    with hessian(other) as h:
        close(h.dense(), dense.difference_hessian(other), 1e-6)
    for kind in (gauss_newton, rest, fisher, empirical_fisher):
        with pytest.raises(TypeError, match="whose curvature is known"), kind(other):
            pass


def test_a_loss_linear_in_the_parameters_has_no_curvature():
    subject = Subject(nn.Linear(3, 1), [(torch.randn(4, 3), torch.zeros(4))], lambda z, y: z.mean())
    with hessian(subject) as h:
        assert not h.dense().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_gives_what_it_can(dtype):
    subject = dense.mlp()
    truth = dense.dense_hessian(subject)
    cast = Subject(subject.model.to(dtype), [(x.to(dtype), y) for x, y in subject.batches], CrossEntropy())
    with hessian(cast) as h:
        found = h.dense()
    assert found.dtype == dtype
    close(found.double(), truth, 1e-5 if dtype == torch.float32 else 0.1)


def test_products_work_where_the_caller_has_gradients_off():
    subject = dense.mlp()
    with torch.no_grad():
        for kind in (hessian, gauss_newton):
            for keep in (True, False):
                with kind(subject, keep=keep) as product:
                    assert product.flat(torch.ones(product.size).double()).isfinite().all()


def test_what_cannot_be_is_said():
    subject = dense.mlp()
    with (
        pytest.raises(ValueError, match="no parameter with a gradient named 'x'"),
        hessian(subject, only=["x"]),
    ):
        pass
    with pytest.raises(ValueError, match="at least one draw"), fisher(subject, draws=0):
        pass
    ignored = Subject(
        subject.model, [(x, torch.full_like(y, -100)) for x, y in subject.batches], CrossEntropy()
    )
    with pytest.raises(ValueError, match="all are the ignored index"), hessian(ignored):
        pass
    subject.model.requires_grad_(False)
    with pytest.raises(ValueError, match="at least one parameter that takes a gradient"), hessian(subject):
        pass


def test_a_batch_of_ignored_rows_counts_nothing():
    subject = dense.mlp()
    more = [*subject.batches, (torch.randn(3, 5).double(), torch.full((3,), -100))]
    with hessian(subject) as h, hessian(Subject(subject.model, more, CrossEntropy())) as same:
        close(same.dense(), h.dense())


def test_a_backward_pass_that_is_wrong_twice_over_is_noticed():
    class Cut(torch.autograd.Function):
        """Its gradient is right; what that depends on is hidden from a second one."""

        @staticmethod
        def forward(ctx, x):
            ctx.slope = 2 * x.detach()
            return x * x

        @staticmethod
        def backward(ctx, g):
            return g * ctx.slope

    class Square(nn.Module):
        def __init__(self, cut):
            super().__init__()
            self.cut = cut

        def forward(self, x):
            return Cut.apply(x) if self.cut else x * x

    torch.manual_seed(0)
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    for cut in (False, True):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 4), Square(cut), nn.Linear(4, 2)).double()
        subject = Subject(net, [(x, y)], SquaredError())
        with hessian(subject) as h:
            found = disagreement(subject, h)
        assert found > 0.05 if cut else found < 1e-6


def test_asymmetry_is_rounding_for_what_is_symmetric():
    subject = dense.transformer()
    with hessian(subject) as h, gauss_newton(subject) as g:
        assert asymmetry(h) < 1e-13
        assert asymmetry(g) < 1e-13
        assert disagreement(subject, h) < 1e-6
        with pytest.raises(ValueError, match="got gauss_newton"):
            disagreement(subject, g)
    turn = Product("turn", {"a": torch.zeros(4)}, lambda v: {"a": v["a"].roll(1)})
    assert asymmetry(turn) > 0.01


def test_what_is_changed_or_trusted_is_said():
    assert switched(dense.transformer()) == ", attention in its math form"
    assert switched(dense.mlp()) == ""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    class Net(nn.Linear):
        def forward(self, x):
            return Twice.apply(super().forward(x))

    said = switched(Subject(Net(3, 2), [(torch.ones(2, 3), torch.zeros(2, 2))], SquaredError()))
    assert said == ", the backward pass that the model brings for Twice taken as right"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.inner(x)[0][:, -1])

    torch.manual_seed(0)
    data = dense.batches(lambda n: torch.randn(n, 5, 3).double(), (4,), 2)
    subject = Subject(Net().double(), data, CrossEntropy())
    with hessian(subject) as h:
        assert disagreement(subject, h) < 1e-8


def test_flat_and_back():
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(())}
    v = torch.arange(7.0)
    assert flatten(unflatten(v, like)).equal(v)

"""Norms of per-example gradients against gradients of one example at a time, and what must be refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from isoloss.measure.ghost import recording, squared_norms, verify  # noqa: E402
from isoloss.measure.subject import Subject, chunks, resized  # noqa: E402
from tests.oracles import curvature as dense  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tied(nn.Module):
    """Head before embedding, so that the first name is not that of the first call; a layer called twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 11, bias=False)
        self.words = nn.Embedding(11, 8, padding_idx=3)
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.words.weight = self.head.weight

    def forward(self, ids):
        x = self.words(ids)
        x = x + torch.tanh(self.mix(input=self.norm(x)))
        return self.head(x + self.mix(x))


class Places(nn.Module):
    """Position embeddings without a dimension of examples, by one index list or one row."""

    def __init__(self, row):
        super().__init__()
        self.row, self.words, self.places, self.head = (
            row,
            nn.Embedding(7, 4),
            nn.Embedding(6, 4),
            nn.Linear(4, 3),
        )

    def forward(self, ids):
        where = torch.arange(ids.shape[1])
        return self.head(
            torch.tanh(self.words(ids) + self.places(where[None] if self.row else where)).mean(1)
        )


def images(*size):
    return lambda: torch.randn(5, *size).double()


def conv(*layers, flat):
    return lambda: nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 3))


CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), images(5)),
    "in place": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)), images(5)),
    "few positions": (lambda: nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 6)), images(2, 9)),
    "many positions": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), images(9, 3)),
    "image": (
        conv(nn.Conv2d(3, 4, 3, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 6, 3), flat=6), images(3, 6, 6)
    ),
    "dilated": (conv(nn.Conv2d(3, 4, (3, 1), dilation=(2, 1), bias=False), nn.GELU(), flat=48), images(3, 6, 6)),
    "grouped": (conv(nn.Conv2d(4, 8, 3, groups=4, padding=(1, 0)), nn.GroupNorm(2, 8), flat=8 * 24), images(4, 6, 6)),
    "same": (conv(nn.Conv2d(2, 4, (3, 5), padding="same"), nn.BatchNorm2d(4), flat=100), images(2, 5, 5)),
    "circular": (conv(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), flat=100), images(2, 5, 5)),
    "sound": (conv(nn.Conv1d(4, 6, 3, 2, padding=1, groups=2), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 2, 2), flat=4), images(4, 6)),
    "volume": (conv(nn.Conv3d(1, 2, 2, padding=1), nn.BatchNorm3d(2), nn.ReLU(), flat=2 * 64), images(1, 3, 3, 3)),
    "norms": (lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.RMSNorm(4), nn.Flatten(), nn.Linear(12, 2)), images(3, 4)),
    "tied": (Tied, lambda: torch.randint(0, 11, (4, 6))),
    "list of places": (lambda: Places(False), lambda: torch.randint(0, 7, (4, 6))),
    "as many places as examples": (lambda: Places(False), lambda: torch.randint(0, 7, (6, 6))),
    "row of places": (lambda: Places(True), lambda: torch.randint(0, 7, (4, 6))),
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    model, data = CASES[name]
    net, x = model().double(), data()
    if x.is_floating_point():
        net.train()(x * 2 + 1)  # running statistics that are not 0 and 1
        with torch.no_grad():
            for p in net.parameters():
                p += 0.1 * torch.randn_like(p)
    return net.eval(), x


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("planned", [1, 20])
def test_norms_are_those_of_gradients_one_by_one(name, planned):
    net, x = made(name)
    subject = Subject(net, [(x, torch.zeros(len(x)))], CrossEntropy())
    seen = verify(subject)
    with recording(net, len(x), seen.shared) as tape:
        z = net(x)
    tape.plan(planned)
    cotangent = torch.randn_like(z)
    found = squared_norms(tape, z, cotangent)
    like = subject.parameters()
    assert set(found) == set(like)
    for key, p in like.items():
        true = []
        for b in range(len(x)):
            (g,) = torch.autograd.grad(net(x[b : b + 1]), [p], cotangent[b : b + 1])
            true.append(g.square().sum())
        torch.testing.assert_close(found[key], torch.stack(true), rtol=1e-10, atol=1e-12)


def test_low_precision_is_summed_in_single():
    net, x = made("grouped")
    with recording(net) as tape:
        z = net(x)
    true = squared_norms(tape, z, torch.ones_like(z))
    low, y = net.to(torch.bfloat16), x.to(torch.bfloat16)
    with recording(low) as tape:
        z = low(y)
    found = squared_norms(tape, z, torch.ones_like(z))
    for key, value in true.items():
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key].double(), value, rtol=0.1, atol=0.02 * float(value.max()))


def of(net, x):
    return Subject(net, [(x, torch.zeros(len(x)).long())], CrossEntropy())


class Functional(nn.Module):
    """Uses another module's weight without calling it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(F.linear(torch.tanh(self.a(x)), self.a.weight))


class Standardised(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(), self.bias)


class Turned(nn.Module):
    """Positions first, examples second."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.transpose(0, 1)))).transpose(0, 1)


class Flattened(Turned):
    def forward(self, x):
        return self.b(torch.tanh(self.a(x.flatten(0, 1)))).unflatten(0, x.shape[:2])


def test_what_hooks_do_not_see_is_refused():
    torch.manual_seed(0)
    mixing = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False, track_running_stats=False), nn.Linear(4, 3)
    )
    for net, x, why in (
        (Functional(), torch.randn(6, 4), "used elsewhere too"),
        (Standardised(4, 3), torch.randn(6, 4), r"the model itself \(Standardised\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3)), torch.randn(6, 4), r"got 1 \(LSTM\)"),
        (nn.Sequential(nn.Bilinear(2, 2, 1)), torch.randn(6, 4), r"0 \(Bilinear\)"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
            torch.randn(6, 4),
            "parametrizations.weight",
        ),
        (nn.MultiheadAttention(4, 2), torch.randn(6, 4), "MultiheadAttention"),
        (nn.Embedding(5, 3, scale_grad_by_freq=True), torch.zeros(6, 2).long(), "Embedding"),
        (mixing, torch.randn(6, 4), "mixes examples"),
        (Turned(), torch.randn(6, 5, 4), "the examples along the first dimension"),
        (Turned(), torch.randn(6, 3, 4), "mixes examples or does not have them"),
        (Flattened(), torch.randn(6, 5, 4), "the examples along the first dimension"),
    ):
        with pytest.raises(TypeError, match=why):
            verify(of(net, x))
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(TypeError, match="mixes examples"):
        verify(of(norm, torch.randn(6, 4)))


def test_an_input_overwritten_later_is_refused():
    class Over(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
            self.a.weight.requires_grad_(False)

        def forward(self, x):
            x = x * 1.0
            out = self.b(x)
            x += 1
            return out

    torch.manual_seed(0)
    with pytest.raises(TypeError, match="that of b is overwritten later"):
        verify(of(Over(), torch.randn(6, 4)))


def test_the_model_is_left_as_it_was():
    net, x = made("image")
    net.train()
    subject = of(net, x)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    verify(subject)
    assert net.training
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_batches_in_pieces():
    x, y = torch.arange(10).view(5, 2), torch.arange(5)
    mask = torch.ones(2, 2)
    parts = chunks(({"ids": x, "mask": mask, "more": (y, None)}, y), 2)
    assert [len(targets) for _, targets in parts] == [2, 2, 1]
    assert torch.cat([inputs["ids"] for inputs, _ in parts]).equal(x)
    assert torch.cat([inputs["more"][0] for inputs, _ in parts]).equal(y)
    assert all(inputs["mask"] is mask for inputs, _ in parts)
    whole = (x, y)
    assert chunks(whole, 5)[0] is whole
    with pytest.raises(ValueError, match="at least one example"):
        chunks(whole, 0)
    assert len(resized(whole, 2)[1]) == 2


@pytest.mark.parametrize("name", ["mlp", "regression"])
def test_small_subjects_are_verified(name):
    assert not verify(dense.SUBJECTS[name]()).shared

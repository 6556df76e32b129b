"""Dense curvature matrices by the shortest route, and small subjects to try products on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from isoloss.measure.criteria import Criterion, CrossEntropy, SquaredError
from isoloss.measure.subject import Subject


class Attention(nn.Module):
    """A small pre-norm transformer with the fused attention function and a tied head."""

    def __init__(self, width=4, words=5, tied=True):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.places = nn.Parameter(0.1 * torch.randn(5, width))
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids) + self.places[: ids.shape[1]]
        q, k, v = (
            part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(self.last(x))


class Encoder(nn.Module):
    """The library's encoder layer, which has a fused path of its own in eval mode."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


def batches(make, sizes, classes, seed=0, shape=()):
    """Batches of unequal sizes of inputs ``make(size)`` and random labels (size, *shape)."""
    torch.manual_seed(seed)
    return [(make(n), torch.randint(0, classes, (n, *shape))) for n in sizes]


def mlp(act=nn.Tanh, sizes=(6, 4)):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 7), act(), nn.Linear(7, 4), act(), nn.Linear(4, 3)).double()
    return Subject(net, batches(lambda n: torch.randn(n, 5).double(), sizes, 3), CrossEntropy())


def cnn(act=nn.GELU, sizes=(4, 3)):
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), act(), nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.GroupNorm(2, 4), act(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    net(torch.randn(16, 2, 6, 6).double() * 2 + 1)  # running statistics that are not 0 and 1
    with torch.no_grad():
        for p in net.parameters():
            p += 0.3 * torch.randn_like(p)
    return Subject(net, batches(lambda n: torch.randn(n, 2, 6, 6).double(), sizes, 3), CrossEntropy())


def transformer(tied=True):
    torch.manual_seed(3)
    net = Attention(tied=tied).double()
    data = batches(lambda n: torch.randint(0, 5, (n, 5)), (3, 2), 5, shape=(5,))
    data[0][1][0, 2:] = -100  # rows that do not count, unevenly
    return Subject(net, data, CrossEntropy())


def encoder():
    torch.manual_seed(4)
    return Subject(
        Encoder().double().eval(), batches(lambda n: torch.randn(n, 4, 4).double(), (3, 2), 3), CrossEntropy()
    )


def regression():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Linear(6, 2)).double()
    data = [(torch.randn(n, 3).double(), torch.randn(n, 2).double()) for n in (5, 2)]
    return Subject(net, data, SquaredError())


SUBJECTS = {"mlp": mlp, "cnn": cnn, "transformer": transformer, "encoder": encoder, "regression": regression}


def _flat(subject):
    named = {n: p.detach() for n, p in subject.model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]

    def unflat(theta):
        return {n: part.view_as(p) for (n, p), part in zip(named.items(), theta.split(sizes), strict=True)}

    return torch.cat([p.reshape(-1) for p in named.values()]), unflat


def losses(subject):
    """theta -> (summed loss of counted rows) / their number; all in eval mode, attention by its definition."""
    start, unflat = _flat(subject)
    modes = [(m, m.training) for m in subject.model.modules()]

    def total(theta):
        subject.model.eval()
        weight = value = 0.0
        for x, y in subject.batches:
            z = functional_call(subject.model, unflat(theta), (x,))
            n = subject.criterion.rows(y) if isinstance(subject.criterion, Criterion) else len(x)
            value, weight = value + subject.criterion(z, y) * n, weight + n
        for m, mode in modes:
            m.training = mode
        return value / weight

    return start, total


def _plain():
    """Torch without fused attention."""
    torch.backends.mha.set_fastpath_enabled(False)
    return sdpa_kernel(SDPBackend.MATH)


def dense_hessian(subject):
    start, total = losses(subject)
    grouped = any(
        getattr(m, "groups", 1) > 1 for m in subject.model.modules()
    )  # which torch cannot vectorize
    with _plain():
        found = torch.autograd.functional.hessian(total, start, vectorize=not grouped)
    torch.backends.mha.set_fastpath_enabled(True)
    return found


def difference_hessian(subject, step=1e-5, every=1):
    """Central differences of the gradient, every so many columns; attention as the model has it."""
    start, total = losses(subject)
    columns = []
    for i in range(0, len(start), every):
        ends = []
        for sign in (1, -1):
            theta = start.clone()
            theta[i] += sign * step
            theta.requires_grad_()
            ends.append(torch.autograd.grad(total(theta), theta)[0])
        columns.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(columns, 1)


def rows_of(subject):
    """For every counted row of outputs: its Jacobian (columns, P), its outputs and its target, and the example it is of."""
    start, unflat = _flat(subject)
    modes = [(m, m.training) for m in subject.model.modules()]
    subject.model.eval()
    first = 0
    with _plain():
        for x, y in subject.batches:
            classes = y.dtype == torch.int64

            def run(theta, x=x):
                z = functional_call(subject.model, unflat(theta), (x,))
                return z.reshape(-1, z.shape[-1])

            jacobian, z = torch.autograd.functional.jacobian(run, start), run(start).detach()
            labels = y.reshape(-1) if classes else y
            each = len(z) // len(x)
            for i in range(len(z)):
                if not (classes and labels[i] == -100):
                    yield jacobian[i], z[i], labels[i], first + i // each
            first += len(x)
    torch.backends.mha.set_fastpath_enabled(True)
    for m, mode in modes:
        m.training = mode


def output_hessian(z, y):
    p = torch.softmax(z, 0)
    return torch.eye(len(z)).to(z) if y.ndim else torch.diag(p) - torch.outer(p, p)


def output_slope(z, y):
    return z - y if y.ndim else torch.softmax(z, 0) - F.one_hot(y, len(z))


def dense_gauss_newton(subject):
    pieces = [j.T @ output_hessian(z, y) @ j for j, z, y, _ in rows_of(subject)]
    return torch.stack(pieces).mean(0)


def dense_empirical_fisher(subject, together=False):
    grads, examples = [], []
    for j, z, y, b in rows_of(subject):
        grads.append(j.T @ output_slope(z, y))
        examples.append(b)
    count = len(grads)
    if together:
        grads = [
            torch.stack([g for g, e in zip(grads, examples, strict=True) if e == b]).sum(0)
            for b in set(examples)
        ]
    g = torch.stack(grads)
    return g.T @ g / count

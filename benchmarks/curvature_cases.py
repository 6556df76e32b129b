"""Networks, peers and clocks of the curvature benchmark."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

PEERS = {
    "curvlinops": "curvlinops", "hessian_eigenthings": "hessian-eigenthings", "backpack": "BackPACK", "pyhessian": "PyHessian",
}  # fmt: skip


def have(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def mlp(*sizes: int, act: Any = None) -> Any:
    from torch import nn

    layers: list[Any] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), (act or nn.ReLU)()]
    return nn.Sequential(*layers[:-1])


def convolutions() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def classes(net: Any, count: int, *shape: int, seed: int = 0) -> Any:
    """A subject of random inputs and labels."""
    import torch

    from isoloss.measure.criteria import CrossEntropy
    from isoloss.measure.subject import Subject

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator)
    y = torch.randint(0, 10, (count,), generator=generator)
    return Subject(net.eval(), [(x, y)], CrossEntropy())


def digits(sizes: tuple[int, ...] = (64, 128, 64, 10), epochs: int = 5) -> Any:
    """An MLP trained on the digits of scikit-learn, with 1,437 of them."""
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits

    from isoloss.measure.criteria import CrossEntropy
    from isoloss.measure.subject import Subject

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels[:1437] / 16).float(), torch.tensor(labels[:1437])
    torch.manual_seed(0)
    net = mlp(*sizes)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    return Subject(net.eval(), [(x, y)], CrossEntropy())


def gpt(width: int, layers: int, windows: int, length: int, steps: int) -> Any:
    """The project's GPT as ordinary modules, trained for some steps on the standard library's source."""
    import torch
    import torch.nn.functional as F

    from isoloss.measure.criteria import CrossEntropy
    from isoloss.measure.subject import Subject
    from isoloss.trainers import gpt_modules, text
    from isoloss.trainers.gpt_settings import Settings
    from isoloss.trainers.transformer import GPT

    settings = Settings.read(
        {"width": width, "layers": layers, "tokens": 1024, "seq_len": length, "batch_tokens": 4 * length}
    )
    torch.manual_seed(0)
    net = gpt_modules.of(GPT(settings), settings)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(0, 0.02)
    corpus = torch.from_numpy(text.load("stdlib").training[: 1 << 22].copy())

    def drawn(count: int) -> tuple[Any, Any]:
        at = torch.randint(0, len(corpus) - length - 1, (count,))
        rows = torch.stack([corpus[a : a + length + 1] for a in at]).long()
        return rows[:, :-1], rows[:, 1:]

    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(steps):
        x, y = drawn(32)
        optimiser.zero_grad()
        F.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
        optimiser.step()
    return Subject(net.eval(), [drawn(windows)], CrossEntropy())


# -- timing ------------------------------------------------------------------------------------------------


def least(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each, in turns; NaN for a task that fails."""
    best = dict.fromkeys(tasks, math.inf)
    for _ in range(rounds):
        for name, task in tasks.items():
            if math.isnan(best[name]):
                continue
            began = time.process_time()
            try:
                task()
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
                best[name] = math.nan
                continue
            best[name] = min(best[name], time.process_time() - began)
    return best


def gradient(subject: Any) -> Callable[[], Any]:
    import torch

    held = list(subject.parameters().values())
    return lambda: [torch.autograd.grad(subject.loss(batch), held) for batch in subject.batches]


def curvlinops_product(subject: Any, kind: str = "Hessian") -> Callable[[Any], Any]:
    import curvlinops
    from torch import nn

    names = {"Hessian": curvlinops.HessianLinearOperator, "GGN": curvlinops.GGNLinearOperator}
    flat = Flat(subject.model) if subject.batches[0][1].ndim > 1 else subject.model
    held = [p for p in flat.parameters() if p.requires_grad]
    data = [(x, y.flatten()) for x, y in subject.batches]
    operator = names[kind](
        flat,
        nn.CrossEntropyLoss(),
        held,
        data,
        check_deterministic=False,
        num_data=sum(len(y) for _, y in data),
    )
    return lambda v: operator @ v


def eigenthings_product(subject: Any) -> Callable[[Any], Any]:
    return eigenthings_operator(subject).matvec


def eigenthings_operator(subject: Any) -> Any:
    from hessian_eigenthings import HessianOperator

    return HessianOperator(
        subject.model, subject.batches, lambda model, batch: subject.criterion(model(batch[0]), batch[1])
    )


def Flat(model: Any) -> Any:
    """Rows of logits from a model of sequences; curvlinops wants them so."""
    from torch import nn

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Any:
            return self.inner(x).flatten(0, -2)

    return Flattened().eval()


def backpack_traces(subject: Any, samples: int | None) -> Callable[[], dict[str, float]]:
    import backpack
    from backpack import extensions
    from torch import nn

    model, loss = backpack.extend(copy.deepcopy(subject.model)), backpack.extend(nn.CrossEntropyLoss())
    x, y = subject.batches[0]
    what = extensions.DiagGGNExact() if samples is None else extensions.DiagGGNMC(mc_samples=samples)
    kept = "diag_ggn_exact" if samples is None else "diag_ggn_mc"

    def run() -> dict[str, float]:
        for p in model.parameters():
            p.grad = None
        with backpack.backpack(what):
            loss(model(x), y).backward()
        return {name: float(getattr(p, kept).sum()) for name, p in model.named_parameters()}

    return run

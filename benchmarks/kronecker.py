"""Kronecker-factored Fisher matrices against dense blocks, ours and curvlinops'; and what helps conjugate gradients.

    python -m benchmarks.kronecker [--out docs/measure-inverse.md]

The first table has the distance of each approximation to the Gauss-Newton matrix's blocks (a weight and its bias are a
block), over the blocks' norm, in float64 on small nets with random data; exact columns of the outputs' curvature
("type-2"). The second is of the digits' MLP of `benchmarks.inverse_fisher`:
products that conjugate gradients take to a relative residual of 1e-6 on :math:`(G + \\lambda) x = g_i`.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import page
from benchmarks.inverse_fisher import problem
from isoloss.measure.criteria import CrossEntropy, SquaredError
from isoloss.measure.influence import solve
from isoloss.measure.kfac import kfac
from isoloss.measure.latency import load
from isoloss.measure.per_example import fisher_gradients, loss_gradients
from isoloss.measure.products import flatten, gauss_newton, unflatten
from isoloss.measure.subject import Subject
from isoloss.measure.woodbury import inverse_fisher

DAMPINGS = (1e-2, 1e-3)


class Sequences(nn.Module):
    """Two layers over sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).tanh())
        return out


class Flat(nn.Module):
    """The same with the positions of all examples as rows, as curvlinops wants them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x).flatten(0, 1)
        return out


def cases() -> dict[str, Subject]:
    """Small nets with data."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    mlp = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    cnn = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    normed = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    rows, labels = torch.randn(20, 5), torch.randint(0, 4, (20,))
    linear = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4))
    return {
        "deep linear, squared error": Subject(linear, [(rows, torch.randn(20, 4))], SquaredError()),
        "MLP": Subject(mlp, [(rows, labels)], CrossEntropy()),
        "CNN": Subject(cnn, [(torch.randn(20, 2, 6, 6), labels)], CrossEntropy()),
        "MLP with LayerNorm": Subject(normed, [(rows, labels)], CrossEntropy()),
        "sequences": Subject(Sequences(), [(torch.randn(20, 3, 5), torch.randint(0, 4, (20, 3)))], CrossEntropy()),
    }  # fmt: skip


def blocks(subject: Subject) -> Tensor:
    """The Gauss-Newton matrix without what lies between layers."""
    with gauss_newton(subject) as product:
        whole = torch.stack([product.flat(row) for row in torch.eye(product.size)], dim=1)
    layer = [name.rpartition(".")[0] for name in subject.parameters()]
    owner = torch.cat([
        torch.full((p.numel(),), layer.index(layer[i])) for i, p in enumerate(subject.parameters().values())
    ])  # fmt: skip
    return whole * (owner[:, None] == owner)


def ours(subject: Subject, corrected: bool) -> Tensor:
    found = kfac(subject, 1.0, corrected, draws=None)
    size = sum(p.numel() for p in found.like.values())
    return torch.stack([flatten(found.times(unflatten(row, found.like))) for row in torch.eye(size)], dim=1)


def curvlinops(subject: Subject, corrected: bool) -> Tensor:
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    model, ((x, y),) = subject.model, subject.batches
    squared = isinstance(subject.criterion, SquaredError)
    sequences = not squared and y.ndim > 1
    data = [(x, y.flatten() if sequences else y)]
    model = Flat(model) if sequences else model
    operator = (EKFACLinearOperator if corrected else KFACLinearOperator)(
        model, nn.MSELoss() if squared else nn.CrossEntropyLoss(), list(model.parameters()), data,
        fisher_type="type-2", separate_weight_and_bias=False, check_deterministic=False,
        num_per_example_loss_terms=y.shape[1] if sequences else None, batch_size_fn=len,
    )  # fmt: skip
    size = sum(p.numel() for p in model.parameters())
    # Its squared error is the mean over all numbers: 2 / columns of ours.
    return (operator @ torch.eye(size)) * (y.shape[1] / 2 if squared else 1)


def approximations() -> str:
    """The first table."""
    there = importlib.util.find_spec("curvlinops") is not None
    tools: dict[str, Callable[[Subject, bool], Tensor]] = {"isoloss": ours}
    if there:
        tools["curvlinops"] = curvlinops
    head = ["distance to the blocks", *(f"{tool} {kind}" for tool in tools for kind in ("K-FAC", "EK-FAC"))]
    rows = []
    for name, subject in cases().items():
        truth, line = blocks(subject), [name]
        for tool in tools.values():
            for corrected in (False, True):
                try:
                    line.append(f"{float((tool(subject, corrected) - truth).norm() / truth.norm()):.2g}")
                except NotImplementedError:
                    line.append("refused")
        rows.append(line)
    torch.set_default_dtype(torch.float32)
    return page.table(head, rows, range(1, len(head))) + ("" if there else "\n\nNot installed: curvlinops.")


def solves() -> str:
    """The second table."""
    model, x, y = problem((64, 256, 256, 10))
    subject = Subject(model, [(x, y)], CrossEntropy())
    rows = loss_gradients(subject)
    unit = torch.zeros(rows.count)
    unit[700] = 1
    b = rows.combine(unit)
    found = []
    for damping in DAMPINGS:
        near: dict[str, Any] = {
            "none": None,
            "empirical": inverse_fisher(rows, damping).flat,
            "one draw": inverse_fisher(fisher_gradients(subject), damping).flat,
            "EK-FAC": kfac(subject, damping).flat,
        }
        with gauss_newton(subject) as product:
            used = [solve(product, b, damping, 1e-6, 3000, each).products for each in near.values()]
        found.append([f"{damping:g}", *(str(count) for count in used)])
    head = [
        "damping",
        "no preconditioner",
        "inverse empirical Fisher",
        "inverse of one draw of the Fisher",
        "EK-FAC",
    ]
    return page.table(head, found, range(5))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    before = load()
    text = "\n\n".join(
        [approximations(), solves(), f"{page.machine()} Load {before:.1f} before, {load():.1f} after."]
    )
    print(text)
    if args.out:
        page.put(args.out, "kronecker", text)


if __name__ == "__main__":
    main()

"""Inverse-Fisher products side by side: time, memory, and digits against a float64 reference.

    python -m benchmarks.inverse_fisher [--quick] [--out docs/benchmarks.md]

The empirical Fisher matrix of an MLP (64-256-256-10, 85,002 parameters) on the 1,437 training digits of scikit-learn,
damping 1e-5. Every method makes the gradients itself, prepares, and multiplies two vectors: a random one, and one in
the span of the gradients, where the product's two terms cancel. Each runs in a process of its own, the methods in turn; CPU
seconds of one thread, least of three processes for the preparation and of nine products (slow ones once); memory is the
growth of the process at its most. Errors are against the inverse of the same gradients in float64 with one step of refinement.

A second table is of a smaller MLP (64-24-10, 1,810 parameters), where the matrix is formed and inverted. A third is of
the sliding window: replace the oldest of m gradients, and multiply. curvlinops and the published form of M-FAC (its
algorithm, written anew in a few lines) stand beside.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
DAMPING, EXAMPLES = 1e-5, 1437
LARGE, SMALL = (64, 256, 256, 10), (64, 24, 10)
PROCESSES, PRODUCTS = 3, 9
WINDOW = 512


def problem(sizes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """A trained MLP and the digits it was trained on."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels[:EXAMPLES] / 16).float(), torch.tensor(digits[:EXAMPLES])
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, x, y


def formed(model: Any, x: Any, y: Any) -> Any:
    """Every example's gradient as a row, by torch.func."""
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn.functional import cross_entropy

    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: Any, one: Any, target: Any) -> Any:
        return cross_entropy(functional_call(model, values, one[None]), target[None])

    rows = torch.empty(len(x), sum(p.numel() for p in parameters.values()))
    for start in range(0, len(x), 128):
        some = slice(start, start + 128)
        found = vmap(grad(loss), (None, 0, 0))(parameters, x[some], y[some])
        rows[some] = torch.cat([part.flatten(1) for part in found.values()], dim=1)
    return rows


Product = Callable[[Any], Any]
Method = Callable[
    [Any, Any, Any], tuple[Product, Callable[[], Any]]
]  # -> product, and its gradients in float64


def isoloss(model: Any, x: Any, y: Any) -> tuple[Product, Callable[[], Any]]:
    from torch.nn.functional import cross_entropy

    from isoloss.measure.per_example import loss_gradients
    from isoloss.measure.subject import Subject
    from isoloss.measure.woodbury import inverse_fisher

    subject = Subject(model, list(zip(x.split(256), y.split(256), strict=True)), cross_entropy)
    gradients = loss_gradients(subject)
    return inverse_fisher(gradients, DAMPING).flat, gradients.dense


def woodbury(model: Any, x: Any, y: Any, double: bool = False) -> tuple[Product, Callable[[], Any]]:
    """The textbook: rows formed, Gram matrix, Cholesky."""
    import torch

    rows = formed(model, x, y)
    rows = rows.double() if double else rows
    gram = rows @ rows.T
    gram.diagonal().add_(len(rows) * DAMPING)
    factor = torch.linalg.cholesky(gram)

    def product(v: Any) -> Any:
        v = v.to(rows.dtype)
        return (v - rows.T @ torch.cholesky_solve((rows @ v)[:, None], factor)[:, 0]) / DAMPING

    return product, rows.double


def woodbury_double(model: Any, x: Any, y: Any) -> tuple[Product, Callable[[], Any]]:
    return woodbury(model, x, y, double=True)


def mfac(model: Any, x: Any, y: Any) -> tuple[Product, Callable[[], Any]]:
    """The published static algorithm, gradient by gradient in the place of the gradients."""
    import torch

    rows = formed(model, x, y)
    count = len(rows)
    scale = torch.zeros(count)
    for i in range(count):
        g = rows[i].clone()
        rows[i] = g / DAMPING
        if i:
            rows[i] -= (rows[:i] @ g / scale[:i]) @ rows[:i]
        scale[i] = count + g @ rows[i]
    return lambda v: v / DAMPING - (rows @ v / scale) @ rows, lambda: formed(model, x, y).double()


def curvlinops(model: Any, x: Any, y: Any) -> tuple[Product, Callable[[], Any]]:
    """Its empirical Fisher operator inverted by its conjugate gradients."""
    import torch
    from curvlinops import CGInverseLinearOperator, EFLinearOperator
    from curvlinops.examples import IdentityLinearOperator

    parameters = list(model.parameters())
    operator = EFLinearOperator(
        model, torch.nn.CrossEntropyLoss(), parameters, list(zip(x.split(256), y.split(256), strict=True)),
        check_deterministic=False,
    )  # fmt: skip
    eye = IdentityLinearOperator([p.shape for p in parameters], x.device, x.dtype)
    inverse = CGInverseLinearOperator(
        operator + DAMPING * eye, eps=0, tolerance=1e-6, max_iter=1000, max_tridiag_iter=0
    )
    return lambda v: inverse @ v, lambda: formed(model, x, y).double()


METHODS: dict[str, tuple[str, Method, str]] = {
    "isoloss": ("isoloss", isoloss, "torch"),
    "woodbury": ("Woodbury, rows formed", woodbury, "torch"),
    "woodbury64": ("Woodbury, rows formed, float64", woodbury_double, "torch"),
    "mfac": ("M-FAC static, as published", mfac, "torch"),
    "curvlinops": ("curvlinops, conjugate gradients", curvlinops, "curvlinops"),
}
ONCE = ("mfac", "curvlinops")  # minutes each


def truth(rows: Any, vectors: list[Any], blocks: int = 0) -> list[Any]:
    """The products in float64, refined once; of the formed inverse where the matrix is small."""
    import torch

    count, size = rows.shape
    if size < 4000:
        inverse = torch.linalg.inv(DAMPING * torch.eye(size, dtype=rows.dtype) + rows.T @ rows / count)
        return [inverse @ v.double() for v in vectors]
    gram = rows @ rows.T
    gram.diagonal().add_(count * DAMPING)
    factor = torch.linalg.cholesky(gram)
    found = []
    for v in vectors:
        out = torch.zeros(size, dtype=rows.dtype)
        for _ in range(2):
            rest = v.double() - (DAMPING * out + rows.T @ (rows @ out) / count)
            out += (rest - rows.T @ torch.cholesky_solve((rows @ rest)[:, None], factor)[:, 0]) / DAMPING
        found.append(out)
    return found


def once(name: str, sizes: tuple[int, ...]) -> dict[str, float]:
    """One method on one problem: what the process of ``--one`` prints."""
    import torch

    from isoloss.measure.resident import resident_peak

    warnings.simplefilter("ignore")
    model, x, y = problem(sizes)
    size = sum(p.numel() for p in model.parameters())
    METHODS["isoloss"][1](model, x[:64], y[:64])[0](torch.ones(size))  # libraries load their parts
    formed(model, x[:64], y[:64])
    v = torch.randn(size, generator=torch.Generator().manual_seed(1))
    with resident_peak() as memory:
        began = time.process_time()
        product, dense = METHODS[name][1](model, x, y)
        prepared = time.process_time() - began
        times, outcome = [], []
        for _ in range(1 if name in ONCE else PRODUCTS):
            began = time.process_time()
            outcome.append(product(v))
            times.append(time.process_time() - began)
    rows = dense()
    inside = (
        rows.T @ torch.randn(len(rows), dtype=rows.dtype, generator=torch.Generator().manual_seed(2))
    ).float()
    exact = truth(rows, [v, inside])
    ours = (outcome[0].double(), product(inside).double())
    errors = [float((found - true).norm() / true.norm()) for found, true in zip(ours, exact, strict=True)]
    return {
        "prepared": prepared, "product": min(times), "bytes": memory.grown, "random": errors[0], "inside": errors[1],
    }  # fmt: skip


def windows() -> dict[str, dict[str, float]]:
    """Replace and multiply, ours and as published, in turns: CPU seconds and errors."""
    import torch

    from isoloss.measure.mfac import Window

    model, x, y = problem(LARGE)
    rows = formed(model, x, y)
    like = {"all": torch.zeros(rows.shape[1])}
    window = Window(like, WINDOW, DAMPING)
    for row in rows[:WINDOW]:
        window.add({"all": row})
    kept = {
        name: (rows[:WINDOW].to(kind), rows[:WINDOW].to(kind) @ rows[:WINDOW].to(kind).T)
        for name, kind in (("published", torch.float32), ("published64", torch.float64))
    }
    seconds: dict[str, list[float]] = {}
    outcome: dict[str, dict[str, float]] = {}
    v = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(1))
    for turn in range(5):
        new = rows[WINDOW + turn]
        for vector, error in ((v, "random"), (new, "inside")):
            found = {}
            for name in ("isoloss", *kept):
                began = time.process_time()
                if name == "isoloss":
                    if vector is v:
                        window.add({"all": new})
                    found[name] = window.flat(vector)
                else:
                    found[name] = _published_window(*kept[name], turn, new, vector).double()
                if vector is v:
                    seconds.setdefault(name, []).append(time.process_time() - began)
            if turn == 4:
                (exact,) = truth(kept["published64"][0], [vector])
                for name, product in found.items():
                    off = float((product - exact).norm() / exact.norm())
                    outcome.setdefault(name, {})[error] = off
    return {name: {**errors, "seconds": min(seconds[name])} for name, errors in outcome.items()}


def _published_window(rows: Any, dots: Any, at: int, new: Any, v: Any) -> Any:
    """M-FAC's dynamic algorithm: LU without pivoting, coefficients B, product; it keeps to float32."""
    import torch

    count = len(rows)
    new, v = new.to(rows.dtype), v.to(rows.dtype)
    rows[at] = new
    dots[at] = rows @ new
    dots[:, at] = dots[at]
    eye = torch.eye(count, dtype=rows.dtype)
    # Torch has no LU without pivoting on a CPU; of a symmetric positive matrix it is the scaled Cholesky factor.
    factor = torch.linalg.cholesky(dots / DAMPING + count * eye)
    upper = torch.triu(factor.T * factor.diagonal()[:, None] - count * eye)
    scale = count + upper.diagonal()
    coefficients = eye / DAMPING
    below = -upper.T / scale
    for i in range(1, count):
        coefficients[i, :i] = below[i, :i] @ coefficients[:i, :i]
    p = rows @ v / DAMPING
    for i in range(1, count):
        p[i:] -= upper[i - 1, i:] * (p[i - 1] / scale[i - 1])
    return v / DAMPING - ((p / scale) @ coefficients) @ rows


def run(names: list[str], sizes: tuple[int, ...], processes: int) -> dict[str, dict[str, float]]:
    """The least of several processes, the methods in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(processes):
        for name in names:
            if turn and name in ONCE:
                continue
            out = subprocess.run(
                [sys.executable, "-m", "benchmarks.inverse_fisher", "--one", name, ",".join(map(str, sizes))],
                env={**os.environ, **THREADS}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if out.returncode:
                raise RuntimeError(out.stderr[-2000:])
            found[name].append(json.loads(out.stdout.splitlines()[-1]))
    return {name: {key: min(one[key] for one in each) for key in each[0]} for name, each in found.items()}


def measure(quick: bool) -> str:
    """The tables."""
    from benchmarks import page
    from isoloss.measure.latency import load

    there = [name for name, (_, _, package) in METHODS.items() if importlib.util.find_spec(package)]
    absent = [METHODS[name][0] for name in METHODS if name not in there]
    if quick:
        there = [name for name in there if name not in ONCE]
    before = load()
    large = run(there, LARGE, 1 if quick else PROCESSES)
    head = [
        "85,002 parameters, 1,437 gradients", "prepare [s]", "product [ms]", "memory [MB]", "error", "error in the span",
    ]  # fmt: skip
    rows = [
        [
            METHODS[name][0], f"{found['prepared']:.2f}", f"{1e3 * found['product']:.0f}",
            f"{found['bytes'] / 1e6:.0f}", f"{found['random']:.0e}", f"{found['inside']:.0e}",
        ]
        for name, found in large.items()
    ]  # fmt: skip
    ours, peer = large["isoloss"], large["woodbury"]
    whole = [each["prepared"] + each["product"] for each in (ours, peer)]
    text = [
        page.table(head, rows, range(1, 6)),
        f"Preparation and one product take {whole[0] / whole[1]:.3f} of the CPU time of Woodbury with rows formed, a "
        f"product alone {ours['product'] / peer['product']:.2f}, memory {ours['bytes'] / peer['bytes']:.2f}.",
    ]
    small = run(there, SMALL, 1)
    text.append(
        page.table(
            ["1,810 parameters, dense inverse", "error", "error in the span"],
            [[METHODS[n][0], f"{f['random']:.0e}", f"{f['inside']:.0e}"] for n, f in small.items()],
            (1, 2),
        )
    )
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.inverse_fisher", "--windows"],
        env={**os.environ, **THREADS}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    moved = json.loads(out.stdout.splitlines()[-1])
    text.append(
        page.table(
            [f"window of {WINDOW}: replace one, one product", "CPU [s]", "error", "error in the span"],
            [
                [
                    label,
                    f"{moved[k]['seconds']:.2f}",
                    f"{moved[k]['random']:.0e}",
                    f"{moved[k]['inside']:.0e}",
                ]
                for k, label in (
                    ("isoloss", "isoloss"),
                    ("published", "M-FAC dynamic, as published"),
                    ("published64", "M-FAC dynamic, as published, float64"),
                )
            ],
            (1, 2, 3),
        )
    )
    if absent:
        text.append(f"Not installed: {', '.join(absent)}.")
    text.append(f"{page.machine()} Load on {os.cpu_count()} cores {before:.1f} before, {load():.1f} after.")
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one process each, without what takes minutes")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--windows", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(once(args.one[0], tuple(int(part) for part in args.one[1].split(",")))))
    elif args.windows:
        print(json.dumps(windows()))
    else:
        text = measure(args.quick)
        print(text)
        if args.out:
            from benchmarks import page

            page.put(args.out, "inverse-fisher", text)


if __name__ == "__main__":
    main()

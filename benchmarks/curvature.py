"""Curvature side by side: products, traces, eigenvalues and spectra, their cost in gradients and their errors.

    python -m benchmarks.curvature [--quick] [--out docs/measure-curvature.md]

Costs are CPU time of one thread over that of one gradient of the same model on the same batch, fused parts on; all
tools take turns in one process and the least time of each counts, so that other load of the machine matters little.
Peers that are installed are run: curvlinops, hessian-eigenthings, BackPACK, PyHessian; the others are named.

Products: for tools that keep no graph the whole product counts; what building the kept graph costs once is said.
Errors of products are against double backward in float64 with attention and normalisation written out, and against
differences of gradients. Errors of traces are against exact ones, root mean square over seeds.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.curvature_cases import (
    PEERS,
    backpack_traces,
    classes,
    convolutions,
    curvlinops_product,
    digits,
    eigenthings_operator,
    eigenthings_product,
    gpt,
    gradient,
    have,
    least,
    mlp,
)

THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
STEPS = 150  # of training the transformer


# -- products ----------------------------------------------------------------------------------------------


def product_costs(quick: bool) -> tuple[list[str], list[list[str]]]:
    """One line per network: what a product costs."""
    import torch

    from isoloss.measure.products import flatten, gauss_newton, hessian, twice_differentiable

    subjects = {
        "MLP 784-256-128-10, 128 examples": classes(mlp(784, 256, 128, 10), 128, 784),
        "MLP 784-512-512-10, 512 examples": classes(mlp(784, 512, 512, 10), 512, 784),
        "3 convolutions, 32 x 32, 128 examples": classes(convolutions(), 128, 3, 32, 32),
        "GPT width 64, 2 layers, 16 x 64 tokens": gpt(64, 2, 16, 64, 0),
        "GPT width 128, 4 layers, 8 x 128 tokens": gpt(128, 4, 8, 128, 0),
    }
    rows = []
    for name, subject in list(subjects.items())[: 3 if quick else None]:
        like = {key: p.detach() for key, p in subject.parameters().items()}
        v = {key: torch.randn_like(p) for key, p in like.items()}
        flat = flatten(v)

        def built(subject: Any = subject) -> None:
            with hessian(subject):
                pass

        with hessian(subject) as h, gauss_newton(subject) as g, hessian(subject, keep=False) as anew:
            tasks = {
                "gradient": gradient(subject),
                "Hessian": lambda h=h, v=v: h(v),
                "graph": built,
                "anew": lambda anew=anew, v=v: anew(v),
                "G": lambda g=g, v=v: g(v),
            }
            if have("curvlinops"):
                tasks["curvlinops"] = partial(curvlinops_product(subject), flat)
                tasks["curvlinops G"] = partial(curvlinops_product(subject, "GGN"), flat)
            if have("hessian_eigenthings"):
                tasks["eigenthings"] = partial(eigenthings_product(subject), flat)
            with twice_differentiable():  # for the peers: fused attention has no second derivative
                took = least(tasks, 4 if quick else 9)
        with subject.measuring():  # the unit has its fused parts on
            unit = min(took["gradient"], least({"gradient": gradient(subject)}, 9)["gradient"])
        cells = [f"{took[key] / unit:.2f}" if key in took else "" for key in
                 ("Hessian", "graph", "anew", "curvlinops", "eigenthings", "G", "curvlinops G")]  # fmt: skip
        rows.append([name, *cells])
    head = ["one product, in gradients", "Hessian, graph kept", "making that graph", "Hessian, made anew", "curvlinops Hessian",
            "hessian-eigenthings", "Gauss-Newton, graph kept", "curvlinops Gauss-Newton"]  # fmt: skip
    return head, rows


def product_errors() -> tuple[list[str], list[list[str]]]:
    """One line per network with something that goes wrong somewhere; worst error over tensors."""
    import torch
    from torch import nn

    from isoloss.measure.criteria import CrossEntropy
    from isoloss.measure.products import flatten, hessian, unflatten
    from isoloss.measure.subject import Subject

    torch.manual_seed(0)

    def norm() -> Any:
        return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 10))

    def encoder() -> Any:
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
        return nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(32, 10))

    statistics_free = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Tanh(), nn.Linear(8, 10)
    )
    cases = {
        "MLP with LayerNorm": (norm(), (6,)),
        "batch norm on the batch's statistics": (statistics_free, (6,)),
        "convolutions, GroupNorm": (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 10)), (2, 6, 6)
        ),
        "encoder layer (fused attention)": (encoder(), (4, 8)),
    }  # fmt: skip
    rows = []
    for name, (net, shape) in cases.items():
        net = net.double()
        with torch.no_grad():
            for p in net.parameters():
                p += 0.3 * torch.randn_like(p)
        subject = classes(net, 12, *shape)
        subject = Subject(net, [(x.double(), y) for x, y in subject.batches], CrossEntropy())
        like = {key: p.detach() for key, p in subject.parameters().items()}
        v = {key: torch.randn_like(p) for key, p in like.items()}
        held, (x, y) = list(subject.parameters().values()), subject.batches[0]

        def slope(
            sign: int, like: Any = like, v: Any = v, subject: Any = subject, x: Any = x, y: Any = y
        ) -> Any:
            moved = {key: (p + sign * 1e-5 * v[key]).requires_grad_() for key, p in like.items()}
            return torch.autograd.grad(
                subject.criterion(subject.predict_at(moved, x), y), list(moved.values())
            )

        true = {key: (a - b) / 2e-5 for key, a, b in zip(like, slope(1), slope(-1), strict=True)}
        with hessian(subject) as h:
            found = {"isoloss": h(v)}
        for tool, make in (("curvlinops", curvlinops_product), ("hessian_eigenthings", eigenthings_product)):
            if have(tool):
                try:
                    found[tool] = unflatten(make(subject)(flatten(v)), like)
                except Exception as error:
                    found[tool] = f"fails: {type(error).__name__}"
        del held
        cells = []
        for tool in ("isoloss", "curvlinops", "hessian_eigenthings"):
            one = found.get(tool, "")
            cells.append(one if isinstance(one, str) else _worst(one, true))
        rows.append([name, *cells])
    return ["error of a product, worst tensor", "isoloss", "curvlinops", "hessian-eigenthings"], rows


def _worst(found: dict[str, Any], true: dict[str, Any]) -> str:
    errors = {
        key: float((found[key] - t).norm() / t.norm()) for key, t in true.items() if float(t.norm()) > 1e-9
    }
    key = max(errors, key=lambda k: errors[k])
    return f"{errors[key]:.1e}" if errors[key] < 1e-3 else f"{100 * errors[key]:.1f} % ({key})"


# -- traces per layer --------------------------------------------------------------------------------------


def trace_table(quick: bool) -> tuple[list[str], list[list[str]]]:
    """One line per method and network: cost, error of the total and of the worst tensor."""
    import torch

    from isoloss.measure.estimates import signs
    from isoloss.measure.products import hessian
    from isoloss.measure.traces import gauss_newton_traces, layer_traces

    subjects = {
        "MLP 784-256-128-10, 512 examples": classes(mlp(784, 256, 128, 10), 512, 784),
        "MLP 784-512-512-10, 512 examples": classes(mlp(784, 512, 512, 10), 512, 784),
        "digits MLP 64-128-64-10, trained, 1,437 examples": digits(),
        "3 convolutions, 128 examples": classes(convolutions(), 128, 3, 32, 32),
    }
    rows = []
    seeds = 6 if quick else 12
    for name, subject in list(subjects.items())[: 1 if quick else None]:
        exact = layer_traces(subject)
        assert exact.how.startswith("exact")
        tasks: dict[str, Callable[[], Any]] = {
            "gradient": gradient(subject),
            "isoloss, exact": lambda s=subject: layer_traces(s),
            "isoloss, one draw": lambda s=subject: gauss_newton_traces(s, 1),
        }
        with hessian(subject) as h:
            generator = torch.Generator().manual_seed(0)
            v = signs(h.like, generator)
            tasks["product"] = lambda h=h, v=v: h(v)
            forms = []
            for _ in range(30 if quick else 60):
                v = signs(h.like, generator)
                hv = h(v)
                forms.append({key: float((v[key] * hv[key]).sum()) for key in v})
            took = least(tasks, 3 if quick else 6)
        if have("backpack"):
            peers = {
                "BackPACK, exact": backpack_traces(subject, None),
                "BackPACK, one sample": backpack_traces(subject, 1),
            }
            took |= least(peers, 3 if quick else 6)
        drawn = {"isoloss, one draw": [gauss_newton_traces(subject, 1, seed).values for seed in range(seeds)]}
        same = {"isoloss, exact": [exact.values]}
        if have("backpack"):
            drawn["BackPACK, one sample"] = [peers["BackPACK, one sample"]() for _ in range(seeds)]
            same["BackPACK, exact"] = [peers["BackPACK, exact"]()]
        for method, found in (same | drawn).items():
            total, worst = _errors(found, exact.values)
            rows.append([name, method, f"{took[method] / took['gradient']:.2f}", total, worst])
        spread = {
            key: statistics.stdev(form[key] for form in forms) / abs(exact.values[key])
            for key in _large(exact.values)
        }
        need = math.ceil((max(spread.values()) / 0.05) ** 2)
        cost = need * took["product"] / took["gradient"]
        rows.append([name, f"Hutchinson, {need:,} products", f"{cost:,.0f}", "", "5.0 %"])
        rows[-1][3] = (
            f"{100 * statistics.stdev(sum(form.values()) for form in forms) / exact.total / math.sqrt(need):.1f} %"
        )
    return [
        "traces per layer",
        "method",
        "cost [gradients]",
        "error, total",
        "error, worst tensor of 1 % or more",
    ], rows


def _large(traces: dict[str, float]) -> list[str]:
    """Tensors with 1 % of the total or more."""
    return [key for key, value in traces.items() if value >= 0.01 * sum(traces.values())]


def _errors(found: list[dict[str, float]], true: dict[str, float]) -> tuple[str, str]:
    total = sum(true.values())
    whole = math.sqrt(statistics.fmean((sum(one.values()) / total - 1) ** 2 for one in found))
    each = max(
        math.sqrt(statistics.fmean((one[key] / true[key] - 1) ** 2 for one in found)) for key in _large(true)
    )
    return tuple(f"{100 * e:.1f} %" if e > 1e-4 else f"{e:.0e}" for e in (whole, each))  # type: ignore[return-value]


# -- the trace of a transformer ----------------------------------------------------------------------------


def transformer_traces(quick: bool) -> tuple[list[str], list[list[str]]]:
    """The cost of an error of so much, against Hutchinson's with products of the same kept graph."""
    import torch

    from isoloss.measure.estimates import dot, signs
    from isoloss.measure.hessian_trace import hessian_trace
    from isoloss.measure.products import hessian

    rows = []
    subject = gpt(64, 2, 32, 64, STEPS)
    generator = torch.Generator().manual_seed(0)
    hessian_trace(subject, 0.5)  # what is imported at the first use is no cost of it
    unit = least({"gradient": gradient(subject)}, 9)["gradient"]
    began, forms = time.process_time(), []
    with hessian(subject) as h:
        for _ in range(30 if quick else 100):
            v = signs(h.like, generator)
            forms.append(dot(v, h(v)))
    product = (time.process_time() - began) / len(forms) / unit
    for accuracy, repeats in ((0.01, 4),) if quick else ((0.01, 8), (0.005, 4)):
        found, cost = [], []
        for seed in range(repeats):
            began = time.process_time()
            found.append(hessian_trace(subject, accuracy, seed=1000 * seed))
            cost.append((time.process_time() - began) / unit)
        # The truth is not known: two means that do not share random vectors stand for it.
        best = statistics.fmean(one.value for one in found)
        error = statistics.stdev(one.value for one in found)
        claimed = math.sqrt(statistics.fmean(one.se**2 for one in found))
        plain = (statistics.stdev(forms) / claimed) ** 2 * product
        gap = (best - statistics.fmean(forms)) / math.hypot(
            error / math.sqrt(repeats), statistics.stdev(forms) / math.sqrt(len(forms))
        )
        rows.append(
            [f"GPT after {STEPS} steps, {100 * accuracy:g} %", f"{best:.1f}", f"{claimed:.2f}", f"{error:.2f}", f"{gap:+.1f}",
             f"{statistics.fmean(cost):.0f}", f"{plain:.0f}", f"{statistics.fmean(cost) / plain:.2f}"]
        )  # fmt: skip
    head = ["trace of the Hessian", "value", "its standard error", "scatter of repeats", "from Hutchinson's mean [s.e.]",
            "cost [gradients]", "Hutchinson at that error", "ratio"]  # fmt: skip
    return head, rows


def sketches(quick: bool) -> tuple[list[str], list[list[str]]]:
    """Errors of three estimators at the same number of products, on a Hessian that is known densely."""
    from isoloss.measure.estimates import hutch_plus_plus, hutchinson, xtrace
    from isoloss.measure.products import hessian

    subject = digits((64, 16, 10), 8)
    methods = {
        "Hutchinson": lambda h, m, seed: hutchinson(h, 1e-9, m, seed),
        "Hutch++": hutch_plus_plus,
        "XTrace": xtrace,
    }
    counts = (12, 36, 96)
    seeds = 6 if quick else 24
    rows = []
    with hessian(subject) as h:
        true = float(h.dense().double().trace())
        for name, method in methods.items():
            cells = []
            for count in counts:
                found = [method(h, count, seed) for seed in range(seeds)]
                error = math.sqrt(statistics.fmean((one.value / true - 1) ** 2 for one in found))
                claimed = math.sqrt(statistics.fmean(one.se**2 for one in found)) / true
                cells.append(f"{100 * error:.2f} % (claimed {100 * claimed:.2f} %)")
            rows.append([name, *cells])
    return [f"trace of a Hessian of {h.size:,} parameters", *(f"{count} products" for count in counts)], rows


def stops(quick: bool) -> list[str]:
    """What PyHessian's rule and ours give on the digits."""
    import torch
    from torch import nn

    from isoloss.measure.estimates import hutchinson
    from isoloss.measure.products import hessian
    from isoloss.measure.traces import layer_traces

    subject = digits()
    true = layer_traces(subject).total
    repeats = 6 if quick else 12
    said = []
    with hessian(subject) as h:
        found = [hutchinson(h, 0.05, seed=seed) for seed in range(repeats)]
    held = sum(abs(one.value - true) < 1.96 * one.se for one in found)
    errors = [one.value / true - 1 for one in found]
    said.append(
        f"Trace of the digits MLP by Hutchinson, stopped at 5 %: errors from {100 * min(errors):+.0f} % to {100 * max(errors):+.0f} % "
        f"over {repeats} seeds, {held} of {repeats} within 1.96 standard errors, {statistics.fmean(one.products for one in found):.0f} "
        "products on average."
    )
    if have("pyhessian"):
        from pyhessian import hessian as theirs

        other = []
        for seed in range(repeats):
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = theirs(
                    subject.model, nn.CrossEntropyLoss(), data=subject.batches[0], cuda=False
                ).trace(tol=1e-3)
            other.append((statistics.fmean(values) / true - 1, len(values)))
        said.append(
            f"PyHessian's rule (running mean changes by less than 1e-3): errors from {100 * min(other)[0]:+.0f} % to "
            f"{100 * max(other)[0]:+.0f} %, from {min(n for _, n in other)} to {max(n for _, n in other)} products, no error stated."
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs(subject.model, nn.CrossEntropyLoss(), data=subject.batches[0], cuda=False).density(
                    iter=20
                )
            said.append("PyHessian's density ran.")
        except Exception as error:
            said.append(f"PyHessian's density: {type(error).__name__}: {str(error).splitlines()[0][:90]}.")
    return said


# -- eigenvalues and spectra -------------------------------------------------------------------------------


def eigenvalue_table() -> tuple[list[str], list[list[str]]]:
    """The ten largest of a Hessian that is known densely, with 120 Lanczos steps."""
    import numpy as np

    from isoloss.measure.density import spectral_density
    from isoloss.measure.eigen import top_eigenpairs
    from isoloss.measure.products import hessian

    subject = digits((64, 16, 10), 8)
    with hessian(subject) as h:
        dense = h.dense()
        true = np.sort(np.linalg.eigvalsh(((dense + dense.T) / 2).double().numpy()))[::-1]
        ours = top_eigenpairs(h, 10, "largest")
        density = spectral_density(h, 120, 1)
    rows = [["exact", " ".join(f"{value:.2f}" for value in true[:10]), "", "", ""]]

    def line(name: str, values: Any, products: int, converged: int) -> list[str]:
        ghosts = len(values) - sum(
            1 for i, value in enumerate(sorted(values, reverse=True)) if abs(value - true[i]) < 1e-3 * true[0]
        )
        return [
            name,
            " ".join(f"{value:.2f}" for value in values),
            str(ghosts),
            str(converged),
            str(products),
        ]

    rows.append(line("isoloss", ours.values, ours.products, 10 if ours.converged else 0))
    if have("hessian_eigenthings"):
        from hessian_eigenthings import lanczos

        found = lanczos(eigenthings_operator(subject), k=10, max_iter=120, which="LA", seed=0)
        rows.append(
            line(
                "hessian-eigenthings, 120 steps", found.eigenvalues.tolist(), 120, int(found.converged.sum())
            )
        )
        short = lanczos(eigenthings_operator(subject), k=10, max_iter=50, which="LA", seed=0)
        rows.append(
            line("hessian-eigenthings, 50 steps", short.eigenvalues.tolist(), 50, int(short.converged.sum()))
        )
    nodes = np.sort(density.nodes[0])[::-1][:10]
    rows.append(line("isoloss density, 120 steps, its largest nodes", nodes, 120, 0))
    head = [
        f"ten largest eigenvalues, {h.size:,} parameters",
        "values",
        "wrong",
        "said to have converged",
        "products",
    ]
    return head, rows


# -- the page ----------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def measure(quick: bool) -> str:
    import torch

    from benchmarks import page

    torch.set_num_threads(1)
    with quiet():
        tables = [
            product_errors(), product_costs(quick), trace_table(quick), transformer_traces(quick), sketches(quick), eigenvalue_table(),
        ]  # fmt: skip
        said = stops(quick)
    lines = [page.table(head, rows, range(1, len(head))) for head, rows in tables]
    absent = [label for name, label in PEERS.items() if not have(name)]
    if absent:
        lines.append(f"Not installed: {', '.join(absent)}.")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    lines += [
        *said,
        f"{page.machine()} torch {torch.__version__}; load of the machine {load:.1f} on {os.cpu_count()} cores.",
    ]
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer networks, rounds and seeds")
    parser.add_argument("--out", type=Path, help="page to write between its curvature markers")
    given = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in THREADS.items()):
        command = [sys.executable, "-m", "benchmarks.curvature", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **THREADS})
    text = measure(given.quick)
    print(text)
    if given.out:
        from benchmarks import page

        page.put(given.out, "curvature", text)


if __name__ == "__main__":
    main()

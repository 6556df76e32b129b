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
import copy
import importlib.util
import itertools
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

THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PEERS = {
    "curvlinops": "curvlinops", "hessian_eigenthings": "hessian-eigenthings", "backpack": "BackPACK", "pyhessian": "PyHessian",
}  # fmt: skip
STEPS = (150, 800)


def have(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# -- what is measured --------------------------------------------------------------------------------------


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


# -- products ----------------------------------------------------------------------------------------------


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
                took = least(tasks, 5 if quick else 15)
        unit = least({"gradient": gradient(subject)}, 5 if quick else 15)["gradient"]
        unit = min(unit, took["gradient"])
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
    seeds = 6 if quick else 20
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
            for _ in range(30 if quick else 100):
                v = signs(h.like, generator)
                hv = h(v)
                forms.append({key: float((v[key] * hv[key]).sum()) for key in v})
            took = least(tasks, 3 if quick else 9)
        if have("backpack"):
            peers = {
                "BackPACK, exact": backpack_traces(subject, None),
                "BackPACK, one sample": backpack_traces(subject, 1),
            }
            took |= least(peers, 3 if quick else 9)
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
            for key in exact.values
        }
        need = math.ceil((max(spread.values()) / 0.05) ** 2)
        cost = need * took["product"] / took["gradient"]
        rows.append([name, f"Hutchinson, {need:,} products", f"{cost:,.0f}", "", "5.0 %"])
        rows[-1][3] = (
            f"{100 * statistics.stdev(sum(form.values()) for form in forms) / exact.total / math.sqrt(need):.1f} %"
        )
    return ["traces per layer", "method", "cost [gradients]", "error, total", "error, worst tensor"], rows


def _errors(found: list[dict[str, float]], true: dict[str, float]) -> tuple[str, str]:
    total = sum(true.values())
    whole = math.sqrt(statistics.fmean((sum(one.values()) / total - 1) ** 2 for one in found))
    each = max(math.sqrt(statistics.fmean((one[key] / true[key] - 1) ** 2 for one in found)) for key in true)
    return tuple(f"{100 * e:.1f} %" if e > 1e-4 else f"{e:.0e}" for e in (whole, each))  # type: ignore[return-value]


# -- the trace of a transformer ----------------------------------------------------------------------------


def transformer_traces(quick: bool) -> tuple[list[str], list[list[str]]]:
    """The cost of an error of so much, against Hutchinson's with products of the same kept graph."""
    import torch

    from isoloss.measure.estimates import dot, signs
    from isoloss.measure.hessian_trace import hessian_trace
    from isoloss.measure.products import hessian

    rows = []
    repeats = 4 if quick else 16
    for steps in STEPS[:1] if quick else STEPS:
        subject = gpt(64, 2, 32, 64, steps)
        generator = torch.Generator().manual_seed(0)
        with hessian(subject) as h:
            v = signs(h.like, generator)
            took = least({"gradient": gradient(subject), "product": lambda h=h, v=v: h(v)}, 15)
            forms = []
            for _ in range(60 if quick else 300):
                v = signs(h.like, generator)
                forms.append(dot(v, h(v)))
        unit = took["gradient"]
        for accuracy in (0.01,) if quick else (0.01, 0.005):
            found, cost = [], []
            for seed in range(repeats):
                began = time.process_time()
                found.append(hessian_trace(subject, accuracy, seed=1000 * seed))
                cost.append((time.process_time() - began) / unit)
            # The truth is not known: two means that do not share random vectors stand for it.
            best = statistics.fmean(one.value for one in found)
            error = statistics.stdev(one.value for one in found)
            claimed = math.sqrt(statistics.fmean(one.se**2 for one in found))
            plain = (statistics.stdev(forms) / claimed) ** 2 * took["product"] / unit
            gap = (best - statistics.fmean(forms)) / math.hypot(
                error / math.sqrt(repeats), statistics.stdev(forms) / math.sqrt(len(forms))
            )
            rows.append(
                [f"GPT after {steps} steps, {100 * accuracy:g} %", f"{best:.1f}", f"{claimed:.2f}", f"{error:.2f}", f"{gap:+.1f}",
                 f"{statistics.median(cost):.0f}", f"{plain:.0f}", f"{statistics.median(cost) / plain:.2f}"]
            )  # fmt: skip
    head = ["trace of the Hessian", "value", "its standard error", "scatter of repeats", "from Hutchinson's mean [s.e.]",
            "cost [gradients]", "Hutchinson at that error", "ratio"]  # fmt: skip
    return head, rows


def stops(quick: bool) -> list[str]:
    """What PyHessian's rule and ours give on the digits."""
    import torch
    from torch import nn

    from isoloss.measure.estimates import hutchinson
    from isoloss.measure.products import hessian
    from isoloss.measure.traces import layer_traces

    subject = digits()
    true = layer_traces(subject).total
    repeats = 10 if quick else 40
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
            product_costs(quick), product_errors(), trace_table(quick), transformer_traces(quick), eigenvalue_table(),
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

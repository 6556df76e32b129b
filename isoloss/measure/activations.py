r"""Traces of the Hessian with respect to what layers put out: how much noise on an activation costs.

For a layer's output :math:`a_i` on example i, :math:`\frac1n \sum_i \operatorname{tr} \nabla^2_{a_i} \ell_i`, the
trace of the Hessian of the loss over all examples' outputs together. A zero is added to the output and
differentiated by. As in :mod:`isoloss.measure.traces` the Gauss-Newton part needs one backward pass per draw and
the rest a product; both are sampled with signs of their own for every example, so that a draw over many examples
is many draws.

Source: Dong et al. 2019, arXiv:1911.03852 (activations in mixed-precision quantization).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.measure.estimates import drawn
from isoloss.measure.linearity import bent
from isoloss.measure.measurement import Measurement, timed
from isoloss.measure.products import (
    gradient_seconds,
    known_criterion,
    switched,
    twice_differentiable,
    weights,
)
from isoloss.measure.subject import Batch, Subject, examples_of, resized
from isoloss.measure.traces import Traces, enough, pooled

CLOSE = 1e-4  # of a gradient, what may reach other examples


def activation_traces(
    subject: Subject,
    layers: Sequence[str] | None = None,
    draws: int = 4,
    seed: int = 0,
    accuracy: float | None = None,
    most: int = 256,
) -> Traces:
    """Trace of the Hessian with respect to every layer's output, mean over examples.

    Args:
        subject: with a criterion of known curvature.
        layers: names of modules; default: every module without children that puts out one tensor of numbers with
            the examples along its first dimension, and that the outputs depend on.
        draws: random vectors; standard errors are over these, from the scatter of every example's values.
        seed: of the random vectors.
        accuracy: relative standard error of every layer to go on for, its bound by the few draws; default: make
            ``draws`` and no more.
        most: draws at which to give up; then ``reached`` is false.

    Raises:
        TypeError: a criterion of unknown curvature; layers that mix examples.
        ValueError: a name that is no module, or one whose output is no such tensor; fewer than two draws.

    Example:
        >>> from isoloss.measure.criteria import SquaredError
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
        >>> subject = Subject(net, [(torch.randn(5, 2), torch.zeros(5, 4))], SquaredError())
        >>> traces = activation_traces(subject)
        >>> round(traces.values["2"], 5), traces.errors["2"]  # half a squared distance: 1 for every output
        (4.0, 0.0)
    """
    if draws < 2:
        raise ValueError(f"needed at least two draws, got {draws}")
    kept, straight, unread = _suitable(subject, layers)
    found = _drawn(subject, kept, straight, draws, seed)
    while accuracy is not None and not enough(found, accuracy) and found.draws < most:
        more = min(found.draws, most - found.draws)
        if more < 2:
            break
        found = pooled(found, _drawn(subject, kept, straight, more, seed + 7919 * found.draws))
    behind = "piecewise linear behind every layer" if straight else "as many products"
    how = f"{drawn(found.draws)} for every example and column, {behind}"
    how += f"; not of {', '.join(unread)}, which the outputs do not depend on" if unread else ""
    return replace(found, how=how, reached=accuracy is None or enough(found, accuracy))


def _drawn(subject: Subject, kept: Sequence[str], straight: bool, draws: int, seed: int) -> Traces:
    """So many draws."""
    criterion = known_criterion(subject)
    generator = torch.Generator().manual_seed(seed)
    value = dict.fromkeys([*kept, ""], 0.0)
    variance = dict.fromkeys([*kept, ""], 0.0)
    with subject.measuring(), torch.enable_grad(), twice_differentiable():
        for batch, share in weights(subject):
            scale = share / criterion.rows(batch[1])
            with _probing(subject.model, kept, examples_of(batch)) as probes:
                z = subject.predict(batch[0])
            held = [probe for name in kept for probe in probes[name]]
            owner = [name for name in kept for _ in probes[name]]
            with torch.no_grad():
                slope = criterion.slope(z.detach(), batch[1])
            bends = not straight
            first = torch.autograd.grad(z, held, slope, create_graph=bends, retain_graph=True)
            each: list[dict[str, Tensor]] = []
            for _ in range(draws):
                signs = _signs(z, generator)
                root = criterion.root(z.detach(), batch[1], signs)
                pulled = torch.autograd.grad(z, held, root, retain_graph=True)
                found = [_rows(g).square().sum(1) for g in pulled]
                if bends:
                    found = [a + b for a, b in zip(found, _bending(first, held, generator), strict=True)]
                by_name: dict[str, Tensor] = {}
                for name, x in zip(owner, found, strict=True):
                    by_name[name] = (
                        by_name[name] + x.double() * scale if name in by_name else x.double() * scale
                    )
                by_name[""] = torch.stack(list(by_name.values())).sum(0)
                each.append(by_name)
            for name in each[0]:
                x = torch.stack([one[name] for one in each])
                value[name] += float(x.mean(0).sum())
                variance[name] += float(x.var(0, unbiased=True).sum()) / draws
    errors = {name: math.sqrt(v) for name, v in variance.items()}
    total, total_error = value.pop(""), errors.pop("")
    freedom = subject.examples * (draws - 1)
    return Traces(value, errors, total, total_error, draws, draws * (1 if straight else 2), freedom=freedom)


def _bending(first: Sequence[Tensor], held: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """v_l' (R v)_l of every example, for all layers from one product."""
    v = [_signs(probe, generator) for probe in held]
    pairs = [(g, u) for g, u in zip(first, v, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros(len(probe), dtype=torch.float64) for probe in held]
    found = torch.autograd.grad(
        [g for g, _ in pairs], held, [u for _, u in pairs], retain_graph=True, allow_unused=True
    )
    return [
        torch.zeros(len(u), dtype=torch.float64) if r is None else _rows(u * r).sum(1).double().cpu()
        for u, r in zip(v, found, strict=True)
    ]


def _rows(x: Tensor) -> Tensor:
    return x.double().flatten(1) if x.ndim > 1 else x.double().unsqueeze(1)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8).to(like) * 2 - 1


@contextmanager
def _probing(model: nn.Module, names: Sequence[str], examples: int) -> Iterator[dict[str, list[Tensor]]]:
    """Add a zero with a gradient to the output of each module at each of its calls."""
    probes: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], Tensor]:
        def add(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            if (
                not isinstance(output, Tensor)
                or not output.is_floating_point()
                or output.shape[:1] != (examples,)
            ):
                raise ValueError(
                    f"needed one tensor of numbers for {examples} examples from layer {name!r}, got "
                    f"{tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}"
                )
            probe = torch.zeros_like(output, requires_grad=True)
            probes[name].append(probe)
            return output.detach() + probe if not output.requires_grad else output + probe

        return add

    handles = [
        module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name in probes
    ]
    try:
        yield probes
    finally:
        for handle in handles:
            handle.remove()


def _suitable(subject: Subject, layers: Sequence[str] | None) -> tuple[list[str], bool, list[str]]:
    """The layers to measure, whether the outputs are piecewise linear behind each of them, and layers left out.

    Tried on two examples, which must not reach one another.
    """
    modules = dict(subject.model.named_modules())
    for name in layers or ():
        if name not in modules:
            raise ValueError(f"no module named {name!r} in the model")
    two = resized(subject.batches[0], 2)
    names = list(layers) if layers is not None else _leaves(subject, modules, two)
    with subject.measuring(), torch.enable_grad(), twice_differentiable():
        with _probing(subject.model, names, 2) as probes:
            z = subject.predict(two[0])
        tensors = {f"{name} {i}": p for name in names for i, p in enumerate(probes[name])}
        absent = [name for name in names if not probes[name]]
        if absent:
            raise ValueError(f"layer {absent[0]!r} is not called in the forward pass")
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
        cotangent[: len(z) // 2] = 0
        held = list(tensors.values())
        pulled = torch.autograd.grad(z, held, cotangent, retain_graph=True, allow_unused=True)
        for key, g in zip(tensors, pulled, strict=True):
            if g is not None and float(g[0].abs().max()) > CLOSE * float(g[1].abs().max()):
                raise TypeError(
                    f"needed layers that keep examples apart, got one behind {key.rpartition(' ')[0]!r} that mixes them"
                )
        idle = {key.rpartition(" ")[0] for key, g in zip(tensors, pulled, strict=True) if g is None}
        unread = [name for name in names if name in idle]
        names = [name for name in names if name not in idle]
        if unread and (layers is not None or not names):
            raise ValueError(f"the outputs do not depend on layer {unread[0]!r}")
        read = {key: p for key, p in tensors.items() if key.rpartition(" ")[0] not in idle}
        return names, bent(z, read) is None, unread


def _leaves(subject: Subject, modules: dict[str, nn.Module], two: Batch) -> list[str]:
    """Modules without children whose output can be measured and reaches the outputs, in the order of their calls."""
    seen: dict[str, Tensor | None] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            fits = isinstance(output, Tensor) and output.is_floating_point() and output.shape[:1] == (2,)
            if seen.get(name, output) is not None:
                seen[name] = output if fits else None

        return look

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in modules.items()
        if name and not list(module.children())
    ]
    try:
        with subject.measuring(), torch.no_grad():
            subject.predict(two[0])
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, output in seen.items() if output is not None]


def probe(subject: Subject, accuracy: float = 0.05, seed: int = 0) -> list[Measurement]:
    """:func:`activation_traces` as measurements, one for every layer."""
    with timed() as watch:
        found = activation_traces(subject, seed=seed, accuracy=accuracy)
    spent = watch.spent(gradient_seconds(subject))
    how = found.how + switched(subject) + ("" if found.reached else "; stopped before the accuracy asked for")
    return [
        Measurement("activation_trace", value, found.errors[name], "nats", name, how, spent)
        for name, value in found.values.items()
    ]

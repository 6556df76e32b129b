r"""Scales by what the model predicts: of a hundred shares of a tensor's range, the one that changes the predictions least.

The range that loses least of a tensor is not the one that costs the model least. Here one tensor at a time is rounded, a
weight or the inputs of a layer, everything else stays as it is, and the difference of the predictions
(:class:`~isoloss.compress.predictions.Predictions`) is measured for every share of the range on a grid:

.. math:: p^* = \arg\min_{p \in \{1, \frac{99}{100}, \dots, \frac1{100}\}} \mathrm{KL}(y\,\|\,\hat y(p))

The share of least squared error is on the same grid, so that the choice is never worse than that on these data. It takes
a forward pass for each tensor, share and batch.

Source: J. Liu et al., PD-Quant, 2023, arXiv 2212.07048.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.compress import formats
from isoloss.compress.activations import Activations, Range, cannot, fake_round, numbers, samples
from isoloss.compress.formats import Integer
from isoloss.compress.layers import Layer, find
from isoloss.compress.predictions import Predictions
from isoloss.compress.recipe import Choice, Choices, chosen
from isoloss.compress.replay import calibrating
from isoloss.compress.solvers.nearest import Nearest
from isoloss.measure.subject import Subject, call

GRID = 100
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tried:
    """A share of a tensor's range.

    Attributes:
        share: of its whole range.
        difference: of the predictions from the model's own: a divergence [nats], or half the squared distance.
        error: squared error of the tensor itself, relative to its square.
    """

    share: float
    difference: float
    error: float


@dataclass(frozen=True)
class Scale:
    """The scale of one tensor.

    Attributes:
        layer: its name.
        best: the share that changes the predictions least.
        nearest: the share of least squared error.
        tried: all of them, from the whole range down.
    """

    layer: str
    best: Tried
    nearest: Tried
    tried: tuple[Tried, ...]


def weight_scales(
    model: nn.Module,
    choices: Choices,
    batches: Sequence[Any],
    subject: Subject | None = None,
    *,
    grid: int = GRID,
    progress: Tell | None = None,
) -> dict[str, Scale]:
    """Layer -> the scale of its weight; all scales of a weight (of rows or groups) shrink by one factor.

    :func:`scaled` makes choices of these that :func:`isoloss.compress.pipeline.compress` takes.

    Args:
        model: is left as it is.
        choices: formats with scales, by ``nearest``; layers and patterns as of ``compress``.
        batches: calibration inputs.
        subject: how outputs are read, with these batches; None: the model gives class scores.
        grid: how many shares.
        progress: (what, layers done, layers in all).

    Raises:
        ValueError: another solver than ``nearest``, a format without scales of its own.

    Example:
        >>> from isoloss.compress.recipe import Choice
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(32, 8)
        >>> found = weight_scales(net, Choice("int3/tensor"), [x], grid=20)
        >>> all(one.best.difference <= one.nearest.difference for one in found.values())
        True
        >>> sorted(scaled(Choice("int3/tensor"), found))
        ['0', '2']
    """
    selected = chosen(find(model).layers, choices)
    wanted = [(layer, selected[layer.name]) for layer in find(model).layers]
    out: dict[str, Scale] = {}
    with calibrating(model):
        measure = _measure(model, Predictions(batches, subject))
        for done, (layer, choice) in enumerate(wanted):
            if progress is not None:
                progress(f"scale of {layer.name}", done, len(wanted))
            if choice is None:
                continue
            if choice.solver != "nearest":
                raise ValueError(
                    f"scales are chosen for the solver nearest, got {choice.solver} of {layer.name}"
                )
            weight, format = layer.matrix(), formats.get(choice.format)
            tried = []
            for share in _shares(grid):
                decoded = Nearest(shrink=share).solve(weight, format, None).decode()
                with _put(layer, decoded):
                    tried.append(Tried(share, measure(), _lost(weight, decoded)))
            out[layer.name] = _scale(layer.name, tried)
    return out


def scaled(choices: Choice, scales: Mapping[str, Scale]) -> dict[str, Choice | None]:
    """A choice for each layer that a scale was found for, with its range shrunk."""
    return {name: Choice(choices.format, Nearest(shrink=one.best.share).spec) for name, one in scales.items()}


def input_scales(
    model: nn.Module,
    how: Activations,
    batches: Sequence[Any],
    subject: Subject | None = None,
    *,
    grid: int = GRID,
    progress: Tell | None = None,
) -> dict[str, tuple[Range, Scale]]:
    """Layer -> the static range of its inputs, and what the others come to; with ``asym`` both ends shrink alike.

    Args:
        model: in the state in which it will run; the predictions of this very model with no input rounded are kept.
        how: the format is read.
        batches, subject, grid, progress: as of :func:`weight_scales`.
    """
    layers = [layer for layer in find(model).layers if cannot(layer) is None]
    kind, out = numbers(how.format), {}
    taken = samples(model, layers, batches)
    asym = isinstance(kind, Integer) and kind.zero == "asym"
    with calibrating(model):
        measure = _measure(model, Predictions(batches, subject))
        for done, layer in enumerate(layers):
            if progress is not None:
                progress(f"range of inputs of {layer.name}", done, len(layers))
            if layer.name not in taken:
                continue
            x = taken[layer.name]
            low, high = float(x[-2]), float(x[-1])
            if not asym:
                high = max(-low, high)
                low = -high
            tried = []
            for share in _shares(grid):
                ends = torch.tensor([low * share, high * share])
                rounded = fake_round(x[:-2], ends[0], ends[1], kind)
                with _entering(layer.module, ends, how.format):
                    tried.append(Tried(share, measure(), _lost(x[:-2], rounded)))
            scale = _scale(layer.name, tried)
            out[layer.name] = (Range(low * scale.best.share, high * scale.best.share), scale)
    return out


def _measure(model: nn.Module, predictions: Predictions) -> Callable[[], float]:
    """Gives how far the model's predictions are from those of now."""
    own = [predictions.read(call(model, x)) for x in predictions.batches]
    return partial(predictions.apart, model, own)


def _shares(grid: int) -> list[float]:
    if grid < 1:
        raise ValueError(f"needed a grid of at least one share, got {grid}")
    return [k / grid for k in range(grid, 0, -1)]


def _scale(layer: str, tried: Sequence[Tried]) -> Scale:
    best = min(tried, key=lambda one: one.difference)
    return Scale(layer, best, min(tried, key=lambda one: one.error), tuple(tried))


def _lost(x: Tensor, rounded: Tensor) -> float:
    whole = float(x.double().square().sum())
    return float((x.double() - rounded).square().sum()) / whole if whole else 0.0


@contextmanager
def _put(layer: Layer, decoded: Tensor) -> Iterator[None]:
    kept = layer.tensor.detach().clone()
    try:
        layer.put(decoded)
        yield
    finally:
        with torch.no_grad():
            layer.tensor.copy_(kept)


@contextmanager
def _entering(module: nn.Module, ends: Tensor, format: str) -> Iterator[None]:
    """The layer's inputs rounded."""

    def enter(module: nn.Module, args: Any, keywords: Any) -> Any:
        x = args[0] if args else keywords["input"]  # linear(input=x)
        rounded = fake_round(x, ends[0].to(x), ends[1].to(x), format)
        return ((rounded, *args[1:]), keywords) if args else (args, {**keywords, "input": rounded})

    hook = module.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()

"""What choosing a format for each layer would come to, before any layer is encoded in any of them.

Sizes of a format follow from the shape of a weight. Which layer gets which format does not: here it is chosen by what
rounding some rows of each weight costs, without inputs, so that the size is that of such a choice and never above the
limit. Seconds come from trying the solvers on some rows, one batch through the model and one gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from isoloss.compress import formats
from isoloss.compress.blockwise import Blockwise
from isoloss.compress.candidates import NUMBERS
from isoloss.compress.compressed import plain_tensors
from isoloss.compress.forecast import Forecast, Trials, forecast
from isoloss.compress.layers import Layer
from isoloss.compress.recipe import Choice
from isoloss.errors import NoAnswer
from isoloss.measure.storages import bytes_of
from isoloss.measure.subject import Subject, call, chunks, examples_of
from isoloss.planning.allocate import Option, allocate

ROWS = 8  # of a weight that are rounded to see how much a format costs
WHICH = "which layer gets which format is found from the inputs; here it was chosen by some rows of each weight alone"
OPEN = "how small the loss lets it be is not known before it is measured: the size is that of every layer in the format that changes it least"


@dataclass(frozen=True, eq=False)
class MixedForecast:
    """What a choice of formats would come to.

    Attributes:
        forecast: of encoding the model as foreseen: sizes, stages, memory; its seconds have those of choosing in them.
        plan: layer -> format as foreseen.
        choosing: seconds of that, of trying all layers in all formats and of the sensitivity.
        least, most: bytes of all tensors with every layer in its smallest, and in its largest format.
    """

    forecast: Forecast
    plan: Mapping[str, str]
    choosing: float
    least: int
    most: int

    @property
    def seconds(self) -> float:
        """Of choosing, and of encoding what was chosen."""
        return self.choosing + self.forecast.seconds


def forecast_mixed(
    subject: Subject,
    layers: Sequence[Layer],
    choices: Sequence[Choice],
    left: Mapping[str, Choice | None],
    batches: Sequence[Any] | None,
    bits: float | None = None,
    size: float | None = None,
    gradients: int = 1,
    measured: int = 0,
    blockwise: Blockwise | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> MixedForecast:
    """Size, seconds and memory of choosing a format for each layer and encoding it.

    Args:
        subject: model, data, loss.
        layers: to be encoded.
        choices: formats that each may take, with their solvers.
        left: what else is asked for by name: None for layers that are kept.
        batches: calibration inputs; None: none.
        bits: most stored bits for each weight of these layers.
        size: most bytes of all tensors. With neither limit the formats are foreseen that change the weights least.
        gradients: how many the sensitivity and the solvers take of every example.
        measured: how many times the loss is measured on all batches.
        blockwise: how blocks are learned afterwards; None: not.
        progress: (what, layers done, layers in all).

    Raises:
        NoAnswer: no choice is small enough; says the least possible.

    Example:
        >>> from torch import nn
        >>> from isoloss.compress.layers import find
        >>> from isoloss.measure.criteria import SquaredError
        >>> net, x = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 64)), torch.randn(20, 64)
        >>> subject = Subject(net, [(x, net(x).detach())], SquaredError())
        >>> tried = [Choice("int2/asym", "gptq"), Choice("int4/asym", "gptq")]
        >>> found = forecast_mixed(subject, find(net).layers, tried, {}, [x], bits=4.5)
        >>> found.forecast.bits_per_weight <= 4.5, found.least < found.forecast.bytes < found.most
        (True, True)
    """
    model = subject.model
    stored = {layer.name: _sizes(layer, choices) for layer in layers}
    plain, _ = plain_tensors(model, {layer.name: layer for layer in layers})
    rest, weights = bytes_of(plain.values()), sum(math.prod(layer.shape) for layer in layers)
    limit = math.inf if bits is None else bits * weights
    limit = limit if size is None else min(limit, 8 * (size - rest))
    plan = _plan(layers, choices, stored, limit, weights, rest, progress)
    notes = (OPEN if limit == math.inf else WHICH,)
    of_format = {choice.format: choice for choice in choices}
    own = {**left, **{name: of_format[format] for name, format in plan.items()}}
    trials = Trials()
    whole = forecast(model, own, batches, blockwise=blockwise, trials=trials)
    ends = [rest + sum(pick(own.values()) for own in stored.values()) // 8 for pick in (min, max)]
    choosing = _encoding(layers, choices, trials) + _running(subject, layers, batches, gradients, measured)
    held = sum(sum(own.values()) for own in stored.values()) // 8
    moments = 4 * min(NUMBERS, sum(layer.groups * layer.shape[1] ** 2 for layer in layers))
    kept = 4 * weights * min(subject.examples, 4) if gradients else 0
    memory = bytes_of([*model.parameters(), *model.buffers()]) + held + max(moments, kept)
    found = Forecast(
        whole.bits, whole.weights, whole.plain_bytes, whole.stages, whole.running, whole.solving,
        max(whole.memory, memory), (*whole.notes, *notes),
    )  # fmt: skip
    return MixedForecast(found, plan, choosing, *ends)


def _sizes(layer: Layer, choices: Sequence[Choice]) -> dict[str, int]:
    return {choice.format: formats.get(choice.format).size(layer.shape) for choice in choices}


def _plan(
    layers: Sequence[Layer],
    choices: Sequence[Choice],
    stored: Mapping[str, Mapping[str, int]],
    limit: float,
    weights: int,
    rest: int,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, str]:
    """The formats within the limit that lose least of the weights, by some rows of each."""
    options = []
    for i, layer in enumerate(layers):
        if progress is not None:
            progress(f"rows of {layer.name}", i, len(layers))
        matrix = layer.matrix()
        some = matrix[:: max(1, len(matrix) // ROWS)][:ROWS]
        for choice in choices:
            lost = formats.get(choice.format).encode(some).decode() - some
            value = float(lost.square().mean()) / max(float(some.square().mean()), 1e-300)
            bits = stored[layer.name][choice.format]
            options.append(Option(layer.name, choice.format, value * matrix.numel(), {"bits": float(bits)}))
    most = sum(max(own.values()) for own in stored.values())  # as good as no limit
    found = allocate(options, {"bits": min(max(limit, 0.0), float(most))})
    if not found.feasible:
        least = found.least["bits"]
        raise NoAnswer(
            "no choice of these formats is so small",
            f"at least {least / weights:.4g} bits a weight, {least // 8 + rest:,.0f} bytes with the {rest:,} of what is "
            "not encoded",
        )
    return dict(found.chosen)


def _encoding(layers: Sequence[Layer], choices: Sequence[Choice], trials: Trials) -> float:
    """Seconds of all layers in all formats: some formats are tried, and the others are taken to lie between."""
    at = sorted({0, len(choices) // 2, len(choices) - 1})
    known: dict[tuple[object, ...], float] = {}
    total = 0.0
    for layer in layers:
        key = (layer.kind, layer.shape)
        if key not in known:
            found = [trials.seconds(layer, choices[i]) for i in at]
            known[key] = float(np.interp(range(len(choices)), at, found).sum()) + len(choices) * _judging(
                layer
            )
        total += known[key]
    return total


def _judging(layer: Layer) -> float:
    """Seconds of what an error makes of the inputs: one product with their second moments."""
    if layer.kind == "embedding":
        return 0.0
    rows, columns = layer.shape
    some, second = torch.ones(min(rows, 64), columns), torch.ones(columns, columns)
    began = time.perf_counter()
    some @ second
    return (time.perf_counter() - began) * rows / len(some)


def _running(
    subject: Subject,
    layers: Sequence[Layer],
    batches: Sequence[Any] | None,
    gradients: int,
    measured: int,
) -> float:
    """Seconds of the model on calibration data and on the data of its loss, forward and backward."""
    passes = 0.0
    if batches is not None:
        began = time.perf_counter()
        with torch.no_grad(), subject.measuring():
            call(subject.model, batches[0])
        moments = sum(layer.groups * layer.shape[1] ** 2 for layer in layers)
        passes += (time.perf_counter() - began) * len(batches) * max(1, math.ceil(moments / NUMBERS))
    if not (gradients or measured):
        return passes
    batch = subject.batches[0]
    one = chunks(batch, 1)[0]
    held = [layer.tensor for layer in layers]
    with subject.measuring():
        began = time.perf_counter()
        with torch.no_grad():
            subject.loss(batch)
        passes += (time.perf_counter() - began) * measured * len(subject.batches)
        if gradients and held:
            began = time.perf_counter()
            with torch.enable_grad():
                loss = subject.loss(one)
                torch.autograd.grad(loss, list(subject.parameters().values()), allow_unused=True)
            count = sum(examples_of(batch) for batch in subject.batches)
            passes += (time.perf_counter() - began) * count * gradients
    return passes

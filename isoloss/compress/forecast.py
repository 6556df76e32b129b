"""What compressing would come to, before it is done: exact sizes; seconds and memory from small trials."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from isoloss.compress import formats, solvers
from isoloss.compress.blockwise import Blockwise
from isoloss.compress.compressed import plain_tensors
from isoloss.compress.layers import Layer, find
from isoloss.compress.recipe import Choice, Choices, chosen
from isoloss.compress.replay import Plan, calibrating, survey
from isoloss.compress.statistics import Collector, Statistics, gram
from isoloss.errors import NoAnswer
from isoloss.measure.storages import Tally, bytes_of
from isoloss.measure.subject import call

ROWS = (16, 64)  # of a weight on which a solver is tried
SOME = 1 << 16  # numbers on which learning is tried
TRIED = 2048  # rows of inputs on which second moments are tried


@dataclass(frozen=True, eq=False)
class Forecast:
    """What compressing would come to.

    Attributes:
        bits: layer -> stored bits, exact but for outliers whose number the data decide.
        weights: numbers that are encoded.
        plain_bytes: of what is stored as it is.
        stages: that are calibrated one after another.
        seconds: about; of them ``running`` the model and ``solving``.
        running, solving: seconds.
        learning: seconds of learning blocks whole.
        memory: bytes, about: model, what is kept between stages, and the largest stage.
        notes: what a reader must know.
    """

    bits: Mapping[str, int]
    weights: int
    plain_bytes: int
    stages: int
    running: float
    solving: float
    memory: int
    notes: tuple[str, ...] = ()
    learning: float = 0.0

    @property
    def seconds(self) -> float:
        """Of running, solving and learning."""
        return self.running + self.solving + self.learning

    @property
    def bytes(self) -> int:
        """Of all tensors on disk."""
        return sum(self.bits.values()) // 8 + self.plain_bytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the encoded weights over their number."""
        return sum(self.bits.values()) / self.weights


def forecast(
    model: nn.Module,
    choices: Choices,
    batches: Sequence[Any] | None = None,
    blockwise: Blockwise | None = None,
    trials: Trials | None = None,
) -> Forecast:
    """Sizes as they will be, seconds and memory about; the model stays as it is.

    Args:
        model, choices, batches: as :func:`isoloss.compress.pipeline.compress` takes them. Of the batches the first is
            run, and solvers are tried on some rows of a weight of every shape.
        blockwise: as there; its steps are counted as three runs of each block and as much as rounding takes.
        trials: of solvers that were tried before, which get those that are tried here.

    Raises:
        ValueError: as there.

    Example:
        >>> net = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> found = forecast(net, Choice("int4"), [torch.randn(32, 128)])
        >>> sum(found.bits.values()), found.bytes, found.stages
        (34880, 4632, 2)
    """
    trials = Trials() if trials is None else trials
    selected = chosen(find(model).layers, choices)
    wanted = [(layer, choice) for layer in find(model).layers if (choice := selected[layer.name]) is not None]
    layers = [layer for layer, _ in wanted]
    bits = {layer.name: formats.get(choice.format).size(layer.shape) for layer, choice in wanted}
    plain, _ = plain_tensors(model, {layer.name: layer for layer in layers})
    own = bytes_of([*model.parameters(), *model.buffers()])
    largest = max(layer.tensor.numel() for layer in layers)
    seen: dict[str, Statistics] = {}
    running, run, stages, memory = 0.0, 0.0, 1, own + 12 * largest
    notes: tuple[str, ...] = ()
    if batches is not None:
        if not batches:
            raise ValueError("needed at least one calibration batch, got none")
        plan, seen, running, run, most = _tried(model, layers, batches)
        notes, stages = plan.notes, sum(1 for stage in plan.stages if stage.steps)
        memory = own + len(batches) * plan.held + max(most, 12 * largest)
    return Forecast(
        bits,
        sum(layer.tensor.numel() for layer in layers),
        bytes_of(plain.values()),
        stages,
        running,
        sum(trials.seconds(layer, choice, seen.get(layer.name)) for layer, choice in wanted),
        memory,
        notes,
        0.0 if blockwise is None else blockwise.steps * (3 * run + _relaxing(layers)),
    )


def _tried(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any]
) -> tuple[Plan, dict[str, Statistics], float, float, int]:
    """The order of the stages, statistics of a layer of every shape, seconds of all runs and of one, bytes of the largest
    stage.
    """
    like = list({_sort(layer): layer for layer in layers}.values())
    collector = Collector(like)
    with calibrating(model):
        plan, surveyed = _timed(lambda: survey(model, layers, batches[0]))
        with Tally([*model.parameters(), *model.buffers()]) as tally:
            _, run = _timed(lambda: call(model, batches[0]))
        with collector.watching():
            call(model, batches[0])
    found_of = collector.statistics()
    seen = {_sort(layer): found_of.get(layer.name) for layer in like}
    cost: dict[int, float] = {}
    adding, most = 0.0, 0
    for stage in plan.stages:
        held = 0
        for step in stage.steps:
            for sort, count in _inputs(step).items():
                found = seen.get(sort)
                if found is None or found.second is None:
                    continue
                groups, width, _ = found.second.shape
                if width not in cost:
                    rows = torch.randn(min(found.count, TRIED), width)
                    cost[width] = _timed(partial(gram, rows))[1] / len(rows)
                adding += count * groups * found.count * cost[width] * len(batches)
                held += count * groups * width**2 * 16  # float64 sums, a batch's and the result in float32
        most = max(most, held)
    passes = (2 if plan.blocks else 1) + (1 if plan.several else 0)
    by_name = {layer.name: found for layer in layers if (found := seen.get(_sort(layer)))}
    return plan, by_name, surveyed + passes * run * len(batches) + adding, run, most + tally.peak


Sort = tuple[str, tuple[int, int]]


def _sort(layer: Layer) -> Sort:
    return layer.kind, layer.shape


def _inputs(step: Sequence[Layer]) -> Counter[Sort]:
    """The sort of a layer with each input of a step, and how many there are: one for all, or one for an expert."""
    experts = [layer for layer in step if "expert" in layer.name.lower()]
    return Counter(_sort(layer) for layer in experts or step[:1])


@dataclass(frozen=True, eq=False)
class Trials:
    """Seconds of solvers for whole layers, each tried on two numbers of rows of a weight, once for every shape."""

    known: dict[tuple[Sort, Choice], float] = field(default_factory=dict)
    warm: set[str] = field(default_factory=set)

    def seconds(self, layer: Layer, choice: Choice, found: Statistics | None = None) -> float:
        """Of this layer: a line through what the rows took."""
        key = (_sort(layer), choice)
        if key not in self.known:
            self.known[key] = self._tried(layer, choice, found)
        return self.known[key]

    def _tried(self, layer: Layer, choice: Choice, found: Statistics | None) -> float:
        solver, format, weight = solvers.get(choice.solver), formats.get(choice.format), layer.matrix()
        rows, columns = weight.shape
        second = found.second if found is not None else None
        if second is None and "second" in solver.needs:
            if layer.kind == "embedding":
                solver = solvers.get("nearest")
            else:
                second = torch.eye(columns)[None]

        def trial(count: int) -> float:
            part = weight[:count]
            facts = Statistics(layer.name, 1, second, fisher=torch.ones_like(part))
            return _timed(lambda: solver.solve(part, format, facts))[1]

        few, many = ROWS
        if solver.name not in self.warm:
            self.warm.add(solver.name)
            small = torch.linspace(-1, 1, 64).reshape(4, 16)
            facts = Statistics("trial", 64, torch.eye(16)[None], fisher=torch.ones_like(small))
            with suppress(ValueError, NoAnswer):  # the first call loads what is used
                solver.solve(small, format, facts)
        if rows <= many or layer.groups > 1:
            return trial(rows)
        first, next_ = trial(few), trial(many)
        return next_ + max(next_ - first, 0.0) / (many - few) * (rows - many)


def _relaxing(layers: Sequence[Layer]) -> float:
    """Seconds of making all weights from what is learned of them, and back: tried on some numbers."""
    x = torch.ones(SOME, requires_grad=True)

    def once() -> None:
        with torch.enable_grad():
            h = (1.2 * torch.sigmoid(x) - 0.1).clamp(0, 1)
            torch.autograd.grad((h * 2.0 + (1 - (2 * h - 1).abs().pow(4.0))).sum(), x)

    once()
    return (
        2 * _timed(once)[1] * sum(layer.tensor.numel() for layer in layers) / SOME
    )  # Adam takes as much again


def _timed(do: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    out = do()
    return out, time.perf_counter() - started

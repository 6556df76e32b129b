r"""Learned rounding of a whole block: roundings and scales of all its layers at once, for the block's own output.

A layer's second moments say nothing of what other layers of the block make of its error. Here a block is run with
relaxed weights, on inputs that come through the compressed blocks before it, and its output is drawn to what the
uncompressed block gives on uncompressed inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from isoloss.compress.formats import Encoded
from isoloss.compress.layers import Layer
from isoloss.compress.predictions import first, positions
from isoloss.compress.relaxed import Book, Part, Relaxed, learnable, relax
from isoloss.compress.solvers.adaround import relaxed, sharpness

Loss = Literal["mse", "fisher", "prediction"]
LOSSES: tuple[Loss, ...] = ("mse", "fisher", "prediction")
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Blockwise:
    r"""How blocks are reconstructed.

    With :math:`z` what the uncompressed block gives and :math:`\hat z` what it gives with relaxed weights (as
    :class:`~isoloss.compress.solvers.AdaRound` relaxes them), Adam makes

    .. math:: N\,\frac{E(\hat z)}{E(\hat z_0)} + \lambda \sum (1 - |2h - 1|^\beta)

    small over the roundings, and over the scales (or the entries of tables and codebooks), of all layers of the block; N is
    the number of its weights, :math:`\hat z_0` what the block gives as the solver left it, and E the loss:

    - ``mse``: :math:`\|z - \hat z\|^2`.
    - ``fisher``: :math:`\sum (\partial L / \partial z)^2 (z - \hat z)^2`, with the gradients of each example's loss in the
      uncompressed model.
    - ``prediction``: :math:`\|z - \hat z\|^2 / n + w\,\mathrm{KL}(\mathrm{softmax}(y / T)\,\|\,\mathrm{softmax}(\hat y / T))`
      with n positions, y what the model predicts and :math:`\hat y` what it predicts when this block gives
      :math:`\hat z` and all later blocks are uncompressed; the divergence is a mean over rows.

    Of the numbers that go in, each is with probability ``drop`` the uncompressed one. Some batches are not learned from; a
    block that does not gain on them, by its own loss, is left as it was.

    Args:
        loss: E. ``fisher`` and ``prediction`` run the model behind the block: once for each batch, and at each step.
        predicted: w; PD-Quant's :math:`1 / \lambda_r`.
        temperature: T.
        correct: move the uncompressed inputs of each block to the statistics of its batch norms first, and make the target
            of these; the number says how far they may go (lambda of :class:`~isoloss.compress.distribution.Correction`).
            0: no.
        steps: of Adam; each runs the block on one calibration batch.
        rate: step size of V.
        values: step size of scales and entries, relative to them; 0 leaves them as they are.
        rounding: learn the roundings; without it codes stay, and scales and entries are tuned alone.
        push: lambda.
        warm: share of the steps before roundings are pushed to a decision.
        drop: probability of an uncompressed input.
        held: share of the batches, the last ones, that judge and are not learned from; where it is less than one batch all
            are learned from and judge.
        seed: of what is dropped and of the order of batches.

    Source:
        Y. Li et al., BRECQ, 2021, arXiv 2102.05426, with its ``fisher``; X. Wei et al., QDrop, 2022, arXiv 2203.05740;
        ``prediction``: J. Liu et al., PD-Quant, 2023, arXiv 2212.07048; scales that are learned: S. Esser et al., LSQ, 2019,
        arXiv 1902.08153.
    """

    loss: Loss = "mse"
    predicted: float = 10.0
    temperature: float = 4.0
    correct: float = 0.0
    steps: int = 400
    rate: float = 0.05
    values: float = 0.001
    rounding: bool = True
    push: float = 20.0
    warm: float = 0.2
    drop: float = 0.5
    held: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"the loss of a block is {', '.join(LOSSES)}, got {self.loss!r}")
        if self.predicted < 0 or self.temperature <= 0 or self.correct < 0:
            raise ValueError(
                "needed a weight of predictions and a correction of at least 0 and a temperature above 0, got "
                f"{self.predicted}, {self.correct} and {self.temperature}"
            )
        if self.steps < 1 or self.rate <= 0 or self.values < 0 or self.push < 0:
            raise ValueError(
                "needed steps of at least 1, a rate above 0, values and a push of at least 0, got "
                f"{self.steps}, {self.rate}, {self.values} and {self.push}"
            )
        if not (0 <= self.warm < 1 and 0 <= self.drop <= 1 and 0 <= self.held < 1):
            raise ValueError(
                f"needed shares of 0 to 1, got warm {self.warm}, drop {self.drop} and held {self.held}"
            )
        if not self.rounding and self.values == 0:
            raise ValueError(
                "neither roundings nor values are learned. Set rounding or a step size of values"
            )


@dataclass(frozen=True, eq=False)
class Example:
    """One calibration batch of a block.

    Attributes:
        inputs: as they come through what is compressed: arguments and keywords.
        full: as they come through the uncompressed model.
        target: what the uncompressed block makes of ``full``.
        counts: which positions count, bool (batch, length); None: all.
        weights: what the square of each error counts, of the target's shape; read by ``fisher``.
        behind: (what the block gives, temperature) -> how far the predictions behind it are from the model's own; read by
            ``prediction``.
    """

    inputs: Inputs
    full: Inputs
    target: Any
    counts: Tensor | None = None
    weights: Tensor | None = None
    behind: Callable[[Any, float], Tensor] | None = None

    def gap(self, out: Any) -> Tensor:
        """What a block gives less the target, where that counts."""
        return self._where(first(out) - first(self.target))

    def error(self, out: Any, how: Blockwise) -> Tensor:
        """What a block's output loses; gradients go through.

        Raises:
            ValueError: what this loss reads is not there.
        """
        near = self._squares(self.gap(out), how)
        if how.loss != "prediction":
            return near
        if self.behind is None:
            raise ValueError("the loss prediction needs what lies behind the block, got nothing")
        return near + how.predicted * self.behind(out, how.temperature)

    def size(self, how: Blockwise) -> float:
        """The same sum of squares of the target itself."""
        return float(self._squares(self._where(first(self.target)), how))

    def _squares(self, gap: Tensor, how: Blockwise) -> Tensor:
        squares = gap.float().square()
        if how.loss == "fisher":
            if self.weights is None:
                raise ValueError("the loss fisher needs squared gradients at the block's output, got none")
            squares = squares * self._where(self.weights)
        total = squares.sum(dtype=torch.float64)
        return total / positions(first(self.target)) if how.loss == "prediction" else total

    def _where(self, gap: Tensor) -> Tensor:
        return gap if self.counts is None or gap.shape[:2] != self.counts.shape else gap[self.counts]


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """A block as it was learned.

    Attributes:
        encoded: layer -> its weight; of a block that did not gain, as given.
        before: the loss with the weights as given, over the square of the output (weighted as the loss weighs), on the
            batches that judge.
        soft: with the relaxed ones.
        after: with the new ones, stored.
        undecided: share of the roundings that were not within 0.05 of 0 or 1 when they were hardened.
    """

    encoded: Mapping[str, Encoded]
    before: float
    soft: float
    after: float
    undecided: float


def reconstruct(
    modules: Sequence[nn.Module], parts: Sequence[Part], examples: Sequence[Example], how: Blockwise
) -> Reconstructed:
    """Learn the weights of a block.

    Args:
        modules: that run one after another; other weights in them stay as they are.
        parts: layers to learn; those that are not :func:`learnable` stay as they are encoded.
        examples: at least one.
        how: settings.

    Raises:
        ValueError: no examples, no layer to learn.

    Example:
        >>> from isoloss.compress import formats, layers
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)), torch.randn(64, 16)
        >>> with torch.no_grad():
        ...     target = net(x)
        >>> own = [Part(one, one.matrix(), formats.get("int3").encode(one.matrix())) for one in layers.find(net).layers]
        >>> inputs = ((x,), {})
        >>> made = reconstruct([net], own, [Example(inputs, inputs, target)], Blockwise(steps=200))
        >>> made.after < 0.6 * made.before
        True
    """
    own = [relax(part, how.rounding, how.values > 0) for part in parts if learnable(part)]
    if not examples or not own:
        raise ValueError(f"needed examples and layers to learn, got {len(examples)} and {len(own)}")
    rest = {part.layer: part.encoded.decode() for part in parts if not learnable(part)}
    given = {part.layer: part.encoded.decode() for part in parts}
    held = int(how.held * len(examples))
    judges = examples[len(examples) - held :] if held else examples
    examples = examples[: len(examples) - held]
    whole = sum(one.size(how) for one in judges) or 1.0
    before = _error(modules, given, judges, how)
    start = _error(modules, given, examples, how)
    if start > 0:
        _learn(modules, own, rest, examples, how, start)
    with torch.no_grad():
        soft = _error(modules, rest | {one.part.layer: one.weight() for one in own}, judges, how)
        encoded = {one.part.layer.name: one.hardened() for one in own}
        hard = rest | {one.part.layer: encoded[one.part.layer.name].decode() for one in own}
        after = _error(modules, hard, judges, how)
        undecided = [one.undecided() for one in own]
    kept = {part.layer.name: part.encoded for part in parts}
    if after < before:
        kept |= encoded
    share = sum(count for count, _ in undecided) / max(1, sum(number for _, number in undecided))
    return Reconstructed(kept, before / whole, soft / whole, after / whole, share)


def _learn(
    modules: Sequence[nn.Module],
    own: Sequence[Relaxed | Book],
    rest: Mapping[Layer, Tensor],
    examples: Sequence[Example],
    how: Blockwise,
    before: float,
) -> None:
    generator = torch.Generator().manual_seed(how.seed)
    roundings = [one.v for one in own if one.v is not None]
    values = [one.values for one in own if one.values is not None]
    groups = [{"params": roundings, "lr": how.rate}, {"params": values, "lr": how.values}]
    variables = [*roundings, *values]
    if not variables:
        return
    adam = torch.optim.Adam([group for group in groups if group["params"]])
    scale = sum(one.part.weight.numel() for one in own) * len(examples) / before
    order: list[int] = []
    for step in range(how.steps):
        order = order or torch.randperm(len(examples), generator=generator).tolist()
        example = examples[order.pop()]
        with torch.enable_grad():
            weights = {one.part.layer: one.weight() for one in own}
            inputs = mixed(example.inputs, example.full, how.drop, generator)
            loss = scale * example.error(_run(modules, {**rest, **weights}, inputs), how)
            beta = sharpness(step, how.steps, how.warm)
            if beta is not None:
                for one in own:
                    if one.v is not None:
                        loss = loss + how.push * (1 - (2 * relaxed(one.v) - 1).abs().pow(beta)).sum()
            slopes = torch.autograd.grad(loss, variables, allow_unused=True)
        for variable, slope in zip(variables, slopes, strict=True):
            variable.grad = slope
        if values:
            adam.param_groups[-1]["lr"] = how.values * 0.5 * (1 + math.cos(math.pi * step / how.steps))
        adam.step()


def mixed(inputs: Inputs, full: Inputs, drop: float, generator: torch.Generator) -> Inputs:
    """Inputs in which each float is, with probability ``drop``, the uncompressed one.

    Example:
        >>> one, other = ((torch.zeros(6),), {}), ((torch.ones(6),), {})
        >>> mixed(one, other, 0.5, torch.Generator().manual_seed(0))[0][0].tolist()
        [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    """
    if drop == 0:
        return inputs
    leaves, tree = tree_flatten(inputs)
    others = tree_flatten(full)[0]
    out = []
    for leaf, other in zip(leaves, others, strict=True):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not torch.equal(leaf, other):
            take = torch.rand(leaf.shape, generator=generator).to(leaf.device) < drop
            leaf = torch.where(take, other, leaf)
        out.append(leaf)
    mixed_: Inputs = tree_unflatten(out, tree)
    return mixed_


def run(modules: Sequence[nn.Module], inputs: Inputs) -> Any:
    """What a block gives."""
    out = modules[0](*inputs[0], **inputs[1])
    for module in modules[1:]:
        out = module(out)
    return out


def _run(modules: Sequence[nn.Module], weights: Mapping[Layer, Tensor], inputs: Inputs) -> Any:
    with in_place(weights):
        return run(modules, inputs)


def _error(
    modules: Sequence[nn.Module],
    weights: Mapping[Layer, Tensor],
    examples: Sequence[Example],
    how: Blockwise,
) -> float:
    with torch.no_grad():
        return sum(float(one.error(_run(modules, weights, one.inputs), how)) for one in examples)


@contextmanager
def in_place(weights: Mapping[Layer, Tensor]) -> Iterator[None]:
    """Modules compute with these matrices (out, in), through which gradients go, in place of their parameters."""
    try:
        for layer, matrix in weights.items():
            own = layer.tensor
            shaped = (matrix.T if layer.transposed else matrix).reshape(own.shape).to(own.dtype)
            layer.module.__dict__[layer.parameter] = (
                shaped  # found before the parameter, which stays where it is
            )
        yield
    finally:
        for layer in weights:
            layer.module.__dict__.pop(layer.parameter, None)

r"""Learned rounding of a whole block: roundings and scales of all its layers at once, for the block's own output.

A layer's second moments say nothing of what other layers of the block make of its error. Here a block is run with
relaxed weights, on inputs that come through the compressed blocks before it, and its output is drawn to what the
uncompressed block gives on uncompressed inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from isoloss.compress.formats import Coded, Encoded, Float, Grid, Integer, NormalFloat, Table
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.layers import Layer
from isoloss.compress.solvers.adaround import DECIDED, Between, logit, relaxed, sharpness
from isoloss.compress.solvers.refine import PLAIN_SCALES

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Blockwise:
    r"""How blocks are reconstructed.

    With :math:`z` what the uncompressed block gives and :math:`\hat z` what it gives with relaxed weights (as
    :class:`~isoloss.compress.solvers.AdaRound` relaxes them), Adam makes

    .. math:: N\,\frac{\|z - \hat z\|^2}{\|z - \hat z_0\|^2} + \lambda \sum (1 - |2h - 1|^\beta)

    small over the roundings, and over the scales (or the entries of tables), of all layers of the block; N is the number of
    its weights, :math:`\hat z_0` what the block gives as the solver left it. Of the numbers that go in, each is with probability
    ``drop`` the uncompressed one. Some batches are not learned from; a block that does not gain on them is left as it was.

    Args:
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
        Y. Li et al., BRECQ, 2021, arXiv 2102.05426; X. Wei et al., QDrop, 2022, arXiv 2203.05740; scales that are learned: S. Esser et
        al., LSQ, 2019, arXiv 1902.08153.
    """

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
    """

    inputs: Inputs
    full: Inputs
    target: Any
    counts: Tensor | None = None

    def gap(self, out: Any) -> Tensor:
        """What a block gives less the target, where that counts."""
        gap = _first(out) - _first(self.target)
        return gap if self.counts is None or gap.shape[:2] != self.counts.shape else gap[self.counts]


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """A block as it was learned.

    Attributes:
        encoded: layer -> its weight; of a block that did not gain, as given.
        before: squared error of the block's output with the weights as given, relative to the square of the output, on the
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


@dataclass(frozen=True, eq=False)
class Part:
    """A layer of the block.

    Attributes:
        layer: whose weight it is.
        weight: as it was, (out, in).
        encoded: as a solver left it.
    """

    layer: Layer
    weight: Tensor
    encoded: Encoded


def learnable(part: Part) -> bool:
    """Whether a layer can take part: one code per weight, a tensor of its own."""
    return (
        isinstance(part.encoded.format, Coded) and part.encoded.format.bits <= 8 and part.layer.index is None
    )


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
    own = [_Relaxed.of(part, how) for part in parts if learnable(part)]
    if not examples or not own:
        raise ValueError(f"needed examples and layers to learn, got {len(examples)} and {len(own)}")
    rest = {part.layer: part.encoded.decode() for part in parts if not learnable(part)}
    given = {part.layer: part.encoded.decode() for part in parts}
    held = int(how.held * len(examples))
    judges = examples[len(examples) - held :] if held else examples
    examples = examples[: len(examples) - held]
    whole = sum(float(_first(e.target).double().square().sum()) for e in judges) or 1.0
    before = _error(modules, given, judges)
    start = _error(modules, given, examples)
    if start > 0:
        _learn(modules, own, rest, examples, how, start)
    with torch.no_grad():
        soft = _error(modules, rest | {one.part.layer: one.weight() for one in own}, judges)
        encoded = {one.part.layer.name: one.hardened() for one in own}
        hard = rest | {one.part.layer: encoded[one.part.layer.name].decode() for one in own}
        after = _error(modules, hard, judges)
        undecided = [one.undecided() for one in own]
    kept = {part.layer.name: part.encoded for part in parts}
    if after < before:
        kept |= encoded
    share = sum(count for count, _ in undecided) / max(1, sum(number for _, number in undecided))
    return Reconstructed(kept, before / whole, soft / whole, after / whole, share)


def _learn(
    modules: Sequence[nn.Module],
    own: Sequence[_Relaxed],
    rest: Mapping[Layer, Tensor],
    examples: Sequence[Example],
    how: Blockwise,
    before: float,
) -> None:
    generator = torch.Generator().manual_seed(how.seed)
    groups = [{"params": [one.v for one in own if one.v is not None], "lr": how.rate}]
    groups += [{"params": [one.values for one in own if one.values is not None], "lr": how.values}]
    adam = torch.optim.Adam([group for group in groups if group["params"]])
    variables = [variable for group in adam.param_groups for variable in group["params"]]
    scale = sum(one.part.weight.numel() for one in own) * len(examples) / before
    order: list[int] = []
    for step in range(how.steps):
        order = order or torch.randperm(len(examples), generator=generator).tolist()
        example = examples[order.pop()]
        with torch.enable_grad():
            weights = {one.part.layer: one.weight() for one in own}
            inputs = mixed(example.inputs, example.full, how.drop, generator)
            gap = example.gap(_run(modules, {**rest, **weights}, inputs))
            loss = scale * gap.float().square().sum()
            beta = sharpness(step, how.steps, how.warm)
            if beta is not None:
                for one in own:
                    if one.v is not None:
                        loss = loss + how.push * (1 - (2 * relaxed(one.v) - 1).abs().pow(beta)).sum()
            slopes = torch.autograd.grad(loss, variables, allow_unused=True)
        for variable, slope in zip(variables, slopes, strict=True):
            variable.grad = slope
        adam.param_groups[-1]["lr"] = (
            how.values * 0.5 * (1 + math.cos(math.pi * step / how.steps))
            if how.values
            else adam.param_groups[-1]["lr"]
        )
        adam.step()


@dataclass(eq=False)
class _Relaxed:
    """A layer's weight as a function of what is learned.

    ``v`` moves each weight between its two neighbours; ``values`` are changes of scales (out, groups) or of the entries of
    tables (out, groups, count), relative to the scale or to the table's reach.
    """

    part: Part
    grid: Grid
    between: Between | None
    v: Tensor | None
    values: Tensor | None
    codes: Tensor
    reach: Tensor | None = field(default=None)

    @classmethod
    def of(cls, part: Part, how: Blockwise) -> _Relaxed:
        grid, codes = part.encoded.grid(), part.encoded.codes()
        between = Between.of(grid, as_matrix(part.weight)) if how.rounding else None
        v = None if between is None else logit(between.start).requires_grad_()
        values, reach = None, None
        if how.values and isinstance(grid.format, Table):
            reach = grid.table.abs().amax(dim=2, keepdim=True)
            values = torch.zeros_like(grid.table).requires_grad_()
        elif how.values and _has_scales(grid):
            values = torch.zeros_like(grid.scale).requires_grad_()
        return cls(part, grid, between, v, values, codes, reach)

    def weight(self) -> Tensor:
        """(out, in), with gradients."""
        if self.reach is not None:
            table = self._table()
            if self.between is None or self.v is None:
                return self._entry(table, self.codes)
            low, high = self._entry(table, self.between.below), self._entry(table, self.between.above)
            return low + relaxed(self.v) * (high - low)
        if self.between is None or self.v is None:
            plain = self.grid.decode(self.codes)
        else:
            plain = self.between.at(relaxed(self.v))
        return plain if self.values is None else plain * self.grid.spread(1 + self.values)

    def hardened(self) -> Encoded:
        """As stored."""
        codes = self.codes
        if self.between is not None and self.v is not None:
            codes = self.between.codes(relaxed(self.v) >= 0.5)
        grid, shape = self.grid, self.part.encoded.shape
        size = (grid.rows, grid.columns)
        if self.reach is not None:
            assert isinstance(grid.format, Table)
            limit = torch.finfo(torch.float16).max
            table = self._table().detach().clamp(-limit, limit)
            place = table.argsort(dim=2, stable=True).argsort(dim=2, stable=True)
            codes = self._entry(place, codes).to(torch.uint8)
            return grid.format.given(size, table).encoded(codes, shape)
        if self.values is None:
            return grid.encoded(codes, shape)
        scale = (grid.scale * (1 + self.values.detach())).clamp(min=torch.finfo(torch.float16).tiny)
        if isinstance(grid.format, Integer):
            return grid.format.given(size, scale, grid.zero).encoded(codes, shape)
        assert isinstance(grid.format, (Float, NormalFloat))
        return grid.format.given(size, scale).encoded(codes, shape)

    def undecided(self) -> tuple[int, int]:
        """How many roundings are not decided, of how many."""
        if self.v is None:
            return 0, 0
        h = relaxed(self.v.detach())
        return int((torch.minimum(h, 1 - h) > DECIDED).sum()), h.numel()

    def _table(self) -> Tensor:
        assert self.values is not None
        assert self.reach is not None
        return self.grid.table + self.values * self.reach

    def _entry(self, table: Tensor, codes: Tensor) -> Tensor:
        """The entry of each code, (out, columns)."""
        count = table.shape[2]
        widths = torch.tensor([stop - start for start, stop in self.grid.groups])
        group = torch.arange(len(widths)).repeat_interleave(widths).to(table.device)
        flat = table.reshape(table.shape[0], -1).expand(self.grid.rows, -1)
        return flat.gather(1, codes.long() + count * group)


def _has_scales(grid: Grid) -> bool:
    format = grid.format
    return isinstance(format, (Integer, Float, NormalFloat)) and format.scales in PLAIN_SCALES


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


def _run(modules: Sequence[nn.Module], weights: Mapping[Layer, Tensor], inputs: Inputs) -> Any:
    with in_place(weights):
        out = modules[0](*inputs[0], **inputs[1])
        for module in modules[1:]:
            out = module(out)
        return out


def _error(
    modules: Sequence[nn.Module], weights: Mapping[Layer, Tensor], examples: Sequence[Example]
) -> float:
    total = 0.0
    with torch.no_grad():
        for example in examples:
            total += float(example.gap(_run(modules, weights, example.inputs)).double().square().sum())
    return total


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


def _first(out: Any) -> Tensor:
    """The first tensor of floats that a block gives."""
    for leaf in tree_flatten(out)[0]:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise ValueError("the block gives no tensor of floats, so its output cannot be reconstructed")

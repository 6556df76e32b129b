r"""AdaPT: fixed point whose word lengths change while a model trains, layer by layer.

The float weights are trained; the forward and the backward pass compute with a copy in :math:`\langle W, F \rangle` fixed
point (W bits in all, F of them behind the point), rounded at random so that its mean is the weight. Every few steps a layer
gets the shortest word that loses no information, and bits on top of it while its gradients disagree.

The structure is that of the paper as we know it; its constants and the formulas that turn diversity into bits, into the time
to the next look and into the histogram's bins could not be checked. Those here are the project's own and are arguments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoloss.compress.compressed import Compressed
from isoloss.compress.formats import Fixed, round_fixed
from isoloss.compress.layers import Layer, find
from isoloss.compress.training.places import (
    finished,
    install,
    matrix_of,
    refuse_finished,
    refuse_prepared,
    remove,
)
from isoloss.compress.training.steps import applied

Strategy = Literal["min", "mean", "max"]
STRATEGIES: Mapping[str, Callable[[float, float], float]] = {
    "min": min,
    "mean": lambda a, b: (a + b) / 2,
    "max": max,
}
ROUNDED = 1e-3  # of a bit: sums of float32 gradients are not exact
FLOAT = 32  # bits of a multiplication that the modelled cost is held against


@dataclass(frozen=True)
class Adapt:
    r"""When and how word lengths change.

    With the diversity :math:`\Delta` of the last K gradients (:func:`gradient_diversity`) and
    :math:`d = \min(1, \max(0, 1 + \ln \Delta / \ln K))`, 0 for K identical gradients and 1 for orthogonal ones of equal
    norm: the bits on top are the mean (or least, or largest) of ``buffer * d`` and ``buffer * d**2``, rounded up; the next
    look comes after :math:`K 2^{1-2d}` steps, and the histogram then has :math:`2^{2d-1}` times the bins.

    Args:
        lookback: steps to the first look at a layer.
        lookbacks: fewest and most.
        bins: of the first histogram.
        most_bins: fewest and most.
        divergence: Kullback-Leibler divergence [nats] that counts as no loss; None: :math:`(r - 1) / 2n` for r bins and n
            weights, about what a second sample of the same weights would show.
        buffer: bits on top at most.
        strategy: of the two suggestions.
        most: bits of a word at most; to 16 they can be stored (:class:`isoloss.compress.formats.Fixed`), the paper has 32.
        l1, l2: weights of :math:`\|W\|_1` and :math:`\|W\|_2^2` in :meth:`Adapting.penalty`.
        words: weight of the mean word length times the share of weights that are not 0, over 32, in the same; no gradient.
        seed: of the rounding.

    Raises:
        ValueError: settings outside of these.
    """

    lookback: int = 25
    lookbacks: tuple[int, int] = (5, 100)
    bins: int = 64
    most_bins: tuple[int, int] = (32, 256)
    divergence: float | None = None
    buffer: int = 4
    strategy: Strategy = "mean"
    most: int = 16
    l1: float = 0.0
    l2: float = 0.0
    words: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.lookbacks[0] <= self.lookback <= self.lookbacks[1]:
            raise ValueError(
                f"a lookback needs at least 2 steps and its bounds around it, got {self.lookback} in {self.lookbacks}"
            )
        if not 2 <= self.most_bins[0] <= self.bins <= self.most_bins[1]:
            raise ValueError(
                f"bins need at least 2 and bounds around them, got {self.bins} in {self.most_bins}"
            )
        if not (2 <= self.most <= 16 and self.buffer >= 0):
            raise ValueError(
                f"words need 2 to 16 bits and a buffer of at least 0, got {self.most}, {self.buffer}"
            )
        if self.strategy not in STRATEGIES:
            raise ValueError(f"a strategy is {', '.join(STRATEGIES)}, got {self.strategy!r}")


@dataclass(frozen=True)
class Switch:
    """What was decided for a layer.

    Attributes:
        step: after which.
        layer: its name.
        word, fraction: bits in all, bits behind the point; the others stand before it, the sign counted, and may be fewer
            than none where all weights are small.
        divergence: of the word without bits on top, in nats.
        diversity: of the gradients since the last look; NaN at the start.
        buffer: bits on top.
        lookback: steps to the next look.
        bins: of the next histogram.
        nonzero: share of the rounded weights that are not 0.
    """

    step: int
    layer: str
    word: int
    fraction: int
    divergence: float
    diversity: float
    buffer: int
    lookback: int
    bins: int
    nonzero: float


@dataclass(frozen=True)
class Word:
    """A fixed-point word: ``integer`` bits before the point, the sign counted, ``fraction`` behind it."""

    integer: int
    fraction: int
    divergence: float = 0.0

    @property
    def length(self) -> int:
        """Bits in all."""
        return self.integer + self.fraction


def histogram_divergence(weight: Tensor, rounded: Tensor, bins: int) -> float:
    r"""Kullback-Leibler divergence of the histograms of two tensors, :math:`\sum_k p_k \ln (p_k / q_k)`, in nats.

    Both have the same bins, over the range of both, with half a count added to each, so that an empty one is no infinity. It
    is 0 if and only if all bins agree. How many bins there are decides what is seen: shifts within one are not.

    Args:
        weight: of p.
        rounded: of q, as many numbers.
        bins: how many.

    Example:
        >>> x = torch.tensor([0.1, 0.2, 0.9])
        >>> histogram_divergence(x, x, 8), round(histogram_divergence(x, x.round(), 8), 3)
        (0.0, 0.126)
    """
    low = min(float(weight.min()), float(rounded.min()))
    high = max(float(weight.max()), float(rounded.max()))
    if low == high:
        return 0.0
    width = (high - low) / bins
    counts = []
    for x in (weight, rounded):
        place = ((x.detach().double().flatten() - low) / width).floor().clamp(0, bins - 1).long()
        counts.append(torch.bincount(place, minlength=bins).double() + 0.5)
    p, q = (own / own.sum() for own in counts)
    return max(0.0, float((p * (p / q).log()).sum()))


def push_down(weight: Tensor, bins: int, divergence: float | None = None, most: int = 16) -> Word:
    r"""The shortest word whose histogram is that of the weights: fewest bits behind the point, by bisection.

    Bits before the point are as many as the largest weight needs. Bisection takes the divergence to fall with every bit,
    which holds but for chance; the word that it ends at keeps the limit, or has ``most`` bits.

    Args:
        weight: any shape.
        bins: of the histograms.
        divergence: limit; None: :math:`(r - 1) / 2n`.
        most: bits of the word.

    Raises:
        ValueError: NaN or infinite weights.

    Example:
        >>> word = push_down(torch.arange(-128, 128) / 32, bins=256, divergence=0.0)  # a grid of 8 bits, 5 behind the point
        >>> word.length, word.fraction
        (8, 5)
    """
    x = weight.detach().float().flatten()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("word lengths need finite weights, got NaN or infinite ones")
    limit = (bins - 1) / (2 * x.numel()) if divergence is None else divergence

    def tried(fraction: int) -> Word:
        word = Word(integer_bits(x, fraction), fraction)
        rounded = round_fixed(x, word.integer, fraction)
        return Word(word.integer, fraction, histogram_divergence(x, rounded, bins))

    largest = float(x.abs().max())
    if largest == 0:
        return Word(1, 0, 0.0)
    lead = math.frexp(largest)[1]  # largest is below 2**lead
    # At low the word has one bit, at high it has as many as it may.
    low, high = -lead, max(most - 1 - lead, -lead + 1)
    while integer_bits(x, high) + high > most:
        high -= 1
    best = tried(high)
    if best.divergence > limit:
        return best
    while high - low > 1:
        middle = (low + high) // 2
        word = tried(middle)
        if word.divergence <= limit:
            high, best = middle, word
        else:
            low = middle
    return best


def integer_bits(weight: Tensor, fraction: int) -> int:
    """Bits before the point, the sign counted, with which no weight ends at the range; below 1 where all are small.

    Example:
        >>> [integer_bits(torch.tensor([x]), 5) for x in (-4.0, 3.96875, 4.0, 0.2)]
        [3, 3, 4, -1]
    """
    low, high = float(weight.min()), float(weight.max())
    step = 2.0**-fraction
    down = math.ceil(math.log2(-round(low / step))) if round(low / step) < 0 else 0
    up = math.ceil(math.log2(round(high / step) + 1)) if round(high / step) > 0 else 0
    return 1 + max(down, up) - fraction


def gradient_diversity(squares: float, total: float) -> float:
    r""":math:`\Delta = \sum_k \|g_k\|^2 / \|\sum_k g_k\|^2`: 1/K for K identical gradients, 1 for orthogonal ones.

    Args:
        squares: the sum of the squared norms.
        total: the squared norm of the sum.

    Source:
        D. Yin et al., Gradient Diversity, AISTATS 2018, arXiv 1706.05699.

    Example:
        >>> gradient_diversity(3 * 4.0, 9 * 4.0)  # three times the same
        0.3333333333333333
    """
    return squares / total if total > 0 else (math.inf if squares > 0 else math.nan)


def disagreement(diversity: float, count: int) -> float:
    """Diversity on a scale from 0, identical gradients, to 1, orthogonal ones or worse; 0 where there were none.

    Example:
        >>> disagreement(1 / 8, 8), disagreement(1.0, 8), disagreement(math.inf, 8)
        (0.0, 1.0, 1.0)
    """
    if math.isnan(diversity) or count < 2:
        return 0.0
    return 1.0 if math.isinf(diversity) else min(1.0, max(0.0, 1 + math.log(diversity) / math.log(count)))


class FixedCopy(nn.Module):
    """The rounded copy that a layer computes with; gradients go straight to the weight."""

    copy: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("copy", matrix.clone(), persistent=False)

    def forward(self, matrix: Tensor) -> Tensor:
        """The copy, whatever the weight is by now."""
        return applied(_Copied, matrix, self.copy)


class _Copied(torch.autograd.Function):
    """Another tensor with the gradient of this one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        return copy.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


@dataclass
class _State:
    """What is known of a layer between two looks."""

    layer: Layer
    copy: FixedCopy
    word: Word
    buffer: int
    lookback: int
    bins: int
    count: int = 0
    squares: float = 0.0
    total: Tensor | None = None
    nonzero: float = 1.0


@dataclass(eq=False)
class Adapting:
    """A model in training with word lengths that change; what :func:`adapting` gives.

    Attributes:
        model: the user's.
        settings: as asked.
        ops: layer -> multiplications of a forward pass, for the cost.
        ledger: every decision, in order; those of step 0 are the start.
    """

    model: nn.Module
    settings: Adapt
    ops: Mapping[str, float]
    ledger: list[Switch] = field(default_factory=list)
    _states: dict[str, _State] = field(default_factory=dict, repr=False)
    _steps: int = field(default=0, repr=False)
    _cost: float = field(default=0.0, repr=False)
    _generator: torch.Generator = field(default_factory=torch.Generator, repr=False)
    _began: float = field(default_factory=time.perf_counter, repr=False)

    def step(self) -> None:
        """Call it once after every step of the optimiser, while the gradients are still there.

        Adds the gradients up, looks at the layers whose time has come, and rounds the copies anew.

        Raises:
            ValueError: a weight became NaN or infinite.
        """
        self._steps += 1
        self._cost += self._relative()
        for name, state in self._states.items():
            weight, gradient = self._own(state)
            if gradient is not None:
                state.count += 1
                state.squares += float(gradient.double().square().sum())
                state.total = gradient.clone() if state.total is None else state.total.add_(gradient)
            if state.count >= state.lookback:
                self._look(name, state, weight)
            self._round(state, weight)

    def penalty(self) -> Tensor:
        r""":math:`\alpha \|W\|_1 + \beta \|W\|_2^2 + P` of the float weights, to be added to the loss.

        P, mean word length times the share of weights that are not 0 over 32 bits, is a number without a gradient.
        """
        device = next(self.model.parameters()).device
        out = torch.zeros((), device=device)
        for state in self._states.values():
            whole = _original(state.layer)
            own = whole if state.layer.index is None else whole[state.layer.index]
            if self.settings.l1:
                out = out + self.settings.l1 * own.abs().sum()
            if self.settings.l2:
                out = out + self.settings.l2 * own.square().sum()
        return out + self.settings.words * self._relative()

    @property
    def words(self) -> dict[str, str]:
        """Layer -> its format as it is now, ``fixed3.5``."""
        return {name: Fixed(own.word.integer, own.word.fraction).spec for name, own in self._states.items()}

    @property
    def modelled_cost(self) -> float:
        """Modelled, not measured: multiplications times word length times the share of weights that are not 0, over those of
        float32, on average over the steps so far."""
        return self._cost / self._steps if self._steps else self._relative()

    def finish(self) -> Compressed:
        """Take the rounding out and encode: the model has the copies that a forward pass computed with, bit for bit.

        Raises:
            ValueError: it was done already.
        """
        layers = [state.layer for state in self._states.values()]
        refuse_finished(layers)
        kept, encoded = {}, {}
        for name, state in self._states.items():
            kept[name] = self._own(state)[0]
            format = Fixed(state.word.integer, state.word.fraction)
            encoded[name] = format.encode(state.copy.copy)
        remove(self.model, layers)
        note = f"trained in fixed point whose words changed in {len(self.ledger)} decisions"
        return finished(self.model, encoded, kept, [note], time.perf_counter() - self._began)

    def _own(self, state: _State) -> tuple[Tensor, Tensor | None]:
        """The float weight and its gradient as matrices."""
        layer, whole = state.layer, _original(state.layer)
        found = []
        for one in (whole.detach(), whole.grad):
            own = one if one is None or layer.index is None else one[layer.index]
            found.append(None if own is None else matrix_of(own.detach(), layer.transposed))
        weight, gradient = found
        assert weight is not None
        return weight, gradient

    def _look(self, name: str, state: _State, weight: Tensor) -> None:
        settings = self.settings
        word = push_down(weight, state.bins, settings.divergence, settings.most)
        total = 0.0 if state.total is None else float(state.total.double().square().sum())
        diversity = gradient_diversity(state.squares, total) if state.count else math.nan
        d = disagreement(diversity, state.count)
        own = STRATEGIES[settings.strategy](settings.buffer * d, settings.buffer * d * d)
        buffer = min(math.ceil(own - ROUNDED), settings.most - word.length)
        fraction = word.fraction + max(0, buffer)
        while integer_bits(weight, fraction) + fraction > settings.most:
            fraction -= 1
        state.word = Word(integer_bits(weight, fraction), fraction, word.divergence)
        state.buffer = fraction - word.fraction
        if state.count:
            low, high = settings.lookbacks
            state.lookback = min(high, max(low, round(state.lookback * 2 ** (1 - 2 * d))))
            fewest, most = settings.most_bins
            state.bins = min(most, max(fewest, round(state.bins * 2 ** (2 * d - 1))))
        state.count, state.squares, state.total = 0, 0.0, None
        self._round(state, weight)
        self.ledger.append(
            Switch(
                self._steps, name, state.word.length, fraction, word.divergence, diversity, state.buffer,
                state.lookback, state.bins, state.nonzero,
            )
        )  # fmt: skip

    def _round(self, state: _State, weight: Tensor) -> None:
        word = state.word
        own = round_fixed(
            weight.cpu(), word.integer, word.fraction, mode="stochastic", generator=self._generator
        )
        state.copy.copy.copy_(own)
        state.nonzero = float((own != 0).float().mean())

    def _relative(self) -> float:
        whole = sum(self.ops.values())
        return sum(
            self.ops[name] * own.word.length * own.nonzero / (FLOAT * whole)
            for name, own in self._states.items()
        )


def adapting(
    model: nn.Module, settings: Adapt | None = None, ops: Mapping[str, float] | None = None
) -> Adapting:
    """Make a model compute with fixed-point copies of its weights whose word lengths change while it trains.

    The model stays an ordinary module and its parameters the same objects, in float; any loop trains it that calls
    :meth:`Adapting.step` after the optimiser. Biases and normalisations stay in float.

    Args:
        model: any module; all that :func:`isoloss.compress.find` finds in it.
        settings: when and how words change.
        ops: layer -> multiplications of a forward pass; default: the number of its weights, which for convolutions leaves
            out how often each is used.

    Raises:
        ValueError: nothing to round, a layer without ops, weights that are not finite.

    Source:
        L. Kummer, K. Sidak, T. Reichmann, W. Gansterer, Adaptive Precision Training, 2021, arXiv 2107.13490.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Linear(16, 4), torch.randn(256, 16)
        >>> y = x @ torch.randn(16, 4)
        >>> adapt = adapting(net, Adapt(lookback=10))
        >>> optimizer = torch.optim.Adam(net.parameters(), 0.05)
        >>> for _ in range(60):
        ...     optimizer.zero_grad()
        ...     (net(x) - y).square().mean().backward()
        ...     optimizer.step()
        ...     adapt.step()
        >>> [one.step for one in adapt.ledger][:2], adapt.modelled_cost < 0.5
        ([0, 10], True)
        >>> with torch.no_grad():
        ...     last = net(x)
        >>> made = adapt.finish()
        >>> torch.equal(net(x), last), made.bits_per_weight <= 16
        (True, True)
    """
    settings = settings or Adapt()
    refuse_prepared(model)
    layers = find(model).layers
    if not layers:
        raise ValueError("needed at least one layer to round, got none")
    own = {layer.name: float(math.prod(layer.shape)) for layer in layers} if ops is None else dict(ops)
    lacking = [layer.name for layer in layers if layer.name not in own]
    if lacking:
        raise ValueError(f"needed the multiplications of every layer, got none of {lacking[0]}")
    matrices = {layer.name: layer.matrix() for layer in layers}
    copies = {name: FixedCopy(matrix) for name, matrix in matrices.items()}
    made = Adapting(model, settings, {layer.name: own[layer.name] for layer in layers})
    made._generator.manual_seed(settings.seed)
    install(model, layers, lambda layer: copies[layer.name])
    for layer in layers:
        state = _State(layer, copies[layer.name], Word(1, 0), 0, settings.lookback, settings.bins)
        made._states[layer.name] = state
        made._look(layer.name, state, matrices[layer.name])
    return made


def _original(layer: Layer) -> Tensor:
    registered: Any = layer.module.parametrizations
    found: Tensor = registered[layer.parameter].original
    return found

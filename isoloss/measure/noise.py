r"""The gradient noise scale of a model on its data, and live in any training loop.

.. math:: B_{simple} = \frac{\operatorname{tr}\Sigma}{|G|^2}, \qquad B_{noise} = \frac{\operatorname{tr} H\Sigma}{G^T H G}

with G the true gradient, Σ the covariance of single examples' gradients, H a metric (the Hessian). One SGD step of a
batch B gains :math:`\Delta L = \Delta L_{max}/(1 + B_{noise}/B)`, so that a batch of the noise scale gets half of what
any batch could: the critical batch. Both parts are estimated without bias, then divided; intervals are by Fieller's
theorem (:mod:`isoloss.observing.noise_scale`), open above where the signal is not told from zero.

Source: McCandlish, Kaplan, Amodei et al. 2018, arXiv:1812.06162.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.hooks import RemovableHandle

from isoloss.errors import NoAnswer
from isoloss.measure.measurement import Measurement, timed
from isoloss.measure.per_example import Gradients, loss_gradients
from isoloss.measure.products import Product
from isoloss.measure.subject import Subject
from isoloss.observing.measured import Measured
from isoloss.observing.noise_scale import NoiseScale, noise_of_means, noise_of_steps
from isoloss.special import student_quantile

BLOCKS = 32  # of examples, where a metric is applied to the mean of each


def noise_of_examples(gradients: Gradients, coverage: float = 0.9) -> NoiseScale:
    r"""The simple noise scale from the gradients of single examples.

    .. math:: \operatorname{tr}\Sigma = \frac{\sum|g_i|^2 - n|\bar g|^2}{n - 1}, \quad
        |G|^2 = |\bar g|^2 - \frac{\operatorname{tr}\Sigma}{n}

    The interval is from leaving out each example in turn, in closed form. It is up to 1.4 times too wide where noise
    hides the signal (the jackknife doubles the variance of a degenerate U-statistic).

    Args:
        gradients: of :func:`isoloss.measure.per_example.loss_gradients`; examples independent of each other.
        coverage: of the intervals.

    Raises:
        NoAnswer: fewer than four examples, or signal or spread is not positive.

    Example:
        >>> rows = torch.tensor([[3.0, 1.0], [3.0, -1.0], [3.0, 2.0], [3.0, -2.0]])
        >>> found = noise_of_examples(Gradients.of_rows(rows, {"w": torch.zeros(2)}))
        >>> round(found.spread.value, 4), round(found.signal.value, 4)  # 10/3, and 9 - 10/12
        (3.3333, 8.1667)
    """
    total = gradients.combine(torch.ones(gradients.count))
    with_total = gradients.times(total)
    return _jackknifed(gradients.squared_norms(), with_total, 1.0, coverage, "leaving out each example")


def noise_in_metric(
    gradients: Gradients,
    metric: Product | Callable[[Tensor], Tensor],
    blocks: int = BLOCKS,
    coverage: float = 0.9,
) -> NoiseScale:
    r"""The noise scale in a metric M, :math:`\operatorname{tr} M\Sigma / G^T M G`, from means of blocks of examples.

    With M the Hessian it is B_noise; with :math:`M = P^2`, P the diagonal preconditioner of an optimiser, that of the
    steps it takes.

    Args:
        gradients: the examples in random order; those that fill no block of equal size are left out at the end.
        metric: M as a product with flat vectors, or a :class:`isoloss.measure.products.Product`.
        blocks: products that are made; more give a narrower interval of the spread.
        coverage: of the intervals.

    Raises:
        NoAnswer: fewer than four blocks, or signal or spread is not positive.
    """
    blocks = min(blocks, gradients.count)
    each = gradients.count // blocks
    dtype = next(iter(gradients.like.values())).dtype
    apply = metric.flat if isinstance(metric, Product) else metric
    means = []
    for block in range(blocks):
        u = torch.zeros(gradients.count, dtype=torch.float64)
        u[block * each : (block + 1) * each] = 1 / each
        means.append(gradients.combine(u))
    products = [apply(mean.to(dtype) if isinstance(metric, Product) else mean).double() for mean in means]
    total = torch.stack(means).sum(0)
    own = torch.stack([a @ b for a, b in zip(means, products, strict=True)])
    with_total = torch.stack([total @ b for b in products])
    return _jackknifed(
        own, with_total, float(each), coverage, f"leaving out each of {blocks} blocks of {each}"
    )


def _jackknifed(own: Tensor, with_total: Tensor, each: float, coverage: float, how: str) -> NoiseScale:
    """From |g_i|^2 and g_i . sum g of n independent means of ``each`` examples."""
    a, h = own.numpy(), with_total.numpy()
    n = len(a)
    if n < 4:
        raise NoAnswer(f"{n} gradients give no interval", "at least four examples, better some hundred")

    def estimates(squares: Any, sums: Any, count: int) -> Any:
        signal = (sums - squares) / (count * (count - 1))
        return np.stack([signal, each * (squares / count - signal)])

    left_out = estimates(a.sum() - a, h.sum() - 2 * h + a, n - 1)
    covariance = np.cov(left_out) * (n - 1) ** 2 / n
    t = student_quantile((1 + coverage) / 2, n - 1)
    return noise_of_means(estimates(a.sum(), h.sum(), n), covariance, t, coverage, how, n, n)


@dataclass(frozen=True)
class Tradeoff:
    """What a batch costs against the limits of small and of large batches.

    Attributes:
        steps: as a multiple of the least, S/S_min.
        examples: as a multiple of the least, E/E_min.
    """

    steps: Measured
    examples: Measured


def tradeoff(scale: Measured, batch: float) -> Tradeoff:
    r"""Steps and examples at a batch: :math:`S/S_{min} = 1 + B_{noise}/B`, :math:`E/E_{min} = 1 + B/B_{noise}`.

    Both are 2 at the noise scale itself. It assumes a noise scale that stays, and learning rates tuned to the batch.

    Args:
        scale: the noise scale, in the unit of the batch.
        batch: B.

    Example:
        >>> cost = tradeoff(Measured(1000.0, 800.0, 1300.0, 0.9, "measured"), batch=500)
        >>> print(cost.steps.value, cost.examples.value, cost.examples.low)
        3.0 1.5 1.3846153846153846
    """
    how, ends = "from the noise scale", (scale.value, scale.low, scale.high)
    value, low, high = (1 + end / batch for end in ends)
    steps = Measured(value, low, high, scale.coverage, how)
    value, high, low = (1 + batch / end if end else math.inf for end in ends)
    return Tradeoff(steps, Measured(value, low, high, scale.coverage, how))


class Meter:
    """The noise scale live in a training loop with gradient accumulation, from norms that it has anyway.

    The gradients of the micro-batches of a step are the small batches, their sum in ``.grad`` is the big one. Hooks read
    the norms as gradients come; nothing is kept but two numbers a step. Loss functions are to be scaled as for
    any accumulation: each micro-batch's mean times its share of the batch (a common factor does not matter).

    Not seen: what other processes add to ``.grad`` (data parallel), and batch norm's mixing of examples.

    Args:
        parameters: of the model.
        optimizer: Adam or AdamW that trains them: norms are then of gradients times its preconditioner
            :math:`1/(\\sqrt{\\hat v} + \\epsilon)` of the step before, the noise scale of the steps it takes. None: of the
            gradients themselves.
        window: newest steps that count.
        every: measure one step in so many.

    Raises:
        TypeError: the optimizer keeps no second moments.

    Example:
        >>> model = torch.nn.Linear(8, 1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> with Meter(model.parameters()) as meter:
        ...     for _ in range(200):
        ...         model.zero_grad()
        ...         for x in torch.randn(4, 16, 8, generator=generator):  # four micro-batches of 16
        ...             ((model(x) - x[:, :1]).square().mean() / 4).backward()
        ...         meter.step([16, 16, 16, 16])  # the optimizer's step may come before or after
        >>> meter.noise().scale.value > 0
        True
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        optimizer: torch.optim.Optimizer | None = None,
        window: int = 1000,
        every: int = 1,
    ) -> None:
        if optimizer is not None and not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            raise TypeError(
                f"needed Adam or AdamW, got {type(optimizer).__name__}. Do: leave the optimizer out"
            )
        self.every, self.skipped, self._steps = every, 0, 0
        self._signal: deque[float] = deque(maxlen=window)
        self._spread: deque[float] = deque(maxlen=window)
        self._optimizer = optimizer
        self._groups = {
            p: group for group in (optimizer.param_groups if optimizer else []) for p in group["params"]
        }
        self._small: list[dict[Tensor, Tensor]] = []  # a micro-batch: squared norms by parameter
        self._whole: dict[Tensor, Tensor] = {}
        held = [p for p in parameters if p.requires_grad]
        # The first gradient of a backward pass opens a new micro-batch; hooks run in the order they were put.
        self._handles: list[RemovableHandle] = [register_multi_grad_hook(held, self._begin, mode="any")]
        for p in held:
            self._handles.append(p.register_hook(self._reader(p)))  # type: ignore[no-untyped-call]
            self._handles.append(p.register_post_accumulate_grad_hook(self._summed))  # type: ignore[no-untyped-call]

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def step(self, sizes: Sequence[int], loss_scale: float = 1.0) -> None:
        """End a step: once for each optimizer step, after its backward passes.

        Args:
            sizes: examples (or tokens) of each micro-batch, in order; the noise scale has their unit.
            loss_scale: that the losses were multiplied by, as mixed precision does.

        Raises:
            ValueError: not as many backward passes as sizes, or a single one.
        """
        small, whole = self._small, self._whole
        self._small, self._whole = [], {}
        measured, self._steps = self._on, self._steps + 1
        if not measured:
            return
        if len(small) != len(sizes) or len(sizes) < 2:
            raise ValueError(
                f"needed a size for each of two or more backward passes, got {len(sizes)} sizes for "
                f"{len(small)} passes. Do: call step once after the backward passes of each step"
            )
        if not whole or not all(small):  # Adam's moments are not there yet
            return
        total, scale = sum(sizes), loss_scale**2
        each = [float(torch.stack(list(norms.values())).sum()) / scale for norms in small]
        big = float(torch.stack(list(whole.values())).sum()) / scale
        # Mean of the micro-batches' own squared norms, weighed by size: |G|^2 + (k / B) tr(Sigma).
        mean = sum(square * total / size for square, size in zip(each, sizes, strict=True))
        spread = (mean - big) * total / (len(sizes) - 1)
        if not (math.isfinite(mean) and math.isfinite(big)):
            self.skipped += 1
            return
        self._spread.append(spread)
        self._signal.append(big - spread / total)

    def noise(self, coverage: float = 0.9) -> NoiseScale:
        """The noise scale over the window, with its interval.

        Raises:
            NoAnswer: fewer than four steps measured, or noise hides the signal.
        """
        return noise_of_steps(list(self._signal), list(self._spread), coverage=coverage)

    def clear(self) -> None:
        """Forget the steps so far."""
        self._signal.clear()
        self._spread.clear()

    @property
    def _on(self) -> bool:
        return self._steps % self.every == 0

    def _begin(self, gradient: Tensor) -> None:
        if self._on:
            self._small.append({})

    def _reader(self, p: Tensor) -> Callable[[Tensor], None]:
        def read(gradient: Tensor) -> None:
            if self._on:
                square = self._square(p, gradient)
                if square is not None:
                    self._small[-1][p] = square

        return read

    def _summed(self, p: Tensor) -> None:
        if self._on and p.grad is not None:
            square = self._square(p, p.grad)
            if square is not None:
                self._whole[p] = square

    @torch.no_grad()
    def _square(self, p: Tensor, gradient: Tensor) -> Tensor | None:
        """Squared norm; of the preconditioned gradient, None before there is a preconditioner."""
        if self._optimizer is not None:
            state, group = self._optimizer.state.get(p, {}), self._groups.get(p)
            if group is None or "exp_avg_sq" not in state:
                return None
            corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            gradient = gradient / (corrected.sqrt() + group["eps"])
        kind = torch.promote_types(gradient.dtype, torch.float32)
        square: Tensor = torch.linalg.vector_norm(gradient, dtype=kind).square()
        return square


def probe(subject: Subject, coverage: float = 0.9) -> list[Measurement]:
    """The simple noise scale of the subject's batches, with signal and spread, in examples.

    Raises:
        NoAnswer: as :func:`noise_of_examples`. TypeError: as :func:`isoloss.measure.per_example.loss_gradients`.
    """
    with timed() as watch:
        gradients = loss_gradients(subject)
        found = noise_of_examples(gradients, coverage)
    how = f"{gradients.count} {gradients.how}; {100 * coverage:g}% interval {found.scale.low:.4g} to {found.scale.high:.4g}"
    t = student_quantile((1 + coverage) / 2, found.blocks - 1)

    def error(value: Measured) -> float:
        """As the interval has it; unknown where that is open."""
        return (value.high - value.low) / (2 * t) if math.isfinite(value.high) else math.nan

    return [
        Measurement(name, value.value, error(value), unit, how=how, spent=watch.spent())
        for name, value, unit in (
            ("noise_scale", found.scale, "examples"),
            ("gradient_signal", found.signal, "nats^2"),
            ("gradient_spread", found.spread, "nats^2"),
        )
    ]

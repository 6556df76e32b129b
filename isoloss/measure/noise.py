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
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.measure.per_example import Gradients, loss_gradients
from isoloss.measure.products import Product, gauss_newton
from isoloss.measure.subject import Subject
from isoloss.observing.measured import Measured
from isoloss.observing.noise_scale import NoiseScale, fieller, noise_of_means, noise_of_steps
from isoloss.special import student_quantile

BLOCKS = 32  # of examples, where a metric is applied to the mean of each


def noise_of_examples(gradients: Gradients, coverage: float = 0.9) -> NoiseScale:
    r"""The simple noise scale from the gradients of single examples.

    .. math:: \operatorname{tr}\Sigma = \frac{\sum|g_i|^2 - n|\bar g|^2}{n - 1}, \quad
        |G|^2 = |\bar g|^2 - \frac{\operatorname{tr}\Sigma}{n}

    The interval is from leaving out each example in turn, in closed form. It is up to 1.4 times too wide where noise
    hides the signal (the jackknife doubles the variance of a degenerate U-statistic), and too short for a few dozen
    examples if a few of them have most of the squared norm.

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
    return _resolved(_of_examples(gradients), coverage, "leaving out each example")


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
    return _resolved(*_in_metric(gradients, metric, blocks, coverage))


def _in_metric(
    gradients: Gradients, metric: Product | Callable[[Tensor], Tensor], blocks: int, coverage: float
) -> tuple[_Estimates, float, str]:
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
    how = f"leaving out each of {blocks} blocks of {each}"
    return _jackknifed(own, with_total, float(each)), coverage, how


@dataclass(frozen=True, eq=False)
class _Estimates:
    """Signal and spread (2,), the covariance of the two, and how many parts it is from."""

    centre: Any
    covariance: Any
    parts: int

    def quantile(self, coverage: float) -> float:
        return student_quantile((1 + coverage) / 2, self.parts - 1)


def _resolved(found: _Estimates, coverage: float, how: str) -> NoiseScale:
    t = found.quantile(coverage)
    return noise_of_means(found.centre, found.covariance, t, coverage, how, found.parts, found.parts)


def _of_examples(gradients: Gradients) -> _Estimates:
    total = gradients.combine(torch.ones(gradients.count))
    return _jackknifed(gradients.squared_norms(), gradients.times(total), 1.0)


def _jackknifed(own: Tensor, with_total: Tensor, each: float) -> _Estimates:
    """From |g_i|^2 and g_i . sum g of n independent means of ``each`` examples."""
    a, h = own.numpy(), with_total.numpy()
    n = len(a)
    if n < 4:
        raise NoAnswer(f"{n} gradients give no interval", "at least four examples, better some hundred")
    if not (np.isfinite(a).all() and np.isfinite(h).all()):
        raise NoAnswer("some gradients are not finite", "weights and data on which the loss is finite")

    def estimates(squares: Any, sums: Any, count: int) -> Any:
        signal = (sums - squares) / (count * (count - 1))
        return np.stack([signal, each * (squares / count - signal)])

    left_out = estimates(a.sum() - a, h.sum() - 2 * h + a, n - 1)
    return _Estimates(estimates(a.sum(), h.sum(), n), np.cov(left_out) * (n - 1) ** 2 / n, n)


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

    Not seen: what other processes add to ``.grad`` (data parallel), and batch norm's mixing of examples. A backward
    pass that adds nothing to ``.grad`` (``torch.autograd.grad``) does not count. Checkpointing needs
    ``use_reentrant=False``.

    Args:
        parameters: of the model.
        optimizer: Adam or AdamW that trains them: norms are then of gradients times its preconditioner
            :math:`1/(\\sqrt{\\hat v} + \\epsilon)` of the step before, the noise scale of the steps it takes. None: of the
            gradients themselves.
        window: newest steps that count.
        every: measure one step in so many; the others may have a single backward pass.

    Raises:
        TypeError: the optimizer keeps no second moments.
        ValueError: no parameter takes a gradient; or window or every is not above 0.

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
        held = list(dict.fromkeys(p for p in parameters if p.requires_grad))
        if not held or min(window, every) < 1:
            raise ValueError(
                f"needed parameters that take a gradient, and window and every of 1 or more, got {len(held)} "
                f"parameters, {window} and {every}"
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
        self._read: dict[Tensor, Tensor] = {}  # of the pass that runs, before they are added to .grad
        self._new = False
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
        measured, self._steps = self.due, self._steps + 1
        if not measured:
            return
        if len(small) != len(sizes) or len(sizes) < 2:
            raise ValueError(
                f"needed a size for each of two or more backward passes, got {len(sizes)} sizes for "
                f"{len(small)} passes. Do: call step once after the backward passes of each step; checkpoint with "
                "use_reentrant=False"
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
    def due(self) -> bool:
        """Whether the step that runs is measured: then it needs two or more backward passes."""
        return self._steps % self.every == 0

    def _begin(self, gradient: Tensor) -> None:
        if self.due:
            self._new = True
            self._read = {}

    def _reader(self, p: Tensor) -> Callable[[Tensor], None]:
        def read(gradient: Tensor) -> None:
            if self.due:
                square = self._square(p, gradient)
                if square is not None:
                    self._read[p] = square

        return read

    def _summed(self, p: Tensor) -> None:
        """After a gradient was added to ``.grad``."""
        if not self.due or p.grad is None:
            return
        if self._new:
            self._small.append({})
            self._new = False
        square = self._square(p, p.grad)
        if square is not None and p in self._read:
            self._small[-1][p] = self._read.pop(p)
            self._whole[p] = square

    @torch.no_grad()
    def _square(self, p: Tensor, gradient: Tensor) -> Tensor | None:
        """Squared norm; of the preconditioned gradient, None before there is a preconditioner."""
        if gradient.is_sparse:  # of an embedding
            gradient = gradient.coalesce().values()
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

    Where the signal is not told from zero the noise scale is NaN; ``how`` then has the lower end of its interval.

    Raises:
        NoAnswer: fewer than four examples, or examples that are all alike.
        TypeError: as :func:`isoloss.measure.per_example.loss_gradients`.
    """
    with timed() as watch:
        gradients = loss_gradients(subject)
        found = _of_examples(gradients)
    names = ("noise_scale", "gradient_signal", "gradient_spread")
    return _measured(names, found, coverage, f"{gradients.count} {gradients.how}", watch.spent())


def probe_curved(subject: Subject, coverage: float = 0.9) -> list[Measurement]:
    r"""The noise scale in the metric of the Gauss-Newton matrix G, :math:`\operatorname{tr} G\Sigma / g^T G g`, in examples.

    Where the signal is not told from zero it is NaN; ``how`` then has the lower end of its interval.

    Raises:
        NoAnswer: as :func:`probe`.
        TypeError: as :func:`probe`, or a criterion of unknown curvature.
    """
    with timed() as watch:
        gradients = loss_gradients(subject)
        with gauss_newton(subject) as product:
            found, _, blocks = _in_metric(gradients, product, BLOCKS, coverage)
    how = f"in the metric of the Gauss-Newton matrix, {blocks}; {gradients.count} {gradients.how}"
    return _measured(("noise_scale_curved", "", ""), found, coverage, how, watch.spent())


def _measured(
    names: Sequence[str], found: _Estimates, coverage: float, how: str, spent: Spent
) -> list[Measurement]:
    """Of the three, those that have a name."""
    signal, spread = (float(value) for value in found.centre)
    if spread <= 0:
        raise NoAnswer("the gradients of all examples are alike", "examples that differ")
    t, v = found.quantile(coverage), found.covariance
    # A signal estimated below zero is as one just above it: then only the lower end is known.
    above = max(signal, 1e-12 * spread)
    low, high = fieller(spread, above, v[1, 1], v[0, 0], v[0, 1], t)
    if math.isfinite(high):
        value, error = spread / signal, (high - low) / (2 * t)
        said = f"{100 * coverage:g}% interval {max(low, 0.0):.4g} to {high:.4g}"
    else:
        value = error = math.nan
        said = (
            f"not resolved: noise hides the gradient; {100 * coverage:g}% interval {max(low, 0.0):.4g} to inf"
        )
    each = (
        (value, error, "examples"),
        (signal, math.sqrt(v[0, 0]), "nats^2"),
        (spread, math.sqrt(v[1, 1]), "nats^2"),
    )
    return [
        Measurement(name, value, error, unit, how=f"{how}; {said}", spent=spent)
        for name, (value, error, unit) in zip(names, each, strict=True)
        if name
    ]

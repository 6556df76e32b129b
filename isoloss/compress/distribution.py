r"""Calibration inputs of a block moved to the statistics that its batch norms saw in training, before they are a target.

A few pictures are not the training data. A batch norm has kept the means and variances of what it saw in training; inputs
x of a block are moved so that what arrives at its batch norms has these again,

.. math:: \min_x \frac1B \sum_{\mathrm{BN}} \sum_{e=1}^B \big(\|\mu - \mu_e(x)\|^2 + \|\sigma - \sigma_e(x)\|^2\big)
    + \frac{\|x - x_0\|^2}{\lambda\,n}

with the mean and deviation over the positions of each of B examples, and n positions of the inputs. Networks with layer norms
keep no such statistics and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from isoloss.compress.blockwise import run
from isoloss.compress.predictions import first, positions

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
EPSILON = 1e-6  # of deviations


@dataclass(frozen=True)
class Correction:
    """How inputs are moved.

    Args:
        pull: lambda: the smaller, the less they may move. PD-Quant's code has 0.02 for ResNets, 0.01 for RegNets, 0.005 for
            MobileNetV2 and 0.001 for MNasNet.
        steps: of Adam.
        rate: its first step size; a tenth after ``patience`` steps without gain, down to ``least``.
        patience, least: see ``rate``.

    Source:
        J. Liu et al., PD-Quant, 2023, arXiv 2212.07048: distribution correction.
    """

    pull: float = 0.02
    steps: int = 500
    rate: float = 1e-3
    patience: int = 100
    least: float = 1e-5

    def __post_init__(self) -> None:
        if self.pull <= 0 or self.steps < 1 or self.rate <= 0 or self.patience < 1 or self.least <= 0:
            raise ValueError(f"needed numbers above 0, got {self}")


def norms(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """The batch norms in modules that keep statistics."""
    return [
        one
        for module in modules
        for one in module.modules()
        if isinstance(one, NORMS) and one.running_mean is not None
    ]


def corrected(modules: Sequence[nn.Module], inputs: Any, how: Correction) -> Any:
    """Inputs of a block, moved to the statistics of its batch norms.

    Args:
        modules: that run one after another, in eval mode.
        inputs: (arguments, keywords) of the first; the first tensor of floats is moved.
        how: settings.

    Returns:
        Inputs of the same shapes.

    Raises:
        ValueError: the block has no batch norm with statistics.

    Example:
        >>> norm = nn.BatchNorm2d(3).eval()  # mean 0, deviation 1
        >>> x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.2
        >>> (moved,), _ = corrected([norm], ((x,), {}), Correction(pull=10.0))
        >>> bool(moved.mean().abs() < 0.25 * x.mean())
        True
    """
    own = norms(modules)
    if not own:
        raise ValueError(
            "correcting inputs needs batch norms with running statistics, and the block has none. Leave it out: "
            "networks with layer norms keep no statistics of their training data"
        )
    leaves, tree = tree_flatten(inputs)
    start = first(inputs).detach()
    place = next(i for i, leaf in enumerate(leaves) if leaf is first(inputs))
    x = start.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=how.rate)
    slower = torch.optim.lr_scheduler.ReduceLROnPlateau(
        adam, patience=how.patience, min_lr=how.least, factor=0.1
    )
    leaves[place] = x
    moved = tree_unflatten(leaves, tree)
    for _ in range(how.steps):
        with torch.enable_grad(), _arriving(own) as seen:
            run(modules, moved)
            loss = (x - start).square().sum() / (how.pull * positions(start))
            for norm, arrived in seen:
                loss = loss + _away(norm, arrived)
            [slope] = torch.autograd.grad(loss, [x])
        x.grad = slope
        adam.step()
        slower.step(float(loss.detach()))
    leaves[place] = x.detach()
    return tree_unflatten(leaves, tree)


def _away(norm: Any, arrived: Tensor) -> Tensor:
    """Squared distance of means and deviations of each example from those of training, mean over examples."""
    flat = arrived.flatten(2) if arrived.ndim > 2 else arrived.T[None]
    mean = flat.mean(2)
    deviation = (flat.var(2, unbiased=False) + EPSILON).sqrt()
    kept = (norm.running_var + EPSILON).sqrt()
    away: Tensor = (mean - norm.running_mean).square().sum() + (deviation - kept).square().sum()
    return away / len(flat)


@contextmanager
def _arriving(own: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """What each batch norm is called with."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: Any) -> None:
        seen.append((module, args[0]))

    hooks = [norm.register_forward_pre_hook(note) for norm in own]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()

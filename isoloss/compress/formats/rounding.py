"""Six ways to round a number to a whole one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["nearest", "up", "down", "zero", "stochastic", "coin"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "up", "down", "zero", "stochastic", "coin")


def round_whole(x: Tensor, mode: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
    """Whole numbers next to ``x``, in its dtype.

    ``nearest`` takes the even one of two equally near; ``up`` is to +inf, ``down`` to -inf, ``zero`` towards zero;
    ``stochastic`` goes up with a probability equal to the fraction, so that its mean is ``x`` (to 2^-24 in float32, the
    grain of its random numbers); ``coin`` takes each neighbour with probability 1/2. Whole numbers stay in all modes.

    Args:
        x: float32 or float64, any shape.
        mode: one of the six.
        generator: of the random modes; they have no other source of chance.

    Raises:
        ValueError: no such mode; a random mode without a generator.

    Source:
        E. Carson and X. Chen, Pychop, 2025, arXiv 2504.07835, modes 1 to 6.

    Example:
        >>> import torch
        >>> x = torch.tensor([2.5, -2.5, 0.2, -0.2])
        >>> {mode: round_whole(x, mode).tolist() for mode in ("nearest", "up", "down", "zero")}["nearest"]
        [2.0, -2.0, 0.0, -0.0]
        >>> round_whole(torch.full((4,), 0.5), "stochastic", torch.Generator().manual_seed(0)).tolist()
        [1.0, 0.0, 1.0, 1.0]
    """
    check_rounding(mode, generator)
    if mode == "nearest":
        return x.round()
    if mode == "up":
        return x.ceil()
    if mode == "down":
        return x.floor()
    if mode == "zero":
        return x.trunc()
    below = x.floor()
    fraction = x - below
    chance = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if mode == "coin":
        return below + ((fraction > 0) & (chance < 0.5)).to(x.dtype)
    return below + (chance < fraction).to(x.dtype)


def check_rounding(mode: Rounding, generator: torch.Generator | None) -> None:
    """Refuse an unknown mode, and chance without a source."""
    if mode not in ROUNDINGS:
        raise ValueError(f"no rounding named {mode!r}. There are: {', '.join(ROUNDINGS)}")
    if mode in ("stochastic", "coin") and generator is None:
        raise ValueError(
            f"rounding {mode!r} needs a generator, got none. Give torch.Generator().manual_seed(...)"
        )

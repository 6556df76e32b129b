"""Rounds the inputs of a layer while a model trains: ranges learned, held, or of each row its own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from isoloss.compress.activations import Range, fake_round, numbers, token_range
from isoloss.compress.formats import Float, Integer, round_float
from isoloss.compress.layers import CONVOLUTIONS
from isoloss.compress.training.steps import applied, gradient_share


class RoundedInput(nn.Module):
    r"""Numbers rounded to a format that covers a range, with a gradient.

    The forward pass is :func:`isoloss.compress.activations.fake_round`, bit for bit. The gradient passes straight through
    the rounding within the range and is 0 outside; ends that are learned get the gradient of LSQ (of ``asym``: of LSQ+, with
    the zero-point's rounding passed as well), times :math:`1/\sqrt{n u}` with n numbers of an example and the top level u.

    Args:
        format: integers or floats, without groups.
        start: range to begin with; None: of each row (of a convolution: of each example) its own.
        learned: whether the ends are parameters.

    Source:
        S. Esser et al., LSQ, arXiv 1902.08153; Y. Bhalgat et al., LSQ+, 2020, arXiv 2004.09576.

    Example:
        >>> rounded = RoundedInput("int2/asym", Range(0.0, 3.0))
        >>> x = torch.tensor([[0.4, 1.6, 3.7]], requires_grad=True)
        >>> rounded(x).sum().backward()
        >>> x.grad.tolist(), round(float(rounded.high.grad) * 9**0.5, 4)  # (-0.4 + 0.4) / 3 + 1
        ([[1.0, 1.0, 0.0]], 1.0)
    """

    low: Tensor
    high: Tensor

    def __init__(self, format: str, start: Range | None, learned: bool = True) -> None:
        super().__init__()
        self.kind = numbers(format)
        self.own = start is None
        ends = torch.zeros(2) if start is None else torch.tensor([start.low, start.high])
        for name, end in zip(("low", "high"), ends, strict=True):
            if learned and not self.own:
                self.register_parameter(name, nn.Parameter(end.clone()))
            else:
                self.register_buffer(name, end.clone(), persistent=not self.own)

    @property
    def range(self) -> Range | None:
        """As it is now, for :func:`isoloss.compress.activations.rounded_inputs`; None where every row has its own."""
        return None if self.own else Range(self.low.item(), self.high.item())

    def forward(self, x: Tensor, whole: bool = False) -> Tensor:
        """The rounded numbers, in their own dtype."""
        if self.own:
            low, high = token_range(x.detach(), self.kind, whole)
            return applied(_Passed, x, fake_round(x.detach(), low, high, self.kind))
        top = self.kind.type.maximum if isinstance(self.kind, Float) else float(self.kind.top)
        share = gradient_share(x[0].numel() if x.ndim > 1 else x.numel(), top)
        low, high = (applied(_Shared, end, share) for end in (self.low, self.high))
        return _rounded(x.float(), low, high, self.kind).to(x.dtype)


def entering(module: nn.Module, args: Any, keywords: Any) -> Any:
    """What a layer gets instead of its inputs; a hook before its forward pass."""
    rounded, whole = cast(RoundedInput, module.rounded_input), isinstance(module, CONVOLUTIONS)
    if not args:  # linear(input=x)
        return args, {**keywords, "input": rounded(keywords["input"], whole)}
    return (rounded(args[0], whole), *args[1:]), keywords


def _rounded(y: Tensor, low: Tensor, high: Tensor, kind: Integer | Float) -> Tensor:
    """The arithmetic of ``fake_round``, rounding passed straight through."""
    if isinstance(kind, Float):
        scale = _positive(high / kind.type.maximum)
        v = (y / scale).clamp(-kind.type.maximum, kind.type.maximum)
        return applied(_Passed, v, round_float(v.detach(), kind.type)) * scale
    if kind.zero == "asym":
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = _positive((high - low) / kind.top)
        ratio = -low / scale
        zero = applied(_Passed, ratio, ratio.detach().round())
        v = y / scale
        code = (applied(_Passed, v, v.detach().round()) + zero).clamp(0, kind.top)
        return (code - zero) * scale
    scale = _positive(high / kind.top)
    least = kind.lowest + int(kind.zero == "narrow")
    v = (y / scale).clamp(least, kind.top)
    return applied(_Passed, v, v.detach().round()) * scale


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


class _Passed(torch.autograd.Function):
    """Another number with the gradient of this one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor) -> Tensor:
        return other.view_as(other)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


class _Shared(torch.autograd.Function):
    """The same number; its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor, None

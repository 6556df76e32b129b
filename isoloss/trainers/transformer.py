"""The reference trainer's model: a pre-norm decoder whose slow parts are written out, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoloss.trainers.gpt_settings import VOCABULARY, Settings


class _Norm(torch.autograd.Function):
    """RMSNorm over the last axis, from float32 to the type of the products; keeps only its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        mean_square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.size(-1))
        scale = mean_square.add_(1e-6).rsqrt_()
        y: Tensor = (x * scale).to(dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        gradient, y = gradient.to(scale.dtype), y.to(scale.dtype)  # mixed types are slow
        work = gradient * y
        along = work.sum(-1, keepdim=True).mul_(-1 / y.size(-1))
        return torch.mul(y, along, out=work).add_(gradient).mul_(scale), None


class _SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2, keeping only max(x, 0)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive: Tensor = x.relu_()  # the product before it does not need its result again
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        positive: Tensor = ctx.saved_tensors[0]
        return (gradient * positive).mul_(2)


class _Heads(torch.autograd.Function):
    """Fused queries, keys, values (batch, T, 3, heads, size) as three tensors (batch, heads, T, size).

    Queries and keys are rotated by their position on the way, in the copy that the new order needs anyway.
    With ``unit`` they are then brought to a root mean square of 1. The queries get the scale of the scores.
    """

    @staticmethod
    def forward(
        ctx: Any, fused: Tensor, cos: Tensor, sin: Tensor, unit: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = fused.size(-1)
        ready = []
        factors = []
        for x, scale in zip(fused.unbind(2), (size**-0.5, 1.0), strict=False):
            y = fused.new_empty(x.size(0), x.size(2), x.size(1), size)
            _rotate(x.transpose(1, 2), cos, sin, y)
            if unit:
                square = torch.linalg.vector_norm(y, dim=-1, keepdim=True, dtype=torch.float32).square_()
                factors.append(square.div_(size).add_(1e-6).rsqrt_().mul_(scale).to(y.dtype))
                y.mul_(factors[-1])
            elif scale != 1:
                y.mul_(scale)
            ready.append(y)
        ctx.unit = unit
        ctx.save_for_backward(cos, sin, *ready, *factors) if unit else ctx.save_for_backward(cos, sin)
        return ready[0], ready[1], fused.select(2, 2).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin, *kept = ctx.saved_tensors
        batch, heads, length, size = gradients[0].shape
        fused = gradients[0].new_empty(batch, length, 3, heads, size)
        places = [part.transpose(1, 2) for part in fused.unbind(2)]
        for i, scale in enumerate((size**-0.5, 1.0)):
            gradient = gradients[i]
            if ctx.unit:  # y = f x, f = scale / rms(x): dx = f (dy - y (dy . y) / (size scale^2))
                y, factor = kept[i], kept[2 + i]
                work = gradient * y
                along = work.sum(-1, keepdim=True).mul_(-1 / (size * scale**2))
                gradient = torch.mul(y, along, out=work).add_(gradient).mul_(factor)
            elif scale != 1:
                gradient = gradient * scale
            _rotate(gradient, cos, -sin, places[i])
        places[2].copy_(gradients[2])
        return fused, None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """(x1 cos - x2 sin, x2 cos + x1 sin) of the two halves of the last axis, written into ``out``."""
    half = x.size(-1) // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Causal attention over (batch, heads, T, size); the queries are scaled already.

    On a CPU three plain operations are two to six times as fast as the fused kernel at these lengths.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    flat = (-1, *q.shape[2:])
    scores = torch.baddbmm(mask, q.reshape(flat), k.reshape(flat).mT)
    return torch.bmm(torch.softmax(scores, -1), v.reshape(flat)).view(q.shape)


class Block(nn.Module):
    """The weights of one layer; what writes to the residual stream starts at zero."""

    def __init__(self, width: int, draw: torch.Generator) -> None:
        super().__init__()
        std = width**-0.5
        self.qkv = nn.Parameter(torch.randn(3 * width, width, generator=draw) * std)
        self.out = nn.Parameter(torch.zeros(width, width))
        self.up = nn.Parameter(torch.randn(4 * width, width, generator=draw) * std)
        self.down = nn.Parameter(torch.zeros(width, 4 * width))


class GPT(nn.Module):
    """The model: ids (batch, T) to logits (batch, T, 256)."""

    def __init__(self, settings: Settings, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        width = settings.width
        self.dtype, self.qk_norm, self.head_size = dtype, settings.qk_norm, settings.head_size
        draw = torch.Generator().manual_seed(settings.seed)
        std = width**-0.5 if settings.tied else 1.0
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, width, generator=draw) * std)
        self.layers = [Block(width, draw) for _ in range(settings.layers)]
        self.blocks = nn.ModuleList(self.layers)
        self.head = self.embedding if settings.tied else nn.Parameter(torch.zeros(VOCABULARY, width))
        self.cos: Tensor
        self.sin: Tensor
        self.mask: Tensor
        angles = _angles(settings.seq_len, settings.head_size)
        self.register_buffer("cos", angles.cos().repeat(1, 2).to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)
        mask = torch.full((settings.seq_len, settings.seq_len), -torch.inf).triu(1)
        self.register_buffer("mask", mask.to(dtype), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.embedding).flatten(0, 1)
        for block in self.layers:
            x = x + self._attention(block, x, ids.shape)
            x = x + self._mlp(block, x)
        logits = F.linear(_norm(x, self.dtype), self.head.to(self.dtype))
        return logits.float().view(*ids.shape, VOCABULARY)

    def _attention(self, block: Block, x: Tensor, shape: torch.Size) -> Tensor:
        fused = F.linear(_norm(x, self.dtype), block.qkv.to(self.dtype))
        length = shape[1]
        fused = fused.view(*shape, 3, -1, self.head_size)
        turn = self.cos[:length], self.sin[:length]
        q, k, v = _Heads.apply(fused, *turn, self.qk_norm)  # type: ignore[no-untyped-call]
        mixed = _attend(q, k, v, self.mask[:length, :length])
        return F.linear(mixed.transpose(1, 2).reshape(x.shape), block.out.to(self.dtype))

    def _mlp(self, block: Block, x: Tensor) -> Tensor:
        hidden = F.linear(_norm(x, self.dtype), block.up.to(self.dtype))
        return F.linear(_SquaredReLU.apply(hidden), block.down.to(self.dtype))  # type: ignore[no-untyped-call]


def _norm(x: Tensor, dtype: torch.dtype) -> Tensor:
    y: Tensor = _Norm.apply(x, dtype)  # type: ignore[no-untyped-call]
    return y


def _angles(length: int, size: int) -> Tensor:
    """position / 10000^(2 i / size), shape (length, size / 2)."""
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.arange(length, dtype=torch.float64)[:, None] * frequencies


def losses(model: Callable[[Tensor], Tensor], windows: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """What is minimised, and the cross-entropy in nats per byte."""
    logits = model(windows[:, :-1]).flatten(0, 1)
    entropy = F.cross_entropy(logits, windows[:, 1:].reshape(-1))
    if not z_loss:
        return entropy, entropy.detach()
    return entropy + z_loss * torch.logsumexp(logits, -1).square().mean(), entropy.detach()

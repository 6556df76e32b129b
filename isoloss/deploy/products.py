"""The product of a packed weight with activations: native where there is native code, on a GPU by Triton, else in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from isoloss import native
from isoloss.deploy import gpu, reference
from isoloss.deploy.packing import Activations, Packed
from isoloss.native.library import warn_slow

DECODED_FROM = 64
"""Tokens from which on the weight is decoded once for all, and multiplied by torch."""


def product(
    packed: Packed,
    x: Tensor,
    activations: Activations = "int8",
    threads: int | None = None,
    instructions: str | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Activations times a packed weight, transposed: what a linear layer computes.

    Args:
        packed: rows × columns.
        x: (tokens, columns), float32, where the weight lies; on a GPU float16 or bfloat16 too.
        activations: ``int8``: rounded per token and run of at most 512 columns; ``int16``: the same with 256 times finer
            steps; ``float``: as they are. Kinds ``table`` and ``levels`` never take them as they are, others always. On a
            GPU nothing is rounded.
        threads: that share rows; default those of torch.
        instructions: one of ``native.status().sets``; the best by default.
        bias: (rows,), float32, added to every token's.

    Returns:
        (tokens, rows), in the dtype of ``x``. :func:`isoloss.deploy.reference.bound` says how far off.

    Raises:
        ValueError: another shape or dtype.

    Example:
        >>> from isoloss.compress import formats
        >>> from isoloss.deploy.packing import pack_weight
        >>> weight = torch.randn(32, 600, generator=torch.Generator().manual_seed(0))
        >>> packed = pack_weight(formats.get("table3").encode(weight))
        >>> x = torch.ones(2, 600)
        >>> bool(((product(packed, x) - x @ packed.decode().T).abs() <= reference.bound(packed, x)).all())
        True
    """
    if x.ndim != 2 or x.shape[1] != packed.shape[1] or not _taken(packed, x):
        raise ValueError(
            f"this weight takes {_types(packed)} activations of shape (tokens, {packed.shape[1]}), got {x.dtype} of {tuple(x.shape)}"
            + _moves(packed, x)
        )
    if bias is not None and (bias.shape != (packed.shape[0],) or not _taken(packed, bias)):
        raise ValueError(
            f"this weight takes a {_types(packed)} bias of shape ({packed.shape[0]},), got {bias.dtype} of {tuple(bias.shape)}"
            + _moves(packed, bias)
        )
    if not packed.on_cpu and packed.device.type == "cuda":
        return gpu.product(packed, x.detach(), bias)
    tokens = x.shape[0]
    if tokens >= DECODED_FROM or (packed.kind == "dense" and set(packed.tensors) == {"weight"}):
        return torch.nn.functional.linear(x, packed.decode(), bias)
    if not native.available():
        warn_slow("products with packed weights are slow")
        out = reference.product(packed, x, activations)
        return out if bias is None else out + bias
    # What lies in memory is read as it is.
    x = x.detach().resolve_neg().contiguous() if x.requires_grad or x.is_neg() else x.contiguous()
    if packed.kind == "dense":
        out, bias = torch.nn.functional.linear(x, packed.tensors["weight"], bias), None
    else:
        out = torch.empty(tokens, packed.shape[0], dtype=torch.float32, device="cpu")
    if packed.kind != "dense" or packed.sparse is not None:
        kept = None if bias is None else bias.resolve_neg().contiguous()
        packed.ready.product(
            x.data_ptr(),
            tokens,
            2 if activations == "int16" and packed.kind in ("table", "levels") else 1,
            None if kept is None else kept.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads() if threads is None else threads,
            instructions,
        )
    if packed.thin is not None:
        left, right = packed.thin
        beside = product(right, x, activations, threads, instructions)
        out += product(left, beside, activations, threads, instructions)
    return out


def _taken(packed: Packed, one: Tensor) -> bool:
    if packed.on_cpu:
        return one.is_cpu and one.dtype is torch.float32
    return one.device == packed.device and one.dtype in _numbers(packed)


def _numbers(packed: Packed) -> tuple[torch.dtype, ...]:
    return gpu.TYPES if packed.device.type == "cuda" else (torch.float32,)


def _types(packed: Packed) -> str:
    return " or ".join(str(one).removeprefix("torch.") for one in _numbers(packed))


def _moves(packed: Packed, one: Tensor) -> str:
    """What to do about the wrong device."""
    if one.device == packed.device:
        return ""
    to = "the CPU" if packed.on_cpu else f"the device {packed.device}"
    return f" on {one.device}. Move it to {to}"

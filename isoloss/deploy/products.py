"""The product of a packed weight with activations: native where there is native code, else in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from isoloss import native
from isoloss.deploy import reference
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
        x: (tokens, columns), float32.
        activations: ``int8``: rounded per token and run of at most 512 columns; ``int16``: the same with 256 times finer
            steps; ``float``: as they are. Kinds ``table`` and ``levels`` never take them as they are, others always.
        threads: that share rows; default those of torch.
        instructions: one of ``native.status().sets``; the best by default.
        bias: (rows,), float32, added to every token's.

    Returns:
        (tokens, rows), float32. :func:`isoloss.deploy.reference.bound` says how far off.

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
    if x.ndim != 2 or x.shape[1] != packed.shape[1] or x.dtype != torch.float32 or not x.is_cpu:
        raise ValueError(
            f"this weight takes float32 activations of shape (tokens, {packed.shape[1]}), got {x.dtype} of {tuple(x.shape)}"
            + ("" if x.is_cpu else f" on {x.device}. Move them to the CPU")
        )
    if bias is not None and (
        bias.shape != (packed.shape[0],) or bias.dtype != torch.float32 or not bias.is_cpu
    ):
        raise ValueError(
            f"this weight takes a float32 bias of shape ({packed.shape[0]},), got {bias.dtype} of {tuple(bias.shape)}"
        )
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

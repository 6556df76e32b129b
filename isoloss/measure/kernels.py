"""Memory that an operator of torch takes while it runs and gives back before it returns; no tensor shows it.

Only convolutions are known, on a CPU with oneDNN: they copy what they read and write into a blocked layout, channels
in groups of 8 or 16. Found with torch 2.13 and oneDNN's AVX-512 kernels; other versions may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from isoloss.measure.operators import bound

_PLAIN = 4  # with fewer channels the plain layout is read as it is


def scratch(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Bytes beyond inputs and results that a call takes at its most; 0 where nothing is known.

    Example:
        >>> x, weight, out = torch.ones(2, 16, 8, 8), torch.ones(32, 16, 3, 3), (2, 32, 8, 8)
        >>> call = (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        >>> scratch(torch.ops.aten.convolution.default, call, {}) == 4 * 2 * 32 * 8 * 8  # the result, blocked
        True
    """
    rule = _RULES.get(operator.name().partition(".")[0]) if hasattr(operator, "_schema") else None
    return rule(bound(operator, args, kwargs)) if rule is not None else 0


def _blocked(tensor: Tensor, channels: int | None = None) -> int:
    """Bytes of a tensor in the blocked layout."""
    have = tensor.shape[1] if channels is None else channels
    padded = 8 if have <= 8 else -(-have // 16) * 16
    return tensor.numel() // tensor.shape[1] * padded * tensor.element_size()


def _is_plain(x: Tensor) -> bool:
    """Whether a convolution of it goes through the blocked layout."""
    blocked: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if x.device.type != "cpu" or not blocked or x.dtype == torch.float64:
        return False
    return x.ndim < 4 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)


def _forward(given: Mapping[str, Any]) -> int:
    x, weight = given["input"], given["weight"]
    if not _is_plain(x) or given["transposed"]:
        return 0
    places: int = x.shape[0] * x.element_size()
    for size, kernel, stride, padding, dilation in zip(
        x.shape[2:], weight.shape[2:], given["stride"], given["padding"], given["dilation"], strict=True
    ):
        places *= (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    out: int = places * weight.shape[0]
    read = _blocked(x) if x.shape[1] >= _PLAIN else 0
    return max(out, read)


def _backward(given: Mapping[str, Any]) -> int:
    gradient, x = given["grad_output"], given["input"]
    if not _is_plain(x) or given["transposed"]:
        return 0
    dense = 0 if gradient.is_contiguous() else gradient.numel() * gradient.element_size()
    read = _blocked(x) if x.shape[1] >= _PLAIN else 0
    both = _blocked(gradient, max(gradient.shape[1], 9)) + read
    if given["output_mask"][0] and max(given["stride"]) > 1:  # the input's gradient is laid out anew twice
        return dense + max(both, 2 * _blocked(x))
    return dense + both


_RULES: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "aten::convolution": _forward,
    "aten::convolution_backward": _backward,
}

UNSEEN = frozenset({"aten::mkldnn_rnn_layer"})
"""Operators whose results on empty tensors are not those on real ones: they keep a workspace."""

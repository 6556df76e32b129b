"""Sees every multiplication by a watched weight while a model runs, whichever module or function does it.

Operators are watched, not modules: functional calls, ``nn.MultiheadAttention``, experts in one tensor and weights
used in several places are seen alike. A weight is known by its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isoloss.compress.layers import Layer
from isoloss.measure.dispatch import Mode

aten = torch.ops.aten
LOOKUPS = {
    aten.embedding.default,
    aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
}


@dataclass(frozen=True)
class Convolved:
    """How a convolution goes over its input; a number for each dimension of the kernel."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Watch(Mode):
    """Calls back for each use of a layer's weight.

    Args:
        layers: to watch.
        multiplied: (layer, inputs with ``in`` along the last dimension).
        convolved: (layer, input of the convolution, how).
        looked_up: (layer, indices).
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        multiplied: Callable[[Layer, Tensor], None],
        convolved: Callable[[Layer, Tensor, Convolved], None],
        looked_up: Callable[[Layer, Tensor], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, list[tuple[Layer, Tensor]]] = {}
        for layer in layers:
            own = layer.tensor
            self._known.setdefault(own.untyped_storage()._cdata, []).append((layer, own))
        self._multiplied, self._convolved, self._looked_up = multiplied, convolved, looked_up

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is aten.mm.default:
            self._product(args[0], args[1])
        elif func is aten.addmm.default:
            self._product(args[1], args[2])
        elif func is aten.bmm.default:
            self._products(args[0], args[1])
        elif func is aten.baddbmm.default:
            self._products(args[1], args[2])
        elif func is aten.mv.default:
            self._product(args[0], args[1][:, None])
        elif func is aten.addmv.default:
            self._product(args[1], args[2][:, None])
        elif func is aten.linear.default:
            self._product(args[0], args[1].T)
        elif func is aten.convolution.default and not args[6]:
            self._convolution(args)
        elif func in LOOKUPS:
            for layer, own in self._held(args[0]):
                if own.shape == args[0].shape:
                    self._looked_up(layer, args[1])
        return out

    def _held(self, tensor: Tensor) -> list[tuple[Layer, Tensor]]:
        return self._known.get(tensor.untyped_storage()._cdata, []) if self._known else []

    def _product(self, a: Tensor, b: Tensor) -> None:
        """a @ b, where either may be the weight."""
        for layer, own in self._held(b):
            if _is(b.T, layer, own):
                self._multiplied(layer, a)
        for layer, own in self._held(a):
            if a.ndim == 2 and _is(a, layer, own):
                self._multiplied(layer, b.T)

    def _products(self, a: Tensor, b: Tensor) -> None:
        """A batch of products; the weight of each is a layer, or all share one."""
        if self._held(b):
            for x, weight in zip(a, b, strict=True):
                self._product(x, weight)
        elif self._held(a):
            for weight, x in zip(a, b, strict=True):
                self._product(weight, x)

    def _convolution(self, args: Any) -> None:
        x, weight, _, stride, padding, dilation, _, _, groups = args[:9]
        for layer, own in self._held(weight):
            dims = own.ndim - 2
            if weight.shape != own.shape and not (weight.ndim == own.ndim + 1 and x.ndim == weight.ndim):
                continue
            # Some libraries run one dimension as two; the weight is then seen with a dimension of one.
            if weight.ndim == own.ndim + 1:
                x = x.squeeze(2)
            how = Convolved(_of(stride, dims), _of(padding, dims), _of(dilation, dims), groups)
            self._convolved(layer, x, how)


def _of(values: Sequence[int], dims: int) -> tuple[int, ...]:
    """A number for each dimension."""
    whole = tuple(values) * (dims if len(values) == 1 else 1)
    return whole[len(whole) - dims :]


def _is(weight: Tensor, layer: Layer, own: Tensor) -> bool:
    """Whether what was multiplied is the layer's matrix, or some rows of it."""
    matrix = own.T if layer.transposed else own.reshape(own.shape[0], -1)
    if matrix.untyped_storage()._cdata != own.untyped_storage()._cdata or weight.shape[1] != matrix.shape[1]:
        return False
    if any(weight.shape[i] > 1 and weight.stride(i) != matrix.stride(i) for i in (0, 1)):
        return False
    row, beyond = divmod(
        int(weight.storage_offset()) - int(matrix.storage_offset()), max(matrix.stride(0), 1)
    )
    return beyond == 0 and 0 <= row <= matrix.shape[0] - weight.shape[0]

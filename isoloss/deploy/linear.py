"""Modules that compute from packed weights: linear layers, embeddings, convolutions."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from isoloss.compress.formats import Encoded
from isoloss.deploy import gpu
from isoloss.deploy.operators import packed_of, packed_product, packed_rows, traced
from isoloss.deploy.packing import Activations, Packed, pack_weight
from isoloss.deploy.products import DECODED_FROM, product

_FLOAT32 = (torch.float32,)
# Stored tensor -> its version, and itself on another device: modules that share one share it there too.
_elsewhere: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class PackedModule(nn.Module):
    """A packed weight as buffers: what is saved, moved and shared is its bytes.

    Args:
        packed: the weight; modules given the same one share its memory.
    """

    bias: Tensor | None

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.settings = packed.settings
        self.rows_columns = packed.shape
        self.names = " ".join(packed.tensors)
        self._keys = [name.replace(".", "_") for name in packed.tensors]
        self._seen: tuple[weakref.ref[Packed], list[tuple[str, weakref.ref[Tensor], int | None]]] | None = (
            None
        )
        for key, one in zip(self._keys, packed.tensors.values(), strict=True):
            self.register_buffer(key, one)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}

    @property
    def packed(self) -> Packed:
        """The packed weight of these buffers.

        Raises:
            ValueError: they were changed to what is none.
        """
        if self._seen is not None:
            packed, buffers = self._seen[0](), self._buffers
            for key, tensor, version in self._seen[1]:
                now = buffers[key]
                if now is not tensor() or (version is not None and cast(Tensor, now)._version != version):
                    break
            else:
                if packed is not None:
                    return packed
        tensors = self.tensors()
        packed = packed_of(tensors, self.names, self.settings)
        # Weak: what was replaced is let go.
        seen = [
            (key, weakref.ref(one), None if one.is_inference() else one._version)
            for key, one in zip(self._keys, tensors, strict=True)
        ]
        self._seen = weakref.ref(packed), seen
        return packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves go for all buffers; another precision (``half()``) goes for all but the stored bits."""
        stored = {id(self._buffers[key]) for key in self._keys}

        def moved(one: Tensor) -> Tensor:
            if id(one) in stored and not one.is_meta:
                device = fn(one.new_empty(0)).device
                if device != one.device:
                    return _moved(one, device)
            out = fn(one)
            return one.to(out.device) if id(one) in stored and out.dtype is not one.dtype else out

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def tensors(self) -> list[Tensor]:
        """The packed tensors, in the order of their names."""
        return [cast(Tensor, getattr(self, key)) for key in self._keys]

    def product(self, x: Tensor, activations: Activations, bias: Tensor | None) -> Tensor:
        """(..., columns) -> (..., rows), in the dtype of ``x``; no gradients go through.

        On a GPU the kernels read float16 and bfloat16 themselves.
        """
        rows, columns = self.rows_columns
        flat = x.detach().reshape(-1, columns)
        types = gpu.TYPES if flat.is_cuda else _FLOAT32
        if flat.dtype not in types:
            flat = flat.float()
        if bias is not None and bias.dtype not in types:
            bias = bias.float()
        if traced(x):
            out = packed_product(flat, self.tensors(), self.names, self.settings, activations, bias)
        else:
            out = product(self.packed, flat, activations, bias=bias)
        answer: Tensor = out.reshape(*x.shape[:-1], rows)
        return answer if x.dtype is torch.float32 else answer.to(x.dtype)

    def extra_repr(self) -> str:
        """Kind, shape and bytes."""
        packed = self.packed
        return (
            f"{packed.kind}, {packed.shape[0]} x {packed.shape[1]}, {packed.bits} bits, {packed.bytes} bytes"
        )


def _moved(one: Tensor, device: torch.device) -> Tensor:
    version = 0 if one.is_inference() else one._version
    known = _elsewhere[one] if one in _elsewhere else (version, None)  # noqa: SIM401 - its get has no types
    there = cast("Tensor | None", None if known[1] is None else known[1]())
    if there is None or there.device != device or known[0] != version:
        there = one.to(device)
        _elsewhere[one] = version, weakref.ref(there)
    return there


class PackedLinear(PackedModule):
    """A linear layer with a packed weight.

    Args:
        packed: the weight, rows × columns = out × in.
        bias: (out,), or None.
        activations: what the products are with; see :func:`isoloss.deploy.products.product`.

    Example:
        >>> from isoloss.compress import formats
        >>> layer = nn.Linear(512, 64)
        >>> encoded = formats.get("int8").encode(layer.weight)
        >>> fast = PackedLinear.of(encoded, layer.bias, "int16")
        >>> x = torch.randn(2, 3, 512)
        >>> bool((fast(x) - layer(x)).abs().max() < 0.02)
        True
    """

    def __init__(self, packed: Packed, bias: Tensor | None = None, activations: Activations = "int8") -> None:
        super().__init__(packed)
        self.out_features, self.in_features = packed.shape
        self.activations = activations
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def of(
        cls, encoded: Encoded, bias: Tensor | None = None, activations: Activations = "int8"
    ) -> PackedLinear:
        """Of a weight as ``compress`` stores it."""
        return cls(pack_weight(encoded, activations), bias, activations)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of ``x``."""
        return self.product(x, self.activations, self.bias)


class PackedEmbedding(PackedModule):
    """An embedding with a packed weight: the rows that are looked up are decoded.

    Args:
        packed: the weight, rows × columns = entries × width.
        dtype: of what is looked up.

    Example:
        >>> from isoloss.compress import formats
        >>> packed = pack_weight(formats.get("int8").encode(torch.randn(10, 64)))
        >>> PackedEmbedding(packed)(torch.tensor([[1, 9]])).shape
        torch.Size([1, 2, 64])
    """

    def __init__(self, packed: Packed, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(packed)
        self.num_embeddings, self.embedding_dim = packed.shape
        self.dtype = dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, index: Tensor) -> Tensor:
        """(...) whole numbers -> (..., width).

        Raises:
            IndexError: a number outside the rows.
        """
        rows = packed_rows(index.reshape(-1), self.tensors(), self.names, self.settings)
        answer: Tensor = rows.reshape(*index.shape, self.embedding_dim).to(self.dtype)
        return answer


class PackedConv(PackedModule):
    """A convolution with a packed weight: a product where it is pointwise and positions are few, else decoded.

    Args:
        packed: the weight as a matrix (out, in · kernel).
        convolution: the layer that it stands for; its weight is not kept.
        activations: what the products are with.
    """

    def __init__(
        self,
        packed: Packed,
        convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        activations: Activations = "int8",
    ) -> None:
        super().__init__(packed)
        self.activations = activations
        self.shape = tuple(convolution.weight.shape)
        bias = convolution.bias
        self.register_buffer("bias", None if bias is None else bias.detach())
        with torch.device("meta"):
            self._form = type(convolution)(
                convolution.in_channels, convolution.out_channels, convolution.kernel_size,  # type: ignore[arg-type]
                convolution.stride, convolution.padding, convolution.dilation, convolution.groups,  # type: ignore[arg-type]
                False, convolution.padding_mode,
            )  # fmt: skip
        self._form.weight = None  # type: ignore[assignment]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """As the convolution's own."""
        form = self._form
        batched = x.ndim == len(self.shape)
        ones = all(one == 1 for one in (*form.kernel_size, *form.stride, form.groups))
        pointwise = ones and (form.padding == "valid" or not any(one != 0 for one in form.padding))
        positions = x.numel() // self.shape[1]
        if batched and pointwise and positions < DECODED_FROM:
            return self.product(x.movedim(1, -1), self.activations, self.bias).movedim(-1, 1)
        weight = self.packed.decode().reshape(self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        decoded: Tensor = form._conv_forward(x, weight, bias)
        return decoded

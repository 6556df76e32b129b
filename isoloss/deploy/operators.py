"""Products and look-ups as operators of torch, so that ``torch.compile`` and ``torch.export`` take them whole."""

from __future__ import annotations

import weakref
from typing import cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from isoloss.deploy.packing import Activations, Packed, from_settings
from isoloss.deploy.products import product

# First tensor -> (all tensors, their versions, settings, their packed weight), which must not keep that tensor alive.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed_of(tensors: list[Tensor], names: str, settings: str) -> Packed:
    """The packed weight of these tensors; looked at anew only where one was changed since.

    Raises:
        ValueError: they are not the tensors of such a weight.
    """
    versions = [0 if one.is_inference() else one._version for one in tensors]
    found = _known[tensors[0]] if tensors[0] in _known else None  # noqa: SIM401 - its get has no types
    if found is not None and found[1:3] == (versions, settings):
        held = cast("list[weakref.ref[Tensor]]", found[0])
        if len(held) == len(tensors) and all(a() is b for a, b in zip(held, tensors, strict=True)):
            return cast(Packed, found[3])
    aliases = (one.detach() for one in tensors)
    packed = from_settings(settings, dict(zip(names.split(), aliases, strict=True)))
    _known[tensors[0]] = ([weakref.ref(one) for one in tensors], versions, settings, packed)
    return packed


def traced(x: Tensor) -> bool:
    """Whether something looks at what happens to a tensor, so that products must be operators; elsewhere that is left out,
    as it takes longer than a small product.
    """
    return (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or is_in_torch_dispatch_mode()
    )


@torch.library.custom_op("isoloss::packed_product", mutates_args=(), device_types=("cpu", "cuda"))
def packed_product(
    x: Tensor,
    tensors: list[Tensor],
    names: str,
    settings: str,
    activations: str,
    bias: Tensor | None = None,
) -> Tensor:
    """(tokens, columns) times a packed weight, transposed; see :func:`isoloss.deploy.products.product`."""
    return product(packed_of(tensors, names, settings), x, cast(Activations, activations), bias=bias)


@packed_product.register_fake
def _(
    x: Tensor,
    tensors: list[Tensor],
    names: str,
    settings: str,
    activations: str,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0], _shape(settings)[0])


@torch.library.custom_op("isoloss::packed_rows", mutates_args=(), device_types=("cpu", "cuda"))
def packed_rows(index: Tensor, tensors: list[Tensor], names: str, settings: str) -> Tensor:
    """Rows of a packed weight, decoded: (n,) -> (n, columns)."""
    packed = packed_of(tensors, names, settings)
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= packed.shape[0]):
        raise IndexError(
            f"rows need to lie in 0 to {packed.shape[0] - 1}, got {int(index.min())} to {int(index.max())}"
        )
    if not index.numel():
        return torch.empty(0, packed.shape[1], device=index.device)
    return packed.rows(index.long())


@packed_rows.register_fake
def _(index: Tensor, tensors: list[Tensor], names: str, settings: str) -> Tensor:
    return torch.empty(index.shape[0], _shape(settings)[1], device=index.device)


def _shape(settings: str) -> tuple[int, int]:
    _, rows, columns, *_ = settings.strip("[]").split(",")
    return int(rows), int(columns)

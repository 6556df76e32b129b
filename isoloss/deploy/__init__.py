"""Takes a compressed model, gives one that runs from its stored bits: packed weights, kernels, modules.

``pack`` and ``load`` replace the layers of a model. ``pack_weight`` rearranges one stored weight, ``product`` multiplies
with it, ``bound`` says how far off that may be. ``generate`` and ``speculative`` produce text, ``bench`` and ``serving``
time it. A file is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.deploy.linear import PackedConv, PackedEmbedding, PackedLinear
    from isoloss.deploy.models import load, pack, packed_layers
    from isoloss.deploy.packing import Packed, pack_weight
    from isoloss.deploy.products import product
    from isoloss.deploy.reference import bound

__all__ = [
    "Packed",
    "PackedConv",
    "PackedEmbedding",
    "PackedLinear",
    "bound",
    "load",
    "pack",
    "pack_weight",
    "packed_layers",
    "product",
]

_HOME = {
    "Packed": "packing",
    "PackedConv": "linear",
    "PackedEmbedding": "linear",
    "PackedLinear": "linear",
    "bound": "reference",
    "load": "models",
    "pack": "models",
    "pack_weight": "packing",
    "packed_layers": "models",
    "product": "products",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"isoloss.deploy.{_HOME[name]}"), name)
    raise AttributeError(f"module 'isoloss.deploy' has no attribute {name!r}")

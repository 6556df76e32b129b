"""Takes a compressed model, gives one that runs from its stored bits: packed weights, kernels, modules.

``pack`` replaces the layers of a model, ``save`` and ``load`` keep it in a file that is mapped into memory. ``pack_weight``
rearranges one stored weight, ``pack_sparse`` a dense one with a mask, ``product`` multiplies with it, ``bound`` says how far
off that may be. ``generate`` and ``speculative`` produce text, ``bench`` and ``serving``
time it. A file is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.deploy.linear import PackedConv, PackedEmbedding, PackedLinear
    from isoloss.deploy.models import load, pack, packed_layers, save
    from isoloss.deploy.packing import Packed, pack_weight
    from isoloss.deploy.products import product
    from isoloss.deploy.reference import bound
    from isoloss.deploy.sparse import pack_sparse

__all__ = [
    "Packed",
    "PackedConv",
    "PackedEmbedding",
    "PackedLinear",
    "bound",
    "load",
    "pack",
    "pack_sparse",
    "pack_weight",
    "packed_layers",
    "product",
    "save",
]

_HOME = {
    "Packed": "packing",
    "PackedConv": "linear",
    "PackedEmbedding": "linear",
    "PackedLinear": "linear",
    "bound": "reference",
    "load": "models",
    "pack": "models",
    "pack_sparse": "sparse",
    "pack_weight": "packing",
    "packed_layers": "models",
    "product": "products",
    "save": "models",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"isoloss.deploy.{_HOME[name]}"), name)
    raise AttributeError(f"module 'isoloss.deploy' has no attribute {name!r}")

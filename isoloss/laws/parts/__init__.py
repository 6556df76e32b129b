"""Takes raw axes, gives what a base law is multiplied with or added to: parts that are no laws by themselves.

``FACTORS`` and ``TERMS`` are the registries that specs, documentation and tests read: one class, one file, one
paper. A file is imported when its part is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from isoloss.laws.law import slug_of
from isoloss.laws.parts.part import Factor, LossTerm, Part

if TYPE_CHECKING:
    from isoloss.laws.parts.data_constrained import DataConstrained
    from isoloss.laws.parts.excess_params import ExcessParams
    from isoloss.laws.parts.float_quantisation import FloatQuantisation
    from isoloss.laws.parts.lr_batch import LrBatch
    from isoloss.laws.parts.parscale import Parscale
    from isoloss.laws.parts.parscale_theory import ParscaleTheory
    from isoloss.laws.parts.precision import Precision
    from isoloss.laws.parts.ptq import Ptq
    from isoloss.laws.parts.routed import Routed
    from isoloss.laws.parts.trainable_params import TrainableParams

__all__ = [
    "DataConstrained",
    "ExcessParams",
    "FloatQuantisation",
    "LrBatch",
    "Parscale",
    "ParscaleTheory",
    "Precision",
    "Ptq",
    "Routed",
    "TrainableParams",
]

_TERMS = ("FloatQuantisation", "LrBatch", "Ptq")

FACTORS: dict[str, str] = {slug_of(name): name for name in __all__ if name not in _TERMS}
"""Slug -> class name, of the parts that multiply an axis."""

TERMS: dict[str, str] = {slug_of(name): name for name in _TERMS}
"""Slug -> class name, of the parts that add to the target."""


# What a part is; not parts, so not in __all__.
KINDS = (Factor, LossTerm, Part)


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = importlib.import_module(f"isoloss.laws.parts.{slug_of(name).replace('-', '_')}")
        return getattr(module, name)
    raise AttributeError(f"module 'isoloss.laws.parts' has no attribute {name!r}")

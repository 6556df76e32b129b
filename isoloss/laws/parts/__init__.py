"""Takes raw axes, gives what a base law is multiplied with or added to: parts that are no laws by themselves.

``FACTORS`` and ``TERMS`` are the registries that specs, documentation and tests read: one class, one file, one
paper. A file is imported when its part is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from isoloss.laws.law import slug_of

if TYPE_CHECKING:
    from isoloss.laws.parts.precision import Precision
    from isoloss.laws.parts.ptq import Ptq

__all__ = ["Precision", "Ptq"]

FACTORS: dict[str, str] = {slug_of(name): name for name in ("Precision",)}
"""Slug -> class name, of the parts that multiply an axis."""

TERMS: dict[str, str] = {slug_of(name): name for name in ("Ptq",)}
"""Slug -> class name, of the parts that add to the target."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = importlib.import_module(f"isoloss.laws.parts.{slug_of(name).replace('-', '_')}")
        return getattr(module, name)
    raise AttributeError(f"module 'isoloss.laws.parts' has no attribute {name!r}")

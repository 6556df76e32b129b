"""Takes a PyTorch model, statistics and a budget, gives its weights encoded: fewer bits, exact sizes.

``compress`` goes through a model stage by stage; ``save`` and ``load`` keep it in a folder. ``formats`` holds the number
formats and their stored layouts; a method is one file of ``solvers`` that takes a weight, statistics of its layer and a
format, and gives an ``Encoded``. A file is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.compress.compressed import Compressed
    from isoloss.compress.formats import Encoded, Format, Grid
    from isoloss.compress.layers import Layer, Layers, find
    from isoloss.compress.pipeline import compress
    from isoloss.compress.recipe import Choice, Recipe
    from isoloss.compress.saving import load, read, save
    from isoloss.compress.statistics import Statistics

__all__ = [
    "Choice",
    "Compressed",
    "Encoded",
    "Format",
    "Grid",
    "Layer",
    "Layers",
    "Recipe",
    "Statistics",
    "compress",
    "find",
    "load",
    "read",
    "save",
]

_HOME = {
    "Choice": "recipe",
    "Compressed": "compressed",
    "Encoded": "formats",
    "Format": "formats",
    "Grid": "formats",
    "Layer": "layers",
    "Layers": "layers",
    "Recipe": "recipe",
    "Statistics": "statistics",
    "compress": "pipeline",
    "find": "layers",
    "load": "saving",
    "read": "saving",
    "save": "saving",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"isoloss.compress.{_HOME[name]}"), name)
    raise AttributeError(f"module 'isoloss.compress' has no attribute {name!r}")

"""Takes a PyTorch model, statistics and a budget, gives its weights encoded: fewer bits, exact sizes.

``formats`` holds the number formats and their stored layouts; a method is one file that takes a weight, statistics
of its layer and a format, and gives an ``Encoded``. A file is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.compress.formats import Encoded, Format, Grid

__all__ = ["Encoded", "Format", "Grid"]

_HOME = {"Encoded": "formats", "Format": "formats", "Grid": "formats"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"isoloss.compress.{_HOME[name]}"), name)
    raise AttributeError(f"module 'isoloss.compress' has no attribute {name!r}")

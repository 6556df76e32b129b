"""Takes a compressed model, gives a file that other programs run: GGUF for llama.cpp, ONNX for its run-times.

Numbers are not rounded again: a weight is written in a type that holds it exactly, or not at all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.compress.export.gguf import write_gguf
    from isoloss.compress.export.onnx import Example, run_onnx, write_onnx
    from isoloss.compress.export.written import Written

__all__ = ["Example", "Written", "run_onnx", "write_gguf", "write_onnx"]

_HOME = {
    "Example": "onnx",
    "Written": "written",
    "run_onnx": "onnx",
    "write_gguf": "gguf",
    "write_onnx": "onnx",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"isoloss.compress.export.{_HOME[name]}"), name)
    raise AttributeError(f"module 'isoloss.compress.export' has no attribute {name!r}")

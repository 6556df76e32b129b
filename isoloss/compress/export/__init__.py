"""Takes a compressed model, gives what other programs run: GGUF for llama.cpp, ONNX for its run-times, QONNX, FPGA projects.

Numbers are not rounded again: a weight is written in a type that holds it exactly, or not at all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.compress.export.circuits import Resources, resources
    from isoloss.compress.export.gguf import write_gguf
    from isoloss.compress.export.hls4ml import Project, write_hls4ml
    from isoloss.compress.export.onnx import Example, run_onnx, write_onnx
    from isoloss.compress.export.qonnx import Inputs, round_biases, write_qonnx
    from isoloss.compress.export.running import run_qonnx
    from isoloss.compress.export.written import Written

__all__ = [
    "Example",
    "Inputs",
    "Project",
    "Resources",
    "Written",
    "resources",
    "round_biases",
    "run_onnx",
    "run_qonnx",
    "write_gguf",
    "write_hls4ml",
    "write_onnx",
    "write_qonnx",
]

_HOME = {
    "Example": "onnx",
    "Inputs": "qonnx",
    "Project": "hls4ml",
    "Resources": "circuits",
    "Written": "written",
    "resources": "circuits",
    "round_biases": "qonnx",
    "run_onnx": "onnx",
    "run_qonnx": "running",
    "write_gguf": "gguf",
    "write_hls4ml": "hls4ml",
    "write_onnx": "onnx",
    "write_qonnx": "qonnx",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"isoloss.compress.export.{_HOME[name]}"), name)
    raise AttributeError(f"module 'isoloss.compress.export' has no attribute {name!r}")

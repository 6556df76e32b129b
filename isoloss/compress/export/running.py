"""QONNX files run here: in NumPy, or by the package qonnx."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.compress.export import nodes
from isoloss.compress.export.written import needed

OLD_DOMAINS = ("onnx.brevitas", "finn.custom_op.general")


def run_qonnx(path: str | Path | Any, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What a QONNX file computes, in NumPy: its nodes by :mod:`isoloss.compress.export.nodes`, others by onnx's reference.

    With inputs in float64 all sums are made in float64.

    Args:
        path: of the file, or an ``onnx.ModelProto``.
        inputs: by name.

    Raises:
        ValueError: the package onnx is not installed.
    """
    onnx, reference = needed("onnx"), needed("onnx.reference")
    made = onnx.load(str(path)) if isinstance(path, str | Path) else path
    if any(one.dtype == np.float64 for one in inputs.values()):
        made = _doubled(onnx, made)
    found: list[NDArray[Any]] = reference.ReferenceEvaluator(made, new_ops=_operators()).run(
        None, dict(inputs)
    )
    return found


def run_by_package(path: str | Path | Any, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What the package qonnx computes with a file: its own nodes, others by ONNX Runtime.

    Args:
        path: of the file, or an ``onnx.ModelProto``.
        inputs: by name, of the very shapes of the file.

    Raises:
        ValueError: the package qonnx is not installed.
    """
    execute = needed("qonnx.core.onnx_exec", "fpga").execute_onnx
    wrapper = needed("qonnx.core.modelwrapper", "fpga").ModelWrapper
    model = wrapper(str(path) if isinstance(path, str | Path) else path)
    return list(execute(model, dict(inputs)).values())


def _doubled(onnx: Any, made: Any) -> Any:
    """With constants in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(made)
    for one in wide.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(one).astype(np.float64)
            one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
    return wide


def _operators() -> list[Any]:
    """The nodes for onnx's reference evaluator, under their names in all domains that they have had."""
    base = needed("onnx.reference.op_run").OpRun

    def setting(one: Any, name: str, usual: Any) -> Any:
        found = getattr(one, name, None)
        return usual if found is None else found

    def mode(one: Any, usual: str) -> str:
        return str(setting(one, "rounding_mode", usual))

    def whole(one: Any, narrow: int = 0) -> dict[str, bool]:
        return {
            "signed": bool(setting(one, "signed", 1)),
            "narrow": bool(setting(one, "narrow", narrow)),
        }

    def int_quant(one: Any, x: Any, scale: Any, zeropt: Any, bits: Any, **_: Any) -> Any:
        made = nodes.int_quant(x, scale, zeropt, bits, **whole(one), rounding_mode=mode(one, "ROUND"))
        return (made.astype(x.dtype),)

    def bipolar_quant(one: Any, x: Any, scale: Any, **_: Any) -> Any:
        return (nodes.bipolar_quant(x, scale).astype(x.dtype),)

    def trunc(one: Any, x: Any, scale: Any, zeropt: Any, bits: Any, *more: Any, **_: Any) -> Any:
        way = mode(one, "FLOOR")
        if len(more) == 1:
            return (nodes.trunc_1(x, scale, zeropt, bits, more[0], rounding_mode=way).astype(x.dtype),)
        made = nodes.trunc(x, scale, zeropt, more[0], more[1], **whole(one), rounding_mode=way)
        return (made.astype(x.dtype),)

    def float_quant(one: Any, x: Any, *more: Any, **_: Any) -> Any:
        return (nodes.float_quant(x, *more, rounding_mode=mode(one, "ROUND")).astype(x.dtype),)

    runs = {
        "IntQuant": int_quant, "Quant": int_quant, "BipolarQuant": bipolar_quant,
        "Trunc": trunc, "FloatQuant": float_quant,
    }  # fmt: skip
    return [
        type(name, (base,), {"op_domain": domain, "_run": run})
        for domain in (nodes.DOMAIN, *OLD_DOMAINS)
        for name, run in runs.items()
    ]

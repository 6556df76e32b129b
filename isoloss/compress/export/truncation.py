"""Which tensors of a QONNX graph are whole multiples of a power of two; Trunc behind average pooling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.compress.export import nodes
from isoloss.compress.export.steps import Steps, power, steps_of, summed
from isoloss.compress.export.written import needed

SAME = ("Relu", "MaxPool", "Reshape", "Flatten", "Transpose", "Identity", "Squeeze", "Unsqueeze")


def truncated(made: Any) -> Any:
    """A graph with Trunc in place of IntQuant behind average pooling, where both give the same numbers.

    That is where what comes is a whole multiple of a power of two, and what goes is rounded to a coarser one, without
    zero-points: the same numbers are then cut off by a shift alone.

    Args:
        made: an ``onnx.ModelProto``; is changed.
    """
    onnx = needed("onnx")
    found = tensors(made)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}
    makers = {out: node for node in made.graph.node for out in node.output}
    some = False
    for node in made.graph.node:
        if node.op_type != "IntQuant" or node.domain != nodes.DOMAIN:
            continue
        x, scale, zero, bits = node.input
        source, own = makers.get(x), found.get(x)
        while source is not None and source.op_type in SAME:
            source = makers.get(source.input[0])
        step = power(float(constants[scale])) if constants[scale].size == 1 else None
        if source is None or source.op_type != "AveragePool" or own is None or step is None:
            continue
        if constants[zero].any() or -step > own.fraction:
            continue
        inner, width = f"{node.name}_in_scale", f"{node.name}_in_bitwidth"
        made.graph.initializer.append(_number(onnx, inner, 2.0**-own.fraction))
        made.graph.initializer.append(_number(onnx, width, float(own.bits)))
        node.op_type = "Trunc"
        node.name = node.name.replace("IntQuant", "Trunc")
        del node.input[:]
        node.input.extend([x, inner, zero, width, scale, bits])
        some = True
    if some:
        for one in made.opset_import:
            one.version = 2 if one.domain == nodes.DOMAIN else one.version
    return made


def _number(onnx: Any, name: str, value: float) -> Any:
    return onnx.numpy_helper.from_array(np.asarray(value, dtype=np.float32), name)


def constants_of(made: Any) -> dict[str, NDArray[Any]]:
    """Tensor -> its numbers, of those that no input changes."""
    return _followed(made)[0]


def tensors(made: Any) -> dict[str, Steps]:
    """Tensor -> its steps, of those that are known to be whole multiples of a power of two."""
    return _followed(made)[1]


def _followed(made: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Steps]]:
    onnx = needed("onnx")
    values: dict[str, NDArray[Any]] = {
        one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer
    }
    found: dict[str, Steps] = {}
    for node in made.graph.node:
        settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.domain == nodes.DOMAIN:
            known = _rounded(node, settings, values)
        else:
            known = _computed(node, settings, values, found)
        if known is not None:
            found[node.output[0]] = known
    return values, found


def _rounded(node: Any, settings: Mapping[str, Any], values: dict[str, NDArray[Any]]) -> Steps | None:
    """What a node of the domain gives; constants that go through one are computed."""
    own = [values[name] for name in node.input[1:] if name in values]
    if node.op_type == "IntQuant" and node.input[0] in values and len(own) == 3:
        values[node.output[0]] = nodes.int_quant(
            values[node.input[0]],
            own[0],
            own[1],
            own[2],
            signed=bool(settings["signed"]),
            narrow=bool(settings["narrow"]),
        )
    elif node.op_type == "BipolarQuant" and node.input[0] in values and len(own) == 1:
        values[node.output[0]] = nodes.bipolar_quant(values[node.input[0]], own[0])
    if node.output[0] in values:
        return steps_of(values[node.output[0]])
    places = {"IntQuant": (1, 3), "Trunc": (4, 5)}.get(node.op_type)  # of the scale and the bits
    if places is None or len(own) != len(node.input) - 1:
        return None
    scale, bits = own[places[0] - 1], own[places[1] - 1]
    step = power(float(scale.reshape(-1)[0])) if scale.size == 1 and not own[1].any() else None
    if step is None:
        return None
    low, high = nodes.limits(float(bits), bool(settings["signed"]), bool(settings["narrow"]))
    return Steps(-step, int(low), int(high))


def _computed(
    node: Any, settings: Mapping[str, Any], values: dict[str, NDArray[Any]], found: Mapping[str, Steps]
) -> Steps | None:
    """What a node of the standard gives."""
    first = found.get(node.input[0]) if node.input else None
    if node.op_type == "Add":
        two = [found.get(name) or (steps_of(values[name]) if name in values else None) for name in node.input]
        return None if two[0] is None or two[1] is None else two[0].plus(two[1])
    if first is None:
        return None
    if node.op_type == "Relu":
        return Steps(first.fraction, max(first.low, 0), max(first.high, 0))
    if node.op_type in SAME:
        return first
    if node.op_type == "MatMul" and node.input[1] in values and values[node.input[1]].ndim == 2:
        return summed(values[node.input[1]].T, first)
    if node.op_type == "Conv" and node.input[1] in values:
        kernel = values[node.input[1]]
        bias = values.get(node.input[2]) if len(node.input) > 2 else None
        if len(node.input) > 2 and bias is None:
            return None
        return summed(kernel.reshape(kernel.shape[0], -1), first, bias)
    if node.op_type == "AveragePool":
        return _averaged(first, settings)
    return None


def _averaged(first: Steps, settings: Mapping[str, Any]) -> Steps | None:
    size = math.prod(settings["kernel_shape"])
    exponent = power(float(size))
    padded = any(settings.get("pads", ())) and not settings.get("count_include_pad", 0)
    if exponent is None or padded or settings.get("ceil_mode", 0):
        return None
    return first.finer(first.fraction + exponent)

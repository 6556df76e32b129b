"""A project for FPGAs by hls4ml whose C emulation gives the model's numbers bit for bit.

Left to itself hls4ml takes sums, inputs and weights as numbers of 16 bits with 10 behind the point, and cuts off what does
not fit. Here every type is the narrowest that holds all numbers that can occur (:mod:`isoloss.compress.export.steps`), so
that nothing is rounded but where the model rounds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from isoloss.compress.compressed import Compressed
from isoloss.compress.export import nodes
from isoloss.compress.export.onnx import Example
from isoloss.compress.export.qonnx import Inputs, graph_of
from isoloss.compress.export.steps import Steps, steps_of, summed
from isoloss.compress.export.truncation import constants_of, tensors
from isoloss.compress.export.written import needed

KNOWN = (
    "IntQuant",
    "MatMul",
    "Conv",
    "Add",
    "Relu",
    "MaxPool",
    "AveragePool",
    "Reshape",
    "Flatten",
    "Transpose",
)
POOLED = ("MaxPool", "AveragePool")
MOST_WEIGHT = 18  # bits: the narrow port of an FPGA's multiplier
MOST_BIAS = 32
Types = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class Project:
    """A project that was written.

    Attributes:
        folder: of the C++ sources and ``hls4ml_config.yml``.
        types: node -> what (``weight``, ``bias``, ``accum``, ``result``) -> its type, of those that were set.
        graph: the graph that it was made from, an ``onnx.ModelProto`` for one example; :func:`run_qonnx` runs it.
        made: hls4ml's own model.
    """

    folder: Path
    types: Types
    graph: Any
    made: Any

    def emulated(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """What the C emulation gives, compiled the first time by g++.

        Args:
            inputs: examples; channels first, as the model takes them.

        Raises:
            ValueError: it cannot be compiled.
        """
        x = np.asarray(inputs, dtype=np.float64)
        x = np.moveaxis(x, 1, -1) if x.ndim > 2 else x
        with _quiet():
            if getattr(self.made, "_top_function_lib", None) is None:
                try:
                    self.made.compile()
                except Exception as error:  # hls4ml raises Exception itself
                    raise ValueError(
                        f"the project in {self.folder} needs g++ to be compiled: {error}"
                    ) from error
            found: NDArray[Any] = np.asarray(self.made.predict(np.ascontiguousarray(x)))
        return found.reshape(len(x), -1)


def write_hls4ml(
    compressed: Compressed,
    model: nn.Module,
    folder: str | Path,
    example: Example,
    *,
    inputs: Inputs | None = None,
    backend: str = "Vitis",
    exact: bool = True,
) -> Project:
    """Write a project of a compressed model, fully parallel.

    Args:
        compressed: its weights: integers or fixed point whose scales are powers of two.
        model: the same model: linear layers, convolutions without groups, ReLU, pooling (averages of a power of two).
        folder: for the project; its parent is there.
        example: an input.
        inputs: how inputs of layers are rounded, all of them: static, to powers of two, without zero-points; by default as
            the recipe says.
        backend: of hls4ml.
        exact: False: with hls4ml's own types, to compare.

    Raises:
        ValueError: packages qonnx and hls4ml are not installed, or something of the model has no exact type: says what.
    """
    one = Example({name: x[:1] for name, x in example.inputs.items()}, {})
    made, _ = graph_of(compressed, model, one, inputs, truncate=False)
    _refuse(made)
    plain = _plain(made)
    hls4ml = needed("hls4ml", "fpga")
    needed("qonnx", "fpga")
    place = Path(folder)
    if not place.parent.is_dir():
        raise ValueError(f"needed a folder {place.parent} to write to, found none")
    with _quiet():
        clean = _cleaned(plain)
        settings = hls4ml.utils.config_from_onnx_model(
            clean, granularity="name", backend=backend, default_precision="fixed<16,6>"
        )
        types = _types(clean) if exact else {}
        for name, own in types.items():
            settings["LayerName"].setdefault(name, {}).setdefault("Precision", {}).update(own)
        found = hls4ml.converters.convert_from_onnx_model(
            clean, hls_config=settings, output_dir=str(place), backend=backend, io_type="io_parallel"
        )
        found.write()
    return Project(place, types, made, found)


def _refuse(made: Any) -> None:
    """What has no exact type."""
    known, constants = tensors(made), constants_of(made)
    firsts = {one.name for one in made.graph.input}
    for node in made.graph.node:
        name, rounds = node.output[0], node.domain == nodes.DOMAIN
        if rounds and node.input[0].endswith(".values"):
            _refuse_scale(node, constants)
        elif node.op_type not in KNOWN:
            raise ValueError(f"hls4ml exports are exact for {', '.join(KNOWN)}, got {node.op_type}")
        elif not rounds and firsts & set(node.input):
            raise ValueError(
                f"inputs of the model must be rounded first, and {node.name} takes them as they are"
            )
        elif name not in known:
            raise ValueError(f"{node.name} has no exact type: {_WHY.get(node.op_type, _WHY[''])}")
        if node.op_type in (*POOLED, "Conv") and len(_setting(node, "kernel_shape")) != 2:
            raise ValueError(
                f"{node.name} must have two dimensions, as hls4ml has no other with channels last"
            )
        if node.op_type == "Conv" and (
            _setting(node, "group", 1) != 1 or set(_setting(node, "dilations", [1])) != {1}
        ):
            raise ValueError(f"{node.name} has groups or dilation, which hls4ml exports have not")
        if node.op_type in POOLED and (any(_setting(node, "pads", ())) or _setting(node, "ceil_mode", 0)):
            raise ValueError(
                f"{node.name} goes over the border, where hls4ml computes otherwise. Pool inside"
            )
        if node.op_type in ("MatMul", "Conv", "Add"):
            for one in node.input[1:]:
                _refuse_width(
                    one,
                    constants,
                    MOST_WEIGHT if node.op_type != "Add" and one == node.input[1] else MOST_BIAS,
                )


_WHY = {
    "IntQuant": "its scale must be one power of two, without a zero-point. Round inputs with step=power",
    "AveragePool": "it averages a number of places that is no power of two",
    "": "what it takes is not rounded to a power of two",
}


def _refuse_scale(node: Any, constants: Mapping[str, NDArray[Any]]) -> None:
    mantissas = np.frexp(constants[node.input[1]].astype(np.float64))[0]
    if node.op_type == "FloatQuant" or not bool((mantissas == 0.5).all()):
        raise ValueError(
            f"{node.input[0].removesuffix('.values')} has scales that are no powers of two. Compress weights to "
            "int6/scale-m1, int6/tensor/scale-m1 or fixed2.4, and round inputs with step=power"
        )


def _refuse_width(name: str, constants: Mapping[str, NDArray[Any]], most: int) -> None:
    found = steps_of(constants[name]) if name in constants else None
    if name in constants and (found is None or found.bits > most):
        bits = "more than 62" if found is None else str(found.bits)
        raise ValueError(
            f"{name.removesuffix('.values')} takes {bits} bits as fixed point, and {most} are the most. Compress weights to "
            "integers with scales of powers of two (int6/scale-m1), and round biases to steps"
        )


def _plain(made: Any) -> Any:
    """The graph with its constants computed."""
    onnx = needed("onnx")
    values = constants_of(made)
    plain = onnx.ModelProto()
    plain.CopyFrom(made)
    given = {one.name for one in plain.graph.initializer}
    del plain.graph.node[:]
    for node in made.graph.node:
        if node.output[0] not in values:
            plain.graph.node.append(node)
        elif node.output[0] not in given:
            own = values[node.output[0]].astype(np.float32)
            plain.graph.initializer.append(onnx.numpy_helper.from_array(own, node.output[0]))
    return plain


def _cleaned(plain: Any) -> Any:
    """As hls4ml wants it: shapes known, names unique, channels last."""
    wrapper = needed("qonnx.core.modelwrapper").ModelWrapper(plain)
    clean = needed("qonnx.util.cleanup").cleanup_model(wrapper)
    _turn(clean.model)
    return clean.model


def _turn(made: Any) -> None:
    """Channels last: kernels, shapes, and the rows of the product behind a flattening."""
    onnx = needed("onnx")
    values, users = constants_of(made), _users(made)
    for one in [*made.graph.input, *made.graph.value_info]:
        dims = one.type.tensor_type.shape.dim
        if len(dims) == 4 and one.name not in values:
            sizes = [dims[i].dim_value for i in (0, 2, 3, 1)]
            for dim, size in zip(dims, sizes, strict=True):
                dim.dim_value = size
    for node in made.graph.node:
        if node.op_type in POOLED or node.op_type == "Conv":
            node.domain = "qonnx.custom_op.channels_last"
        if node.op_type == "Conv":
            _replace(onnx, made, node.input[1], np.moveaxis(values[node.input[1]], 1, -1))
        if node.op_type in ("Reshape", "Flatten") and node.input[0] in (shapes := _shapes(made)):
            _, height, width, channels = shapes[node.input[0]]
            after = users.get(node.output[0], [])
            while len(after) == 1 and after[0].op_type in ("IntQuant", "Relu"):
                after = users.get(after[0].output[0], [])
            if [one.op_type for one in after] != ["MatMul"]:
                raise ValueError(f"{node.name} must flatten for a linear layer alone")
            own = values[after[0].input[1]].reshape(channels, height, width, -1)
            rows = np.moveaxis(own, 0, 2).reshape(channels * height * width, -1)
            _replace(onnx, made, after[0].input[1], rows)


def _shapes(made: Any) -> dict[str, tuple[int, ...]]:
    """Of tensors with four dimensions."""
    sizes = {
        one.name: tuple(dim.dim_value for dim in one.type.tensor_type.shape.dim)
        for one in [*made.graph.input, *made.graph.value_info]
    }
    return {name: size for name, size in sizes.items() if len(size) == 4}


def _replace(onnx: Any, made: Any, name: str, values: NDArray[Any]) -> None:
    own = next(one for one in made.graph.initializer if one.name == name)
    own.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
    for one in made.graph.value_info:
        if one.name == name:
            shape = one.type.tensor_type.shape
            for dim, size in zip(shape.dim, values.shape, strict=True):
                dim.dim_value = size


def _users(made: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for node in made.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _types(clean: Any) -> dict[str, dict[str, str]]:
    """Node -> what -> type."""
    known, constants = tensors(clean), constants_of(clean)
    users = _users(clean)
    found: dict[str, dict[str, str]] = {}
    for one in clean.graph.input:
        found[one.name] = {"result": _rounding(users[one.name][0], known)}
    for node in clean.graph.node:
        after = users.get(node.output[0], [])
        result = known[node.output[0]]
        if node.op_type == "MatMul":
            bias = _bias(after, constants)
            found[node.name] = _sums(constants[node.input[1]].T, known[node.input[0]], bias)
        elif node.op_type == "Conv":
            kernel = constants[node.input[1]]
            bias = constants[node.input[2]] if len(node.input) > 2 else None
            own = _sums(kernel.reshape(kernel.shape[0], -1), known[node.input[0]], bias)
            found[node.name] = {**own, "result": own["accum"]}
        elif node.op_type in POOLED:
            places = int(np.prod(_setting(node, "kernel_shape"))) if node.op_type == "AveragePool" else 1
            sums = Steps(result.fraction, result.low * places, result.high * places)
            found[node.name] = {"accum": _word(sums), "result": _word(result)}
        elif _is_free(node, after, constants):
            found[node.name] = {"result": _word(result)}
    return found


def _is_free(node: Any, after: list[Any], constants: Mapping[str, NDArray[Any]]) -> bool:
    """Whether hls4ml asks for the type of what comes out: not where it makes one layer of this and the next."""
    if node.op_type == "Relu":
        return [use.op_type for use in after] != ["IntQuant"]
    return node.op_type == "Add" and not any(name in constants for name in node.input)


def _setting(node: Any, name: str, usual: Any = None) -> Any:
    onnx = needed("onnx")
    return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == name), usual)


def _bias(after: list[Any], constants: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """What is added to a product next: hls4ml makes one layer of both."""
    if len(after) != 1 or after[0].op_type != "Add":
        return None
    return next((constants[name] for name in after[0].input if name in constants), None)


def _sums(weights: NDArray[Any], x: Steps, bias: NDArray[Any] | None) -> dict[str, str]:
    own, added = steps_of(weights), steps_of(np.zeros(1) if bias is None else bias)
    total = summed(weights, x, bias)
    assert own is not None
    assert added is not None
    assert total is not None
    return {"weight": _word(own), "bias": _word(added), "accum": _word(total)}


def _word(steps: Steps) -> str:
    return f"{'' if steps.signed else 'u'}fixed<{steps.bits},{steps.integer}>"


def _rounding(node: Any, known: Mapping[str, Steps]) -> str:
    """The type of inputs that are rounded on their way in."""
    steps = known[node.output[0]]
    bits, narrow = steps.bits, _setting(node, "narrow")
    kind = f"{'' if steps.signed else 'u'}fixed<{bits},{steps.integer},RND_CONV,{'SAT_SYM' if narrow else 'SAT'}>"
    return kind


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what hls4ml and compilers print."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(nothing),
        ):
            yield
    finally:
        logging.disable(level)

"""QONNX: ONNX with nodes that round to any number of bits, for compilers to FPGAs and research tools.

Weights are float32 numbers that go through IntQuant, BipolarQuant or FloatQuant, which leave them as they are and say
how many bits they have; inputs with static ranges go through such nodes too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.compress.activations import Activations, Range, detach
from isoloss.compress.compressed import Compressed
from isoloss.compress.export import nodes
from isoloss.compress.export.onnx import Example, first_output, is_product, layers_of, tokens_of, traced
from isoloss.compress.export.quantisers import (
    Node,
    Weight,
    bias_step,
    input_nodes,
    on_step,
    weight_of,
    whole_numbers,
)
from isoloss.compress.export.truncation import truncated
from isoloss.compress.export.written import Written, needed, whole
from isoloss.compress.layers import Layer, find

OPSET = 18  # of the standard: torch's own, so that nothing is converted
MOST_BIAS = 32  # bits of a bias that is written in steps


@dataclass(frozen=True)
class Inputs:
    """How the inputs of each layer are rounded.

    Args:
        how: layer -> settings, of static ranges.
        ranges: layer -> its range.

    Raises:
        ValueError: settings that are not static, or a layer without a range.

    Example:
        >>> Inputs({"0": Activations("int8", "static")}, {"0": Range(-1.0, 1.0)}).how["0"].format
        'int8'
    """

    how: Mapping[str, Activations] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, one in self.how.items():
            if one.when != "static":
                raise ValueError(
                    f"inputs of {name} have a range for every token, and a node has one for all. "
                    "Round them with static ranges: int8(when=static)"
                )
            if name not in self.ranges:
                raise ValueError(f"inputs of {name} have no range. Give one, from calibration data")


def inputs_of(compressed: Compressed) -> Inputs:
    """How a compressed model rounds its inputs; empty where it does not.

    Raises:
        ValueError: token by token.
    """
    found = compressed.recipe.inputs
    if found is None:
        return Inputs()
    names = found.ranges if found.how.when == "static" else compressed.encoded
    return Inputs({name: found.how for name in names if name not in found.left}, found.ranges)


def write_qonnx(
    compressed: Compressed,
    model: nn.Module,
    path: str | Path,
    example: Example | None = None,
    *,
    inputs: Inputs | None = None,
) -> Written:
    """Write a compressed model as QONNX, in float32.

    A bias whose numbers are whole multiples of the step of its layer's products goes through IntQuant too
    (:func:`round_biases` makes it so). Average pooling of whole multiples of a power of two, rounded next to fewer bits, is
    rounded by Trunc.

    Args:
        compressed: weights of integers of 1 to 8 bits, fixed point or floats, with a scale per row or tensor.
        model: the same model, with any numbers of its own for what was not encoded; it is not changed.
        path: of the file.
        example: inputs to trace with; the file takes inputs of these very shapes. Hugging Face language models need none.
        inputs: how inputs of layers are rounded; by default as the recipe says.

    Raises:
        ValueError: a format that no node holds (says which layer), inputs rounded token by token, another model, no example
            where one is needed, a place that cannot be written; packages onnx and onnxscript are not installed.
    """
    onnx = needed("onnx")
    made, weights = graph_of(compressed, model, example, inputs)
    place = Path(path)
    with whole(place) as target:
        onnx.save_model(made, str(target))
        size = target.stat().st_size
    kinds = {name: one.kind for name, one in weights.items()}
    return Written(place, size, kinds, {name: one.bits for name, one in weights.items()}, {}, _notes(made))


def graph_of(
    compressed: Compressed,
    model: nn.Module,
    example: Example | None = None,
    inputs: Inputs | None = None,
    truncate: bool = True,
) -> tuple[Any, dict[str, Weight]]:
    """What :func:`write_qonnx` writes, as an ``onnx.ModelProto``, and each weight as it stands there.

    Args:
        compressed, model, example, inputs: as there.
        truncate: put Trunc behind average pooling where it gives the same numbers.
    """
    needed("onnx")
    needed("onnxscript")
    given = example or tokens_of(model)
    rounded = inputs_of(compressed) if inputs is None else inputs
    weights = {name: weight_of(name, one) for name, one in compressed.encoded.items()}
    own = copy.deepcopy(model).eval().float()
    detach(own)
    graph = _Graph(own, compressed, weights, rounded)
    made = traced(graph, Example(given.inputs, {}), OPSET, lambda name: False).model_proto
    _tidied(made)
    return (truncated(made) if truncate else made), weights


def round_biases(model: nn.Module, compressed: Compressed, inputs: Inputs | None = None) -> dict[str, float]:
    """Round biases to the step of their layer's products, so that an accumulator of integers can start from them.

    Args:
        model: is changed.
        compressed: its weights.
        inputs: how inputs of layers are rounded; by default as the recipe says.

    Returns:
        Layer -> the largest change of its bias; layers without a bias, or whose products have no one step, are left out.
    """
    rounded = inputs_of(compressed) if inputs is None else inputs
    found = {}
    for name, layer in layers_of(model, compressed).items():
        bias = getattr(layer.module, "bias", None)
        step = _step(name, compressed, rounded)
        if step is None or not isinstance(bias, Tensor) or layer.parameter != "weight":
            continue
        with torch.no_grad():
            was = bias.detach().clone()
            bias.copy_((on_step(bias, step)[0] * step).to(bias))
            found[name] = float((bias - was).abs().max())
    return found


def _step(name: str, compressed: Compressed, inputs: Inputs) -> Tensor | None:
    if name not in inputs.how:
        return None
    return bias_step(compressed.encoded[name], inputs.how[name], inputs.ranges[name])


class _Weight(nn.Module):
    """The numbers of a weight, and the node that they go through."""

    def __init__(self, values: Tensor, node: nn.Module | None):
        super().__init__()
        self.register_buffer("values", values.float().contiguous())
        self.node = node

    def forward(self) -> Tensor:
        values = self.get_buffer("values")
        return values if self.node is None else self.node(values)


class _Product(nn.Module):
    """A linear layer as MatMul and Add: its weight lies (in, out)."""

    def __init__(self, weight: nn.Module, bias: nn.Module | None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x @ self.weight()
        return y if self.bias is None else y + self.bias()


class _Graph(nn.Module):
    """The model with weights, biases and inputs that go through nodes; the model is changed."""

    def __init__(
        self, model: nn.Module, compressed: Compressed, weights: Mapping[str, Weight], inputs: Inputs
    ):
        super().__init__()
        layers = layers_of(model, compressed)
        self.model = model
        self.parts = nn.ModuleDict()
        self.rounding = nn.ModuleDict()
        self.of: dict[str, tuple[str, int | None]] = {}
        paths = {id(module): path for path, module in model.named_modules()}
        for layer in find(model).layers:
            if layer.name in inputs.how:
                own = input_nodes(inputs.how[layer.name], inputs.ranges[layer.name])
                key = layer.name.replace(".", "_")
                self.rounding[key] = nn.Sequential(*own)
        for name, layer in layers.items():
            self._add(name, layer, paths[id(layer.module)], compressed, weights[name], inputs)
        for layer in find(model).layers:
            self._hook(layer)

    def _add(
        self, name: str, layer: Layer, path: str, compressed: Compressed, weight: Weight, inputs: Inputs
    ) -> None:
        key = name.replace(".", "_")
        values = compressed.encoded[name].decode().reshape(layer.shape)
        bias = self._bias(name, layer, compressed, inputs)
        if path and is_product(layer):
            node = None if weight.node is None else _turned(weight.node)
            product = _Product(_Weight(values.T, node), bias)
            if key in self.rounding:
                product.register_forward_pre_hook(_hook(self.rounding[key]), with_kwargs=True)
            for parent in list(self.model.modules()):  # a module may stand at several places
                for own, child in list(parent._modules.items()):
                    if child is layer.module:
                        setattr(parent, own, product)
            return
        shape = tuple(layer.tensor.shape)
        node = weight.node
        if node is not None:
            node = _turned(node) if layer.transposed else _reshaped(node, len(shape))
        self.parts[key] = _Weight((values.T if layer.transposed else values).reshape(shape), node)
        self.of[key] = (layer.path, layer.index)
        if bias is not None and bias.node is not None:
            place = layer.path.removesuffix("weight") + "bias"
            self.parts[key + "_bias"] = bias
            self.of[key + "_bias"] = (place, None)

    def _bias(self, name: str, layer: Layer, compressed: Compressed, inputs: Inputs) -> _Weight | None:
        bias = getattr(layer.module, "bias", None)
        if layer.parameter != "weight" or not isinstance(bias, Tensor):
            return None
        own, step = bias.detach().float(), _step(name, compressed, inputs)
        if step is not None:
            level, bits = on_step(own, step)
            if bits <= MOST_BIAS and torch.equal(level * step, own):
                return _Weight(own, whole_numbers(bits, step))
        return _Weight(own, None)

    def _hook(self, layer: Layer) -> None:
        key = layer.name.replace(".", "_")
        if key in self.rounding:
            layer.module.register_forward_pre_hook(_hook(self.rounding[key]), with_kwargs=True)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        weights: dict[str, Tensor] = {}
        experts: dict[str, dict[int, Tensor]] = {}
        for key, (path, index) in self.of.items():
            if index is None:
                weights[path] = self.parts[key]()
            else:
                experts.setdefault(path, {})[index] = self.parts[key]()
        for path, some in experts.items():
            every = self.model.get_parameter(path)
            weights[path] = torch.stack([some.get(i, every[i]) for i in range(every.shape[0])])
        more = {"use_cache": False} if hasattr(getattr(self.model, "config", None), "use_cache") else {}
        return first_output(torch.func.functional_call(self.model, weights, (), {**inputs, **more}))


def _hook(node: nn.Module) -> Any:
    def rounding(module: nn.Module, args: Any, keywords: Any) -> Any:
        if not args:
            return args, {**keywords, "input": node(keywords["input"])}
        return (node(args[0]), *args[1:]), keywords

    return rounding


def _turned(node: Node) -> Node:
    """For the weight the other way round."""
    constants = {name: own.T if own.ndim == 2 else own for name, own in node.named_buffers()}
    return _with(node, constants)


def _reshaped(node: Node, dimensions: int) -> Node:
    """For a kernel: rows first."""
    constants = {
        name: own.reshape(-1, *[1] * (dimensions - 1)) if own.ndim == 2 else own
        for name, own in node.named_buffers()
    }
    return _with(node, constants)


def _with(node: Node, constants: Mapping[str, Tensor]) -> Node:
    return Node(node.operator, constants, {k: v for k, v in node.settings.items() if k != "rounding_mode"})


def _tidied(made: Any) -> None:
    """Names for all nodes, and the opset of the domain stated."""
    onnx = needed("onnx")
    counts: dict[str, int] = {}
    for node in made.graph.node:
        counts[node.op_type] = counts.get(node.op_type, -1) + 1
        node.name = f"{node.op_type}_{counts[node.op_type]}"
    kept = [one for one in made.opset_import if one.domain in ("", "ai.onnx")]
    del made.opset_import[:]
    made.opset_import.extend([*kept, onnx.helper.make_opsetid(nodes.DOMAIN, 1)])


def _notes(made: Any) -> tuple[str, ...]:
    kinds = [one.op_type for one in made.graph.node if one.domain == nodes.DOMAIN]
    words = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    shapes = "; ".join(
        f"{one.name} ({', '.join(str(d.dim_value) for d in one.type.tensor_type.shape.dim)})"
        for one in made.graph.input
    )
    return (f"nodes of {nodes.DOMAIN}: {words}", f"inputs have these very shapes: {shapes}")

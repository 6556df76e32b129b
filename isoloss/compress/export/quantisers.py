"""QONNX nodes for the weights, inputs and biases of a model, as modules that are traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.compress.activations import Activations, Range, numbers
from isoloss.compress.export.decoding import symbol
from isoloss.compress.export.nodes import DOMAIN
from isoloss.compress.formats import Encoded, Fixed, Float, Integer, Native
from isoloss.compress.formats.number_types import FloatType

SCALE_BITS = 32  # of a scale in the file


class Node(nn.Module):
    """An operator of QONNX with its constants; run by torch itself its result means nothing."""

    def __init__(self, operator: str, constants: Mapping[str, Tensor], settings: Mapping[str, int]):
        super().__init__()
        self.operator = operator
        for name, own in constants.items():
            self.register_buffer(name, own.float().contiguous())
        self.settings: dict[str, Any] = {**settings, **({} if operator == "BipolarQuant" else ROUND)}

    def forward(self, x: Tensor) -> Tensor:
        inputs = (x, *(own for _, own in self.named_buffers()))
        return symbol(f"{DOMAIN}::{self.operator}", inputs, self.settings, x.dtype, tuple(x.shape))


ROUND = {"rounding_mode": "ROUND"}
FLOATS = {"has_inf": 0, "has_nan": 0, "has_subnormal": 1, "saturation": 1}


def whole_numbers(
    bits: int, scale: Tensor, zero: Tensor | None = None, signed: bool = True, narrow: bool = False
) -> Node:
    """IntQuant."""
    point = torch.tensor(0.0) if zero is None else zero
    constants = {"scale": scale, "zeropt": point, "bitwidth": torch.tensor(float(bits))}
    return Node("IntQuant", constants, {"signed": int(signed), "narrow": int(narrow)})


def floats(type: FloatType, scale: Tensor) -> Node:
    """FloatQuant."""
    own = (float(type.exponent), float(type.mantissa), float(type.offset), type.maximum)
    names = ("exponent_bitwidth", "mantissa_bitwidth", "exponent_bias", "max_val")
    constants = {name: torch.tensor(one) for name, one in zip(names, own, strict=True)}
    return Node("FloatQuant", {"scale": scale, **constants}, FLOATS)


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight as it is written.

    Attributes:
        node: that it goes through; None for float32.
        kind: in words.
        bits: of its codes, and of scales and zero-points in float32.
    """

    node: Node | None
    kind: str
    bits: int


def weight_of(name: str, encoded: Encoded) -> Weight:
    """The node that gives a weight, seen as a matrix (out, in).

    Raises:
        ValueError: no node gives the numbers of this format; says which layer and why.
    """
    format, count = encoded.format, encoded.decode().numel()
    if isinstance(format, Native):
        exact = {"fp16": FloatType(5, 10), "bf16": FloatType(8, 7)}.get(format.name)
        if exact is None:
            return Weight(None, "float32", 32 * count)
        node = floats(exact, torch.tensor(1.0))
        return Weight(node, f"FloatQuant {format.name}", 16 * count)
    if not isinstance(format, Integer | Fixed | Float):
        raise ValueError(_why(name, format.spec, "its numbers are looked up or added, not counted in steps"))
    grid = encoded.grid()
    if len(grid.groups) > 1:
        raise ValueError(
            _why(name, format.spec, "a node has a scale per tensor or per row, and this one has groups")
        )
    if isinstance(format, Fixed):
        node = whole_numbers(format.bits, torch.tensor(2.0**-format.fraction))
        return Weight(node, f"IntQuant {format.bits} bits", format.bits * count)
    if isinstance(format, Float):
        scale = torch.tensor(1.0) if format.scales is None else _held(grid.scale)
        node = floats(format.type, scale)
        kind = f"FloatQuant e{format.type.exponent}m{format.type.mantissa}"
        return Weight(node, kind, format.bits * count + SCALE_BITS * scale.numel())
    node = _integers(name, format, _held(grid.scale), grid.zero)
    beside = sum(own.numel() for key, own in node.named_buffers() if key != "bitwidth")
    kind = node.operator if node.operator == "BipolarQuant" else f"{node.operator} {format.bits} bits"
    return Weight(node, kind, format.bits * count + SCALE_BITS * beside)


def _integers(name: str, format: Integer, scale: Tensor, zero: Tensor | None) -> Node:
    if format.zero == "bipolar":
        if bool((scale == 0).any()):
            raise ValueError(_why(name, format.spec, "a row of zeros has no scale there"))
        if format.bits == 1:
            return Node("BipolarQuant", {"scale": scale}, {})
        # s (2u - (2^b - 1)) = 2s (u - (2^b - 1) / 2)
        half = torch.tensor((2**format.bits - 1) / 2)
        return whole_numbers(format.bits, 2 * scale, half, signed=False)
    if format.zero == "asym":
        assert zero is not None
        return whole_numbers(format.bits, scale, _held(zero), signed=False)
    return whole_numbers(format.bits, scale, narrow=format.zero == "narrow")


def _held(own: Tensor) -> Tensor:
    """Of a tensor one number without a dimension, of rows (rows, 1)."""
    return own.reshape(()) if own.numel() == 1 else own.reshape(-1, 1)


def _why(name: str, spec: str, why: str) -> str:
    return (
        f"layer {name}: {spec} cannot be written as QONNX: {why}. Compress it to integers, fixed point or floats with "
        "a scale per row or tensor (int4, int6/tensor, fixed2.6, fp8-e4m3)"
    )


def input_nodes(how: Activations, known: Range) -> list[Node]:
    """The nodes that round inputs as :func:`isoloss.compress.activations.fake_round` does within a static range.

    There a zero-point is added after rounding, in IntQuant before it: with one, two nodes, the first rounds, the second
    cuts off.
    """
    kind = numbers(how.format)
    step, zero = step_of(how, known)
    if isinstance(kind, Float):
        return [floats(kind.type, step)]
    if kind.zero == "asym":
        last = whole_numbers(kind.bits, step, zero, signed=False)
        return [last] if not bool(zero) else [whole_numbers(kind.bits + 1, step), last]
    return [whole_numbers(kind.bits, step, narrow=kind.zero == "narrow")]


def step_of(how: Activations, known: Range) -> tuple[Tensor, Tensor]:
    """Scale and zero-point of static inputs, as float32 without a dimension."""
    kind, low, high = numbers(how.format), torch.tensor(known.low), torch.tensor(known.high)
    if isinstance(kind, Float):
        return _positive(high / kind.type.maximum), torch.tensor(0.0)
    if kind.zero != "asym":
        return _positive(high / kind.top), torch.tensor(0.0)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _positive((high - low) / kind.top)
    return scale, torch.round(-low / scale) + 0.0


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


def bias_step(encoded: Encoded, how: Activations, known: Range) -> Tensor | None:
    """The step of the products of a layer, one number or one for each row; None where it has none."""
    if not isinstance(encoded.format, Integer | Fixed) or not isinstance(numbers(how.format), Integer):
        return None
    grid = encoded.grid()
    if len(grid.groups) > 1:
        return None
    format = encoded.format
    scale = torch.tensor(2.0**-format.fraction) if isinstance(format, Fixed) else _held(grid.scale)
    return (step_of(how, known)[0] * scale).reshape(-1) if scale.ndim else step_of(how, known)[0] * scale


def on_step(bias: Tensor, step: Tensor) -> tuple[Tensor, int]:
    """A bias in whole steps, and the bits that they need."""
    level = torch.round(bias.float() / step)
    most = int(torch.maximum(level, -level - 1).max()) if level.numel() else 0
    return level, max(2, most.bit_length() + 1)

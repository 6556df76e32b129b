r"""What each layer of a compressed model takes where every multiplication has a circuit of its own.

With weights of :math:`b_w` bits, inputs of :math:`b_a`, :math:`n` products per output, :math:`m` outputs, :math:`P` places
(of a convolution), and a share :math:`f` of weights that are 0, the bit operations are counted in both ways that are used:

.. math::

    \text{products}: \quad & (1 - f)\, m n P\, b_a b_w \\
    \text{with sums}: \quad & m n P\, [(1 - f)\, b_a b_w + b_a + b_w + \log_2 n]

An accumulator that can hold any such sum has :math:`b_a + b_w + \lceil \log_2 n \rceil` bits. With the weights known, fewer
may do: the exact number is that of the widest sum that inputs of :math:`b_a` bits can make.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.compress.activations import Activations, Range, numbers
from isoloss.compress.compressed import Compressed
from isoloss.compress.costs import DECODED, FULL, multiplications
from isoloss.compress.export.decoding import levels_of
from isoloss.compress.export.onnx import layers_of
from isoloss.compress.export.qonnx import Inputs, inputs_of
from isoloss.compress.export.quantisers import step_of
from isoloss.compress.formats import Encoded, Fixed, Float, Integer, Native


@dataclass(frozen=True)
class Resources:
    """Of one layer, for one example.

    Attributes:
        layer: its name.
        shape: of its weight.
        fan_in: products of one output.
        multiply_adds: for one example; 0 where it only looks up.
        zeros: weights that are 0.
        shifts: multiplications by plus or minus a power of two, which are wires.
        multipliers: multiplications by other weights: circuits where all run side by side.
        weight_bits: of one weight.
        weight_bits_in_all: of all weights, zeros too, without scales.
        input_bits: of one input.
        accumulator_bits: that hold any sum of so many products; None where weights or inputs are no integers.
        exact_accumulator_bits: that hold all sums of these very weights, its bias left out; None there too.
        bops: bit operations of the products.
        bops_with_sums: with those of the sums.
    """

    layer: str
    shape: tuple[int, ...]
    fan_in: int
    multiply_adds: int
    zeros: int
    shifts: int
    multipliers: int
    weight_bits: float
    weight_bits_in_all: int
    input_bits: float
    accumulator_bits: int | None
    exact_accumulator_bits: int | None
    bops: float
    bops_with_sums: float


def bit_operations(
    fan_in: int, outputs: int, weight: float, inputs: float, zeros: float = 0.0
) -> tuple[float, float]:
    """Of the products alone, and with those of the sums.

    Args:
        fan_in: products of one output.
        outputs: sums: of a convolution channels times places.
        weight, inputs: bits.
        zeros: share of weights that are 0.

    Source:
        Products: Z. Yao et al., HAWQ-V3, 2021, arXiv 2011.10680; with sums: C. Baskin et al., UNIQ, 2018, arXiv 1804.10969,
        zeros left out as in B. Hawks et al., Ps and Qs, 2021, arXiv 2102.11289.

    Example:
        >>> layers = [(16, 64), (64, 32), (32, 32), (32, 5)]  # jets, 6 bits
        >>> every = [bit_operations(n, m, 6, 6) for n, m in layers]
        >>> sum(one for one, _ in every), sum(both for _, both in every)
        (153216.0, 226592.0)
    """
    products = fan_in * outputs * (1 - zeros) * weight * inputs
    return float(products), float(products + fan_in * outputs * (weight + inputs + math.log2(fan_in)))


def resources(
    compressed: Compressed, model: nn.Module, inputs: Any, rounded: Inputs | None = None
) -> tuple[Resources, ...]:
    """What each layer takes.

    Args:
        compressed: its weights.
        model: the same model.
        inputs: one example, as :func:`isoloss.compress.compress` takes a batch.
        rounded: how inputs of layers are rounded; by default as the recipe says, 32 bits where they are not.
    """
    how = inputs_of(compressed) if rounded is None else rounded
    layers = layers_of(model, compressed)
    counts = multiplications(model, list(layers.values()), inputs)
    return tuple(
        _of(name, layers[name].shape, tuple(layers[name].tensor.shape), one, counts[name], how)
        for name, one in compressed.encoded.items()
    )


def _of(
    name: str, matrix: tuple[int, int], shape: tuple[int, ...], encoded: Encoded, count: int, how: Inputs
) -> Resources:
    rows, fan_in = matrix
    places = count // (rows * fan_in)
    levels, bits = _levels(encoded), _bits(encoded)
    settings = how.how.get(name)
    taken = FULL if settings is None else float(numbers(settings.format).bits)
    values = encoded.decode().reshape(-1).double() if levels is None else levels.reshape(-1).double()
    zeros = int((values == 0).sum())
    powers = 0 if levels is None else int((torch.frexp(values)[0].abs() == 0.5).sum())
    products, both = bit_operations(fan_in, rows * places, bits, taken, zeros / values.numel())
    whole = levels is not None and settings is not None and isinstance(numbers(settings.format), Integer)
    general = int(taken + bits) + math.ceil(math.log2(fan_in)) if whole and places else None
    exact = None
    if whole and places and settings is not None and levels is not None and _one_scale(encoded):
        exact = _widest(levels, settings, how.ranges[name])
    return Resources(
        name, shape, fan_in, count, zeros, powers * places, (values.numel() - zeros - powers) * places,
        bits, int(bits * values.numel()), taken, general, exact, products, both,
    )  # fmt: skip


def _bits(encoded: Encoded) -> float:
    format = encoded.format
    if isinstance(format, Native):
        return 32.0 if format.name == "fp32" else 16.0
    return float(format.bits) if isinstance(format, Integer | Fixed | Float) else DECODED


def _levels(encoded: Encoded) -> Tensor | None:
    """Whole numbers, zero-points taken off; None for what is not integers."""
    if not isinstance(encoded.format, Integer | Fixed):
        return None
    found = levels_of(encoded)
    if found is None:  # bipolar of eight bits
        return 2 * encoded.codes().int() - 255
    whole, zero, _ = found
    return whole.int() if zero is None else whole.int() - encoded.grid().spread(zero.float()).int()


def _one_scale(encoded: Encoded) -> bool:
    return len(encoded.grid().groups) == 1


def _widest(levels: Tensor, settings: Activations, known: Range) -> int:
    kind = numbers(settings.format)
    assert isinstance(kind, Integer)
    if kind.zero == "asym":
        zero = int(step_of(settings, known)[1])
        low, high = -zero, kind.top - zero
    else:
        low, high = kind.lowest + int(kind.zero == "narrow"), kind.top
    own = levels.double()
    up, down = own.clamp(min=0).sum(dim=1), own.clamp(max=0).sum(dim=1)
    top, bottom = int((up * high + down * low).max()), int((up * low + down * high).min())
    most = max(top, -bottom - 1, 0).bit_length()
    return max(most + int(bottom < 0), 1)


def totals(found: Sequence[Resources]) -> dict[str, float]:
    """Sums over layers, of what can be added.

    Example:
        >>> one = Resources("a", (2, 4), 4, 8, 1, 3, 4, 4.0, 32, 8.0, 14, 12, 224.0, 336.0)
        >>> totals([one, one])["multipliers"]
        8
    """
    names = (
        "multiply_adds",
        "zeros",
        "shifts",
        "multipliers",
        "weight_bits_in_all",
        "bops",
        "bops_with_sums",
    )
    return {name: sum(getattr(one, name) for one in found) for name in names}

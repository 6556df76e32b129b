r"""What a choice of formats costs beside its size: multiplications, weighed by their bits, or a cost of the user's own.

The number of bit operations of a layer with :math:`m` multiplications, weights of :math:`b_w` and inputs of
:math:`b_x` bits is taken as

.. math:: \mathrm{BOPs} = m\, b_w\, b_x

without what adding up and moving the numbers takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.compress.candidates import Candidates
from isoloss.compress.formats import Float, Format, Integer, get
from isoloss.compress.layers import Layer
from isoloss.compress.replay import calibrating
from isoloss.compress.watch import Convolved, Watch
from isoloss.measure.subject import call

FULL = 32.0  # bits of a number that is not rounded
DECODED = 16.0  # bits of what a table or a sum of parts decodes to


@dataclass(frozen=True)
class Limit:
    """A budget beside the size.

    Attributes:
        most: that all layers together may take.
        of: layer -> format -> what it takes: bit operations, measured seconds, joules. Not negative.

    Raises:
        ValueError: a limit that is not above 0.
    """

    most: float
    of: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ValueError(f"needed a limit above 0, got {self.most}")

    def uses(self, budget: str, layer: str, format: str) -> float:
        """What this layer takes in this format.

        Raises:
            ValueError: nothing is known of it.
        """
        try:
            return self.of[layer][format]
        except KeyError:
            raise ValueError(
                f"needed the {budget} of {layer} in {format}, got none. Give one for every layer and format"
            ) from None


def multiplications(model: nn.Module, layers: Sequence[Layer], inputs: Any) -> dict[str, int]:
    """Layer -> multiplications by its weight while the model runs on one batch; 0 for one that only looks up.

    Args:
        model: run in eval mode.
        layers: to watch.
        inputs: one batch, as :func:`isoloss.compress.compress` takes it.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
        >>> multiplications(net, find(net).layers, torch.randn(1, 3, 6, 6))
        {'0': 3456, '2': 1280}
    """
    found = {layer.name: 0 for layer in layers}

    def multiplied(layer: Layer, x: Tensor) -> None:
        found[layer.name] += math.prod(x.shape[:-1]) * math.prod(layer.shape)

    def convolved(layer: Layer, x: Tensor, how: Convolved) -> None:
        kernel = layer.tensor.shape[2:]
        places = 1
        for i, size in enumerate(kernel):
            reach = how.dilation[i] * (size - 1) + 1
            places *= (x.shape[2 + i] + 2 * how.padding[i] - reach) // how.stride[i] + 1
        found[layer.name] += x.shape[0] * places * math.prod(layer.shape)

    with torch.no_grad(), calibrating(model), Watch(layers, multiplied, convolved, lambda layer, index: None):
        call(model, inputs)
    return found


def multiplied_bits(format: str | Format) -> float:
    """Bits of the weights that a multiplier sees: of integers and floats their own, of what is decoded first 16.

    Example:
        >>> multiplied_bits("int4/g128/asym"), multiplied_bits("fp8-e4m3"), multiplied_bits("table3")
        (4.0, 8.0, 16.0)
    """
    found = get(format) if isinstance(format, str) else format
    return float(found.bits) if isinstance(found, (Integer, Float)) else DECODED


def bops(
    candidates: Candidates, counts: Mapping[str, int], inputs: float = FULL
) -> dict[str, dict[str, float]]:
    """Layer -> format -> bit operations.

    Args:
        candidates: layers and formats.
        counts: layer -> multiplications (:func:`multiplications`).
        inputs: bits of the layers' inputs.

    Source:
        The core of C. Baskin et al., UNIQ, 2018, arXiv 1804.10969, as in Z. Yao et al., HAWQ-V3, 2021, arXiv 2011.10680.

    Example:
        >>> from isoloss.compress import Choice, find
        >>> from isoloss.compress.candidates import candidates
        >>> net = nn.Linear(4, 2)
        >>> tried = candidates(net, find(net).layers, [Choice("int4"), Choice("int8")])
        >>> bops(tried, {"model": 8}, inputs=8)
        {'model': {'int4': 256.0, 'int8': 512.0}}
    """
    return {
        name: {format: counts[name] * multiplied_bits(format) * inputs for format in own}
        for name, own in candidates.of.items()
    }

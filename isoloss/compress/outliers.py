r"""Numbers far out among a layer's inputs: what makes them hard to round to evenly spaced levels.

Of the inputs x of a layer: the largest over the root mean square, the kurtosis :math:`E[(x - \bar x)^4] / \sigma^4` (3 of a
bell), and features that are large for many tokens.

Source: features: T. Dettmers et al., LLM.int8(), 2022, arXiv 2208.07339; the ratio of the largest to the root mean square as a
sign of how training went: A. Ahmadian et al., Intriguing Properties of Quantization at Scale, 2023, arXiv 2305.19268.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.compress.layers import Layer
from isoloss.compress.replay import calibrating
from isoloss.compress.watch import Watch
from isoloss.measure.subject import call

LARGE = 6.0  # of an input
TOKENS = 0.06  # share of them for which a feature must be large
LAYERS = 0.25  # share of the layers of its width in which it must be so


@dataclass(frozen=True)
class Outliers:
    """Of one layer.

    Attributes:
        inputs: the largest input over their root mean square.
        kurtosis: of the inputs.
        weights: the largest weight over their root mean square.
        features: inputs that are above 6 in size for 6 % of the tokens.
    """

    inputs: float
    kurtosis: float
    weights: float
    features: tuple[int, ...]


class _Sums:
    def __init__(self, width: int) -> None:
        self.large = torch.zeros(width, dtype=torch.float64)
        self.powers = torch.zeros(4, dtype=torch.float64)
        self.most, self.tokens, self.count = 0.0, 0, 0

    def add(self, x: Tensor) -> None:
        """(tokens, features)."""
        y = x.detach().double().cpu()
        if not y.numel():
            return
        self.large += (y.abs() > LARGE).double().sum(0)
        self.powers += torch.stack([(y**k).sum() for k in (1, 2, 3, 4)])
        self.most = max(self.most, float(y.abs().max()))
        self.tokens, self.count = self.tokens + len(y), self.count + y.numel()

    @property
    def ratio(self) -> float:
        square = float(self.powers[1])
        return self.most / math.sqrt(square / self.count) if square else math.nan

    @property
    def kurtosis(self) -> float:
        one, two, three, four = (float(value) / self.count for value in self.powers)
        variance = two - one**2
        fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
        return fourth / variance**2 if variance > 0 else math.nan


def outliers(model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any]) -> dict[str, Outliers]:
    """Layer -> its outliers; a layer that only looks up, or that no data come to, is left out.

    Args:
        model: run in eval mode.
        layers: to watch. The features of a convolution are its channels.
        batches: calibration inputs.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = nn.Linear(3, 2)
        >>> found = outliers(net, find(net).layers, [torch.tensor([[1.0, -1.0, 7.0], [1.0, -1.0, 9.0]])])
        >>> found["model"].features, round(found["model"].inputs, 2)  # 9 over the root of 134/6
        ((2,), 1.9)
    """
    seen: dict[str, _Sums] = {}

    def note(layer: Layer, x: Tensor) -> None:
        seen.setdefault(layer.name, _Sums(x.shape[-1])).add(x.reshape(-1, x.shape[-1]))

    def convolved(layer: Layer, x: Tensor, *_: object) -> None:
        note(layer, x.transpose(1, -1))

    with calibrating(model):
        for inputs in batches:
            with Watch(layers, note, convolved, lambda layer, index: None):
                call(model, inputs)
    out = {}
    for layer in layers:
        sums = seen.get(layer.name)
        if sums is not None and sums.count:
            weight = layer.tensor.detach().double()
            size = float(weight.square().mean().sqrt())
            features = torch.nonzero(sums.large >= TOKENS * sums.tokens).flatten().tolist()
            heavy = float(weight.abs().max()) / size if size else math.nan
            out[layer.name] = Outliers(sums.ratio, sums.kurtosis, heavy, tuple(features))
    return out


def features(found: Mapping[str, Outliers], layers: Sequence[Layer]) -> dict[int, tuple[int, ...]]:
    """Width -> features that are large in a quarter of the layers that read so many.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> one, none = Outliers(9.0, 30.0, 3.0, (2,)), Outliers(3.0, 3.0, 3.0, ())
        >>> features({"0": one, "1": none}, find(net).layers)
        {4: (2,)}
    """
    widths: dict[int, list[str]] = {}
    for layer in layers:
        if layer.name in found:
            widths.setdefault(layer.shape[1], []).append(layer.name)
    out = {}
    for width, names in widths.items():
        counts = torch.bincount(
            torch.tensor([f for name in names for f in found[name].features], dtype=torch.int64)
        )
        large = torch.nonzero(counts >= max(1.0, LAYERS * len(names))).flatten().tolist()
        if large:
            out[width] = tuple(large)
    return out

"""A compressed model: encoded weights, the rest as it was, the recipe, exact sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from isoloss.compress.formats import Encoded
from isoloss.compress.layers import Layer, find
from isoloss.compress.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Compressed:
    """What :func:`isoloss.compress.pipeline.compress` gives.

    Attributes:
        encoded: layer -> its weight as stored.
        plain: every other tensor of the model, by path, each once; the model's own memory, not copies.
        recipe: what was done.
        seconds: that it took.
    """

    encoded: Mapping[str, Encoded]
    plain: Mapping[str, Tensor]
    recipe: Recipe
    seconds: float

    @property
    def bits(self) -> int:
        """Stored bits of the encoded weights."""
        return sum(one.bits for one in self.encoded.values())

    @property
    def weights(self) -> int:
        """Numbers that are encoded."""
        return sum(math.prod(one.shape) for one in self.encoded.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the encoded weights over their number."""
        return self.bits / self.weights

    @property
    def plain_bytes(self) -> int:
        """Bytes of what is stored as it was."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.plain.values())

    @property
    def bytes(self) -> int:
        """Bytes of all tensors on disk: the encoded weights and the rest."""
        return self.bits // 8 + self.plain_bytes

    @property
    def errors(self) -> dict[str, float]:
        """Layer -> its relative error (:class:`isoloss.compress.recipe.Outcome` says of what)."""
        return {name: done.error for name, done in self.recipe.layers.items()}

    def apply(self, model: nn.Module) -> nn.Module:
        """Put the decoded weights in place, each rounded to the parameter's own dtype; the rest is not touched.

        Raises:
            ValueError: the model has not these layers.
        """
        put(model, self.encoded)
        return model


def put(model: nn.Module, encoded: Mapping[str, Encoded]) -> None:
    """Set layers to what their encoded weights decode to.

    Raises:
        ValueError: the model has no such layer, or one of another shape; nothing is changed then.
    """
    layers = {layer.name: layer for layer in find(model).layers}
    for name, one in encoded.items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}, which was compressed. Give the same model")
        if layers[name].shape != tuple(one.shape):
            raise ValueError(
                f"layer {name} has the shape {layers[name].shape}, and {tuple(one.shape)} was compressed. "
                "Give the same model"
            )
    for name, one in encoded.items():
        layers[name].put(one.decode())


def plain_tensors(model: nn.Module, layers: Mapping[str, Layer]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What of a model's state is in no layer, by path, and path -> path of what is tied.

    Args:
        model: whose state.
        layers: that are encoded. Of a parameter whose experts are encoded in part, the others are tensors of their
            own: ``path.3``.
    """
    whole = {layer.path for layer in layers.values() if layer.index is None}
    parts: dict[str, set[int]] = {}
    for layer in layers.values():
        if layer.index is not None:
            parts.setdefault(layer.path, set()).add(layer.index)
    tied = {other: layer.path for layer in layers.values() for other in layer.tied}
    plain: dict[str, Tensor] = {}
    state = {path: one.detach() for path, one in model.state_dict().items() if isinstance(one, Tensor)}
    places = {_place(state[path]): path for path in (*whole, *parts)}
    for path, own in state.items():
        if path in whole or path in tied:
            continue
        if path in parts:
            rest = [i for i in range(own.shape[0]) if i not in parts[path]]
            plain |= {f"{path}.{i}": own[i] for i in rest}
        elif own.numel() and _place(own) in places:
            tied[path] = places[_place(own)]
        else:
            places[_place(own)] = path
            plain[path] = own
    return plain, tied


def _place(tensor: Tensor) -> tuple[object, ...]:
    """The same for the same numbers in the same memory."""
    return (
        tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    )  # fmt: skip

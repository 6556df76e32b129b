"""Puts a rounding into the layers of a model that goes on training, and makes a compressed model of it at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isoloss.compress.compressed import Compressed, plain_tensors
from isoloss.compress.formats import Encoded
from isoloss.compress.layers import Layer, find
from isoloss.compress.pipeline import relative_error
from isoloss.compress.recipe import AS_ASKED, Outcome, Recipe, identity


class RoundedWeight(nn.Module):
    """What stands for a parameter: the roundings of the layers in it, one, or one for each expert.

    Args:
        layers: of the parameter.
        rounders: of each layer, from its float32 matrix to another.
    """

    def __init__(self, layers: Sequence[Layer], rounders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.rounders = nn.ModuleList(rounders)
        self.indices = [layer.index for layer in layers]
        self.transposed = layers[0].transposed

    def forward(self, original: Tensor) -> Tensor:
        """The rounded parameter, in its own dtype and shape."""
        if self.indices == [None]:
            return self._one(original, self.rounders[0])
        parts = list(original.unbind(0))
        for index, rounder in zip(self.indices, self.rounders, strict=True):
            parts[cast(int, index)] = self._one(parts[cast(int, index)], rounder)
        return torch.stack(parts)

    def _one(self, own: Tensor, rounder: nn.Module) -> Tensor:
        matrix: Tensor = rounder(matrix_of(own, self.transposed))
        return (matrix.T if self.transposed else matrix).reshape(own.shape).to(own.dtype)


def matrix_of(own: Tensor, transposed: bool) -> Tensor:
    """A parameter as a float32 matrix (out, in), with its gradient."""
    return (own.T if transposed else own.reshape(own.shape[0], -1)).float().contiguous()


def install(model: nn.Module, layers: Sequence[Layer], rounder: Callable[[Layer], nn.Module]) -> None:
    """Give every layer a rounding; parameters stay the same objects, so that optimisers know them.

    A tied parameter has one rounding at all of its places.
    """
    by_path: dict[str, list[Layer]] = {}
    for layer in layers:
        by_path.setdefault(layer.path, []).append(layer)
    for own in by_path.values():
        made = RoundedWeight(own, [rounder(layer) for layer in own]).to(own[0].tensor.device)
        for path in (own[0].path, *own[0].tied):
            place, _, name = path.rpartition(".")
            parametrize.register_parametrization(model.get_submodule(place), name, made, unsafe=True)


def refuse_prepared(model: nn.Module) -> None:
    """Refuse a model that computes some parameters from others.

    Raises:
        ValueError: it does.
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{name or 'the model'} computes its parameters from others (torch.nn.utils.parametrize). Finish or "
                "remove that first"
            )


def refuse_finished(layers: Sequence[Layer]) -> None:
    """Refuse layers whose roundings were taken out.

    Raises:
        ValueError: they were.
    """
    if not all(parametrize.is_parametrized(layer.module) for layer in layers):
        raise ValueError("the training was finished already. Prepare the model again to go on")


def remove(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Take the roundings out again; the parameters are what was trained."""
    for path in {path for layer in layers for path in (layer.path, *layer.tied)}:
        place, _, name = path.rpartition(".")
        module = model.get_submodule(place)
        # Deep copies share the class that has the property, which is about to lose it: a class of its own first.
        own, hidden = type(module), ("__dict__", "__weakref__")
        members = {key: value for key, value in vars(own).items() if key not in hidden}
        module.__class__ = type(own.__name__, own.__bases__, members)
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def finished(
    model: nn.Module,
    encoded: Mapping[str, Encoded],
    kept: Mapping[str, Tensor],
    notes: Sequence[str],
    seconds: float,
) -> Compressed:
    """Put encoded weights into a model without roundings, and say what was done.

    Args:
        model: trained.
        encoded: layer -> its weight.
        kept: layer -> the float weight that it is of, for the relative error.
        notes: of the recipe.
        seconds: that it took.
    """
    found = find(model)
    layers = {layer.name: layer for layer in found.layers if layer.name in encoded}
    outcomes, own = {}, {}
    for name, layer in layers.items():
        one = encoded[name]
        one = Encoded(one.format, one.shape, {key: part.cpu() for key, part in one.parts.items()})
        decoded = one.decode()
        error, of = relative_error(kept[name], decoded.to(kept[name]), None)
        layer.put(decoded.to(layer.tensor.device))
        own[name] = one
        dtype = str(layer.tensor.dtype).removeprefix("torch.")
        outcomes[name] = Outcome(
            layer.path,
            layer.kind,
            layer.shape,
            dtype,
            one.format.spec,
            "nearest",
            one.bits,
            error,
            of,
            0,
            0.0,
        )
    plain, tied = plain_tensors(model, layers)
    left = found.left | {
        layer.path if layer.index is None else f"{layer.path}.{layer.index}": AS_ASKED
        for layer in found.layers
        if layer.name not in layers
    }
    return Compressed(own, plain, Recipe(identity(model), outcomes, left, tied, tuple(notes)), seconds)

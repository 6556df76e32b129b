"""The weights of a model that can be compressed, each once, as matrices; and why every other parameter is left.

A matrix has a row for each output and a column for each input: linear weights as they are, convolutions as
``(out, in / groups * kernel)``, embeddings with a row for each token, weights that are stored the other way round
(GPT-2's ``Conv1D``, some experts) transposed. Experts in one tensor of three dimensions are a layer each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["linear", "conv", "embedding", "conv1d", "experts"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TABLES = (nn.Embedding, nn.EmbeddingBag)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight that can be compressed.

    Attributes:
        name: of its module (``encoder.layer.0.attention.self.query``); with the parameter where that is not
            ``weight``, and the number of the expert.
        module: that owns it.
        parameter: its name there (``weight``, ``gate_up_proj``).
        kind: ``linear``, ``conv``, ``embedding``, ``conv1d`` (stored transposed), ``experts``.
        path: of the parameter in the model.
        tied: paths of the same parameter elsewhere in the model.
        index: which expert of the parameter; None where it is whole.
        transposed: stored as (in, out).
        groups: of a grouped convolution: the rows of the matrix come in so many blocks, each with inputs of its own.
    """

    name: str
    module: nn.Module
    parameter: str
    kind: Kind
    path: str
    tied: tuple[str, ...] = ()
    index: int | None = None
    transposed: bool = False
    groups: int = 1

    @property
    def tensor(self) -> Tensor:
        """What the model computes with: the parameter, or its part of one expert; memory of the model."""
        whole: Tensor = getattr(self.module, self.parameter).detach()
        return whole if self.index is None else whole[self.index]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix: (out, in)."""
        dims = tuple(self.tensor.shape)
        return (dims[1], dims[0]) if self.transposed else (dims[0], math.prod(dims[1:]))

    def matrix(self) -> Tensor:
        """The weight as a float32 matrix (out, in), a copy.

        Example:
            >>> found = find(nn.Conv2d(4, 6, 3, groups=2))
            >>> found.layers[0].matrix().shape, found.layers[0].groups
            (torch.Size([6, 18]), 2)
        """
        return self._view().to(torch.float32, copy=True).contiguous()

    def put(self, weight: Tensor) -> None:
        """Set the weight to a matrix (out, in), rounded to the parameter's own dtype.

        Raises:
            ValueError: another shape.
        """
        if tuple(weight.shape) != self.shape:
            raise ValueError(f"{self.name} needs a matrix of shape {self.shape}, got {tuple(weight.shape)}")
        with torch.no_grad():
            own = self.tensor
            own.copy_((weight.T if self.transposed else weight).reshape(own.shape))

    def _view(self) -> Tensor:
        own = self.tensor
        return own.T if self.transposed else own.reshape(own.shape[0], -1)


@dataclass(frozen=True, eq=False)
class Layers:
    """What of a model can be compressed.

    Attributes:
        layers: in the model's order, each tensor once.
        left: path of every other parameter -> why it is left as it is.
    """

    layers: tuple[Layer, ...]
    left: dict[str, str]

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)


def find(model: nn.Module) -> Layers:
    """Every weight that can be compressed, and why the other parameters cannot.

    Args:
        model: any module. Weights of linear layers, convolutions, embeddings, GPT-2's ``Conv1D``, projections of
            ``nn.MultiheadAttention``, and parameters of three dimensions in modules of experts: (expert, out, in), or
            (expert, in, out) where the module says ``is_transposed``.

    Raises:
        ValueError: a parameter has no numbers (the meta device, a lazy module).

    Example:
        >>> net = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 10))
        >>> net[2].weight = net[0].weight
        >>> found = find(net)
        >>> [(layer.name, layer.kind, layer.tied) for layer in found.layers]
        [('0', 'embedding', ('2.weight',))]
        >>> found.left
        {'1.weight': 'of a normalisation', '1.bias': 'a bias', '2.bias': 'a bias'}
    """
    places: dict[tuple[Any, ...], list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            whole = f"{path}.{name}" if path else name
            if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta:
                raise ValueError(f"{whole} has no numbers yet. Load or initialise the model first")
            places.setdefault(_memory(parameter), []).append((whole, module, name))
    layers: list[Layer] = []
    left: dict[str, str] = {}
    for same in places.values():
        uses = [(path, module, name, _kind(path, module, name)) for path, module, name in same]
        known = [use for use in uses if use[3][0] is not None]
        if not known:
            left |= {path: str(why) for path, _, _, (_, why) in uses}
            continue
        # A tensor that is looked up anywhere is an embedding, and is named by its first place.
        looked_up = any(kind == "embedding" for _, _, _, (kind, _) in known)
        path, module, name, (kind, _) = known[0]
        assert kind is not None
        others = tuple(other for other, _, _, _ in uses if other != path)
        layers += _layers(path, module, name, "embedding" if looked_up else kind, others)
    return Layers(tuple(layers), left)


def _memory(parameter: Tensor) -> tuple[Any, ...]:
    """The same for the same numbers in the same place."""
    if hasattr(parameter, "__tensor_flatten__"):
        return (id(parameter),)
    storage = parameter.untyped_storage()
    return (storage._cdata, parameter.storage_offset(), tuple(parameter.shape), parameter.stride())


def _layers(path: str, module: nn.Module, name: str, kind: Kind, tied: tuple[str, ...]) -> list[Layer]:
    owner = path.removesuffix(name).removesuffix(".")
    own = (owner or "model") if name == "weight" else path
    if kind == "experts":
        turned = bool(getattr(module, "is_transposed", False))
        count = getattr(module, name).shape[0]
        return [Layer(f"{own}.{i}", module, name, kind, path, tied, i, turned) for i in range(count)]
    groups = int(getattr(module, "groups", 1)) if kind == "conv" else 1
    return [Layer(own, module, name, kind, path, tied, None, kind == "conv1d", groups)]


def _kind(path: str, module: nn.Module, name: str) -> tuple[Kind | None, str]:
    """What a parameter is, or None and why it is left."""
    parameter: Tensor = getattr(module, name)
    if not parameter.is_floating_point():
        return None, f"{str(parameter.dtype).removeprefix('torch.')} numbers"
    if hasattr(parameter, "__tensor_flatten__"):
        return None, f"a {type(parameter).__name__}, not plain numbers"
    if parameter.numel() == 0:
        return None, "no numbers"
    if path.rpartition(".")[0].endswith("parametrizations") or ".parametrizations." in path:
        return None, "the weight is computed from it"
    if isinstance(module, RECURRENT):
        return None, "of a recurrent layer"
    if parameter.ndim < 2:
        if "bias" in name:
            return None, "a bias"
        return None, "of a normalisation" if "norm" in type(module).__name__.lower() else "a vector"
    if isinstance(module, TRANSPOSED):
        return None, "of a transposed convolution"
    if name == "weight":
        if isinstance(module, nn.Linear):
            return "linear", ""
        if isinstance(module, CONVOLUTIONS):
            return "conv", ""
        if isinstance(module, TABLES):
            return "embedding", ""
        if type(module).__name__ == "Conv1D" and parameter.ndim == 2:  # transformers'
            return "conv1d", ""
    if isinstance(module, nn.MultiheadAttention) and name in PROJECTIONS:
        return "linear", ""
    if parameter.ndim == 3 and "expert" in f"{path}.{type(module).__name__}".lower():
        return "experts", ""
    return None, f"a parameter of {type(module).__name__}, whose use is not known"

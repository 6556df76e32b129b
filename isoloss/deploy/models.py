"""A compressed model with its layers replaced by packed ones: takes a model and what ``compress`` gave, gives a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from isoloss import compress
from isoloss.compress.layers import CONVOLUTIONS, Layer
from isoloss.deploy.linear import PackedConv, PackedEmbedding, PackedLinear, PackedModule
from isoloss.deploy.packing import Activations, Packed, pack_weight


def pack(model: nn.Module, compressed: compress.Compressed, activations: Activations = "int8") -> nn.Module:
    """Replace the compressed layers of a model by packed ones, in place.

    Linear layers (``Conv1D`` of transformers too), embeddings and convolutions are replaced; layers that share a weight
    share the packed one. Weights in other modules (experts, attention of torch) are set to what they decode to. Tensors
    that were not compressed are left as they are.

    Args:
        model: of the compressed layers.
        compressed: what ``compress`` gave.
        activations: what the products are with; see :func:`isoloss.deploy.products.product`.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: the model has no such layer, or one of another shape; nothing is changed then.

    Example:
        >>> import torch
        >>> from isoloss.compress import Choice
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator ...>
        >>> net = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 16))
        >>> made = compress.compress(net, Choice("int4/g128", "nearest"))
        >>> fast = pack(net, made)
        >>> [(name, one.kind, one.bytes) for name, one in packed_layers(fast).items()]
        [('0', 'levels', 67584), ('2', 'levels', 2112)]
    """
    layers = {layer.name: layer for layer in compress.find(model).layers}
    for name, one in compressed.encoded.items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}, which was compressed. Give the same model")
        if layers[name].shape != tuple(one.shape):
            raise ValueError(
                f"layer {name} has the shape {layers[name].shape}, and {tuple(one.shape)} was compressed. "
                "Give the same model"
            )
    for name, one in compressed.encoded.items():
        layer = layers[name]
        uses = [(layer.path, layer), *((path, layer) for path in layer.tied)]
        modules = [_module(model, path) for path, _ in uses]
        if layer.index is not None or not all(
            path.endswith("weight") and _can(module) for (path, _), module in zip(uses, modules, strict=True)
        ):
            layer.put(one.decode())
            continue
        packed = pack_weight(one, activations)
        for (path, _), module in zip(uses, modules, strict=True):
            new = _packed_module(packed, module, layer, activations)
            _keep_hooks(module, new)  # those that round inputs, if the recipe says so
            _replace(model, path.rpartition(".")[0], new)
    return model.eval()


def load(folder: str | Path, model: nn.Module | None = None, activations: Activations = "int8") -> nn.Module:
    """The model of a folder that ``compress.save`` wrote, running from its stored bits.

    Args:
        folder: with both files.
        model: of the same class and sizes; Hugging Face models are made from their config and need none.
        activations: as for :func:`pack`.

    Raises:
        ValueError: as ``compress.load``.
    """
    return pack(compress.load(folder, model), compress.read(folder), activations)


def packed_layers(model: nn.Module) -> dict[str, Packed]:
    """The packed weights of a model by layer."""
    return {name: one.packed for name, one in model.named_modules() if isinstance(one, PackedModule)}


def _module(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])


def _can(module: nn.Module) -> bool:
    base = next((one for one in (nn.Linear, nn.Embedding, *CONVOLUTIONS) if isinstance(module, one)), None)
    # One with a forward of its own does more than multiply or look up.
    linear = type(module).__name__ == "Conv1D" if base is None else type(module).forward is base.forward
    renorms = isinstance(module, nn.Embedding) and module.max_norm is not None
    return linear and not renorms and type(module) is not nn.modules.linear.NonDynamicallyQuantizableLinear


def _packed_module(packed: Packed, module: nn.Module, layer: Layer, activations: Activations) -> PackedModule:
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(packed, module.weight.dtype)
    if isinstance(module, CONVOLUTIONS):
        return PackedConv(packed, module, activations)
    return PackedLinear(packed, module.bias, activations)  # type: ignore[arg-type]


def _keep_hooks(old: nn.Module, new: nn.Module) -> None:
    for key, hook in old._forward_pre_hooks.items():
        named = key in old._forward_pre_hooks_with_kwargs
        new.register_forward_pre_hook(hook, with_kwargs=named)


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    if not path:
        raise ValueError(
            "the model is a single layer, which cannot be replaced in place. Put it in nn.Sequential"
        )
    setattr(model.get_submodule(owner), name, new)

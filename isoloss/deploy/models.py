"""A compressed model with its layers replaced by packed ones: takes a model and what ``compress`` gave, gives a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from isoloss import compress
from isoloss.compress.compressed import Compressed
from isoloss.compress.layers import CONVOLUTIONS, Layer
from isoloss.compress.recipe import Recipe
from isoloss.compress.saving import fill
from isoloss.deploy.files import TENSORS, Stored, read, write
from isoloss.deploy.held import Carrier, Held
from isoloss.deploy.linear import PackedConv, PackedEmbedding, PackedLinear, PackedModule
from isoloss.deploy.packing import Activations, Packed, pack_weight

# What a packed model was made of, for `save`.
_made: WeakKeyDictionary[nn.Module, tuple[Recipe, Activations]] = WeakKeyDictionary()


def pack(model: nn.Module, compressed: Compressed, activations: Activations = "int8") -> nn.Module:
    """Replace the compressed layers of a model by packed ones, in place.

    Linear layers (``Conv1D`` of transformers too), embeddings and convolutions are replaced; layers that share a weight
    share the packed one. Experts, torch's attention and layers with a forward of their own keep their modules: what
    multiplies with a packed matrix there runs packed, all else decodes it for as long as it takes. Tensors that were not
    compressed are left as they are.

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
    shapes = {name: tuple(one.shape) for name, one in compressed.encoded.items()}
    found = _layers(model, shapes)
    _put(model, found, lambda name: pack_weight(compressed.encoded[name], activations), activations)
    _made[model] = compressed.recipe, activations
    return model.eval()


def save(model: nn.Module | Stored, folder: str | Path, beside: str | Path | None = None) -> int:
    """Write a packed model to a folder, from which :func:`load` maps it: nothing is decoded, packed or copied then.

    Args:
        model: of :func:`pack` or :func:`load`; or :class:`~isoloss.deploy.files.Stored`, which needs none.
        folder: made where it is not there.
        beside: folder whose files of tokenizer, chat template, generation and configuration are copied.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: another model, or a folder that cannot be written or holds a compressed model.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 16))
        >>> fast = pack(net, compress.compress(net, compress.Choice("int4/g128", "nearest")))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(fast, folder)
        ...     same = load(folder, nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 16)))
        >>> [(name, one.kind) for name, one in packed_layers(same).items()]
        [('0', 'levels'), ('2', 'levels')]
    """
    return write(model if isinstance(model, Stored) else _stored(model), folder, beside)


def load(
    folder: str | Path, model: nn.Module | None = None, activations: Activations | None = None
) -> nn.Module:
    """The model of a folder that :func:`save` or ``compress.save`` wrote, running from its stored bits.

    Args:
        folder: of packed weights, which are mapped into memory; or of compressed ones, which are packed, one after the
            other and without decoding what is packed.
        model: of the same class and sizes; Hugging Face models are made from their config and need none.
        activations: as for :func:`pack`; default: what a folder of packed weights was made for, else ``int8``.

    Raises:
        ValueError: as ``compress.load``; or packed weights for other activations.
    """
    if not (Path(folder) / TENSORS).is_file():
        compressed = compress.read(folder)
        return pack(fill(compressed, model, decoded=False), compressed, activations or "int8")
    stored = read(folder)
    if activations not in (None, stored.activations):
        raise ValueError(
            f"{folder} was packed for {stored.activations} activations, got {activations}. Pack the compressed model anew"
        )
    try:
        made = fill(Compressed({}, stored.plain, stored.recipe, 0.0), model, decoded=False)
        shapes = {name: one.shape for name, one in stored.weights.items()}
        _put(made, _layers(made, shapes), stored.weights.__getitem__, stored.activations)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"{folder} is of another model, or damaged: {error!r}. Give the same model, or pack it again"
        ) from error
    _made[made] = stored.recipe, stored.activations
    return made.eval()


def packed_layers(model: nn.Module) -> dict[str, Packed]:
    """The packed weights of a model by layer."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, PackedModule):
            found[path] = module.packed
        for name, held in held_in(module).items():
            whole = f"{path}.{name}" if path else name
            own = path if name == "weight" else whole
            several = held.ndim == 3
            found |= {
                f"{own}.{i}" if several else own: part
                for i, part in enumerate(held.parts)
                if isinstance(part, Packed)
            }
    return found


def held_in(module: nn.Module) -> dict[str, Held]:
    """Packed weights that stand in the place of a module's own parameters."""
    return {name: one for name, one in vars(module).items() if isinstance(one, Held)}


def _layers(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Layer]:
    """The layers of these names, whose shapes are theirs."""
    layers = {layer.name: layer for layer in compress.find(model).layers}
    for name, shape in shapes.items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}, which was compressed. Give the same model")
        if layers[name].shape != shape:
            raise ValueError(
                f"layer {name} has the shape {layers[name].shape}, and {shape} was compressed. Give the same model"
            )
    return {name: layers[name] for name in shapes}


def _put(
    model: nn.Module,
    layers: dict[str, Layer],
    weight: Callable[[str], Packed],
    activations: Activations,
) -> None:
    """Packed weights in the place of layers."""
    experts: dict[str, dict[int, str]] = {}
    for name, layer in layers.items():
        if layer.index is not None:
            experts.setdefault(layer.path, {})[layer.index] = name
    for name, layer in layers.items():
        if layer.index is None:
            packed = weight(name)
            for path in (layer.path, *layer.tied):
                _put_one(model, path, layer, packed, activations)
    for path, known in experts.items():
        layer = layers[next(iter(known.values()))]
        own = getattr(layer.module, layer.parameter).detach()
        parts: list[Packed | Tensor] = [
            weight(known[i]) if i in known else own[i].clone() for i in range(len(own))
        ]
        held = Held(parts, tuple(own.shape), own.dtype, layer.transposed, activations)
        for place in (path, *layer.tied):
            _hold(model, place, held)
    if experts and hasattr(model, "set_experts_implementation"):
        # Of transformers: expert after expert, where another way would decode all of them.
        model.set_experts_implementation("eager")  # type: ignore[operator]


def _put_one(model: nn.Module, path: str, layer: Layer, packed: Packed, activations: Activations) -> None:
    module = _module(model, path)
    if path.rpartition(".")[2] == "weight" and _can(module):
        new = _packed_module(packed, module, layer, activations)
        _keep_hooks(module, new)  # those that round inputs, if the recipe says so
        _replace(model, path.rpartition(".")[0], new)
        return
    own: Tensor = getattr(module, path.rpartition(".")[2])
    _hold(model, path, Held([packed], tuple(own.shape), own.dtype, layer.transposed, activations))


def _hold(model: nn.Module, path: str, held: Held) -> None:
    """A packed weight in the place of a parameter."""
    module, name = _module(model, path), path.rpartition(".")[2]
    delattr(module, name)
    setattr(module, name, held)
    module.add_module(f"{name}_carrier", Carrier(held))


def _stored(model: nn.Module) -> Stored:
    """Packed weights and the rest of a model of :func:`pack` or :func:`load`."""
    if model not in _made:
        raise ValueError(
            f"needed a model of deploy.pack or deploy.load, got a {type(model).__name__} of which it is not known what was "
            "done to it. Pack it, or give Stored.of(compressed)"
        )
    recipe, activations = _made[model]
    found = packed_layers(model)
    plain = {path: one for path, one in model.state_dict().items() if path not in recipe.tied}
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        for name, held in held_in(module).items():
            plain |= {
                f"{start}{name}.{i}": one for i, one in enumerate(held.parts) if isinstance(one, Tensor)
            }
        if isinstance(module, PackedModule):
            for name in module.names.split():
                plain.pop(f"{start}{name.replace('.', '_')}", None)
    return Stored({name: found[name] for name in recipe.layers}, plain, recipe, activations)


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

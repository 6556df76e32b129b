"""The blocks of a model that run one after another, as its lists and sequences of modules suggest.

Whether they can be run one at a time is not decided here: :mod:`isoloss.compress.replay` tries it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from isoloss.compress.layers import Layer


@dataclass(frozen=True)
class Block:
    """Modules that run as one: a decoder layer; of a sequence a layer with what follows it up to the next one.

    Attributes:
        name: of the first module with layers.
        modules: in their order; the last one's output is the block's.
        chain: number of the list or sequence that it is part of.
    """

    name: str
    modules: tuple[nn.Module, ...]
    chain: int


MOST = 0.9  # of a block's weights, for blocks in it to stand for it


def blocks(model: nn.Module, layers: Sequence[Layer], fine: bool = False) -> list[Block]:
    """Blocks in the order in which the model names them.

    Children of an ``nn.ModuleList`` that hold layers are a block each, but not experts; so are the parts of an
    ``nn.Sequential``, sequences in it unrolled. There are no blocks within blocks.

    Args:
        model: whose blocks.
        layers: that are to be compressed.
        fine: where blocks in a block hold nearly all of its weights (the blocks of a stage of a network for pictures),
            take those.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
        >>> [(block.name, len(block.modules)) for block in blocks(net, find(net).layers)]
        [('0', 2), ('2.0', 2)]
    """
    owners = {layer.module for layer in layers}
    found: list[Block] = []
    for chain, parts in enumerate(_chains("", model, owners)):
        for part in parts:
            inner = _inner(part, layers, owners) if fine else [part]
            found += [Block(name, modules, chain) for name, modules in inner]
    return found


def _inner(part: tuple[str, tuple[nn.Module, ...]], layers: Sequence[Layer], owners: set[nn.Module]) -> Parts:
    """The blocks in a block of one module, if they hold nearly all of it; otherwise itself."""
    name, modules = part
    if len(modules) > 1:
        return [part]
    inner = [one for parts in _chains(name, modules[0], owners) for one in parts]
    held = {module for _, inside in inner for own in inside for module in own.modules()}
    whole = set(modules[0].modules())
    sizes = {layer.name: layer.tensor.numel() for layer in layers if layer.module in whole}
    covered = sum(sizes[layer.name] for layer in layers if layer.name in sizes and layer.module in held)
    return inner if inner and covered >= MOST * sum(sizes.values()) else [part]


Parts = list[tuple[str, tuple[nn.Module, ...]]]


def _chains(path: str, module: nn.Module, owners: set[nn.Module]) -> Iterator[Parts]:
    parts: Parts = []
    if isinstance(module, nn.ModuleList):
        if "expert" not in path.rpartition(".")[2].lower():
            parts = [(name, (child,)) for name, child in _children(path, module) if _holds(child, owners)]
    elif _runs_in_order(module):
        parts = _sequence(list(_unrolled(path, module)), owners)
    if len(parts) > 1 and len({id(part[1][-1]) for part in parts}) == len(parts):
        yield parts
        return
    for name, child in _children(path, module):
        yield from _chains(name, child, owners)


def _sequence(items: Parts, owners: set[nn.Module]) -> Parts:
    """Each part with layers, and what follows it up to the next one; what comes first goes with the first."""
    times = Counter(id(module) for _, (module,) in items)
    out: Parts = []
    before: tuple[nn.Module, ...] = ()
    for name, (module,) in items:
        if _holds(module, owners):
            if times[id(module)] > 1:
                return []  # used twice: no chain
            out.append((name, (*before, module)))
            before = ()
        elif times[id(module)] > 1:
            continue  # one activation for all: it is run again
        elif out:
            out[-1] = (out[-1][0], (*out[-1][1], module))
        else:
            before = (*before, module)
    return out


def _unrolled(path: str, module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    for name, child in _children(path, module):
        if _runs_in_order(child):
            yield from _unrolled(name, child)
        else:
            yield name, (child,)


def _runs_in_order(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _children(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module._modules.items():  # named_children leaves out what comes twice
        if child is not None:
            yield (f"{path}.{name}" if path else name), child


def _holds(module: nn.Module, owners: set[nn.Module]) -> bool:
    return any(inner in owners for inner in module.modules())

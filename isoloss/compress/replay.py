"""Runs a model block by block: what came before comes from memory, what comes after is not run.

The model's own code does what lies between the blocks (masks, positions, sums over branches), so that nothing about
it is assumed. A finished block's ``forward`` gives what was kept of it. How much must be kept depends on the model:
what the last block gave, in most; of an encoder and a decoder what the last block of each gave; all of them in a
network with branches that reach far. :func:`survey` finds out, by comparing every block's inputs bit by bit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from isoloss.compress.chains import Block, blocks
from isoloss.compress.layers import Layer
from isoloss.compress.watch import Watch
from isoloss.measure.storages import bytes_of, is_tensor
from isoloss.measure.subject import call

Keep = Literal["last", "chain", "all"]
KEEPS: tuple[Keep, ...] = ("last", "chain", "all")
REFUSED = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


class _StopError(BaseException):
    """The rest of the model is not wanted; no ``except Exception`` of a model catches it."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Layers that are calibrated together.

    Attributes:
        name: of the block, or of the first layer.
        steps: its layers in the order of their first use; those of a step do not come one after another: they get the
            same input, or are the same part of several experts.
        done: how many blocks are finished before it.
        block: whether the stage is the block after those; otherwise it is what lies before that block.
    """

    name: str
    steps: tuple[tuple[Layer, ...], ...]
    done: int
    block: bool

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of all steps."""
        return tuple(layer for step in self.steps for layer in step)


@dataclass(frozen=True, eq=False)
class Plan:
    """In which order a model's layers are calibrated.

    Attributes:
        stages: in the order in which the model runs.
        blocks: in the order in which the model runs them.
        keep: outputs of which blocks are needed to go on.
        several: names of layers that are used in several stages.
        notes: what a reader must know.
        held: bytes that are kept of the first batch between stages, at most.
    """

    stages: tuple[Stage, ...]
    blocks: tuple[Block, ...]
    keep: Keep
    several: frozenset[str]
    notes: tuple[str, ...] = ()
    held: int = 0

    def kept(self, block: int, done: int) -> int:
        """The block whose output stands for that of ``block`` when ``done`` are finished."""
        return _source(self.blocks, self.keep, block, done)


def _source(order: Sequence[Block], keep: Keep, block: int, done: int) -> int:
    if keep == "last":
        return done - 1
    if keep == "all":
        return block
    return max(j for j in range(done) if order[j].chain == order[block].chain)


@dataclass
class _Calls:
    """What a whole run showed."""

    order: list[Block] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    position: int = 0
    uses: dict[str, list[int]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    families: dict[str, int] = field(default_factory=dict)
    latest: tuple[Tensor, int, int] | None = None

    def use(self, layer: Layer, x: Tensor) -> None:
        """A layer got an input."""
        known = layer.name in self.uses
        self.uses.setdefault(layer.name, []).append(self.position)
        if not known:
            step = self.families.get(_family(layer))
            if step is None:
                step = self._again(x)
            self.steps[layer.name] = step
            self.families[_family(layer)] = step
        self.latest = x, x._version, self.steps[layer.name]

    def _again(self, x: Tensor) -> int:
        """The step of the latest use, if that had the same input; otherwise a new one."""
        if self.latest is not None:
            y, version, step = self.latest
            place = [(z.untyped_storage()._cdata, z.storage_offset(), z.shape, z.stride()) for z in (x, y)]
            if place[0] == place[1] and x._version == version:
                return step
        return len(self.steps)


def _family(layer: Layer) -> str:
    """The same for the same part of several experts."""
    before, experts, after = layer.name.lower().rpartition("expert")
    return before + experts + (re.sub(r"\d+", "#", after) if experts else after)


def survey(model: nn.Module, layers: Sequence[Layer], inputs: Any) -> Plan:
    """Run a batch once, to see what is used when, and how blocks can be run one at a time.

    Args:
        model: in the state in which it is to be calibrated (:func:`calibrating`).
        layers: to be compressed.
        inputs: of one batch.
    """
    fine, coarse = blocks(model, layers, fine=True), blocks(model, layers)
    runs = [
        _whole_run(model, layers, found, inputs) for found in ([fine] if fine == coarse else [fine, coarse])
    ]
    if not any(seen.order for seen in runs):
        return _plan(layers, runs[-1], "last", ())
    for keep in KEEPS:
        for seen in runs:
            if seen.order and _holds(model, seen, keep, inputs):
                return _plan(layers, seen, keep, ())
    notes = ("blocks cannot be run one at a time, so all layers are calibrated in one pass",)
    return _plan(layers, _whole_run(model, layers, [], inputs), "last", notes)


def _plan(layers: Sequence[Layer], seen: _Calls, keep: Keep, notes: tuple[str, ...]) -> Plan:
    by_name = {layer.name: layer for layer in layers}
    members: dict[int, list[Layer]] = {}
    for name, positions in seen.uses.items():
        members.setdefault(positions[0], []).append(by_name[name])
    unused = tuple(layer for layer in layers if layer.name not in seen.uses)
    if unused:
        members.setdefault(2 * len(seen.order), []).extend(unused)
    stages = []
    for position in range(2 * len(seen.order) + 1):
        own = members.get(position, [])
        done, inside = divmod(position, 2)
        steps: dict[int, list[Layer]] = {}
        for layer in own:
            steps.setdefault(seen.steps.get(layer.name, -1), []).append(layer)
        ordered = tuple(tuple(steps[step]) for step in sorted(steps, key=lambda step: (step < 0, step)))
        if inside:  # a block is a stage also without layers: the next one needs its output
            stages.append(Stage(seen.order[done].name, ordered, done, True))
        elif own:
            stages.append(Stage(own[0].name, ordered, done, False))
    several = frozenset(name for name, positions in seen.uses.items() if len(set(positions)) > 1)
    each = [bytes_of(filter(is_tensor, tree_flatten(output)[0])) for output in seen.outputs] or [0]
    chains: dict[int, int] = {}
    for block, size in zip(seen.order, each, strict=False):
        chains[block.chain] = max(size, chains.get(block.chain, 0))
    held = {"last": max(each), "chain": sum(chains.values()), "all": sum(each)}[keep]
    return Plan(tuple(stages), tuple(seen.order), keep, several, notes, held)


def _whole_run(model: nn.Module, layers: Sequence[Layer], candidates: Sequence[Block], inputs: Any) -> _Calls:
    """One run of all, with what goes into every block and comes out, and when layers are used."""
    seen = _Calls()

    def used(layer: Layer, x: Tensor, *_: Any) -> None:
        seen.use(layer, x)

    def entering(block: Block) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, keywords: Any) -> None:
            seen.order.append(block)
            seen.inputs.append(digest((args, keywords)))
            seen.position += 1

        return enter

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        seen.outputs.append(copied(output))
        seen.position += 1

    with ExitStack() as stack:
        for block in candidates:
            first, last = block.modules[0], block.modules[-1]
            hooks = [first.register_forward_pre_hook(entering(block), with_kwargs=True)]
            hooks.append(last.register_forward_hook(leave))
            for hook in hooks:
                stack.callback(hook.remove)
        stack.enter_context(Watch(layers, used, used, used))
        seen.inputs.append(digest(call(model, inputs)))
    return seen


def _holds(model: nn.Module, seen: _Calls, keep: Keep, inputs: Any) -> bool:
    """Whether every block gets the very inputs that it gets in a whole run, and so does the end."""
    if len(seen.outputs) != len(seen.order):
        return False
    for done in range(1, len(seen.order) + 1):

        def give(block: int, done: int = done) -> Any:
            return seen.outputs[_source(seen.order, keep, block, done)]

        found: list[str] = []

        def note(module: nn.Module, args: Any, keywords: Any, into: list[str] = found) -> None:
            into.append(digest((args, keywords)))
            raise _StopError

        with ExitStack() as stack:
            stack.enter_context(remembering(seen.order[:done], give))
            if done < len(seen.order):
                hook = seen.order[done].modules[0].register_forward_pre_hook(note, with_kwargs=True)
                stack.callback(hook.remove)
            try:
                found.append(digest(call(model, inputs)))
            except _StopError:
                pass
            except REFUSED:
                return False
        if found != [seen.inputs[done]]:
            return False
    return True


@contextmanager
def remembering(
    done: Sequence[Block], give: Callable[[int], Any], copy: Callable[[Any], Any] | None = None
) -> Iterator[None]:
    """Finished blocks give what is kept of them instead of running: a copy, made by ``copy`` (default :func:`copied`)."""
    made = copied if copy is None else copy
    with ExitStack() as stack:
        for i, block in enumerate(done):
            for module in block.modules[:-1]:
                stack.enter_context(_instead(module, _first))
            stack.enter_context(_instead(block.modules[-1], lambda *_, i=i, **__: made(give(i))))
        yield


def _first(*args: Any, **keywords: Any) -> Any:
    return args[0] if args else next(iter(keywords.values()))


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


@contextmanager
def ending(plan: Plan, stage: Stage, take: Callable[[Any], None] | None = None) -> Iterator[None]:
    """The model stops behind a stage. Of a block, its output goes to ``take``."""
    hook: Any = None
    if stage.block:

        def out(module: nn.Module, args: Any, output: Any) -> None:
            if take is not None:
                take(copied(output))
            raise _StopError

        hook = plan.blocks[stage.done].modules[-1].register_forward_hook(out)
    elif stage.done < len(plan.blocks):

        def stop(module: nn.Module, args: Any) -> None:
            raise _StopError

        hook = plan.blocks[stage.done].modules[0].register_forward_pre_hook(stop)
    try:
        yield
    except _StopError:
        pass
    finally:
        if hook is not None:
            hook.remove()


def copied(value: Any) -> Any:
    """A tree of tensors, detached and with memory of its own, so that nothing overwrites it."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def digest(value: Any) -> str:
    """Of all tensors and numbers in a tree: the same for the same bits."""
    found = hashlib.sha256()
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            found.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            plain = leaf.detach().cpu().contiguous().reshape(-1)
            found.update(plain.view(torch.uint8).numpy() if plain.numel() else b"")
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            found.update(repr(leaf).encode())
    return found.hexdigest()


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """The model as it is calibrated: eval mode, no gradients, no caches of generation, no fused paths that hide layers;
    all as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for config in {id(c): c for c in _configs(model)}.values():
            for name, value in (("use_cache", False), ("_experts_implementation", "eager")):
                if getattr(config, name, None) not in (None, value):
                    stack.callback(setattr, config, name, getattr(config, name))
                    setattr(config, name, value)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            model.eval()
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode


def _configs(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and not isinstance(config, (dict, nn.Module)):
            yield config

"""Tensors as storages: how many bytes live, which ones autograd keeps, and copies of a model without numbers."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from isoloss.measure.dispatch import Mode
from isoloss.measure.kernels import UNSEEN, scratch
from isoloss.measure.subject import Batch, Subject


class Tally(Mode):
    """Bytes of the storages that operators made and that still live, and the most there were at once.

    Args:
        known: tensors whose storages are counted elsewhere.
        empty: whether the tensors have no numbers, so that an operator that needs them is refused.

    Example:
        >>> with Tally() as tally:
        ...     x = torch.ones(1000)
        ...     y = x.view(10, 100) + 1
        ...     del x
        >>> tally.now, tally.peak
        (4000, 8000)
    """

    def __init__(self, known: Iterable[Tensor] = (), empty: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.empty = empty
        self.now = 0
        self.peak = 0
        self._held: set[int] = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inside = scratch(func, args, kwargs or {})
        if self.empty and func.name().partition(".")[0] in UNSEEN:
            raise NotImplementedError(f"{func.name()} keeps a workspace")
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.layout is torch.strided:
                self._add(value)
        self.peak = max(self.peak, self.now + inside)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._held:
            self._held.add(key)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


@contextmanager
def saved_by_module(model: nn.Module, known: Sequence[Tensor]) -> Iterator[dict[str, int]]:
    """Bytes that autograd keeps for the backward pass, by the module that ran; a storage counts once."""
    kept: dict[str, int] = {}
    seen = {t.untyped_storage()._cdata for t in known}
    stack: list[str] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                name = stack[-1] if stack else "(outside)"
                kept[name] = kept.get(name, 0) + storage.nbytes()
        return tensor

    def entering(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leaving(*_: Any) -> None:
        stack.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(entering(name)))
        handles.append(module.register_forward_hook(leaving, always_call=True))
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield kept
    finally:
        for handle in handles:
            handle.remove()


def is_tensor(value: Any) -> bool:
    """Whether it is one."""
    return isinstance(value, Tensor)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of the storages, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def shapes(inputs: Any) -> str:
    """The shapes of the tensors in a batch's inputs, to say what was measured.

    Example:
        >>> shapes({"ids": torch.zeros(4, 128), "mask": torch.zeros(4, 128)})
        '4x128, 4x128'
    """
    return ", ".join("x".join(map(str, v.shape)) for v in tree_leaves(inputs) if is_tensor(v))


def copies(
    subject: Subject, batch: Batch, fake: bool
) -> tuple[nn.Module, Batch, AbstractContextManager[Any]]:
    """A copy of the model, the batch, and what to run them in: with numbers or without."""
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    if not fake:
        return copy.deepcopy(subject.model), batch, nullcontext()
    empty = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(empty):
        model = copy.deepcopy(subject.model)
    return model, tree_map(lambda v: empty.from_tensor(v) if is_tensor(v) else v, batch), _quietly(empty)


@contextmanager
def _quietly(mode: AbstractContextManager[Any]) -> Iterator[None]:
    """The mode, without what it logs of an operator that fails: the error itself says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        with mode:
            yield
    finally:
        logger.disabled = before

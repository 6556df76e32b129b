r"""Bytes that every operator moves, and its arithmetic intensity, against the machine's measured roofline.

A dispatch mode sees every operator as torch executes it. An operator reads each storage among its inputs once, as
far as it touches it, and writes each result once; a view moves nothing; a lookup reads what it looks up, not the
table. Nothing is assumed to be fused and nothing to stay in a cache from one operator to the next: what runs out of
a cache moves less than is counted here, so the time :math:`\max(F/P, B/W)` that the roofline gives may then be
undercut. What a kernel moves to and fro inside itself is not seen.

Sources: Kim et al. 2023, Full Stack Optimization of Transformer Inference, arXiv:2302.14017; Williams, Waterman,
Patterson 2009, Roofline, Communications of the ACM 52(4).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isoloss.measure.dispatch import Mode
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.measure.operators import bound, work_of
from isoloss.measure.roofline import Ceiling, Roofline
from isoloss.measure.storages import shapes
from isoloss.measure.subject import Subject, examples_of


@dataclass(frozen=True)
class Moved:
    """All calls of one operator.

    Attributes:
        name: of the operator.
        calls: how often it ran.
        flops: of all calls, by :mod:`isoloss.measure.operators`; 0 where none is known.
        read, written: bytes of all calls.
        seconds: that all calls took, at their fastest; NaN where they were not timed.
        floor: least seconds by the roofline; NaN where there is none.
    """

    name: str
    calls: int
    flops: int
    read: int
    written: int
    seconds: float = math.nan
    floor: float = math.nan

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    @property
    def intensity(self) -> float:
        """FLOPs for a byte."""
        return self.flops / self.moved if self.moved else math.nan


@dataclass(frozen=True)
class Traffic:
    """What a pass moves.

    Attributes:
        operators: the largest first; those that move nothing are left out.
        what: the pass and its batch.
        examples: of the batch.
        ceiling: of the machine; None where none was given.
        threads: of torch, in the timed pass.
        spent: what finding out cost.
    """

    operators: tuple[Moved, ...]
    what: str
    examples: int
    ceiling: Ceiling | None
    threads: int
    spent: Spent

    def total(self) -> Moved:
        """The sum over operators.

        Example:
            >>> a = Moved("mm", 2, 100, 30, 10, 1.0, 0.5)
            >>> Traffic((a, a), "forward", 1, None, 1, Spent(0.0, 0.0)).total().moved
            80
        """
        parts = self.operators
        return Moved(
            "all", sum(p.calls for p in parts), sum(p.flops for p in parts), sum(p.read for p in parts),
            sum(p.written for p in parts), sum(p.seconds for p in parts), sum(p.floor for p in parts),
        )  # fmt: skip

    def measurements(self) -> list[Measurement]:
        """Bytes moved for each example and intensity; with a roofline the least time, and its share of the time."""
        whole = self.total()
        how = f"{self.what}; operators as executed, nothing fused and nothing kept in a cache between them"

        def one(name: str, value: float, se: float, unit: str, why: str, of: str = "") -> Measurement:
            return Measurement(name, value, se, unit, of, why, self.spent)

        out = [
            one("bytes_moved", whole.moved / self.examples, 0.0, "byte/example", how),
            one("intensity", whole.intensity, 0.0, "FLOP/byte", how),
        ]
        for each in self.operators:
            out.append(one("bytes_moved", each.moved / self.examples, 0.0, "byte/example", how, each.name))
        if self.ceiling is not None:
            top = self.ceiling
            how = (
                f"{self.what}; least time of every operator at {top.flops / 1e9:.3g} GFLOP/s and "
                f"{top.bandwidth / 1e9:.3g} GB/s ({top.threads} threads, {top.dtype}), over what all took"
            )
            out.append(one("roofline_seconds", whole.floor, math.nan, "s", how))
            if whole.seconds > 0:
                out.append(one("roofline_share", whole.floor / whole.seconds, math.nan, "share", how))
        return out


@dataclass
class _Sum:
    calls: int = 0
    flops: int = 0
    read: int = 0
    written: int = 0
    seconds: float = 0.0
    floor: float = 0.0


class _Mode(Mode):
    def __init__(self, ceiling: Ceiling | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sums: dict[str, _Sum] = {}
        self.ceiling = ceiling

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = hasattr(func, "_schema")
        if known:
            with self:  # what is made of other operators is counted as those
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        began = time.perf_counter()
        out = func(*args, **kwargs)
        seconds = time.perf_counter() - began
        read, written = moved(func, args, kwargs, out) if known else (0, 0)
        if read or written:
            work = work_of(func, args, kwargs, out, {})
            flops = work.flops if work is not None else 0
            own = self.sums.setdefault(func.name().partition(".")[0].removeprefix("aten::"), _Sum())
            own.calls += 1
            own.flops += flops
            own.read += read
            own.written += written
            own.seconds += seconds
            own.floor += self.ceiling.seconds(flops, read + written) if self.ceiling else math.nan
        return out


def moved(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> tuple[int, int]:
    """Bytes that one call reads and writes.

    Args:
        operator: an overload: ``torch.ops.aten.mm.default``.
        args, kwargs, out: its call and its result.

    Example:
        >>> a, b = torch.ones(3, 5), torch.ones(5, 7)
        >>> moved(torch.ops.aten.mm.default, (a, b), {}, a @ b)
        (200, 84)
        >>> moved(torch.ops.aten.t.default, (a,), {}, a.t())
        (0, 0)
    """
    base = operator.name().partition(".")[0].removeprefix("aten::").rstrip("_")
    if operator.is_view or base in _NOTHING:
        return 0, 0
    given = bound(operator, args, kwargs)
    results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
    written = sum(_bytes(value) for value in {id(value): value for value in results}.values())
    if base in _LOOKUPS:
        rest = [value for name, value in given.items() if name != _LOOKUPS[base]]
        return written + _each(rest), written
    if base in _PLACES and operator._schema.is_mutable:
        put = given[_PLACES[base]]
        rest = [value for name, value in given.items() if name != "self"]
        return _each(rest), _bytes(put) if isinstance(put, Tensor) else 0
    # What is only written over is not read: copy_, fill_, zero_, out=.
    only = {"self"} if base in _OVERWRITES else set()
    only |= {entry.name for entry in operator._schema.arguments if entry.is_out}
    if base in ("reshape", "contiguous", "_to_copy", "to") and _same_storage(given, results):
        return 0, 0
    return _each([value for name, value in given.items() if name not in only]), written


def _each(values: list[Any]) -> int:
    """Bytes of tensors, a storage that several share counted once, by the largest part."""
    found: dict[int, int] = {}
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            key = value.untyped_storage()._cdata if value.layout is torch.strided else id(value)
            # Parts of one storage side by side (q, k, v of one product) are read each.
            offset = value.storage_offset() if value.layout is torch.strided else 0
            key = hash((key, offset))
            found[key] = max(found.get(key, 0), _bytes(value))
    return sum(found.values())


def _bytes(tensor: Tensor) -> int:
    """That are behind a tensor: repeated rows, of stride 0, count once."""
    if tensor.layout is not torch.strided:
        return tensor.element_size() * tensor.numel()
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride or not length else 1
    return size


def _same_storage(given: Mapping[str, Any], results: list[Tensor]) -> bool:
    first = given.get("self")
    return (
        isinstance(first, Tensor)
        and len(results) == 1
        and first.layout is torch.strided
        and results[0].layout is torch.strided
        and first.untyped_storage()._cdata == results[0].untyped_storage()._cdata
    )


# Operators that allocate, or give a tensor another name or shape, and touch no number.
_NOTHING = frozenset({
    "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "detach", "alias",
    "lift_fresh", "_unsafe_view", "_reshape_alias", "resize", "set", "_local_scalar_dense",
})  # fmt: skip
_OVERWRITES = frozenset({"copy", "fill", "zero", "normal", "uniform", "bernoulli"})
# Operator -> the argument of which it reads only as much as it gives.
_LOOKUPS = {"embedding": "weight", "index": "self", "index_select": "self", "gather": "self"}
# Operator -> what it puts into places of another tensor, the rest of which it leaves alone when it works in place.
_PLACES = {"index_put": "values", "scatter": "src", "index_copy": "source"}


def traffic(
    subject: Subject, training: bool = False, roof: Roofline | None = None, repeats: int = 5
) -> Traffic:
    """Bytes and FLOPs of every operator of a pass over the subject's first batch, in eval mode.

    Args:
        subject: what is measured.
        training: forward and backward; else forward without gradients.
        roof: of the machine: then operators have a least time.
        repeats: passes, of which each operator's fastest counts; 0: nothing is timed.

    Example:
        >>> from torch import nn
        >>> batch = (torch.ones(64, 100), torch.zeros(64).long())
        >>> subject = Subject(nn.Linear(100, 50), [batch], nn.functional.cross_entropy)
        >>> [(one.name, one.read, one.written, one.flops) for one in traffic(subject).operators]
        [('addmm', 45800, 12800, 640000)]
    """
    batch = subject.batches[0]
    threads = torch.get_num_threads()
    dtype = next((str(p.dtype).rpartition(".")[2] for p in subject.model.parameters()), "float32")
    ceiling = _ceiling(roof, threads, dtype)
    passes = []
    with timed() as watch, subject.measuring():
        for _ in range(max(1, repeats) + (repeats > 0)):
            with _Mode(ceiling) as mode:
                if training:
                    subject.loss(batch).backward()  # type: ignore[no-untyped-call]
                else:
                    with torch.no_grad():
                        subject.predict(batch[0])
            if training:
                subject.model.zero_grad()
            passes.append(mode.sums)
    operators = []
    for name, own in passes[-1].items():
        best = min(each[name].seconds for each in passes if name in each) if repeats else math.nan
        operators.append(Moved(name, own.calls, own.flops, own.read, own.written, best, own.floor))
    what = f"{'forward and backward' if training else 'forward'}, batch {shapes(batch[0])}"
    ordered = tuple(sorted(operators, key=lambda one: -one.moved))
    return Traffic(ordered, what, examples_of(batch), ceiling, threads, watch.spent())


def _ceiling(roof: Roofline | None, threads: int, dtype: str) -> Ceiling | None:
    """That of the model's type, float32's where it has none; of the nearest number of threads measured below."""
    if roof is None:
        return None
    known = [c for c in roof.ceilings if c.dtype == dtype] or [
        c for c in roof.ceilings if c.dtype == "float32"
    ]
    return max((c for c in known if c.threads <= threads), key=lambda c: c.threads, default=known[0])


def probe(subject: Subject, roof: Roofline | None = None) -> Traffic:
    """:func:`traffic` of a forward pass, timed."""
    return traffic(subject, roof=roof)

r"""What calibration data say about each layer: second moments of its inputs, means, ranges, counts of tokens.

Of a layer that sees inputs :math:`x_1 \dots x_n` (a row for each token or position),

.. math:: H = \frac1n \sum_t x_t x_t^T

is all that the output error of a changed weight depends on:
:math:`\frac1n \sum_t \|(W - Q) x_t\|^2 = \mathrm{tr}\,(W - Q) H (W - Q)^T`.

Inputs are caught where the multiplication happens, by the memory of the weight, so that it does not matter which
module or function multiplies. Layers that see the same input (query, key and value) share one matrix.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isoloss.compress.layers import Layer
from isoloss.compress.watch import Convolved, Watch
from isoloss.errors import NoAnswer

RECENT = 4  # inputs that are remembered, to see that the next layer gets the same one
TILE = 192  # columns of a tile of a second moment; its upper triangle is not computed
NUMBERS = 1 << 24  # of patches at a time


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration data say about one layer.

    Attributes:
        layer: its name.
        count: rows that it saw: tokens, or positions of a convolution.
        second: H, float32 (groups, in, in); one group but for grouped convolutions. None if the layer only looks
            up. Layers with the same inputs hold the same tensor.
        mean, low, high: of every input, float32 (groups * in,).
        fisher: mean squared gradient of the loss of an example, by weight, float32 (out, in); where asked for.
        counts: of an embedding, how often each row was looked up, int64 (rows,).
    """

    layer: str
    count: int
    second: Tensor | None = None
    mean: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    fisher: Tensor | None = None
    counts: Tensor | None = None

    @property
    def hessian(self) -> Tensor:
        """H (in, in) of the only group.

        Raises:
            ValueError: there are several groups, or inputs were not seen.
        """
        if self.second is None:
            raise ValueError(
                f"{self.layer} has no second moments of inputs: it was looked up, not multiplied"
            )
        if self.second.shape[0] != 1:
            raise ValueError(f"{self.layer} has {self.second.shape[0]} groups: take .second")
        return self.second[0]


@dataclass
class _Part:
    """Sums over the rows of one input."""

    rows: int
    second: Tensor
    total: Tensor
    low: Tensor
    high: Tensor


@dataclass
class _Sums:
    """Sums over all inputs so far of the layers that share them."""

    rows: int
    second: Tensor
    total: Tensor
    low: Tensor
    high: Tensor

    def add(self, part: _Part) -> None:
        self.rows += part.rows
        self.second += part.second  # float64 += float32
        self.total += part.total
        self.low = torch.minimum(self.low, part.low)
        self.high = torch.maximum(self.high, part.high)

    def copy(self) -> _Sums:
        return _Sums(self.rows, self.second.clone(), self.total.clone(), self.low, self.high)


@dataclass
class _Seen:
    """An input that was added up lately; held, so that its memory is not another's."""

    input: Tensor
    version: int
    how: tuple[Any, ...]
    part: int

    def same(self, x: Tensor, how: tuple[Any, ...]) -> bool:
        own = self.input
        return (
            self.how == how
            and own.untyped_storage()._cdata == x.untyped_storage()._cdata
            and own.storage_offset() == x.storage_offset()
            and own.shape == x.shape
            and own.stride() == x.stride()
            and self.version == x._version
        )


@dataclass
class Collector:
    """Adds up the statistics of layers while a model runs.

    Args:
        layers: to watch.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = torch.nn.Linear(2, 3)
        >>> collector = Collector(find(net).layers)
        >>> with torch.no_grad(), collector.watching():
        ...     _ = net(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> [found] = collector.statistics().values()
        >>> found.count, found.hessian.tolist()
        (2, [[5.0, 1.0], [1.0, 2.0]])
    """

    layers: Sequence[Layer]
    _sums: dict[str, _Sums] = field(default_factory=dict)
    _counts: dict[str, Tensor] = field(default_factory=dict)
    _parts: list[_Part] = field(default_factory=list)
    _of: dict[str, list[int]] = field(default_factory=dict)
    _recent: deque[_Seen] = field(default_factory=lambda: deque(maxlen=RECENT))
    _count: Tensor | None = None

    def watching(self, count: Tensor | None = None) -> _Batch:
        """A block in which one batch runs, with gradients off.

        Args:
            count: which positions count, bool, in the order in which layers see them; a layer that sees another number
                of rows counts them all. None: all count.
        """
        self._count = None if count is None else count.reshape(-1)
        return _Batch(self, Watch(self.layers, self._multiplied, self._convolved, self._looked_up))

    def _multiplied(self, layer: Layer, x: Tensor) -> None:
        self._note(layer, x, (), lambda: _of_rows(self._counting(x.reshape(-1, x.shape[-1]))))

    def _convolved(self, layer: Layer, x: Tensor, how: Convolved) -> None:
        key = (how, layer.tensor.shape[2:])
        self._note(layer, x, key, lambda: _of_patches(x, how, tuple(layer.tensor.shape[2:])))

    def _looked_up(self, layer: Layer, index: Tensor) -> None:
        found = torch.bincount(self._counting(index.reshape(-1)), minlength=layer.shape[0])
        self._counts[layer.name] = self._counts[layer.name] + found if layer.name in self._counts else found

    def _counting(self, rows: Tensor) -> Tensor:
        return rows if self._count is None or len(self._count) != len(rows) else rows[self._count]

    def _note(self, layer: Layer, x: Tensor, how: tuple[Any, ...], make: Callable[[], _Part]) -> None:
        seen = next((one for one in self._recent if one.same(x, how)), None)
        if seen is None:
            part = make()
            if not bool(torch.isfinite(part.total).all()):
                raise ValueError(
                    f"the inputs of {layer.name} hold NaN or infinite numbers. Look at the calibration data, or at the "
                    "layers before it"
                )
            seen = _Seen(x, x._version, how, len(self._parts))
            self._parts.append(part)
            self._recent.append(seen)
        self._of.setdefault(layer.name, []).append(seen.part)

    def _finish(self) -> None:
        """Add the batch to the sums. Layers share one as long as every batch gave them the same inputs."""
        holders: dict[int, dict[tuple[int, ...], list[str]]] = {}
        for name in {**self._sums, **self._of}:
            holder = id(self._sums[name]) if name in self._sums else 0
            holders.setdefault(holder, {}).setdefault(tuple(self._of.get(name, ())), []).append(name)
        for groups in holders.values():
            for i, (parts, names) in enumerate(groups.items()):
                held = self._sums.get(names[0])
                if held is None:
                    held = _nothing(self._parts[parts[0]])
                elif i < len(groups) - 1:
                    held = held.copy()
                for part in parts:
                    held.add(self._parts[part])
                self._sums |= dict.fromkeys(names, held)
        self._forget()

    def _forget(self) -> None:
        self._parts.clear()
        self._of.clear()
        self._recent.clear()

    def reached(self, layer: Layer) -> bool:
        """Whether any batch so far came to the layer."""
        return layer.name in self._sums or layer.name in self._counts

    def statistics(self) -> dict[str, Statistics]:
        """Layer -> its statistics, of those that a batch came to (:func:`refuse_unreached` says which are missing)."""
        made: dict[int, tuple[Tensor, Tensor]] = {}
        out = {}
        for layer in (layer for layer in self.layers if self.reached(layer)):
            counts = self._counts.get(layer.name)
            sums = self._sums.get(layer.name)
            if sums is None:
                assert counts is not None
                out[layer.name] = Statistics(layer.name, int(counts.sum()), counts=counts)
                continue
            if id(sums) not in made:
                made[id(sums)] = (
                    (sums.second / sums.rows).float(),
                    (sums.total / sums.rows).float().flatten(),
                )
            second, mean = made[id(sums)]
            low, high = sums.low.flatten(), sums.high.flatten()
            out[layer.name] = Statistics(layer.name, sums.rows, second, mean, low, high, counts=counts)
        return out


def counted(inputs: Any) -> Tensor | None:
    """Which positions of a batch are no padding, by its ``attention_mask``; None: all.

    Example:
        >>> counted({"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[1, 1, 0]])}).tolist()
        [[True, True, False]]
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask.all()):
        return None
    return mask.bool()


def refuse_unreached(names: Iterable[str]) -> None:
    """Say which layers no calibration data came to, if there are any.

    Raises:
        NoAnswer: there are.
    """
    missed = list(names)
    if missed:
        more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        raise NoAnswer(
            f"no calibration data came to {', '.join(missed[:5])}{more}",
            "data that reach these layers, or to keep them (--keep), or to round them (--unreached nearest)",
        )


@dataclass
class _Batch:
    """A watch that adds its batch to the collector at the end; what was seen of a batch that failed is dropped."""

    collector: Collector
    watch: Watch

    def __enter__(self) -> None:
        self.watch.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.watch.__exit__(kind, value, trace)  # type: ignore[no-untyped-call]
        if kind is None:
            self.collector._finish()
        else:
            self.collector._forget()


def _nothing(like: _Part) -> _Sums:
    low, high = torch.full_like(like.low, torch.inf), torch.full_like(like.high, -torch.inf)
    return _Sums(
        0, torch.zeros_like(like.second, dtype=torch.float64), torch.zeros_like(like.total), low, high
    )


def _of_rows(x: Tensor) -> _Part:
    """Of inputs, one a row."""
    rows = x.float()
    return _Part(
        rows.shape[0],
        gram(rows)[None],
        (rows.new_ones(1, rows.shape[0]) @ rows).double(),  # much faster than .sum(0)
        rows.amin(0)[None],
        rows.amax(0)[None],
    )


def gram(rows: Tensor) -> Tensor:
    """:math:`X^T X`, by tiles of its lower triangle: about two thirds of the time of the whole.

    Example:
        >>> gram(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
        [[10.0, 2.0], [2.0, 4.0]]
    """
    width = rows.shape[1]
    if width < 2 * TILE:
        return rows.T @ rows
    out = rows.new_empty(width, width)
    for start in range(0, width, TILE):
        stop = min(start + TILE, width)
        out[start:stop, :stop] = rows[:, start:stop].T @ rows[:, :stop]
        out[:start, start:stop] = out[start:stop, :start].T
    return out


def _of_patches(x: Tensor, how: Convolved, kernel: tuple[int, ...]) -> _Part:
    """Of the patches that a convolution takes, examples at a time."""
    each = how.groups * (x.shape[1] // how.groups) * math.prod(kernel) * math.prod(x.shape[2:])
    found: _Part | None = None
    for part in torch.split(x, max(1, NUMBERS // max(each, 1))):
        rows = patches(part.float(), how, kernel)  # (groups, in, positions)
        own = _Part(
            rows.shape[2],
            gram(rows[0].T)[None] if how.groups == 1 else rows @ rows.mT,
            rows.sum(2).double(),
            rows.amin(2),
            rows.amax(2),
        )
        if found is None:
            found = own
            continue
        found.rows += own.rows
        found.second += own.second
        found.total += own.total
        found.low = torch.minimum(found.low, own.low)
        found.high = torch.maximum(found.high, own.high)
    assert found is not None
    return found


def patches(x: Tensor, how: Convolved, kernel: tuple[int, ...]) -> Tensor:
    """What a convolution multiplies its weights with, (groups, in / groups * kernel, positions).

    Args:
        x: (examples, channels, ...) with as many further dimensions as the kernel.
        how: stride, padding, dilation, groups.
        kernel: its sizes.
    """
    x = F.pad(x, [amount for each in reversed(how.padding) for amount in (each, each)])
    for i, size in enumerate(kernel):
        reach = how.dilation[i] * (size - 1) + 1
        x = x.unfold(2 + i, reach, how.stride[i])[..., :: how.dilation[i]]
    count, channels, dims = x.shape[0], x.shape[1], len(kernel)
    x = x.reshape(count, how.groups, channels // how.groups, *x.shape[2:])
    places, inside = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    return x.permute(1, 2, *inside, 0, *places).reshape(
        how.groups, channels // how.groups * math.prod(kernel), -1
    )

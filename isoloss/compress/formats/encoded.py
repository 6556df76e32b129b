"""A weight in its stored form, and what every format can do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from isoloss.compress.formats.rounding import Rounding

if TYPE_CHECKING:
    from isoloss.compress.formats.grid import Grid

Shape = tuple[int, ...]
Parts = Mapping[str, Tensor]
Layout = dict[str, tuple[torch.dtype, Shape]]
"""Part -> its dtype and shape; a length of -1 is free (the number of outliers)."""


class Format(Protocol):
    """What a weight can be stored as: settings that are the same for every weight.

    A weight of any shape is seen as a matrix with one row per output: ``(shape[0], product of the rest)``; a vector is
    one row.
    """

    @property
    def spec(self) -> str:
        """The format in words; ``formats.get`` reads them back."""
        ...

    def encode(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        *,
        rounding: Rounding = "nearest",
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """The weight in this format, each number rounded on its own.

        Args:
            weight: finite, any float dtype. float64 is rounded once, not through float32.
            importance: what an error at each weight counts, at least 0, shape of the weight's matrix or of one of its
                rows; read where something is searched (ranges by error, tables, vector codes).
            rounding: one of six ways; formats with uneven values know ``nearest`` alone.
            generator: of the random ways.

        Raises:
            ValueError: a weight that is empty, NaN or infinite, or that this format cannot hold.
        """
        ...

    def decode(self, parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The weight that stored parts stand for, computed in ``dtype``."""
        ...

    def layout(self, shape: Shape) -> Layout:
        """What is stored for a weight of this shape."""
        ...

    def size(self, shape: Shape) -> int:
        """Stored bits of a weight of this shape, scales, tables and indices counted."""
        ...


@dataclass(frozen=True, eq=False)
class Encoded:
    """A weight in its stored form.

    Args:
        format: how it is stored.
        shape: of the weight.
        parts: the stored tensors by name, as ``format.layout(shape)`` says.

    Raises:
        ValueError: a part is missing, unknown, or of another dtype or shape.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.linspace(-1, 1, 256).reshape(2, 128)
        >>> encoded = formats.get("int4/g64").encode(weight)
        >>> encoded.bits, encoded.bits_per_weight  # 4 bits a code, 16 for the scale of every 64
        (1088, 4.25)
        >>> {name: tuple(part.shape) for name, part in encoded.tensors().items()}
        {'codes': (2, 64), 'scale': (2, 2)}
        >>> again = formats.Encoded.from_tensors("int4/g64", (2, 128), encoded.tensors())
        >>> torch.equal(again.decode(), encoded.decode())
        True
    """

    format: Format
    shape: Shape
    parts: Parts

    def __post_init__(self) -> None:
        wanted = self.format.layout(self.shape)
        if set(wanted) != set(self.parts):
            raise ValueError(
                f"{self.format.spec} stores {', '.join(sorted(wanted))}, got {', '.join(sorted(self.parts))}"
            )
        for name, (dtype, dims) in wanted.items():
            got = self.parts[name]
            same = len(dims) == got.ndim and all(w in (-1, g) for w, g in zip(dims, got.shape, strict=True))
            if got.dtype != dtype or not same:
                raise ValueError(
                    f"{self.format.spec} of shape {self.shape} needs {name!r} as {dtype} of shape {dims}, "
                    f"got {got.dtype} of shape {tuple(got.shape)}"
                )

    @classmethod
    def from_tensors(cls, format: Format | str, shape: Shape, tensors: Parts) -> Encoded:
        """What :meth:`tensors` gave, read back.

        Raises:
            ValueError: the tensors are not what this format stores for this shape.
        """
        if isinstance(format, str):
            from isoloss.compress.formats.names import get

            format = get(format)
        return cls(format, tuple(shape), dict(tensors))

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the stored parts stand for, computed in ``dtype``, in its own shape."""
        return self.format.decode(self.parts, self.shape, dtype).reshape(self.shape)

    @property
    def bits(self) -> int:
        """Stored bits, exact: eight times the bytes of :meth:`tensors`."""
        return sum(8 * part.numel() * part.element_size() for part in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights."""
        return self.bits / math.prod(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors, contiguous, as a safetensors file takes them."""
        return {name: part.contiguous() for name, part in self.parts.items()}

    def grid(self) -> Grid:
        """The values that the codes stand for, where there is one code per weight.

        Raises:
            TypeError: the format has no such codes.
        """
        from isoloss.compress.formats.grid import grid_of

        return grid_of(self)

    def codes(self) -> Tensor:
        """The codes, unpacked: uint8, or int32 above eight bits, one row per output.

        Raises:
            TypeError: the format has no codes.
        """
        from isoloss.compress.formats.grid import codes_of

        return codes_of(self)


def rows_columns(shape: Shape) -> tuple[int, int]:
    """The matrix that a weight of this shape is seen as."""
    if not shape or math.prod(shape) == 0:
        raise ValueError(f"a weight needs at least one number and one dimension, got shape {tuple(shape)}")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))


def as_matrix(weight: Tensor) -> Tensor:
    """A weight as a matrix to compute with: float32, or float64 where it has it.

    Raises:
        ValueError: no numbers, NaN or infinite ones.
        TypeError: it holds no floats.
    """
    if not weight.is_floating_point():
        raise TypeError(f"a weight needs floats, got {weight.dtype}")
    matrix = weight.detach().reshape(rows_columns(tuple(weight.shape)))
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    if not torch.isfinite(matrix.sum()) and not bool(torch.isfinite(matrix).all()):
        bad = int((~torch.isfinite(matrix)).sum())
        raise ValueError(f"a weight needs finite numbers, got {bad} NaN or infinite of {matrix.numel()}")
    return matrix


def as_importance(importance: Tensor | None, matrix: Tensor) -> Tensor | None:
    """Importance in the matrix's dtype, one number per weight or per column.

    Raises:
        ValueError: another shape, a negative or a NaN.
    """
    if importance is None:
        return None
    rows, columns = matrix.shape
    if importance.numel() == rows * columns and importance.ndim > 1:
        importance = importance.reshape(rows, columns)
    elif importance.shape == (columns,):
        importance = importance[None, :]
    else:
        raise ValueError(
            f"importance needs the shape of the weight ({rows}, {columns}) or of a row, got {tuple(importance.shape)}"
        )
    importance = importance.detach().to(matrix)
    if not bool((importance >= 0).all()):
        raise ValueError("importance needs numbers of at least 0, got a negative one or a NaN")
    return importance


def layout_bits(layout: Layout) -> int:
    """Bits of what a layout without free lengths describes."""
    return sum(8 * dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


def prefixed(name: str, parts: Layout) -> Layout:
    """The layout of a part that itself has parts."""
    return {f"{name}.{key}": value for key, value in parts.items()}


def joined(groups: Mapping[str, Parts]) -> dict[str, Tensor]:
    """Parts of several encoded tensors under one roof: ``name.part``."""
    return {f"{name}.{key}": part for name, parts in groups.items() for key, part in parts.items()}


def below(name: str, parts: Parts) -> dict[str, Tensor]:
    """The parts under ``name``."""
    return {key.removeprefix(f"{name}."): part for key, part in parts.items() if key.startswith(f"{name}.")}

"""What solvers make of second moments: H damped, factored, in the order in which columns are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import rows_columns
from isoloss.compress.statistics import Statistics
from isoloss.errors import NoAnswer

Order = Literal["activation", "inverse", "natural"]
ORDERS: tuple[Order, ...] = ("activation", "inverse", "natural")

_HARDER = 10.0  # damping grows by so much where H cannot be factored
_MOST = 1.0  # of the mean diagonal, beyond which nothing is left of H


def refuse_damping(damp: float) -> None:
    """Refuse a share of the mean diagonal that is out of range.

    Raises:
        ValueError: it is.
    """
    if not 0 <= damp <= _MOST:
        raise ValueError(f"damping needs 0 to {_MOST:g} of the mean diagonal, got {damp}")


@dataclass(frozen=True, eq=False)
class Curvature:
    r"""The damped :math:`H + \lambda I` of one weight (or one group of its rows), columns in their order of rounding.

    ``moves`` is the Cholesky factor :math:`U` of its inverse, :math:`U^\top U = (H + \lambda I)^{-1}`, each row over its
    diagonal: an error :math:`d` left at column j is best made up for by adding :math:`d\,U_{jk}/U_{jj}` to the columns k
    behind it.

    Attributes:
        order: column of the weight at each place.
        second: (in, in), damped and in order.
        moves: (in, in), upper, ones on the diagonal.
        conditional: :math:`U_{jj}^{-2}`, what an error at each place costs once all columns behind it make up for it.
        damping: lambda over the mean diagonal, as it was used.
    """

    order: Tensor
    second: Tensor
    moves: Tensor
    conditional: Tensor
    damping: float

    def place(self) -> Tensor:
        """The place of each column: the inverse of ``order``."""
        return self.order.argsort()


def curvature(second: Tensor, damp: float, order: Order) -> Curvature:
    """H as a solver needs it.

    Damping is relative to the mean diagonal and grows tenfold as long as H cannot be factored. An input that was always
    0 has the damping alone: its weights are rounded to nearest and nothing is fed back from them.

    Args:
        second: (in, in).
        damp: 0.01 is usual.
        order: ``activation``, largest mean square first; ``inverse``, smallest diagonal of the inverse first;
            ``natural``.

    Raises:
        ValueError: settings out of range, H that is not finite or has a negative diagonal.
        NoAnswer: H cannot be factored at any damping.
    """
    refuse_damping(damp)
    if order not in ORDERS:
        raise ValueError(f"columns go in the order {', '.join(ORDERS)}, got {order!r}")
    exact = second.detach().double()
    diagonal = exact.diagonal()
    if not bool(torch.isfinite(exact).all()) or bool((diagonal < 0).any()):
        raise ValueError("second moments need finite numbers and a diagonal of at least 0")
    mean = float(diagonal.mean()) or 1.0
    while True:
        damped = exact.clone()
        damped.diagonal().add_(damp * mean)
        places = _ordered(damped, order)
        factor, failed = _upper(damped[places][:, places]) if places is not None else (damped, True)
        if not failed and places is not None:
            break
        if damp >= _MOST:
            raise NoAnswer(
                "second moments of inputs cannot be factored, even with damping", "more calibration data"
            )
        damp = min(max(damp * _HARDER, 1e-4), _MOST)
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=True)
    pivots = inverse.diagonal().clone()
    return Curvature(
        places,
        damped[places][:, places].float().contiguous(),
        (inverse / pivots[:, None]).float(),
        pivots.pow(-2).float(),
        damp,
    )


def _ordered(damped: Tensor, order: Order) -> Tensor | None:
    if order == "natural":
        return torch.arange(len(damped), device=damped.device)
    if order == "activation":
        return damped.diagonal().argsort(descending=True, stable=True)
    lower, failed = torch.linalg.cholesky_ex(damped)
    return None if int(failed) else torch.cholesky_inverse(lower).diagonal().argsort(stable=True)


def _upper(matrix: Tensor) -> tuple[Tensor, bool]:
    """R upper with R R^T the matrix, so that U = R^-1; whether that failed.

    It is the Cholesky factor of the matrix read backwards.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    return lower.flip(0, 1), bool(int(failed))


def needed(statistics: Statistics | None, solver: str, field: str) -> Tensor:
    """A field of the statistics.

    Raises:
        NoAnswer: it is not there.
    """
    found: Tensor | None = None if statistics is None else getattr(statistics, field)
    if found is None:
        what = {
            "second": "second moments of the layer's inputs",
            "fisher": "squared gradients of the weights",
        }[field]
        raise NoAnswer(f"{solver} needs {what}", "calibration data that go through this layer")
    return found


def seconds(weight: Tensor, second: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the weight, and the H of their inputs: all rows, or the parts of a grouped convolution.

    Raises:
        ValueError: H does not fit the weight.
    """
    rows, columns = rows_columns(tuple(weight.shape))
    if second.ndim != 3 or second.shape[1:] != (columns, columns) or rows % second.shape[0]:
        raise ValueError(
            f"a weight of {rows} rows and {columns} columns needs second moments of shape (1, {columns}, {columns}), or "
            f"one for each part of the rows, got {tuple(second.shape)}"
        )
    each = rows // second.shape[0]
    for k, part in enumerate(second):
        yield slice(k * each, (k + 1) * each), part


def importance_of(weight: Tensor, statistics: Statistics | None) -> Tensor | None:
    """The mean square of each weight's input, (out, in); of an embedding the count of each row; None without both."""
    if statistics is None:
        return None
    rows, columns = rows_columns(tuple(weight.shape))
    if statistics.second is not None:
        found = torch.empty(rows, columns)
        for part, second in seconds(weight, statistics.second):
            found[part] = second.diagonal().clamp(min=0)
        return found
    if statistics.counts is not None:
        return statistics.counts.float()[:, None].expand(rows, columns)
    return None

"""Residuals of a law and their exact derivatives, for many parameter vectors at once.

Both models work in free coordinates ``psi`` of shape (B, p): positive parameters as logarithms, the
coefficient of each power term as its log value at the centre of the data (so that coefficient and
exponent are nearly uncorrelated, and a change of units changes nothing), ties and fixed values folded
in through the affine map ``phi = base + psi @ spread`` to the law's own coordinates ``phi``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from isoloss.laws.dual import Dual
from isoloss.laws.law import Law
from isoloss.laws.power_sum import PowerSum

Array = np.ndarray[Any, np.dtype[Any]]


class Model(Protocol):
    """What the minimiser needs of a law on a table."""

    exact_hessian: bool

    def target(self, psi: Array) -> tuple[Array, Any]:
        """Predicted target, shape (B, n), and what the derivatives reuse."""

    def accumulate(self, state: Any, linear: Array, square: Array, log: bool) -> tuple[Array, Array]:
        """``sum_i linear_i grad m_i`` (B, p) and ``sum_i square_i grad m_i grad m_i' + linear_i hess m_i``.

        ``m`` is the log of the target if ``log``, else the target.
        """

    def information(self, state: Any, weights: Array, log: bool) -> Array:
        """``sum_i w_i grad m_i grad m_i'`` (B, p, p) with weights (n,): the square part of :meth:`accumulate` alone."""

    def jacobian(self, psi: Array, log: bool) -> Array:
        """``d m_i / d psi`` at one psi, shape (n, p)."""


@dataclass(frozen=True)
class _Piece:
    """One power term in free coordinates: ``exp(psi[:, index] @ slopes + offset)``."""

    index: Array  # (c,)
    slopes: Array  # (c, n), or (c, 1) for a term that is the same in every row
    offset: Array  # (n,) or (1,)


class PowerSumModel:
    """Closed-form derivatives of a :class:`~isoloss.laws.power_sum.PowerSum`.

    With shares ``s_k = T_k / f`` and slopes ``z_k``: ``grad log f = sum_k s_k z_k`` and
    ``hess log f = sum_k s_k z_k z_k' - grad grad'``. All sums over rows are matrix products with the
    fixed ``z_k z_l'``, so the cost per row and term is one exponential and a few multiplications.
    """

    exact_hessian = True

    def __init__(self, law: PowerSum, x: Mapping[str, Array], base: Array, spread: Array) -> None:
        names = law.names
        n = len(next(iter(x.values())))
        self.p = spread.shape[0]
        self.pieces: list[_Piece] = []
        for entry in law.terms({axis: np.log(value) for axis, value in x.items()}):
            z = np.zeros((len(names), n))
            z[names.index(entry.coefficient)] = 1.0
            for name, slope in entry.slopes.items():
                z[names.index(name)] += slope
            free = spread @ z
            free[np.abs(free) < 1e-13 * (1 + np.abs(z).max())] = 0.0
            index = np.flatnonzero(np.abs(free).max(axis=1) > 0)
            slopes, offset = free[index], base @ z
            if np.ptp(slopes, axis=1).max(initial=0.0) == 0.0 and np.ptp(offset) == 0.0:
                slopes, offset = slopes[:, :1], offset[:1]
            self.pieces.append(_Piece(index, slopes, offset))
        self.wide = [np.broadcast_to(piece.slopes, (len(piece.index), n)) for piece in self.pieces]
        self.cross = {
            (j, k): _products(self.pieces[j], self.pieces[k], n)
            for j in range(len(self.pieces))
            for k in range(j, len(self.pieces))
        }
        self.places = self._places()

    def target(self, psi: Array) -> tuple[Array, Any]:
        """Predicted target (B, n) and the terms."""
        terms = []
        total: Any = 0.0
        for piece in self.pieces:
            # 600 keeps exp finite: a start far outside the data gets a huge loss, not a NaN.
            t = np.exp(np.minimum(psi[:, piece.index] @ piece.slopes + piece.offset, 600.0))
            terms.append(t)
            total = total + t
        return total, (total, *terms)

    def accumulate(self, state: Any, linear: Array, square: Array, log: bool) -> tuple[Array, Array]:
        """See :class:`Model`."""
        total, *terms = state
        g = np.zeros((total.shape[0], self.p))
        weights = [t / total for t in terms] if log else terms
        # hess m = sum_k weight_k z_k z_k' - (grad grad' if log): the last joins the square part.
        square = square - linear if log else square
        blocks = []
        for j, piece in enumerate(self.pieces):
            share, part = linear * weights[j], square * weights[j]
            g[:, piece.index] += share @ self.wide[j].T
            share += part * weights[j]
            blocks.append(share @ self.cross[j, j])
            for k in range(j + 1, len(self.pieces)):
                blocks.append((part * weights[k]) @ self.cross[j, k])
        h = np.concatenate(blocks, axis=1) @ self.places
        return g, h.reshape(len(g), self.p, self.p)

    def information(self, state: Any, weights: Array, log: bool) -> Array:
        """See :class:`Model`."""
        total, *terms = state
        shares = [t / total for t in terms] if log else terms
        blocks = []
        for j, share in enumerate(shares):
            part = weights * share
            blocks += [(part * shares[k]) @ self.cross[j, k] for k in range(j, len(shares))]
        h = np.concatenate(blocks, axis=1) @ self.places
        return np.asarray(h.reshape(len(total), self.p, self.p))

    def _places(self) -> Array:
        """0/1 matrix from the blocks, side by side, to the cells of the Hessian: (sum c_j c_k, p*p)."""
        rows = []
        for j, a in enumerate(self.pieces):
            for k in range(j, len(self.pieces)):
                for r, c in itertools.product(a.index, self.pieces[k].index):
                    cell = np.zeros((self.p, self.p))
                    cell[r, c] += 1.0
                    if k > j:
                        cell[c, r] += 1.0
                    rows.append(cell.ravel())
        return np.array(rows).reshape(len(rows), self.p * self.p)

    def jacobian(self, psi: Array, log: bool) -> Array:
        """See :class:`Model`."""
        total, *terms = self.target(psi[None])[1]
        out = np.zeros((total.shape[1], self.p))
        for t, piece in zip(terms, self.pieces, strict=True):
            out[:, piece.index] += (piece.slopes * t).T
        return out / total.T if log else out


def _products(a: _Piece, b: _Piece, n: int) -> Array:
    """Slopes of ``a`` times slopes of ``b``, (n, c*d): the layout a matrix product over rows wants."""
    left, right = (np.broadcast_to(piece.slopes, (len(piece.index), n)) for piece in (a, b))
    both = left[:, None, :] * right[None, :, :]
    return np.ascontiguousarray(both.reshape(len(left) * len(right), n).T)


class DualModel:
    """Any law, differentiated by :class:`~isoloss.laws.dual.Dual`; second derivatives by Gauss-Newton."""

    exact_hessian = False

    def __init__(self, law: Law, x: Mapping[str, Array], base: Array, spread: Array) -> None:
        self.law, self.x, self.base, self.spread = law, x, base, spread
        self.n = len(next(iter(x.values())))
        self.logs = np.array([parameter.scale == "log" for parameter in law.parameters])
        self.live = np.flatnonzero(np.abs(spread).max(axis=0, initial=0.0) > 0)

    def _theta(self, psi: Array) -> Array:
        phi = self.base + psi @ self.spread
        return np.asarray(np.where(self.logs, np.exp(np.clip(phi, -600, 600)), phi))

    def target(self, psi: Array) -> tuple[Array, Any]:
        """Predicted target (B, n); a point outside the law's domain counts as infinitely bad."""
        theta = self._theta(psi)
        with np.errstate(all="ignore"):
            out = self.law.value(self._columns(theta), self.x)
        return np.broadcast_to(np.asarray(out, dtype=float), (len(psi), self.n)), psi

    @staticmethod
    def _columns(theta: Array) -> Sequence[Array]:
        return tuple(theta[:, p, None] for p in range(theta.shape[1]))

    def _gradients(self, psi: Array) -> tuple[Array, Array]:
        """Target (B, n) and its gradient in psi (B, p, n)."""
        theta = self._theta(psi)
        columns: list[Any] = list(self._columns(theta))
        for p in self.live:
            seed = columns[p] if self.logs[p] else np.ones_like(columns[p])
            columns[p] = Dual(columns[p], {int(p): seed})
        with np.errstate(all="ignore"):
            out = self.law.value(tuple(columns), self.x)
        value = out.value if isinstance(out, Dual) else np.asarray(out)
        partials = out.partials if isinstance(out, Dual) else {}
        shape = (len(psi), self.n)
        grad = np.zeros((len(psi), len(self.law.parameters), self.n))
        for index, partial in partials.items():
            grad[:, index] = np.broadcast_to(partial, shape)
        return np.broadcast_to(value, shape), self.spread @ grad

    def accumulate(self, state: Any, linear: Array, square: Array, log: bool) -> tuple[Array, Array]:
        """See :class:`Model`; the second-derivative term of ``m`` is left out."""
        value, grad = self._gradients(state)
        if log:
            grad = grad / value[:, None, :]
        g = np.einsum("bpn,bn->bp", grad, linear)
        return g, (grad * square[:, None, :]) @ grad.transpose(0, 2, 1)

    def information(self, state: Any, weights: Array, log: bool) -> Array:
        """See :class:`Model`."""
        value, grad = self._gradients(state)
        if log:
            grad = grad / value[:, None, :]
        return np.asarray((grad * weights) @ grad.transpose(0, 2, 1))

    def jacobian(self, psi: Array, log: bool) -> Array:
        """See :class:`Model`."""
        value, grad = self._gradients(psi[None])
        return np.asarray((grad[0] / value[0] if log else grad[0]).T)


def model_of(law: Law, x: Mapping[str, Array], base: Array, spread: Array) -> Model:
    """The fastest exact model of the law."""
    if isinstance(law, PowerSum):
        return PowerSumModel(law, x, base, spread)
    return DualModel(law, x, base, spread)

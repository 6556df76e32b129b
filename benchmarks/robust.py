"""The robust objective with exact derivatives, apart from isoloss: the judge's, and a good SciPy user's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DELTA = 1e-3


@dataclass(frozen=True)
class Robust:
    """Summed Huber loss of log residuals of ``E + A N^-alpha + B D^-beta``, rows weighed.

    Coordinates are ``(a, b, e, alpha, beta)``, with a and b the logs of the terms at the centre of the
    points: uncentred, a and alpha are correlated beyond 0.99 and every quasi-Newton method crawls.
    """

    log_n: Array
    log_d: Array
    log_loss: Array
    weights: Array
    centre: tuple[float, float]

    @classmethod
    def of(cls, params: Array, tokens: Array, loss: Array, weights: Array | None = None) -> Robust:
        """The objective on these points."""
        log_n, log_d = np.log(params), np.log(tokens)
        centre = (float(log_n.mean()), float(log_d.mean()))
        w = np.ones(len(loss)) if weights is None else np.asarray(weights, float)
        return cls(log_n - centre[0], log_d - centre[1], np.log(loss), w, centre)

    def centred(self, natural: Array) -> Array:
        """Coordinates of E, A, B, alpha, beta."""
        floor, a, b, alpha, beta = natural
        n, d = self.centre
        return np.array([np.log(a) - alpha * n, np.log(b) - beta * d, np.log(floor), alpha, beta])

    def uncentred(self, x: Array) -> Array:
        """``(a, b, e, alpha, beta)`` with A = exp(a), B = exp(b) at N = D = 1."""
        return np.array([x[0] + x[3] * self.centre[0], x[1] + x[4] * self.centre[1], x[2], x[3], x[4]])

    def _parts(self, x: Array) -> tuple[Array, Array]:
        """Residuals (n,) and the slopes of the log prediction (n, 5)."""
        terms = np.exp([x[0] - x[3] * self.log_n, x[1] - x[4] * self.log_d, np.full_like(self.log_n, x[2])])
        total = terms.sum(axis=0)
        shares = terms / total
        slopes = np.stack([*shares, -self.log_n * shares[0], -self.log_d * shares[1]], axis=1)
        return self.log_loss - np.log(total), slopes

    def residuals(self, x: Array) -> Array:
        """Log residuals (n,)."""
        return self._parts(x)[0]

    def jacobian(self, x: Array) -> Array:
        """Of the residuals, (n, 5)."""
        return -self._parts(x)[1]

    def value(self, x: Array) -> float:
        """The objective."""
        size = np.abs(self._parts(x)[0])
        inner = np.minimum(size, DELTA)
        return float(self.weights @ (inner * (size - 0.5 * inner)))

    def gradient(self, x: Array) -> Array:
        """Exact first derivatives (5,)."""
        r, slopes = self._parts(x)
        return np.asarray(-(self.weights * np.clip(r, -DELTA, DELTA)) @ slopes)

    def hessian(self, x: Array) -> Array:
        """Exact second derivatives (5, 5)."""
        r, slopes = self._parts(x)
        first = self.weights * np.clip(r, -DELTA, DELTA)
        second = self.weights * (np.abs(r) <= DELTA)
        out = (slopes * (second + first)[:, None]).T @ slopes
        shares = slopes[:, :3]
        for at, axis in ((0, -self.log_n), (1, -self.log_d), (2, None)):
            z = first * shares[:, at]
            out[at, at] -= z.sum()
            if axis is not None:
                out[at, at + 3] -= z @ axis
                out[at + 3, at] -= z @ axis
                out[at + 3, at + 3] -= z @ axis**2
        return out

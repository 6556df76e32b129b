"""One polynomial surface around the optima of several grids: for Li et al. 2025, Step Law, arXiv:2503.04715."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MOST = 0.1
"""In ln loss: a cell so far above its grid's least is no part of a bowl, however few cells there are."""
TURNS = 12  # of the robust weights
STEPS = 60  # of Levenberg and Marquardt at given weights
KNEE = 1.5  # standard deviations from which a residual counts less
BEYOND = 0.75  # of its own range, how far outside its grid an optimum is followed


@dataclass(frozen=True, eq=False)
class Bowl:
    """A fitted surface.

    Attributes:
        form: ``"cubic"`` or ``"parabola"``.
        centres: of each grid, (m, d).
        levels: ln loss there, (m,).
        covariances: of the centres, (m, d, d).
        common: covariance of their mean, (d, d): what the noise of the shape moves them by together.
        curvature: second derivatives at the centre, (d, d), positive definite.
        scatter: standard deviation of the residuals.
        freedom: rows less parameters.
    """

    form: str
    centres: Array
    levels: Array
    covariances: Array
    common: Array
    curvature: Array
    scatter: float
    freedom: int


def monomials(d: int, degree: int) -> list[tuple[int, ...]]:
    """Axes of each product of second order and above: ``(0, 0), (0, 1), (1, 1), (0, 0, 0), ...``.

    Example:
        >>> monomials(2, 2)
        [(0, 0), (0, 1), (1, 1)]
    """
    return [
        axes
        for order in range(2, degree + 1)
        for axes in itertools.combinations_with_replacement(range(d), order)
    ]


def bowl(z: Array, y: Array, codes: Array, degree: int) -> Bowl | None:
    """The surface ``y = level_g + P(z - centre_g)`` with one P for all grids, by robust least squares.

    Args:
        z: logs of what was varied, (n, d). y: ln loss, (n,). codes: grid of each row, 0 to m - 1.
        degree: of P, which has no linear part.

    Returns:
        None where P has no minimum at its centre.
    """
    m, d = int(codes.max()) + 1, z.shape[1]
    products = monomials(d, degree)
    size = m * (1 + d) + len(products)
    if len(y) <= size:
        return None
    low, high = (np.array([end(z[codes == g], axis=0) for g in range(m)]) for end in (np.min, np.max))
    span = np.maximum(high - low, 1e-9)
    box = (low - BEYOND * span, high + BEYOND * span)
    theta = _start(z, y, codes, products, m)
    weights = np.ones(len(y))
    scatter = 0.0
    for turn in range(TURNS):
        theta = _descend(theta, z, y, codes, weights, products, m, box)
        residuals = _residuals(theta, z, y, codes, products, m)[0]
        scatter = 1.4826 * float(np.median(np.abs(residuals))) * float(np.sqrt(len(y) / (len(y) - size)))
        if scatter < 1e-12:
            break
        fresh = 1.0 / np.maximum(1.0, np.abs(residuals) / (KNEE * scatter))
        if turn and np.max(np.abs(fresh - weights)) < 1e-6:
            break
        weights = fresh
    _, centres, shape = _parts(theta, m, d)
    curvature = np.zeros((d, d))
    for c, axes in zip(shape, products, strict=True):
        if len(axes) == 2:
            curvature[axes[0], axes[1]] += c
            curvature[axes[1], axes[0]] += c
    if np.linalg.eigvalsh(curvature).min() <= 0:
        return None
    _, jacobian = _residuals(theta, z, y, codes, products, m)
    inverse = np.linalg.pinv(jacobian.T @ (weights[:, None] * jacobian)) * scatter**2
    places = [m + g * d + np.arange(d) for g in range(m)]
    covariances = np.array([inverse[np.ix_(at, at)] for at in places])
    block = inverse[m : m + m * d, m : m + m * d].reshape(m, d, m, d)
    return Bowl(
        form="cubic" if degree == 3 else "parabola",
        centres=centres,
        levels=theta[:m],
        covariances=covariances,
        common=block.mean(axis=(0, 2)),
        curvature=curvature,
        scatter=scatter,
        freedom=len(y) - size,
    )


def _parts(theta: Array, m: int, d: int) -> tuple[Array, Array, Array]:
    """Levels (m,), centres (m, d), coefficients."""
    return theta[:m], theta[m : m + m * d].reshape(m, d), theta[m + m * d :]


def _start(z: Array, y: Array, codes: Array, products: list[tuple[int, ...]], m: int) -> Array:
    """Each grid's best cell, and the squares that fit the rows about it, kept positive."""
    best = np.array([np.flatnonzero(codes == g)[np.argmin(y[codes == g])] for g in range(m)])
    away, rise = z - z[best][codes], y - y[best][codes]
    squares = away**2
    found = np.linalg.lstsq(squares, rise, rcond=None)[0]
    typical = float(np.mean(rise) / max(np.mean(squares.sum(axis=1)), 1e-12))
    found = np.where(found > 0, found, max(typical, 1e-6))
    shape = [found[axes[0]] if len(axes) == 2 and axes[0] == axes[1] else 0.0 for axes in products]
    return np.concatenate([y[best], z[best].ravel(), shape])


def _residuals(
    theta: Array, z: Array, y: Array, codes: Array, products: list[tuple[int, ...]], m: int
) -> tuple[Array, Array]:
    """Model less rows, (n,), and its derivatives, (n, p)."""
    n, d = z.shape
    levels, centres, shape = _parts(theta, m, d)
    away = z - centres[codes]
    values = np.column_stack([np.prod(away[:, list(axes)], axis=1) for axes in products])
    slopes = np.zeros((n, d))
    for c, axes in zip(shape, products, strict=True):
        for place, axis in enumerate(axes):
            rest = [other for i, other in enumerate(axes) if i != place]
            slopes[:, axis] += c * np.prod(away[:, rest], axis=1)
    jacobian = np.zeros((n, len(theta)))
    rows = np.arange(n)
    jacobian[rows, codes] = 1.0
    for axis in range(d):
        jacobian[rows, m + codes * d + axis] = -slopes[:, axis]
    jacobian[:, m + m * d :] = values
    return levels[codes] + values @ shape - y, jacobian


def _descend(
    theta: Array,
    z: Array,
    y: Array,
    codes: Array,
    weights: Array,
    products: list[tuple[int, ...]],
    m: int,
    box: tuple[Array, Array],
) -> Array:
    """Levenberg and Marquardt at given weights; centres stay in their box."""
    d, damping = z.shape[1], 1e-3
    residuals, jacobian = _residuals(theta, z, y, codes, products, m)
    value = float(weights @ residuals**2)
    for _ in range(STEPS):
        gradient = jacobian.T @ (weights * residuals)
        normal = jacobian.T @ (weights[:, None] * jacobian)
        scale = np.maximum(np.diag(normal), 1e-12 * np.max(np.diag(normal)))
        step = np.linalg.solve(normal + np.diag(damping * scale), -gradient)
        trial = theta + step
        trial[m : m + m * d] = np.clip(trial[m : m + m * d].reshape(m, d), *box).ravel()
        fresh, slopes = _residuals(trial, z, y, codes, products, m)
        level = float(weights @ fresh**2)
        if level <= value:
            small = value - level <= 1e-13 * max(value, 1e-300)
            theta, residuals, jacobian, value = trial, fresh, slopes, level
            damping = max(damping / 5, 1e-12)
            if small:
                break
        else:
            damping *= 6
            if damping > 1e12:
                break
    return theta

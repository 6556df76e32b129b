"""What the data identify: information by direction, estimates at a bound, shares of the axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.coordinates import Coordinates
from isoloss.fitting.data import Data
from isoloss.fitting.minimise import Problem
from isoloss.laws.law import Law
from isoloss.laws.parts.composed import Composed

Array = np.ndarray[Any, np.dtype[Any]]

BLIND = 1e-7  # of the largest singular value: what is below is rounding
WIDE = 0.25  # a standard deviation of a quarter of the box: a 90 % interval fills it


@dataclass(frozen=True)
class Information:
    """What the rows say about the free coordinates near the optimum.

    Attributes:
        condition: ratio of the extreme singular values of the Jacobian, columns in units of their box.
        flat: the free coordinate moves along the least determined direction, (p,), unit length.
        flat_sd: standard deviation along it in units of the box; above 0.25 it is not determined.
    """

    condition: float
    flat: Array
    flat_sd: float


def information(
    problem: Problem, coordinates: Coordinates, psi: Array, weights: Array, spread: float
) -> Information:
    """Fisher information of the rows at ``psi`` for residuals of standard deviation ``spread``."""
    p = len(coordinates.names)
    jacobian = problem.model.jacobian(psi[:p], log=problem.objective.residual == "log")
    width = (coordinates.high - coordinates.low)[:p]
    scaled = jacobian * width * np.sqrt(weights)[:, None]
    for prior in problem.priors:
        row = spread * prior.slope(psi[None])[0, :p] / prior.sd * width
        scaled = np.vstack([scaled, row])
    _, singular, vt = np.linalg.svd(scaled, full_matrices=False)
    floor = max(singular[0], 1e-300) * 1e-14
    singular = np.maximum(singular, floor)
    if len(singular) < p:  # fewer rows than parameters: the missing directions are flat
        singular = np.append(singular, np.full(p - len(singular), floor))
        vt = np.linalg.svd(scaled, full_matrices=True)[2]
    return Information(float(singular[0] / singular[-1]), vt[-1], float(spread / singular[-1]))


def unseen(problem: Problem, coordinates: Coordinates, psi: Array) -> tuple[int, list[str], list[str]]:
    """Directions along which no prediction changes, whatever the noise: of a law with a link.

    Returns:
        How many; the free coordinates that take part; of these as many to hold, the link's own first.
    """
    law = coordinates.law
    if not (isinstance(law, Composed) and law.link is not None):
        return 0, [], []
    p = len(coordinates.names)
    jacobian = problem.model.jacobian(psi[:p], log=False)
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    _, singular, vt = np.linalg.svd(scaled)
    rank = int(np.sum(singular > BLIND * singular[0]))
    null = vt[rank:].T  # (p, how many)
    if len(scaled) <= p or not null.size:
        return 0, [], []
    loud = np.abs(null).max(axis=1) > 1e-3
    own = {law.slot_names[law.link.slug, parameter.name] for parameter in law.link.parameters}
    order = sorted((int(j) for j in np.flatnonzero(loud)), key=lambda j: coordinates.names[j] not in own)
    held: list[int] = []
    for j in order:  # a coordinate helps if holding it removes one more direction
        if np.linalg.matrix_rank(null[[*held, j]], tol=1e-3) > len(held):
            held.append(j)
    names = [coordinates.names[j] for j in np.flatnonzero(loud)]
    return null.shape[1], names, [coordinates.names[j] for j in held]


def at_bounds(coordinates: Coordinates, psi: Array) -> Array:
    """Which free coordinates (p,) lie on their box, for psi of shape (..., q): shape (..., p)."""
    p = len(coordinates.names)
    low, high, inner = coordinates.low[:p], coordinates.high[:p], psi[..., :p]
    return np.asarray(np.minimum(inner - low, high - inner) <= 1e-6 * (high - low))


def separation(law: Law, draws: Array, data: Data) -> tuple[float, float] | None:
    """90 % interval of the first axis' share of the total elasticity at the centre of the data.

    ``s = u_1 / (u_1 + u_2)`` with ``u_j = -d L / d ln x_j`` decides every plan that trades the two axes.
    None for laws of one axis, and where an axis may be 0: there is no log centre, and no such plan.
    """
    if len(law.axes) != 2 or len(draws) < 20 or law.may_be_zero:
        return None
    centre = {axis: np.array([np.exp(np.mean(np.log(data.x[axis])))]) for axis in law.axes}
    _, slopes = law.elasticities(draws, centre)
    u = [np.maximum(-slopes[axis][:, 0], 0.0) for axis in law.axes]
    total = u[0] + u[1]
    share = u[0][total > 0] / total[total > 0]
    if len(share) == 0:
        return None
    low, high = np.quantile(share, [0.05, 0.95])
    return float(low), float(high)

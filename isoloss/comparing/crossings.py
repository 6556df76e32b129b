"""Where pairs of curves cross: all sign changes of their difference, for every draw at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.comparing.levels import Level

Array = np.ndarray[Any, np.dtype[Any]]

PARTS = 8  # of a cell of the grid, looked at on the cubic through its ends
HALVINGS = 40  # of such a part, on the cubic
POLISH = 3  # Newton steps on the curves themselves
SAME = 1e-13  # curves this close, as a share of the loss, do not differ


@dataclass(frozen=True, eq=False)
class Crossings:
    """Every crossing of every draw, in order of draw and place.

    Attributes:
        draws: how many there are, K.
        draw: (M,) which one crosses.
        place: (M,) log scale.
        rising: (M,) whether A - B turns from negative to positive there: A is better below.
    """

    draws: int
    draw: Array
    place: Array
    rising: Array

    def counts(self) -> Array:
        """How often each draw crosses, (K,)."""
        return np.bincount(self.draw, minlength=self.draws)

    def first(self) -> tuple[Array, Array]:
        """Place and direction of the first crossing of every draw that has one."""
        index = np.unique(self.draw, return_index=True)[1]
        return self.place[index], self.rising[index]

    def last_before(self, s: float) -> Array:
        """The last place before ``s`` of every draw that crosses before it."""
        before = self.place < s
        draw, place = self.draw[before], self.place[before]
        ends = np.append(draw[1:] != draw[:-1], True) if len(draw) else np.zeros(0, bool)
        return np.asarray(place[ends])


def crossings(a: Level, b: Level, s: Array, difference: Array, slope: Array, size: Array) -> Crossings:
    """All crossings of the curves ``a`` and ``b``, theta by theta, on the range of ``s``.

    The cubic through the values and slopes at both ends of each cell of the grid shows the changes of sign,
    also two within one cell; each is then bisected on the cubic, and polished on the curves.

    Args:
        a, b: K thetas each.
        s: log scales, ascending, (n,).
        difference, slope: A - B and its derivative there, (K, n).
        size: the loss, to tell a difference from rounding, (K, n).

    Example:
        >>> import numpy as np
        >>> from isoloss.laws import get
        >>> a, b = (Level(get("power(tokens)"), np.array([theta])) for theta in ([2.0, 0.5], [1.0, 0.25]))
        >>> s = np.linspace(0, 6, 7)
        >>> (la, da), (lb, db) = a.over(s), b.over(s)
        >>> found = crossings(a, b, s, la - lb, da - db, la)
        >>> np.exp(found.place).round(6).tolist(), found.rising.tolist()
        ([16.0], [False])
    """
    t = np.linspace(0.0, 1.0, PARTS, endpoint=False)
    width = np.diff(s)
    ends = np.stack([difference[:, :-1], difference[:, 1:], slope[:, :-1] * width, slope[:, 1:] * width])
    fine = _cubic(ends[..., None], t)
    fine = np.concatenate([fine.reshape(len(difference), -1), difference[:, -1:]], axis=1)
    scale = np.concatenate([np.repeat(size[:, :-1], PARTS, axis=1), size[:, -1:]], axis=1)
    sign = np.sign(np.where(np.abs(fine) <= SAME * np.abs(scale), 0.0, fine))
    # where the curves are the same, the sign is that of the last place at which they were not
    known = np.maximum.accumulate(np.where(sign != 0, np.arange(sign.shape[1]), 0), axis=1)
    sign = np.take_along_axis(sign, known, axis=1)
    draw, at = np.nonzero(sign[:, 1:] * sign[:, :-1] < 0)
    after = sign[draw, at + 1]
    cell = at // PARTS
    own = ends[:, draw, cell]
    low, high = (at % PARTS) / PARTS, (at % PARTS + 1) / PARTS
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        past = _cubic(own, middle) * after > 0
        low, high = np.where(past, low, middle), np.where(past, middle, high)
    place = s[cell] + 0.5 * (low + high) * width[cell]
    return Crossings(len(difference), draw, _polished(a, b, draw, place, width[cell] / PARTS), after > 0)


def _polished(a: Level, b: Level, draw: Array, place: Array, most: Array) -> Array:
    if not len(draw):
        return place
    found = place
    for _ in range(POLISH):
        (la, da), (lb, db) = a.at(draw, found), b.at(draw, found)
        with np.errstate(all="ignore"):
            step = (la - lb) / (da - db)
        new = found - np.where(np.isfinite(step), step, 0.0)
        found = np.where(np.abs(new - place) <= most, new, place)  # else the curves touch: keep the cubic's
    return np.asarray(found)


def _cubic(ends: Array, t: Array) -> Array:
    """Hermite's cubic on [0, 1]; ``ends`` holds values at 0 and 1, then slopes at 0 and 1."""
    (y0, y1, d0, d1), u = ends, 1.0 - t
    return np.asarray(u * u * ((1 + 2 * t) * y0 + t * d0) + t * t * ((3 - 2 * t) * y1 - u * d1))

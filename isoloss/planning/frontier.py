"""Measured variants of models in a table: which are worth their bytes, with the errors of the measurements counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from isoloss.runs import Runs

Array = np.ndarray[Any, np.dtype[Any]]
Place = Literal["frontier", "dominated", "not resolved"]

ORIGINAL = "original"
NEEDED = ("bytes", "bits_post", "rise", "rise_se")


@dataclass(frozen=True)
class Variant:
    """One measured model: the original, or a compressed one.

    Attributes:
        model: which it is a variant of.
        data: what the loss was measured on.
        name: ``original``, a format, or how formats were mixed.
        solver: how it was made; empty of the original.
        params: of the model, as the law counts them; NaN where the table does not say.
        bits: stored bits of an encoded weight.
        bytes: of all tensors.
        loss, loss_se: measured, and its standard error over the data.
        rise, rise_se: of the loss above the original's, paired.
        row: in the table.
    """

    model: str
    data: str
    name: str
    solver: str
    params: float
    bits: float
    bytes: float
    loss: float
    loss_se: float
    rise: float
    rise_se: float
    row: int

    @property
    def is_original(self) -> bool:
        """Whether nothing was done to it."""
        return self.name == ORIGINAL


def variants(runs: Runs, size: str = "params") -> tuple[Variant, ...]:
    """The rows of a table that ``isoloss compress --frontier`` wrote.

    Args:
        runs: with ``bytes``, ``bits_post``, ``rise``, ``rise_se``; ``model``, ``data``, ``variant``, ``solver``,
            ``params``, ``loss`` and ``loss_sd`` where they are known.
        size: the column that counts parameters.

    Raises:
        ValueError: a column is missing, or a number of a row that is needed.

    Example:
        >>> from isoloss.runs import from_rows
        >>> row = {"variant": "int4", "bytes": 600, "bits_post": 4.25, "rise": 0.02, "rise_se": 0.003}
        >>> variants(from_rows([row]))[0].bits
        4.25
    """
    bytes_, bits, rise, rise_se = runs.numeric(*NEEDED)

    def numbers(name: str) -> Array:
        return runs.numeric(name)[0] if name in runs else np.full(len(runs), math.nan)

    def words(name: str) -> list[str]:
        return [str(value) for value in runs[name]] if name in runs else [""] * len(runs)

    for name, values in zip(NEEDED[:3], (bytes_, bits, rise), strict=True):
        if not np.isfinite(values).all():
            row = int(runs.rows[int(np.argmin(np.isfinite(values)))])
            raise ValueError(
                f"{runs.source}, row {row}: needed a number in {name}, got none. Leave the row out with --where"
            )
    own, params, loss, loss_se = (numbers(name) for name in (size, "params", "loss", "loss_sd"))
    return tuple(
        Variant(
            model, data, name, solver, float(own[i] if size in runs else params[i]), float(bits[i]), float(bytes_[i]),
            float(loss[i]), float(loss_se[i]), float(rise[i]), float(rise_se[i]), int(runs.rows[i]),
        )
        for i, (model, data, name, solver) in enumerate(
            zip(words("model"), words("data"), words("variant"), words("solver"), strict=True)
        )
    )  # fmt: skip


def gap(one: Variant, other: Variant) -> tuple[float, float]:
    """Loss of one less that of the other, and its standard error.

    Of one model the rises are compared, which were measured on the same examples; their errors are taken as independent.
    """
    if one.model == other.model:
        return one.rise - other.rise, math.hypot(one.rise_se, other.rise_se)
    return one.loss - other.loss, math.hypot(one.loss_se, other.loss_se)


def places(found: Sequence[Variant], coverage: float = 0.9) -> tuple[Place, ...]:
    r"""Of every variant whether it is worth its bytes, among those whose loss was measured on the same data.

    ``frontier``: every other that is no larger has a higher loss, beyond errors. ``dominated``: one that is no larger has a
    lower loss, beyond errors. ``not resolved``: neither. Beyond errors is
    :math:`|\Delta L| > z \sqrt{s_1^2 + s_2^2}`, z such that all m comparisons of a variant hold together with this coverage
    or more (Bonferroni): that of a two-sided interval of :math:`1 - (1 - \mathrm{coverage}) / m`.

    Example:
        >>> common = ("m", "d")
        >>> rows = [("int2", 2.0, 200, 0.5, 0.01), ("int3", 3.0, 300, 0.1, 0.01), ("int4", 4.0, 400, 0.2, 0.01),
        ...         ("int5", 5.0, 500, 0.095, 0.01)]
        >>> found = [Variant("m", "d", n, "", 1.0, b, s, 1 + r, 0.1, r, e, 0) for n, b, s, r, e in rows]
        >>> places(found)
        ('frontier', 'frontier', 'dominated', 'not resolved')
    """
    out: list[Place] = []
    for one in found:
        others = [
            other
            for other in found
            if other is not one
            and other.data == one.data
            and (other.bytes < one.bytes or (other.bytes == one.bytes and gap(other, one)[0] != 0))
        ]
        gaps = [gap(other, one) for other in others]
        z = NormalDist().inv_cdf(1 - (1 - coverage) / (2 * max(1, len(others))))
        if any(value < 0 and -value > z * se for value, se in gaps):
            out.append("dominated")
        elif all(value > z * se for value, se in gaps):
            out.append("frontier")
        else:
            out.append("not resolved")
    return tuple(out)


def hull(found: Sequence[Variant]) -> tuple[Variant, ...]:
    """The variants of one model on the lower convex hull of rise over bytes, from the smallest on; the original ends it.

    Between two of them lies whatever mixes their formats over the layers, if rises add up. A rise below 0 counts as 0: that
    fewer bits lower the loss is noise.

    Example:
        >>> rows = [(200, 0.5), (300, 0.4), (400, 0.1), (500, 0.05), (600, 0.06), (700, -0.01)]
        >>> [v.bytes for v in hull([Variant("", "", "", "", 1.0, 1.0, s, 1.0, 0.0, r, 0.0, 0) for s, r in rows])]
        [200, 400, 500, 700]
    """
    kept: list[Variant] = []
    for one in sorted(found, key=lambda v: (v.bytes, v.rise)):
        if kept and _height(one) >= _height(kept[-1]):
            continue
        while len(kept) > 1 and _above(kept[-2], kept[-1], one):
            kept.pop()
        kept.append(one)
    whole = next((v for v in found if v.is_original), None)
    if whole is not None and whole.bytes > kept[-1].bytes:
        kept.append(whole)
    return tuple(kept)


def _height(one: Variant) -> float:
    return max(one.rise, 0.0)


def _above(left: Variant, middle: Variant, right: Variant) -> bool:
    """Whether the middle one lies on or above the line through the others."""
    along, rise = right.bytes - left.bytes, _height(right) - _height(left)
    return (_height(middle) - _height(left)) * along >= rise * (middle.bytes - left.bytes)

"""Where more tokens begin to hurt: the closed form for terms that grow as a power of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoloss.laws.hoffmann import Hoffmann
from isoloss.laws.law import Array, Law
from isoloss.laws.parts.composed import Composed


def critical_tokens(law: Law, theta: Any, **axes: Any) -> Array:
    r"""The tokens at which the loss of a quantised model is least: beyond, more data hurt.

    The data term :math:`B D^{-\beta}` falls and the term :math:`S D^{g}` of quantisation rises; they balance at

    .. math:: D_{\mathrm{crit}} = \left(\frac{\beta B}{g S}\right)^{1/(g + \beta)}

    Args:
        law: ``hoffmann + ptq`` or ``hoffmann + float-quantisation``, with factors of `params` if wanted.
        theta: shape (..., P): a published theta, a fit's, or its draws.
        axes: `params` and the columns of the parts (``params=1e9, bits_post=4``), without `tokens`.

    Returns:
        Shape (..., *X) [tokens]; infinite where the term is 0, NaN where a factor is not defined.

    Raises:
        ValueError: another base, another number of terms, or a factor of tokens.

    Source:
        Kumar et al. 2024, arXiv:2411.04330 (g = gamma_D); Sun et al. 2025, arXiv:2501.02423 (g = beta).

    Example:
        >>> from isoloss.laws import get
        >>> law = get("hoffmann + float-quantisation")
        >>> found = critical_tokens(
        ...     law, law.theta("sun-2025"), params=1e9, exponent_bits=[2, 4], mantissa_bits=[1, 3], scale_block=128)
        >>> [f"{tokens:.3g}" for tokens in found]
        ['3.93e+11', '2.73e+13']
    """
    if not (
        isinstance(law, Composed) and isinstance(law.base, Hoffmann) and len(law.terms) == 1 and not law.link
    ):
        raise ValueError(
            f"critical_tokens needs hoffmann with one term, such as 'hoffmann + ptq', got {law.spec!r}"
        )
    term = law.terms[0]
    if term.tokens_power is None or any(factor.scales == "tokens" for factor in law.factors):
        raise ValueError(
            f"critical_tokens needs a term and factors that leave a power of the tokens, got {law.spec!r}"
        )
    if "tokens" in axes:
        raise ValueError("critical_tokens finds the tokens. Leave tokens out")
    there = law.given(axes)
    if not (isinstance(there, Composed) and there.terms):
        raise ValueError(f"critical_tokens needs the columns of {term.slug}. Add {term.columns[0]}")
    one, many = (law.effects(theta, **axes, tokens=tokens) for tokens in (1.0, 1e12))
    moved = [f.slug for f in law.factors if not np.array_equal(one[f.slug], many[f.slug], equal_nan=True)]
    if moved:
        raise ValueError(f"critical_tokens needs factors that do not follow the tokens. Leave out {moved[0]}")
    named = dict(zip(law.names, np.moveaxis(np.asarray(theta, dtype=float), -1, 0), strict=True))
    size = one[term.slug]
    points = tuple(range(np.ndim(size) - np.ndim(named["beta"])))
    own = (
        named
        if term.tokens_power in term.shared
        else {inner: named[name] for (slug, inner), name in law.slot_names.items() if slug == term.slug}
    )
    power, beta, b = (
        np.expand_dims(v, tuple(-1 - i for i in points))
        for v in (own[term.tokens_power], named["beta"], named["B"])
    )
    with np.errstate(divide="ignore"):
        return np.asarray((beta * b / (power * size)) ** (1 / (power + beta)))

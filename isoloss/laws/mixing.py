"""Ye et al. 2024, Data Mixing Laws, arXiv:2403.16952."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Parameter, positive

SUM = 1e-3  # how far a printed mixture may be from 1 in sum
_PREFIX = "share_"


@dataclass(frozen=True)
class Mixing(Law):
    r"""Loss on one kind of text is exponential in the shares of the training data.

    .. math:: L(r) = c + k \exp\Big(\sum_j t_j r_j\Big) = c + \prod_j K_j^{r_j},\quad K_j = k e^{t_j}

    Shares sum to 1, so that of the paper's k and t_j only the K_j = k exp(t_j) can be told: another k moves
    every t_j by the same amount and changes no loss. K_j is the reducible loss after training on domain j alone.

    Inputs:
        share_DOMAIN: r_j, share of the training tokens that comes from the domain [0 to 1], 0 included; one column
        per domain, all that there are: ``mixing(share_code, share_web)``, ``mixing(share_books, share_github,
        share_cc)``.
    Returns:
        Loss on one validation set [nats/token]. Another validation set is another fit.
    Valid for:
        Runs of one size and one length that differ in their mixture alone, inside the mixtures seen. A mixture
        near 0 of a domain says little of its K.
    Source:
        The law of several training domains; the form with log c and log k + t r is in the authors' code
        (yegcjs/mixinglaws, ``mixture_law_``).
    Example:
        >>> law = Mixing(("share_code", "share_web"))
        >>> law.evaluate([1.0, 0.2, 3.2], share_code=[0, 0.5, 1], share_web=[1, 0.5, 0]).round(3).tolist()
        [4.2, 1.8, 1.2]
    """

    reads: tuple[str, ...] = ("share_code", "share_web")

    paper = "Ye et al. 2024, arXiv:2403.16952"

    def __post_init__(self) -> None:
        if len(set(self.reads)) != len(self.reads) or len(self.reads) < 2:
            raise ValueError(
                f"mixing needs the shares of two domains or more, each once, got {', '.join(self.reads) or 'none'}. "
                "Write mixing(share_code, share_web)"
            )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The shares."""
        return self.reads

    @property
    def may_be_zero(self) -> tuple[str, ...]:  # type: ignore[override]
        """All of them."""
        return self.reads

    @property
    def domains(self) -> tuple[str, ...]:
        """The shares' names without their prefix."""
        return tuple(name.removeprefix(_PREFIX) for name in self.reads)

    @property
    def parameters(self) -> tuple[Parameter, ...]:  # type: ignore[override]
        """The floor, and one per domain."""
        return (
            positive("c", 1e-6, 1e4, "irreducible loss, whatever the mixture"),
            *(positive(f"K_{name}", 1e-20, 1e6, f"reducible loss, all data {name}") for name in self.domains),
        )

    @property
    def formula(self) -> str:  # type: ignore[override]
        """One line."""
        return "c + " + " * ".join(
            f"K_{name}^{share}" for name, share in zip(self.domains, self.reads, strict=True)
        )

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """The shares of a mixture sum to 1: with one left out, its K would be taken for 1."""
        total = np.sum([x[share] for share in self.reads], axis=0)
        words = f"{' + '.join(self.reads)} = 1 (to {SUM:g}, every domain named)"
        return np.abs(total - 1.0) <= SUM, words

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The floor lies below the losses, a pure domain may be anything below them: far from it K is a slope."""
        top = float(np.max(y))
        return {
            "c": (1e-6 * top, top),
            **{f"K_{name}": (1e-20 * top, 1e3 * top) for name in self.domains},
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        floor, *pure = theta
        exponent: Any = 0.0
        for reducible, share in zip(pure, self.reads, strict=True):
            exponent = exponent + np.log(reducible) * x[share]
        return floor + np.exp(exponent)

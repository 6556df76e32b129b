"""Laws that are a sum of power terms: log-sum-exp of functions affine in the log axes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Law


@dataclass(frozen=True)
class Term:
    """``coefficient * exp(sum_j exponent_j * slope_j)``, ``slope_j`` a linear combination of log axes.

    ``Term("A", {"alpha": -log["params"]})`` is ``A N^-alpha``.
    """

    coefficient: str
    slopes: Mapping[str, Any]


def term(coefficient: str, slopes: Mapping[str, Any] | None = None) -> Term:
    """One term of a :class:`PowerSum`; without slopes a constant."""
    return Term(coefficient, slopes or {})


class PowerSum(Law):
    r"""A law :math:`\sum_k c_k \exp(\sum_j e_j v_{kj}(\log x))`.

    In ``(log c, e)`` each term is log-linear, so value, gradient and exact Hessian of the log are a
    softmax away, for any number of thetas at once, and the log loss is convex in the log axes.
    A subclass gives :meth:`terms` in place of ``value``.
    """

    @abstractmethod
    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The terms at the given natural logs of the axes."""

    def power_terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """See :meth:`Law.power_terms`: all of them."""
        return self.terms(log)

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """The sum of the terms; see :meth:`Law.value`."""
        by_name = dict(zip(self.names, theta, strict=True))
        total: Any = 0.0
        for entry in self.terms({axis: np.log(x[axis]) for axis in self.axes}):
            exponent: Any = 0.0
            for name, slope in entry.slopes.items():
                exponent = exponent + by_name[name] * slope
            size = np.exp(exponent) if entry.slopes else 1.0
            total = total + by_name[entry.coefficient] * size
        return total

"""Goyal et al. 2024, Scaling Laws for Data Filtering, arXiv:2404.07177."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Parameter, positive, real

MOST_EPOCHS = 10_000
_PREFIX = "pool_"
_WORTH = ("b", -2.0, -1e-3, "exponent of samples seen for the first time")
_LIFE = ("tau", 0.02, 1e4, "epochs after which a repeated sample is worth half")


@dataclass(frozen=True)
class DataFiltering(Law):
    r"""Each pass over a pool of data is worth less, and a pool of better data is worn out sooner.

    .. math::
        y(n) = d + \Big(\frac{n_1}{n_0}\Big)^{b_1} \prod_{j \ge 2} \Big(\frac{n_j}{n_{j-1}}\Big)^{b_j},\quad
        b_j = \sum_i w_i b_i\, 2^{-(j-1) w_i/\tau_i}

    n_j are the samples seen up to the end of epoch j, up to n in the last one. For one pool w = 1. For p equal
    pools w_i = 1/p: the exponent is the mean of theirs, and their half-lives in epochs of the union are p tau_i, as
    in the paper. For unequal pools w_i is the pool's share of the union.

    Inputs:
        samples: n, samples seen, repeats included [count]. pool: distinct samples [count]. Several pools:
        ``data-filtering(pool_a, pool_b)``, distinct samples that the run took from each [count], 0 for a pool it
        left out; runs on single pools are enough.
    Returns:
        Error [0 to 1].
    Valid for:
        Runs of one model that differ in data and in length. The exponents of pools can be told from their
        half-lives only by runs that repeat: a run of one epoch says nothing of tau.
    Source:
        The utility of a pool and its half-life, and the mixture of pools. The paper's a is n_0^-b: its code scales the
        samples by one a for all pools, which is n_0 here. Its published pools are not shipped: the code that fitted
        them multiplies d by the later epochs too, which the formula does not.
    Example:
        >>> law = DataFiltering()
        >>> law.evaluate([4e6, 0.1, -0.16, 6.7], samples=[1e7, 1e8], pool=1.28e7).round(4).tolist()
        [0.9636, 0.747]
    """

    reads: tuple[str, ...] = ()

    target = "error"
    paper = "Goyal et al. 2024, arXiv:2404.07177"

    def __post_init__(self) -> None:
        if len(set(self.reads)) != len(self.reads) or "samples" in self.reads:
            raise ValueError(
                f"data-filtering needs the columns of its pools, each once, got {', '.join(self.reads)}. "
                "Write data-filtering(pool_a, pool_b)"
            )

    @property
    def pools(self) -> tuple[str, ...]:
        """Columns of the pools."""
        return self.reads or ("pool",)

    @property
    def names_of_pools(self) -> tuple[str, ...]:
        """Their names: without the prefix."""
        return tuple(column.removeprefix(_PREFIX) for column in self.pools)

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Samples seen, and the pools."""
        return ("samples", *self.pools)

    @property
    def may_be_zero(self) -> tuple[str, ...]:  # type: ignore[override]
        """Pools, if there are several."""
        return self.pools if len(self.pools) > 1 else ()

    @property
    def parameters(self) -> tuple[Parameter, ...]:  # type: ignore[override]
        """Two of the task, two of each pool."""
        name, low, high, words = _WORTH
        life, shortest, longest, halved = _LIFE
        out = [
            positive("n_0", 1e-12, 1e40, "samples at which the reducible error is 1"),
            positive("d", 1e-6, 1e2, "irreducible error"),
        ]
        for pool in self.names_of_pools if self.reads else ("",):
            end, of = (f"_{pool}", f", {pool}") if pool else ("", "")
            out += [
                real(name + end, low, high, words + of),
                positive(life + end, shortest, longest, halved + of),
            ]
        return tuple(out)

    @property
    def formula(self) -> str:  # type: ignore[override]
        """One line."""
        if not self.reads:
            return "d + (n_1/n_0)^b prod_j (n_j/n_(j-1))^(b 2^(-(j-1)/tau))"
        worth = " + ".join(f"w b_{pool} 2^(-(j-1) w/tau_{pool})" for pool in self.names_of_pools)
        return f"d + (n_1/n_0)^b_1 prod_j (n_j/n_(j-1))^b_j, b_j = {worth}"

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """A run takes samples from some pool, and repeats them a number of times that can be counted."""
        total = np.sum([x[pool] for pool in self.pools], axis=0)
        words = f"{' + '.join(self.pools)} above 0 and at most {MOST_EPOCHS:,} epochs"
        return (total > 0) & (x["samples"] <= MOST_EPOCHS * total), words

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The scale lies far around the samples, the floor below the errors."""
        seen, top = x["samples"], float(np.max(y))
        return {
            "n_0": (1e-12 * float(seen.min()), 1e12 * float(seen.max())),
            "d": (1e-6 * top, top),
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        scale, floor, *pairs = theta
        total: Any = 0.0
        for pool in self.pools:
            total = total + x[pool]
        shares = [x[pool] / total for pool in self.pools]
        epochs = x["samples"] / total
        most = int(np.ceil(np.max(getattr(epochs, "value", epochs))))

        def exponent(passed: int) -> Any:
            out: Any = 0.0
            for share, worth, life in zip(shares, pairs[::2], pairs[1::2], strict=True):
                out = out + share * worth * np.exp2(-passed * share / life)
            return out

        log = exponent(0) * np.log(np.minimum(x["samples"], total) / scale)
        for passed in range(1, most):
            within = np.minimum(np.maximum(epochs, float(passed)), passed + 1.0)
            log = log + exponent(passed) * np.log(within / passed)
        return floor + np.exp(log)

r"""Costs of several models side by side, and where one cost ranks two models against another.

One cost stands for the others only where they agree. A network with shared layers has fewer parameters and as many
FLOPs; one with experts has more parameters and fewer FLOPs; at equal FLOPs a deep one is slower than a wide one.
So costs are given together, and pairs of models that two costs rank in opposite order are named.

Source: Dehghani, Arnab, Beyer, Vaswani, Tay 2022, The Efficiency Misnomer, arXiv:2110.12894.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from isoloss.measure.measurement import Measurement
from isoloss.runs.finding import Finding

__all__ = ["COMPARED", "KINDS", "Comparison", "Contradiction", "compare", "kendall", "missing"]

KINDS: Mapping[str, tuple[str, ...]] = {
    "parameters": ("params",),
    "FLOPs": ("flops",),
    "memory or bytes moved": ("memory", "bytes_moved"),
    "latency": ("latency",),
    "throughput": ("throughput",),
}
"""Kinds of cost that belong together -> how the names of their measurements begin."""

COMPARED = (
    "params",
    "params_active",
    "bytes_params",
    "flops_forward",
    "flops_step",
    "memory_activations",
    "memory_peak",
    "memory_peak_measured",
    "bytes_moved",
    "latency",
    "throughput",
    "runtime_per_token",
    "energy",
)
"""What is compared if nothing is named; parts and second readings of these (buffers, CPU time) are not."""

MORE_IS_CHEAPER = ("throughput",)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contradiction:
    """Two models that two costs rank in opposite order, beyond noise.

    Attributes:
        first, second: models; ``first`` is cheaper by ``by``, ``second`` by ``against``. Where qualities are known
            ``first`` is at least as good.
        by, against: costs.
        saved: factor by which ``first`` is cheaper by ``by``.
        paid: factor by which it is dearer by ``against``.
    """

    first: str
    second: str
    by: str
    against: str
    saved: float
    paid: float

    def __str__(self) -> str:
        return (
            f"{self.first} against {self.second}: {self.saved:.3g} times cheaper by {self.by}, "
            f"{self.paid:.3g} times dearer by {self.against}"
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Costs of models, together.

    Attributes:
        models: their names.
        costs: names of the costs that all models have.
        values, errors: (models, costs), as measured; standard errors.
        units: of the costs.
        tau: (costs, costs), Kendall's tau-b between the rankings of the models; 1: the same order everywhere.
        contradictions: pairs ranked in opposite order, the gravest first.
        unsure: (model, model, cost): their order by this cost is lost in its noise, or its noise is not known.
        findings: what a reader must know.
    """

    models: tuple[str, ...]
    costs: tuple[str, ...]
    values: Floats
    errors: Floats
    units: Mapping[str, str]
    tau: Floats
    contradictions: tuple[Contradiction, ...]
    unsure: tuple[tuple[str, str, str], ...]
    findings: tuple[Finding, ...]

    def table(self) -> str:
        """All costs of all models as text, standard errors with them."""
        head = ["model", *(f"{cost} [{self.units[cost]}]" for cost in self.costs)]
        rows = [
            [name, *(_cell(v, e) for v, e in zip(self.values[i], self.errors[i], strict=True))]
            for i, name in enumerate(self.models)
        ]
        wide = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, wide, strict=True))
            )
            for row in [head, *rows]
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row for each model, for :func:`isoloss.runs.from_rows`; ``_se`` columns where there is noise."""
        noisy = [cost for j, cost in enumerate(self.costs) if np.any(self.errors[:, j] > 0)]
        return [
            {"run": name}
            | {cost: float(self.values[i, j]) for j, cost in enumerate(self.costs)}
            | {f"{cost}_se": float(self.errors[i, self.costs.index(cost)]) for cost in noisy}
            for i, name in enumerate(self.models)
        ]


def _cell(value: float, error: float) -> str:
    sure = f" ± {error:.2g}" if error > 0 else " ± ?" if math.isnan(error) else ""
    return f"{value:.4g}{sure}"


def kendall(x: Floats, y: Floats) -> float:
    r"""Kendall's tau-b, :math:`(C - D)/\sqrt{(n_0 - n_x)(n_0 - n_y)}`; NaN where one of both is constant.

    Example:
        >>> kendall(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
        0.333...
    """
    a = np.sign(np.subtract.outer(x, x))
    b = np.sign(np.subtract.outer(y, y))
    scale = math.sqrt(float((a != 0).sum()) * float((b != 0).sum()))
    return float((a * b).sum()) / scale if scale else math.nan


def missing(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Kinds of cost that are not among the measurements of a model.

    Example:
        >>> missing([Measurement("params", 1e6, 0.0, "count"), Measurement("latency", 0.01, 1e-4, "s")])
        ('FLOPs', 'memory or bytes moved', 'throughput')
    """
    names = [each.name for each in measurements if not each.of]
    return tuple(kind for kind, begins in KINDS.items() if not any(name.startswith(begins) for name in names))


def compare(
    models: Mapping[str, Sequence[Measurement]],
    costs: Sequence[str] | None = None,
    quality: Mapping[str, float] | None = None,
    coverage: float = 0.95,
    kinds: Sequence[str] = tuple(KINDS),
) -> Comparison:
    """Set costs side by side and name what they contradict each other in.

    Args:
        models: name -> its measurements; those of whole models are compared.
        costs: names of measurements; default: those of :data:`COMPARED` that every model has.
        quality: name -> how good the model is, more is better (minus the loss).
        coverage: probability that no difference is called real that is noise, over all differences together
            (Bonferroni, normal errors).
        kinds: of cost (:data:`KINDS`) whose absence is a finding.

    Raises:
        ValueError: fewer than two models, a cost that a model lacks, or no cost that all have.

    Example:
        >>> def costs(params, flops):
        ...     return [Measurement("params", params, 0.0, "count"), Measurement("flops_forward", flops, 0.0, "FLOP")]
        >>> found = compare({"dense": costs(1e6, 2e6), "experts": costs(4e6, 1e6)}, quality={"dense": 0, "experts": 1})
        >>> print(found.contradictions[0])
        experts against dense: 2 times cheaper by flops_forward, 4 times dearer by params
    """
    names = tuple(models)
    if len(names) < 2:
        raise ValueError(f"a comparison needs at least two models, got {len(names)}")
    held = {name: {each.name: each for each in measured if not each.of} for name, measured in models.items()}
    chosen = _chosen(held, costs)
    picked = [[held[name][cost] for cost in chosen] for name in names]
    values = np.array([[each.value for each in row] for row in picked], dtype=np.float64)
    errors = np.array([[each.se for each in row] for row in picked], dtype=np.float64)
    turned = np.array([-1.0 if cost in MORE_IS_CHEAPER else 1.0 for cost in chosen])
    order, unsure = _orders(values * turned, errors, coverage)
    tau = np.array([[kendall(a, b) for b in (values * turned).T] for a in (values * turned).T])
    clashes = sorted(
        _contradictions(names, chosen, values, turned, order, quality),
        key=lambda each: -min(each.saved, each.paid),
    )
    lacking = {
        name: [kind for kind in missing(measured) if kind in kinds] for name, measured in models.items()
    }
    return Comparison(
        names,
        chosen,
        values,
        errors,
        {cost: picked[0][j].unit for j, cost in enumerate(chosen)},
        tau,
        tuple(clashes),
        tuple((names[i], names[j], chosen[c]) for i, j, c in unsure),
        tuple(_findings(clashes, lacking)),
    )


def _chosen(held: Mapping[str, Mapping[str, Measurement]], costs: Sequence[str] | None) -> tuple[str, ...]:
    if costs is not None:
        for name, measured in held.items():
            lacking = [cost for cost in costs if cost not in measured]
            if lacking:
                raise ValueError(
                    f"model {name!r} has no measurement {lacking[0]!r}. Do: measure it, or leave the cost out"
                )
        return tuple(costs)
    first, *others = held.values()
    common = tuple(name for name in first if name in COMPARED and all(name in other for other in others))
    if not common:
        raise ValueError("the models have no cost in common. Do: measure all of them with the same probes")
    return common


def _orders(
    values: Floats, errors: Floats, coverage: float
) -> tuple[npt.NDArray[np.int64], list[tuple[int, int, int]]]:
    """Signs of value i - value j by cost, 0 where not resolved, (models, models, costs); and what is not."""
    gap = values[:, None] - values[None]
    noise = np.hypot(errors[:, None], errors[None])
    pairs = np.triu(np.ones(gap.shape[:2], dtype=bool), 1)[..., None]
    tests = max(1, int((pairs & (noise > 0)).sum()))
    reach = NormalDist().inv_cdf(1 - (1 - coverage) / (2 * tests))
    with np.errstate(invalid="ignore"):
        resolved = np.abs(gap) > reach * noise
    lost = [(int(i), int(j), int(c)) for i, j, c in np.argwhere(pairs & ~resolved & (noise != 0))]
    return np.where(resolved, np.sign(gap), 0).astype(np.int64), lost


def _contradictions(
    names: Sequence[str],
    costs: Sequence[str],
    values: Floats,
    turned: Floats,
    order: npt.NDArray[np.int64],
    quality: Mapping[str, float] | None,
) -> Iterator[Contradiction]:
    def factor(dear: int, cheap: int, cost: int) -> float:
        a, b = (values[dear, cost], values[cheap, cost])[:: int(turned[cost])]
        return float(a / b) if b else math.inf

    for i, j in combinations(range(len(names)), 2):
        if quality is not None and quality[names[j]] > quality[names[i]]:
            i, j = j, i
        for a, b in combinations(range(len(costs)), 2):
            if order[i, j, a] * order[i, j, b] < 0:
                by, against = (a, b) if order[i, j, a] < 0 else (b, a)
                yield Contradiction(
                    names[i], names[j], costs[by], costs[against], factor(j, i, by), factor(i, j, against)
                )  # fmt: skip


def _findings(clashes: Sequence[Contradiction], lacking: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    if clashes:
        yield Finding(
            "costs-contradict", "warning", (), None,
            f"{len(clashes)} pairs of costs rank two models in opposite order; {clashes[0]}",
            "which model is cheaper depends on the cost that is looked at",
            "name the cost that is paid where the model runs, and give the others beside it",
        )  # fmt: skip
    absent = {name: kinds for name, kinds in lacking.items() if kinds}
    if absent:
        listed = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in absent.items())
        yield Finding(
            "costs-incomplete", "note", (), None,
            f"costs not measured: {listed}",
            "a cost that is not given may be the one that decides",
            "measure them too: isoloss measure --what costs",
        )  # fmt: skip

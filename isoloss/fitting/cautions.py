"""What a reader of a fit must be told: each finding with a code, why it matters and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoloss.fitting.constraints import Constraints
from isoloss.fitting.coordinates import Coordinates
from isoloss.fitting.data import Data
from isoloss.fitting.diagnose import WIDE, Information, at_bounds
from isoloss.laws.law import Law
from isoloss.laws.parts.composed import Composed
from isoloss.runs import Finding

Array = np.ndarray[Any, np.dtype[Any]]

DISAGREE = 1.1  # Gelman-Rubin ratio
LEAST_FREEDOM = 3
RESAMPLED = ("bootstrap", "residual", "wild")

UNIDENTIFIED = ("too-few-rows", "confounded-link", "flat-direction", "axes-not-separated", "constant-loss")
"""Codes that make a fit ``not-identified``."""


def open_directions(
    coordinates: Coordinates, info: Information, edges: list[str], share: tuple[float, float] | None
) -> list[Finding]:
    """Flat directions, estimates at a bound, axes that cannot be told apart."""
    out = []
    if info.flat_sd > WIDE:
        loudest = np.argsort(-np.abs(info.flat))[:3]
        names = [coordinates.names[j] for j in loudest if abs(info.flat[j]) > 0.1]
        out.append(
            Finding(
                "flat-direction", "error", (), None,
                f"the data leave {' and '.join(names)} open along one direction: one standard deviation "
                f"is {_share(info.flat_sd)} the whole allowed range (condition number {info.condition:.1e})",
                "many parameter values fit equally well, so each value alone means nothing",
                "widen the range of the predictors, fix, tie or borrow one of them, or use a smaller law",
            )
        )  # fmt: skip
    for name in edges:
        out.append(
            Finding(
                "at-bound", "warning", (), name,
                f"the estimate of {name} lies on its bound",
                "the data would push it further: the value is the bound's, not the data's",
                f"widen it with --bound {name.split('=')[0]}=LOW:HIGH, or leave the term out",
            )
        )  # fmt: skip
    if share is not None and share[1] - share[0] > 0.8:
        axes = coordinates.law.axes
        out.append(
            Finding(
                "axes-not-separated", "error", (), None,
                f"how much of the improvement is due to {axes[0]} and how much to {axes[1]} is open: the "
                f"share of {axes[0]} is {share[0]:.2f} to {share[1]:.2f}",
                f"a plan trades {axes[0]} against {axes[1]}, and the runs do not say at what rate",
                f"add runs off the common ray: at least 3 values of {axes[1]}/{axes[0]} over a factor of 4",
            )
        )  # fmt: skip
    return out


def confounded(law: Law, unseen: tuple[int, list[str], list[str]]) -> list[Finding]:
    """A link whose parameters and the base's make up for each other exactly."""
    count, names, held = unseen
    if not count or not isinstance(law, Composed) or law.link is None:
        return []
    return [
        Finding(
            "confounded-link", "error", (), None,
            f"{law.target} alone cannot tell {_listed(names)} apart: "
            + (f"{count} combinations of them change" if count > 1 else "1 combination of them changes")
            + " no prediction",
            f"{law.link.slug} can shift and stretch the {law.base.target} that {law.base.slug} gives, so each value "
            "alone means nothing",
            f"fit the two stages apart and join them with isoloss.chain ({law.base.slug} on rows with "
            f"{law.base.target}, {law.link.slug} on pairs of {law.base.target} and {law.target}), or hold "
            f"{_listed(held)} with --fix or --borrow",
        )
    ]  # fmt: skip


def about_law(law: Law, asked: Law, held: Constraints) -> list[Finding]:
    """What of the law is assumed, taken from others, or left out of what was asked for."""
    out = []
    gone = [name for name in asked.axes if name not in law.axes]
    if gone:
        out.append(
            Finding(
                "part-left-out", "note", (), None,
                f"{asked.spec} was fitted as {law.spec}: the table has no {_listed(gone)}",
                "a column that is absent is at its reference, where its part changes nothing and has nothing to fit",
                f"add the column{'s' * (len(gone) > 1)} to the table, or name them with --columns",
            )
        )  # fmt: skip
    if isinstance(law, Composed) and law.assumed_separable:
        pairs = "; ".join(f"{a} and {b}" for a, b in law.assumed_separable)
        out.append(
            Finding(
                "assumed-separable", "note", (), None,
                f"no paper has fitted these together, so that each acts as if alone is assumed: {pairs}",
                "where the effect of one depends on the other, predictions with both changed are off by what no "
                "interval holds",
                "make a few runs that change both, and look at their residuals",
            )
        )  # fmt: skip
    for source in dict.fromkeys(held.borrow.values()):
        names = [name for name, where in held.borrow.items() if where == source]
        values = _listed([f"{name} = {held.fix[name]:.6g}" for name in names])
        out.append(
            Finding(
                "borrowed", "note", (), names[0] if len(names) == 1 else None,
                f"{values} {'is' if len(names) == 1 else 'are'} borrowed from {source}, not fitted",
                "a borrowed value carries no uncertainty here, and constants of one set-up seldom hold in another",
                f"fit it on runs that vary what it belongs to, or let it move: --prior {names[0]}~"
                f"{held.fix[names[0]]:.4g}+-SD",
            )
        )  # fmt: skip
    return out


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _share(sd: float) -> str:
    return f"{sd:.2g} of" if sd < 1 else "more than"


def sample_size(
    data: Data, place: Coordinates, agreeing: float, draws: int, done: int, uncertainty: str
) -> list[Finding]:
    """Too few rows, starts or draws to lean on."""
    out = []
    free = len(place.names)
    if len(data) <= free:
        out.append(
            Finding(
                "too-few-rows", "error", (), None,
                f"{len(data)} rows cannot determine {free} parameters",
                "a curve with as many parameters as points passes through them whatever they are",
                f"at least {free + 3} rows, or fix, tie or borrow parameters, or a smaller law",
            )
        )  # fmt: skip
    elif len(data) - free < LEAST_FREEDOM and uncertainty == "posterior" and draws:
        left = len(data) - free
        out.append(
            Finding(
                "small-sample", "warning", (), None,
                f"{len(data)} rows leave {left} degree{'s' if left != 1 else ''} of freedom to judge the noise by",
                "the intervals allow for it, so they are wide; with so few they still hold less often than they say",
                "add replicates of cheap runs, or hold a parameter",
            )
        )  # fmt: skip
    elif data.cluster_count < 15 and uncertainty in RESAMPLED and draws:
        out.append(
            Finding(
                "small-sample", "warning", (), None,
                f"{data.cluster_count} independent rows for {free} free parameters",
                "intervals from resamples are too narrow below about 15 (near 75-85 % where 90 % is asked)",
                "use --uncertainty posterior if the rows are independent, or add replicates of cheap runs",
            )
        )  # fmt: skip
    if agreeing < 0.1:
        out.append(
            Finding(
                "few-agreeing-starts", "warning", (), None,
                f"only {agreeing:.0%} of the starts reached the best minimum",
                "a better one may exist",
                "raise --starts, or narrow the bounds",
            )
        )  # fmt: skip
    if 0 < done < draws:
        out.append(
            Finding(
                "interrupted", "warning", (), None,
                f"{done} of {draws} draws were done",
                "intervals from fewer draws are noisier",
                "run again for all draws; the same seed repeats these",
            )
        )  # fmt: skip
    return out


def draws_at_edges(place: Coordinates, edges: list[str], cloud: Array, settled: float) -> list[Finding]:
    """What the draws show that the optimum alone does not."""
    out = []
    if settled < 0.99:
        out.append(
            Finding(
                "unsettled-draws", "warning", (), None,
                f"{1 - settled:.1%} of the resamples ran out of steps before their minimum",
                "their parameters are somewhat off, so intervals are blurred",
                "narrow the bounds, or use --objective student-t, which is smooth",
            )
        )  # fmt: skip
    if len(cloud) >= 20:
        shares = np.mean(at_bounds(place, cloud), axis=0)
        for name, share in zip(place.names, shares, strict=True):
            if share > 0.05 and name not in edges:
                out.append(
                    Finding(
                        "draws-at-bound", "warning", (), name,
                        f"{share:.0%} of the draws of {name} lie on its bound",
                        "that end of its interval is the bound's, not the data's",
                        f"widen it with --bound {name.split('=')[0]}=LOW:HIGH, or fix, tie or borrow it",
                    )
                )  # fmt: skip
    return out


def ensembles(agreement: float) -> list[Finding]:
    """Two ensembles of walkers that did not come to the same posterior."""
    if agreement <= DISAGREE:
        return []
    return [
        Finding(
            "unsettled-draws", "warning", (), None,
            f"two samplings of the posterior differ (Gelman-Rubin ratio {agreement:.2f}, 1 is agreement)",
            "its draws may miss a part of what the data allow, so intervals are blurred",
            "narrow the bounds, hold a parameter, or use --uncertainty bootstrap",
        )
    ]  # fmt: skip


def not_converged(law: Law) -> Finding:
    """The best start is not at a minimum."""
    return Finding(
        "not-converged", "warning", (), None,
        f"the minimiser of {law.slug} ran out of steps before the objective stopped falling",
        "the parameters are not at a minimum, and another start may give others",
        "raise --starts, narrow the bounds, or use a law with fewer parameters for this table",
    )  # fmt: skip

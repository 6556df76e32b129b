"""Rival claims of the literature, settled on a model: each is a comparison on the same examples, with its interval.

Nothing is changed: every variant is put in place for a forward pass and taken out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoloss.compress.activations import Activations, Advice, advise, ranges, rounded_inputs, samples
from isoloss.compress.candidates import Candidates, candidates
from isoloss.compress.layers import Layer
from isoloss.compress.outliers import Outliers, features, outliers
from isoloss.compress.paired import Mean, Paired, paired
from isoloss.compress.recipe import Choice
from isoloss.compress.sensitivity import score
from isoloss.compress.sensitivity.ranking import means, resampled, times
from isoloss.compress.sensitivity.scores import Scores
from isoloss.compress.uniform import OF_TABLES
from isoloss.measure.subject import Subject

HOLDS, FAILS, OPEN = "holds", "does not hold", "not resolved"
EIGHT = ("fp8-e4m3/mse", "int8/mse")
FOUR = ("fp4-e2m1/g128/mse", "int4/g128/mse", "int4/g128")
BITS = tuple(f"int{bits}/asym" for bits in (2, 3, 4, 5, 6, 8))
ENDS = "int8/asym"  # of the first and the last layer
INPUTS_SEEN = 1 << 13  # of a layer, for the signal to noise

Applied = Callable[[], AbstractContextManager[object]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Claim:
    """One claim, and what was measured of it.

    Attributes:
        name: a word for it.
        says: the claim in a sentence.
        source: who made it, or disputes it.
        one, other: what is compared; the claim is that the first is better.
        bits_one, bits_other: stored bits of a weight, NaN where weights are not what is compared.
        of: what the gains are: ``loss`` and differences of the predictions, or ``rank correlation`` (loss is then empty).
        loss: loss of the other less that of the first: above 0 where the claim holds; NaN where it is not what is compared.
        gain: the same of the second measure.
        low, high, loss_low, loss_high: intervals.
        verdict: ``holds``, ``does not hold`` or ``not resolved``, by ``gain``.
        verdict_loss: the same by the loss.
    """

    name: str
    says: str
    source: str
    one: str
    other: str
    bits_one: float
    bits_other: float
    of: str
    loss: float
    loss_low: float
    loss_high: float
    gain: float
    low: float
    high: float
    verdict: str
    verdict_loss: str


@dataclass(frozen=True, eq=False)
class Claims:
    """What became of all claims.

    Attributes:
        claims: that could be tested.
        left: name -> why it could not.
        coverage: of each interval by itself.
    """

    claims: tuple[Claim, ...]
    left: Mapping[str, str]
    coverage: float


@dataclass(frozen=True, eq=False)
class Probed:
    """What the layers themselves say.

    Attributes:
        advice: layer -> signal to noise of the number types of eight bits.
        outliers: layer -> its outliers.
        features: width -> features that are large in many layers.
    """

    advice: Mapping[str, Advice]
    outliers: Mapping[str, Outliers]
    features: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class _Pair:
    name: str
    says: str
    source: str
    one: str
    other: str


PAIRS = (
    _Pair(
        "fp8-weights", "weights in FP8 E4M3 lose less than in INT8, each channel at its best range",
        "disputed: arXiv 2209.05433 for, arXiv 2303.17951 against", *EIGHT,
    ),
    _Pair(
        "fp8-inputs", "inputs in FP8 E4M3 lose less than in INT8, with a scale for each token",
        "disputed: arXiv 2307.09782 for, arXiv 2303.17951 against", "inputs fp8-e4m3", "inputs int8",
    ),
    _Pair("fp4-weights", "weights in FP4 E2M1 lose less than in INT4 at the same stored bits", "arXiv 2307.09782", *FOUR[:2]),
    _Pair(
        "searched-range", "INT4 weights with a searched range lose less than with the full one",
        "arXiv 2102.05426, arXiv 2210.17323's code", *FOUR[1:],
    ),
    _Pair(
        "searched-inputs", "INT8 inputs within a searched static range lose less than within the full one",
        "arXiv 2106.08295", "inputs int8 mse", "inputs int8 minmax",
    ),
)  # fmt: skip

INPUTS = {
    "inputs fp8-e4m3": Activations("fp8-e4m3"),
    "inputs int8": Activations("int8"),
    "inputs int8 mse": Activations("int8", "static", "mse"),
    "inputs int8 minmax": Activations("int8", "static", "minmax"),
}
RANKS = (
    ("trace-or-eigenvalue", "the Hessian's mean trace ranks layers better than its largest eigenvalue", "arXiv 1911.03852", "hawq-v2", "hawq"),
    ("blocks-or-diagonal", "the whole block of the Fisher matrix ranks layers better than its diagonal", "arXiv 2306.07629 takes the diagonal", "block-fisher", "fisher"),
    ("loss-or-outputs", "curvature of the loss ranks layers better than the error of their outputs", "arXiv 2208.11580 takes the outputs", "block-fisher", "output-error"),
)  # fmt: skip
MOSTLY = (
    "mostly-4-bit",
    "four bits with the first and the last layer in eight lie on the frontier: whatever is no larger loses more",
    "arXiv 2105.03536",
)


def choices(solver: str) -> list[Choice]:
    """What every layer is tried in: eight bits rounded to nearest, fewer by the solver.

    Example:
        >>> len(choices("gptq")), choices("lut-feedback")[-1]
        (11, Choice(format='int8/asym', solver='gptq'))
    """
    by = "gptq" if solver.partition("(")[0] in OF_TABLES else solver
    return [*(Choice(name, "nearest") for name in EIGHT), *(Choice(name, by) for name in (*FOUR, *BITS))]


def settle(
    subject: Subject,
    layers: Sequence[Layer],
    batches: Sequence[Any],
    solver: str = "gptq",
    *,
    curvature: str = "",
    coverage: float = 0.9,
    unreached: str = "refuse",
    seed: int = 0,
    taken: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> Claims:
    """Measure all claims on a model.

    Args:
        subject: model, data on which the loss is measured, loss.
        layers: to be compressed.
        batches: calibration inputs.
        solver: of the formats below eight bits.
        curvature: why nothing can be said of curvature; empty where it can.
        coverage: of each interval by itself.
        unreached: layers that no data come to: ``refuse``, or ``nearest`` to round them.
        seed: of draws.
        taken: what :func:`~isoloss.compress.activations.samples` gave of these layers and batches; None: it is called.
        progress: (what, done, in all).

    Raises:
        ValueError: no layers, or no data.

    Example:
        >>> import torch
        >>> from isoloss.compress import find
        >>> from isoloss.measure.criteria import CrossEntropy
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        >>> x = torch.randn(60, 64)
        >>> found = settle(Subject(net, [(x, net(x).argmax(1))], CrossEntropy()), find(net).layers, [x])
        >>> [claim.name for claim in found.claims][:2], sorted(found.left)[:1]
        (['fp8-weights', 'fp8-inputs'], ['blocks-or-diagonal'])
    """
    tried = candidates(
        subject.model, layers, choices(solver), batches,
        unreached="nearest" if unreached == "nearest" else "refuse", progress=progress,
    )  # fmt: skip
    taken = samples(subject.model, layers, batches, seed) if taken is None else taken
    mixed = {f"{name}, ends {ENDS}": _with_ends(tried, name) for name in BITS if name != ENDS}
    plans = {**{name: tried.uniform(name) for name in (*EIGHT, *FOUR, *BITS)}, **mixed}
    variants: dict[str, Applied] = {name: partial(tried.applied, plan) for name, plan in plans.items()}
    for name, how in INPUTS.items():
        static = ranges(taken, how) if how.when == "static" else None
        variants[name] = partial(rounded_inputs, subject.model, how, static)
    found = paired(subject, variants, progress)
    bits = {name: tried.bits(plan) / tried.weights for name, plan in plans.items()}
    z = NormalDist().inv_cdf((1 + coverage) / 2)
    claims = [_claim(pair, found, bits, z) for pair in PAIRS]
    left: dict[str, str] = {}
    if len(layers) < 3:
        left[MOSTLY[0]] = f"needs at least three layers, got {len(layers)}"
    else:
        claims.append(_mostly(found, bits, z))
    ranked, why = _ranked(subject, tried, curvature, coverage, seed, progress)
    return Claims((*claims, *ranked), {**left, **why}, coverage)


def probe(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any],
    seed: int = 0,
    taken: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> Probed:
    """Signal to noise of the number types of eight bits, and outliers, layer by layer.

    Args:
        model: is not changed.
        layers, batches: as of :func:`settle`.
        seed: of the inputs that are looked at.
        taken: as of :func:`settle`.
        progress: (what, done, in all).

    Example:
        >>> import torch
        >>> from isoloss.compress import find
        >>> net = torch.nn.Linear(64, 8)
        >>> found = probe(net, find(net).layers, [torch.rand(60, 64)])
        >>> found.advice["model"].best, round(found.outliers["model"].inputs, 1)  # the largest of evenly spread ones: 1 / 0.577
        ('int8/narrow', 1.7)
    """
    advice, taken = {}, samples(model, layers, batches, seed) if taken is None else taken
    for i, layer in enumerate(layers):
        if progress is not None:
            progress("signal to noise", i, len(layers))
        own = taken.get(layer.name)
        if own is not None and bool(own.any()):
            some = torch.cat([own[: -2 : max(1, len(own) // INPUTS_SEEN)], own[-2:]])  # the last are the ends
            advice[layer.name] = advise(layer.name, layer.matrix(), some)
    far = outliers(model, layers, batches)
    return Probed(advice, far, features(far, layers))


def _with_ends(tried: Candidates, name: str) -> dict[str, str]:
    """The format for all layers but the first and the last."""
    plan = tried.uniform(name)
    for layer in (tried.layers[0], tried.layers[-1]):
        plan[layer.name] = ENDS
    return plan


def _verdict(mean: Mean, z: float) -> str:
    if not math.isfinite(mean.se):
        return OPEN
    return HOLDS if mean.value > z * mean.se else FAILS if -mean.value > z * mean.se else OPEN


def _claim(pair: _Pair, found: Paired, bits: Mapping[str, float], z: float) -> Claim:
    loss, gain = found.gap(pair.other, pair.one)
    return Claim(
        pair.name, pair.says, pair.source, pair.one, pair.other, bits.get(pair.one, math.nan),
        bits.get(pair.other, math.nan), "predictions", *_ends(loss, z), *_ends(gain, z), _verdict(gain, z),
        _verdict(loss, z),
    )  # fmt: skip


def _ends(mean: Mean, z: float) -> tuple[float, float, float]:
    return mean.value, mean.value - z * mean.se, mean.value + z * mean.se


def _mostly(found: Paired, bits: Mapping[str, float], z: float) -> Claim:
    """Against every choice of whole numbers of bits that is no larger; shown is the one that comes closest."""
    one = f"int4/asym, ends {ENDS}"
    names = [name for name in bits if name in BITS or name.endswith(f", ends {ENDS}")]
    rivals = [name for name in names if name != one and bits[name] <= bits[one]]
    gaps = {name: found.gap(name, one) for name in rivals}

    def together(which: int) -> str:
        verdicts = [_verdict(gap[which], z) for gap in gaps.values()]
        return FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS

    closest = min(rivals, key=lambda name: gaps[name][1].value)
    loss, gain = gaps[closest]
    return Claim(
        *MOSTLY, one, closest, bits[one], bits[closest], "predictions", *_ends(loss, z), *_ends(gain, z), together(1),
        together(0),
    )  # fmt: skip


def _ranked(
    subject: Subject, tried: Candidates, curvature: str, coverage: float, seed: int, progress: Progress | None
) -> tuple[list[Claim], dict[str, str]]:
    """Which sensitivity orders layers at the same bits as the measured change of the predictions does."""
    few = f"needs at least three layers, got {len(tried.layers)}" if len(tried.layers) < 3 else ""
    if why := curvature or few:
        return [], {name: why for name, *_ in RANKS}
    tables: dict[str, Scores] = {}
    names = list(dict.fromkeys(["pd", *(name for *_, one, other in RANKS for name in (one, other))]))
    left: dict[str, str] = {}
    for i, name in enumerate(names):
        if progress is not None:
            progress(f"sensitivity by {name}", i, len(names))
        try:
            tables[name] = score(name, subject, tried, seed)
        except (ValueError, TypeError, NotImplementedError) as why_not:
            left[name] = str(why_not)
    claims, out = [], {}
    for name, says, source, one, other in RANKS:
        missing = [left[method] for method in ("pd", one, other) if method in left]
        if missing:
            out[name] = missing[0]
            continue
        value, low, high = _rank_gap(tables[one], tables[other], tables["pd"], coverage, seed)
        verdict = HOLDS if low > 0 else FAILS if high < 0 else OPEN
        nothing = (math.nan,) * 3
        claims.append(
            Claim(
                name, says, source, one, other, math.nan, math.nan, "rank correlation", *nothing, value, low, high,
                verdict, "",
            )
        )  # fmt: skip
    return claims, out


def _rank_gap(
    one: Scores, other: Scores, truth: Scores, coverage: float, seed: int
) -> tuple[float, float, float]:
    """Mean over the formats of Spearman's correlation with the truth, of one less that of the other; layers resampled."""
    names = list(truth.table)
    formats = [name for name in truth.table[names[0]] if name in BITS]
    tables = [np.array([[t.table[n][f] for f in formats] for n in names]) for t in (one, other, truth)]

    def gaps(counts: Any) -> Any:
        return means(resampled(tables[0], tables[2], counts) - resampled(tables[1], tables[2], counts))

    drawn = gaps(times(len(names), seed))
    known = drawn[~np.isnan(drawn)]
    tail = (1 - coverage) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (math.nan, math.nan)
    return float(gaps(np.ones((1, len(names))))[0]), float(low), float(high)

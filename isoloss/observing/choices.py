"""Schaeffer et al. 2024, Why Has Predicting Downstream Capabilities ... Remained Elusive?, arXiv:2406.04391.

A multiple-choice score is a chain: log p(correct), its exponential, its share among the offered choices, and
whether that share is the largest. Each link hides more of what scale does, because the last two turn on the
wrong choices as much as on the right one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.observing.measured import Measured

Array = np.ndarray[Any, np.dtype[Any]]

METRICS = ("log_p_correct", "p_correct", "p_choices", "brier", "accuracy")
HOW = ("spearman", "kendall", "pearson")
RESAMPLES = 1000
LEAST = 5  # samples that can be drawn anew


@dataclass(frozen=True, eq=False)
class Scores:
    """Every metric of every sample under every model, each of shape (M, S).

    Attributes:
        log_p_correct: log probability over the vocabulary of the correct choice.
        p_correct: its exponential.
        p_choices: p_correct over the sum of all choices.
        brier: sum of squared errors of the shares, 0 to 2; less is better.
        accuracy: 1 if the correct choice is the likeliest, 1/k if it ties with k - 1 others.
        log_mass_others: log of the summed probability of the wrong choices.
    """

    log_p_correct: Array
    p_correct: Array
    p_choices: Array
    brier: Array
    accuracy: Array
    log_mass_others: Array


@dataclass(frozen=True, eq=False)
class Survival:
    """How well one metric follows scale, over samples: shares of samples with a correlation above c.

    Attributes:
        metric, how: of which metric, and which correlation.
        at, share: the function: sorted correlations, and the share of samples above each.
        mean: of the correlations, with an interval over samples. median: of them.
        constant: samples on which the metric never moves. They have no correlation and count as 0.
    """

    metric: str
    how: str
    at: Array
    share: Array
    mean: Measured
    median: float
    constant: int

    @property
    def area(self) -> float:
        """Under the function from -1 to 1, over 2: 1 if every sample follows scale, 0.5 if none does."""
        return (1 + self.mean.value) / 2

    @property
    def distance(self) -> float:
        """Area between it and the all-one function, over 2."""
        return 1 - self.area


@dataclass(frozen=True)
class AccuracyForecast:
    """Accuracy at another scale, simulated from forecasts of every choice's log probability.

    Attributes:
        accuracy: the mean over draws, with its interval.
        plug_in: accuracy of the lines themselves, without their uncertainty.
        log_p_correct, log_mass_others: means over samples of the forecast lines there.
        reach: compute asked for over the largest measured.
    """

    accuracy: Measured
    plug_in: float
    log_p_correct: float
    log_mass_others: float
    reach: float


@dataclass(frozen=True)
class MetricVerdict:
    """Which metric to fit a law to.

    Attributes:
        metric: the one that follows scale best, or ``"not resolved"``: its lead may be chance.
        lead: by how much its mean correlation is above that of accuracy, bootstrap over samples.
        ranking: metrics with their mean correlation, best first.
        reasons: sentences.
    """

    metric: str
    lead: Measured
    ranking: tuple[tuple[str, float], ...]
    reasons: tuple[str, ...]


def score_choices(logp: Any, correct: Any) -> Scores:
    r"""From log probabilities of the choices to every metric of the chain.

    .. math:: p^C = p^V(correct) / \sum_i p^V(choice_i), \qquad
              \mathrm{Brier} = \sum_i (1[i = correct] - p^C_i)^2

    Args:
        logp: log probability over the vocabulary of each choice, shape (M, S, C) or (S, C). A choice written
            in several ways: sum its ways, or normalise by length, before. ``-inf`` is a choice of probability
            0, or none where samples have fewer choices.
        correct: index of the correct choice, shape (S,).

    Raises:
        ValueError: shapes or indices that do not fit, a log probability above 0, or no choice above 0.

    Example:
        >>> log = np.log
        >>> with np.errstate(divide="ignore"):  # 0.4 for the correct one wins or loses by the rest
        ...     found = score_choices(log([[0.4, 0.2, 0.2, 0.2], [0.4, 0.6, 0, 0]]), [0, 0])
        >>> found.p_correct.tolist(), found.p_choices.round(6).tolist(), found.accuracy.tolist()
        ([[0.4, 0.4]], [[0.4, 0.4]], [[1.0, 0.0]])
    """
    logs, right = _logs(logp, correct)
    picked = np.take_along_axis(logs, right[None, :, None], axis=2)
    top = logs.max(axis=2, keepdims=True)
    if np.any(np.isneginf(top)):
        raise ValueError("needed a choice with probability above 0 in every sample, got all -inf")
    is_right = np.arange(logs.shape[2]) == right[:, None]
    shares = np.exp(logs - top)
    shares /= shares.sum(axis=2, keepdims=True)
    others = np.logaddexp.reduce(np.where(is_right, -np.inf, logs), axis=2)
    return Scores(
        picked[..., 0], np.exp(picked[..., 0]), np.take_along_axis(shares, right[None, :, None], axis=2)[..., 0],
        ((is_right - shares) ** 2).sum(axis=2), _accuracy(logs, picked), others,
    )  # fmt: skip


def correlations(values: Any, compute: Any, how: str = "spearman") -> Array:
    """Correlation with log compute of each sample, over the models; NaN where the values never move.

    Args:
        values: one metric of :func:`score_choices`, shape (M, S).
        compute: of the models, in any unit, shape (M,), three or more.
        how: ``"spearman"``, ``"kendall"`` (tau-b) or ``"pearson"``. The exponential keeps the first two.

    Raises:
        ValueError: shapes that do not fit, an unknown correlation, or infinite values for Pearson's.
        NoAnswer: fewer than three different scales.

    Example:
        >>> correlations([[0.1, 0.0], [0.2, 0.0], [0.7, 1.0], [0.6, 1.0]], [1, 2, 4, 8]).round(3).tolist()
        [0.8, 0.894]
    """
    y = np.asarray(values, dtype=float)
    x = _log_compute(compute)
    if y.ndim != 2 or len(y) != len(x):
        raise ValueError(f"needed values of shape ({len(x)}, samples), got {y.shape}")
    if how not in HOW:
        raise ValueError(f"no correlation named {how!r}. There are: {', '.join(HOW)}")
    if np.isnan(y).any() or (how == "pearson" and not np.isfinite(y).all()):
        raise ValueError(
            f"needed {'finite ' if how == 'pearson' else ''}numbers. Use spearman for log p of -inf"
        )
    if how == "kendall":
        return _tau_b(x, y)
    if how == "spearman":
        x, y = _ranks(x[:, None])[:, 0], _ranks(y)
    dx, dy = x - x.mean(), y - y.mean(axis=0)
    moves = np.ptp(y, axis=0) > 0
    norm = np.sqrt(np.sum(dx**2) * np.sum(dy**2, axis=0))
    out: Array = np.divide(dx @ dy, norm, out=np.full(y.shape[1], np.nan), where=moves & (norm > 0))
    return out


def survival(
    values: Any, compute: Any, *, metric: str, how: str = "spearman", coverage: float = 0.9, seed: int = 0
) -> Survival:
    r"""Shares of samples whose correlation with log compute is above c: :math:`S(c) = mean_s 1\{C_s > c\}`.

    Args:
        values: of the metric, shape (M, S).
        compute: of the models, shape (M,).
        metric: its name. The sign of ``"brier"`` is turned, so that more is better throughout.
        how: as in :func:`correlations`.
        coverage, seed: of the interval of the mean, a bootstrap over samples; of fewer than five it is NaN.

    Raises:
        ValueError, NoAnswer: as :func:`correlations`.

    Example:
        >>> found = survival([[0.1, 0.9], [0.2, 0.5], [0.7, 0.1]], [1, 2, 4], metric="p_correct")
        >>> found.at.tolist(), found.share.tolist(), found.area
        ([-1.0, 1.0], [0.5, 0.0], 0.5)
    """
    _within_0_1(coverage)
    found = correlations(values, compute, how)
    if metric == "brier":
        found = -found
    constant = int(np.isnan(found).sum())
    found = np.nan_to_num(found)
    ordered = np.sort(found)
    share = 1.0 - np.searchsorted(ordered, ordered, side="right") / len(found)
    mean = _over_samples(found, how, coverage, seed)
    return Survival(metric, how, ordered, share, mean, float(np.median(found)), constant)


def _over_samples(values: Array, how: str, coverage: float, seed: int) -> Measured:
    """Their mean; the interval is a bootstrap over samples."""
    count = len(values)
    if count < LEAST:
        return Measured(
            float(values.mean()), math.nan, math.nan, coverage, f"{how}; not resolved: {count} samples"
        )
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - coverage) / 2, (1 + coverage) / 2])
    words = f"{how}; bootstrap over {count} samples"
    return Measured(float(values.mean()), float(low), float(high), coverage, words)


def _within_0_1(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")


def predict_accuracy(
    logp: Any,
    correct: Any,
    compute: Any,
    at: float,
    *,
    draws: int = 1000,
    coverage: float = 0.9,
    seed: int = 0,
) -> AccuracyForecast:
    r"""Accuracy at another compute: a straight line in log compute for every choice, then who is likeliest.

    A line through each choice of each sample, the wrong ones too: the right one's alone cannot say whether it
    wins. A draw moves all lines at once,

    .. math:: \hat y_{sc}(x) + \sqrt{\tfrac{(M-2)(1 + h(x))}{\chi^2_{M-2}}}\;
              \sum_m \frac{z_m e_{msc}}{\sqrt{M-2}}, \qquad h(x) = \tfrac1M + \tfrac{(x-\bar x)^2}{\sum (x_m - \bar x)^2}

    with the models' own residuals e and standard normal z shared by all samples: each line is Student-t as in
    ordinary regression, and what a model has in common over samples and choices stays in common.

    Args:
        logp, correct: as for :func:`score_choices`, all finite, shape (M, S, C); a choice that a sample does
            not have is ``-inf`` in every model.
        compute: of the models, shape (M,), four or more.
        at: compute to predict at.
        draws, coverage, seed: of the interval, which is for a new model's accuracy on these samples.

    Raises:
        ValueError: shapes that do not fit, or a choice that is ``-inf`` in some models only. NoAnswer: fewer
            than four models.

    Example:
        >>> x = np.array([1.0, 2, 4, 8, 16])
        >>> right = np.stack([-3 + 0.5 * np.log(x), np.full(5, -2.0)], axis=1)  # passes the other at 7.4
        >>> found = predict_accuracy(right[:, None], [0], x, 100)
        >>> found.accuracy.value, round(found.log_p_correct, 3)
        (1.0, -0.697)
    """
    logs, right = _logs(logp, correct)
    x = _log_compute(compute)
    count = len(x)
    if len(logs) != count:
        raise ValueError(f"needed log p of {count} models, got {len(logs)}")
    if count < 4:
        raise NoAnswer(f"{count} models leave no scatter to judge a line by", "four models or more")
    if not (at > 0 and np.isfinite(at)):
        raise ValueError(f"needed a positive compute to predict at, got {at}")
    if not (0 < coverage < 1 and draws >= 1):
        raise ValueError(f"needed a coverage between 0 and 1 and a draw, got {coverage} and {draws}")
    absent = np.isneginf(logs)
    if np.any(absent.any(axis=0) != absent.all(axis=0)):
        raise ValueError(
            "a choice is -inf in some models only, which is on no line. Give its log p, or leave it out"
        )
    y = np.where(absent, 0.0, logs)
    dx = x - x.mean()
    slope = np.einsum("m,msc->sc", dx, y) / np.sum(dx**2)
    ahead = np.log(at) - x.mean()
    off = y - y.mean(axis=0) - dx[:, None, None] * slope
    line = np.where(absent.all(axis=0), -np.inf, y.mean(axis=0) + slope * ahead)
    wide = np.sqrt((1 + 1 / count + ahead**2 / np.sum(dx**2)) / (count - 2))
    rng, means = np.random.default_rng(seed), np.empty(draws)
    pick = right[None, :, None]
    for i in range(draws):
        moved = rng.standard_normal(count) * wide / np.sqrt(rng.chisquare(count - 2) / (count - 2))
        drawn = (line + np.einsum("m,msc->sc", moved, off))[None]
        means[i] = _accuracy(drawn, np.take_along_axis(drawn, pick, axis=2)).mean()
    low, high = np.quantile(means, [(1 - coverage) / 2, (1 + coverage) / 2])
    best = np.take_along_axis(line[None], pick, axis=2)
    others = np.where(np.arange(line.shape[1]) == right[:, None], -np.inf, line)
    return AccuracyForecast(
        Measured(float(means.mean()), float(low), float(high), coverage, "lines of all choices, simulated"),
        float(_accuracy(line[None], best).mean()), float(best.mean()),
        float(np.logaddexp.reduce(others, axis=1).mean()), float(at / np.exp(x.max())),
    )  # fmt: skip


def metric_to_fit(
    logp: Any, correct: Any, compute: Any, *, how: str = "spearman", coverage: float = 0.9, seed: int = 0
) -> MetricVerdict:
    """Which metric follows scale on this task, and whether its lead over accuracy is more than chance.

    Args:
        logp, correct: as for :func:`score_choices`, shape (M, S, C).
        compute: of the models, shape (M,), three or more.
        how, coverage, seed: the correlation; of the interval, a bootstrap over samples.

    Raises:
        ValueError, NoAnswer: as :func:`correlations`; NoAnswer too: fewer than five samples.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = np.geomspace(1, 100, 8)
        >>> right = -4 + 0.5 * np.log(x)[:, None] + 0.05 * rng.standard_normal((8, 200))
        >>> wrong = -3 + rng.standard_normal((8, 200, 3))
        >>> found = metric_to_fit(np.minimum(np.concatenate([right[..., None], wrong], 2), 0), [0] * 200, x)
        >>> found.metric, found.ranking[-1][0]
        ('log_p_correct', 'accuracy')
    """
    _within_0_1(coverage)
    scores = score_choices(logp, correct)
    if scores.accuracy.shape[1] < LEAST:
        raise NoAnswer(
            f"{scores.accuracy.shape[1]} samples give no bootstrap over samples", f"{LEAST} samples or more"
        )
    found, constant = {}, {}
    for metric in METRICS:
        values = correlations(getattr(scores, metric), compute, how)
        constant[metric] = int(np.isnan(values).sum())
        found[metric] = np.nan_to_num(-values if metric == "brier" else values)
    # Ties (the exponential keeps ranks) go to what stands earlier in the chain.
    ranking = sorted(METRICS, key=lambda name: -round(float(found[name].mean()), 12))
    best, samples = ranking[0], len(found["accuracy"])
    lead = _over_samples(found[best] - found["accuracy"], how, coverage, seed)
    low, high = lead.low, lead.high
    resolved = best == "accuracy" or low > 0
    reasons = [
        f"{name}: mean {how} {found[name].mean():.3f} with log compute"
        + (f", never moves on {constant[name]} of {samples} samples" if constant[name] else "")
        for name in ranking
    ]
    if best != "accuracy" and resolved:
        reasons.append(
            f"{best} follows scale better than accuracy by {lead.value:.3f} ({low:.3f} to {high:.3f}): fit it, "
            "forecast the wrong choices too, and simulate accuracy"
        )
    if not resolved:
        reasons.append(
            f"the lead of {best} over accuracy ({low:.3f} to {high:.3f}) may be chance: more samples"
        )
    table = tuple((name, float(found[name].mean())) for name in ranking)
    return MetricVerdict(best if resolved else "not resolved", lead, table, tuple(reasons))


def _logs(logp: Any, correct: Any) -> tuple[Array, Array]:
    logs = np.asarray(logp, dtype=float)
    if logs.ndim == 2:
        logs = logs[None]
    if logs.ndim != 3 or logs.shape[2] < 2 or 0 in logs.shape:
        raise ValueError(
            f"needed log p of shape (models, samples, choices), two choices or more, got {logs.shape}"
        )
    if np.isnan(logs).any() or np.any(logs > 1e-9):
        raise ValueError(
            "needed log probabilities, none above 0. Take natural logs; do not normalise by subtraction"
        )
    right = np.asarray(correct)
    if right.shape != logs.shape[1:2] or not np.issubdtype(right.dtype, np.integer):
        raise ValueError(f"needed {logs.shape[1]} indices of correct choices, got shape {right.shape}")
    if np.any(right < 0) or np.any(right >= logs.shape[2]):
        raise ValueError(f"needed indices from 0 to {logs.shape[2] - 1}, got {right.min()} to {right.max()}")
    return logs, right


def _log_compute(compute: Any) -> Array:
    c = np.asarray(compute, dtype=float)
    if c.ndim != 1 or not np.all(np.isfinite(c) & (c > 0)):
        raise ValueError("needed a positive compute for every model")
    if len(np.unique(c)) < 3:
        raise NoAnswer("two scales are always in order", "models of three scales or more")
    out: Array = np.log(c)
    return out


def _accuracy(logs: Array, picked: Array) -> Array:
    """Whether the picked choice is the likeliest; a tie is shared."""
    top = logs == logs.max(axis=2, keepdims=True)
    out: Array = np.where(picked[..., 0] == logs.max(axis=2), 1.0 / top.sum(axis=2), 0.0)
    return out


def _ranks(y: Array) -> Array:
    """Ranks along the first axis, ties by their mean."""
    below = (y[None] < y[:, None]).sum(axis=1)
    equal = (y[None] == y[:, None]).sum(axis=1)
    out: Array = below + (equal + 1) / 2
    return out


def _tau_b(x: Array, y: Array) -> Array:
    upper = np.triu_indices(len(x), 1)
    sx = np.sign(x[:, None] - x[None])[upper]
    sy = ((y[:, None] > y[None]).astype(int) - (y[:, None] < y[None]))[upper]  # also of -inf
    norm = np.sqrt(np.sum(sx != 0) * (sy != 0).sum(axis=0))
    out: Array = np.divide(sx @ sy, norm, out=np.full(y.shape[1], np.nan), where=norm > 0)
    return out

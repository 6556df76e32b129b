"""The vocabulary of least loss for a model of given size, at given training compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.vocabulary import Vocabulary
from isoloss.planning.costs import TRAIN_FLOPS
from isoloss.planning.fitted import refuse_unusable
from isoloss.planning.result import Quantity, spread

Array = np.ndarray[Any, np.dtype[Any]]

FAR = math.log(1e30)  # the search goes from one parameter of the vocabulary to 1e30
HALVINGS = 80


@dataclass(frozen=True)
class BestVocabulary:
    """The vocabulary of least loss.

    Attributes:
        params_nonembedding, flops: as asked.
        vocab_params: parameters of the vocabulary; divided by the model's width its entries.
        tokens: training tokens that the compute then allows.
        loss: the law's target there.
        coverage: of the intervals, over the draws of a fit; each draw has its own best vocabulary. NaN without draws.
    """

    params_nonembedding: float
    flops: float
    vocab_params: Quantity
    tokens: Quantity
    loss: Quantity
    coverage: float


def best_vocabulary(
    source: Fit | str | Mapping[str, float],
    *,
    params_nonembedding: float,
    flops: float,
    coverage: float | None = None,
) -> BestVocabulary:
    r"""Parameters of the vocabulary that give the least loss at C = 6 (N_nv + N_v) D training FLOPs.

    .. math:: \alpha_2 A_2 N_v^{-\alpha_2-1} = \beta B \left(6/C\right)^{\beta} (N_{nv} + N_v)^{\beta-1}

    A larger vocabulary leaves fewer tokens at the same compute. With positive exponents there is one such N_v, and it
    is found by halving in its logarithm. How many characters the tokens are does not enter.

    Args:
        source: a fit of :class:`~isoloss.laws.vocabulary.Vocabulary`, the name of a published one, or its parameters.
        params_nonembedding: N_nv, parameters without the vocabulary's.
        flops: C, training FLOPs.
        coverage: of the intervals; default the fit's.

    Raises:
        ValueError: a fit of another law, or numbers not above 0.
        NoAnswer: the fit has no draws or too few rows or is not identified, or its law has no best vocabulary.

    Source:
        Tao et al. 2024, arXiv:2407.13623, approach 3.

    Example:
        >>> best = best_vocabulary("tao-2024", params_nonembedding=3e9, flops=1.3e21)
        >>> f"{best.vocab_params.value:.3g}", f"{best.tokens.value:.3g}"
        ('1.17e+08', '6.95e+10')
    """
    law = Vocabulary()
    for name, number in (("params_nonembedding", params_nonembedding), ("flops", flops)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"best_vocabulary needs {name} finite and above 0, got {number:g}")
    if coverage is not None and not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if isinstance(source, Fit):
        theta, draws = _of_fit(source)
        coverage = source.coverage if coverage is None else coverage
    else:
        theta, draws, coverage = law.theta(source), np.empty((0, len(law.parameters))), coverage or 0.9
    both = np.concatenate([theta[None], draws])
    if not (both[:, 1:] > 0).all():
        raise ValueError("best_vocabulary needs sizes and exponents above 0, got some at or below")
    best = _best(both, params_nonembedding, flops)
    if not 0 < best[0] < math.inf:
        raise NoAnswer(
            f"the law has its best vocabulary at an end of what was searched, 1 to 1e30 parameters ({best[0]:g})",
            "runs of more vocabularies, or another theta",
        )
    tokens = flops / (TRAIN_FLOPS * (params_nonembedding + best))
    x = {
        "params_nonembedding": np.full_like(best, params_nonembedding),
        "vocab_params": best,
        "tokens": tokens,
    }
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # a draw without a best vocabulary
        loss = np.asarray(law.value(tuple(both.T), x))
    vocabulary, seen, reached = (
        Quantity(float(values[0]), *spread(values[1:], coverage)) for values in (best, tokens, loss)
    )
    return BestVocabulary(params_nonembedding, flops, vocabulary, seen, reached, coverage)


def _of_fit(fit: Fit) -> tuple[Array, Array]:
    if not isinstance(fit.law, Vocabulary):
        raise ValueError(f"best_vocabulary needs a fit of vocabulary, got one of {fit.law.spec}")
    refuse_unusable(fit)
    return fit.theta, fit.draws


def _best(theta: Array, size: float, flops: float) -> Array:
    """The root in log N_v of what a vocabulary gains less what it costs in tokens, for theta (K, P)."""
    _, _, a_2, b, _, alpha_2, beta = theta.T
    gain = np.log(alpha_2 * a_2)
    cost = np.log(beta * b) + beta * math.log(TRAIN_FLOPS / flops)

    def excess(log_v: Array) -> Array:
        return np.asarray(
            gain - (alpha_2 + 1) * log_v - cost - (beta - 1) * np.logaddexp(math.log(size), log_v)
        )

    low, high = np.zeros(len(theta)), np.full(len(theta), FAR)
    for _ in range(HALVINGS):  # excess falls: alpha_2 + 1 > 1 - beta
        middle = 0.5 * (low + high)
        more = excess(middle) > 0
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    found = np.exp(0.5 * (low + high))
    # At an end of the search there is no best vocabulary within it.
    return np.asarray(
        np.where(excess(np.zeros(len(theta))) <= 0, 0.0, np.where(low >= FAR - 1e-9, np.inf, found))
    )

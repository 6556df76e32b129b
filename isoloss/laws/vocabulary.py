"""Tao et al. 2024, Scaling Laws with Vocabulary, arXiv:2407.13623."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Published, positive, real
from isoloss.laws.power_sum import Term, term

# As the authors' code prints them (optimal_Nv_predict.py), for parameters in millions and tokens in billions.
_A_1, _A_2, _B, _E = 1.8313851559554126, 0.19584238398665638, 2.1241123120064955, 5.5327846803337435
_ALPHA, _ALPHA_2 = 0.44660634152009615, 0.6707374679896795
# Their fit counts characters x f(V/1000) for tokens, which is 3.011 (V 8,192) to 2.654 (V 96,256) times
# characters x f(V); the geometric middle stands for all.
_COUNTED = math.sqrt(2.654 * 3.011)
_LARGEST = 200_000  # beyond, f is held constant, as in the authors' code


def _raw(tokens: float) -> Mapping[str, float]:
    """The printed constants for plain counts; ``tokens`` is what one counted token stands for."""
    return {
        "E": _E,
        "A_1": _A_1 * 1e6**_ALPHA,
        "A_2": _A_2 * 1e6**_ALPHA_2,
        "B": _B * (1e9 * tokens) ** _ALPHA,
        "alpha_1": _ALPHA,
        "alpha_2": _ALPHA_2,
        "beta": _ALPHA,
    }


class Vocabulary(Law):
    r"""The parameters of the vocabulary are an axis of their own, beside all others and the tokens.

    .. math:: L_u = -E + A_1 N_{nv}^{-\alpha_1} + A_2 N_v^{-\alpha_2} + B D^{-\beta},\quad D = H f(V)

    A larger vocabulary writes the same H characters in fewer tokens, so the loss per token cannot be compared
    across vocabularies. The target is the loss less that of a unigram model of the same tokens, L_u.

    Inputs:
        params_nonembedding: N_nv, all parameters but the vocabulary's [count]. vocab_params: N_v = V d, the
        vocabulary times the width [count]. tokens: D, training tokens [count]; from characters H by
        :func:`tokens_per_character`, where the tokeniser is like the paper's.
    Returns:
        Loss less the unigram loss [nats/token], ordinarily negative. Fits are on plain residuals.
    Valid for:
        33M to 1.1B parameters without the vocabulary, vocabularies of 4,096 to 96,256. With six sizes E, A_1
        and alpha_1 are one direction: the authors set alpha_1 = beta (``--tie alpha_1=beta``).
    Source:
        Approach 3, with the constants of the authors' code. Its fit calls f with the vocabulary in thousands,
        so that it counts 2.65 to 3.01 times the tokens there are, and its choice of a vocabulary then counts real
        ones. ``tao-2024`` is as printed, for tokens as the fit counted them; ``tao-2024-tokens`` has the
        size of the data term for real tokens.
    Example:
        >>> law = Vocabulary()
        >>> theta = law.theta("tao-2024-tokens")
        >>> law.evaluate(theta, params_nonembedding=1e9, vocab_params=[2e7, 8e7], tokens=2e10).round(3).tolist()
        [-5.072, -5.088]
    """

    axes = ("params_nonembedding", "vocab_params", "tokens")
    target = "loss_unigram_normalized"
    signed = True
    formula = "-E + A_1/N_nv^alpha_1 + A_2/N_v^alpha_2 + B/D^beta"
    paper = "Tao et al. 2024, arXiv:2407.13623, approach 3"
    parameters = (
        positive("E", 1e-2, 1e2, "gain over a unigram model without end of size and data"),
        positive("A_1", 1e-8, 1e30, "size of the parameter term"),
        positive("A_2", 1e-8, 1e30, "size of the vocabulary term"),
        positive("B", 1e-8, 1e30, "size of the data term"),
        real("alpha_1", 0.02, 2.0, "exponent of parameters without the vocabulary"),
        real("alpha_2", 0.02, 2.0, "exponent of the vocabulary's parameters"),
        real("beta", 0.02, 2.0, "exponent of tokens"),
    )
    published = {
        "tao-2024": Published(
            _raw(1.0), "arXiv:2407.13623 and its code, to plain counts; tokens as the code's fit counts them"
        ),
        "tao-2024-tokens": Published(
            _raw(1.0 / _COUNTED),
            "the same, B for real tokens: the fit of the code counts 2.83 times as many (2.65 to 3.01)",
        ),
    }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The gain without end lies around the largest seen."""
        top = max(float(np.max(np.abs(y))), 1e-6)
        return {"E": (1e-2 * top, 20 * top)}

    def power_terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """See :meth:`isoloss.laws.law.Law.power_terms`: all but the gain."""
        return [
            term("A_1", {"alpha_1": -log["params_nonembedding"]}),
            term("A_2", {"alpha_2": -log["vocab_params"]}),
            term("B", {"beta": -log["tokens"]}),
        ]

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        gain, a_1, a_2, b, alpha_1, alpha_2, beta = theta
        size, vocabulary, tokens = (np.log(x[axis]) for axis in self.axes)
        return (
            a_1 * np.exp(-alpha_1 * size)
            + a_2 * np.exp(-alpha_2 * vocabulary)
            + b * np.exp(-beta * tokens)
            - gain
        )

    def floor(self, theta: Array) -> Array:
        """See :meth:`isoloss.laws.law.Law.floor`."""
        return -theta[..., 0]


def tokens_per_character(vocab_size: Any) -> Array:
    r"""Tokens per character of a byte-pair tokeniser with V entries: the paper's f(V).

    .. math:: f(V) = 0.00639222 \log^2 V - 0.15811069 \log V + 1.20470122

    Fitted by the authors to tokenisers of one corpus. Another corpus has another f: where a run's own tokens were
    counted, use those.

    Args:
        vocab_size: V, 1,000 or more; above 200,000 f is held constant, as in the authors' code.

    Raises:
        ValueError: V is below 1,000, where the fit says nothing.

    Source:
        Tao et al. 2024, arXiv:2407.13623, approach 2, with the digits of the authors' code.

    Example:
        >>> tokens_per_character([4096, 32768]).round(3).tolist()
        [0.332, 0.252]
    """
    v = np.asarray(vocab_size, dtype=float)
    if not (np.isfinite(v) & (v >= 1000)).all():
        raise ValueError(
            f"tokens_per_character needs a vocabulary of 1,000 entries or more, got {np.min(v):g}. "
            "Count the tokens of the tokeniser itself"
        )
    logs = np.log(np.minimum(v, _LARGEST))
    return np.asarray(0.00639222 * logs**2 - 0.15811069 * logs + 1.20470122)

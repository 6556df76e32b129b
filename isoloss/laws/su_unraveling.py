"""Su et al. 2024, Unraveling the Mystery of Scaling Laws: Part I, arXiv:2403.06563."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.dual import Dual
from isoloss.laws.law import Array, Law, Published, positive, real

STEPS = 60  # of Newton at most; 4 to 8 are used
CLOSE = 1e-12  # of log L: the slope at the last step is as exact as the step is small


class SuUnraveling(Law):
    r"""The whole learning curve at any size and any batch: Kaplan's laws of steps and of the critical batch in one.

    .. math:: L = (N_c/N)^{\alpha_N} + \left(\frac{S_c (1 + B_{crit}(L)/B)}{s}\right)^{\alpha_S},
        \quad B_{crit}(L) = B_*/L^{1/\alpha_B}

    L stands on both sides; the right one falls as L grows, so there is exactly one solution. It is
    ``kaplan-ns`` at :math:`S_{min} = s/(1 + B_{crit}(L)/B)`.

    Inputs:
        params_nonembedding: N [count]. batch_tokens: B, tokens per step [count].
        step: s, the optimiser step at which the loss is read [count].
    Returns:
        Loss [nats/token].
    Valid for:
        Learning rate constant after warm-up, rows past warm-up, data not repeated, the rate tuned at each batch.
        No annealing and no floor: not beyond the largest size that was checked. Several batch sizes, or
        the critical batch is not identified.
    Source:
        The procedure and the fixed point; the three laws are Kaplan et al. 2020 (arXiv:2001.08361, eq. 1.4, 1.6).
        The constants depend on context length, tokenizer, data and rate: estimate your own.
    Example:
        >>> law = SuUnraveling()
        >>> theta = law.theta("kaplan-2020")
        >>> float(law.evaluate(theta, params_nonembedding=1e8, batch_tokens=1e15, step=1e4).round(4))
        3.1082
        >>> loss = law.evaluate(theta, params_nonembedding=1e8, batch_tokens=[1e5, 1e6], step=1e4)
        >>> loss.round(3).tolist()
        [3.774, 3.263]
    """

    axes = ("params_nonembedding", "batch_tokens", "step")
    formula = "root of L = (N_c/N)^alpha_N + (S_c (1 + B_star L^(-1/alpha_B)/B)/s)^alpha_S"
    paper = "Su et al. 2024, arXiv:2403.06563"
    parameters = (
        positive("N_c", 1e-12, 1e40, "scale of parameters"),
        positive("S_c", 1e-12, 1e30, "scale of steps"),
        positive("B_star", 1e-6, 1e30, "critical batch at a loss of 1"),
        real("alpha_N", 0.005, 2.5, "exponent of parameters"),
        real("alpha_S", 0.005, 3.0, "exponent of steps"),
        real("alpha_B", 0.02, 5.0, "inverse exponent of the loss in the critical batch"),
    )
    published = {
        "kaplan-2020": Published(
            {
                "N_c": 6.5e13, "S_c": 2.1e3, "B_star": 2e8,
                "alpha_N": 0.077, "alpha_S": 0.76, "alpha_B": 0.21,
            },
            "arXiv:2001.08361, table 3 and eq. 1.4: WebText2",
        ),
    }  # fmt: skip

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The scales follow the axes; the critical batch at the losses seen is near the batches."""
        batch = x["batch_tokens"]
        top, bottom = max(1.0, float(np.max(y))) ** 15, min(1.0, float(np.min(y))) ** 15
        size, step = x["params_nonembedding"], x["step"]
        return {
            "N_c": (1e-9 * float(size.min()), 1e15 * float(size.max())),
            "S_c": (1e-9 * float(step.min()), 1e9 * float(step.max())),
            "B_star": (1e-3 * float(batch.min()) * bottom, 1e3 * float(batch.max()) * top),
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`.

        With l = log L the equation is ``l = logaddexp(n, h(l))``, ``h`` convex and falling: the gap of the two
        sides is concave with a slope between 1 and ``1 + alpha_S/alpha_B``. It is solved on plain numbers; one more
        Newton step with the derivatives carried along gives those of L exactly (implicit function theorem).
        """
        n_c, s_c, star, alpha_n, alpha_s, alpha_b = theta
        size = alpha_n * (np.log(n_c) - np.log(x["params_nonembedding"]))
        steps = np.log(s_c) - np.log(x["step"])
        ratio = np.log(star) - np.log(x["batch_tokens"])
        numbers = [_plain(entry) for entry in (size, steps, ratio, alpha_s, alpha_b)]
        log_loss, slope = _root(*numbers)
        noise = np.logaddexp(0.0, ratio - log_loss / alpha_b)
        gap = log_loss - np.logaddexp(size, alpha_s * (steps + noise))
        return np.exp(log_loss - gap / slope)


def _plain(number: Any) -> Any:
    return number.value if isinstance(number, Dual) else np.asarray(number)


def _root(size: Array, steps: Array, ratio: Array, alpha_s: Array, alpha_b: Array) -> tuple[Array, Array]:
    """``l = logaddexp(size, alpha_s (steps + softplus(ratio - l/alpha_b)))`` by Newton, and the gap's slope there.

    The gap is concave and rises: the first step lands at or below the root from anywhere, every later one
    goes up to it, so that Newton cannot overshoot.
    """
    parts = np.broadcast_arrays(size, steps, ratio, alpha_s, alpha_b)
    size, steps, ratio, alpha_s, alpha_b = parts
    loss = np.logaddexp(size, alpha_s * steps)  # as at a batch without end: below the root
    slope = np.ones_like(loss)
    for _ in range(STEPS):
        lag = ratio - loss / alpha_b
        curve = alpha_s * (steps + np.logaddexp(0.0, lag))
        right = np.logaddexp(size, curve)
        weight = np.exp(curve - right)
        slope = 1.0 + weight * alpha_s / alpha_b * np.exp(-np.logaddexp(0.0, -lag))
        move = (loss - right) / slope
        loss = loss - move
        if not np.any(np.abs(move) > CLOSE * (1.0 + np.abs(loss))):
            break
    return loss, slope

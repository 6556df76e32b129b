"""Filatov et al. 2024, Time Transfer: On Optimal Learning Rate and Batch Size, arXiv:2410.05838."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, positive, real


class TimeTransfer(Law):
    r"""The best learning rate against batch and training length, with a critical batch that grows with length.

    .. math:: \eta^*(B, T) = \frac{\eta_{max} T^{r}}{\frac12\left(\sqrt{B/B_{crit}} + \sqrt{B_{crit}/B}\right)},
        \quad B_{crit} = c\,T^{q}

    With q = 1 and r = 0 a fixed batch sees three regimes as T grows: the rate rises as the square root of T while
    B is above B_crit, is flat near it, and falls as one over the square root after.

    Inputs:
        batch_tokens: B, tokens per step [count]. tokens: T, training tokens [count].
    Returns:
        lr: the learning rate of the least loss.
    Valid for:
        Batches on both sides of B_crit and several lengths of run, each with the rate tuned. Lengths compared at
        a fixed batch in tokens: at a fixed number of steps the regimes mix.
    Source:
        The observation that the critical batch grows with training length; the shape in B is the surge of Adam's
        rate of Li et al. 2024, arXiv:2405.14578. That the two make one formula, and r, are this package's own.
    Example:
        >>> law = TimeTransfer()
        >>> theta = [1e-3, 0.0, 1e-4, 1.0]
        >>> law.evaluate(theta, batch_tokens=1e5, tokens=[1e5, 1e9, 1e13]).round(6).tolist()
        [2e-05, 0.001, 2e-05]
        >>> law.critical_batch(theta, tokens=1e9).round(6)
        np.float64(100000.0)
    """

    axes = ("batch_tokens", "tokens")
    target = "lr"
    formula = "eta_max T^r/(1/2 (sqrt(B/B_crit) + sqrt(B_crit/B))), B_crit = c T^q"
    paper = "Filatov et al. 2024, arXiv:2410.05838"
    parameters = (
        positive("eta_max", 1e-40, 1e40, "rate at the critical batch, at T = 1"),
        real("r", -1.5, 1.5, "exponent of that rate in tokens"),
        positive("c", 1e-40, 1e40, "critical batch at T = 1"),
        real("q", -1.0, 2.5, "exponent of the critical batch in tokens"),
    )

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """Rate and critical batch are near those seen, for every exponent that is allowed."""
        short, long = float(np.min(x["tokens"])), float(np.max(x["tokens"]))
        batch = x["batch_tokens"]
        return {
            "eta_max": (0.1 * float(np.min(y)) * long**-1.5, 1e3 * float(np.max(y)) * long**1.5),
            "c": (
                1e-3 * float(np.min(batch)) * long**-2.5,
                1e3 * float(np.max(batch)) * max(long, 1 / short),
            ),
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        top, r, c, q = theta
        length = np.log(x["tokens"])
        half = 0.5 * (np.log(x["batch_tokens"]) - np.log(c) - q * length)
        return np.exp(np.log(2.0) + np.log(top) + r * length - np.logaddexp(half, -half))

    def critical_batch(self, theta: Any, tokens: Any) -> Array:
        """B_crit = c T^q, at which the best rate is largest.

        Args:
            theta: shape (..., 4). tokens: T, one number or shape (n,).

        Returns:
            Shape (...) for one number, else (..., n), in tokens.

        Raises:
            ValueError: tokens are not finite and above 0.
        """
        length = np.asarray(tokens, dtype=float)
        if not (np.isfinite(length) & (length > 0)).all():
            raise ValueError(f"needed tokens finite and above 0, got {tokens}")
        theta = np.asarray(theta, dtype=float)
        c, q = theta[..., 2], theta[..., 3]
        if length.ndim:
            c, q = c[..., None], q[..., None]
        return np.asarray(np.exp(np.log(c) + q * np.log(length)))

"""What a wrong learning rate and batch cost, beside Step Law (Li et al. 2025, arXiv:2503.04715): as a term of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Parameter, Published, positive, real
from isoloss.laws.parts.part import LossTerm

SIZE, TOKENS = 1e9, 1e10
"""Where eta_1 and batch_1 are the best: numbers of the size that people know, nearly independent of the exponents."""

_LR = ("eta_1", "a_N", "a_D", "k_lr", "g_lr")
_BATCH = ("batch_1", "b_N", "b_D", "k_batch", "g_batch")
# Exponents that the boxes of eta_1 and batch_1 allow for, of size and of tokens.
_STEEPEST = 1.5


class LrBatch(LossTerm):
    r"""What a learning rate and a batch cost that are not the best ones of their size and tokens.

    .. math::
        \delta = k_\eta\,\ell_{g_\eta}(u - s v) + k_B\,\ell_{g_B}(v),\quad
        u = \ln\frac{\eta}{\eta^*},\; v = \ln\frac{B}{B^*},\quad
        \ell_g(z) = 2\,\frac{e^{gz} - 1 - gz}{g^2}

    .. math::
        \eta^* = \eta_1 \left(\frac{N}{10^9}\right)^{a_N} \left(\frac{D}{10^{10}}\right)^{a_D},\quad
        B^* = B_1 \left(\frac{N}{10^9}\right)^{b_N} \left(\frac{D}{10^{10}}\right)^{b_D}

    A bowl in logs that is steeper towards large values where g is above 0, and z squared at g = 0. At a batch B
    that is held fixed the best rate is ``eta* (B/B*)^s``: its exponent of tokens is ``a_D - s b_D``.

    Inputs:
        lr: eta, peak learning rate; absent: the best one for the batch. batch_tokens: B, tokens per optimiser step
            [count]; absent: the best one.
    Returns:
        What is added to the loss [nats/token]; 0 at the best rate and batch, never below.
    Valid for:
        Runs near their best setting: within some 2 % of the least loss of their size and tokens. Runs that
        diverged do not lie on a bowl; leave them out, ``isoloss optimum --kept`` writes the table without them.
        Grids of rate and batch at several sizes and tokens; the base must fit their levels.
    Source:
        Step Law's best rate and batch, with its printed constants (b_N = 0; batch in tokens, N without embeddings,
        final rate 1e-5). The bowl and b_N are this package's own; the paper says of the surface that it is convex.
    Example:
        >>> import numpy as np
        >>> part = LrBatch(("lr",))
        >>> theta = {**part.published["li-2025"].values, "k_lr": 0.02, "g_lr": 0.5}
        >>> x = {"params": 1e9, "tokens": 1e10, "lr": np.array([2e-4, 8.05e-4, 3.2e-3])}
        >>> part.value(theta, x).round(4).tolist()
        [0.0312, 0.0, 0.0486]
    """

    columns = ("lr", "batch_tokens")
    reference = "lr absent (the best for the batch), batch_tokens absent (the best)"
    formula = "k_lr l(u - s v, g_lr) + k_batch l(v, g_batch), u and v logs of lr and batch over eta_1 ..., batch_1 ..."
    paper = "own form, beside Li et al. 2025, arXiv:2503.04715"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Five of each column, and how the best rate follows the batch."""
        out: list[Parameter] = []
        if "lr" in self.reads:
            out += [
                positive("eta_1", 1e-9, 1e2, "best rate at 1e9 parameters and 1e10 tokens"),
                real("a_N", -_STEEPEST, _STEEPEST, "exponent of parameters in the best rate"),
                real("a_D", -_STEEPEST, _STEEPEST, "exponent of tokens in the best rate"),
                positive("k_lr", 1e-5, 2.0, "loss of a rate that is wrong by a factor e"),
                real("g_lr", -2.0, 2.0, "how much dearer too high is than too low"),
            ]
        if "batch_tokens" in self.reads:
            out += [
                positive("batch_1", 1.0, 1e12, "best batch at 1e9 parameters and 1e10 tokens"),
                real("b_N", -_STEEPEST, _STEEPEST, "exponent of parameters in the best batch"),
                real("b_D", -_STEEPEST, _STEEPEST, "exponent of tokens in the best batch"),
                positive("k_batch", 1e-5, 2.0, "loss of a batch that is wrong by a factor e"),
                real("g_batch", -2.0, 2.0, "how much dearer too large is than too small"),
            ]
        if len(self.reads) == 2:
            out.append(
                real("s", -1.0, 2.0, "exponent of the batch in the best rate, at given size and tokens")
            )
        return tuple(out)

    @property
    def published(self) -> Mapping[str, Published]:
        """Step Law's constants at the reference point; nothing is printed of the bowl."""
        values = {
            "eta_1": 1.79 * SIZE**-0.713 * TOKENS**0.307, "a_N": -0.713, "a_D": 0.307,
            "batch_1": 0.58 * TOKENS**0.571, "b_N": 0.0, "b_D": 0.571,
        }  # fmt: skip
        own = {p.name: values[p.name] for p in self.parameters if p.name in values}
        return {
            "li-2025": Published(own, "arXiv:2503.04715, printed laws: N without embeddings, batch in tokens")
        }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The best rate and batch are near those tried, for every exponent that is allowed."""
        n, d = (float(np.mean(np.log(x[axis] / at))) for axis, at in (("params", SIZE), ("tokens", TOKENS)))
        slack = 1.0 + _STEEPEST * (abs(n) + abs(d))
        return {
            name: (
                math.exp(math.log(float(x[column].min())) - slack),
                math.exp(math.log(float(x[column].max())) + slack),
            )
            for name, column in (("eta_1", "lr"), ("batch_1", "batch_tokens"))
            if column in self.reads
        }

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        n, d = np.log(x["params"] / SIZE), np.log(x["tokens"] / TOKENS)
        out: Any = 0.0
        v: Any = 0.0
        if "batch_tokens" in self.reads:
            v = np.log(x["batch_tokens"]) - np.log(theta["batch_1"]) - theta["b_N"] * n - theta["b_D"] * d
            out = theta["k_batch"] * bowl(v, theta["g_batch"])
        if "lr" in self.reads:
            u = np.log(x["lr"]) - np.log(theta["eta_1"]) - theta["a_N"] * n - theta["a_D"] * d
            if "batch_tokens" in self.reads:
                u = u - theta["s"] * v
            out = out + theta["k_lr"] * bowl(u, theta["g_lr"])
        return out


def bowl(z: Any, g: Any) -> Any:
    """``2 (exp(g z) - 1 - g z)/g^2``: z squared at g = 0, convex, 0 at z = 0.

    Example:
        >>> bowl(np.array([-1.0, 1.0]), 0.0).tolist(), bowl(np.array([-1.0, 1.0]), 1.0).round(3).tolist()
        ([1.0, 1.0], [0.736, 1.437])
    """
    w = g * z
    near = np.abs(w) < 1e-2
    series = 1.0 + w / 3.0 + w * w / 12.0 + w * w * w / 60.0 + w * w * w * w / 360.0
    away = np.where(near, 1.0, w)
    return z * z * np.where(near, series, 2.0 * (np.expm1(away) - away) / (away * away))

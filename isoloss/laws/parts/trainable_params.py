"""Chatelain et al. 2021, Is the Number of Trainable Parameters All That Actually Matters?, arXiv:2109.11928."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Parameter, Published, real
from isoloss.laws.parts.part import Factor


class TrainableParams(Factor):
    r"""Do frozen weights count as parameters? A weight between the trainable and the total count.

    .. math:: N_{\mathrm{eff}} / N = (N_{\mathrm{trainable}} / N)^{w}

    At w = 1 only trainable parameters count, which is the paper's answer; at w = 0 all do. In a pure power of the
    size, ``log L = const - alpha w log N_trainable - alpha (1 - w) log N``: that the coefficient of the total count
    is 0 is that the interval of w covers 1.

    Inputs:
        params_trainable: N_trainable, counted as the base's size is (with or without embeddings) [count]; absent:
            nothing is frozen. params, raw, of the base: N, frozen ones included.
    Returns:
        N_eff / N; exactly 1 where nothing is frozen; NaN where more are trainable than there are.
    Valid for:
        Random frozen weights, or structured transforms in place of dense layers, in models trained from scratch. A
        table tells w only where the frozen share varies. Frozen weights still cost their multiplications: forward and
        the gradient of the input, 4 of 6 FLOPs per weight and token.
    Source:
        The paper's question and answer, w = 1. The power w between the two counts is not in it: it makes its answer
        one that an interval can reject.
    Example:
        >>> import numpy as np
        >>> part = TrainableParams()
        >>> x = {"params": np.full(3, 1e9), "params_trainable": np.array([1e9, 5e8, 1e8])}
        >>> part.value({"w": 1.0}, x).round(3).tolist(), part.value({"w": 0.5}, x).round(3).tolist()
        ([1.0, 0.5, 0.1], [1.0, 0.707, 0.316])
    """

    columns = ("params_trainable",)
    reference = "params_trainable absent, or all parameters"
    formula = "(N_trainable/N)^w"
    paper = "Chatelain et al. 2021, arXiv:2109.11928"
    scales = "params"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One."""
        return (real("w", -2.0, 3.0, "0: all parameters count; 1: only trainable ones"),)

    @property
    def published(self) -> Mapping[str, Published]:
        """The paper's answer."""
        return {"chatelain-2021": Published({"w": 1.0}, "arXiv:2109.11928: only trainable parameters count")}

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """No more can be trained than there are."""
        return x["params_trainable"] <= x["params"], "params_trainable not above the size of the model"

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        share = x["params_trainable"] / x["params"]
        return np.exp(theta["w"] * np.log(np.where(share <= 1.0, share, np.nan)))

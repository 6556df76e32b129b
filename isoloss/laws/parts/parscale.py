"""Chen et al. 2025, Parallel Scaling Law for Language Models, arXiv:2505.10475: parallel streams as a factor of the size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Parameter, Published, positive
from isoloss.laws.parts.part import Factor


class Parscale(Factor):
    r"""A model that runs P streams of its input in parallel and mixes their outputs counts as a larger one.

    .. math:: N_{\mathrm{eff}} / N = 1 + k \ln P

    The paper's law is ``henighan * parscale``: :math:`L = E + (A/(N (k \ln P + 1)))^\alpha`, with Henighan's L_inf
    and x_0 for E and A.

    Inputs:
        streams: P, parallel streams, learned prefixes of one model [count]; absent, or 1: none.
    Returns:
        N_eff / N; exactly 1 at P = 1; NaN below it.
    Valid for:
        1 to 8 streams, trained with them; 0.5e9 to 4.4e9 parameters without embeddings, 42e9 training tokens. Compute
        grows about as P: what is saved is memory, and time at small batches.
    Source:
        Eq. 5; k as printed in section 3.2 (two digits). The other constants of the fits are not printed there.
    Example:
        >>> import numpy as np
        >>> part = Parscale()
        >>> part.value({"k": 0.39}, {"streams": np.array([1.0, 2.0, 8.0])}).round(3).tolist()
        [1.0, 1.27, 1.811]
    """

    columns = ("streams",)
    reference = "streams absent or 1"
    together = ("henighan", "hestness")
    formula = "1 + k ln P"
    paper = "Chen et al. 2025, arXiv:2505.10475, eq. 5"
    scales = "params"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One."""
        return (
            positive(
                "k", 1e-4, 100.0, "parameters that a factor e of streams is worth, in sizes of the model"
            ),
        )

    @property
    def published(self) -> Mapping[str, Published]:
        """The printed slopes."""
        source = "arXiv:2505.10475, section 3.2, as printed (two digits): 24 runs on {}"
        return {
            "stack-v2-python-2025": Published({"k": 0.39}, source.format("Stack-V2 Python")),
            "pile-2025": Published({"k": 0.33}, source.format("the Pile")),
        }

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """One stream is the plain model."""
        return x["streams"] >= 1, "streams at or above 1"

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        streams = np.where(x["streams"] >= 1.0, x["streams"], np.nan)
        return 1.0 + theta["k"] * np.log(streams)

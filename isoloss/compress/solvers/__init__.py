"""Takes a weight, a format and statistics of its layer, gives the weight encoded: one method, one file, one paper.

``SOLVERS`` is the registry that the command line, the documentation and the tests read. A file is imported when its
solver is asked for.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

from isoloss.compress import settings
from isoloss.compress.solvers.solver import Solver, output_error

if TYPE_CHECKING:
    from isoloss.compress.solvers.adaround import AdaRound
    from isoloss.compress.solvers.gptq import Gptq
    from isoloss.compress.solvers.kmeans import Kmeans
    from isoloss.compress.solvers.lr2vq import Lr2vq
    from isoloss.compress.solvers.lut_feedback import LutFeedback
    from isoloss.compress.solvers.nearest import Nearest
    from isoloss.compress.solvers.squeezellm import SqueezeLlm
    from isoloss.compress.solvers.zeroquant_fp import ZeroQuantFp

__all__ = [
    "SOLVERS",
    "AdaRound",
    "Gptq",
    "Kmeans",
    "Lr2vq",
    "LutFeedback",
    "Nearest",
    "Solver",
    "SqueezeLlm",
    "ZeroQuantFp",
    "get",
    "output_error",
]

SOLVERS: dict[str, str] = {
    "nearest": "nearest:Nearest",
    "gptq": "gptq:Gptq",
    "kmeans": "kmeans:Kmeans",
    "squeezellm": "squeezellm:SqueezeLlm",
    "lut-feedback": "lut_feedback:LutFeedback",
    "zeroquant-fp": "zeroquant_fp:ZeroQuantFp",
    "adaround": "adaround:AdaRound",
    "lr2vq": "lr2vq:Lr2vq",
}
"""Name -> ``module:class`` below ``isoloss.compress.solvers``."""

_HOME = {place.partition(":")[2]: place.partition(":")[0] for place in SOLVERS.values()}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"isoloss.compress.solvers.{_HOME[name]}"), name)
    raise AttributeError(f"module 'isoloss.compress.solvers' has no attribute {name!r}")


def get(text: str) -> Solver:
    """The solver of that name, with settings in brackets.

    Raises:
        ValueError: no such solver or setting; the message lists what there is.

    Example:
        >>> get("gptq(order=natural, damp=0.05)").spec
        'gptq(damp=0.05, order=natural)'
        >>> get("gptq(damp=0.01)").spec
        'gptq'
        >>> get("rtn")
        Traceback (most recent call last):
            ...
        ValueError: no solver named 'rtn'. There are: nearest, gptq, kmeans, squeezellm, lut-feedback, zeroquant-fp, adaround, lr2vq
    """
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
    name = match[1] if match else text
    if match is None or name not in SOLVERS:
        raise ValueError(f"no solver named {name!r}. There are: {', '.join(SOLVERS)}")
    module, _, kind = SOLVERS[name].partition(":")
    found: type[Solver] = getattr(importlib.import_module(f"isoloss.compress.solvers.{module}"), kind)
    return settings.read(found, match[2] or "", name)

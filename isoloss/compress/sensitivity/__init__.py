"""Takes a model, its candidates and a loss, says what each layer in each format costs: one method, one file, one paper.

``SENSITIVITIES`` is the registry that the command line, the documentation and the tests read. A file is imported when
its method is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.compress.candidates import Candidates
    from isoloss.compress.sensitivity.scores import Scores
    from isoloss.measure.subject import Subject

__all__ = ["SENSITIVITIES", "get", "score"]

SENSITIVITIES: dict[str, str] = {
    "hawq": "hawq:score",
    "hawq-v2": "hawq_v2:score",
    "fisher": "fisher:score",
    "output-error": "output_error:score",
    "kronecker": "kronecker:score",
    "block-fisher": "block_fisher:score",
    "bsnip": "proxies:snip",
    "pd": "prediction_difference:score",
    "measured": "measured:score",
}
"""Name -> ``module:function`` below ``isoloss.compress.sensitivity``."""

Score = Callable[["Subject", "Candidates", int], "Scores"]


def get(name: str) -> Score:
    """The method of that name.

    Raises:
        ValueError: no such method; the message lists what there is.

    Example:
        >>> get("hawq-v3")
        Traceback (most recent call last):
            ...
        ValueError: no sensitivity named 'hawq-v3'. There are: hawq, hawq-v2, fisher, output-error, kronecker, block-fisher, ...
    """
    if name not in SENSITIVITIES:
        raise ValueError(f"no sensitivity named {name!r}. There are: {', '.join(SENSITIVITIES)}")
    module, _, function = SENSITIVITIES[name].partition(":")
    found: Any = getattr(importlib.import_module(f"isoloss.compress.sensitivity.{module}"), function)
    return found  # type: ignore[no-any-return]


def score(name: str, subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    """What each layer in each format costs by that method, and what the method itself cost.

    Args:
        name: of the method.
        subject: model, data and loss.
        candidates: of the same model.
        seed: of what is drawn at random.

    Raises:
        ValueError: no such method.

    Example:
        >>> import torch
        >>> from isoloss.compress import Choice, find
        >>> from isoloss.compress.candidates import candidates
        >>> from isoloss.measure import Subject
        >>> from isoloss.measure.criteria import SquaredError
        >>> net, x = torch.nn.Linear(2, 1, bias=False), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.4]]))
        >>> subject = Subject(net, [(x, x @ net.weight.detach().T)], SquaredError())
        >>> tried = candidates(net, find(net).layers, [Choice("int2/asym")], [x])  # 0.4 becomes 1/3
        >>> for name in ("hawq", "hawq-v2", "kronecker", "measured"):
        ...     print(name, round(score(name, subject, tried).table["model"]["int2/asym"], 5))
        hawq 0.00446
        hawq-v2 0.00278
        kronecker 0.00111
        measured 0.00111
    """
    from isoloss.measure.measurement import timed
    from isoloss.measure.products import gradient_seconds

    with timed() as watch:
        found = get(name)(subject, candidates, seed)
    try:
        unit = gradient_seconds(subject, 1)
    except RuntimeError:  # nothing takes a gradient
        return replace(found, spent=watch.spent())
    return replace(found, spent=watch.spent(unit))

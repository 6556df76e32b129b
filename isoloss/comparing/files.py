"""Reads what the verbs wrote: a fit or a stack, told apart by the schema in the file."""

from __future__ import annotations

import json
from pathlib import Path

from isoloss.comparing.stack import SCHEMA, Stack
from isoloss.fitting.result import Fit
from isoloss.fitting.result import load as load_fit


def load(path: str | Path, *, group: str | None = None) -> Fit | Stack:
    """Read a fit or a stack that ``save`` or ``isoloss fit --json`` wrote.

    Args:
        path: the file.
        group: which one, if the file holds a fit for each value of a column (``isoloss fit --by``).

    Raises:
        ValueError: no such file, not JSON, not a fit or stack, or no such group.

    Example:
        >>> import isoloss
        >>> isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}).save("power.json")
        >>> load("power.json").result
        'identified'
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return load_fit(path, group=group)  # which says what is wrong
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return load_fit(path, group=group)
    if group is not None:
        raise ValueError(f"{path} holds one stack, so there is no group {group!r}. Leave --group out")
    return Stack.from_json(document)

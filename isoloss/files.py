"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_text(document: Mapping[str, Any]) -> str:
    """JSON with one top-level key a line: short enough to read, small enough to keep.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.

    Example:
        >>> print(json_text({"a": 1, "b": [1, 2]}), end="")
        {
        "a": 1,
        "b": [1, 2]
        }
    """
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename: a crash leaves the old file or the new one.

    Raises:
        ValueError: the folder does not exist or cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's 0600 is for secrets
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
        raise

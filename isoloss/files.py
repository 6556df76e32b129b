"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


def refuse_unwritable(path: Path) -> None:
    """Refuse a place that no file can be written to, before the work whose result is to go there.

    Raises:
        ValueError: the path is a folder, or its folder does not exist or cannot be written.
    """
    if not path.name or path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder. Add the name of a file")
    folder = _target(path).parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"cannot write {path}: {folder} is no folder that can be written to")


def _target(path: Path) -> Path:
    """The file behind a symbolic link: the link stays, what it points to is written."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename: a crash leaves the old file or the new one.

    A symbolic link is followed and kept.

    Raises:
        ValueError: the path is a folder, or its folder does not exist or cannot be written.
    """
    refuse_unwritable(path)
    with written(_target(path)) as beside, open(beside, "w", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its name when the block ends well, and is gone when it does not.

    Folders that are missing are made.

    Raises:
        ValueError: it cannot be written there.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written(Path(folder) / "a.bin") as beside:
        ...         _ = beside.write_bytes(b"whole")
        ...     os.listdir(folder)
        ['a.bin']
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    os.close(handle)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's 0600 is for secrets
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
        raise

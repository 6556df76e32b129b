"""What an export wrote."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoloss.files import refuse_unwritable


@dataclass(frozen=True)
class Written:
    """An exported model.

    Attributes:
        path: of the file.
        bytes: of the file, and of the file of large tensors beside it where there is one.
        types: layer -> how it is stored there (``Q4_0``, ``MatMulNBits 4 bits``).
        bits: layer -> stored bits of its weight there, scales counted.
        left: what of the model the file does not hold -> why.
        notes: what a reader must know.
    """

    path: Path
    bytes: int
    types: Mapping[str, str]
    bits: Mapping[str, int]
    left: Mapping[str, str]
    notes: tuple[str, ...] = ()


def needed(name: str, extra: str = "export") -> Any:
    """A package that exporting needs.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"this export needs {name.partition('.')[0]}. Do: pip install 'isoloss[{extra}]'"
        ) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to; what is there at the end takes the path's place, or nothing does.

    Raises:
        ValueError: no file can be written there.
    """
    refuse_unwritable(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        place = Path(folder) / path.name
        yield place
        for made in sorted(Path(folder).iterdir(), key=lambda one: one == place):  # the named file last
            os.replace(made, path.parent / made.name)

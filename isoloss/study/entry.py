"""takes the text `package.module:function` or `path/to/file.py:function`, gives the function and its file's digest."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A function that was named by text: itself, its source file and the SHA-256 of that file."""

    text: str
    function: Callable[..., Any]
    module: ModuleType
    file: Path
    sha256: str


def split(text: str) -> tuple[str, str]:
    """Where and what: ``"lm/train.py:train"`` -> ``("lm/train.py", "train")``.

    Raises:
        ValueError: the text names no function, or is no text.

    Example:
        >>> split("package.module:train")
        ('package.module', 'train')
    """
    where, colon, name = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not where.strip() or not name.isidentifier():
        raise ValueError(
            f"needed a function as 'package.module:function' or 'path/to/file.py:function', got {text!r}"
        )
    return where.strip(), name


def resolve(text: str, root: Path) -> Entry:
    """Import what ``text`` names and take the function from it.

    A path is relative to ``root``, and its folder is searched for the modules it imports, as for a script. A
    module is searched for in ``root`` first, then among the installed ones. A function that another module
    defines has that module's file.

    Args:
        text: ``package.module:function`` or ``path/to/file.py:function``.
        root: the folder of the study file.

    Raises:
        ValueError: there is no such file, module or function, importing it fails, or it has no source file.
    """
    where, name = split(text)
    module = _from_file(text, root / where) if where.endswith(".py") else _from_module(text, where, root)
    function = getattr(module, name, None)
    if not callable(function):
        found = "is not there" if function is None else f"is a {type(function).__name__}"
        raise ValueError(f"needed the function {name!r} in {where}, but it {found}. Correct {text!r}")
    return entry_of(text, function, module)


def beside(entry: Entry, name: str) -> Entry | None:
    """The function called ``name`` in the module of ``entry``; None where there is none."""
    function = getattr(entry.module, name, None)
    return entry_of(f"{split(entry.text)[0]}:{name}", function, entry.module) if callable(function) else None


def entry_of(text: str, function: Callable[..., Any], module: ModuleType) -> Entry:
    """The entry of a function that is at hand."""
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        source = getattr(module, "__file__", None)
    if source is None or not Path(source).is_file():
        raise ValueError(
            f"{text!r} has no source file, so what runs could not be recorded. Name one that has"
        )
    file = Path(source).resolve()
    return Entry(text, function, module, file, hashlib.sha256(file.read_bytes()).hexdigest())


def _search_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _from_file(text: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}, which {text!r} names. Paths are relative to the study file"
        )
    path = path.resolve()
    _search_first(path.parent)
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    # Its own name where that is free, so that processes started by it can import it again.
    name = path.stem if known is None else f"isoloss_trainer_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a file that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        raise ValueError(f"importing {path} failed: {_last(error)}") from error
    return module


def _from_module(text: str, where: str, root: Path) -> ModuleType:
    _search_first(root.resolve())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise ValueError(
                f"there is no module {error.name!r}, which {text!r} names, in {root} or installed. "
                "Put it beside the study file, install it, or name a file: 'path/to/file.py:function'"
            ) from error
        raise ValueError(f"importing {where} failed: {_last(error)}") from error
    except BaseException as error:  # SystemExit of a script without a guard, too
        raise ValueError(f"importing {where} failed: {_last(error)}") from error


def _last(error: BaseException) -> str:
    """``ModuleNotFoundError: No module named 'torch' (train.py, line 3)``."""
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    # SyntaxError names its line itself.
    if isinstance(error, SyntaxError) or not frames:
        return said
    return f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"

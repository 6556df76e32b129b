"""A user's own law: loaded from a file, and tried once before it is trusted."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from isoloss.laws.law import Law, Parameter


def own_law(name: str) -> type[Law]:
    """The class that ``file.py:Class`` or ``module:Class`` names.

    Raises:
        ValueError: no such file or class, it lacks a part, or its value() fails on a trial point.
    """
    place, _, attribute = name.rpartition(":")
    module = _load(place)
    law = getattr(module, attribute, None)
    if not (isinstance(law, type) and issubclass(law, Law)):
        known = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Law) and value.__module__ == module.__name__
        ]
        raise ValueError(
            f"{place} has no law {attribute!r}: needed a subclass of isoloss.laws.Law, found {known or 'none'}"
        )
    lacking = [part for part in ("axes", "parameters") if not getattr(law, part)]
    lacking += sorted(getattr(law, "__abstractmethods__", ()))
    if lacking:
        raise ValueError(f"law {attribute} in {place} lacks {', '.join(lacking)}")
    try:
        built = law()
    except TypeError as error:
        raise ValueError(f"law {attribute} in {place} must be made without arguments: {error}") from error
    _try(built, name)
    return law


def _try(law: Law, name: str) -> None:
    """Evaluate once in the middle of the box: a mistake is one line here, not a traceback later."""
    if isinstance(law.axes, str) or isinstance(law.parameters, Parameter):
        raise ValueError(
            f"law {name}: axes and parameters are tuples; one entry needs its comma: ('tokens',)"
        )
    twice = sorted({p for p in law.names if law.names.count(p) > 1})
    if twice:
        raise ValueError(f"law {name}: two parameters are named {twice[0]!r}. Rename one")
    middle = [(p.low * p.high) ** 0.5 if p.scale == "log" else (p.low + p.high) / 2 for p in law.parameters]
    try:
        with np.errstate(all="ignore"):
            law.elasticities(np.array([middle, middle]), {axis: np.array([1e6, 1e9]) for axis in law.axes})
    except Exception as error:
        if "derivative rule" in str(error):  # says already which function, and what to use
            raise
        raise ValueError(
            f"law {name}: value(self, theta, x) fails on a trial point: {type(error).__name__}: {error}. theta "
            f"holds {', '.join(law.names)} in this order, x holds {', '.join(law.axes)}, each an array: write "
            "it in NumPy (np.exp, np.where), without math and without if"
        ) from error


def _load(place: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise ValueError(f"cannot import {place!r} for a law: {error}") from error
    path = Path(place)
    if not path.is_file():
        raise ValueError(f"no file {place!r} with a law in it (looked from {Path.cwd()})")
    return _run(path.resolve(), path.stat().st_mtime_ns, path.stat().st_size)


@cache
def _run(path: Path, _changed: int, _size: int) -> Any:
    """The module in the file; an edited file is run again."""
    spec = importlib.util.spec_from_file_location(f"isoloss_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"cannot load {str(path)!r} as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # Straight from the text: a cached bytecode file may be older than an edit within the same second.
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ValueError(f"{path} does not run: {type(error).__name__}: {error}") from error
    return module

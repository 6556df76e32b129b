"""A user's own law, factor or term: loaded from a file, and tried once before it is trusted."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from isoloss.laws.dual import Dual
from isoloss.laws.law import Law, Parameter
from isoloss.laws.parts.part import Part


def own_law(name: str) -> type[Law]:
    """The class that ``file.py:Class`` or ``module:Class`` names.

    Raises:
        ValueError: no such file or class, it lacks a part, or its value() fails on a trial point.
    """
    place, _, attribute = name.rpartition(":")
    law: type[Law] = _class_in(place, attribute, Law, "law", "isoloss.laws.Law")
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


def own_part(name: str, kind: type[Part], reads: tuple[str, ...] = ()) -> Part:
    """The factor or term that ``file.py:Class`` or ``module:Class`` names, reading these columns.

    Args:
        name: the address.
        kind: ``Factor`` or ``LossTerm``.
        reads: columns in use; none: all.

    Raises:
        ValueError: no such file or class, it lacks something, or its value() fails on a trial point.
    """
    place, _, attribute = name.rpartition(":")
    what = "factor" if kind.__name__ == "Factor" else "term"
    found: type[Part] = _class_in(place, attribute, kind, what, f"isoloss.laws.parts.{kind.__name__}")
    needed = ("columns", "reference", "formula", *(("scales",) if what == "factor" else ()))
    lacking = [word for word in needed if not hasattr(found, word)]
    lacking += sorted(getattr(found, "__abstractmethods__", ()))
    if lacking:
        raise ValueError(f"{what} {attribute} in {place} lacks {', '.join(lacking)}")
    if isinstance(found.columns, str) or isinstance(found.shared, str):
        raise ValueError(
            f"{what} {name}: columns and shared are tuples; one entry needs its comma: ('bits',)"
        )
    if what == "factor" and getattr(found, "scales", "") not in ("params", "tokens"):
        raise ValueError(
            f"{what} {name}: scales must be 'params' or 'tokens', got {getattr(found, 'scales', '')!r}"
        )
    part = found(reads)
    object.__setattr__(part, "_spec", name)
    _try_part(part, name, what)
    return part


def _class_in(place: str, attribute: str, kind: type[Any], what: str, public: str) -> type[Any]:
    """The subclass of ``kind`` of that name in the file or module."""
    module = _load(place)
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        known = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, kind) and value.__module__ == module.__name__
        ]
        raise ValueError(
            f"{place} has no {what} {attribute!r}: needed a subclass of {public}, found {known or 'none'}"
        )
    return found


def _middle(parameter: Parameter) -> float:
    low, high = parameter.low, parameter.high
    return math.sqrt(low) * math.sqrt(high) if parameter.scale == "log" else (low + high) / 2


def _try_part(part: Part, name: str, what: str) -> None:
    """Evaluate once, with numbers that carry derivatives, in the middle of the box."""
    if isinstance(part.parameters, Parameter):
        raise ValueError(f"{what} {name}: parameters is a tuple; one entry needs its comma: (positive(...),)")
    entries = [*((q.name, _middle(q)) for q in part.parameters), *((shared, 0.5) for shared in part.shared)]
    theta = {
        key: Dual(np.full((2, 1), value), {i: np.ones((2, 1))}) for i, (key, value) in enumerate(entries)
    }
    columns = dict.fromkeys(("params", "tokens", *part.reads))
    x = {axis: Dual(np.array([2.0, 8.0]), {len(entries) + i: np.ones(2)}) for i, axis in enumerate(columns)}
    try:
        with np.errstate(all="ignore"):
            part.value(theta, x)
    except Exception as error:
        if "derivative rule" in str(error):  # says already which function, and what to use
            raise ValueError(f"{what} {name}: {error}") from error
        raise ValueError(
            f"{what} {name}: value(self, theta, x) fails on a trial point: {type(error).__name__}: {error}. theta "
            f"holds {', '.join(theta)} by name, x holds {', '.join(x)}, each an array: write it in NumPy (np.exp, "
            "np.where), without math and without if"
        ) from error


def _try(law: Law, name: str) -> None:
    """Evaluate once in the middle of the box: a mistake is one line here, not a traceback later."""
    if isinstance(law.axes, str) or isinstance(law.parameters, Parameter):
        raise ValueError(
            f"law {name}: axes and parameters are tuples; one entry needs its comma: ('tokens',)"
        )
    twice = sorted({p for p in law.names if law.names.count(p) > 1})
    if twice:
        raise ValueError(f"law {name}: two parameters are named {twice[0]!r}. Rename one")
    middle = [_middle(parameter) for parameter in law.parameters]
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

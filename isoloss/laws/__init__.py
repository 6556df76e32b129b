"""Takes named inputs with units, gives a predicted target: the parametric laws of the literature.

``__all__`` is the registry that the command line, the documentation and the tests read: one class, one
file, one paper. A file is imported when its law is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloss.laws.law import Law, Parameter, Published, positive, real, slug_of
from isoloss.laws.power_sum import PowerSum, Term, term

if TYPE_CHECKING:
    from isoloss.laws.broken1 import Broken1
    from isoloss.laws.broken2 import Broken2
    from isoloss.laws.gadre import Gadre
    from isoloss.laws.gadre_untied import GadreUntied
    from isoloss.laws.henighan import Henighan
    from isoloss.laws.hestness import Hestness
    from isoloss.laws.hoffmann import Hoffmann
    from isoloss.laws.kaplan_d import KaplanD
    from isoloss.laws.kaplan_n import KaplanN
    from isoloss.laws.kaplan_nd import KaplanNd
    from isoloss.laws.loss_to_error import LossToError
    from isoloss.laws.muennighoff import Muennighoff
    from isoloss.laws.power import Power

__all__ = [
    "Broken1",
    "Broken2",
    "Gadre",
    "GadreUntied",
    "Henighan",
    "Hestness",
    "Hoffmann",
    "KaplanD",
    "KaplanN",
    "KaplanNd",
    "LossToError",
    "Muennighoff",
    "Power",
]

LAWS: dict[str, str] = {slug_of(name): name for name in __all__}
"""Slug -> class name."""

# What a law is made of; not laws, so not in __all__.
PARTS = (Law, Parameter, Published, PowerSum, Term, positive, real, term)


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = importlib.import_module(f"isoloss.laws.{slug_of(name).replace('-', '_')}")
        return getattr(module, name)
    raise AttributeError(f"module 'isoloss.laws' has no attribute {name!r}")


def get(name: str) -> Law:
    """The law of that name.

    Args:
        name: a slug (``"hoffmann"``); for laws of one axis the axis may follow (``"power(flops)"``);
            or a user's own, ``"path/to/my_laws.py:MyLaw"`` or ``"my_package.laws:MyLaw"``.

    Raises:
        ValueError: no such law, file or class; the message lists what there is.

    Example:
        >>> get("power(flops)").axes
        ('flops',)
    """
    name = name.strip()
    if ":" in name:
        return _own(name)
    match = re.fullmatch(r"([\w-]+)(?:\((\w+)\))?", name)
    slug, axis = (match[1].lower().replace("_", "-"), match[2]) if match else (name, None)
    if slug not in LAWS:
        raise ValueError(
            f"no law named {name!r}. There are: {', '.join(LAWS)}; your own is FILE.py:ClassName"
        )
    law = __getattr__(LAWS[slug])
    if axis is None:
        return law()  # type: ignore[no-any-return]
    if "axis" not in getattr(law, "__dataclass_fields__", {}):
        raise ValueError(f"{slug} has fixed axes {list(law.axes)}: write {slug!r} without ({axis})")
    return law(axis)  # type: ignore[no-any-return]


def _own(name: str) -> Law:
    """A user's law from ``file.py:Class`` or ``module:Class``, checked before it is used."""
    place, _, attribute = name.rpartition(":")
    module = _load(place)
    law = getattr(module, attribute, None)
    known = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Law) and value.__module__ == module.__name__
    ]
    if not (isinstance(law, type) and issubclass(law, Law)):
        raise ValueError(
            f"{place} has no law {attribute!r}: needed a subclass of isoloss.laws.Law, found {known or 'none'}"
        )
    missing = [part for part in ("axes", "parameters") if not getattr(law, part)]
    if missing or getattr(law, "__abstractmethods__", None):
        lacking = [*missing, *sorted(getattr(law, "__abstractmethods__", ()))]
        raise ValueError(f"law {attribute} in {place} lacks {', '.join(lacking)}")
    try:
        built = law()
    except TypeError as error:
        raise ValueError(f"law {attribute} in {place} must be made without arguments: {error}") from error
    object.__setattr__(built, "_spec", name)
    return built


@cache
def _load(place: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise ValueError(f"cannot import {place!r} for a law: {error}") from error
    path = Path(place)
    if not path.is_file():
        raise ValueError(f"no file {place!r} with a law in it (looked from {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(f"isoloss_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"cannot load {place!r} as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ValueError(f"{place} does not run: {type(error).__name__}: {error}") from error
    return module

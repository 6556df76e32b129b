"""Takes named inputs with units, gives a predicted target: the parametric laws of the literature.

``__all__`` is the registry that the command line, the documentation and the tests read: one class, one
file, one paper. A file is imported when its law is asked for.
"""

from __future__ import annotations

import importlib
import re
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
    from isoloss.laws.m3 import M3
    from isoloss.laws.m4 import M4
    from isoloss.laws.muennighoff import Muennighoff
    from isoloss.laws.nezhurina import Nezhurina
    from isoloss.laws.power import Power

__all__ = [  # noqa: RUF022 (plain order: M3 is a name, not a constant)
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
    "M3",
    "M4",
    "Muennighoff",
    "Nezhurina",
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
            a user's own, ``"path/to/my_laws.py:MyLaw"`` or ``"my_package.laws:MyLaw"``; or a composed
            law, ``"hoffmann * precision + ptq"`` (:mod:`isoloss.laws.parts.composed`).

    Raises:
        ValueError: no such law, file or class; the message lists what there is.

    Example:
        >>> get("power(flops)").axes
        ('flops',)
    """
    name = name.strip()
    if re.search(r"[*+]|->", name):
        from isoloss.laws.parts.composed import composed, words

        if len(words(name)) > 1:
            return composed(name)
    match = re.fullmatch(r"(.+?)(?:\((\w+)\))?", name)
    base, axis = (match[1], match[2]) if match else (name, None)
    slug = base.lower().replace("_", "-")
    if ":" in base:
        from isoloss.laws.own import own_law

        law = own_law(base)
    elif slug in LAWS:
        law = __getattr__(LAWS[slug])
    else:
        raise ValueError(
            f"no law named {name!r}. There are: {', '.join(LAWS)}; your own is FILE.py:ClassName"
        )
    if axis is not None and "axis" not in getattr(law, "__dataclass_fields__", {}):
        raise ValueError(f"{base} has fixed axes {list(law.axes)}: write {base!r} without ({axis})")
    built: Law = law() if axis is None else law(axis)  # type: ignore[call-arg]
    if ":" in base:
        object.__setattr__(built, "_spec", base)
    return built

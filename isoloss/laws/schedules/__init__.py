"""Takes a learning-rate schedule, gives the loss at any of its steps: laws of a whole training curve.

``__all__`` is the registry that the command line, documentation and tests read: one class, one file, one paper.
A file is imported when its law is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from isoloss.laws.law import slug_of

if TYPE_CHECKING:
    from isoloss.laws.schedules.lr_annealing import LrAnnealing
    from isoloss.laws.schedules.multi_power import MultiPower
    from isoloss.laws.schedules.schedule_law import ScheduleLaw

__all__ = ["LrAnnealing", "MultiPower"]

SCHEDULE_LAWS: dict[str, str] = {slug_of(name): name for name in __all__}
"""Slug -> class name."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = importlib.import_module(f"isoloss.laws.schedules.{slug_of(name).replace('-', '_')}")
        return getattr(module, name)
    raise AttributeError(f"module 'isoloss.laws.schedules' has no attribute {name!r}")


def get(name: str) -> ScheduleLaw:
    """The law of that name.

    Raises:
        ValueError: no such law; the message lists what there is.

    Example:
        >>> get("multi-power").names
        ('L0', 'A', 'alpha', 'B', 'C', 'beta', 'gamma')
    """
    slug = name.strip().lower().replace("_", "-")
    if slug not in SCHEDULE_LAWS:
        raise ValueError(
            f"no law of schedules named {name!r}. There are: {', '.join(SCHEDULE_LAWS)}; other laws are fitted "
            "with `isoloss fit`"
        )
    law: ScheduleLaw = __getattr__(SCHEDULE_LAWS[slug])()
    return law

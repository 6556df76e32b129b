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
    from isoloss.laws.ambient import Ambient
    from isoloss.laws.broken1 import Broken1
    from isoloss.laws.broken2 import Broken2
    from isoloss.laws.clark import Clark
    from isoloss.laws.critical_batch import CriticalBatch
    from isoloss.laws.critical_batch_free import CriticalBatchFree
    from isoloss.laws.critical_batch_growth import CriticalBatchGrowth
    from isoloss.laws.data_filtering import DataFiltering
    from isoloss.laws.deepseek import Deepseek
    from isoloss.laws.deepseek_batch import DeepseekBatch
    from isoloss.laws.gadre import Gadre
    from isoloss.laws.gadre_untied import GadreUntied
    from isoloss.laws.gradient_noise import GradientNoise
    from isoloss.laws.henighan import Henighan
    from isoloss.laws.hestness import Hestness
    from isoloss.laws.hoffmann import Hoffmann
    from isoloss.laws.kaplan_bcrit import KaplanBcrit
    from isoloss.laws.kaplan_d import KaplanD
    from isoloss.laws.kaplan_n import KaplanN
    from isoloss.laws.kaplan_nd import KaplanNd
    from isoloss.laws.kaplan_ns import KaplanNs
    from isoloss.laws.logit_growth import LogitGrowth
    from isoloss.laws.loss_to_error import LossToError
    from isoloss.laws.m3 import M3
    from isoloss.laws.m4 import M4
    from isoloss.laws.mixing import Mixing
    from isoloss.laws.moe_sparsity import MoeSparsity
    from isoloss.laws.muennighoff import Muennighoff
    from isoloss.laws.nezhurina import Nezhurina
    from isoloss.laws.porian import Porian
    from isoloss.laws.porian_batch import PorianBatch
    from isoloss.laws.power import Power
    from isoloss.laws.step_law import StepLaw
    from isoloss.laws.step_law_batch import StepLawBatch
    from isoloss.laws.step_law_batch_nd import StepLawBatchNd
    from isoloss.laws.steps_examples import StepsExamples
    from isoloss.laws.su_unraveling import SuUnraveling
    from isoloss.laws.task_law import TaskLaw
    from isoloss.laws.time_transfer import TimeTransfer
    from isoloss.laws.token_horizon import TokenHorizon
    from isoloss.laws.vocabulary import Vocabulary

__all__ = [  # noqa: RUF022 (plain order: M3 is a name, not a constant)
    "Ambient",
    "Broken1",
    "Broken2",
    "Clark",
    "CriticalBatch",
    "CriticalBatchFree",
    "CriticalBatchGrowth",
    "DataFiltering",
    "Deepseek",
    "DeepseekBatch",
    "Gadre",
    "GadreUntied",
    "GradientNoise",
    "Henighan",
    "Hestness",
    "Hoffmann",
    "KaplanBcrit",
    "KaplanD",
    "KaplanN",
    "KaplanNd",
    "KaplanNs",
    "LogitGrowth",
    "LossToError",
    "M3",
    "M4",
    "Mixing",
    "MoeSparsity",
    "Muennighoff",
    "Nezhurina",
    "Porian",
    "PorianBatch",
    "Power",
    "StepLaw",
    "StepLawBatch",
    "StepLawBatchNd",
    "StepsExamples",
    "SuUnraveling",
    "TaskLaw",
    "TimeTransfer",
    "TokenHorizon",
    "Vocabulary",
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
        name: a slug (``"hoffmann"``); for laws of one axis the axis may follow (``"power(flops)"``), for
            laws of as many as one likes all of them (``"mixing(share_code, share_web)"``); a user's own,
            ``"path/to/my_laws.py:MyLaw"`` or ``"my_package.laws:MyLaw"``; or a composed law,
            ``"hoffmann * precision + ptq"`` (:mod:`isoloss.laws.parts.composed`).

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
    match = re.fullmatch(r"(.+?)(?:\((\s*\w+\s*(?:,\s*\w+\s*)*)\))?", name)
    base, inner = (match[1].strip(), match[2]) if match else (name, None)
    axes = tuple(axis.strip() for axis in inner.split(",")) if inner else ()
    slug = base.lower().replace("_", "-")
    if ":" in base:
        from isoloss.laws.own import own_law

        law = own_law(base)
    elif slug in LAWS:
        law = __getattr__(LAWS[slug])
    else:
        raise ValueError(_unknown(name, slug))
    built = _built(law, base, axes)
    if ":" in base:
        object.__setattr__(built, "_spec", base)
    return built


def _unknown(name: str, slug: str) -> str:
    """Why there is no law of that name, and where it is if it is another kind."""
    from isoloss.laws.parts import FACTORS, TERMS
    from isoloss.laws.schedules import SCHEDULE_LAWS

    if slug in SCHEDULE_LAWS:
        return (
            f"{slug} is a law of learning-rate schedules, which reads whole training curves. Fit it with `isoloss "
            f"schedule fit {slug} CURVES`, in Python isoloss.fitting.schedules.fit_schedules"
        )
    if slug in FACTORS or slug in TERMS:
        kind, sign = ("a factor", "*") if slug in FACTORS else ("a term", "+")
        return f"{slug} is {kind} and needs a law: write 'hoffmann {sign} {name}'"
    return f"no law named {name!r}. There are: {', '.join(LAWS)}; your own is FILE.py:ClassName"


def _built(law: type[Law], base: str, axes: tuple[str, ...]) -> Law:
    """The law on the axes that stand in parentheses behind its name, if any do."""
    if not axes:
        return law()
    fields = getattr(law, "__dataclass_fields__", {})
    if "reads" in fields:
        return law(axes)  # type: ignore[call-arg]
    if "axis" not in fields:
        raise ValueError(
            f"{base} has fixed axes {list(law.axes)}: write {base!r} without ({', '.join(axes)})"
        )
    if len(axes) > 1:
        raise ValueError(f"law {base} reads one axis, got {', '.join(axes)}. Write {base}({axes[0]})")
    return law(axes[0])  # type: ignore[call-arg]

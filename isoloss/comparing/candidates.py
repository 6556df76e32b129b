"""Which laws can be compared on a table: names resolved, ``auto`` spelled out, the rest left out with a reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoloss.comparing.backtest import SIZES, SPARE
from isoloss.errors import NoAnswer
from isoloss.laws import LAWS, get
from isoloss.laws.law import Law
from isoloss.runs import Runs

AUTO = "auto"
SHARE = 2 / 3  # of the rows, the most that the smallest fit of a law in auto may need
ONE_AXIS = ("flops", "tokens", *SIZES)  # what a law of any one axis reads, the first that varies


def named(laws: Sequence[Law | str] | Law | str, runs: Runs) -> tuple[list[Law], list[Law], dict[str, str]]:
    """The laws asked for by name and those that auto adds, each once, and those it leaves out with the reason.

    ``"auto"`` stands for every registered law whose axes the table has or gives (``runs`` is derived) and
    whose smallest fit leaves a third of the rows to predict. A law of any one axis reads flops where those
    vary, else tokens, else a size. Laws that are another's in other parameters are left out.

    Raises:
        ValueError: no law, two targets, or an unknown name. TypeError: something else than a law.
    """
    given = [laws] if isinstance(laws, str | Law) else list(laws)
    found: dict[str, Law] = {}
    left: dict[str, str] = {}
    if any(not isinstance(law, str | Law) for law in given):
        raise TypeError(f"needed laws or their names, got {given!r}. A class must be called: Hoffmann()")
    chosen = [law if isinstance(law, Law) else get(law) for law in given if law != AUTO]
    for law in chosen:
        found.setdefault(law.spec, law)
    if AUTO in given:
        target = chosen[0].target if chosen else "loss" if "loss" in runs else "error"
        for slug in LAWS:
            law, why = _registered(slug, runs, target)
            if why:
                left.setdefault(law.spec, why)
            else:
                found.setdefault(law.spec, law)
    if not found:
        raise ValueError(f"needed at least one law that reads {', '.join(runs.columns)}, got none")
    targets = {law.target for law in found.values()}
    if len(targets) > 1:
        raise ValueError(f"needed laws of one target, got {', '.join(sorted(targets))}. Compare them apart")
    asked = {law.spec for law in chosen}
    added = [law for law in found.values() if law.spec not in asked]
    left = {spec: why for spec, why in left.items() if spec not in found}
    return [law for law in found.values() if law.spec in asked], added, left


def _registered(slug: str, runs: Runs, target: str) -> tuple[Law, str]:
    """A law of the registry on the axis that the table offers, and why it is left out, if it is."""
    law = get(slug)
    if "axis" in getattr(law, "__dataclass_fields__", {}):
        axis = next((name for name in ONE_AXIS if _varies(runs, name)), None)
        if axis is not None:
            law = get(f"{slug}({axis})")
    if law.alias_of:
        return law, f"the same form as {law.alias_of}"
    if law.target != target:
        return law, f"predicts {law.target}, not {target}"
    absent = [axis for axis in law.axes if not _varies(runs, axis)]
    if absent:
        return law, f"the table has no {' and no '.join(absent)} that varies"
    least = len(law.parameters) + SPARE
    if least > SHARE * len(runs):
        return law, f"its {len(law.parameters)} parameters need {least} rows, too many of {len(runs)}"
    return law, ""


def _varies(runs: Runs, name: str) -> bool:
    if name not in runs or runs[name].dtype.kind != "f":
        return False
    values = runs[name][np.isfinite(runs[name])]
    return len(np.unique(values)) > 1


def with_room(laws: Sequence[Law], edges: Sequence[int], rows: int) -> tuple[list[Law], dict[str, str]]:
    """The laws whose smallest fit leaves a dearer row to predict; ``edges`` are the places to cut.

    Raises:
        NoAnswer: none does.
    """
    kept, left = [], {}
    for law in laws:
        least = len(law.parameters) + SPARE
        if any(edge >= least for edge in edges):
            kept.append(law)
        else:
            left[law.spec] = (
                f"its {len(law.parameters)} parameters need {least} rows and a dearer one beyond, of {rows}"
            )
    if not kept:
        spec, why = next(iter(left.items()))
        raise NoAnswer(f"no law can be back-tested: {spec}: {why}", "more runs of different cost")
    return kept, left

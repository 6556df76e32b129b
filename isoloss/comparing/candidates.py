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
ON_A_LINE = 0.05  # scatter of (log size, log tokens) about a line: below, one axis says as much as two
SHARE = 3 / 4  # of the rows, the most that the smallest fit of a law in auto may need
ON_A_CURVE = 0.9  # the same where there is one axis: too few rows for a law are worse than too few held out
# Weights before any run was held out. On a curve they matter: its few dear rows tell little of how laws
# differ far beyond them. Chosen on one half of the data sets of LCDB (docs/learning-curves.md).
CURVE = {"hestness": 1.0, "m4": 1.0}
OTHERS = 0.05
# What a law of any one axis reads, the first that varies; a law of the batch reads the batch.
ONE_AXIS = ("flops", "tokens", *SIZES)
BATCH = ("batch_tokens", "batch_sequences")


def named(laws: Sequence[Law | str] | Law | str, runs: Runs) -> tuple[list[Law], list[Law], dict[str, str]]:
    """The laws asked for by name and those that auto adds, each once, and those it leaves out with the reason.

    ``"auto"`` stands for every registered law whose axes the table has or gives (``runs`` is derived) and
    whose smallest fit leaves a quarter of the rows to predict. A law of any one axis reads flops where those
    vary, else tokens, else a size; where size and tokens vary apart, laws of one axis are left out. So are
    laws that are another's in other parameters.

    Raises:
        ValueError: no law, two targets, no target for auto, or an unknown name. TypeError: something else than a
            law. NoAnswer: auto leaves out all.
    """
    if not isinstance(laws, str | Law | Sequence):
        raise TypeError(f"needed laws or their names, got {laws!r}")
    given = [laws] if isinstance(laws, str | Law) else list(laws)
    found: dict[str, Law] = {}
    left: dict[str, str] = {}
    if any(not isinstance(law, str | Law) for law in given):
        raise TypeError(f"needed laws or their names, got {given!r}. A class must be called: Hoffmann()")
    chosen = [(law if isinstance(law, Law) else get(law)).given(runs.columns) for law in given if law != AUTO]
    for law in chosen:
        found.setdefault(law.spec, law)
    if AUTO in given:
        target = chosen[0].target if chosen else next((t for t in ("loss", "error") if t in runs), None)
        if target is None:
            raise ValueError(
                f"auto needs a column loss or error, got {', '.join(runs.columns)}. Name the law of another target"
            )
        for slug in LAWS:
            law, why = _registered(slug, runs, target)
            if why:
                left.setdefault(law.spec, why)
            else:
                found.setdefault(law.spec, law)
    if not found and AUTO in given:
        near = [f"{spec}: {why}" for spec, why in left.items() if "rows" in why] or [
            f"{spec}: {why}" for spec, why in left.items() if not why.startswith("no law of")
        ]
        raise NoAnswer(
            f"auto has no law for these {len(runs)} rows ({near[0]})", "more runs, or one law by name"
        )
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
    if law.target != target:
        return law, f"no law of the {target}"
    if "axis" in getattr(law, "__dataclass_fields__", {}):
        kinds = BATCH if law.axes[0] in BATCH else ONE_AXIS
        axis = next((name for name in kinds if _varies(runs, name)), None)
        if axis is not None:
            law = get(f"{slug}({axis})")
    if law.alias_of:
        return law, f"the same form as {law.alias_of}"
    if law.may_be_zero:
        return law, "reads the columns that it is given by name"
    absent = [axis for axis in law.axes if not _varies(runs, axis)]
    if absent:
        return law, f"the table has no {' and no '.join(absent)} that varies"
    apart = _apart(runs) if len(law.axes) == 1 else ""
    if apart:
        return law, f"reads {law.axes[0]} alone, and {apart} and tokens vary apart"
    least = len(law.parameters) + SPARE
    if least > (ON_A_CURVE if len(law.axes) == 1 else SHARE) * len(runs):
        return law, f"its {len(law.parameters)} parameters need {least} rows, too many of {len(runs)}"
    return law, ""


def prior_of(laws: Sequence[Law]) -> list[float]:
    """Weights before the back-test: equal, but on a curve most for a power with a floor and for one with two ends.

    Example:
        >>> from isoloss.laws import get
        >>> prior_of([get("hestness"), get("power")]), prior_of([get("hoffmann"), get("gadre")])
        ([1.0, 0.05], [1.0, 1.0])
    """
    if len({axis for law in laws for axis in law.axes}) > 1 or not any(law.slug in CURVE for law in laws):
        return [1.0] * len(laws)
    return [CURVE.get(law.slug, OTHERS) for law in laws]


def _varies(runs: Runs, name: str) -> bool:
    if name not in runs or runs[name].dtype.kind != "f":
        return False
    values = runs[name][np.isfinite(runs[name])]
    return len(np.unique(values)) > 1


def _apart(runs: Runs) -> str:
    """The size that varies apart from tokens, not along one line in logs; empty if none does."""
    size = next((name for name in SIZES if _varies(runs, name)), "")
    if not size or not _varies(runs, "tokens"):
        return ""
    known = np.array([runs[size], runs["tokens"]])
    known = np.log(known[:, (np.isfinite(known) & (known > 0)).all(axis=0)])
    if known.shape[1] < 3:
        return ""
    scatter = np.linalg.svd(known - known.mean(axis=1, keepdims=True), compute_uv=False)[1]
    return size if scatter > ON_A_LINE * np.sqrt(known.shape[1]) else ""


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

"""The sensitivity table and the checklist of a fit, as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoloss.cli.show import Style, Table, number, say, show

if TYPE_CHECKING:
    from isoloss.fitting.result import Fit

SHOWN = 3  # parameters of a law without an optimum


def print_sensitivity(found: Fit, style: Style) -> None:
    """One row per variant: the prediction beyond the data, and the optimum or the parameters."""
    from isoloss.fitting.sensitivity import STEP, made, place
    from isoloss.planning.sensitivity import optima

    variants = made(found.sensitivity)
    if len(variants) < 2:
        return
    best = [one for one, variant in zip(optima(found), found.sensitivity, strict=True) if variant.values]
    trades = best[0] is not None
    names = () if trades else found.law.names[:SHOWN]
    rows = []
    for variant, one in zip(variants, best, strict=True):
        late = " (not converged)" if variant.result == "not-converged" else ""
        row = [variant.setting + late, str(variant.rows), number(_known(variant.prediction), 4)]
        if trades:
            row += [number(one.exponent, 3), number(one.tokens_per_param, 3)] if one else ["—", "—"]
        rows.append([*row, *(number(variant.values[n]) if n in variant.values else "—" for n in names)])
    at = place(variants[0].at)
    beyond = f"{at} ({STEP:g}x the dearest run)" if _is_beyond(found) else at
    compute = "; a of N* ~ C^a and D*/N* at that compute" if trades else ""
    say(f"sensitivity: {found.law.target} at {beyond}{compute}", style)
    columns = ["a", "D*/N*"] if trades else list(names)
    show(Table(["variant", "rows", found.law.target, *columns], rows), style)


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def _is_beyond(found: Fit) -> bool:
    at = found.sensitivity[0].at
    return any(value > found.x[axis].max() for axis, value in at.items())


def print_checklist(found: Fit, style: Style, whole: bool) -> None:
    """How much is answered and what is open, in one line; or every question with its answer."""
    if whole:
        rows = [[item.section, item.key, item.answer or "—", item.source] for item in found.checklist]
        show(Table(["section", "key", "answer", "from"], rows), style)
        return
    missing = [item.key for item in found.checklist if item.source == "missing"]
    asked = len(found.checklist)
    lacks = (
        f"; open: {', '.join(missing)} (--checklist prints all, --about KEY=TEXT answers)" if missing else ""
    )
    say(f"checklist: {asked - len(missing)} of {asked} answered{lacks}", style)

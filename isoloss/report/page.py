"""Takes a fit and a budget, gives one self-contained page about it: the verb ``report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isoloss.comparing.backtest import Backtest
from isoloss.errors import NoAnswer
from isoloss.files import refuse_unwritable, write_atomically
from isoloss.fitting.result import Fit
from isoloss.planning.budget import Budget
from isoloss.planning.result import Plan
from isoloss.report.about_fit import (
    data_section,
    making_section,
    parameter_section,
    residual_section,
    spread_text,
)
from isoloss.report.about_ledger import ledger_section
from isoloss.report.about_plan import (
    Answer,
    answer,
    plan_section,
    plan_sentence,
    rates_section,
    surface_section,
)
from isoloss.report.about_proof import (
    back_tested,
    backtest_section,
    backtest_sentence,
    checklist_section,
    sensitivity_section,
)
from isoloss.report.blocks import Cautions, Section, cautions
from isoloss.report.html import Head, html
from isoloss.report.words import plural
from isoloss.study.ledger import Ledger
from isoloss.version import VERSION

VERDICTS = {
    "identified": "identified: the runs determine every parameter that is fitted to them",
    "not-identified": "not identified: the runs do not determine this law. Many other parameters fit them as "
    "well, so read no single number off this page and plan nothing with it",
    "not-converged": "not converged: the minimiser stopped early, so the numbers are not those of the best fit",
    "interrupted": "interrupted: fewer draws than asked, so the intervals are noisier",
}


def write_report(
    fit: Fit,
    path: str | Path,
    budget: Budget | Plan | NoAnswer | None = None,
    ledger: Ledger | None = None,
) -> Path:
    """Write one HTML page about a fit: what was found, how sure it is, and what to train next.

    The page holds everything: pictures as SVG, no script, nothing from a network. The same fit and budget
    give the same bytes. A fit that is not identified has a page too, which says so first.

    Args:
        fit: what to report.
        path: of the page.
        budget: what to plan for; or a plan made with this fit, with its choices of further axes, learning rate and
            batch; or why there is none. By default ten times the training FLOPs of the dearest run (or ten times
            the most of the law's one axis).
        ledger: predictions that were written down before their runs, for a section on how they came out.

    Returns:
        The path written.

    Raises:
        ValueError: the file cannot be written. TypeError: not a fit.

    Example:
        >>> import isoloss
        >>> fit = isoloss.fit("power", {"tokens": [1e6, 2e6, 4e6, 8e6], "loss": [8, 4, 2, 1.0]}, draws=50)
        >>> page = write_report(fit, "report.html")
        >>> "power(tokens)" in page.read_text(encoding="utf-8")
        True
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"write_report needs a Fit, got {type(fit).__name__}. {_how_to_get_one(fit)}")
    path = Path(path)
    refuse_unwritable(path)
    write_atomically(path, report_html(fit, budget, ledger))
    return path


def _how_to_get_one(given: object) -> str:
    if isinstance(given, str | Path):
        return f"Do: write_report(isoloss.load({str(given)!r}), ...)"
    if isinstance(getattr(given, "leading", None), Fit):
        return "Of a stack: write_report(stack.leading, ...)"
    return "Make one with isoloss.fit(law, table)"


def report_html(
    fit: Fit, budget: Budget | Plan | NoAnswer | None = None, ledger: Ledger | None = None
) -> str:
    """The page as text, see :func:`write_report`."""
    given, seen = answer(fit, budget), back_tested(fit)
    sections = (
        *([ledger_section(ledger)] if ledger is not None else []),
        data_section(fit),
        residual_section(fit),
        parameter_section(fit),
        surface_section(fit, given),
        backtest_section(fit, seen),
        checklist_section(fit, seen),
        sensitivity_section(fit),
        plan_section(fit, given),
        rates_section(given),
        making_section(fit, VERSION, command(budget)),
    )
    return _render(fit, _short(fit, given, seen, sections), cautions(fit.warnings), sections)


def _short(fit: Fit, given: Answer, seen: Backtest | str, sections: Sequence[Section]) -> tuple[str, ...]:
    """The answer in a few lines."""
    used = f"{plural(len(fit.y), 'run')} used, {len(fit.removed)} removed"
    said = [f"{used}; they scatter {spread_text(fit)} around the law (robust standard deviation)."]
    if np.isnan(fit.r2):
        said = [f"{used}; all have the same {fit.law.target}, so there is no scatter to judge a law by."]
    if given.plan is not None:
        own = {w.code for w in given.plan.warnings} - {w.code for w in fit.warnings}
        place = [section.slug for section in sections].index("plan") + 1
        noted = f" Section {place} has {plural(len(own), 'caution')} on it." if own else ""
        said.append(plan_sentence(given.plan) + noted)
    else:
        open_ = fit.result == "not-identified"
        said.append(f"No plan: {'the reason stands below, with what is needed.' if open_ else given.why}")
    if isinstance(seen, Backtest) and len(seen):
        said.append(backtest_sentence(seen))
    return tuple(said)


def command(budget: Budget | Plan | NoAnswer | None) -> str:
    """The command that writes this page again.

    Example:
        >>> command(Budget(flops=1e22, bytes=8e9))
        'isoloss report FIT --flops 1e+22 --bytes 8e+09 --bits 16'
    """
    words = ["isoloss report FIT"]
    limits = None if isinstance(budget, NoAnswer) else budget.budget if isinstance(budget, Plan) else budget
    for name, value in (limits.to_json() if limits else {}).items():
        shown = "" if value is True else f" {value if isinstance(value, str) else f'{value:g}'}"
        words.append(f"--{name.replace('_', '-')}{shown}")
    for axis in budget.axes if isinstance(budget, Plan) else ():
        values = ",".join(f"{other.value:g}" for other in axis.alternatives)
        if axis.how == "chosen":
            words.append(f"--choose {axis.name}={values}")
        elif axis.how != "left-out":
            words += [f"--hold {name}={axis.value.value:.8g}" for name in axis.name.split("=")]
    tuned = [entry.name for entry in budget.tuned] if isinstance(budget, Plan) else []
    words += [f"--{'lr' if name == 'lr' else 'batch'} FIT" for name in tuned]
    return " ".join(words)


def _render(fit: Fit, short: Sequence[str], found: Cautions, sections: Sequence[Section]) -> str:
    place = fit.source.rpartition("/")[2].rpartition("\\")[2]
    runs, of = plural(len(fit.y), "run"), "" if place in ("", "memory") else f" of {place}"
    verdict, _, meaning = VERDICTS[fit.result].partition(": ")
    head = Head(
        title=f"{fit.law.spec}: {runs}{of}",
        kind="report on a fit",
        heading=f"{fit.law.spec} on {runs}{of}",
        formula=f"{fit.law.target} = {fit.law.formula}",
        mark=fit.result,
        verdict=verdict,
        meaning=meaning,
        quiet="Neither the table nor the fit gave a warning.",
        rest="the fit's file",
    )
    return html(head, short, found, sections)

"""What a reader must know of a fit to judge it: answered by the fit, by its table, by the user, or open.

The five sections follow Li, Kudugunta and Zettlemoyer 2025, (Mis)Fitting: A Survey of Scaling Laws,
arXiv:2502.18969; the wording is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from isoloss.fitting.facts import (
    checkpoints_of,
    column_fact,
    counting_of,
    ranges_of,
    repetition_of,
    size_of,
    span,
)
from isoloss.fitting.sensitivity import made, place
from isoloss.runs import Runs

if TYPE_CHECKING:
    from isoloss.fitting.result import Fit

Section = Literal["hypothesis", "training set-up", "data extraction", "fitting", "validation"]
Source = Literal["fit", "table", "user", "missing"]

SECTIONS: tuple[Section, ...] = get_args(Section)

# key -> section, question. What the fit itself answers comes first in each section.
QUESTIONS: Mapping[str, tuple[Section, str]] = {
    "form": ("hypothesis", "Which form?"),
    "variables": ("hypothesis", "In which variables, and of what?"),
    "parameters": ("hypothesis", "Which parameters are free?"),
    "held": ("hypothesis", "Which are tied, fixed, borrowed, bounded or carry a prior?"),
    "runs": ("training set-up", "How many models?"),
    "ranges": ("training set-up", "Which sizes and how many tokens?"),
    "counting": ("training set-up", "How are N, D and C counted?"),
    "repetition": ("training set-up", "Is data repeated?"),
    "data": ("training set-up", "Trained on which data?"),
    "lr": ("training set-up", "Which learning rate, and does it change with scale?"),
    "batch": ("training set-up", "Which batch size, and does it change with scale?"),
    "schedule": ("training set-up", "Which schedule, and is its length that of the run?"),
    "warmup": ("training set-up", "How long a warm-up?"),
    "weight-decay": ("training set-up", "Which weight decay?"),
    "architecture": ("training set-up", "Which architecture, and by what rule does its shape grow?"),
    "code": ("training set-up", "Is the code available?"),
    "metric": ("data extraction", "Which metric, in which unit?"),
    "checkpoints": ("data extraction", "Which checkpoints of each model?"),
    "cleaning": ("data extraction", "Which rows were removed before the fit, and why?"),
    "evaluation-set": ("data extraction", "Measured on which data?"),
    "smoothing": ("data extraction", "Smoothed, interpolated or centred?"),
    "objective": ("fitting", "Which objective?"),
    "optimiser": ("fitting", "Which optimiser and tolerance?"),
    "starts": ("fitting", "How many starts, and do they agree?"),
    "dropped": ("fitting", "Which rows did the fit drop, and why?"),
    "weights": ("fitting", "Are rows weighted?"),
    "ties": ("fitting", "Which parameters share a value?"),
    "goodness": ("validation", "How well does it fit?"),
    "intervals": ("validation", "Which intervals, made how?"),
    "sensitivity": ("validation", "How does the answer move with the choices?"),
    "held-out": ("validation", "Checked on held-out runs, how far out?"),
}  # fmt: skip

# What only people know, or know better than the table; all else follows from the fit.
STATED = (
    "counting", "repetition", "data", "lr", "batch", "schedule", "warmup", "weight-decay", "architecture",
    "code", "metric", "checkpoints", "evaluation-set", "smoothing", "held-out",
)  # fmt: skip

# Columns in which a table may hold the answer.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "data": ("dataset", "train_dataset", "corpus", "data"),
    "lr": ("lr",),
    "batch": ("batch_tokens", "batch_size"),
    "schedule": ("schedule", "lr_schedule"),
    "warmup": ("warmup", "warmup_steps", "warmup_tokens"),
    "weight-decay": ("weight_decay", "wd"),
    "architecture": ("family", "architecture", "d_model", "width", "layers", "n_layers", "seq_len"),
    "code": ("code", "commit", "git_sha"),
    "evaluation-set": ("eval_set", "evaluation_set", "val_dataset"),
}


@dataclass(frozen=True)
class Item:
    """One question of the checklist.

    Attributes:
        section: of the five: hypothesis, training set-up, data extraction, fitting, validation.
        key: short and stable; ``about={key: answer}`` states it.
        question, answer: in words; the answer is ``""`` where there is none.
        source: ``fit`` (isoloss knows), ``table`` (seen in the rows), ``user`` (stated), or ``missing``.

    Example:
        >>> Item("training set-up", "schedule", "Which schedule?", "cosine to 10 %", "user").source
        'user'
    """

    section: Section
    key: str
    question: str
    answer: str
    source: Source


def check_about(about: Mapping[str, str] | None) -> dict[str, str]:
    """What the user states, keys checked.

    Raises:
        ValueError: an unknown key, or one that the fit itself answers. TypeError: not a mapping, or an
            answer is not text.
    """
    if about is not None and not isinstance(about, Mapping):
        raise TypeError(f"about needs a mapping of answers, got {about!r}. Write about={{'data': 'C4'}}")
    out = {}
    for key, text in (about or {}).items():
        if key not in STATED:
            fixed = key in QUESTIONS
            raise ValueError(
                f"about needs one of {', '.join(STATED)}, got {key!r}"
                + (", which the fit itself answers. Leave it out" if fixed else "")
            )
        if not isinstance(text, str):
            raise TypeError(f"about needs text for {key}, got {text!r}")
        if not text.strip():
            raise ValueError(f"about needs an answer for {key}, got none. Leave it out, or write KEY=TEXT")
        out[key] = " ".join(text.split())
    return out


def parse_about(words: Sequence[str]) -> dict[str, str]:
    """The same from command-line words ``KEY=TEXT``.

    Example:
        >>> parse_about(["schedule=cosine to 10 %"])
        {'schedule': 'cosine to 10 %'}
    """
    out: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"--about needs KEY=TEXT (schedule=cosine to 10 %), got {word!r}")
        if key.strip() in out:
            raise ValueError(f"--about {key.strip()} is given twice: keep one")
        out[key.strip()] = text
    return check_about(out)


def checklist(
    fit: Fit,
    runs: Runs,
    about: Mapping[str, str] | None = None,
    weights: str | None = None,
) -> tuple[Item, ...]:
    """Every question with its answer, in the order of the five sections.

    Args:
        fit: the fit, with its sensitivity table if that was made.
        runs: the table it was made from.
        about: what the user states, by key; where the table answers too, both are said.
        weights: the column of row weights.

    Source:
        Li, Kudugunta and Zettlemoyer 2025, (Mis)Fitting, arXiv:2502.18969.

    Example:
        >>> import isoloss
        >>> table = isoloss.read({"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0], "lr": [4e-3, 3e-3, 2e-3, 2e-3]})
        >>> found = isoloss.fit("power", table, draws=0, sensitivity=False)
        >>> {item.key: item.answer for item in checklist(found, table)}["lr"]
        'lr 0.002 to 0.004, falls with tokens (rank correlation -0.95)'
    """
    stated = check_about(about)
    used = runs.take(np.isin(runs.rows, fit.rows))
    known = _of_the_fit(fit, runs, weights)
    seen = {
        "runs": size_of(used),
        "ranges": ranges_of(fit),
        "counting": counting_of(fit, runs),
        "repetition": repetition_of(used),
        "checkpoints": checkpoints_of(used, runs),
        **{key: column_fact(used, names, fit) for key, names in COLUMNS.items()},
    }
    items = []
    for key, (section, question) in QUESTIONS.items():
        source: Source
        found = known.get(key) or seen.get(key, "")
        if key in stated:
            answer, source = f"{stated[key]} (table: {found})" if found else stated[key], "user"
        elif found:
            answer, source = found, "fit" if key in known else "table"
        else:
            answer, source = "", "missing"
        items.append(Item(section, key, question, answer, source))
    return tuple(items)


def _of_the_fit(fit: Fit, runs: Runs, weights: str | None) -> dict[str, str]:
    """What isoloss did, in words."""
    law, held, objective = fit.law, fit.constraints, fit.objective
    free = [name for name, status in zip(law.names, fit.status, strict=True) if status in _FREE]
    paper = f" ({law.paper})" if law.paper else ""
    unit = fit.units.get(law.target) or "unit not stated"
    settings = [f"{k} {v:g}" for k, v in vars(objective).items() if k in ("delta", "df")]
    words = ", ".join([objective.name, *settings, f"{objective.residual} residuals", objective.reduction])
    cleaned = {(entry.row, entry.code) for entry in runs.removed}
    before = [entry.code for entry in fit.removed if (entry.row, entry.code) in cleaned]
    during = [entry.code for entry in fit.removed if (entry.row, entry.code) not in cleaned]
    ties = ", ".join("=".join(group) for group in held.tie)
    return {
        "form": f"{law.spec}: {law.target} = {law.formula}{paper}" if law.formula else law.spec,
        "variables": f"{law.target} [{unit}] of {', '.join(law.axes)}",
        "parameters": f"{fit.free}: {', '.join(free)}",
        "held": _held(fit),
        "metric": f"{law.target} in {unit}" if fit.units.get(law.target) else "",
        "cleaning": _counted(before),
        "objective": words,
        "optimiser": "damped Newton with exact derivatives, until a step promises less than 1e-16 of the objective",
        "starts": f"{fit.starts}, {fit.agreeing_starts:.0%} reached the best minimum",
        "dropped": _counted(during),
        "weights": f"by {weights}" if weights else "equal" if np.ptp(fit.weights) == 0 else "by known sd",
        "ties": ties or "none",
        "goodness": f"R2 {fit.r2:.4f}, root mean square residual {np.sqrt(np.mean(fit.residuals**2)):.3g} "
        f"({objective.residual})",
        "intervals": f"{100 * fit.coverage:g} %, {len(fit.draws)} draws by {fit.uncertainty}"
        if len(fit.draws)
        else "",
        "sensitivity": _moves(fit),
    }  # fmt: skip


def restated(fit: Fit) -> tuple[Item, ...]:
    """The checklist of a fit whose law has been changed since: what it says of the law, anew."""
    law = fit.law
    known = {
        "form": f"{law.spec}: {law.target} = {law.formula} ({law.paper})",
        "variables": f"{law.target} [{fit.units.get(law.target) or 'unit not stated'}] of {', '.join(law.axes)}",
        "held": _held(fit),
    }
    return tuple(replace(item, answer=known.get(item.key, item.answer)) for item in fit.checklist)


_FREE = ("fitted", "at-bound")


def _held(fit: Fit) -> str:
    held = fit.constraints
    parts = [
        *(f"{name} = {value:.6g} ({held.borrow.get(name, 'fixed')})" for name, value in held.fix.items()),
        *("=".join(group) for group in held.tie),
        *(f"{name} in {low:g}:{high:g}" for name, (low, high) in held.bounds.items()),
        *(f"{name} ~ {mean:g} +- {sd:g}" for name, (mean, sd) in held.priors.items()),
    ]
    return ", ".join(parts) or "none"


def _counted(codes: Sequence[str]) -> str:
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).items()) or "none"


def _moves(fit: Fit) -> str:
    """The range of the prediction beyond the data, over the variants."""
    variants = made(fit.sensitivity)
    values = [v.prediction for v in variants if v.prediction is not None]
    if len(values) < 2:
        return ""
    return (
        f"{fit.law.target} at {place(variants[0].at)}: {values[0]:.4g}; {span(np.array(values))} over "
        f"{len(values) - 1} variants"
    )


def read_item(entry: Mapping[str, Any]) -> Item:
    """The item that a fit's file holds.

    Raises:
        ValueError: a value of the wrong kind. KeyError: a key is missing.
    """
    texts = [entry[name] for name in ("section", "key", "question", "answer", "source")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the fit file is damaged: needed text in the checklist, got {texts!r}")
    if texts[0] not in SECTIONS or texts[4] not in get_args(Source):
        raise ValueError(f"the fit file is damaged: checklist entry {texts[0]!r} from {texts[4]!r}")
    return Item(*texts)

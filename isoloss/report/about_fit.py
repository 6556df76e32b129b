"""Takes a fit, gives the sections of the page on the fit itself: data, residuals, parameters, its making."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from isoloss.fitting.borrow import fitted_part, loan_words
from isoloss.fitting.result import Fit
from isoloss.report.blocks import Code, Part, Picture, Row, Section, picture, table
from isoloss.report.canvas import named
from isoloss.report.fits import LARGE, draw_fit, large_residuals
from isoloss.report.joint import FEW, MOST, chosen_names, correlation_text, draw_joint, strongest
from isoloss.report.residuals import (
    FITTED,
    draw_quantiles,
    draw_residuals,
    normality,
    robust_scale,
    shown_residuals,
    thirds,
)
from isoloss.report.words import interval, listed, number, plural
from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL_SIZE = (4.4, 3.2)
UNUSUAL = 0.05  # share of normal samples below which the scatter is called not normal
TIGHT = 0.9  # correlation beyond which two parameters are one question
DRAWN = {
    "posterior": "from the posterior",
    "bootstrap": "from resampling the runs",
    "residual": "from dealing the residuals anew",
    "wild": "from giving the residuals random signs",
    "laplace": "from the curvature at the minimum",
}


def sure(fit: Fit) -> Fit:
    """The fit as it can be drawn: without draws where they say nothing about a new run."""
    if any(entry.code == "too-few-rows" for entry in fit.warnings):
        return replace(fit, draws=fit.draws[:0], scales=fit.scales[:0])
    return fit


def spread_text(fit: Fit) -> str:
    """The robust spread of the residuals: ``0.52 %``, or in the target's unit."""
    scale = robust_scale(fit)
    if fit.objective.residual == "log":
        return f"{number(100 * scale, 2)}%"
    unit = fit.units.get(fit.law.target, "")
    return f"{number(scale, 2)} {unit if '/' in unit else ''}".strip()


def axis_value(axis: str, value: float) -> str:
    """A value of an axis: counts with a suffix, losses and shares as numbers."""
    return number(value) if axis.startswith(("loss", "error")) else format_count(value)


def data_section(fit: Fit) -> Section:
    """The rows, what was removed, and the law through them."""
    spans = ", ".join(
        f"{named(axis)} from {axis_value(axis, float(x.min()))} to {axis_value(axis, float(x.max()))}"
        for axis, x in fit.x.items()
    )
    said = [
        f"{plural(len(fit.y), 'run')} with {spans}. {_explained(fit)}; the typical distance of a run from "
        f"the law is {spread_text(fit)} (robust standard deviation).",
        _removed_sentence(fit),
    ]
    said += [f"The column {name} was derived: {how}." for name, how in fit.derived.items()]
    parts: list[Part] = [
        picture(
            lambda figure: draw_fit(figure.subplots(), sure(fit)), "fit",
            f"The law {fit.law.spec} through {plural(len(fit.y), 'run')}; the fitted values follow in the tables.",
            _fit_caption(fit),
        )
    ]  # fmt: skip
    rows = [
        (
            named(axis), axis_value(axis, float(x.min())), axis_value(axis, float(x.max())),
            f"{number(float(x.max() / x.min()), 3)}×" if x.min() > 0 else "from 0", str(len(np.unique(x))),
        )
        for axis, x in [*fit.x.items(), (fit.law.target, fit.y)]
    ]  # fmt: skip
    parts.append(
        table("What the runs span", ("quantity", "lowest", "highest", "factor", "values"), rows, (1, 2, 3, 4))
    )
    if fit.removed:
        removed = [(str(entry.row), entry.code, entry.why) for entry in fit.removed]
        parts.append(
            table("Rows of the table that are not in the fit", ("row", "code", "why"), removed, (0,))
        )
    return Section("data", "Data and fit", tuple(said), tuple(parts))


def _explained(fit: Fit) -> str:
    target = named(fit.law.target)
    if np.isnan(fit.r2):
        return f"All runs have the same {target}, so there is no variance for the law to explain"
    return f"The law explains {number(100 * fit.r2, 4)}% of the variance of the {target}"


def _removed_sentence(fit: Fit) -> str:
    if not fit.removed:
        return "No row that the fit was given was removed."
    codes = sorted({entry.code for entry in fit.removed})
    return f"{plural(len(fit.removed), 'row')} of the table not used ({listed(codes)}); each is listed below."


def _fit_caption(fit: Fit) -> str:
    band = f"Bands hold one new run with {100 * fit.coverage:g}%." if len(sure(fit).draws) else ""
    how = {
        1: "The law along its axis, and the runs.",
        2: f"The law along {named(fit.law.axes[-1])}, a curve for each of a few values of {named(fit.law.axes[0])}; "
        "dots are runs.",
    }.get(len(fit.law.axes), "Fitted against measured; on the line the law is exact.")
    return f"{how} {band}".strip()


def residual_section(fit: Fit) -> Section:
    """What the law leaves: along the fitted value, along each axis, and as quantiles."""
    if robust_scale(fit) <= 1e-12 * float(np.max(np.abs(fit.y))):
        return Section(
            "residuals", "Residuals", ("The law passes through the runs exactly: nothing is left.",)
        )
    large = np.flatnonzero(large_residuals(fit))
    along = [FITTED, *[axis for axis, x in fit.x.items() if len(np.unique(x)) > 1]]
    said = (
        "Measured minus fitted. A law of the right shape leaves scatter without a pattern, whatever it is "
        "drawn against. " + _pattern(fit, along),
        _large_sentence(fit, len(large)) + " " + _normal_sentence(fit),
    )
    pictures: list[Picture] = []
    for i, name in enumerate(along):
        what = f"fitted {named(fit.law.target)}" if name == FITTED else named(name)

        def draw(figure: Figure, name: str = name) -> None:
            draw_residuals(figure.subplots(), fit, name)

        pictures.append(
            picture(draw, f"residual{i}", f"Residuals against {what}.", f"Against {what}.", SMALL_SIZE)
        )
    pictures.append(
        picture(
            lambda figure: draw_quantiles(figure.subplots(), fit), "quantiles",
            "Ordered residuals against normal quantiles.",
            "Ordered, against normal noise. Points on the line are normal; ends that bend away are heavy tails.",
            SMALL_SIZE,
        )
    )  # fmt: skip
    parts: list[Part] = [Row(tuple(pictures))]
    if len(large):
        parts.append(_large_table(fit, large))
    return Section("residuals", "Residuals", said, tuple(parts))


def _pattern(fit: Fit, along: Sequence[str]) -> str:
    """What the medians of thirds show, in a sentence."""
    off, seen = [], False
    for name in along:
        parts = thirds(fit, name)
        seen = seen or bool(parts)
        if any(abs(middle) > 3 * error for _, middle, error in parts):
            off.append("the fitted value" if name == FITTED else named(name))
    if not seen:
        return "There are too few runs to look for one in thirds."
    if off:
        return (
            f"Here a third of the runs lies more than three standard errors off along {listed(off)}: the law "
            "lacks something there."
        )
    return "Here no third of the runs lies more than three standard errors off."


def _large_sentence(fit: Fit, count: int) -> str:
    if not count:
        return f"No run lies more than {LARGE:g} robust standard deviations off the law."
    verb = "lies" if count == 1 else "lie"
    return (
        f"{plural(count, 'run')} {verb} more than {LARGE:g} robust standard deviations off the law: ringed, and "
        "listed below by row of the table."
    )


def _normal_sentence(fit: Fit) -> str:
    if len(fit.y) < 10:
        return ""
    found = normality(fit)
    seen = (
        f"{found.outside} of {len(fit.y)} ordered residuals leave the 90% band of normal noise, and the farthest "
        f"lies {found.farthest:.1f} robust standard deviations out"
    )
    if found.share < UNUSUAL:
        often = "hardly any sample" if found.share < 0.01 else f"{found.share:.0%} of samples"
        return f"{seen}: {often} of such noise would look so, and the scatter is not normal."
    return f"{seen}: normal noise does that too."


def _made_by(fit: Fit) -> str:
    """How the draws were made, in words."""
    how, _, cluster = fit.uncertainty.partition(" by ")
    return DRAWN.get(how, f"by {how}") + (f", those of one {cluster} together" if cluster else "")


def _large_table(fit: Fit, large: np.ndarray) -> Part:
    level = fit.law.evaluate(fit.theta, **fit.x)
    scale = robust_scale(fit)
    shown, log = shown_residuals(fit), fit.objective.residual == "log"
    order = large[np.argsort(-np.abs(fit.residuals[large]))]
    rows = [
        (
            str(int(fit.rows[i])), *(axis_value(axis, float(x[i])) for axis, x in fit.x.items()),
            number(float(fit.y[i])), number(float(level[i])),
            f"{shown[i]:+.3g}{'%' if log else ''}".replace("-", "−"), f"{abs(fit.residuals[i]) / scale:.1f}",
        )
        for i in order
    ]  # fmt: skip
    heads = ("row", *(named(axis) for axis in fit.x), "measured", "fitted", "residual", "robust s.d.")
    return table("Runs far off the law, the farthest first", heads, rows, tuple(range(len(heads))))


def parameter_section(fit: Fit) -> Section:
    """Estimates with intervals, and what the draws say about them together."""
    meaning = {parameter.name: parameter.meaning for parameter in fit.law.parameters}
    rows = []
    for name, entry in fit.parameters.items():
        held = entry.status == "fixed" or (entry.status == "borrowed" and not entry.stderr > 0)
        error = "—" if held else number(entry.stderr, 2)
        ends = "—" if held or np.isnan(entry.low) else interval(entry.low, entry.high)
        rows.append((name, number(entry.value), error, ends, entry.status, meaning[name]))
    heads = ("parameter", "value", "standard error", f"{100 * fit.coverage:g}% interval", "status", "meaning")
    parts: list[Part] = [table("Parameters", heads, rows, (1, 2, 3))]
    names = chosen_names(fit)
    if len(names) < 2:
        why = (
            "There are no draws, so no intervals: fit with --draws 1000."
            if len(fit.draws) < FEW
            else "The draws differ in no two parameters, so there is nothing to read jointly."
            if fit.free > 1
            else "Only one parameter was left free, so there is nothing to read jointly."
        )
        return Section("parameters", "Parameters and their joint uncertainty", (why,), tuple(parts))
    side = 1.15 * len(names) + 0.5
    parts.append(
        picture(
            lambda figure: draw_joint(figure, fit, names), "joint",
            f"Joint draws of {listed(names)}: clouds below the diagonal, correlations above it.",
            "Every dot is one set of parameters that the runs allow. On the diagonal each parameter by itself, its "
            "interval in grey; above it the rank correlations. The crosses and red "
            "lines are the best parameters.",
            (max(side, 3.4), max(0.85 * side, 2.8)),
        )
    )  # fmt: skip
    if len(strongest(fit)) > len(names) * (len(names) - 1) // 2:
        pairs = [(f"{a}, {b}", correlation_text(r)) for a, b, r in strongest(fit)]
        parts.append(table("All correlations, the strongest first", ("pair", "correlation"), pairs, (1,)))
    return Section("parameters", "Parameters and their joint uncertainty", _joint_said(fit), tuple(parts))


def _joint_said(fit: Fit) -> tuple[str, ...]:
    first = f"Intervals hold {100 * fit.coverage:g}% of {len(fit.draws)} joint draws {_made_by(fit)}."
    tight = [(a, b, r) for a, b, r in strongest(fit) if abs(r) > TIGHT]
    if not tight:
        return (
            first,
            "No two parameters are tied closely to each other; their intervals can be read one by one.",
        )
    pairs = listed([f"{a} and {b} ({correlation_text(r)})" for a, b, r in tight[:MOST]])
    return (
        first,
        f"Strongly correlated: {pairs}. The runs fix such a pair together far better than either alone: a change "
        "in one is made up by the other. Read them jointly, predict from the draws, and never put one fit's "
        "exponent beside another fit's coefficient.",
    )


def making_section(fit: Fit, version: str, repeat: str) -> Section:
    """Every choice behind the fit, and the commands that repeat it."""
    objective = fit.objective.to_json()
    name = objective.pop("name")
    settings = ", ".join(f"{key} {value}" for key, value in objective.items())
    held = fit.constraints
    limits = [f"{key} fixed at {value:g}" for key, value in held.fix.items() if key not in held.borrow]
    limits += [f"{key} borrowed from {source}" for key, source in held.borrow.items()]
    limits += [" = ".join(group) for group in held.tie]
    limits += [f"{key} within {low:g} to {high:g}" for key, (low, high) in held.bounds.items()]
    limits += [f"{key} near {mean:g} ± {sd:g} (prior)" for key, (mean, sd) in held.priors.items()]
    even = bool(np.allclose(fit.weights, 1.0))
    rows = [
        ("law", fit.law.spec),
        ("formula", f"{fit.law.target} = {fit.law.formula}"),
        ("source of the law", fit.law.paper or "not stated"),
        ("table", fit.source),
        ("fingerprint of the data", fit.fingerprint),
        ("units", ", ".join(f"{key}: {unit}" for key, unit in fit.units.items()) or "not stated"),
        ("rows used, removed", f"{len(fit.y)}, {len(fit.removed)}"),
        ("weights of the rows", "all equal" if even else f"from {fit.weights.min():.3g} to {fit.weights.max():.3g}"),
        ("objective", f"{name} ({settings}), minimum {fit.value:.9g}"),
        ("constraints", listed(limits) if limits else "none"),
        ("starts", f"{fit.starts}, of which {fit.agreeing_starts:.0%} reached the same minimum"),
        ("condition number", f"{fit.condition:.3g}"),
        ("uncertainty", f"{fit.uncertainty}, {len(fit.draws)} draws"),
        ("coverage of intervals", f"{100 * fit.coverage:g}%"),
        ("seed", str(fit.seed)),
        ("result", fit.result),
        ("isoloss", version),
    ]  # fmt: skip
    said = (
        "The same table, options and seed give the same numbers, and the same fit gives this page byte for byte. "
        "Options that chose rows or named columns (columns, units, drop, final, best-of-sweep, weights) are not kept in a "
        "fit: add those that were used. If the fingerprint is the same, so were the rows.",
    )
    parts = (
        table("Every choice", ("choice", "value"), rows),
        Code(f"{fit_command(fitted_part(fit))}\n{' '.join([repeat, *map(shlex.quote, loan_words(fit))])}"),
    )
    return Section("making", "How this was made", said, parts)


def _table_words(source: str) -> list[str]:
    """The table and the part of it that was taken, from where a table says it came.

    Example:
        >>> _table_words("runs.csv where a == 1 where b < 2"), _table_words("runs.csv, seed = 3")
        (['runs.csv', '--where', '(a == 1) and (b < 2)'], ['runs.csv', '--by', 'seed'])
    """
    group = re.fullmatch(r"(.*), ([^,=]+) = (.*)", source)
    path, *parts = (group[1] if group else source).split(" where ")
    words = ["TABLE" if path == "memory" else path]
    if parts:
        words += ["--where", parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)]
    return [*words, "--by", group[2]] if group else words


def fit_command(fit: Fit) -> str:
    """The command that repeats the fit, up to the options that a fit does not keep.

    Example:
        >>> import isoloss
        >>> held = isoloss.Constraints(fix={"c": 1.0})
        >>> found = isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, constraints=held)
        >>> fit_command(found)
        "isoloss fit 'power(tokens)' TABLE --fix c=1.0 --uncertainty bootstrap --json FIT"
    """
    from isoloss.fitting.estimate import default_objective

    words = ["isoloss", "fit", fit.law.spec, *_table_words(fit.source)]
    standard, own = default_objective(fit.law).to_json(), fit.objective.to_json()
    for key, value in own.items():
        if standard.get(key) != value or (key == "name" and own["name"] != standard["name"]):
            words += [f"--{'objective' if key == 'name' else key}", str(value)]
    held = fit.constraints
    for key, number_ in held.fix.items():
        if key not in held.borrow:
            words += ["--fix", f"{key}={number_!r}"]
    words += [word for key, source in held.borrow.items() for word in ("--borrow", f"{key}={source}")]
    words += [word for group in held.tie for word in ("--tie", "=".join(group))]
    for key, (low, high) in held.bounds.items():
        words += ["--bound", f"{key}={low!r}:{high!r}"]
    for key, (mean, sd) in held.priors.items():
        words += ["--prior", f"{key}~{mean!r}+-{sd!r}"]
    how, _, cluster = fit.uncertainty.partition(" by ")
    words += ["--uncertainty", how, *(["--cluster", cluster] if cluster else [])]
    usual = {"draws": 1000, "starts": 64, "coverage": 0.9, "seed": 0}
    used = {**{key: getattr(fit, key) for key in usual if key != "draws"}, "draws": len(fit.draws)}
    words += [word for key in usual if used[key] != usual[key] for word in (f"--{key}", str(used[key]))]
    return " ".join([*map(shlex.quote, words), "--json", "FIT"])

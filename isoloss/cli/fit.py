"""``isoloss fit``: parameters, joint uncertainty, and what the data do not say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.auto import fit_auto
from isoloss.cli.choices import print_checklist, print_sensitivity
from isoloss.cli.compare import objective_for
from isoloss.cli.options import (
    Columns,
    Coverage,
    Format,
    Json,
    Latex,
    Markdown,
    Seed,
    Units,
    Where,
    law_named,
    style_of,
    table,
)
from isoloss.cli.show import (
    Style,
    Table,
    check_writable,
    findings,
    for_people,
    interval,
    number,
    plural,
    progress,
    say,
    show,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isoloss.errors import NoAnswer
    from isoloss.fitting.constraints import Constraints
    from isoloss.fitting.objective import Objective
    from isoloss.fitting.result import Estimate, Fit
    from isoloss.laws.law import Law
    from isoloss.runs import Runs

Words = list[str] | None


def fit(
    law: Annotated[str, typer.Argument(help="hoffmann, power(flops), ..., your own FILE.py:Class, or auto.")],
    path: Annotated[str, typer.Argument(metavar="TABLE", help="csv, tsv, json, jsonl or parquet.")],
    columns: Columns = None,
    where: Where = None,
    by: Annotated[str | None, typer.Option(help="One fit for each value of this column.")] = None,
    units: Units = None,
    format: Format = None,
    drop: Annotated[
        str | None, typer.Option(help="Leave out rows by finding: diverged,unfinished-run.")
    ] = None,
    final: Annotated[bool, typer.Option("--final", help="Keep the last checkpoint of each run.")] = False,
    best_of_sweep: Annotated[
        bool, typer.Option("--best-of-sweep", help="Keep the best learning rate of each point.")
    ] = False,
    objective: Annotated[
        str | None, typer.Option(help="huber, least-squares, gaussian or student-t.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Of huber; default 1e-3.")] = None,
    df: Annotated[float | None, typer.Option(help="Degrees of freedom of student-t; default 4.")] = None,
    residual: Annotated[str | None, typer.Option(help="log or linear.")] = None,
    reduction: Annotated[str, typer.Option(help="sum or mean: how the objective is reported.")] = "sum",
    fix: Annotated[Words, typer.Option(help="E=1.69. May be repeated, like the next four.")] = None,
    tie: Annotated[Words, typer.Option(help="alpha=beta.")] = None,
    bound: Annotated[Words, typer.Option(help="alpha=0.1:1.")] = None,
    prior: Annotated[Words, typer.Option(help="beta~0.37+-0.05 (normal).")] = None,
    borrow: Annotated[Words, typer.Option(help="beta=besiroglu-2024: fixed at a published value.")] = None,
    weights: Annotated[str | None, typer.Option(help="Column of row weights.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Rows equal in this column are resampled together.")
    ] = None,
    uncertainty: Annotated[
        str, typer.Option(help="auto, posterior, bootstrap, residual, wild or laplace.")
    ] = "auto",
    profile: Annotated[
        str | None, typer.Option(help="Also the profile likelihood of these parameters: E,alpha.")
    ] = None,
    draws: Annotated[int, typer.Option(min=2, help="Joint draws of the parameters.")] = 1000,
    starts: Annotated[int, typer.Option(min=1, help="Starting points.")] = 64,
    coverage: Coverage = 0.9,
    seed: Seed = 0,
    no_sensitivity: Annotated[
        bool, typer.Option("--no-sensitivity", help="Leave out the refits with other choices.")
    ] = False,
    about: Annotated[
        Words,
        typer.Option(
            metavar="KEY=TEXT", help="State it for the checklist: schedule=cosine to 10 %. Repeatable."
        ),
    ] = None,
    checklist: Annotated[
        bool, typer.Option("--checklist", help="Print every question of the checklist with its answer.")
    ] = False,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Fit a law to a table of runs.

    Exit 3 if the data do not identify it: then the reason, and the least that would be needed.
    """
    from isoloss.errors import NoAnswer
    from isoloss.fitting.checklist import parse_about
    from isoloss.fitting.constraints import Constraints
    from isoloss.fitting.estimate import fit as fit_law

    if law == "auto":
        refused = {
            "--by": by, "--drop": drop, "--best-of-sweep": best_of_sweep, "--fix": fix, "--tie": tie,
            "--bound": bound, "--prior": prior, "--borrow": borrow, "--about": about, "--profile": profile,
            "--uncertainty": None if uncertainty == "auto" else uncertainty,
            "--reduction": None if reduction == "sum" else reduction,
            "--no-sensitivity": no_sensitivity or None,
        }  # fmt: skip
        style, runs = style_of(md, latex), table(path, columns, where, units, format)
        if json is not None:
            check_writable(json)
        stack = fit_auto(
            runs.final_checkpoints() if final else runs,
            objective=objective_for(runs, objective, delta, df, residual), cluster=cluster, weights=weights,
            draws=draws, starts=starts, coverage=coverage, seed=seed, refused=refused, style=style, json=json,
        )  # fmt: skip
        with for_people(json):
            _print(stack.leading, "", style, checklist)
        if json is not None:
            write_json(json, stack.to_json())
        _refuse_open({"": stack.leading}, {}, None)
        return 0
    style, form = style_of(md, latex), law_named(law)
    held = Constraints.parse(fix or (), tie or (), bound or (), prior or (), borrow or ())
    profiled = _to_profile(profile, form, held, cluster)
    loss = objective_named(form, objective, delta, df, residual, reduction)
    stated = parse_about(about or ())
    runs = table(path, columns, where, units, format)
    groups = runs.by(by) if by else {"": runs}
    if json is not None:
        check_writable(json)
    fits: dict[str, Fit] = {}
    unanswered: dict[str, NoAnswer] = {}
    for name, rows in groups.items():
        # Each group by itself: what has diverged is a matter of its own trend.
        group = _clean(rows, form, drop, final, best_of_sweep)
        advance, stop = progress(draws)
        try:
            fits[name] = fit_law(
                form, group, objective=loss, constraints=held, draws=draws,
                uncertainty=uncertainty,  # type: ignore[arg-type]
                cluster=cluster, weights=weights, starts=starts, coverage=coverage, seed=seed,
                sensitivity=not no_sensitivity, about=stated, progress=advance,
            )  # fmt: skip
        except NoAnswer as error:
            unanswered[name] = error
            continue
        finally:
            stop()
        with for_people(json):
            _print(fits[name], f"{by} = {name}" if by else "", style, checklist, profiled)
        if len(fits[name].draws) < draws:  # Ctrl-C: what is done is kept, nothing more is begun
            left = list(groups)[list(groups).index(name) + 1 :]
            if left:
                say(f"interrupted: not begun for {by} = {', '.join(left)}", style)
            break
    if json is not None and fits:
        write_json(json, _document(fits, by))
    _refuse_open(fits, unanswered, by)
    return 0


def _refuse_open(fits: dict[str, Fit], unanswered: dict[str, NoAnswer], by: str | None) -> None:
    """Exit code 3 for the first group whose rows do not determine the law, when all is written."""
    from isoloss.errors import NoAnswer
    from isoloss.fitting.cautions import UNIDENTIFIED

    for name, found in fits.items():
        reason = next((w for w in found.warnings if w.code in UNIDENTIFIED), None)
        if reason is not None:
            unanswered[name] = NoAnswer(reason.text, reason.do)
    if unanswered:
        name, why = next(iter(unanswered.items()))
        raise NoAnswer(f"{f'{by} = {name}: ' if by else ''}{why.reason}", why.needed)


def objective_named(
    law: Law, name: str | None, delta: float | None, df: float | None, residual: str | None, reduction: str
) -> Objective:
    """The objective that the options describe, the law's default where they say nothing."""
    from isoloss.fitting.estimate import default_objective
    from isoloss.fitting.objective import OBJECTIVES

    standard = default_objective(law)
    name = name or standard.name
    if name not in OBJECTIVES:
        raise ValueError(f"--objective needs one of {', '.join(OBJECTIVES)}, got {name!r}")
    settings: dict[str, Any] = {"residual": residual or standard.residual, "reduction": reduction}
    for option, value, owner in (("delta", delta, "huber"), ("df", df, "student-t")):
        if value is not None:
            if name != owner:
                raise ValueError(f"--{option} belongs to --objective {owner}, got {name}")
            settings[option] = value
    return OBJECTIVES[name](**settings)


def _to_profile(text: str | None, law: Law, held: Constraints, cluster: str | None) -> tuple[str, ...]:
    """The parameters that ``--profile`` names, refused before the fit where they have no profile."""
    if text is None:
        return ()
    if cluster is not None:
        raise ValueError(
            f"a profile treats rows as independent, and --cluster {cluster} says that they are not. "
            "Leave --profile out: the intervals by --cluster stand in the table"
        )
    names = tuple(part.strip() for part in text.split(","))
    tied = {name for group in held.tie for name in group}
    for name in names:
        if name not in law.names:
            raise ValueError(
                f"--profile needs parameters of {law.slug} ({', '.join(law.names)}), got {name!r}"
            )
        if name in held.fix or name in held.borrow or name in tied:
            how = "tied" if name in tied else "borrowed" if name in held.borrow else "fixed"
            raise ValueError(
                f"--profile needs parameters fitted by themselves, and {name} is {how}. Leave it out"
            )
        if names.count(name) > 1:
            raise ValueError(f"--profile names {name} twice: keep one")
    return names


def _clean(runs: Runs, law: Law, codes: str | None, final: bool, best_of_sweep: bool) -> Runs:
    from isoloss.runs import drop

    law = law.given(runs.columns)
    if final:
        runs = runs.final_checkpoints()
    axes = [axis for axis in law.axes if axis in runs or axis not in law.defaults]
    if best_of_sweep:
        runs = runs.best_of_sweep(at=axes, target=law.target)
    if codes:
        runs = drop(runs, [code.strip() for code in codes.split(",")], axes=axes, target=law.target)
    return runs


def _document(fits: dict[str, Fit], by: str | None) -> dict[str, Any]:
    if by is None:
        return fits[""].to_json()
    return {
        "schema": "isoloss/fits/1",
        "by": by,
        "groups": {name: found.to_json() for name, found in fits.items()},
    }


def _spread(entry: Estimate) -> list[str]:
    if entry.status in ("fixed", "borrowed"):
        return ["—", "—"]
    return [number(entry.stderr, 2), interval(entry.low, entry.high)]


def _print(found: Fit, title: str, style: Style, checklist: bool, profiled: Sequence[str] = ()) -> None:
    objective = found.objective
    settings = [f"{objective.residual} residuals", objective.reduction]
    if "delta" in vars(objective):
        settings.insert(0, f"delta {vars(objective)['delta']:g}")
    if "df" in vars(objective):
        settings.insert(0, f"df {vars(objective)['df']:g}")
    head = f"{found.law.spec}: {found.law.target} = {found.law.formula}"
    say(f"{title}: {head}" if title else head, style)
    say(
        f"{plural(len(found.y), 'row')} used, {len(found.removed)} removed; {objective.name} ({', '.join(settings)}) "
        f"= {found.value:.9g}; {found.agreeing_starts:.0%} of {found.starts} starts agree; "
        f"R2 {found.r2:.4f}; {len(found.draws)} draws by {found.uncertainty}, seed {found.seed}",
        style,
    )
    rows = [[name, number(e.value), *_spread(e), e.status] for name, e in found.parameters.items()]
    show(Table(["parameter", "value", "s.e.", f"{100 * found.coverage:g}% interval", "status"], rows), style)
    for name in profiled:
        _print_profile(found, name, style)
    for name, how in found.derived.items():
        say(f"{name} was derived: {how}", style)
    for entry in found.removed[:8]:
        say(f"removed row {entry.row} [{entry.code}] {entry.why}", style)
    if len(found.removed) > 8:
        say(f"... and {len(found.removed) - 8} more removed rows, all in the --json file", style)
    print_sensitivity(found, style)
    print_checklist(found, style, checklist)
    findings(found.warnings, style)
    say(f"result: {found.result}", style)


def _print_profile(found: Fit, name: str, style: Style) -> None:
    from isoloss.errors import NoAnswer
    from isoloss.fitting.profile import profile

    try:
        ends = profile(found, name)
    except NoAnswer as error:
        say(f"{name}: no profile: {error.reason}", style)
        return
    open_sides = [side for side, held in zip(("below", "above"), ends.bounded, strict=True) if not held]
    unbounded = f"; the rows do not bound it {' or '.join(open_sides)}" if open_sides else ""
    text = interval(ends.low, ends.high)
    say(f"{name}: {text} by profile likelihood, coverage {100 * ends.coverage:g}%{unbounded}", style)

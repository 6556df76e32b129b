"""The command ``isoloss`` and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from isoloss import __version__
from isoloss.cli.bench import bench
from isoloss.cli.check import check
from isoloss.cli.compare import compare
from isoloss.cli.compress import compress
from isoloss.cli.export import export
from isoloss.cli.fit import fit
from isoloss.cli.generate import generate
from isoloss.cli.laws import laws
from isoloss.cli.ledger import ledger
from isoloss.cli.level import level
from isoloss.cli.measure import measure
from isoloss.cli.optimum import optimum
from isoloss.cli.pack import pack
from isoloss.cli.plan import plan
from isoloss.cli.predict import predict
from isoloss.cli.report import report
from isoloss.cli.samples import samples
from isoloss.cli.schedule import schedule
from isoloss.cli.study import study
from isoloss.cli.versus import versus
from isoloss.cli.worth import worth

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
)
for verb in (
    laws,
    check,
    fit,
    compare,
    predict,
    ledger,
    plan,
    report,
    versus,
    level,
    optimum,
    samples,
    measure,
    compress,
    worth,
    export,
    pack,
    generate,
    bench,
):
    app.command()(verb)
app.add_typer(schedule, name="schedule")
app.add_typer(study, name="study")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"isoloss {__version__}")
        raise typer.Exit


@app.callback()
def isoloss(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the cheapest model at the loss you need, and how sure that is.

    Exit codes: 0 done; 2 bad input; 3 no answer in the data or under the budget.
    """

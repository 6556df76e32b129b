"""``isoloss check``: what in a table would break or mislead a fit."""

from __future__ import annotations

from typing import Annotated

import typer

from isoloss.cli.options import Columns, Format, Json, Units, Where, law_named, table
from isoloss.cli.show import findings, for_people, plural, say, write_json


def check(
    path: Annotated[str, typer.Argument(metavar="TABLE", help="csv, tsv, json, jsonl or parquet.")],
    law: Annotated[str, typer.Option(help="The law the table is for: which columns matter.")] = "hoffmann",
    columns: Columns = None,
    where: Where = None,
    units: Units = None,
    format: Format = None,
    notes: Annotated[bool, typer.Option(help="Show notes too, not only errors and warnings.")] = True,
    json: Json = None,
) -> int:
    """Say what is wrong with a table.

    Each finding has a code, the rows, why it matters and what to do. Exit 2 if rows cannot be fitted.
    """
    from isoloss.runs import check as check_runs

    target = law_named(law)
    runs = table(path, columns, where, units, format)
    target = target.given(runs.columns)
    missing = [axis for axis in target.axes if axis not in runs and axis in target.defaults]
    axes = [axis for axis in target.axes if axis not in missing]
    zero = [axis for axis in target.may_be_zero if axis in runs]
    every = check_runs(runs, axes=axes, target=target.target, may_be_zero=zero, signed=target.signed)
    found = [f for f in every if notes or f.level != "note"]
    errors = sum(f.level == "error" for f in found)
    warnings = sum(f.level == "warning" for f in found)
    with for_people(json):
        findings(found, "terminal")
        say(
            f"{plural(len(runs), 'row')} of {path} for {target.spec}: {plural(errors, 'error')}, {plural(warnings, 'warning')}."
        )
    if json is not None:
        write_json(
            json,
            {
                "schema": "isoloss/check/1",
                "law": target.spec,
                "rows": len(runs),
                "findings": [
                    {
                        "code": f.code,
                        "level": f.level,
                        "rows": list(f.rows),
                        "column": f.column,
                        "text": f.text,
                        "why": f.why,
                        "do": f.do,
                    }
                    for f in found
                ],
            },
        )
    return 2 if errors else 0

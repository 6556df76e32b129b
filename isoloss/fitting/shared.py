"""An error that all rows share: no scatter of the rows shows it, so it is put into the draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.laws.power_sum import PowerSum
from isoloss.runs import Finding, Runs

SUFFIX = "_shared_sd"


def with_shared_error(fit: Fit, runs: Runs) -> Fit:
    """The fit, with the shared error of its target in the draws where the table has one.

    A column ``TARGET_shared_sd`` (``isoloss optimum`` writes them) holds, the same in every row, the standard
    deviation of an error of ln target that all rows have in common. Of a law of one power term it moves the
    coefficient: each draw's is multiplied by ``exp(sd z)``, z normal.

    Raises:
        ValueError: the column holds several values, or one that is negative.
    """
    name = f"{fit.law.target}{SUFFIX}"
    if name not in runs or not len(fit.draws):
        return fit
    (values,) = runs.numeric(name)
    seen = np.unique(values[np.isin(runs.rows, fit.rows) & ~np.isnan(values)])
    if len(seen) > 1 or (seen < 0).any():
        raise ValueError(
            f"{name} needs one value at or above 0 for all rows, got {len(seen)} from {seen[0]:g} on. Leave it out "
            "where the rows come from several tables"
        )
    if not len(seen) or seen[0] == 0:
        return fit
    sd = float(seen[0])
    law = fit.law
    names = (
        [t.coefficient for t in law.terms({axis: np.ones(1) for axis in law.axes})]
        if isinstance(law, PowerSum)
        else []
    )
    able = len(names) == 1 and fit.status[law.names.index(names[0])] in ("fitted", "at-bound")
    draws = fit.draws
    if able:
        draws = draws.copy()
        steps = np.random.default_rng([fit.seed, 1]).normal(size=len(draws))
        draws[:, law.names.index(names[0])] *= np.exp(sd * steps)
    return replace(fit, draws=draws, warnings=(*fit.warnings, _told(fit, name, sd, able)))


def _told(fit: Fit, name: str, sd: float, able: bool) -> Finding:
    where = (
        "it is in the draws"
        if able
        else f"it is not in the draws: {fit.law.spec} has no one coefficient for it"
    )
    return Finding(
        "shared-error", "note" if able else "warning", (), name,
        f"all rows share an error of {100 * sd:.2g} % of {fit.law.target}; {where}",
        "the rows' scatter about the law does not show what moves them together",
        "grids with more cells near their optima make it smaller",
    )  # fmt: skip

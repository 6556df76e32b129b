"""takes Runs and an expression, gives the mask of rows that match, by pandas' query language."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from isoloss.runs.columns import listed

if TYPE_CHECKING:
    from isoloss.runs.table import Runs

__all__ = ["matching"]


def matching(runs: Runs, expression: str) -> npt.NDArray[np.bool_]:
    """The mask of rows for which the expression is true. See ``Runs.where``.

    Raises:
        ValueError: the expression is no comparison of columns, or no row matches.
    """
    import pandas as pd

    columns = dict(runs.columns)
    for name, original in runs.names.items():
        columns.setdefault(original, runs.columns[name])
    names = listed(columns)
    frame = pd.DataFrame(columns)
    start = f"{runs.source}, where {expression!r}"
    if not expression.strip():
        raise ValueError(
            f"{start}: empty. Do: compare a column, as in \"dataset == 'c4'\"; columns are {names}"
        )
    try:
        # no names from the caller's scope, and no numexpr: the same answer everywhere
        result = frame.eval(expression, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        raise ValueError(
            f"{start}: {error}; columns are {names}. Do: put text in quotes and odd names in backticks"
        ) from None
    except SyntaxError as error:
        raise ValueError(
            f"{start}: cannot be read ({error.msg}). Do: write it as in \"dataset == 'c4' and params > 1e8\""
        ) from None
    except (
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
        NotImplementedError,
        ArithmeticError,
    ) as error:
        raise ValueError(
            f"{start}: {error}. Do: compare text columns with quoted text, numbers with numbers;"
            f" columns are {names}"
        ) from None
    if not isinstance(result, pd.Series) or result.dtype != bool:
        raise ValueError(
            f'{start}: is not true or false in each row. Do: compare, as in "completed == 1" or'
            " \"dataset == 'c4'\" (two =)"
        )
    mask: npt.NDArray[np.bool_] = result.to_numpy(dtype=bool)
    if not mask.any():
        used = [name for name in columns if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", expression)]
        held = "; ".join(f"{name} holds {_examples(columns[name])}" for name in used)
        raise ValueError(f"{start}: matches none of {len(runs)} rows; {held}")
    return mask


def _examples(values: npt.NDArray[np.generic]) -> str:
    distinct = np.unique(values)
    if distinct.dtype.kind == "f":
        finite = distinct[np.isfinite(distinct.astype(np.float64))]
        if len(finite) > 4:
            return f"{finite[0]:.6g} to {finite[-1]:.6g}"
        return listed(f"{value:.6g}" for value in finite)
    return listed((repr(str(value)) for value in distinct), 5)

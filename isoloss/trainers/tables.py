"""takes the name of a scikit-learn table, gives its rows in three fixed parts: to learn from, validation, test.

Bundled tables (digits, breast_cancer, wine, iris, diabetes) and generated ones (moons, classification,
friedman1: 65 536 rows to learn from, so that a curve over the number of examples is long).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

__all__ = ["TABLES", "Parts", "Rows", "Table", "read", "standardised"]

POOL, VALIDATION, TEST = 65536, 4096, 8192  # rows of a generated table
CLIP = 3.0  # standard deviations; a pixel seen once among the examples has almost none


@dataclass(frozen=True)
class Table:
    """A table as it is known before it is loaded.

    Args:
        maker: the function of ``sklearn.datasets`` that gives it.
        features: columns of the input.
        outputs: classes, or 1 for a regression.
        rows: all rows, those of test and validation included.
        options: what a generator is called with beside ``n_samples`` and ``random_state=0``; None: bundled.
    """

    maker: str
    features: int
    outputs: int
    rows: int
    options: Mapping[str, Any] | None = None

    @property
    def parts(self) -> tuple[int, int, int]:
        """Rows to learn from, of validation, of test: 5/8, 1/8 and 1/4 of a bundled table."""
        if self.options is not None:
            return POOL, VALIDATION, TEST
        validation, test = self.rows // 8, self.rows // 4
        return self.rows - validation - test, validation, test


def _generated(maker: str, features: int, outputs: int, options: Mapping[str, Any]) -> Table:
    return Table(maker, features, outputs, POOL + VALIDATION + TEST, options)


TABLES: dict[str, Table] = {
    "digits": Table("load_digits", 64, 10, 1797),
    "breast_cancer": Table("load_breast_cancer", 30, 2, 569),
    "wine": Table("load_wine", 13, 3, 178),
    "iris": Table("load_iris", 4, 3, 150),
    "diabetes": Table("load_diabetes", 10, 1, 442),
    "moons": _generated("make_moons", 2, 2, {"noise": 0.3}),
    "classification": _generated(
        "make_classification", 20, 4, {"n_informative": 10, "n_redundant": 5, "n_classes": 4}
    ),
    "friedman1": _generated("make_friedman1", 10, 1, {"noise": 1.0}),
}


@dataclass(frozen=True, eq=False)
class Rows:
    """Inputs (n, features), float32, and targets: classes (n,), int64, or standardised numbers (n,), float32."""

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True, eq=False)
class Parts:
    """A table in three fixed parts: rows to learn from, of validation, of test.

    Args:
        name: its key in ``TABLES``.
        x: inputs (rows, features) of each part, float64.
        y: targets (rows,) of each part, float64; classes count from 0.
        sha256: digest of all of x and y.
    """

    name: str
    x: tuple[np.ndarray, ...]
    y: tuple[np.ndarray, ...]
    sha256: str


@lru_cache(maxsize=2)
def read(name: str) -> Parts:
    """The three parts of a table; those of test and validation open one permutation, the same for all runs.

    Args:
        name: a key of ``TABLES``.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.

    Example:
        >>> [len(part) for part in read("iris").x]
        [95, 18, 37]
    """
    table = TABLES[name]
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"table {name} needs scikit-learn. Do: pip install scikit-learn") from error
    make = getattr(datasets, table.maker)
    if table.options is None:
        x, y = make(return_X_y=True)
    else:
        x, y = make(n_samples=table.rows, random_state=0, **table.options)
    x, y = np.ascontiguousarray(x, dtype=np.float64), np.ascontiguousarray(y, dtype=np.float64)
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    order = np.random.default_rng(0).permutation(len(x))
    _, validation, test = table.parts
    where = np.split(order, [test, test + validation])[::-1]
    return Parts(name, tuple(x[i] for i in where), tuple(y[i] for i in where), digest)


def standardised(parts: Parts, examples: int, seed: int) -> list[Rows]:
    """Some rows to learn from, and those of validation and test, all standardised by the former.

    Inputs beyond 3 standard deviations are cut to 3. A number to be predicted has the mean of these
    examples taken off, and as its unit the standard deviation over *all* rows to learn from, so that the
    losses of all runs are in one unit.

    Args:
        parts: what :func:`read` gives.
        examples: how many rows to learn from.
        seed: which of them.
    """
    chosen = np.random.default_rng([seed, 0]).permutation(len(parts.x[0]))[:examples]
    mine = parts.x[0][chosen]
    centre, spread = mine.mean(axis=0), mine.std(axis=0)
    spread[spread == 0] = 1.0
    regression = TABLES[parts.name].outputs == 1
    found = []
    for part, (x, y) in enumerate(zip(parts.x, parts.y, strict=True)):
        rows = chosen if part == 0 else np.arange(len(x))
        scaled = np.clip((x[rows] - centre) / spread, -CLIP, CLIP)
        if regression:
            target = torch.from_numpy((y[rows] - parts.y[0][chosen].mean()) / parts.y[0].std()).float()
        else:
            target = torch.from_numpy(y[rows]).long()
        found.append(Rows(torch.from_numpy(scaled).float(), target))
    return found

"""The tables behind the figures: public measurements beside the repository, or stand-ins that say so."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Array]

LAWS = Path(__file__).parents[2] / "shared" / "data" / "laws"


def columns(name: str, keep: Mapping[str, str], where: Mapping[str, str] | None = None) -> Columns | None:
    """Columns of ``LAWS/name``, renamed (ours -> the file's), of the matching rows; None if absent."""
    return needed(name, keep, where) if (LAWS / name).is_file() else None


def needed(name: str, keep: Mapping[str, str], where: Mapping[str, str] | None = None) -> Columns:
    """As :func:`columns`, of a table that must be there; an empty field is NaN."""
    found = rows(name, where)
    return {ours: np.array([float(row[theirs] or "nan") for row in found]) for ours, theirs in keep.items()}


def rows(name: str, where: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """The matching rows of ``LAWS/name``, as text.

    Raises:
        FileNotFoundError: the table is absent.
    """
    path = LAWS / name
    if not path.is_file():
        raise FileNotFoundError(f"needed the public table {name} in {LAWS}, got nothing there. Put it there")
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[k] == v for k, v in (where or {}).items())]


def chinchilla() -> tuple[Columns, str]:
    """The 240 points, and what they are."""
    names = {"params": "params", "tokens": "tokens", "loss": "loss_nats"}
    found = columns("chinchilla/points.csv", names, {"outlier_excluded": "0"})
    if found is not None:
        return found, "240 points of Hoffmann et al.'s figure 4 as read off by Besiroglu et al. 2024"
    return planted(240), "**synthetic** points of the same design: the public table is absent"


def planted(n: int, seed: int = 0) -> Columns:
    """Points around the replication's law: IsoFLOP budgets 6e18 to 3e21, heavy-tailed noise of 1 %."""
    rng = np.random.default_rng(seed)
    flops = np.exp(rng.uniform(np.log(6e18), np.log(3e21), n))
    params = np.sqrt(flops / 120) * np.exp(rng.normal(0.0, 0.9, n))
    tokens = flops / (6 * params)
    mean = 1.8172 + 477.8 * params**-0.3473 + 2143.0 * tokens**-0.3672
    return {"params": params, "tokens": tokens, "loss": mean * np.exp(0.01 * rng.standard_t(3, n))}


def cases() -> Iterator[tuple[str, str, Columns | None, dict[str, Any]]]:
    """Name, law, table and settings of the fits beyond the 240 points."""
    yield "hoffmann, 5,000 synthetic rows", "hoffmann", planted(5000), {}
    base = {"params": "params", "tokens": "tokens"}
    gadre = columns(
        "gadre_overtraining/runs.csv", {**base, "loss": "loss_nats_c4"}, {"train_dataset": REDPAJAMA}
    )
    yield "gadre, RedPajama runs", "gadre", gadre, {}
    repeated = {**base, "tokens_unique": "tokens_unique", "loss": "loss_nats"}
    yield (
        "muennighoff, data-constrained runs",
        "muennighoff",
        columns("data_constrained/runs.csv", repeated, {"in_published_fit": "1"}),
        {},
    )
    curve = columns(
        "addition_break/curve.csv", {"tokens": "examples", "loss": "test_loss_nats"}, {"is_train": "1"}
    )
    yield "broken1, addition curve", "broken1", curve, {}


REDPAJAMA = "rpj"

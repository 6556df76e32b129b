"""The tables of a store as CSV or Parquet, for any other tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloss.files import written
from isoloss.study.records import LEVELS

if TYPE_CHECKING:
    import pandas as pd

    from isoloss.study.store import Store

FORMATS = ("csv", "parquet")


def export(store: Store, folder: Path, format: str) -> tuple[Path, ...]:
    """Write each table that is not empty; see :meth:`isoloss.Store.export`."""
    if format not in FORMATS:
        raise ValueError(f"needed format csv or parquet, got {format!r}")
    frames = _frames(store)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    return tuple(_write(frame, folder / f"{name}.{format}", format) for name, frame in frames.items())


def _frames(store: Store) -> dict[str, pd.DataFrame]:
    import numpy as np
    import pandas as pd

    frames: dict[str, pd.DataFrame] = {}
    runs = store.run_entries()
    if runs:
        flat = [
            {
                "id": r["id"], "created": r["created"], "study": r["study"], "run": r["key"], "status": r["status"],
                **r["axes"], **r["costs"], **r["measured"], **{f"config.{k}": _cell(v) for k, v in r["config"].items()},
                **{f"unit.{k}": v for k, v in r["units"].items()},
            }
            for r in runs
        ]  # fmt: skip
        frames["runs"] = pd.DataFrame(flat)
        if store.has_curves():
            frames["curves"] = store.curves().to_frame()
    predictions = store.predictions()
    if predictions:
        flat = [
            {
                **{k: v for k, v in p.items() if k not in ("at", "quantiles")},
                **{f"at.{axis}": value for axis, value in p["at"].items()},
            }
            for p in predictions
        ]
        columns = [f"q{level:g}" for level in LEVELS]
        levels = pd.DataFrame(np.array([p["quantiles"] for p in predictions]), columns=columns)
        frames["predictions"] = pd.concat([pd.DataFrame(flat), levels], axis=1)
    outcomes = store.outcomes()
    if outcomes:
        frames["outcomes"] = pd.DataFrame(outcomes)
    return frames


def _cell(value: Any) -> Any:
    """What a cell of a table can hold; a list or an object as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _write(frame: pd.DataFrame, path: Path, format: str) -> Path:
    try:
        with written(path) as beside:
            if format == "csv":
                frame.to_csv(beside, index=False)
            else:
                frame.to_parquet(beside, index=False)
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow. Do: pip install 'isoloss[parquet]', or write CSV") from error
    return path

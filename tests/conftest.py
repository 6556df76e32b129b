"""What every test shares: the package on the path, the published tables, one hypothesis profile."""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
TABLES = ROOT.parent / "shared" / "data"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # `tests.oracles` is imported from the root, not installed

settings.register_profile(
    "isoloss",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("isoloss")


@pytest.fixture(scope="session")
def table() -> Callable[[str], list[dict[str, str]]]:
    """``table("laws/chinchilla/points.csv")``: its rows as dicts of text; skips where it is absent."""

    def read(name: str) -> list[dict[str, str]]:
        path = TABLES / name
        if not path.is_file():
            pytest.skip(f"published table {name} is not beside this checkout")
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return read

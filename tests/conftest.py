"""What every test shares: the package on the path, the published tables, one hypothesis profile."""

from __future__ import annotations

import csv
import gc
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

gc.disable()  # while millions of objects are made that stay to the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pages first: they take longest, and the worker that has them starts torch's exporter, as tests/compress do."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


def pytest_collection_finish() -> None:
    """What was loaded for the tests is not walked through again and again: a tenth of their time."""
    gc.collect()
    gc.freeze()
    gc.enable()


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

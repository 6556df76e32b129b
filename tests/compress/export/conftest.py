"""torch's exporter takes 7 CPU seconds to start, in every process: its tests go to one worker (``--dist loadgroup``)."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "xdist_group(name): tests that one worker runs")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == HERE and "onnx" in item.path.stem:
            item.add_marker(pytest.mark.xdist_group("onnx"))

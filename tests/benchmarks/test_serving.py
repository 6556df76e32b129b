"""The search beside its map, on a server of two texts."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="a server needs torch")

from benchmarks import serving


def test_the_choice_of_a_search_is_timed_beside_the_best_of_the_map():
    axes = {"batch": [1, 2], "threads": [1], "piece": [8, 32]}
    row = serving.beside_a_map(serving.gpt(32), serving.load(2), axes, (8,))
    assert len(row["means"]) == 4
    (found,) = row["searches"]
    assert found["settings"].keys() == axes.keys()
    assert 1 <= found["tried"] <= 4
    assert len(found["rates"]) == len(row["best rate"]) == serving.AGAIN
    text = serving.table(row)
    assert "8 trials on" in text
    assert "Load of the machine" in text

"""The registry of the folder: sorted, complete, every name with an example."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from isoloss import observing

ROOT = Path(__file__).parents[2]


def test_all_is_sorted_and_is_what_has_a_home():
    assert sorted(observing.__all__) == observing.__all__
    assert set(observing.__all__) == set(observing._HOME)
    files = {path.stem for path in Path(observing.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(observing._HOME.values()) <= files
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        observing.nonsense  # noqa: B018


@pytest.mark.parametrize("name", observing.__all__)
def test_every_name_loads_twice_as_the_same_thing(name):
    # a module of that name would shadow it from the second time on
    thing = getattr(observing, name)
    assert getattr(observing, name) is thing
    assert thing.__name__ == name
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        assert ">>>" in inspect.getdoc(thing)


def test_the_folder_loads_nothing_until_asked():
    code = "import isoloss.observing, sys; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"

"""What the package exports is documented, and every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import isoloss

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(isoloss.__path__, "isoloss.")
    if not name.startswith("isoloss.cli") and not name.endswith("__main__")
)


def load(name):
    """The export, or a skip while its module is still to be written."""
    try:
        return getattr(isoloss, name)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("isoloss."):
            pytest.skip(f"{error.name} is not there yet")
        raise


def test_all_is_sorted_complete_and_each_name_has_a_home():
    assert sorted(isoloss.__all__) == isoloss.__all__
    assert set(isoloss.__all__) == set(isoloss._HOME)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        isoloss.nonsense  # noqa: B018


@pytest.mark.parametrize("name", isoloss.__all__)
def test_every_export_has_a_docstring_with_an_example(name):
    text = inspect.getdoc(load(name)) or ""
    assert len(text.splitlines()[0]) > 10
    assert ">>>" in text, f"isoloss.{name} has no example"


@pytest.mark.parametrize("name", isoloss.__all__)
def test_every_export_is_annotated(name):
    thing = load(name)
    if inspect.isfunction(thing):
        hints = inspect.signature(thing)
        assert hints.return_annotation is not inspect.Signature.empty
        for parameter in hints.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter.name})"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "isoloss.deploy.gpu_kernels":
        pytest.importorskip("triton", reason="of no use without it")
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is"
    with np.printoptions():
        failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0

"""Settings in words: read back as written; what is not allowed is refused when it is made, and the words are named."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

pytest.importorskip("torch")

from isoloss.compress import settings, solvers
from isoloss.compress.activations import Activations, asked
from isoloss.compress.blockwise import Blockwise
from isoloss.compress.rotations import Rotation


def kind_of(name):
    module, _, kind = solvers.SOLVERS[name].partition(":")
    return getattr(importlib.import_module(f"isoloss.compress.solvers.{module}"), kind)


def worded(kind):
    """Fields that take one of some words."""
    hints = get_type_hints(kind)
    return {
        field.name: get_args(hints[field.name])
        for field in dataclasses.fields(kind)
        if get_origin(hints[field.name]) is Literal
    }


WORDED = [(name, key, words) for name in solvers.SOLVERS for key, words in worded(kind_of(name)).items()]


def test_solvers_with_such_settings_are_known():
    assert {(name, key) for name, key, _ in WORDED} >= {
        ("gptq", "order"), ("kmeans", "weights"), ("lut-feedback", "order"), ("lut-feedback", "weights")
    }  # fmt: skip


@pytest.mark.parametrize(("name", "key", "words"), WORDED)
def test_words_that_a_solver_does_not_know_are_refused_when_it_is_made(name, key, words):
    for make in (lambda: solvers.get(f"{name}({key}=zz)"), lambda: kind_of(name)(**{key: "zz"})):
        with pytest.raises(ValueError, match=rf"{name}\({key}\) needs .*got 'zz'") as found:
            make()
        assert all(word in str(found.value) for word in words)
    for word in words:
        made = solvers.get(f"{name}({key}={word})")
        assert getattr(made, key) == word
        assert solvers.get(made.spec) == made


@pytest.mark.parametrize("name", [n for n in solvers.SOLVERS if "damp" in kind_of(n).__dataclass_fields__])
@pytest.mark.parametrize("damp", ["-1", "nan", "inf", "1.5"])
def test_damping_out_of_range_is_refused_when_the_solver_is_made(name, damp):
    with pytest.raises(ValueError, match="damp"):
        solvers.get(f"{name}(damp={damp})")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gptq(damp=1, damp=1)", "given twice"),
        ("gptq(static=maybe)", "needs true or false"),
        ("gptq(sweeps=1.5)", r"needs a number \(int\)"),
        ("gptq(wide=1)", "There are: damp=0.01, order=activation, static=false"),
        ("gptq(damp)", "has no setting 'damp'"),
    ],
)
def test_refusals(text, said):
    with pytest.raises(ValueError, match=said):
        solvers.get(text)


@pytest.mark.parametrize(
    "made",
    [
        Rotation(residual=False, seed=4),
        Rotation(),
        Blockwise(steps=7, rounding=False, values=0.25),
        Activations("int8/asym", "static", "percentile", 99.5),
        Activations("fp8-e4m3"),
    ],
)
def test_what_is_written_is_read_back(made):
    if isinstance(made, Activations):
        assert asked(made.spec) == made
    else:
        assert settings.read(type(made), settings.words(made), "x") == made
        assert settings.read(type(made), settings.USUAL, "x") == type(made)()


@pytest.mark.parametrize("text", ["int8(when=row)", "table3", "int8(static)", "(when=static)", "int8(", ""])
def test_inputs_that_cannot_be_rounded_so_are_refused(text):
    with pytest.raises(ValueError, match=r"needs static or token|rounded to|has no setting|needed a format"):
        asked(text)

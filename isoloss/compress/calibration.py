"""A model and its calibration batches from what a user names, as the command line takes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from isoloss.compress.recipe import TRAINED, Identity
from isoloss.measure.load import CHECKPOINTS, Loaded, Wanted, function, load


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model that can be compressed.

    Attributes:
        loaded: model, loss, notes.
        batches: calibration inputs; None where none were named.
        known_as: what the model can be made again from; None where that follows from its class.
        loss_on: what data the loss of ``loaded`` is on, in words.
    """

    loaded: Loaded
    batches: list[Any] | None
    known_as: Identity | None
    loss_on: str


def prepare(model: str, calib: str | None, wanted: Wanted) -> Prepared:
    """The model that a text names, and its calibration inputs.

    Args:
        model: as :func:`isoloss.measure.load.load` takes it.
        calib: a text file, of which windows are taken; or ``file.py:function`` that gives the inputs of each batch (a
            tensor, a tuple of arguments, a dict of keywords). None: the batches of a function that makes the model,
            and none for a folder.
        wanted: how many windows, how long; its data are not read.

    Raises:
        ValueError: model or data cannot be loaded; the function gives nothing.
        TypeError: the function gives something else.
    """
    made_by = calib is not None and calib.rpartition(":")[0].endswith(".py")
    text = Path(calib) if calib is not None and not made_by else None
    loaded = load(model, replace(wanted, data=text))
    own = model.rpartition(":")[0].endswith(".py")
    if text is not None and own:
        raise ValueError(
            f"{model} makes its own batches, so the text {calib} says nothing. Leave it out, or name a function that "
            "gives batches: file.py:function"
        )
    batches: list[Any] | None = None
    if made_by:
        assert calib is not None
        batches = _given(calib, function(calib)())
    elif text is not None or own:
        batches = [inputs for inputs, _ in loaded.subject.batches]
    data = "the model's own batches" if made_by else "the calibration data"
    return Prepared(loaded, batches, _known_as(model), data)


def _given(name: str, made: object) -> list[Any]:
    if not isinstance(made, Iterable) or isinstance(made, (str, dict)):
        raise TypeError(
            f"{name} must give the inputs of each batch, one after another, got a {type(made).__name__}"
        )
    batches = list(made)
    if not batches:
        raise ValueError(f"{name} gives no batch. Needed at least one")
    return batches


def _known_as(model: str) -> Identity | None:
    """Of a checkpoint of the reference trainer, its settings: the model is made from them."""
    place = Path(model).expanduser()
    if not any((place / one).is_file() for one in CHECKPOINTS):
        return None
    from isoloss.trainers import gpt_modules

    settings = gpt_modules.load(place)[1]
    config = {name: value for name, value in asdict(settings).items() if value is not None}
    return Identity(TRAINED, "isoloss.trainers.gpt_modules.Transformer", "float32", config)

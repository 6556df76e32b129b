"""From what a user names, a subject to be measured: a function in a file, a Hugging Face folder, a checkpoint.

- ``file.py:make``: the function gives a :class:`Subject`, a pair ``(module, inputs)``, or a :class:`Loaded`.
- a folder with a ``config.json`` (or a GGUF file): :mod:`isoloss.measure.load_huggingface`.
- a folder with a checkpoint of :mod:`isoloss.trainers.gpt`.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.subject import Batch, Subject

CHECKPOINTS = ("checkpoint.safetensors", "checkpoint.previous.safetensors")
NO_LOSS = "no loss was given: the mean of the outputs stands for it in a training step"
COMPRESSED = ("recipe.json", "compressed.safetensors")  # of isoloss compress


@dataclass(frozen=True, eq=False)
class Loaded:
    """A subject, and what goes with it.

    Attributes:
        subject: to be measured.
        costs_only: why nothing but costs can be measured of it; empty if all can.
        notes: what a reader of the numbers must know, sentences.
        generate: (tokens of the prompt, new tokens) -> anything, for a model that generates text.
        context: tokens that prompt and output may have together; 0 where nothing generates.
        flat: why its gradients are zero, so that probes of them have nothing to measure; empty if they are not.
    """

    subject: Subject
    costs_only: str = ""
    notes: tuple[str, ...] = ()
    generate: Callable[[int, int], object] | None = None
    context: int = 0
    flat: str = ""


@dataclass(frozen=True)
class Wanted:
    """How a subject is to be made.

    Attributes:
        data: path of a text file; None: none.
        batch: examples of a batch.
        batches: how many batches.
        length: tokens of an example; None: 128, or what the model can take if that is less.
        seed: of the places in the text, of masks and of random inputs.
    """

    data: Path | None = None
    batch: int = 8
    batches: int = 1
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.batches) < 1 or (self.length is not None and self.length < 2):
            raise ValueError(
                f"needed a batch and batches of at least 1 and a length of at least 2, got {self.batch}, {self.batches} "
                f"and {self.length}"
            )

    def tokens(self, most: int) -> int:
        """Tokens of an example for a model that takes ``most``."""
        if self.length is not None and self.length > most:
            raise ValueError(
                f"the model takes {most} tokens, got a length of {self.length}. Give --length {most}"
            )
        return min(128, most) if self.length is None else self.length


def load(model: str, wanted: Wanted | None = None) -> Loaded:
    """The subject that a text names.

    Args:
        model: ``file.py:make``, or a folder, as the head of this file says.
        wanted: data and batches; of a function only the seed is used (``torch.manual_seed``).

    Raises:
        ValueError: it names nothing that can be loaded, or loading or the function fails; the message says what was
            found.
        TypeError: the function gives something else.
    """
    wanted = wanted or Wanted()
    where, colon, _ = model.rpartition(":")
    if colon and where.endswith(".py"):
        return _from_function(Path(where), model, wanted)
    if model.endswith(".py"):
        raise ValueError(f"needed a function in {model}, got none. Name it: {model}:make")
    place = Path(model).expanduser()
    if any((place / one).is_file() for one in CHECKPOINTS):
        return _from_checkpoint(place, wanted)
    if all((place / one).is_file() for one in COMPRESSED):
        raise ValueError(
            f"{model} holds a compressed model. Load it in a function, with isoloss.compress.load({str(place)!r}), and "
            "name that: file.py:make"
        )
    if (place / "config.json").is_file() or place.suffix == ".gguf" or any(place.glob("*.gguf")):
        from isoloss.measure.load_huggingface import from_folder

        return from_folder(place, wanted)
    held = f"it holds {_listed(place)}" if place.is_dir() else "there is no such folder"
    raise ValueError(
        f"cannot load {model}: {held}. Needed a folder with config.json (Hugging Face), a GGUF file, a checkpoint "
        f"({CHECKPOINTS[0]}) of isoloss.trainers.gpt, or file.py:make"
    )


def _listed(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"


def function(text: str) -> Callable[[], Any]:
    """The function that ``file.py:name`` names.

    Raises:
        ValueError: there is no such file or function, or importing the file fails.
    """
    where, _, name = text.rpartition(":")
    path = Path(where)
    make: Callable[[], Any] | None = getattr(_module(path, text), name, None)
    if not callable(make):
        found = "is not there" if make is None else f"is a {type(make).__name__}"
        raise ValueError(f"needed the function {name!r} in {path}, but it {found}")
    return make


def _from_function(path: Path, text: str, wanted: Wanted) -> Loaded:
    make = function(text)
    torch.manual_seed(wanted.seed)
    try:
        made = make()
    except Exception as error:
        raise ValueError(f"{text} failed: {_said(error, path)}") from error
    notes = ("data and batches are those of the function",) if wanted.data is not None else ()
    if isinstance(made, Loaded):
        return replace(made, notes=(*made.notes, *notes))
    if isinstance(made, Subject):
        return Loaded(made, notes=notes)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return costs_of(made[0], made[1], path.stem, notes)
    raise TypeError(
        f"{text} must give a Subject, a pair (module, inputs) or a Loaded, got {_kind(made)}. See isoloss.measure.load"
    )


def _kind(made: Any) -> str:
    if isinstance(made, tuple):
        return f"a tuple of {', '.join(type(one).__name__ for one in made)}"
    return f"a {type(made).__name__}"


def costs_of(model: nn.Module, inputs: Any, name: str, notes: tuple[str, ...] = ()) -> Loaded:
    """A model with inputs and no loss: of its costs alone anything is known.

    Example:
        >>> found = costs_of(nn.Linear(3, 2), torch.ones(4, 3), "line")
        >>> found.costs_only
        'no loss was given: the mean of the outputs stands for it in a training step'
    """
    subject = Subject(model, [(inputs, torch.zeros(()))], _mean_of_outputs, name)
    return Loaded(subject, NO_LOSS, (*notes, NO_LOSS))


def _mean_of_outputs(outputs: Any, targets: Any) -> Tensor:
    parts = [v for v in tree_leaves(outputs) if isinstance(v, Tensor) and v.is_floating_point()]
    if not parts:
        raise TypeError(f"needed a tensor of numbers among the outputs, got {_kind(outputs)}")
    return torch.stack([part.float().mean() for part in parts]).sum()


def _module(path: Path, text: str) -> ModuleType:
    """The module of a file, its folder searched for what it imports, as of a script."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}, which {text!r} names")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"isoloss_measured_{path.stem}", path)
    assert spec is not None  # a file that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        raise ValueError(f"importing {path} failed: {_said(error, path)}") from error
    return module


def _said(error: BaseException, path: Path) -> str:
    """Its kind, its first line, and the line of the file that led to it."""
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    if isinstance(error, SyntaxError):
        return said  # which names the line
    return said + (f", line {lines[-1]} of {path.name}" if lines else "")


def _from_checkpoint(folder: Path, wanted: Wanted) -> Loaded:
    """The newest checkpoint of the reference trainer, on the text that it was trained for."""
    from isoloss.trainers import gpt_modules, text

    model, settings = gpt_modules.load(folder)
    length = wanted.tokens(settings.seq_len)
    given = text.load(str(wanted.data) if wanted.data is not None else settings.data)
    ids = torch.from_numpy(given.validation.astype("int64"))
    batches = windows(ids, wanted, length)

    @torch.inference_mode()
    def generate(prompt: int, new: int) -> None:
        seen = ids[:prompt][None]
        for _ in range(new):
            seen = torch.cat([seen, model(seen)[:, -1:].argmax(-1)], dim=1)

    return Loaded(
        Subject(model, batches, CrossEntropy(), name=folder.name),
        notes=(f"validation text of {wanted.data or settings.data}", "it generates without a cache"),
        generate=generate,
        context=settings.seq_len,
    )


def windows(ids: Tensor, wanted: Wanted, length: int) -> list[Batch]:
    """Batches of windows of a text, each with the next token of every place; distinct places by the seed.

    Raises:
        ValueError: the text is too short for them not to overlap.

    Example:
        >>> [(x, y)] = windows(torch.arange(100), Wanted(batch=2), 4)
        >>> x.shape, bool((y == x + 1).all())
        (torch.Size([2, 4]), True)
    """
    count, room = wanted.batch * wanted.batches, (len(ids) - 1) // length
    if room < count:
        raise ValueError(
            f"needed {count} windows of {length} tokens, got text for {room}. Give more text, or less to --batch, "
            "--batches or --length"
        )
    picked = torch.randperm(room, generator=torch.Generator().manual_seed(wanted.seed))[:count] * length
    rows = ids[picked[:, None] + torch.arange(length + 1)]
    return [(part[:, :-1], part[:, 1:]) for part in torch.split(rows, wanted.batch)]

"""What is done to which layer, and what it came to: the part of a compressed model that a person reads."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from isoloss.compress import formats, settings, solvers
from isoloss.compress.activations import Range, Rounded, asked
from isoloss.compress.blockwise import Blockwise
from isoloss.compress.layers import Layer
from isoloss.compress.rotations import Rotation
from isoloss.compress.tuning import Tuning

SCHEMA = "isoloss/recipe/1"
AS_ASKED = "kept, as asked"
TRAINED = "isoloss.trainers.gpt"
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """How a layer is to be compressed.

    Args:
        format: ``int4/g128/asym``, ``table3+0.45%``: what :func:`isoloss.compress.formats.get` reads.
        solver: ``nearest``, ``gptq``, ``gptq(damp=0.05)``: what :func:`isoloss.compress.solvers.get` reads.

    Raises:
        ValueError: there is no such format or solver.

    Example:
        >>> Choice("int4/channel", "gptq(damp=0.01)")  # what is usual is left out
        Choice(format='int4', solver='gptq')
    """

    format: str
    solver: str = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", formats.get(self.format).spec)
        object.__setattr__(self, "solver", solvers.get(self.solver).spec)


Choices = Choice | Mapping[str, Choice | None]


def chosen(layers: Sequence[Layer], choices: Choices) -> dict[str, Choice | None]:
    """Layer -> its choice, or None for one that is left.

    Args:
        layers: of the model.
        choices: one for all, or by name: a layer's own name, or a pattern with ``*``, ``?`` and ``[...]``. A layer's
            own name counts first, then the first pattern that fits; one that nothing fits is left.

    Raises:
        ValueError: a name or pattern that no layer has; no layer is chosen.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = nn.ModuleDict({"first": nn.Linear(2, 2), "last": nn.Linear(2, 2)})
        >>> made = chosen(find(net).layers, {"last": None, "*": Choice("int4")})
        >>> made["first"].format, made["last"]
        ('int4', None)
    """
    if isinstance(choices, Choice):
        choices = {"*": choices}
    names = [layer.name for layer in layers]
    out: dict[str, Choice | None] = {}
    for name in names:
        pattern = (
            name if name in choices else next((p for p in choices if fnmatch.fnmatchcase(name, p)), None)
        )
        out[name] = choices[pattern] if pattern is not None else None
    unknown = [p for p in choices if p not in names and not any(fnmatch.fnmatchcase(n, p) for n in names)]
    if unknown:
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise ValueError(
            f"no layer is named {unknown[0]!r}. There are: {shown or 'none that can be compressed'}"
        )
    if not any(out.values()):
        raise ValueError("needed at least one layer to compress, got none. Choose a format for some")
    return out


@dataclass(frozen=True)
class Identity:
    """Which model this is.

    Attributes:
        kind: ``huggingface`` and ``isoloss.trainers.gpt`` can be made again from their config alone; a ``module`` must
            be given.
        name: of the class.
        dtype: of its numbers, in which it is made.
        config: what it is made from.
    """

    kind: str
    name: str
    dtype: str
    config: Mapping[str, Any] | None = None


def identity(model: nn.Module) -> Identity:
    """Which model this is.

    Example:
        >>> identity(nn.Linear(2, 2))
        Identity(kind='module', name='torch.nn.modules.linear.Linear', dtype='float32', config=None)
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    dtype = str(first.dtype).removeprefix("torch.")
    config = getattr(model, "config", None)
    own = type(model).__module__.partition(".")[0] == "transformers"
    if own and config is not None and hasattr(config, "to_json_string"):
        return Identity("huggingface", type(model).__name__, dtype, json.loads(config.to_json_string(False)))
    return Identity("module", f"{type(model).__module__}.{type(model).__qualname__}", dtype)


@dataclass(frozen=True)
class Outcome:
    """What was done to a layer, and what it came to.

    Attributes:
        path: of the parameter.
        kind: of the layer.
        shape: of the matrix.
        dtype: of the parameter that it is decoded into.
        format, solver: as done, in words.
        bits: stored.
        error: squared, relative to the square of the whole: of what it puts out (``output``) on the calibration data, of what is looked up
            (``lookup``), or of the weight itself (``weight``) where no data came to it.
        error_of: which of them.
        rows: of the calibration data that it saw.
        seconds: that it took to encode.
    """

    path: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    format: str
    solver: str
    bits: int
    error: float
    error_of: str
    rows: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Recipe:
    """What was done to a model.

    Attributes:
        model: which.
        layers: name -> what was done to it.
        left: path of every other parameter -> why it was left.
        tied: path -> path of the parameter that it is the same as.
        notes: what a reader must know.
        rotation: how its weights were turned before; None: not.
        blockwise: how blocks were learned whole; None: not.
        inputs: how inputs of its layers are rounded; None: not.
        tuning: how the whole was tuned at last; None: not.
    """

    model: Identity
    layers: Mapping[str, Outcome]
    left: Mapping[str, str]
    tied: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rotation: Rotation | None = None
    blockwise: Blockwise | None = None
    inputs: Rounded | None = None
    tuning: Tuning | None = None

    def choices(self) -> dict[str, Choice | None]:
        """As :func:`isoloss.compress.compress` takes them, to do the same to another model of this kind."""
        return {name: Choice(done.format, done.solver) for name, done in self.layers.items()}

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "model": asdict(self.model),
            "layers": [{"name": name, **asdict(done)} for name, done in self.layers.items()],
            "left": [{"path": path, "why": why} for path, why in self.left.items()],
            "tied": [{"path": path, "to": owner} for path, owner in self.tied.items()],
            "notes": list(self.notes),
            "rotation": None if self.rotation is None else _words(self.rotation),
            "blockwise": None if self.blockwise is None else _words(self.blockwise),
            "tuning": None if self.tuning is None else _words(self.tuning),
            "inputs": _of_inputs(self.inputs),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Recipe:
        """What :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        layers = {}
        for entry in document["layers"]:
            own = {**entry, "shape": tuple(entry["shape"])}
            name = own.pop("name")
            layers[name] = Outcome(**own)
        return cls(
            Identity(**document["model"]),
            layers,
            {entry["path"]: entry["why"] for entry in document["left"]},
            {entry["path"]: entry["to"] for entry in document["tied"]},
            tuple(document["notes"]),
            _asked(Rotation, document.get("rotation"), "rotation"),
            _asked(Blockwise, document.get("blockwise"), "blockwise"),
            _inputs(document.get("inputs")),
            _asked(Tuning, document.get("tuning"), "tuning"),
        )


def _words(made: Any) -> str:
    return settings.words(made) or settings.USUAL


def _asked(kind: type[T], words: str | None, name: str) -> T | None:
    return None if words is None else settings.read(kind, words, name)


def _of_inputs(inputs: Rounded | None) -> dict[str, Any]:
    if inputs is None:
        return {"how": None, "ranges": [], "left": []}
    return {
        "how": inputs.how.spec,
        "ranges": [{"layer": name, **asdict(one)} for name, one in inputs.ranges.items()],
        "left": [{"layer": name, "why": why} for name, why in inputs.left.items()],
    }


def _inputs(document: Mapping[str, Any] | None) -> Rounded | None:
    if document is None or document["how"] is None:
        return None
    return Rounded(
        asked(document["how"]),
        {one["layer"]: Range(float(one["low"]), float(one["high"])) for one in document["ranges"]},
        {one["layer"]: one["why"] for one in document["left"]},
    )

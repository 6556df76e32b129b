"""What ``isoloss compress`` does besides choosing formats: rotate before, learn whole blocks, round inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from isoloss.compress.activations import Activations
    from isoloss.compress.blockwise import Blockwise
    from isoloss.compress.calibration import Prepared
    from isoloss.compress.layers import Layer
    from isoloss.compress.rotations import Rotated, Rotation
    from isoloss.compress.tuning import Tuning
    from isoloss.measure.subject import Subject

STAGES, CANDIDATES = "stages", "candidates"  # folders in --out while the work goes on
OURS = ("recipe.json", "compressed.safetensors", STAGES, CANDIDATES)
ALONE = "gptq"  # solver of one format for all, where neither is named


@dataclass(frozen=True)
class Ways:
    """What was asked for; None where it was not."""

    rotation: Rotation | None
    blockwise: Blockwise | None
    activations: Activations | None
    tuning: Tuning | None

    def rotate(self, made: Prepared) -> Rotated | None:
        """Rotate the model, if that was asked for.

        Raises:
            ValueError: it is of a kind that cannot be rotated.
        """
        if self.rotation is None:
            return None
        from isoloss.compress.rotations import rotate

        try:
            return rotate(made.loaded.subject.model, self.rotation)
        except TypeError as error:
            raise ValueError(f"--rotate: {error}. Leave it out") from error

    def facts(self) -> dict[str, Any]:
        """For the document, before anything is done."""
        from isoloss.compress.settings import USUAL, words

        return {
            "rotation": None if self.rotation is None else words(self.rotation) or USUAL,
            "blockwise": None if self.blockwise is None else words(self.blockwise) or USUAL,
            "activations": None if self.activations is None else self.activations.spec,
            "tuning": None if self.tuning is None else words(self.tuning) or USUAL,
        }


def asked(
    rotate: str | None, blockwise: str | None, activations: str | None, tune: str | None = None
) -> Ways:
    """From the words of the options.

    Raises:
        ValueError: no such setting, or a value that it does not take.
    """
    from isoloss.compress import settings
    from isoloss.compress.activations import asked as inputs
    from isoloss.compress.blockwise import Blockwise
    from isoloss.compress.rotations import Rotation
    from isoloss.compress.tuning import Tuning

    return Ways(
        None if rotate is None else settings.read(Rotation, rotate, "--rotate"),
        None if blockwise is None else settings.read(Blockwise, blockwise, "--blockwise"),
        None if activations is None else inputs(activations),
        None if tune is None else settings.read(Tuning, tune, "--tune"),
    )


def refuse_early(
    solver: str | None, formats: str | None, calib: str | None, out: str | None, sensitivity: str | None
) -> None:
    """What is wrong whatever the model is: said before it is loaded.

    Raises:
        ValueError: no such solver, format, method or file; a folder that holds something else.
    """
    from isoloss.compress import solvers
    from isoloss.compress.sensitivity import get as method
    from isoloss.compress.variants import choices

    if solver is not None:
        solvers.get(solver)
    if formats is not None:
        choices(formats, solver)
    if sensitivity not in (None, "all"):
        method(str(sensitivity))
    if calib is not None and not calib.rpartition(":")[0].endswith(".py"):
        _refuse_text(Path(calib).expanduser(), calib)
    if out is not None:
        refuse_folder(Path(out))


def _refuse_text(path: Path, said: str) -> None:
    if path.is_file():
        return
    found = "is a folder" if path.is_dir() else "is not there"
    hint = f"{said}:inputs" if said.endswith(".py") else "calib.py:inputs"
    raise ValueError(
        f"needed a text file for --calib, and {said} {found}. Give one, or {hint} for a function that gives inputs"
    )


def refuse_folder(place: Path) -> None:
    """A folder that holds anything but a compressed model is not written into.

    Raises:
        ValueError: it is such a folder, or no folder.
    """
    if place.is_file():
        raise ValueError(f"needed a folder for --out, got the file {place}. Name another")
    if not place.is_dir() or any((place / one).exists() for one in OURS):
        return
    held = sorted(path.name for path in place.iterdir())
    if held:
        raise ValueError(
            f"--out {place} holds {held[0]}{' and more' if len(held) > 1 else ''}, and no compressed model. Name a "
            "new folder, or an empty one"
        )


def with_targets(made: Prepared) -> Subject | None:
    """The model with its loss, where the calibration data are those of the loss."""
    subject = made.loaded.subject
    if made.loaded.costs_only or made.batches is None or len(made.batches) != len(subject.batches):
        return None
    same = all(inputs is one for inputs, (one, _) in zip(made.batches, subject.batches, strict=True))
    return subject if same else None


def cut_off(out: str | None) -> str:
    """What is said when the work is interrupted: whether it can go on."""
    for name, what in ((STAGES, "stages"), (CANDIDATES, "layers in all formats")):
        place = None if out is None else Path(out) / name
        done = 0 if place is None else len(list(place.rglob("[!.]*.safetensors")))
        if done:
            return f"{done} {what} are kept in {place}. The same command goes on after them"
    return "nothing is kept" + (
        "" if out else ": with --out FOLDER finished stages are, and the work goes on"
    )


def source_of(model: str) -> Path | None:
    """The Hugging Face folder that the model comes from, for its tokenizer."""
    place = Path(model).expanduser()
    return place if (place / "config.json").is_file() else None


@dataclass
class Squares:
    """Squared gradients of layers, taken once: choosing formats and encoding them ask for the same."""

    made: Prepared
    tell: Callable[[str, int, int], None]
    held: dict[str, Tensor] = field(default_factory=dict)

    def of(self, layers: Sequence[Layer], solver: str) -> dict[str, Tensor]:
        """Layer -> mean squared gradient.

        Raises:
            ValueError: the model has no loss, or there are no data.
        """
        from isoloss.compress.fisher import fisher

        loaded = self.made.loaded
        if loaded.costs_only or self.made.batches is None:
            raise ValueError(
                f"the solver {solver} needs the gradient of a loss, and "
                f"{loaded.costs_only or 'no calibration data were given'}"
            )
        missing = [layer for layer in layers if layer.name not in self.held]
        if missing:
            self.held |= fisher(loaded.subject, missing, self.tell)
        return {layer.name: self.held[layer.name] for layer in layers}


@dataclass(frozen=True)
class Job:
    """One call of the command: model and data, what is done besides, and with which solver."""

    made: Prepared
    ways: Ways
    rotated: Rotated | None
    solver: str | None
    seed: int
    original_bytes: int
    squares: Squares

    def layers(self, keep: Sequence[str]) -> list[Layer]:
        """What is to be encoded: all layers but those to keep, by name or pattern.

        Raises:
            ValueError: no layer is named so.
        """
        from isoloss.compress.layers import find
        from isoloss.compress.recipe import Choice, chosen

        every = find(self.made.loaded.subject.model).layers
        selected = chosen(every, {**dict.fromkeys(keep), "*": Choice("int8", "nearest")})
        return [layer for layer in every if selected[layer.name] is not None]


def job(
    made: Prepared, ways: Ways, solver: str | None, seed: int, tell: Callable[[str, int, int], None]
) -> Job:
    """The model ready to be compressed: rotated, where that was asked for."""
    from isoloss.measure.storages import bytes_of

    if ways.tuning is not None and made.loaded.costs_only:
        raise ValueError(f"--tune needs predictions to compare, and {made.loaded.costs_only}. Leave it out")
    model = made.loaded.subject.model
    own = bytes_of([*model.parameters(), *model.buffers()])
    return Job(made, ways, ways.rotate(made), solver, seed, own, Squares(made, tell))

"""Finished stages in a folder, so that work that was cut off goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from isoloss.compress.formats import Encoded
from isoloss.compress.recipe import Outcome
from isoloss.files import written


@dataclass(frozen=True, eq=False)
class Finished:
    """What a stage came to: layer -> its encoded weight, layer -> what was done, notes as (what, of which layer)."""

    encoded: Mapping[str, Encoded]
    outcomes: Mapping[str, Outcome]
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Files:
    """Numbered files of work that is done, each whole or not there.

    Args:
        folder: made where it is not there.
        fingerprint: of everything that decides the result; files of another one are refused.
        what: each of them is, a word for the name.
    """

    folder: Path
    fingerprint: str
    what: str

    def read(self, number: int) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Facts and tensors that were written before; None if they were not.

        Raises:
            ValueError: the file is of another compression, or damaged.
        """
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            with safetensors.safe_open(path, "pt") as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {})["facts"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            found = facts["fingerprint"]
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise self.damaged(number, error) from error
        if found != self.fingerprint:
            raise ValueError(
                f"{self.folder} holds {self.what}s of another model, other data or other choices. Name another folder, or "
                "delete this one"
            )
        return facts, tensors

    def write(self, number: int, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep what is done: the whole file, or none."""
        own = {"fingerprint": self.fingerprint, **facts}
        write_tensors(self._path(number), tensors, {"facts": json.dumps(own)})

    def damaged(self, number: int, why: Exception) -> ValueError:
        """What is said of a file that cannot be read."""
        return ValueError(
            f"{self._path(number)} is no finished {self.what}: {why}. Delete it, and it is done again"
        )

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.what}-{number:04d}.safetensors"


@dataclass(frozen=True)
class Stages:
    """Files of finished stages.

    Args:
        folder, fingerprint: as of :class:`Files`.
    """

    folder: Path
    fingerprint: str

    def read(self, number: int) -> Finished | None:
        """A stage that was finished before; None if it was not.

        Raises:
            ValueError: the file is of another compression, or damaged.
        """
        kept = self._files.read(number)
        if kept is None:
            return None
        facts, tensors = kept
        try:
            outcomes = {
                name: Outcome(**{**done, "shape": tuple(done["shape"])})
                for name, done in facts["layers"].items()
            }
            encoded = {
                name: Encoded.from_tensors(done.format, done.shape, parts_of(tensors, name))
                for name, done in outcomes.items()
            }
            return Finished(encoded, outcomes, tuple((what, name) for what, name in facts["notes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self._files.damaged(number, error) from error

    def write(self, number: int, stage: Finished) -> None:
        """Keep a finished stage."""
        facts = {
            "layers": {name: asdict(done) for name, done in stage.outcomes.items()},
            "notes": list(stage.notes),
        }
        self._files.write(number, facts, flat(stage.encoded))

    @property
    def _files(self) -> Files:
        return Files(self.folder, self.fingerprint, "stage")


def flat(encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
    """Tensors of several encoded weights: ``layer:part``."""
    return {
        f"{name}:{part}": tensor for name, one in encoded.items() for part, tensor in one.tensors().items()
    }


def parts_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Of :func:`flat`, those of one layer."""
    start = f"{name}:"
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write a safetensors file beside ``path`` and rename it: a crash leaves the old file or the new one.

    Raises:
        ValueError: it cannot be written there.
    """
    own = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with written(path) as beside:
        try:
            safetensors.torch.save_file(_apart(own), beside, dict(facts))
        except safetensors.SafetensorError as error:
            raise ValueError(f"cannot write {path}: {error}") from error
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parts of one memory get memory of their own: the file format wants it so."""
    seen: set[int] = set()
    out = {}
    for key, tensor in tensors.items():
        place = tensor.untyped_storage()._cdata
        alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        out[key] = tensor if alone and place not in seen else tensor.clone()
        seen.add(place)
    return out

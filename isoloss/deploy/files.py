"""Packed weights in a file: written once, mapped into memory when they are read, so that nothing is copied or decoded.

One safetensors file. What its tensors are stands in its metadata as JSON; there is no pickle. Large tensors begin at
multiples of 64 bytes. Every process that maps the file shares its pages. Sizes, dtypes and all numbers that lead
somewhere are looked at before anything is multiplied; other numbers are not, as that would read the whole file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import safetensors
import torch
from torch import Tensor

from isoloss.compress.compressed import Compressed
from isoloss.compress.recipe import Recipe
from isoloss.compress.resume import parts_of
from isoloss.compress.saving import BESIDE, PLAIN, RECIPE
from isoloss.deploy.packing import Activations, Packed, from_settings, pack_weight
from isoloss.files import written

TENSORS = "packed.safetensors"
SCHEMA = "isoloss/packed/1"
_ALIGNED = 64
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32",
    torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stored:
    """A model as packed weights and the rest.

    Attributes:
        weights: layer -> its packed weight.
        plain: every other tensor of the model, by path.
        recipe: of its compression: which model it is, what was done to which layer.
        activations: that it was packed for.
    """

    weights: Mapping[str, Packed]
    plain: Mapping[str, Tensor]
    recipe: Recipe
    activations: Activations

    @classmethod
    def of(cls, compressed: Compressed, activations: Activations = "int8") -> Stored:
        """Every encoded weight packed; no model is needed.

        Example:
            >>> from torch import nn
            >>> from isoloss import compress
            >>> made = compress.compress(nn.Sequential(nn.Linear(64, 32)), compress.Choice("int4/g32", "nearest"))
            >>> {name: one.kind for name, one in Stored.of(made).weights.items()}
            {'0': 'levels'}
        """
        weights = {name: pack_weight(one, activations) for name, one in compressed.encoded.items()}
        return cls(weights, compressed.plain, compressed.recipe, activations)

    @property
    def bytes(self) -> int:
        """Of the packed weights."""
        return sum(one.bytes for one in self.weights.values())

    @property
    def plain_bytes(self) -> int:
        """Of the rest."""
        return sum(one.numel() * one.element_size() for one in self.plain.values())


def write(stored: Stored, folder: str | Path, beside: str | Path | None = None) -> int:
    """Write packed weights to a folder: the whole file, or none.

    Args:
        stored: the weights.
        folder: where the file goes; made where it is not there.
        beside: folder whose files of tokenizer, chat template, generation and configuration are copied.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: it cannot be written there, or the folder holds a compressed model.
    """
    place = Path(folder)
    if (place / RECIPE).exists():
        raise ValueError(f"{place} holds a compressed model. Give packed weights a folder of their own")
    tensors = {
        f"{name}:{part}": one
        for name, packed in stored.weights.items()
        for part, one in packed.tensors.items()
    }
    tensors |= {f"{PLAIN}{path}": one for path, one in stored.plain.items()}
    document = {
        "activations": stored.activations,
        "packed": {name: one.settings for name, one in stored.weights.items()},
        "recipe": stored.recipe.to_json(),
    }
    size = _write(place / TENSORS, tensors, document)
    if beside is not None:
        _copy(Path(beside), place)
    return size


def read(folder: str | Path) -> Stored:
    """What :func:`write` wrote, mapped: its tensors are read when they are used.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise ValueError(f"needed {TENSORS} in {folder}, got none. Do: isoloss pack")
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        if facts.get("isoloss") != SCHEMA:
            raise ValueError(f"needed the schema {SCHEMA}, got {facts.get('isoloss')!r}")
        document = json.loads(facts["document"])
        settings, activations = document["packed"], document["activations"]
        recipe = Recipe.from_json(document["recipe"])
        if activations not in get_args(Activations) or set(settings) != set(recipe.layers):
            raise ValueError("its metadata do not fit together")
        weights = {name: from_settings(words, parts_of(tensors, name)) for name, words in settings.items()}
        for name, one in weights.items():
            if one.shape != recipe.layers[name].shape:
                raise ValueError(
                    f"layer {name} has the shape {one.shape}, and {recipe.layers[name].shape} was made"
                )
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Pack the model again, or copy the file again"
        ) from error
    except (
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        RuntimeError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{path} is damaged: its metadata are no description of packed weights ({error!r}). Pack the model again"
        ) from error
    plain = {key.removeprefix(PLAIN): one for key, one in tensors.items() if key.startswith(PLAIN)}
    return Stored(weights, plain, recipe, activations)


def _write(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> int:
    """The safetensors file, tensors of whole multiples of 64 bytes first, then by the size of their numbers."""
    own = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}

    def size(name: str) -> int:
        return own[name].numel() * own[name].element_size()

    order = sorted(own, key=lambda name: (size(name) % _ALIGNED > 0, -own[name].element_size()))
    header: dict[str, Any] = {
        "__metadata__": {"isoloss": SCHEMA, "document": json.dumps(document, allow_nan=False)}
    }
    at = 0
    for name in order:
        header[name] = {
            "dtype": _TYPES[own[name].dtype],
            "shape": list(own[name].shape),
            "data_offsets": [at, at + size(name)],
        }
        at += size(name)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    with written(path) as beside, open(beside, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(memoryview(own[name].reshape(-1).view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + at


def _copy(source: Path, place: Path) -> None:
    try:
        for name in (*BESIDE, "config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, place / name)
    except OSError as error:
        raise ValueError(f"cannot copy {error.filename} to {place}: {error.strerror or error}") from error

"""What a run needs to go on, in one file that is whole or not there.

A checkpoint is a safetensors file (8 bytes of header length, a JSON header, the raw tensors) whose metadata
hold the run's facts as JSON and a SHA-256 of everything else. Nothing that is read back is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEWEST = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


class DamagedError(ValueError):
    """A checkpoint file is not what was written."""


def save(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the newest checkpoint of ``folder``; the one before stays as the previous one.

    The file is written beside, flushed to the disk and renamed: a crash at any moment leaves at least one
    whole checkpoint, if there was one.

    Args:
        folder: the run's folder.
        tensors: name -> tensor, on any device; float32, float64, bfloat16, int64 or uint8.
        facts: what is no tensor: numbers, text, lists and objects that JSON can hold.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    beside = folder / f".{NEWEST}.{os.getpid()}"
    try:
        with open(beside, "wb") as file:
            _write(file, tensors, facts)
            file.flush()
            os.fsync(file.fileno())
        if (folder / NEWEST).exists():
            os.replace(folder / NEWEST, folder / PREVIOUS)
        os.replace(beside, folder / NEWEST)
    finally:
        beside.unlink(missing_ok=True)
    _flush_names(folder)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str] | None:
    """The newest whole checkpoint: tensors, facts and a note, empty if there was nothing to say.

    Returns:
        None if the folder holds no checkpoint. If there are only damaged ones: empty tensors and facts, and
        a note that says so.
    """
    notes = []
    for name in (NEWEST, PREVIOUS):
        try:
            tensors, facts = read(folder / name)
        except FileNotFoundError:
            continue
        except DamagedError as error:
            notes.append(str(error))
            continue
        if notes:
            notes.append("went on from the previous checkpoint")
        return tensors, facts, "; ".join(notes)
    return ({}, {}, "; ".join([*notes, "started from the beginning"])) if notes else None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of one file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: it is cut short, or a byte of it has changed.
    """
    content = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        data = memoryview(content)[8 + length :]
        said = header["__metadata__"].pop("sha256")
        if said != _digest(header, [data]):
            raise DamagedError(f"{path.name} is damaged: its content is not what was written")
        facts = json.loads(header.pop("__metadata__")["facts"])
        return {name: _tensor(entry, data) for name, entry in header.items()}, facts
    except (
        struct.error,
        UnicodeDecodeError,
        json.JSONDecodeError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise DamagedError(f"{path.name} is damaged: it is no checkpoint") from error


def remove(folder: Path) -> None:
    """Remove the checkpoints of a run that is over."""
    for name in (NEWEST, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def _write(file: Any, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(facts)}}
    pieces = []
    start = 0
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        piece = plain.reshape(-1).view(torch.uint8).numpy().data
        pieces.append(piece)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + piece.nbytes],
        }
        start += piece.nbytes
    header["__metadata__"]["sha256"] = _digest(header, pieces)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for piece in pieces:
        file.write(piece)


def _digest(header: Mapping[str, Any], pieces: list[memoryview]) -> str:
    """Over the header without the digest, and the data."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _tensor(entry: Mapping[str, Any], data: memoryview) -> Tensor:
    begin, end = entry["data_offsets"]
    dtype = _TYPES[entry["dtype"]]
    flat = (
        torch.frombuffer(bytearray(data[begin:end]), dtype=dtype)
        if end > begin
        else torch.empty(0, dtype=dtype)
    )
    return flat.reshape(entry["shape"])


def _flush_names(folder: Path) -> None:
    """The renames themselves; not every system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

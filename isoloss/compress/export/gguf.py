"""GGUF: the file that llama.cpp and its kin run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoloss.compress.compressed import Compressed
from isoloss.compress.export.architectures import Architecture, architecture, heads_of, of_pairs
from isoloss.compress.export.blocks import Blocks, blocks, floats, smallest_float
from isoloss.compress.export.tokens import add_tokens
from isoloss.compress.export.written import Written, needed, whole
from isoloss.compress.formats import Encoded

Unmatched = Literal["refuse", "float"]
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
    "Q5_K": 17, "Q6_K": 18, "BF16": 32, "TQ2_0": 37, "MXFP4": 38,
}  # fmt: skip
"""llama.cpp's number for a file that is mostly of a type."""


def write_gguf(
    compressed: Compressed,
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    unmatched: Unmatched = "refuse",
) -> Written:
    """Write a compressed Hugging Face model as GGUF, every weight in a ggml type that holds exactly its numbers.

    What each format becomes says :mod:`isoloss.compress.export.blocks`. Each tensor is decoded as a reader of the file
    will decode it and compared before the file takes its place. Numbers are those of the encoded weights in float32:
    where the model itself is of bfloat16 it rounds them once more, and the file does not.

    Args:
        compressed: of a model of the types llama, mistral, qwen2, qwen3, gpt2 or bert.
        path: of the file, which ends in ``.gguf``.
        tokenizer: folder with ``tokenizer.json``, or GGUF file whose tokenizer is copied; without one the file takes
            numbers of tokens.
        unmatched: what to do with a format that has no type: ``refuse``, or ``float`` to write the decoded numbers in
            the smallest float type that holds them.

    Raises:
        ValueError: a format that no type holds, a model that GGUF does not know, a place that cannot be written; the
            package gguf is not installed.
    """
    gguf = needed("gguf")
    if unmatched not in ("refuse", "float"):
        raise ValueError(f"unmatched is refuse or float, got {unmatched!r}")
    place = Path(path)
    known = compressed.recipe.model
    own = architecture(known)
    tensors = _Tensors(own, known.config or {}, gguf, unmatched)
    for name, encoded in compressed.encoded.items():
        tensors.add_layer(name, compressed.recipe.layers[name].path, encoded)
    for path_of, tensor in compressed.plain.items():
        tensors.add_plain(path_of, tensor)
    with whole(place) as target:
        writer = gguf.GGUFWriter(target, own.name)
        notes = _keys(writer, own, known.config or {}, tensors, tokenizer)
        for name, one in tensors.made.items():
            writer.add_tensor(name, one, raw_dtype=tensors.kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        size = target.stat().st_size
    return Written(place, size, tensors.types, tensors.bits, tensors.left, tuple(notes))


def _keys(
    writer: Any, own: Architecture, config: Mapping[str, Any], tensors: _Tensors, tokenizer: str | Path | None
) -> list[str]:
    """Write what is known of the model beside its tensors; gives what a reader must know."""
    most = Counter(tensors.types.values()).most_common(1)[0][0]
    writer.add_type("model")
    writer.add_file_type(FILE_TYPES[most])
    writer.add_quantization_version(2)
    for key, kind, value in own.keys(config):
        getattr(writer, f"add_{kind}")(f"{own.name}.{key}", value)
    source = None if tokenizer is None else Path(tokenizer)
    note = add_tokens(writer, source, int(config["vocab_size"]))
    if own.name == "bert" and (source is None or source.is_dir()):
        writer.add_token_type_count(int(config.get("type_vocab_size", 2)))
    return [note] if note else []


@dataclass(eq=False)
class _Tensors:
    """Tensors of a file, by their names there."""

    own: Architecture
    config: Mapping[str, Any]
    gguf: Any
    unmatched: Unmatched
    made: dict[str, NDArray[Any]] = field(default_factory=dict)
    kinds: dict[str, Any] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {name: arch for arch, name in self.gguf.MODEL_ARCH_NAMES.items()}
        depth = int(self.config.get("num_hidden_layers") or self.config["n_layer"])
        self.names = self.gguf.get_tensor_name_map(named[self.own.name], depth)

    def add_layer(self, name: str, path: str, encoded: Encoded) -> None:
        """An encoded weight, checked to decode to the same numbers."""
        if self._unused(path):
            return
        decoded = encoded.decode()
        try:
            stored = blocks(encoded)
        except ValueError as error:
            if self.unmatched == "refuse":
                raise ValueError(
                    f"layer {name}: {error}. Compress it to one of these, or write it unmatched as float"
                ) from error
            kind = smallest_float(decoded)
            stored = floats(decoded.to(_DTYPES[kind]), kind)
        read = self._read(stored).reshape(decoded.shape)
        if not np.array_equal(read, decoded.numpy()):
            raise RuntimeError(
                f"layer {name}: {stored.type} reads back other numbers than {encoded.format.spec}"
            )
        self.types[name], self.bits[name] = stored.type, 8 * stored.data.nbytes
        self._add(path, stored, stored.data)

    def add_plain(self, path: str, tensor: Tensor) -> None:
        """A tensor as it was: vectors in float32, as llama.cpp wants them."""
        if self._unused(path):
            return
        if not tensor.is_floating_point():
            self.left[path] = (
                f"{str(tensor.dtype).removeprefix('torch.')} numbers, which llama.cpp makes itself"
            )
            return
        tensor = (
            tensor.T if path.endswith(self.own.turned) and tensor.ndim == 2 and self.own.turned else tensor
        )
        if tensor.ndim == 1:
            tensor, kind = tensor.float(), "fp32"
        else:
            kind = _NAMES.get(tensor.dtype, "fp32")
            tensor = tensor.to(_DTYPES[kind])
        stored = floats(tensor.contiguous().reshape(tensor.shape[0], -1), kind)
        shaped = stored.data.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else stored.data.reshape(-1)
        self._add(path, stored, shaped)

    def _unused(self, path: str) -> bool:
        """Whether llama.cpp does not read it, which is noted."""
        for start, why in (self.own.unused or {}).items():
            if path.removeprefix(self.own.prefix).startswith(start):
                self.left[path] = why
                return True
        return False

    def _read(self, stored: Blocks) -> NDArray[Any]:
        kind = getattr(self.gguf.GGMLQuantizationType, stored.type)
        return np.asarray(self.gguf.dequantize(stored.data, kind))

    def _add(self, path: str, stored: Blocks, data: NDArray[Any]) -> None:
        name = self.names.get_name(path.removeprefix(self.own.prefix), try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ValueError(f"llama.cpp's {self.own.name} has no {path}. Export to ONNX")
        heads = heads_of(path, self.config) if self.own.rotated else None
        if heads is not None:
            size = data.shape[0] if data.ndim > 1 else data.size // 4  # rows, or float32 numbers of a bias
            data = of_pairs(data.reshape(size, -1), heads).reshape(data.shape)
        self.made[name] = data.view(np.float32) if stored.type == "F32" else data
        self.kinds[name] = getattr(self.gguf.GGMLQuantizationType, stored.type)


_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

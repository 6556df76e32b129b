"""GGUF files of one model in several types of ggml, quantised by llama.cpp's own functions.

SOURCE.gguf FOLDER LIBRARY TYPE,TYPE...: run by a Python that has the package `gguf`; LIBRARY is the shared library of
llama.cpp that has ggml's quantisers (`libggml-base.so`). Matrices whose rows a type's blocks do not fill take the type that llama.cpp's
quantiser falls back on, and the embedding, which is the head, takes Q8_0 beside 4 and 8 bits and Q6_K's fallback, which is
Q8_0 too, beside fewer.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np

BACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0"}
EMBEDDING = {"F32": "F32", "BF16": "BF16"}


def made(source: Path, target: Path, kind: str, library: ctypes.CDLL) -> None:
    """Write the file of a type."""
    reader = gguf.GGUFReader(source)
    name = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, name)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=of)
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        numbers = np.ascontiguousarray(numbers.reshape(tuple(int(n) for n in reversed(tensor.shape))))
        if numbers.ndim == 1 or kind == "F32":
            writer.add_tensor(tensor.name, numbers)
            continue
        own = EMBEDDING.get(kind, "Q8_0") if tensor.name.startswith(("token_embd", "output")) else kind
        block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[own]]
        own = own if numbers.shape[1] % block == 0 else BACK[own]
        writer.add_tensor(
            tensor.name, quantised(numbers, own, library), raw_dtype=gguf.GGMLQuantizationType[own]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(numbers: np.ndarray, kind: str, library: ctypes.CDLL) -> np.ndarray:
    """By ggml."""
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    rows, columns = numbers.shape
    out = np.zeros((rows, columns // block * size), np.uint8)
    weight = np.ones(columns, np.float32)  # as without data
    run = library.ggml_quantize_chunk
    run.restype = ctypes.c_size_t
    run.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    given = None if kind.startswith(("Q", "B")) else weight.ctypes.data
    if run(int(number), numbers.ctypes.data, out.ctypes.data, 0, rows, columns, given) != out.size:
        raise RuntimeError(f"ggml did not fill {kind}")
    return out


def main() -> None:
    """Make those that are not there."""
    source, folder, library = Path(sys.argv[1]), Path(sys.argv[2]), ctypes.CDLL(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in sys.argv[4].split(","):
        if not (folder / f"{kind}.gguf").is_file():
            part = folder / f"{kind}.part"
            made(source, part, kind, library)
            part.rename(folder / f"{kind}.gguf")


if __name__ == "__main__":
    main()

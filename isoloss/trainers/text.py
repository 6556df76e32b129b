"""Text as bytes, split into training and validation, mapped from a cache file.

Two sources. ``"stdlib"``: the running Python's standard library in source form, a few MB that every machine
has. Otherwise the path of a text file (``.gz`` is decompressed once) or of a folder of text files.

The split is fixed. Of a single file the first 95 % are for training, the rest for validation. Of several
files each goes whole to one side by a hash of its name, 1 in 20 to validation.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

STDLIB = "stdlib"
TRAINING_SHARE = 0.95  # of a single file, by position
FILES_PER_VALIDATION_FILE = 20
_LEFT_OUT = {  # tests, bundled wheels, generated tables
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"),
    *("_bundled", "lib-dynload", "pydoc_data", "encodings"),
}
_LEFT_OUT_BEGINNINGS = ("_sysconfigdata", "_sysconfig_vars", "config-")  # differ from machine to machine
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Text:
    """Training and validation bytes of one source.

    Attributes:
        training: uint8, mapped from a file, read-only.
        validation: uint8, mapped from a file, read-only.
        sha256: of the training bytes followed by the validation bytes.
    """

    training: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    sha256: str

    def windows(self, seq_len: int) -> int:
        """How many windows of ``seq_len`` predicted bytes the training text has, none overlapping.

        Raises:
            ValueError: there is none, or the validation text has none.
        """
        for name, part in (("training", self.training), ("validation", self.validation)):
            if part.size <= seq_len:
                raise ValueError(
                    f"needed more than seq_len = {seq_len} bytes of {name} text, got {part.size}. "
                    "Do: give more text or a smaller seq_len"
                )
        return (self.training.size - 1) // seq_len


def load(data: str, cache: Path | None = None) -> Text:
    """The text of a source, made once and mapped from the cache afterwards.

    The cache file is made anew when a source file changed its size or time, and when it is damaged.

    Args:
        data: "stdlib", or the path of a file or folder.
        cache: the cache folder; default: ``cache_folder()``.

    Raises:
        ValueError: no such file, no text in it, a folder without a file for one side, or binary data.
    """
    files = _files(data)
    folder = cache or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"text-{_fingerprint(data, files)}"
    text = _open(stem)
    if text is None:
        _make(stem, data, files)
        text = _open(stem)
        if text is None:
            raise ValueError(f"{stem}.bytes changed while it was written. Do: check the disk of {folder}")
    return text


def cache_folder() -> Path:
    """``ISOLOSS_CACHE`` if set, else the user's cache folder of the platform."""
    if chosen := os.environ.get("ISOLOSS_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "isoloss"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "isoloss"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoloss"


def for_validation(name: str) -> bool:
    """Whether the file of this name (relative, with forward slashes) is one of the 1 in 20."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % FILES_PER_VALIDATION_FILE == 0


def _files(data: str) -> list[tuple[str, Path]]:
    """(name, path) of the source's files, sorted by name."""
    if data == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        found = [(name, path) for name, path in _walk(root, ".py") if _is_plain_stdlib(name)]
        if not found:
            raise ValueError(
                f"needed the standard library's source, got none in {root}. Do: name a text file"
            )
        return found
    path = Path(data)
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        found = list(_walk(path, ""))
        if not found:
            raise ValueError(f"needed text files in {data}, got none. Do: name a folder that has some")
        return found
    raise ValueError(
        f'needed a text file, a folder of text files or "{STDLIB}", got {data}: there is no such file'
    )


def _walk(root: Path, ending: str) -> Iterator[tuple[str, Path]]:
    """Plain files below ``root`` whose name ends so, sorted; nothing hidden, nothing left out."""
    for path in sorted(root.rglob(f"*{ending}"), key=lambda found: found.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def _is_plain_stdlib(name: str) -> bool:
    parts = name.split("/")
    return not any(part in _LEFT_OUT or part.startswith(_LEFT_OUT_BEGINNINGS) for part in parts)


def _fingerprint(data: str, files: Sequence[tuple[str, Path]]) -> str:
    """Of names, sizes and times: cheap, and different once a source file was written to."""
    digest = hashlib.sha256()
    for name, path in files:
        facts = path.stat()
        digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    place = sys.version if data == STDLIB else str(Path(data).resolve())
    digest.update(place.encode())
    return digest.hexdigest()[:16]


def _make(stem: Path, data: str, files: Sequence[tuple[str, Path]]) -> None:
    """Write the cache file, then the JSON beside it that says what it must hold."""
    handle, beside = tempfile.mkstemp(dir=stem.parent, prefix=f".{stem.name}.")
    try:
        with os.fdopen(handle, "w+b") as out:
            if len(files) == 1 and data != STDLIB:
                _append(out, files[0][1])
                training = int(out.tell() * TRAINING_SHARE)
            else:
                _join(out, [path for name, path in files if not for_validation(name)])
                training = out.tell()
                _join(out, [path for name, path in files if for_validation(name)])
            size = out.tell()
            if not 0 < training < size:
                side = "training" if training == 0 else "validation"
                raise ValueError(
                    f"needed text for training and for validation, got none for {side} in {data} ({size} bytes). "
                    "Do: give more text, or one file instead of a few"
                )
            out.flush()
            os.fsync(out.fileno())
            out.seek(0)
            whole = hashlib.sha256()
            while piece := out.read(_CHUNK):
                whole.update(piece)
        said: dict[str, int | str] = {
            "size": size,
            "training": training,
            "sha256": whole.hexdigest(),
            "sample": _sample(Path(beside)),
        }
        os.replace(beside, stem.with_suffix(".bytes"))
        _write_json(stem.with_suffix(".json"), said)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _write_json(path: Path, said: dict[str, int | str]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(said), encoding="utf-8")
    os.replace(beside, path)


def _join(out: BinaryIO, paths: Sequence[Path]) -> None:
    for path in paths:
        _append(out, path)
        out.write(b"\n")


def _append(out: BinaryIO, path: Path) -> None:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = out.tell()
            shutil.copyfileobj(file, out, _CHUNK)
    except (OSError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}. Do: check the file") from error
    end = out.tell()
    out.seek(start)
    binary = b"\0" in out.read(min(end - start, 8192))
    out.seek(end)
    if binary:
        raise ValueError(f"needed text, got binary data (a zero byte) in {path}. Do: leave that file out")


def _open(stem: Path) -> Text | None:
    """The mapped cache, or None if there is none or it is not what was written."""
    path = stem.with_suffix(".bytes")
    try:
        said = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        if path.stat().st_size != said["size"] or _sample(path) != said["sample"]:
            return None
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        return Text(mapped[: said["training"]], mapped[said["training"] :], said["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sample(path: Path) -> str:
    """A digest of 64 blocks of 4 KB spread over the file: finds a lost part without reading everything."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in range(64):
            file.seek(size * block // 64)
            digest.update(file.read(4096))
    return digest.hexdigest()

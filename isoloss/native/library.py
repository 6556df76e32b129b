"""The shared library: found, checked and loaded once; where it is missing, the reason."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

ABI = 4
"""The ``ISOLOSS_ABI`` of ``native/isoloss.h`` whose functions are declared here."""

NAME = "libisoloss" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
HERE = Path(__file__).parent / "lib"
SWITCH = "ISOLOSS_NATIVE"

_KINDS = {"i": ctypes.c_int32, "l": ctypes.c_int64, "p": ctypes.c_void_p}


def _declared(gives: type, takes: str) -> tuple[type, list[type]]:
    """A function that takes a letter's kind each: 32 bits, 64 bits, a pointer."""
    return gives, [_KINDS[one] for one in takes]


# Function -> what it gives, what it takes; a test holds this against the header.
SIGNATURES = {
    "isoloss_abi": _declared(ctypes.c_int32, ""),
    "isoloss_source": _declared(ctypes.c_char_p, ""),
    "isoloss_sets": _declared(ctypes.c_char_p, ""),
    "isoloss_kmeans_rows": _declared(ctypes.c_int32, "pillpiiipppi"),
    "isoloss_round_columns": _declared(ctypes.c_int32, "pllpipipppppi"),
    "isoloss_weight_fits": _declared(ctypes.c_int32, "p"),
    "isoloss_product": _declared(ctypes.c_int32, "pplippii"),
    "isoloss_plane_product": _declared(ctypes.c_int32, "pillpillpi"),
    "isoloss_read_bytes": _declared(ctypes.c_int32, "pli"),
    "isoloss_decode": _declared(ctypes.c_int64, "ppplppppplii"),
}


@dataclass(frozen=True)
class Status:
    """Whether the native code is there.

    Args:
        path: of the library.
        sets: instruction sets it can use on this processor, best first; empty without native code.
        source: digest of the sources that it was made of.
        reason: why there is no native code; empty where there is.

    Example:
        >>> print(Status(Path("libisoloss.so"), ("avx2", "plain"), "0123456789abcdef", ""))
        native code: libisoloss.so (avx2, plain)
        >>> print(Status(Path("libisoloss.so"), (), "", "no C compiler found"))
        no native code: no C compiler found
    """

    path: Path
    sets: tuple[str, ...]
    source: str
    reason: str

    def __str__(self) -> str:
        if self.reason:
            return f"no native code: {self.reason}"
        return f"native code: {self.path} ({', '.join(self.sets)})"


class SlowPath(UserWarning):
    """Something is computed without the native code, and takes longer."""


def status() -> Status:
    """Whether the native code is there, and why not.

    ``ISOLOSS_NATIVE=off`` in the environment turns it off; a path there names another library.

    Example:
        >>> from isoloss import native
        >>> native.status().reason == "" or not native.available()
        True
    """
    return _loaded()[1]


def available() -> bool:
    """Whether the native code is there.

    Example:
        >>> from isoloss import native
        >>> native.available() == bool(native.status().sets)
        True
    """
    return _loaded()[0] is not None


def library() -> ctypes.CDLL | None:
    """The library, with the types of its functions; ``None`` where there is none."""
    return _loaded()[0]


@functools.cache
def warn_slow(what: str) -> None:
    """Say once per process that ``what`` is slower here, and why."""
    warnings.warn(
        f"{what}: {status().reason}. Do: install isoloss where there is a C compiler, or run "
        "`make native` in a checkout; `isoloss.native.status()` tells",
        SlowPath,
        stacklevel=3,
    )


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, Status]:
    named = os.environ.get(SWITCH, "")
    path = Path(named) if named not in ("", "off") else HERE / NAME
    try:
        found = _load(path, named)
    except _NotThere as missing:
        return None, Status(path, (), "", str(missing))
    sets = tuple(found.isoloss_sets().decode().split())
    return found, Status(path, sets, found.isoloss_source().decode(), "")


class _NotThere(Exception):
    """There is no library to use, and why."""


def _load(path: Path, named: str) -> ctypes.CDLL:
    if named == "off":
        raise _NotThere(f"{SWITCH}=off")
    if not path.is_file():
        raise _NotThere(f"{path} does not exist" if named else _why_not_built())
    try:
        found = ctypes.CDLL(str(path))
        for name, (gives, takes) in SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = gives, takes
            if name == "isoloss_abi" and function() != ABI:
                raise _NotThere(f"{path} speaks version {function()} of the interface, needed {ABI}")
    except (OSError, AttributeError) as error:
        raise _NotThere(f"{path} cannot be loaded ({error})") from None
    return found


def _why_not_built() -> str:
    """What the build wrote down, if there was one."""
    try:
        reason = json.loads((HERE / "build.json").read_text(encoding="utf-8"))["reason"]
    except (OSError, ValueError, KeyError):
        reason = ""
    return str(reason) or "it has not been built"

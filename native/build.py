"""Compiles the native code into one shared library: ``python native/build.py [FOLDER]``.

Plain C through the system's own compiler, no Python or torch headers. ``CC`` names the compiler, ``CFLAGS`` adds flags
(sanitizers, say). Beside the library lies ``build.json``, which says how it was made, or why there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# A folder that is no package: a library in a package would look like a module of it.
INSTALLED = HERE.parent / "isoloss" / "native" / "lib"
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY = f"libisoloss{SUFFIX}"
RECORD = "build.json"

COMPILERS = ("cc", "gcc", "clang")
FLAGS = [
    "-std=c11",
    "-O3",
    "-Wno-psabi",
    "-fvisibility=hidden",
    *([] if sys.platform == "win32" else ["-fPIC"]),
    "-pthread",
]
# One rounding per operation, so that all instruction sets and compilers give the same bits.
ROUNDING = ["-ffp-contract=off", "-fno-fast-math"]
KERNELS = ("kmeans", "columns")
# What runs compressed weights: registers of 64 bytes serve it, where the others gain nothing from them.
WIDE_KERNELS = (
    "activations", "tables", "floats", "groups", "sparse", "planes", "read", "decode",
    "halves", "small_floats", "wide_tables", "vectors", "patterns",
)  # fmt: skip
AVX512 = "f bw vl dq vbmi vnni vpopcntdq"
# Products of bytes, which not every 64-bit ARM has; all else is in each.
# Sets that differ in how bytes are multiplied alone: machine -> their flags, where the compiler knows them.
DOTS = {
    "aarch64": {"dotprod": ["-march=armv8.2-a+dotprod"], "i8mm": ["-march=armv8.2-a+dotprod+i8mm"]},
    "x86_64": {"avxvnni": ["-mavx2", "-mf16c", "-mavxvnni"]},
}
DOT_KERNELS = ("tables", "groups")


@dataclass(frozen=True)
class Built:
    """What came of a build: the compiler's words, or why there is no library."""

    compiler: str
    source: str
    reason: str

    @property
    def made(self) -> bool:
        """Whether there is a library."""
        return not self.reason


def digest() -> str:
    """Of all sources: tells whether a library was made of these."""
    found = hashlib.sha256()
    for path in sorted([*HERE.glob("*.c"), *HERE.glob("*.h")]):
        found.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return found.hexdigest()[:16]


def build(folder: Path, pure: bool = False) -> Built:
    """Library and record into ``folder``, or the record alone; what stood there before is gone either way."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LIBRARY).unlink(missing_ok=True)
    compiler, reason = "", ""
    try:
        if pure:
            raise _Failed("it was installed with ISOLOSS_BUILD=pure")
        command = _compiler()
        compiler = _run([*command, "--version"]).partition("\n")[0]
        with tempfile.TemporaryDirectory() as scratch:
            made = _compile(command, Path(scratch))
            shutil.move(made, folder / LIBRARY)
    except _Failed as failed:
        reason = str(failed)
    built = Built(compiler, digest(), reason)
    (folder / RECORD).write_text(json.dumps(asdict(built), indent=1) + "\n", encoding="utf-8")
    return built


class _Failed(Exception):
    """No library, and why."""


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    for words in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(words[0]):
            return words
    raise _Failed(f"no C compiler found (looked for {' '.join(named) or ', '.join(COMPILERS)})")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        raise _Failed(f"the C compiler {command[0]} failed with {done.returncode}: {said.strip()}")
    return done.stdout


def _compile(command: list[str], scratch: Path) -> Path:
    """Each kernel once per instruction set, and the choice between them."""
    machine = _run([*command, "-dumpmachine"]).partition("-")[0]
    wide = machine in ("x86_64", "amd64")
    given = shlex.split(os.environ.get("CFLAGS", ""))
    sets = {"plain": [], **({"avx2": ["-mavx2", "-mf16c"]} if wide else {})}
    wider = ["-mavx2", "-mfma", "-mprefer-vector-width=512", *(f"-mavx512{part}" for part in AVX512.split())]
    deployed = {**sets, **({"avx512": wider} if wide else {})}
    dots = _dots(command, scratch, {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine))
    jobs = [
        (f"{kernel}.c", f"{kernel}_{name}", [f"-DSET={name}", *flags])
        for kernels, compiled in ((KERNELS, sets), (WIDE_KERNELS, deployed), (DOT_KERNELS, dots))
        for kernel in kernels
        for name, flags in compiled.items()
    ]
    objects = []
    unit = scratch / "amx.o"
    if wide and sys.platform == "linux":
        with contextlib.suppress(_Failed):  # an assembler before 2020 does not know the matrix unit
            _run([*command, *FLAGS, *given, *ROUNDING, *wider, "-c", str(HERE / "amx.c"), "-o", str(unit)])
            objects.append(str(unit))
    known = [*(["-DISOLOSS_X86"] if wide else []), *(["-DISOLOSS_AMX"] if objects else [])]
    known += [f"-DISOLOSS_{name.upper()}" for name in dots]
    chosen = [f'-DISOLOSS_SOURCE="{digest()}"', *known]
    once = [("pool.c", "pool", []), ("product.c", "product", []), ("dispatch.c", "dispatch", chosen)]

    def compiled_to(source: str, name: str, flags: list[str]) -> str:
        made = str(scratch / f"{name}.o")
        _run([*command, *FLAGS, *given, *ROUNDING, *flags, "-c", str(HERE / source), "-o", made])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a compiler
        objects += pool.map(lambda job: compiled_to(*job), [*jobs, *once])
    library = scratch / LIBRARY
    maths = [] if sys.platform == "win32" else ["-lm"]
    _run([*command, *given, "-shared", "-pthread", *objects, *maths, "-o", str(library)])
    return library


def _dots(command: list[str], scratch: Path, machine: str) -> dict[str, list[str]]:
    """Of a machine, up to the first that the compiler does not know; each includes those before it."""
    source = scratch / "empty.c"
    source.write_text("int empty;\n", encoding="utf-8")
    known: dict[str, list[str]] = {}
    with contextlib.suppress(_Failed):  # i8mm and avxvnni: compilers from 2020 on
        for name, flags in DOTS.get(machine, {}).items():
            _run([*command, *flags, "-c", str(source), "-o", str(scratch / "empty.o")])
            known[name] = flags
    return known


def main() -> int:
    """Build into the folder named, or into the package of this checkout; 1 if there is no library after it."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else INSTALLED
    built = build(folder)
    print(f"{folder / LIBRARY}: {built.compiler}" if built.made else f"no native code: {built.reason}")
    return 0 if built.made else 1


if __name__ == "__main__":
    sys.exit(main())

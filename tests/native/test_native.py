"""The native library: declared as its header says, refused when it does not fit, missed out loud."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from isoloss import native
from isoloss.native import kmeans, library
from isoloss.native.products import WeightFields
from isoloss.native.reals import RealFields

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "native"
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
needs_native = pytest.mark.skipif(not native.available(), reason=str(native.status()))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")


@pytest.fixture(scope="module")
def build():
    """``native/build.py`` as a module."""
    spec = importlib.util.spec_from_file_location("native_build", SOURCES / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load(monkeypatch):
    """Load anew with ``ISOLOSS_NATIVE`` as given."""

    def status(named: str) -> library.Status:
        monkeypatch.setenv(library.SWITCH, named)
        return library._loaded.__wrapped__()[1]

    return status


def test_the_declarations_are_those_of_the_header():
    kinds = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}
    text = (SOURCES / "isoloss.h").read_text(encoding="utf-8")
    found = {}
    for gives, name, takes in re.findall(
        r"^ISOLOSS_API ([\w ]+?\s?\*?)(isoloss_\w+)\((.*?)\);", text, re.M | re.S
    ):
        one = [" ".join(word.split()) for word in takes.split(",") if word.strip() != "void"]
        types = [ctypes.c_void_p if "*" in word else kinds[word.split()[0]] for word in one]
        found[name] = (ctypes.c_char_p if "*" in gives else kinds[gives.strip()], types)
    assert found == library.SIGNATURES
    assert re.search(r"#define ISOLOSS_ABI (\d+)", text)[1] == str(library.ABI)


@pytest.mark.parametrize(
    ("name", "fields"), [("isoloss_weight", WeightFields), ("isoloss_reals", RealFields)]
)
def test_the_structures_are_those_of_the_header(name, fields):
    kinds = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}
    text = (SOURCES / "isoloss.h").read_text(encoding="utf-8")
    body = re.search(r"typedef struct \{([^}]*)\} " + name, text)[1]
    found = []
    for line in filter(None, (" ".join(one.split()) for one in body.split(";"))):
        of_type, names = re.fullmatch(r"((?:const )?\w+) (.*)", line).groups()
        found += [
            (one.lstrip("*"), ctypes.c_void_p if one.startswith("*") else kinds[of_type])
            for one in names.split(", ")
        ]
    assert found == [tuple(one) for one in fields._fields_]


@needs_native
def test_the_library_is_made_of_these_sources(build):
    status = native.status()
    assert status.sets[-1] == "plain"
    assert str(status).startswith("native code: ")
    assert status.source == build.digest(), "native/ was edited since: run `make native`"


@needs_native
def test_the_library_holds_no_python_and_no_torch():
    names = native.status().path.read_bytes()
    for word in (b"libpython", b"PyObject", b"PyErr_", b"libtorch", b"libc10", b"libgomp", b"libstdc++"):
        assert word not in names


def test_it_can_be_turned_off(load):
    status = load("off")
    assert str(status) == "no native code: ISOLOSS_NATIVE=off"
    assert status.sets == ()


def test_a_file_that_is_no_library_is_refused(load, tmp_path):
    assert load(str(tmp_path / "none.so")).reason == f"{tmp_path / 'none.so'} does not exist"
    other = tmp_path / "text.so"
    other.write_text("no library")
    assert re.search(r"text.so cannot be loaded \(.+\)", load(str(other)).reason)


@needs_compiler
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("int isoloss_abi(void) { return 99; }", r"speaks version 99 of the interface, needed \d+$"),
        ("int other(void) { return 0; }", r"cannot be loaded \(.*isoloss_abi"),
        (f"int isoloss_abi(void) {{ return {library.ABI}; }}", r"cannot be loaded \(.*isoloss_source"),
    ],
)
def test_a_library_of_another_interface_is_refused(load, tmp_path, source, says):
    path = tmp_path / "other.so"
    code = tmp_path / "other.c"
    code.write_text(source)
    subprocess.run([COMPILER, "-shared", "-fPIC", str(code), "-o", str(path)], check=True)
    assert re.search(says, load(str(path)).reason)


def test_the_reason_of_the_build_is_told(load, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "HERE", tmp_path)
    assert load("").reason == "it has not been built"
    (tmp_path / "build.json").write_text(json.dumps({"reason": "no C compiler found"}))
    assert load("").reason == "no C compiler found"
    (tmp_path / "build.json").write_text("{")
    assert load("").reason == "it has not been built"


def test_what_is_slower_is_said_once(monkeypatch):
    monkeypatch.setattr(library, "status", lambda: library.Status(Path("x"), (), "", "no C compiler found"))
    library.warn_slow.cache_clear()
    with pytest.warns(library.SlowPath, match=r"^counting is slow: no C compiler found\. Do: install"):
        library.warn_slow("counting is slow")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library.warn_slow("counting is slow")


@pytest.mark.parametrize(
    ("compiler", "says"),
    [
        ("no-such-compiler -O9", r"no C compiler found \(looked for no-such-compiler -O9\)"),
        (f'"{sys.executable}" -c raise(SystemExit(3))', r"the C compiler .* failed with 3: no message"),
        (f'"{sys.executable}" --no-such-option', r"the C compiler .* failed with 2: .*no-such-option"),
    ],
)
def test_a_build_without_a_compiler_says_why(build, tmp_path, monkeypatch, compiler, says):
    monkeypatch.setenv("CC", compiler)
    (tmp_path / build.LIBRARY).write_text("an old one")
    built = build.build(tmp_path)
    assert not built.made
    assert re.search(says, built.reason)
    assert [path.name for path in tmp_path.iterdir()] == ["build.json"]
    assert json.loads((tmp_path / "build.json").read_text())["reason"] == built.reason


@needs_compiler
def test_code_that_does_not_compile_is_a_reason(build, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", COMPILER)
    monkeypatch.setenv("CFLAGS", "-include no-such-file.h")
    assert "error" in build.build(tmp_path).reason


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Wheels made with a compiler, without one, and on wish without."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheels")

    def made(name: str, **environment: str) -> tuple[Path, str]:
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / name)],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip
        wheel = next(iter((folder / name).glob("*.whl")), Path())
        return wheel, done.stdout + done.stderr

    return made


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name.rpartition("/")[2] for name in file.namelist() if name.startswith("isoloss/native/")}


MODULES = {
    "__init__.py", "build.json", "columns.py", "decoding.py", "kmeans.py", "library.py", "products.py", "reals.py", "runs.py"
}  # fmt: skip


@needs_compiler
def test_a_wheel_carries_the_library_for_all_pythons(wheels, tmp_path):
    # As on a machine of an unknown kind: the library in plain C alone, which takes a quarter of the time.
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = -dumpmachine ] && exec echo other\nexec {COMPILER} "$@"\n')
    compiler.chmod(0o755)
    wheel, _ = wheels("with", CC=str(compiler), CFLAGS="-O0")
    assert re.fullmatch(r"isoloss-[\d.]+-py3-none-(?!any)\w+\.whl", wheel.name)
    assert names(wheel) == {*MODULES, library.NAME}
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    code = "from isoloss import native; print(native.status())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, library.SWITCH: ""},
    )  # fmt: skip
    assert done.stdout.startswith(f"native code: {tmp_path / 'isoloss' / 'native' / 'lib' / library.NAME} (")


def test_a_wheel_without_a_compiler_says_what_is_missing(wheels):
    wheel, said = wheels("without", CC="no-such-compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "isoloss has no native code: no C compiler found (looked for no-such-compiler)" in said
    assert names(wheel) == MODULES
    wheel, said = wheels("pure", ISOLOSS_BUILD="pure")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "ISOLOSS_BUILD=pure" in said


def test_a_wheel_that_must_have_it_fails_without(wheels):
    wheel, said = wheels("must", ISOLOSS_BUILD="native", CC="no-such-compiler")
    assert wheel == Path()
    assert "ISOLOSS_BUILD=native, but there is no native code: no C compiler found" in said
    assert "ISOLOSS_BUILD needs to be native or pure, got 'yes'" in wheels("wrong", ISOLOSS_BUILD="yes")[1]


def arrays(rows: int = 2, n: int = 5, levels: int = 2):
    return [np.empty((rows, levels)), np.empty((rows, n), np.uint8), np.empty(rows)]


@needs_native
@pytest.mark.parametrize(
    ("x", "weights", "says"),
    [
        (np.ones((2, 5), np.int64), None, r"x needs .* got \(2, 5\) of int64"),
        (np.ones((2, 5), ">f4"), None, r"x needs .* got \(2, 5\) of >f4"),
        (np.ones((2, 10))[:, ::2], None, "x needs .* contiguous"),
        (np.zeros(81, np.uint8)[1:].view(np.float64).reshape(2, 5), None, "x needs .* aligned"),
        (np.ones((2, 5)), np.ones((1, 5)), r"weights needs shape \(2, 5\) or \(5,\), .* got \(1, 5\)"),
        (np.ones((2, 5)), np.ones((2, 5), np.float16), "weights needs .* float16"),
        (np.ones((3, 5)), None, r"centres needs shape \(3, 2\)"),
        (np.ones((2, 4)), None, r"codes needs shape \(2, 4\)"),
    ],
)
def test_arrays_that_c_would_read_wrongly_are_refused(x, weights, says):
    with pytest.raises(ValueError, match=says):
        kmeans.kmeans_rows(x, weights, *arrays())


@needs_native
def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="1 to 256 levels"):
        kmeans.kmeans_rows(np.ones((2, 5)), None, *arrays(levels=257))
    with pytest.raises(ValueError, match="1 to 256 levels"):
        kmeans.kmeans_rows(np.ones((2, 0)), None, *arrays(n=0))


def test_without_a_library_the_call_says_so(monkeypatch):
    monkeypatch.setattr(kmeans, "library", lambda: None)
    with pytest.raises(RuntimeError, match="native code was asked for"):
        kmeans.kmeans_rows(np.ones((2, 5)), None, *arrays())

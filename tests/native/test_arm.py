"""The kernels of 64-bit ARM under emulation: what they write is what plain code writes on this machine, to the last bit.

Calls are written down once, with all memory they need, and done by ``replay.c`` here and there. Needs a compiler for it
(``ISOLOSS_ARM_CC``, else aarch64-linux-gnu-gcc), its C library, and qemu-aarch64 or qemu-aarch64-static. Compiled fast, unless
``ISOLOSS_ARM_CFLAGS`` says how; ``make arm`` compiles as an install does.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="weights are packed by torch")

from isoloss import deploy, native  # noqa: E402
from isoloss.compress import Choice, compress, formats  # noqa: E402
from isoloss.deploy import bits, pack_sparse  # noqa: E402
from isoloss.deploy import stack as stacks  # noqa: E402
from isoloss.deploy.packing import pack_weight  # noqa: E402
from isoloss.trainers.gpt_modules import of  # noqa: E402
from isoloss.trainers.gpt_settings import Settings  # noqa: E402
from isoloss.trainers.transformer import GPT  # noqa: E402
from tests.native.images import COLUMNS, DECODE, FITS, KMEANS, PLANES, PRODUCT, READ, Image  # noqa: E402

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "native"
COMPILER = shlex.split(os.environ.get("ISOLOSS_ARM_CC", "aarch64-linux-gnu-gcc"))
QEMU = next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)
HOST = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
SYSTEM = Path("/usr/aarch64-linux-gnu")
SETS = {
    "max": ("i8mm", "dotprod", "plain"),
    "neoverse-n1": ("dotprod", "plain"),
    "cortex-a53": ("plain",),
}
MISSING = [
    what
    for what, there in (
        (f"a compiler for 64-bit ARM ({COMPILER[0]})", shutil.which(COMPILER[0])),
        ("qemu-aarch64-static", QEMU),
        (f"its C library in {SYSTEM}", SYSTEM.is_dir()),
        ("a C compiler", HOST),
        ("native code here", native.available()),
    )
    if not there
]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not here: {', '.join(MISSING)}"),
    pytest.mark.skipif(platform.machine() in ("aarch64", "arm64"), reason="this is 64-bit ARM: all tests are of it"),
]  # fmt: skip

TABLES = (
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "table3/g512",
    "table2/g100",
    "table4/g72",
)
LEVELS = (
    "int1/bipolar", "int2/g32", "int3/g64/asym", "int4/g128/asym", "int5/tensor", "int6/g50", "int7/narrow", "int8",
    "int8/asym", "nf4/g64", "mxfp4", "fixed3.5",
)  # fmt: skip
REALS = (
    "fp16", "bf16", "fixed6.8", "fp12-e5m6/g40", "fp8-e4m3", "fp8-e5m2", "mxfp8-e4m3", "mxfp6-e2m3", "nvfp4",
    "fp5-e2m2/g7/scale-m2", "fp6-e3m2/g33", "table7", "table8/g40", "table5/tensor", "vq4-256", "vq2-16", "vq3-5",
    "vq8-3000",
)  # fmt: skip
FLOATS = (
    "table1",
    "table2/g100",
    "table3",
    "table4",
    "table6/g40",
    "int4/g32/asym",
    "int8",
    "nf4/g64",
    "int3/g7/scale-mx",
)
BESIDE = ("table3+2.0%", "int4/g40+2.0%", "fp8-e4m3+2.0%")
SHAPES = ((37, 1100, 1), (5, 61, 11), (20, 513, 3))


def seeded(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def add_product(image: Image, name: str, packed, x: np.ndarray, parts: int) -> None:
    weight, rows = packed.ready, packed.shape[0]
    image.keep(packed)
    out, bias = np.zeros((len(x), rows), np.float32), np.arange(rows, dtype=np.float32)
    image.call(FITS, image.at(weight.address))
    image.call(
        PRODUCT,
        image.at(weight.address),
        image.put(x),
        len(x),
        parts,
        image.put(bias),
        image.out(name, out),
        2,
    )


def add_products(image: Image) -> None:
    for activations, specs in {
        "int8": (*TABLES, *LEVELS, *REALS, *BESIDE), "int16": (*TABLES, *LEVELS), "float": FLOATS,
    }.items():  # fmt: skip
        for spec in specs:
            for rows, columns, tokens in SHAPES:
                packed = pack_weight(formats.get(spec).encode(seeded(rows, columns)), activations)
                x = seeded(tokens, columns, seed=1).numpy()
                x[0, 3] = 100
                if tokens > 9:
                    x[1], x[2], x[3, 0], x[4, -1] = 0, x[2] * 1e-41, np.nan, np.inf
                    x[5] *= 1e36
                parts = 2 if activations == "int16" and packed.kind in ("table", "levels") else 1
                add_product(image, f"{spec} {activations} {rows}x{columns}x{tokens}", packed, x, parts)


def add_patterns(image: Image) -> None:
    weight = seeded(33, 200)
    for pattern in ("2:4", "3:5", "2:32", "16:256", "blocks1", "blocks5", "blocks32"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            if ":" in pattern:
                n, m = map(int, pattern.split(":"))
                order = (
                    torch.nn.functional.pad(weight.abs(), (0, -200 % m)).view(33, -1, m).argsort(2).argsort(2)
                )
                mask = (order >= m - n).view(33, -1)[:, :200]
            else:
                width = int(pattern[6:])
                kept = seeded(3, -(-200 // width), seed=4) > 0
                mask = kept.repeat_interleave(16, 0)[:33].repeat_interleave(width, 1)[:, :200]
            packed = pack_sparse((weight * mask).to(dtype), pattern, mask)
            add_product(image, f"{pattern} {dtype}", packed, seeded(5, 200, seed=2).numpy(), 1)


def add_others(image: Image) -> None:
    random = np.random.default_rng(0)
    a, b = bits.planes(random.integers(0, 8, (7, 300)), 3), bits.planes(random.integers(0, 32, (9, 300)), 5)
    out = np.zeros((7, 9), np.int64)
    image.call(
        PLANES,
        image.put(a.words),
        3,
        0,
        7,
        image.put(b.words),
        5,
        9,
        a.words.shape[2],
        image.out("planes", out),
    )
    for dtype in (np.float32, np.float64):
        x, weights = random.normal(size=(3, 700)).astype(dtype), random.random(700).astype(dtype)
        written = [np.zeros((3, 8)), np.zeros((3, 700), np.uint8), np.zeros(3)]
        names = [f"k-means of {x.dtype}: {part}" for part in ("centres", "codes", "cost")]
        double = dtype is np.float64
        image.call(
            KMEANS,
            image.put(x),
            double,
            3,
            700,
            image.put(weights),
            double,
            1,
            8,
            *map(image.out, names, written),
        )
    x, moves = random.normal(size=(20, 130)).astype("f4"), (random.normal(size=(20, 20)) / 10).astype("f4")
    levels, group = (
        np.sort(random.normal(size=(2, 8, 130)).astype("f4"), axis=1),
        np.arange(20, dtype="i4") % 2,
    )
    codes, moved = np.zeros((20, 130), np.uint8), np.zeros((20, 130), "f4")
    image.call(
        COLUMNS, image.out("columns", x), 20, 130, image.put(levels), 8, image.put(group), 2, image.put(moves), 0, 0,
        image.out("columns: codes", codes), image.out("columns: moved", moved),
    )  # fmt: skip
    image.call(READ, image.put(random.integers(0, 256, 5000).astype(np.uint8) & 90), 5000)


def add_steps(image: Image) -> None:
    """A model of its own, from packed weights and from floats."""
    for spec in ("table3", "int4/g32/asym", "table5/g20", None):
        settings = Settings(width=48, tokens=(1,), seq_len=48, head_size=24)
        torch.manual_seed(0)
        model = of(GPT(settings), settings).eval()
        if spec:
            model = deploy.pack(
                model,
                compress(model, {"*embed*": Choice("int8/asym", "nearest"), "*": Choice(spec, "nearest")}),
                "int8",
            )
        found = stacks.stack_of(model)
        run = found.native
        image.keep(run)
        cache, at = found.cache(48).numpy(), np.zeros(5, np.uint64)
        ids, position, room = np.arange(3, 8), np.arange(5), np.full(5, 48)
        hidden = np.zeros((5, found.width), np.float32)
        logits = np.zeros((5, found.vocabulary), np.float32)
        place, scratch = image.put(at), np.zeros(1 << 20, np.uint8)
        image.pointers += [(place + 8 * i, image.out(f"{spec}: cache", cache)) for i in range(5)]
        image.call(
            DECODE, image.at(ctypes.addressof(run._model)), image.put(ids), image.put(position), 5, place, image.put(room),
            image.out(f"{spec}: hidden", hidden), image.out(f"{spec}: logits", logits), image.put(scratch), scratch.size, 2,
        )  # fmt: skip


@pytest.fixture(scope="module")
def image() -> Image:
    made = Image()
    for add in (add_products, add_patterns, add_others, add_steps):
        add(made)
    return made


def answers(image: Image, folder: Path, compiler: list[str], library: Path, run: list[str]) -> dict:
    program, calls, found = folder / "replay", folder / "calls", folder / "answers"
    subprocess.run(
        [*compiler, "-O1", f"-I{SOURCES}", str(HERE / "replay.c"), str(library), "-o", str(program)],
        check=True,
    )
    image.write(calls)
    subprocess.run([*run, str(program), str(calls), str(found)], check=True)
    return image.answers(found)


@pytest.fixture(scope="module")
def wanted(image: Image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    return answers(image, folder, [HOST], native.status().path, [])["plain"]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """For 64-bit ARM, as ``native/build.py`` makes it."""
    folder = tmp_path_factory.mktemp("arm")
    environment = {"CC": shlex.join(COMPILER), "CFLAGS": os.environ.get("ISOLOSS_ARM_CFLAGS", "-O0")}
    command = [sys.executable, str(SOURCES / "build.py"), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    return folder / "libisoloss.so"


def bits_of(one: np.ndarray) -> np.ndarray:
    """All NaNs are one: which of them a processor gives is its own affair."""
    if one.dtype.kind != "f":
        return one
    same = np.where(np.isnan(one), one.dtype.type(np.nan), one)
    return same.view(f"u{one.itemsize}")


@pytest.mark.parametrize("processor", SETS)
def test_emulated_arm_gives_the_bits_of_plain_code_here(image, wanted, library, tmp_path, processor):
    found = answers(image, tmp_path, COMPILER, library, [QEMU, "-cpu", processor, "-L", str(SYSTEM)])
    assert tuple(found) == SETS[processor]
    assert not np.delete(wanted["gave"], -5).any()  # but what reading gave
    for name, got in found.items():
        for part, one in wanted.items():
            np.testing.assert_array_equal(bits_of(got[part]), bits_of(one), err_msg=f"{part} with {name}")

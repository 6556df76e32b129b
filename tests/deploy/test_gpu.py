"""Triton kernels of packed weights against plain sums: on a GPU where there is one, else in Triton's interpreter.

The interpreter is chosen when Triton is first imported, so that these tests run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from isoloss import compress
from isoloss.compress import formats
from isoloss.deploy import gpu, models, products, reference
from isoloss.deploy.held import Held
from isoloss.deploy.linear import PackedEmbedding, PackedLinear
from isoloss.deploy.packing import from_settings, pack_weight
from isoloss.deploy.sparse import pack_sparse
from isoloss.native.library import SlowPath
from isoloss.native.runs import table_runs

ROOT = Path(__file__).parents[2]
TRITON = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_device = pytest.mark.skipif(
    not TRITON or not (DEVICE.type == "cuda" or INTERPRETED),
    reason="needs triton and a GPU, or TRITON_INTERPRET=1 in the environment",
)
SPECS = [
    "table1", "table2", "table3", "table4", "table5", "table6", "table3/g512", "table3/g128", "table2/g100",
    "table3/g520", "table3+2.0%", "int4/g128", "int4/g128/asym", "int3/g64/asym", "int2/g32", "int8", "int5/tensor",
    "int6/g50", "int7/narrow", "int4/bipolar", "int1/bipolar", "nf4/g64", "mxfp4", "fixed3.5", "int4/g40+2.0%",
    "int4/g64+lr2",
]  # fmt: skip
ROUNDED = {torch.float32: 0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
"""Of what is stored; the interpreter cuts bf16 off."""


@pytest.mark.skipif(not TRITON, reason="needs triton")
@pytest.mark.skipif(DEVICE.type == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_in_the_interpreter():
    """The tests of this file that need a device, without one."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def seeded(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def multiplied(packed, x, bias=None):
    """By the kernels."""
    on = None if bias is None else bias.to(DEVICE)
    return gpu.product(packed.to(DEVICE), x.to(DEVICE), on).cpu()


def inside(packed, x, got, exact, bias=None):
    """Whether every number is as near to the exact one as is stated."""
    assert got.dtype == x.dtype
    assert got.shape == exact.shape
    exact = exact if bias is None else exact + bias.double()
    allowed = reference.bound(packed, x.float(), "float").double() * (1 + 2.0**-7)
    allowed += ROUNDED[x.dtype] * exact.abs() + 1e-6 * (0 if bias is None else bias.abs().double()) + 2.0**-24
    near = (got.double() - exact).abs() <= allowed
    return bool((near | ~torch.isfinite(exact) | ~torch.isfinite(allowed)).all())


@needs_device
@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_products_are_within_the_bound(spec, data):
    activations = data.draw(st.sampled_from(["int8", "float"]), "activations")
    rows = data.draw(st.integers(1, 5) if spec.startswith("table") else st.integers(1, 35), "rows")
    columns = data.draw(st.integers(1, 90) | st.sampled_from([511, 512, 513, 576, 648]), "columns")
    tokens = data.draw(st.integers(1, gpu.FEW + 1) | st.sampled_from([17, 65]), "tokens")
    dtype = data.draw(st.sampled_from(gpu.TYPES), "dtype")
    weight = seeded(rows, columns, seed=data.draw(st.integers(0, 999), "seed"))
    if data.draw(st.booleans(), "zero rows"):
        weight[::2] = 0
    if rows * columns < 50:
        spec = spec.partition("+")[0]
    encoded = formats.get(spec).encode(weight)
    packed = pack_weight(encoded, activations)
    x = (seeded(tokens, columns, seed=1) * 2.0 ** data.draw(st.integers(-9, 9), "size")).to(dtype)
    x[0] = data.draw(st.sampled_from([0.0, 1.0, 3.0]), "a token of the same")
    bias = seeded(rows, seed=2).to(dtype) if data.draw(st.booleans(), "bias") else None
    exact = x.double() @ encoded.decode(torch.float64).reshape(packed.shape).T
    assert inside(packed, x, multiplied(packed, x, bias), exact, bias)


@needs_device
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("tokens", [2, 6])
def test_every_format_with_few_tokens_and_many(spec, tokens):
    """Whole runs, parts of runs and of groups, tiles that are not full."""
    table = spec.startswith("table")
    encoded = formats.get(spec).encode(seeded(3, 690) if table else seeded(18, 150))
    packed = pack_weight(encoded, "int8" if tokens == 2 or not table else "float")
    x = seeded(tokens, packed.shape[1], seed=1)
    exact = x.double() @ encoded.decode(torch.float64).reshape(packed.shape).T
    assert inside(packed, x, multiplied(packed, x), exact)


@needs_device
@pytest.mark.parametrize("spec", ["table3", "table5", "table2/g40", "int3/g64", "int7", "nf4/g64"])
@pytest.mark.parametrize("tokens", [2, 6])
def test_any_codes_are_read_without_harm(spec, tokens):
    """Codes are any bytes: each is a code."""
    good = pack_weight(formats.get(spec).encode(seeded(5, 540)))
    codes = torch.randint(
        0, 256, good.tensors["codes"].shape, generator=torch.Generator().manual_seed(0)
    ).byte()
    packed = from_settings(good.settings, {**good.tensors, "codes": codes})
    x = seeded(tokens, 540)
    assert inside(packed, x, multiplied(packed, x), x.double() @ packed.decode().double().T)


@needs_device
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("spec", ["table3", "int4/g32"])
@pytest.mark.parametrize("tokens", [3, 6])
def test_a_token_that_is_not_finite_spoils_no_other(spec, tokens):
    packed = pack_weight(formats.get(spec).encode(seeded(4, 70)))
    x = torch.ones(tokens, 70)
    x[1, 65] = torch.inf
    got = multiplied(packed, x)
    assert not torch.isfinite(got[1]).any()
    assert torch.equal(got[0], got[2])
    assert bool(torch.isfinite(got[0]).all())


@needs_device
@pytest.mark.parametrize("dense", ["int4/g32", "table2"])
@pytest.mark.parametrize("tokens", [1, 6])
def test_rows_have_none_some_or_many_outliers(dense, tokens):
    encoded = formats.get(f"{dense}+10.0%").encode(seeded(5, 200) * torch.tensor([0, 1, 1, 1, 9.0])[:, None])
    packed = pack_weight(encoded)
    counts = packed.tensors["outliers.rows"].diff()
    assert counts.min() == 0
    assert counts.max() > 64
    x = seeded(tokens, 200)
    assert inside(packed, x, multiplied(packed, x), x.double() @ encoded.decode().double().T)


@needs_device
def test_what_does_not_lie_in_memory_as_it_counts_is_read_right():
    packed, x = pack_weight(formats.get("int4/g32").encode(seeded(5, 64))), seeded(2, 64)
    wanted = multiplied(packed, x)
    strided = torch.stack([x, x], dim=-1).to(DEVICE)[..., 0]
    assert torch.equal(gpu.product(packed.to(DEVICE), strided).cpu(), wanted)
    assert torch.equal(gpu.product(packed.to(DEVICE), torch._neg_view(-x.to(DEVICE))).cpu(), wanted)
    assert multiplied(packed, x[:0].half()).shape == (0, 5)
    assert multiplied(packed, x[:0].half()).dtype == torch.float16


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("dtype", gpu.TYPES)
def test_a_packed_model_runs_where_it_is_moved(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(30, 96), nn.Linear(96, 40), nn.Linear(40, 8))
    fast = models.pack(net, compress.compress(net, compress.Choice("int8", "nearest")), "float").to(
        DEVICE, dtype
    )
    ids = torch.tensor([[1, 2, 29]], device=DEVICE)
    got = fast(ids)
    assert got.is_cuda
    assert got.dtype == dtype
    assert torch.allclose(got.float().cpu(), net.cpu().float()(ids.cpu()), atol=0.05)
    assert torch.equal(torch.compile(fast, fullgraph=True)(ids), got)


@pytest.mark.parametrize("columns", [1, 7, 8, 64, 100, 512, 513, 1000, 1024, 1300])
@pytest.mark.parametrize("group", [1, 8, 32, 40, 100, 128, 500, 512, 520, 1024, 5000])
def test_slots_are_the_runs(columns, group):
    """What kernels work out of a run's number is where it lies."""
    slots, runs = gpu.Slots.of(columns, group, 3), table_runs(columns, min(group, columns))
    assert slots.count == len(runs.count)
    first = 0
    for i, (start, count, wide) in enumerate(zip(runs.start, runs.count, runs.wide, strict=True)):
        segment, run = divmod(i, slots.per)
        assert segment == runs.segment[i]
        assert start == segment * min(group, columns) + 512 * run
        assert first == segment * slots.bytes + run * 64 * 3
        assert wide == -(-count // 8) <= slots.lanes
        if i < slots.even:
            assert wide == slots.lanes
            assert start == i * 8 * slots.lanes
            assert first == i * 3 * slots.lanes
        first += 3 * wide


KINDS = [
    "table3/g50", "int4/g40/asym", "nf4/g64", "fp8-e4m3", "nvfp4", "mxfp8-e4m3", "fp4-e2m1", "table7/g50", "vq4-64",
    "fp16", "fixed4.8", "fp32", "int4/g64+lr2",
]  # fmt: skip


@pytest.mark.parametrize("spec", KINDS)
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_every_kind_decodes_on_its_device(spec, activations):
    """On a device without numbers: one from elsewhere is refused there as on a GPU."""
    packed = pack_weight(formats.get(spec).encode(seeded(20, 96)), activations).to("meta")
    assert packed.decode().is_meta
    assert packed.rows(torch.zeros(3, dtype=torch.long, device="meta")).is_meta


def there(tensors):
    """Tensors that lie on a GPU, but for their numbers."""
    return {
        name: None if one is None else torch.empty_like(one, device="cuda") for name, one in tensors.items()
    }


@pytest.mark.parametrize("dtype", gpu.TYPES)
def test_operators_say_what_a_gpu_would_give(dtype):
    layer = PackedLinear.of(formats.get("table3/g50+2.0%").encode(seeded(20, 96)), torch.ones(20))
    rows = PackedEmbedding(pack_weight(formats.get("int8").encode(seeded(20, 96))))
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (layer, rows):
            module._buffers |= there(module._buffers)
        out = layer(torch.empty(2, 3, 96, dtype=dtype, device="cuda"))
        assert out.device.type == "cuda"
        assert out.dtype == dtype
        assert out.shape == (2, 3, 20)
        found = rows(torch.zeros(4, dtype=torch.long, device="cuda"))
        assert found.device.type == "cuda"
        assert found.shape == (4, 96)


@pytest.mark.parametrize("dtype", gpu.TYPES)
def test_what_lies_on_a_gpu_is_multiplied_there(dtype, monkeypatch):
    seen = []
    monkeypatch.setattr(
        gpu, "product", lambda packed, x, bias: seen.append((packed, x, bias)) or x.new_empty(6, 20)
    )
    packed = pack_weight(formats.get("int4/g32").encode(seeded(20, 96)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        on = from_settings(packed.settings, there(packed.tensors))
        x, bias = torch.empty(6, 96, dtype=dtype, device="cuda"), torch.empty(20, dtype=dtype, device="cuda")
        products.product(on, x, bias=bias)
        held = Held([on], (20, 96), dtype)
        assert held.is_cuda
        assert torch.nn.functional.linear(x, held).shape == (6, 20)
        for bad in (torch.empty(6, 96), torch.empty(6, 96, dtype=torch.float64, device="cuda")):
            with pytest.raises(ValueError, match="takes float32 or float16 or bfloat16 activations"):
                products.product(on, bad)
        with pytest.raises(ValueError, match=r"on cuda:0\. Move it to the CPU"):
            products.product(packed, x)
        with pytest.raises(ValueError, match=r"bias of shape .* on cpu\. Move it to the device cuda:0"):
            products.product(on, x, bias=torch.empty(20))
    assert [(one, y.dtype) for one, y, _ in seen] == [(on, dtype)] * 2


def test_modules_that_share_a_weight_share_it_where_they_are_moved():
    packed = pack_weight(formats.get("int8+2.0%").encode(seeded(20, 96)))
    both = nn.ModuleList([PackedLinear(packed), PackedEmbedding(packed)])
    both.to("meta")
    assert both[0].codes is both[1].codes
    assert both[0].packed.bytes == packed.bytes
    assert both[0].codes.is_meta


def test_a_held_weight_moves_with_its_module():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(64, 2, 64, batch_first=True)
    fast = models.pack(net, compress.compress(net, compress.Choice("int8", "nearest")))
    keys = set(fast.state_dict())
    held = fast.self_attn.in_proj_weight
    assert held.device.type == "cpu"
    fast.to("meta")
    assert held.device.type == "meta"
    assert all(part.device.type == "meta" for part in held.parts)
    assert set(fast.state_dict()) == keys


def test_a_kind_without_a_kernel_is_decoded_where_it_lies():
    weight, x = seeded(20, 64), seeded(3, 64)
    for packed in (
        pack_sparse(weight, "2:4", weight > 9),
        pack_weight(formats.get("fp8-e4m3").encode(weight)),
    ):
        assert packed.kind not in gpu.KNOWN
        assert torch.allclose(gpu.product(packed, x, torch.ones(20)), x @ packed.decode().T + 1, atol=1e-5)


def test_without_triton_the_weight_is_decoded_and_that_is_said(monkeypatch):
    packed, x = pack_weight(formats.get("int4/g32").encode(seeded(5, 64))), seeded(2, 64)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    gpu._triton.cache_clear()
    with pytest.warns(SlowPath, match="triton is not installed"):
        got = gpu.product(packed, x)
    gpu._triton.cache_clear()
    assert torch.equal(got, x @ packed.decode().T)


def test_parts_on_several_devices_are_refused():
    packed = pack_weight(formats.get("int4/g32").encode(seeded(5, 64)))
    with pytest.raises(ValueError, match="lies on one device, got cpu, meta"):
        from_settings(packed.settings, {**packed.tensors, "scale": packed.tensors["scale"].to("meta")})
    with pytest.raises(ValueError, match=r"on cpu\. Move it to the device meta"):
        products.product(packed.to("meta"), seeded(2, 64))


class Recorded:
    """Stands for a kernel and keeps what it is started with."""

    def __init__(self):
        self.grid, self.args, self.settings = None, (), {}

    def __getitem__(self, grid):
        self.grid = grid
        return self

    def __call__(self, *args, **settings):
        self.args, self.settings = args, settings


EVEN, SMALL = (16, 4096), (1, 1)
LAUNCHES = [
    ("table3", "int8", 1, torch.float16, EVEN), ("table4", "float", 2, torch.float32, EVEN),
    ("table6/g128", "int8", 4, torch.float32, EVEN), ("int4/g128/asym", "int8", 1, torch.bfloat16, EVEN),
    ("nf4/g64", "int8", 2, torch.float32, EVEN), ("table3+2.0%", "int8", 20, torch.float16, EVEN),
    ("int3/g64", "int8", 70, torch.float32, EVEN), ("table2", "int8", 1, torch.float16, SMALL),
    ("int5", "int8", 1, torch.float16, (1, 24)), ("table1", "float", 9, torch.float16, SMALL),
]  # fmt: skip


@pytest.mark.skipif(not TRITON or INTERPRETED, reason="needs triton's compiler")
@pytest.mark.parametrize(("spec", "activations", "tokens", "dtype", "shape"), LAUNCHES)
def test_kernels_compile_for_a_gpu(spec, activations, tokens, dtype, shape, monkeypatch, tmp_path):
    """As they are started, to machine code; codes are read 16 bytes at a time where the sizes are even."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from isoloss.deploy import gpu_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    packed = pack_weight(formats.get(spec).encode(seeded(*shape)), activations)
    name = "many" if tokens > gpu.FEW else "levels_few" if packed.kind == "levels" else "table_few"
    kernel, seen = getattr(kernels, name), Recorded()
    monkeypatch.setattr(kernels, name, seen)
    gpu.product(packed, torch.ones(tokens, shape[1], dtype=dtype))
    types = {torch.uint8: "u8", torch.uint16: "u16", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32",
             torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}  # fmt: skip
    known = {**dict(zip(kernel.arg_names, seen.args, strict=False)), **seen.settings}
    assert set(known) == {*kernel.arg_names, "num_warps"}
    given = {name: known[name] for name in kernel.arg_names}
    ones = [name for name, one in given.items() if type(one) is int and one == 1]  # triton fixes these too
    fixed = {one.name: given[one.name] for one in kernel.params if one.is_constexpr or one.name in ones}
    signature, whole = {}, {}
    for place, (name, one) in enumerate(given.items()):
        tensor = isinstance(one, torch.Tensor)
        signature[name] = "constexpr" if name in fixed else f"*{types[one.dtype]}" if tensor else "i32"
        if name not in fixed and (tensor or one % 16 == 0):
            whole[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(name),): one for name, one in fixed.items()}, whole
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", 80, 32), options={"num_warps": seen.settings["num_warps"]}
    )
    assert made.asm["cubin"]
    if tokens == 1 and shape == EVEN:
        assert "v4.b32" in made.asm["ptx"]

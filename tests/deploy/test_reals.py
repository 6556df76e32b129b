"""Weights multiplied with activations as they are: the same numbers as stored, every set within its bound, sizes exact."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss import deploy, native
from isoloss.compress import formats
from isoloss.deploy import products, reference
from isoloss.deploy.packing import Packed, from_settings, pack_weight
from isoloss.deploy.reals import arranged

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.status()))
SETS = native.status().sets
KINDS = {
    "half": ["fp16", "bf16", "fixed6.8", "fp12-e5m6/g40", "fp8-e6m1/scale-bf16", "fp16+2.0%"],
    "small-float": [
        "fp8-e4m3", "fp8-e5m2", "mxfp8-e4m3", "mxfp6-e2m3", "mxfp6-e3m2", "nvfp4", "fp8-e4m3/plain", "fp7-e3m3/tensor",
        "fp5-e2m2/g7/scale-m2", "fp6-e3m2/g33", "fp8-e4m3+2.0%",
    ],
    "wide-table": ["table7", "table8/g40", "table8/tensor", "table5/tensor", "table6/tensor"],
    "vectors": ["vq4-256", "vq2-16", "vq3-5", "vq20-17", "vq8-3000"],
}  # fmt: skip
ALWAYS = [(kind, spec) for kind, specs in KINDS.items() for spec in specs]
# With float activations alone: otherwise these run as whole-number levels.
FLOATS = [
    ("small-float", spec)
    for spec in (
        "int4/g32/asym", "int8", "int1/bipolar", "int4/bipolar", "int3/g7/scale-mx", "fixed3.5", "nf4/g64", "mxfp4",
        "table3/tensor", "fp4-e2m1/g16", "int4/g64+lr3",
    )
] + [("wide-table", "table5"), ("wide-table", "table6/g40")]  # fmt: skip


def seeded(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def held_to_its_bound(packed: Packed, stored: torch.Tensor, x: torch.Tensor, activations: str) -> None:
    exact = x.double() @ stored.T
    bound = reference.bound(packed, x, activations)
    assert bool(((reference.product(packed, x, activations) - exact).abs() <= bound).all())
    for name in SETS:
        for tokens in sorted({1, len(x) // 2 or 1, len(x)}):
            got = products.product(packed, x[:tokens].contiguous(), activations, 1, name)
            assert bool(((got - exact[:tokens]).abs() <= bound[:tokens]).all()), name


@pytest.mark.parametrize(("kind", "spec"), ALWAYS + FLOATS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_stored_numbers_are_kept_and_products_within_their_bound(kind, spec, data):
    rows = data.draw(st.integers(1, 40), "rows")
    columns = data.draw(st.integers(1, 80) | st.sampled_from([127, 128, 513, 700]), "columns")
    if "%" in spec and rows * columns < 50:
        rows = 50
    encoded = formats.get(spec).encode(seeded(rows, columns, seed=data.draw(st.integers(0, 99), "seed")))
    activations = "float" if (kind, spec) in FLOATS else data.draw(st.sampled_from(["int8", "float"]))
    packed = pack_weight(encoded, activations)
    assert packed.kind == kind
    assert torch.equal(packed.decode(), encoded.decode())
    again = from_settings(packed.settings, packed.tensors)
    assert torch.equal(again.decode(), encoded.decode())
    some = torch.tensor([rows - 1, 0, rows // 2, 0])
    torch.testing.assert_close(packed.rows(some), encoded.decode()[some], rtol=1e-6, atol=1e-6)
    x = seeded(data.draw(st.integers(1, 18), "tokens"), columns)
    held_to_its_bound(packed, encoded.decode(torch.float64), x, activations)


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        ("fp16", 0), ("bf16", 0), ("fp8-e4m3", 0), ("fp8-e5m2/g128", 0), ("mxfp8-e4m3", 0), ("mxfp6-e2m3", 0),
        ("table7", 0), ("table8", 0), ("table5/tensor", 0), ("vq4-256", 0), ("vq2-16", 0), ("vq8-4096", 0),
        ("fp8-e4m3+1.0%", 0),
        # the scale of the tensor beside every row
        ("nvfp4", 64 * 4 - 4),
        ("fp16+lr4", 0), ("int4/g128+lr4", 0), ("table3+1.0%+lr4", 0),
    ],
)  # fmt: skip
def test_packing_takes_the_bytes_that_are_stored(spec, more):
    encoded = formats.get(spec).encode(seeded(64, 512))
    assert pack_weight(encoded).bytes == encoded.bits // 8 + more


@pytest.mark.parametrize(
    "spec", ["int4/g32+lr3", "table3+2.0%+lr4", "fp8-e4m3+lr2:int8", "int8/g64+lr4+1.0%", "fp32+lr2"]
)
@pytest.mark.parametrize("activations", ["int8", "int16", "float"])
def test_a_product_of_two_thin_ones_lies_beside(spec, activations):
    encoded = formats.get(spec).encode(seeded(37, 130))
    packed = pack_weight(encoded, activations)
    assert packed.thin is not None
    assert [one.shape for one in packed.thin] == [
        (37, packed.thin[0].shape[1]),
        (packed.thin[0].shape[1], 130),
    ]
    assert torch.allclose(packed.decode(), encoded.decode(), atol=0.05 if packed.kind == "table" else 1e-6)
    held_to_its_bound(packed, encoded.decode(torch.float64), seeded(9, 130, seed=1), activations)
    some = torch.tensor([36, 0, 5])
    torch.testing.assert_close(packed.rows(some), packed.decode()[some])


def test_beside_what_is_beside_already_all_is_decoded():
    encoded = formats.get("int4+lr2+lr1").encode(seeded(20, 40))
    assert pack_weight(encoded).kind == "dense"
    assert torch.equal(pack_weight(encoded).decode(), encoded.decode())


def test_small_floats_are_what_their_types_say():
    for exponent in range(1, 6):
        for mantissa in range(8 - exponent):
            type = formats.FloatType(exponent, mantissa, "finite")
            values, found = type.values(), arranged(type.bits, exponent, type.offset).double()
            finite = torch.isfinite(found)  # at five exponent bits the last stands for infinity
            assert torch.equal(found[finite], values[finite])
            assert exponent == 5 or bool(finite.all())


def test_codes_that_stand_for_no_number_keep_their_meaning():
    encoded = formats.get("fp8-e4m3").encode(seeded(16, 32))
    codes = encoded.parts["codes"].clone()
    codes[3, 5] = 127  # NaN
    odd = dataclasses.replace(encoded, parts={**encoded.parts, "codes": codes})
    packed = pack_weight(odd)
    assert packed.kind == "half"
    assert torch.equal(packed.decode().isnan(), odd.decode().isnan())
    assert torch.equal(packed.decode().nan_to_num(), odd.decode().nan_to_num())


def pruned(rows: int, columns: int, n: int, m: int) -> torch.Tensor:
    """The largest n of every m columns of a row."""
    weight = seeded(rows, columns)
    cut = torch.nn.functional.pad(weight, (0, -columns % m)).view(rows, -1, m)
    order = cut.abs().argsort(dim=2, descending=True).argsort(dim=2)
    return (cut * (order < n)).view(rows, -1)[:, :columns].contiguous()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "1:2", "3:5", "2:32", "7:8", "16:256", "1:1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_n_of_m_columns(pattern, dtype):
    n, m = map(int, pattern.split(":"))
    for rows, columns, tokens in ((33, 200, 9), (5, 7, 1), (16, 512, 3)):
        weight = pruned(rows, columns, n, m).to(dtype)
        packed = deploy.pack_sparse(weight, pattern)
        assert torch.equal(packed.decode(), weight.float())
        held_to_its_bound(packed, weight.double(), seeded(tokens, columns), "int8")
        kept = -(-(-(-columns // m) * n) // 16) * 16
        assert packed.bytes == rows * kept * (8 * dtype.itemsize + max(1, (m - 1).bit_length())) // 8
        some = torch.tensor([rows - 1, 0])
        assert torch.equal(packed.rows(some), weight.float()[some])


@pytest.mark.parametrize("width", [1, 5, 16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_blocks(width, dtype):
    for rows, columns, tokens in ((70, 200, 9), (5, 7, 1), (64, 128, 3)):
        weight = seeded(rows, columns).to(dtype)
        tiles, groups = -(-rows // 16), -(-columns // width)
        kept = torch.rand(tiles, groups, generator=torch.Generator().manual_seed(1)) < 0.3
        mask = kept.repeat_interleave(16, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
        packed = deploy.pack_sparse(weight, f"blocks{width}", mask)
        assert torch.equal(packed.decode(), (weight * mask).float())
        held_to_its_bound(packed, (weight * mask).double(), seeded(tokens, columns), "int8")
        own = min(width, columns)
        assert packed.bytes == int(kept.sum()) * (16 * own * dtype.itemsize + 4) + 4 * (tiles + 1)
        some = torch.tensor([rows - 1, 0])
        assert torch.equal(packed.rows(some), packed.decode()[some])


def test_sparse_layers_are_modules_too():
    weight, bias = pruned(24, 96, 2, 4), seeded(24)
    layer = deploy.PackedLinear(deploy.pack_sparse(weight, "2:4"), bias)
    x = seeded(3, 96)
    torch.testing.assert_close(layer(x), x @ weight.T + bias)
    nothing = deploy.pack_sparse(torch.zeros(20, 40), "blocks8")
    assert torch.equal(deploy.product(nothing, seeded(2, 40)), torch.zeros(2, 20))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((torch.ones(2, 8), "2:4"), r"2:4 keeps up to 2 of 4 columns, got more in row 0 from column 0 on"),
        ((torch.ones(2, 8), "4:2"), "n up to m"),
        ((torch.ones(2, 8), "1:512"), "m up to 256"),
        ((torch.ones(2, 8), "rows"), "patterns are n:m"),
        ((torch.ones(2, 8), "2:4", torch.ones(2, 7, dtype=torch.bool)), "one bool per weight"),
        ((torch.ones(2, 8, dtype=torch.float64), "8:8"), "float32, float16 or bfloat16"),
        ((torch.full((2, 8), torch.nan), "8:8"), "finite numbers"),
    ],
)
def test_what_no_pattern_has_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        deploy.pack_sparse(*given)


@functools.cache
def every_kind() -> list[Packed]:
    make = [pack_weight(formats.get(specs[0]).encode(seeded(20, 100))) for specs in KINDS.values()]
    make += [
        pack_weight(formats.get(spec).encode(seeded(20, 100)), "float")
        for spec in ("int4/g32/asym", "nf4/g64")
    ]
    make.append(pack_weight(formats.get("int4/g32+1.0%+lr2").encode(seeded(20, 100))))
    make.append(deploy.pack_sparse(pruned(20, 100, 2, 4), "2:4"))
    make.append(deploy.pack_sparse(seeded(20, 100), "blocks16"))
    return make


@pytest.mark.parametrize("good", every_kind(), ids=lambda one: f"{one.kind}-{one.bits}")
def test_damaged_tensors_are_refused(good):
    for name, one in good.tensors.items():
        for bad in (one[:-1].contiguous(), one[None].contiguous(), one.to(torch.float64)):
            with pytest.raises(ValueError, match=r"needs|pointers|factors|settings|missing"):
                from_settings(good.settings, {**good.tensors, name: bad})
        with pytest.raises(ValueError, match=r"has the tensors"):
            from_settings(good.settings, {key: part for key, part in good.tensors.items() if key != name})


@pytest.mark.parametrize("change", [-1, 7, 1 << 20])
@pytest.mark.parametrize("name", ["columns", "tiles"])
def test_blocks_outside_the_matrix_are_refused(name, change):
    good = deploy.pack_sparse(seeded(40, 100), "blocks16")
    bad = good.tensors[name].clone()
    bad[-1] = change
    with pytest.raises(ValueError, match="blocks need pointers"):
        from_settings(good.settings, {**good.tensors, name: bad})


@needs_native
@pytest.mark.parametrize("good", every_kind(), ids=lambda one: f"{one.kind}-{one.bits}")
def test_any_bytes_are_read_without_harm(good):
    """Codes, places, tables and numbers are any bytes: a product runs, and gives what the reference does where it can."""
    make = torch.Generator().manual_seed(0)
    loose = ("codes", "places", "codebook", "table", "scale", "power", "zero", "values", "weight", "unit")
    tensors = {}
    for name, one in good.tensors.items():
        raw = one.clone()
        if name.rpartition(".")[2] in loose and not name.startswith("outliers"):
            raw.view(torch.uint8).copy_(torch.randint(0, 256, raw.view(torch.uint8).shape, generator=make))
        tensors[name] = raw
    packed = from_settings(good.settings, tensors)
    x = seeded(9, 100)
    decoded = packed.decode()
    for name in SETS:
        got = products.product(packed, x, "int8", 1, name)
        assert got.shape == (9, 20)
        if bool(torch.isfinite(decoded).all()) and float(decoded.abs().max()) < 1e30:
            bound = reference.bound(packed, x)
            assert bool(((got - x.double() @ decoded.double().T).abs() <= bound).all())


@needs_native
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_settings_that_do_not_fit_are_refused_or_fit(data):
    """No words make a weight that reads outside its tensors: what is accepted multiplies."""
    good = data.draw(st.sampled_from(every_kind()))
    numbers = [*good.shape, good.bits, good.group, good.times, good.offset]
    numbers[data.draw(st.integers(0, 5))] = data.draw(st.integers(-3, 300) | st.integers(-(2**70), 2**70))
    kind = data.draw(
        st.sampled_from([good.kind, "half", "small-float", "wide-table", "vectors", "n-of-m", "blocks"])
    )
    try:
        made = Packed(kind, (numbers[0], numbers[1]), *numbers[2:4], good.tensors, *numbers[4:], good.factors)
    except ValueError:
        return
    assert made.decode().shape == made.shape
    assert products.product(made, torch.zeros(2, made.shape[1])).shape == (2, made.shape[0])

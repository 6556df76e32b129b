"""Codes in planes of bytes and back, the same numbers packed as stored, damaged tensors refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss.compress import formats
from isoloss.deploy.packing import Packed, from_settings, pack_weight
from isoloss.deploy.planes import from_bytes, to_bytes

EXACT = [
    "int4/g128", "int4/g128/asym", "int3/g64/asym/mse", "int2/g32", "int8", "int5/tensor", "int6/g50", "int7/narrow",
    "int4/bipolar", "int1/bipolar", "int4/g64/scale-bf16", "int4/g64/scale-m2", "mxfp4", "nvfp4", "fp4-e2m1/g128",
    "fixed3.5", "fixed2.2", "fp8-e4m3", "vq2-16", "bf16", "int4+lr2", "int4/g128+5.0%",
]  # fmt: skip
ROUNDED = [
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6/g40",
    "table3/g512",
    "table3+5.0%",
    "table4/tensor",
    "nf4",
]


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_hold_every_code(bits):
    lanes = 5
    codes = torch.randint(0, 1 << bits, (3, 8, lanes), generator=torch.Generator().manual_seed(bits)).byte()
    data = to_bytes(codes, bits)
    assert data.shape == (3, bits, lanes)
    assert torch.equal(from_bytes(data, bits), codes)
    # Every bit of every byte is a bit of a code.
    every = torch.arange(256).byte().repeat(bits, 1)
    assert torch.equal(to_bytes(from_bytes(every, bits), bits), every)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (16, 512), (33, 520), (18, 1100)])
@pytest.mark.parametrize("spec", EXACT)
def test_packed_weights_decode_to_what_was_stored(spec, rows, columns):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    encoded = formats.get(spec).encode(weight)
    packed = pack_weight(encoded)
    assert torch.equal(packed.decode(), encoded.decode())
    some = torch.tensor([rows - 1, 0, rows // 2, 0])
    assert torch.equal(packed.rows(some), encoded.decode()[some])


@pytest.mark.parametrize("spec", ROUNDED)
def test_bytes_of_a_table_are_off_by_half_a_step_at_most(spec):
    weight = torch.randn(18, 1100, generator=torch.Generator().manual_seed(0))
    encoded = formats.get(spec).encode(weight)
    packed, stored = pack_weight(encoded), encoded.decode()
    if "step" in packed.tensors:
        group = torch.arange(1100) // packed.group
        half = packed.tensors["step"][:, group] / 2
    else:
        half = (
            packed.tensors["scale"]
            .movedim(-1, 1)
            .flatten(0, 1)[:18]
            .float()[:, torch.arange(1100) // packed.group]
            / 2
        )
    assert bool(((packed.decode() - stored).abs() <= half * (1 + 1e-4) + 1e-6).all())
    if (
        isinstance(encoded.format, formats.Table)
        and encoded.format.bits <= 4
        and encoded.format.group != "tensor"
    ):
        assert torch.equal(pack_weight(encoded, "float").decode(), stored)


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        ("int4/g128", 0), ("int2/g32", 0), ("int8", 0), ("int3/g128", 0), ("mxfp4", 1 / 32), ("nf4/g64", 2 / 64),
        # a zero-point takes a byte
        ("int4/g128/asym", 0.5 / 128), ("int3/g64/asym", 0.625 / 64),
        # a table of bytes with two floats, where there were fp16 numbers
        ("table2", 4 / 1024), ("table3", 0), ("table4", -8 / 1024), ("table3+0.45%", 0),
    ],
)  # fmt: skip
def test_packing_takes_the_bytes_that_are_stored(spec, more):
    shape = (64, 1024)
    encoded = formats.get(spec).encode(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    packed = pack_weight(encoded)
    beside = 64 if "table" in packed.tensors and packed.kind == "levels" else 0
    assert packed.bytes - beside == encoded.bits // 8 + round(more * 64 * 1024)


def test_convolutions_and_vectors_are_matrices():
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    encoded = formats.get("int4").encode(weight)
    assert torch.equal(pack_weight(encoded).decode(), encoded.decode().reshape(6, 27))
    encoded = formats.get("int4").encode(weight.reshape(-1))
    assert pack_weight(encoded).shape == (1, 162)


def packed(spec: str) -> Packed:
    weight = torch.randn(18, 600, generator=torch.Generator().manual_seed(0))
    return pack_weight(formats.get(spec).encode(weight))


@pytest.mark.parametrize("spec", ["table3+1.0%", "int4/g128/asym", "nf4/g64"])
def test_damaged_tensors_are_refused(spec):
    good = packed(spec)
    again = from_settings(good.settings, good.tensors)
    assert torch.equal(again.decode(), good.decode())
    for name, one in good.tensors.items():
        for bad in (one[:-1].contiguous(), one[None].contiguous(), one.to(torch.float64)):
            with pytest.raises(ValueError, match=r"needs|pointers"):
                from_settings(good.settings, {**good.tensors, name: bad})
        with pytest.raises(ValueError, match="has the tensors"):
            from_settings(good.settings, {key: part for key, part in good.tensors.items() if key != name})
    with pytest.raises(ValueError, match="has the tensors"):
        from_settings(good.settings, {**good.tensors, "other": torch.zeros(1)})


@pytest.mark.parametrize(
    "change",
    [
        {"outliers.rows": lambda t: t.flip(0)},
        {"outliers.rows": lambda t: t + 1},
        {"outliers.rows": lambda t: torch.cat([t[:-1], t[-1:] + 5])},
        {"outliers.rows": lambda t: t.index_fill(0, torch.tensor([3]), -7)},
        {"outliers.columns": lambda t: torch.full_like(t.int(), 600).to(t.dtype)},
        {"outliers.columns": lambda t: torch.full(t.shape, -1, dtype=torch.int32)},
        {"outliers.columns": lambda t: t[:-1]},
        {"outliers.values": lambda t: t[:0]},
    ],
)
def test_outliers_outside_the_matrix_are_refused(change):
    good = packed("table3+1.0%")
    tensors = dict(good.tensors)
    for name, edit in change.items():
        tensors[name] = edit(tensors[name]).contiguous()
    with pytest.raises(ValueError, match=r"sparse rows need pointers|needs"):
        from_settings(good.settings, tensors)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_settings_that_do_not_fit_are_refused_or_fit(data):
    """No words make a weight that reads outside its tensors: what is accepted decodes."""
    good = packed(data.draw(st.sampled_from(["table3", "int4/g128"])))
    kind, *numbers = good.kind, *good.shape, good.bits, good.group, good.times, good.offset
    place = data.draw(st.integers(0, 5))
    names = str(sorted(good.tensors)).replace("'", '"')
    numbers[place] = data.draw(st.integers(-3, 40) | st.integers(-(2**70), 2**70))
    words = f'["{data.draw(st.sampled_from([kind, "table", "levels", "dense", "float-table", "x"]))}", {", ".join(map(str, numbers))}, {names}]'
    try:
        made = from_settings(words, good.tensors)
    except ValueError:
        return
    assert made.decode().shape == made.shape


@pytest.mark.parametrize("words", ["", "[]", "{}", '["levels", 1]', '["levels", 1, 2, 3, 4, "x", 6]', "null"])
def test_words_that_are_no_settings_are_refused(words):
    with pytest.raises(ValueError, match="these are no settings"):
        from_settings(words, {})


def test_activations_of_another_name_are_refused():
    with pytest.raises(ValueError, match="activations are int8, int16, float, got 'fp8'"):
        pack_weight(formats.get("int4").encode(torch.ones(1, 4)), "fp8")

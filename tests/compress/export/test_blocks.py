"""Encoded weights as ggml blocks, read back by the package gguf."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compression needs torch")
gguf = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")

from isoloss.compress import formats  # noqa: E402
from isoloss.compress.export.blocks import blocks, floats, smallest_float  # noqa: E402

MATCHES = {
    "int2/g256": "TQ2_0",
    "int2/g256/narrow": "TQ2_0",
    "int1/bipolar": "TQ2_0",
    "int2/g256/asym": "Q2_K",
    "int2/g32": "Q4_0",
    "int2/bipolar/g32": "Q4_0",
    "int3/g256": "Q3_K",
    "int3": "Q3_K",
    "int3/g32": "Q4_0",
    "int4/g32": "Q4_0",
    "int4/g128/narrow": "Q4_0",
    "int4/g256/asym": "Q4_K",
    "int4/asym": "Q4_K",
    "int4/g32/asym": "Q5_0",
    "int4/g32/asym/scale-m1": "Q4_1",
    "int5/g32": "Q5_0",
    "int5/g256/asym": "Q5_K",
    "int5/g32/asym/scale-m1": "Q5_1",
    "int6/tensor": "Q6_K",
    "int6/g64": "Q8_0",
    "int7/g32/asym": "Q8_0",
    "int8/g32": "Q8_0",
    "int8/scale-bf16": "Q8_0",
    "fixed2.2": "Q4_0",
    "mxfp4": "MXFP4",
    "fp4-e2m1/g64/scale-m1": "MXFP4",
    "fp16": "F16",
    "bf16": "BF16",
    "fp32": "F32",
}


def weight(columns=768, rows=5):
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    made[0] = 0
    made[1] *= 1e-3
    return made


def read(stored):
    return gguf.dequantize(stored.data, getattr(gguf.GGMLQuantizationType, stored.type))


@pytest.mark.parametrize("spec", MATCHES)
def test_a_type_holds_the_very_numbers(spec):
    encoded = formats.get(spec).encode(weight())
    stored = blocks(encoded)
    assert stored.type == MATCHES[spec]
    np.testing.assert_array_equal(read(stored).reshape(5, 768), encoded.decode().numpy())
    assert stored.data.nbytes * 8 == stored.bits * encoded.decode().numel()
    size, count = gguf.GGML_QUANT_SIZES[getattr(gguf.GGMLQuantizationType, stored.type)]
    assert stored.bits == 8 * count / size


def test_every_code_and_every_zero_point_comes_back():
    for bits, group in ((2, 256), (4, 256), (5, 256)):
        format = formats.Integer(bits, group, "asym")
        top = 2**bits
        zero = torch.arange(top)[:, None]
        grid = format.given((top, 256), torch.full((top, 1), 0.5), zero)
        codes = (torch.arange(256) % top).expand(top, 256)
        stored = blocks(grid.encoded(codes))
        assert stored.type == {2: "Q2_K", 4: "Q4_K", 5: "Q5_K"}[bits]
        np.testing.assert_array_equal(read(stored).reshape(top, 256), 0.5 * (codes - zero).numpy())
    for bits, columns, kind in (
        (3, 256, "Q3_K"),
        (4, 32, "Q4_0"),
        (5, 32, "Q5_0"),
        (6, 256, "Q6_K"),
        (8, 32, "Q8_0"),
    ):
        grid = formats.Integer(bits, columns).given((1, 4 * columns), torch.ones(1, 4))
        codes = (7 * torch.arange(4 * columns) % 2**bits)[None, :]
        stored = blocks(grid.encoded(codes))
        assert stored.type == kind
        np.testing.assert_array_equal(read(stored).reshape(1, -1), (codes - 2 ** (bits - 1)).numpy())


@pytest.mark.parametrize(
    ("spec", "columns", "why"),
    [
        ("table3", 768, "no type holds table3"),
        ("nf4", 768, "no type holds nf4"),
        ("int4/g32+1%", 768, "beside integers"),
        ("int4/g16", 768, "blocks of 32 columns do not fit into groups of 16"),
        ("int4", 100, "100 are no multiple"),
        ("int8/asym", 768, "zero-points"),
        ("int4/scale-fp32", 768, "no fp16 numbers"),
        ("nvfp4", 768, "blocks of 32"),
        ("fp4-e2m1/g32", 768, "powers of two"),
    ],
)
def test_what_no_type_holds_is_refused_with_what_would_do(spec, columns, why):
    encoded = formats.get(spec).encode(weight(columns))
    with pytest.raises(ValueError, match=why) as raised:
        blocks(encoded)
    assert "Those do: " in str(raised.value)


def test_decoded_numbers_take_the_smallest_float_that_holds_them():
    assert smallest_float(torch.tensor([1.5, 2.0])) == "fp16"
    assert smallest_float(torch.tensor([1.5, 2.0**100])) == "bf16"
    assert smallest_float(torch.tensor([1.5, 2.0**100, 1 + 2.0**-20])) == "fp32"
    values = torch.tensor([[1.5, -2.0]])
    np.testing.assert_array_equal(read(floats(values, "fp32")).reshape(1, 2), values.numpy())

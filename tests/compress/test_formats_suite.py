"""What holds for every format: sizes to the byte, names, shapes, files, chance by seed, refusals."""

from __future__ import annotations

import json
import struct

import pytest

torch = pytest.importorskip("torch")

from isoloss.compress import formats  # noqa: E402
from isoloss.compress.formats import Encoded, get  # noqa: E402

SPECS = [
    "int1/asym", "int1/bipolar", "int2", "int3/g64/mse", "int4/g128/asym", "int4/g7", "int5/narrow", "int6/tensor",
    "int7/g32/asym/mse2-20-0.8/scale-bf16", "int8/tensor/asym", "int8/scale-fp32", "int4/g32/scale-mx", "int4/g16/scale-m2",
    "int3/bipolar/mse", "int2/g16/asym/scale-nv", "int4/mse2.5-50-0.6",
    "fp8-e4m3", "fp8-e5m2/tensor", "fp8-e4m3-ieee/g64", "fp8-e3m4/g32/mse2.4-10-0.8", "fp6-e3m2", "fp6-e2m3/g16", "fp4-e2m1/g256/scale-m2",
    "fp4-e2m1/g16/scale-m1", "fp5-e2m2-finite-bias3", "fp8-e4m3/plain", "fp16-e5m10/plain", "fp12-e5m6/scale-fp32",
    "mxfp4", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp8-e4m3", "mxfp8-e5m2", "nvfp4",
    "nf4/g64", "nf4/channel/mse2-10-0.8/scale-fp32", "fixed3.5", "fixed1.9", "table1", "table3", "table4/g50", "table8/tensor",
    "table3/int8", "table2/g16/int8+2.5%", "table4/tensor/int8",
    "vq4-16", "vq3-300", "vq2-5", "fp32", "fp16", "bf16",
    "table3+2.5%", "int4/g32/asym+lr2", "fp4-e2m1/g16+10.0%+lr3:int8", "vq2-8+lr1:bf16", "vq2-8+5.0%",
]  # fmt: skip
SHAPES = [(6, 40), (3, 131), (5, 4, 3, 3), (77,), (1, 1), (40, 1)]


def normal(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("spec", SPECS)
def test_names_are_read_back(spec):
    format = get(spec)
    assert get(format.spec) == format
    assert hash(get(spec)) == hash(format)


def test_short_names_are_what_they_stand_for():
    for name, meant in formats.ALIASES.items():
        assert get(name) == get(meant)
        assert get(meant).spec == name
    assert get("int4/g128/asym").spec == "int4/g128/asym"
    assert get("int4/sym/channel/scale-fp16").spec == "int4"
    assert get(" int4/asym/g128 ") == get("int4/g128/asym")


@pytest.mark.parametrize("spec", SPECS)
def test_size_is_said_beforehand_and_shapes_come_back(spec):
    format = get(spec)
    for shape in SHAPES:
        weight = normal(shape)
        if "%" in spec and weight.numel() < 40:
            continue  # too few weights for one outlier
        encoded = format.encode(weight)
        assert encoded.shape == shape
        assert encoded.decode().shape == shape
        assert encoded.bits == format.size(shape)
        assert encoded.bits == sum(8 * t.numel() * t.element_size() for t in encoded.tensors().values())
        assert encoded.bits_per_weight == encoded.bits / weight.numel()
        assert bool(encoded.decode().isfinite().all())
        again = Encoded.from_tensors(spec, shape, encoded.tensors())
        assert torch.equal(again.decode(), encoded.decode())


def file_bytes(path):
    """Size of a safetensors file without its header."""
    with open(path, "rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
        names = json.loads(file.read(header))
    return path.stat().st_size - 8 - header, names


@pytest.mark.parametrize("spec", SPECS)
def test_bytes_said_are_bytes_on_disk(spec, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    encoded = get(spec).encode(normal((6, 75)))
    path = tmp_path / "weight.safetensors"
    safetensors.save_file(encoded.tensors(), path)
    size, _ = file_bytes(path)
    assert 8 * size == encoded.bits
    loaded = Encoded.from_tensors(spec, (6, 75), safetensors.load_file(path))
    assert torch.equal(loaded.decode(), encoded.decode())


@pytest.mark.parametrize("spec", SPECS)
def test_dtypes_and_strides_of_the_weight(spec):
    weight = normal((48, 6), dtype=torch.float16).T
    one = get(spec).encode(weight)
    assert torch.equal(one.decode(), get(spec).encode(weight.float().contiguous()).decode())
    assert one.decode(torch.float64).dtype == torch.float64
    half = get(spec).encode(weight.bfloat16())
    assert bool(half.decode().isfinite().all())
    parameter = torch.nn.Parameter(weight.float())
    assert not get(spec).encode(parameter).decode().requires_grad
    if isinstance(get(spec), formats.Coded):
        grid = get(spec).grid(parameter)
        assert torch.equal(grid.encode(parameter), grid.encode(weight))


@pytest.mark.parametrize("spec", SPECS)
def test_bad_weights_and_tensors_are_refused(spec):
    format = get(spec)
    for bad in (torch.nan, torch.inf):
        weight = normal((4, 12))
        weight[1, 2] = bad
        with pytest.raises(ValueError, match="finite numbers, got 1 NaN or infinite of 48"):
            format.encode(weight)
    with pytest.raises(ValueError, match="at least one number"):
        format.encode(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="at least one number and one dimension"):
        format.encode(torch.tensor(1.0))
    with pytest.raises(TypeError, match="needs floats, got torch"):
        format.encode(torch.ones(3, 4, dtype=torch.int64))
    tensors = format.encode(normal((8, 30))).tensors()
    name = next(iter(tensors))
    with pytest.raises(ValueError, match="stores"):
        Encoded.from_tensors(format, (8, 30), {key: t for key, t in tensors.items() if key != name})
    with pytest.raises(ValueError, match="needs"):
        Encoded.from_tensors(format, (8, 30), {**tensors, name: tensors[name][:-1]})
    with pytest.raises(ValueError, match="needs"):
        Encoded.from_tensors(format, (8, 30), {**tensors, name: tensors[name].double()})


@pytest.mark.parametrize("spec", ["int4/g8", "fp4-e2m1/g8", "fixed2.3", "bf16", "int3/bipolar"])
def test_chance_is_a_seed(spec):
    weight = normal((5, 24), dtype=torch.float64)

    def once(seed):
        generator = torch.Generator().manual_seed(seed)
        return get(spec).encode(weight, rounding="stochastic", generator=generator).decode()

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    low, high = (get(spec).encode(weight, rounding=mode).decode() for mode in ("down", "up"))
    assert bool(((once(1) == low) | (once(1) == high)).all())
    with pytest.raises(ValueError, match="needs a generator"):
        get(spec).encode(weight, rounding="coin")


@pytest.mark.parametrize("spec", ["int4", "fp8-e4m3", "table3", "nf4", "vq2-16"])
def test_importance_is_checked(spec):
    weight = normal((4, 10))
    for bad, words in [
        (torch.ones(9), "of a row"),
        (torch.ones(4, 9), "of a row"),
        (-torch.ones(10), "at least 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            get(spec).encode(weight, bad)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("int9", "2 to 8 bits"),
        ("int4/g0", "a group is"),
        ("int4/best", "'best' is no option of int4"),
        ("int4/asym/narrow", "'narrow' is no option"),
        ("int4/scale-int8", "scales are stored as"),
        ("fp8-e4m4", "are 9 bits, got fp8"),
        ("fp4-e2m1/asym", "'asym' is no option"),
        ("fp8-e4m3/plain/g32", "'g32' is no option"),
        ("float8", "no format named 'float8'"),
        ("table3/mse", "'mse' is no option"),
        ("int4+half", r"beside a format stands '\+P%'"),
        ("int4+0%", "above 0"),
        ("int4+lr0", "at least 1"),
        ("bf16/g8", "'g8' is no option"),
        ("", "no format named ''"),
    ],
)  # fmt: skip
def test_names_that_are_none(spec, words):
    with pytest.raises(ValueError, match=words):
        get(spec)


def test_codes_and_grids_are_of_coded_formats_alone():
    weight = normal((4, 10))
    for spec in ("bf16", "vq2-4", "int4+lr1"):
        with pytest.raises(TypeError, match="has no code per weight"):
            get(spec).encode(weight).codes()
        with pytest.raises(TypeError, match="has no code per weight"):
            get(spec).encode(weight).grid()


def test_bits_per_weight_of_the_sheet():
    """Effective bits: b + (16 + b)/G with zero-points, b + 16 * 2^b / n_in of tables, the published SqueezeLLM averages."""
    shape = (4096, 4096)
    n = 4096 * 4096
    assert get("int4/g128/asym").size(shape) / n == 4 + (16 + 4) / 128
    assert get("table3").size(shape) / n == pytest.approx(3.031, abs=5e-4)
    assert get("table4").size(shape) / n == 4.0625
    assert get("table3/int8").size((576, 576)) / 576**2 == 3 + (8 * 8 + 16) / 576
    assert get("mxfp4").size(shape) / n == 4.25
    assert get("nvfp4").size(shape) / n == pytest.approx(4.5, abs=1e-5)
    assert get("fp4-e2m1/g256+lr8").size(shape) / n == 4 + 16 / 256 + 16 * 8 * 2 / 4096
    assert get("vq8-256").size(shape) == n // 8 * 8 + 16 * 256 * 8
    sparse = round(0.0045 * n)
    assert get("table3+0.45%").size(shape) == get("table3").size(shape) + 32 * sparse + 32 * 4097

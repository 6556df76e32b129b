"""Floats with scales: the rules of the scales by exact arithmetic, MX and NVFP4, and the known order of formats."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from tests.oracles import formats as oracle

torch = pytest.importorskip("torch")

from isoloss.compress import formats  # noqa: E402
from isoloss.compress.formats import E2M1, E4M3, E5M2, Float, FloatType, Native, RangeSearch  # noqa: E402

RULES = ("fp16", "fp32", "m1", "m2", "mx", "nv")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uneven(rows=3, columns=22, seed=0):
    """Rows and groups of very different sizes, one group of zeros, powers of two among the largest."""
    weight = normal(rows, columns, seed=seed) * 2.0 ** torch.arange(columns).fmod(5).double()
    weight[0, :8] *= 1e-3
    weight[1, 8:16] = 0
    weight[2, 3], weight[2, 17] = 64.0, -0.125
    return weight


def scale_by_hand(reaches, top, rule):
    """Scales of one row; ``reaches`` are the largest sizes of its groups."""
    ideal = [r / top for r in reaches]
    if rule == "m1":
        return [2.0 ** math.ceil(math.log2(s)) if s else 1.0 for s in ideal]
    if rule == "mx":
        down = math.floor(math.log2(top))
        return [2.0 ** (math.floor(math.log2(r)) - down) if r else 1.0 for r in reaches]
    largest = float(torch.tensor(max(ideal)).float())
    return [largest / 2.0 ** math.ceil(math.log2(largest / s)) if s else largest for s in ideal]


@pytest.mark.parametrize("rule", ["m1", "m2", "mx"])
@pytest.mark.parametrize("type", [E2M1, E4M3, E5M2], ids=["e2m1", "e4m3", "e5m2"])
def test_powers_of_two_follow_their_rule(type, rule):
    weight = uneven()
    grid = Float(type, 8, rule).grid(weight)
    for i in range(3):
        reaches = [float(weight[i, a:b].abs().max()) for a, b in grid.groups]
        assert grid.scale[i].tolist() == pytest.approx(scale_by_hand(reaches, type.maximum, rule), rel=1e-12)
    ideal = torch.stack([weight[:, a:b].abs().amax(dim=1) for a, b in grid.groups], dim=1) / type.maximum
    some = ideal > 0
    if rule == "m1":  # nothing clipped, at most half the range unused
        assert bool((grid.scale >= ideal)[some].all())
        assert bool((grid.scale < 2 * ideal)[some].all())
    if rule == "m2":  # one real scale per row, at least the ideal halved
        assert bool((grid.scale <= ideal.float())[some].all())
        assert bool((grid.scale > ideal / 2)[some].all())
        ratio = grid.scale.amax(dim=1, keepdim=True) / grid.scale
        assert bool((torch.frexp(ratio).mantissa == 0.5).all())


def test_e8m0_bytes_are_those_of_torch():
    weight = uneven()
    encoded = Float(E2M1, 8, "mx").encode(weight)
    assert torch.equal(encoded.parts["scale"].view(torch.float8_e8m0fnu).float(), encoded.grid().scale)


def test_nvfp4_has_e4m3_scales_under_one_float32():
    weight = uneven().float()
    grid = formats.get("nvfp4").grid(weight)
    whole = float(weight.abs().max()) / (6 * 448)
    assert grid.parts["tensor_scale"].item() == pytest.approx(whole, rel=1e-6)
    for i in range(3):
        for k, (a, b) in enumerate(grid.groups):
            reach = float(weight[i, a:b].abs().max())
            stored = (
                torch.tensor(max(reach / 6 / whole, 2.0**-9) if reach else 1.0)
                .to(torch.float8_e4m3fn)
                .float()
            )
            assert float(grid.scale[i, k]) == pytest.approx(float(stored) * whole, rel=1e-6)
    assert float(grid.parts["scale"].view(torch.float8_e4m3fn).float().max()) == 448.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("type", [E2M1, E4M3, FloatType(3, 4, "finite")], ids=["e2m1", "e4m3", "e3m4"])
def test_values_are_scale_times_the_rounded_number(type, rule):
    weight = uneven(seed=3)
    grid = Float(type, 8, rule).grid(weight)
    numbers = oracle.float_numbers(type.exponent, type.mantissa, type.specials)
    for mode in ("nearest", "up", "down", "zero"):
        values = grid.decode(grid.encode(weight, rounding=mode), torch.float64)
        for i in range(3):
            for j in range(22):
                scale = grid.scale[i, grid.group_of(j)].item()
                wanted = oracle.round_to(weight[i, j].item() / scale, numbers, mode, type.mantissa)
                assert Fraction(values[i, j].item()) == pytest.approx(Fraction(scale) * wanted, rel=1e-15)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spec", ["fp4-e2m1", "fp6-e3m2", "fp8-e4m3", "fp8-e5m2", "fp12-e5m6", "fp3-e2m0"])
def test_rounding_again_changes_nothing(spec, rule):
    weight = uneven(seed=4).float()
    grid = formats.get(f"{spec}/g8/scale-{rule}").grid(weight)
    codes = grid.encode(weight)
    values = grid.decode(codes)
    assert torch.equal(grid.encode(values), codes)
    assert torch.equal(grid.encode(grid.decode(codes, torch.float64)), codes)


def test_fp4_times_a_power_of_two_is_an_fp8_number():
    """The claim behind m1 and m2: a shift, no multiplication, while the exponent is in range."""
    numbers = E2M1.values()
    for type, low, high in ((E4M3, -8, 6), (E5M2, -15, 13)):
        held = set(type.values().tolist())
        exact = [k for k in range(-30, 30) if set((numbers * 2.0**k).tolist()) <= held]
        assert exact == list(range(low, high + 1))


def test_a_cast_without_scales_is_the_native_cast():
    weight = normal(5, 30, dtype=torch.float32) * 100
    for spec, dtype in (("fp8-e4m3/plain", torch.float8_e4m3fn), ("fp8-e5m2/plain", torch.float8_e5m2)):
        encoded = formats.get(spec).encode(weight)
        assert torch.equal(encoded.decode(), weight.to(dtype).float())
        assert torch.equal(encoded.parts["codes"], weight.to(dtype).view(torch.uint8))
        assert encoded.bits_per_weight == 8
    for spec, dtype in (
        ("fp16-e5m10/plain", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ):
        assert torch.equal(formats.get(spec).encode(weight).decode(), weight.to(dtype).float())
    assert torch.equal(formats.get("fp32").encode(weight).decode(), weight)


def test_native_numbers_from_float64_are_rounded_once():
    weight = torch.tensor([[1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-8 + 2.0**-40]], dtype=torch.float64)
    assert Native("fp16").encode(weight).decode()[0, 0] == 1 + 2.0**-10
    assert weight.float().half()[0, 0] == 1.0
    assert Native("bf16").encode(weight).decode()[0, 1] == 1 + 2.0**-7
    assert Native("fp32").encode(weight, rounding="up").decode()[0, 0] == 1 + 2.0**-11 + 2.0**-23
    with pytest.raises(ValueError, match="fp16 ends at 65504, got 70000"):
        Native("fp16").encode(torch.tensor([70000.0]))


def best_sqnr(format, x, density, ranges):
    """Signal over noise in dB at the best range, for a density on a grid of x."""
    found = []
    for reach in ranges:
        grid = format.given(
            tuple(x.shape),
            torch.tensor([[reach / (format.top if hasattr(format, "top") else format.type.maximum)]]),
        )
        error = (grid.decode(grid.encode(x), torch.float64) - x).square()
        found.append(float((density * x.square()).sum() / (density * error).sum()))
    return 10 * math.log10(max(found))


def test_fp8_against_int8_as_the_analysis_says():
    """Best-range SQNR with all codes finite: N(0, 1) clipped at 10; INT8 of uniform numbers is 4 * 127.5^2."""
    x = torch.linspace(-10, 10, 20001, dtype=torch.float64)[None]
    gauss = torch.exp(-x.square() / 2)
    line = torch.linspace(-1, 1, 20001, dtype=torch.float64)[None]
    flat = torch.ones_like(line)
    types = {
        "int8": formats.Integer(8, "tensor", "narrow", "fp32"),
        **{f"e{e}m{7 - e}": Float(FloatType(e, 7 - e, "finite"), "tensor", "fp32") for e in (2, 3, 4, 5)},
    }
    wide = [float(r) for r in torch.linspace(3, 6, 31)] + [float(2.0**k) for k in torch.linspace(3, 8, 6)]
    near = [float(r) for r in torch.linspace(0.98, 1.02, 9)]
    gaussian = {name: best_sqnr(format, x, gauss, wide) for name, format in types.items()}
    uniform = {name: best_sqnr(format, line, flat, near) for name, format in types.items()}
    assert gaussian == pytest.approx(
        {"int8": 40.54, "e2m5": 42.66, "e3m4": 37.56, "e4m3": 31.56, "e5m2": 25.58}, abs=0.08
    )
    assert uniform["int8"] == pytest.approx(10 * math.log10(4 * 127.5**2), abs=0.01)
    assert sorted(uniform, key=uniform.get) == ["e5m2", "e4m3", "e3m4", "e2m5", "int8"]


def test_the_search_never_loses_and_reads_importance():
    weight = normal(8, 64, dtype=torch.float32)
    weight[:, 5] = 40.0  # one column of large numbers that hardly matter
    counts = torch.ones(64)
    counts[5] = 1e-6
    for spec in ("fp4-e2m1", "fp8-e3m4", "nf4/channel", "int4"):
        plain, searched = formats.get(spec), formats.get(f"{spec}/mse2")

        def loss(encoded):
            return float((counts * (encoded.decode() - weight).square()).sum())

        assert loss(searched.encode(weight, counts)) < 0.7 * loss(plain.encode(weight))
        row = searched.encode(weight, counts.expand(8, 64))
        assert torch.equal(row.decode(), searched.encode(weight, counts).decode())


def test_what_is_refused():
    for bad, words in [
        (dict(type=FloatType(8, 10)), "at most 16 bits, got 19"),
        (dict(type=E4M3, group=0), "a group is"),
        (dict(type=E4M3, scales="int8"), "scales are stored as"),
        (dict(type=E4M3, scales=None), "Set group='tensor'"),
        (dict(type=E4M3, group="tensor", scales=None, search=RangeSearch()), "no range to search"),
    ]:
        with pytest.raises(ValueError, match=words):
            Float(**bad)
    with pytest.raises(ValueError, match="has no scales"):
        formats.get("fp8-e4m3/plain").given((2, 2), torch.ones(1, 1))
    with pytest.raises(ValueError, match="numbers of the machine are"):
        Native("fp8")

"""Float types, fixed point and rounding against native types, exact enumeration and the laws of chance."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from tests.oracles import formats as oracle

torch = pytest.importorskip("torch")

from isoloss.compress.formats import (  # noqa: E402
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FP16,
    ROUNDINGS,
    FloatType,
    round_fixed,
    round_float,
    round_whole,
)
from isoloss.compress.formats.number_types import codes_of_floats  # noqa: E402

NATIVE = {
    "fp16": (FP16, torch.float16, torch.int16),
    "bf16": (BF16, torch.bfloat16, torch.int16),
    "e4m3": (E4M3, torch.float8_e4m3fn, torch.uint8),
    "e5m2": (E5M2, torch.float8_e5m2, torch.uint8),
}
DETERMINISTIC = ("nearest", "up", "down", "zero")
SMALL = [
    E2M1, E2M3, E3M2, E4M3, E5M2, FloatType(3, 4, "finite"), FloatType(2, 5, "finite"), FloatType(4, 3),
    FloatType(1, 3, "finite"), FloatType(3, 0, "finite"), FloatType(3, 3, "fn"), FloatType(4, 2, "finite", 12),
    FloatType(8, 2), FloatType(7, 3, "finite"),
]  # fmt: skip


def identical(a, b):
    """Bit for bit, with any NaN equal to any other."""
    assert a.dtype == b.dtype
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    same = (a.view(integers) == b.view(integers)) | (a.isnan() & b.isnan())
    assert bool(same.all()), (a[~same][:5], b[~same][:5])


def all_codes(dtype, integers):
    bits = 8 * torch.empty(0, dtype=dtype).element_size()
    return torch.arange(2**bits).to(integers).view(dtype)


@pytest.mark.parametrize("name", NATIVE)
def test_every_code_of_a_native_type_is_a_fixed_point_and_means_the_same(name):
    type, dtype, integers = NATIVE[name]
    native = all_codes(dtype, integers).float()
    identical(type.values().float(), native)
    identical(round_float(native, type, overflow="ieee" if type.specials != "finite" else "saturate"), native)
    finite = native.isfinite()
    codes = torch.arange(len(native))[finite].int()
    assert torch.equal(codes_of_floats(native[finite], type), codes)
    assert type.maximum == float(native[finite].max())
    assert type.smallest == float(native[native > 0].min())


def hard_numbers(type, dtype, integers):
    """Every midpoint of neighbours with its own neighbours, and random bits."""
    numbers = type.values().float()
    numbers = numbers[numbers.isfinite()].unique()
    past = numbers[-1] + (numbers[-1] - numbers[-2]) / 2  # where IEEE overflow begins
    middle = torch.cat([(numbers[1:] + numbers[:-1]) / 2, past[None], -past[None]])
    near = [torch.nextafter(middle, torch.full_like(middle, side)) for side in (torch.inf, -torch.inf)]
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator).to(torch.int32).view(torch.float32)
    spread = torch.randn(100_000, generator=generator) * type.maximum**0.5
    return torch.cat(
        [numbers, middle, *near, bits, spread, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])]
    )


@pytest.mark.parametrize("name", ["fp16", "bf16", "e5m2"])
def test_nearest_is_the_native_cast(name):
    type, dtype, integers = NATIVE[name]
    x = hard_numbers(type, dtype, integers)
    identical(round_float(x, type, overflow="ieee"), x.to(dtype).float())


def test_nearest_is_the_native_cast_of_e4m3_whatever_it_does_on_overflow():
    x = hard_numbers(*NATIVE["e4m3"])
    native = x.to(torch.float8_e4m3fn).float()
    saturates = not bool(torch.tensor(1e6).to(torch.float8_e4m3fn).isnan())
    identical(round_float(x, E4M3, overflow="saturate" if saturates else "ieee"), native)
    assert round_float(torch.tensor([464.0, 464.1, -1e9, torch.inf]), E4M3, overflow="ieee").isnan().tolist() == [
        False, True, True, True
    ]  # fmt: skip


@pytest.mark.parametrize("type", SMALL, ids=lambda t: f"e{t.exponent}m{t.mantissa}{t.specials}{t.bias or ''}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_types_are_enumerated_exactly(type, dtype):
    numbers = oracle.float_numbers(type.exponent, type.mantissa, type.specials, type.bias)
    values = type.values()[: 2 ** (type.bits - 1)]
    assert [float(n) for n in numbers] == values[values.isfinite()].tolist()
    generator = torch.Generator().manual_seed(2)
    middle = torch.tensor([float((a + b) / 2) for a, b in pairwise(numbers)], dtype=dtype)
    x = torch.randn(100, generator=generator, dtype=dtype) * float(numbers[len(numbers) // 2])
    tiny = torch.randn(20, generator=generator, dtype=dtype) * float(numbers[1])
    x = torch.cat([x, tiny, middle[:40], -middle[-20:], torch.tensor([1e30, -1e30], dtype=dtype)])
    for mode in DETERMINISTIC:
        wanted = [float(oracle.round_to(v, numbers, mode, type.mantissa)) for v in x.tolist()]
        assert round_float(x, type, mode=mode).tolist() == wanted


def test_a_float64_is_rounded_once():
    once = 1 + 2.0**-4 + 2.0**-40  # float32 makes it the tie of 1 and 1.125, which goes to 1
    x = torch.tensor([once, -once], dtype=torch.float64)
    assert round_float(x, E4M3).tolist() == [1.125, -1.125]
    assert round_float(x.float(), E4M3).tolist() == [1.0, -1.0]
    wide = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert round_float(wide, BF16).tolist() == [1 + 2.0**-7]
    assert codes_of_floats(x, E4M3).tolist() == [57, 185]


def test_overflow_goes_where_the_mode_says():
    x = torch.tensor([70000.0, -70000.0, torch.inf, -torch.inf, 65519.9])
    inf = torch.inf
    wanted = {
        "nearest": [inf, -inf, inf, -inf, 65504.0],
        "zero": [65504.0, -65504.0, inf, -inf, 65504.0],
        "up": [inf, -65504.0, inf, -inf, inf],
        "down": [65504.0, -inf, inf, -inf, 65504.0],
    }
    for mode, answer in wanted.items():
        assert round_float(x, FP16, mode=mode, overflow="ieee").tolist() == answer
        assert bool((round_float(x, FP16, mode=mode).abs() == 65504.0).all())
    assert round_float(torch.tensor([torch.nan]), E2M1).isnan().all()


def test_without_subnormals_what_rounds_below_the_smallest_normal_is_a_signed_zero():
    x = torch.tensor([2.0**-6, 0.97 * 2.0**-6, 0.9 * 2.0**-6, -0.9 * 2.0**-6])
    y = round_float(x, E4M3, subnormals=False)
    assert y.tolist() == [2.0**-6, 2.0**-6, 0.0, 0.0]
    assert torch.signbit(y).tolist() == [False, False, False, True]


@pytest.mark.parametrize("type", [E4M3, BF16, E2M1], ids=["e4m3", "bf16", "e2m1"])
def test_zero_keeps_its_sign_in_every_mode(type):
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    for mode in ROUNDINGS:
        y = round_float(x, type, mode=mode, generator=torch.Generator().manual_seed(0))
        assert torch.signbit(y).tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dtype_and_shape_stay_and_the_input_too(dtype):
    x = torch.linspace(-3, 3, 24).reshape(2, 3, 4).to(dtype)
    before = x.clone()
    y = round_float(x.transpose(0, 2), E2M1)
    assert y.dtype == dtype
    assert y.shape == (4, 3, 2)
    assert torch.equal(x, before)
    assert torch.equal(y, round_float(x, E2M1).transpose(0, 2))


def within(share, truth, draws):
    """Four standard errors of a share."""
    return abs(share - truth) < 4 * (truth * (1 - truth) / draws) ** 0.5


@pytest.mark.parametrize("x", [1.03, -1.03, 0.0021, -3e-4, 5.9, 300.0, 447.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chance_has_the_right_odds(x, dtype):
    draws = 20_000
    many = torch.full((draws,), x, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    low, high = (round_float(many[:1], E4M3, mode=mode).item() for mode in ("down", "up"))
    assert low < x < high
    fair = round_float(many, E4M3, mode="stochastic", generator=generator)
    assert set(fair.tolist()) <= {low, high}
    odds = (x - low) / (high - low)
    assert within((fair == high).double().mean().item(), odds, draws)
    error = 4 * (high - low) * (odds * (1 - odds) / draws) ** 0.5
    assert abs(fair.double().mean().item() - many[0].item()) < error + 1e-6 * abs(x)
    coin = round_float(many, E4M3, mode="coin", generator=generator)
    assert set(coin.tolist()) == {low, high}
    assert within((coin == high).double().mean().item(), 0.5, draws)


def test_exact_numbers_stay_under_chance_and_seeds_repeat():
    exact = E4M3.values().float()
    exact = exact[exact.isfinite()]
    for mode in ("stochastic", "coin"):
        generator = torch.Generator().manual_seed(4)
        identical(round_float(exact, E4M3, mode=mode, generator=generator), exact)
        x = torch.randn(100, generator=generator)
        a, b = (round_float(x, E4M3, mode=mode, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(a, b)
        with pytest.raises(ValueError, match="needs a generator"):
            round_float(x, E4M3, mode=mode)


@pytest.mark.parametrize(("integer", "fraction"), [(1, 3), (3, 5), (8, 0), (2, -1), (10, -6)])
def test_fixed_point_is_enumerated_exactly(integer, fraction):
    step = Fraction(1, 2) ** fraction
    low, high = -(Fraction(2) ** (integer - 1)), Fraction(2) ** (integer - 1) - step
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(200, generator=generator, dtype=torch.float64) * float(high)
    x = torch.cat([x, (torch.arange(-9, 9) + 0.5).double() * float(step)])
    for mode in DETERMINISTIC:
        wanted = [
            float(min(max(oracle.whole(Fraction(v) / step, mode) * step, low), high)) for v in x.tolist()
        ]
        assert round_fixed(x, integer, fraction, mode=mode).tolist() == wanted


def test_fixed_point_under_chance_has_the_mean_of_its_input():
    generator = torch.Generator().manual_seed(7)
    x = torch.linspace(-1.9, 1.9, 9)
    many = round_fixed(x.expand(20_000, 9), 2, 2, mode="stochastic", generator=generator).double()
    error = 0.25 * (0.25 / 20_000) ** 0.5
    assert bool(((many.mean(dim=0) - x.double().clamp(max=1.75)).abs() < 4 * error + 1e-6).all())


def test_round_whole_by_hand():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.2, -0.2, 3.0])
    assert round_whole(x).tolist() == [0, 2, 2, 0, -2, 0, 0, 3]
    assert round_whole(x, "up").tolist() == [1, 2, 3, 0, -1, 1, 0, 3]
    assert round_whole(x, "down").tolist() == [0, 1, 2, -1, -2, 0, -1, 3]
    assert round_whole(x, "zero").tolist() == [0, 1, 2, 0, -1, 0, 0, 3]


def test_what_is_refused():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="no rounding named 'best'"):
        round_whole(x, "best")
    with pytest.raises(ValueError, match="no inf and no NaN to overflow to"):
        round_float(x, E2M1, overflow="ieee")
    with pytest.raises(ValueError, match="'saturate' or 'ieee', got 'wrap'"):
        round_float(x, E4M3, overflow="wrap")
    with pytest.raises(TypeError, match=r"needs floats, got torch\.int64"):
        round_float(torch.ones(3, dtype=torch.int64), E4M3)
    with pytest.raises(ValueError, match="at least one bit"):
        round_fixed(x, 1, -1)
    for bad, words in [
        (dict(exponent=9, mantissa=1), "1 to 8 exponent"),
        (dict(exponent=0, mantissa=1), "1 to 8 exponent"),
        (dict(exponent=4, mantissa=24), "0 to 23 mantissa"),
        (dict(exponent=1, mantissa=2), "no code to spare"),
        (dict(exponent=4, mantissa=0, specials="fn"), "no code to spare"),
        (dict(exponent=8, mantissa=3, bias=200), "exponents within float32"),
        (dict(exponent=4, mantissa=3, specials="none"), "specials are"),
    ]:
        with pytest.raises(ValueError, match=words):
            FloatType(**bad)
    with pytest.raises(ValueError, match="at most 16 bits, got 20"):
        FloatType(8, 11).values()

"""Integer formats against exact arithmetic, one number at a time, and against what theory says of their error."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import formats as oracle

torch = pytest.importorskip("torch")

from isoloss.compress.formats import ROUNDINGS, Fixed, Integer, RangeSearch  # noqa: E402

KINDS = [(bits, zero) for zero in ("sym", "narrow", "asym", "bipolar") for bits in range(1, 9)]
KINDS = [(bits, zero) for bits, zero in KINDS if bits > 1 or zero in ("asym", "bipolar")]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def level_of(x, bits, zero, scale, point, mode):
    """The sheet's formulas in fractions: (code from 0, value)."""
    v = Fraction(x) / scale
    if zero == "asym":
        code = min(max(oracle.whole(v, mode) + point, 0), 2**bits - 1)
        return code, scale * (code - point)
    if zero == "bipolar":
        top = 2**bits - 1
        u = oracle.whole(v / 2 + Fraction(top, 2) + Fraction(1, 2), "down") if mode == "nearest" else oracle.whole(
            (v + top) / 2, mode
        )  # fmt: skip
        code = min(max(u, 0), top)
        return code, scale * (2 * code - top)
    low = -(2 ** (bits - 1)) + (zero == "narrow")
    level = min(max(oracle.whole(v, mode), low), 2 ** (bits - 1) - 1)
    return level + 2 ** (bits - 1), scale * level


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_codes_and_values_are_the_formulas(bits, zero):
    weight = normal(3, 11, seed=bits)
    weight[0, 0], weight[1, 3] = 9.0, 0.0
    grid = Integer(bits, 4, zero, "fp32").grid(weight)
    for mode in ("nearest", "up", "down", "zero"):
        codes = grid.encode(weight, rounding=mode)
        values = grid.decode(codes, torch.float64)
        for i in range(3):
            for j in range(11):
                k = j // 4
                scale = Fraction(grid.scale[i, k].item())
                point = 0 if grid.zero is None else int(grid.zero[i, k])
                code, value = level_of(weight[i, j].item(), bits, zero, scale, point, mode)
                assert codes[i, j] == code
                assert values[i, j].item() == float(value)


@pytest.mark.parametrize(("bits", "zero"), KINDS)
@pytest.mark.parametrize("group", ["tensor", "channel", 5])
def test_the_scale_covers_the_range_and_the_error_is_half_a_step(bits, zero, group):
    weight = normal(4, 13, seed=bits + 20)
    grid = Integer(bits, group, zero, "fp32").grid(weight)
    step, spans = grid.spread(grid.scale.double()), []
    for start, stop in grid.groups if group != "tensor" else ((0, 13),):
        part = weight[:, start:stop]
        low, high = (part.min(), part.max()) if group == "tensor" else torch.aminmax(part, dim=1)
        if zero == "asym":
            span = (high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 1)
        elif zero == "bipolar":
            size = torch.maximum(-low, high) / (2**bits - 1)
            span = size if bits > 1 else part.abs().mean(**({} if group == "tensor" else {"dim": 1}))
        else:
            span = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
        spans.append(span.reshape(-1))
    assert torch.allclose(grid.scale.double(), torch.stack(spans, dim=1), rtol=1e-6)
    values = grid.decode(grid.encode(weight), torch.float64)
    cell = step * (2 if zero == "bipolar" else 1)
    every = torch.arange(2**bits)[:, None, None].expand(-1, 4, 13)
    ends = torch.stack([grid.decode(codes, torch.float64) for codes in (every[0], every[-1])])
    inside = (weight >= ends[0] - cell / 2) & (weight <= ends[1] + cell / 2)
    assert bool(((weight - values).abs() <= cell / 2 * (1 + 1e-12))[inside].all())
    # and no code is nearer, in range or out of it
    all_values = torch.stack([grid.decode(codes, torch.float64) for codes in every.unbind()])
    best = (all_values - weight).abs().min(dim=0).values
    if zero == "narrow":
        best = (all_values[1:] - weight).abs().min(dim=0).values
    assert torch.allclose((weight - values).abs(), best, atol=1e-12)


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_rounding_again_changes_nothing(bits, zero):
    weight = normal(6, 33, seed=bits)
    grid = Integer(bits, 8, zero).grid(weight)
    codes = grid.encode(weight)
    values = grid.decode(codes, torch.float64)
    for mode in ROUNDINGS:
        generator = torch.Generator().manual_seed(0)
        again = grid.encode(values, rounding=mode, generator=generator)
        assert torch.equal(again, codes), mode


@pytest.mark.parametrize("zero", ["sym", "asym"])
def test_uniform_numbers_lose_a_twelfth_of_the_squared_step(zero):
    weight = torch.rand(1, 400_000, generator=torch.Generator().manual_seed(1)) * 2 - 1
    grid = Integer(6, "tensor", zero, "fp32").grid(weight)
    error = (grid.decode(grid.encode(weight)) - weight).double().square()
    truth = float(grid.scale) ** 2 / 12
    assert abs(float(error.mean()) - truth) < 4 * float(error.std()) / 400_000**0.5


def test_one_bipolar_bit_has_the_least_squares_scale():
    weight, counts = normal(5, 40), normal(5, 40, seed=3).abs()
    for importance in (None, counts):
        grid = Integer(1, "channel", "bipolar", "fp32").grid(weight, importance)
        w = torch.ones_like(weight) if importance is None else importance
        closed = (w * weight.abs()).sum(dim=1) / w.sum(dim=1)
        assert torch.allclose(grid.scale[:, 0].double(), closed, rtol=1e-6)

        def loss(s, w=w):
            return float((w * (weight - s[:, None] * weight.sign()).square()).sum())

        assert all(loss(closed) <= loss(closed * f) for f in (0.97, 0.99, 1.01, 1.03))
    assert Integer(1, "tensor", "bipolar").encode(torch.tensor([0.0, 2.0, -1.0])).decode().tolist() == [
        1,
        1,
        -1,
    ]


def test_groups_of_zeros_decode_to_zeros():
    weight = torch.zeros(3, 10)
    weight[1, :4] = torch.tensor([0.5, -1.0, 0.25, 2.0])
    for bits, zero in KINDS:
        for scales in ("fp16", "fp32", "bf16"):
            decoded = Integer(bits, 5, zero, scales).encode(weight).decode()
            assert bool((decoded[[0, 2]] == 0).all())
            assert bool((decoded[1, 5:] == 0).all())


def test_zero_is_exact_with_a_zero_point():
    weight = normal(4, 30) + 5
    weight[:, 7] = 0
    for bits in range(1, 9):
        assert bool((Integer(bits, 10, "asym").encode(weight).decode()[:, 7] == 0).all())


def search_by_hand(weight, bits, zero, power, importance):
    """GPTQ's loop for one row, in plain Python, scales unrounded."""
    best, chosen = None, None
    for k in range(80):
        p = 1 - k / 100
        low, high = p * min(min(weight), 0.0), p * max(max(weight), 0.0)
        if zero == "sym":
            scale, point = max(-low, high) / (2 ** (bits - 1) - 1), 2 ** (bits - 1)
        else:
            scale = (high - low) / (2**bits - 1)
            point = round(-low / scale)
        loss = 0.0
        for x, m in zip(weight, importance, strict=True):
            q = min(max(round(x / scale) + point, 0), 2**bits - 1)
            loss += m * abs(x - scale * (q - point)) ** power
        if best is None or loss < best * (1 - 1e-9):
            best, chosen = loss, p
    return best, chosen


@pytest.mark.parametrize("zero", ["sym", "asym"])
@pytest.mark.parametrize("power", [2.4, 2.0])
def test_the_search_is_the_published_loop(zero, power):
    weight, counts = normal(3, 25, seed=5), normal(3, 25, seed=6).square()
    for importance in (None, counts):
        format = Integer(3, 10, zero, "fp32", RangeSearch(power))
        grid = format.grid(weight, importance)
        error = (grid.decode(grid.encode(weight), torch.float64) - weight).abs() ** power
        weights = torch.ones_like(weight) if importance is None else importance
        for i in range(3):
            for k, (start, stop) in enumerate(grid.groups):
                row, count = weight[i, start:stop].tolist(), weights[i, start:stop].tolist()
                best, p = search_by_hand(row, 3, zero, power, count)
                found = float((error * weights)[i, start:stop].sum())
                assert found == pytest.approx(best, rel=1e-4)
                span = max(map(abs, row)) / 3 if zero == "sym" else (max(*row, 0) - min(*row, 0)) / 7
                assert float(grid.scale[i, k]) == pytest.approx(p * span, rel=1e-5)


def test_the_search_of_a_whole_tensor_does_not_depend_on_blocks(monkeypatch):
    from isoloss.compress.formats import ranges

    weight = normal(64, 32)
    format = Integer(3, "tensor", "sym", "fp16", RangeSearch())
    whole = format.grid(weight).scale
    monkeypatch.setattr(ranges, "_BLOCK", 100)
    assert torch.equal(format.grid(weight).scale, whole)
    flat = Integer(3, "channel", "sym", "fp16", RangeSearch()).grid(weight.reshape(1, -1)).scale
    assert torch.equal(flat, whole)


def test_scales_of_ones_own_are_rounded_to_what_is_stored():
    scale = torch.tensor([[0.1, 0.3], [1.0, 2.0**-30]])
    grid = Integer(4, 3, "asym").given((2, 5), scale, torch.tensor([[8, 0], [15, 3]]))
    assert torch.equal(grid.scale[0], scale[0].half().float())
    assert float(grid.scale[1, 1]) == 2.0**-24  # the smallest there is
    assert grid.zero.tolist() == [[8, 0], [15, 3]]
    assert torch.equal(
        Integer(4).given((3, 2, 2), torch.tensor([0.5, 1, 2])).scale[:, 0], torch.tensor([0.5, 1, 2])
    )
    exact = torch.rand(2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Integer(4, 3, "sym", "fp32").given((2, 5), exact).scale, exact)
    again = grid.encoded(torch.full((2, 5), 9, dtype=torch.uint8)).grid()
    assert torch.equal(again.scale, grid.scale)
    assert torch.equal(again.zero, grid.zero)
    for bad, words in [
        (dict(scale=scale), "needs zero-points"),
        (dict(scale=scale[:, :1], zero=scale[:, :1]), r"need the shape \(2, 2\), got \(2, 1\)"),
        (dict(scale=-scale, zero=scale), "at least 0"),
        (dict(scale=scale * torch.nan, zero=scale), "finite"),
        (dict(scale=scale * 1e6, zero=scale), "Use bf16 or fp32 scales"),
    ]:
        with pytest.raises(ValueError, match=words):
            Integer(4, 3, "asym").given((2, 5), **bad)
    with pytest.raises(ValueError, match="has no zero-points"):
        Integer(4, 3).given((2, 5), scale, scale)


def test_relaxed_codes_have_a_gradient():
    weight = normal(3, 10, dtype=torch.float32)
    for format in (Integer(4, 4, "asym"), Integer(4, 4), Integer(4), Integer(2, 4, "bipolar"), Fixed(2, 3)):
        grid = format.grid(weight)
        low = grid.encode(weight, rounding="down")
        h = torch.full(weight.shape, 0.5, requires_grad=True)
        grid.decode((low + h).clamp(0, 2**format.bits - 1)).sum().backward()
        step = torch.tensor(0.125) if isinstance(format, Fixed) else grid.spread(grid.scale)
        step = 2 * step if getattr(format, "zero", "") == "bipolar" else step
        free = low < 2**format.bits - 1
        assert torch.allclose(h.grad[free], step.expand(weight.shape)[free])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5), st.integers(1, 40), st.sampled_from(KINDS), st.sampled_from(["tensor", "channel", 1, 3, 8, 64]),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_shape_and_group(rows, columns, kind, group, seed):
    weight = normal(rows, columns, seed=seed, dtype=torch.float32)
    encoded = Integer(kind[0], group, kind[1]).encode(weight)
    grid, codes = encoded.grid(), encoded.codes()
    values = torch.cat([grid.group(k).decode(codes[:, a:b]) for k, (a, b) in enumerate(grid.groups)], dim=1)
    assert torch.equal(values, encoded.decode())
    columnwise = torch.stack(
        [grid.group(grid.group_of(j)).encode(weight[:, j]) for j in range(columns)], dim=1
    )
    assert torch.equal(columnwise, codes)
    assert torch.equal(grid.encode(weight), codes)


def test_refit_chooses_one_group_anew_and_holds_the_others():
    weight, other = normal(4, 10), 3 * normal(4, 4, seed=9)
    for scales in ("fp16", "m1", "m2", "mx", "nv"):
        for zero in ("sym", "asym"):
            format = Integer(4, 4, zero, scales)
            grid = format.grid(weight)
            new = grid.refit(1, other)
            assert torch.equal(new.scale[:, [0, 2]], grid.scale[:, [0, 2]])
            alone = format.grid(torch.cat([weight[:, :4], other, weight[:, 8:]], dim=1))
            if scales in ("fp16", "m1", "mx"):
                assert torch.equal(new.scale, alone.scale)
                assert zero == "sym" or torch.equal(new.zero, alone.zero)
            assert not torch.equal(new.scale[:, 1], grid.scale[:, 1])
    with pytest.raises(ValueError, match=r"group 2 needs values of shape \(4, 2\), got \(4, 4\)"):
        grid.refit(2, other)


def test_what_is_refused():
    for bad, words in [
        (dict(bits=9), "2 to 8 bits, got 9"),
        (dict(bits=1), "2 to 8 bits, got 1"),
        (dict(bits=0, zero="asym"), "1 to 8 bits, got 0"),
        (dict(bits=4, zero="best"), "zero is sym"),
        (dict(bits=4, group=0), "a group is"),
        (dict(bits=4, group="row"), "a group is"),
        (dict(bits=4, scales="fp8"), "scales are stored as fp16, bf16"),
        (dict(bits=1, zero="bipolar", search=RangeSearch()), "closed form"),
    ]:
        with pytest.raises(ValueError, match=words):
            Integer(**bad)
    with pytest.raises(ValueError, match="power > 0"):
        RangeSearch(0)
    with pytest.raises(ValueError, match="fixed point needs 1 to 16 bits"):
        Fixed(10, 7)
    with pytest.raises(ValueError, match=r"a scale stored as fp16 needs 7.6e-06"):
        Integer(8).encode(torch.full((2, 2), 1e-8))
    assert Integer(8, scales="bf16").encode(torch.full((2, 2), 1e-8)).decode()[0, 0] == pytest.approx(
        1e-8, rel=0.01
    )
    grid = Integer(4, 4).grid(normal(3, 8))
    with pytest.raises(ValueError, match=r"needs codes of shape \(3, 8\)"):
        grid.encoded(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="codes of 4 bits need 0 to 15, got 0 to 16"):
        grid.encoded(torch.arange(24).reshape(3, 8).clamp(max=16))
    with pytest.raises(ValueError, match=r"needs the shape \(3, 8\), got \(3, 4\)"):
        grid.encode(normal(3, 4))
    with pytest.raises(TypeError, match="int4/g4 has no table"):
        grid.table  # noqa: B018

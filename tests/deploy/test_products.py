"""Kernels against PyTorch, to the last bit where numbers are whole, and both against plain sums within their bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss import native
from isoloss.compress import formats
from isoloss.deploy import products, reference
from isoloss.deploy.packing import from_settings, pack_weight
from isoloss.native import products as kernels
from isoloss.native.runs import group_runs, table_runs

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.status()))
SETS = native.status().sets
SPECS = [
    "table1", "table2", "table3", "table4", "table5", "table6", "table3/g512", "table2/g100", "table3+2.0%",
    "table4/tensor", "int4/g128", "int4/g128/asym", "int3/g64/asym", "int2/g32", "int8", "int5/tensor", "int6/g50",
    "int7/narrow", "int4/bipolar", "int1/bipolar", "nf4/g64", "mxfp4", "fixed3.5", "int4/g40+2.0%",
]  # fmt: skip


def drawn(data: st.DataObject, spec: str):
    rows = data.draw(st.integers(1, 40), "rows")
    columns = data.draw(st.integers(1, 80) | st.sampled_from([127, 511, 512, 513, 576, 1100]), "columns")
    tokens = data.draw(st.integers(1, 18), "tokens")
    make = torch.Generator().manual_seed(data.draw(st.integers(0, 999), "seed"))
    weight = torch.randn(rows, columns, generator=make)
    if data.draw(st.booleans(), "zero rows"):
        weight[::2] = 0
    if "+" in spec and rows * columns < 50:
        spec = spec.partition("+")[0]
    x = torch.randn(tokens, columns, generator=make) * 10.0 ** data.draw(st.integers(-3, 3), "size")
    if data.draw(st.booleans(), "an odd token"):
        x[0] = data.draw(st.sampled_from([0.0, 1e-42, 1.0, 3e38]), "all")
    return formats.get(spec).encode(weight), x


@needs_native
@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_kernels_give_the_bits_of_the_reference(spec, data):
    encoded, x = drawn(data, spec)
    activations = data.draw(st.sampled_from(["int8", "int16", "float"]), "activations")
    packed = pack_weight(encoded, activations)
    wanted = reference.product(packed, x, activations)
    whole = packed.kind in ("table", "levels") and "outliers.values" not in packed.tensors
    bound = reference.bound(packed, x, activations)
    exact = (x.double() @ encoded.decode(torch.float64).reshape(packed.shape).T).nan_to_num()
    for name in SETS:
        got = products.product(packed, x, activations, 1, name)
        if whole:
            assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
        inside = (got.double() - exact).abs() <= bound
        assert bool((inside | ~torch.isfinite(got) | ~torch.isfinite(bound)).all())


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "runs", [table_runs(1100, 600), group_runs(1100, 100), table_runs(5, 5), group_runs(1, 1)]
)
def test_activations_are_rounded_alike_and_to_half_a_step(runs, parts):
    x = torch.randn(7, runs.columns, generator=torch.Generator().manual_seed(0))
    x[1] = 0
    x[2] *= 1e-41
    x[3] *= 1e36
    x[4, 0], x[5, -1] = torch.nan, torch.inf
    made = reference.rounded(x, runs, parts)
    for name in SETS:
        own = kernels.rounded(x.numpy(), runs, parts, name)
        for field in ("codes", "scale", "sum", "segment_sum"):
            wanted, got = getattr(made, field).numpy(), getattr(own, field)
            assert got.dtype == wanted.dtype
            assert np.array_equal(got, wanted, equal_nan=got.dtype.kind == "f")
    # Codes times scales are the numbers, to half a step.
    for b in range(len(runs.count)):
        start, count, wide, place = (int(one[b]) for one in (runs.start, runs.count, runs.wide, runs.place))
        column = torch.arange(count)
        at = place + (column // wide) * runs.stride + column % wide
        value = (
            (made.codes[:, at].double() * made.scale[:, b, None].double()).unflatten(0, (-1, parts)).sum(1)
        )
        own = x[:, start : start + count].double()
        step = own.abs().amax(1, keepdim=True) / (127 if parts == 1 else 32512)
        good = torch.isfinite(own).all(1)
        slack = step / 2 * 1.01 + 127 * 256 * 2.0**-126
        assert bool(((value - own).abs() <= slack)[good].all())
        assert bool(value[~good].isnan().all())


@needs_native
def test_a_token_that_is_not_finite_gives_no_number_and_spoils_no_other():
    packed = pack_weight(
        formats.get("table3").encode(torch.randn(20, 700, generator=torch.Generator().manual_seed(0)))
    )
    x = torch.ones(3, 700)
    x[1, 650] = torch.inf
    got = products.product(packed, x)
    assert bool(got[1].isnan().all())
    assert torch.equal(got[0], got[2])
    assert bool(torch.isfinite(got[0]).all())


@needs_native
@pytest.mark.parametrize(
    "spec", ["table2", "table3", "table4", "int2/g64", "int3/g64", "int4/g64/asym", "int8"]
)
def test_extreme_codes_do_not_overflow(spec):
    """All codes and activations at their ends: sums of 4096 products are exact."""
    encoded = formats.get(spec).encode(torch.randn(16, 4096, generator=torch.Generator().manual_seed(0)))
    good = pack_weight(encoded)
    for byte in (0, 255):
        packed = from_settings(
            good.settings, {**good.tensors, "codes": torch.full_like(good.tensors["codes"], byte)}
        )
        for x in (torch.ones(1, 4096), -torch.ones(1, 4096)):
            wanted = reference.product(packed, x, "int16")
            exact = x.double() @ packed.decode().double().T
            assert bool(((wanted - exact).abs() <= reference.bound(packed, x, "int16")).all())
            for name in SETS:
                assert torch.equal(products.product(packed, x, "int16", 1, name), wanted)


@needs_native
def test_any_codes_are_read_without_harm():
    """Codes are any bytes: each is a code."""
    make = torch.Generator().manual_seed(0)
    for spec in ("table3", "table5", "int3/g64", "int7", "nf4/g64"):
        good = pack_weight(formats.get(spec).encode(torch.randn(18, 600, generator=make)))
        codes = torch.randint(0, 256, good.tensors["codes"].shape, generator=make).byte()
        packed = from_settings(good.settings, {**good.tensors, "codes": codes})
        x = torch.randn(3, 600, generator=make)
        assert torch.equal(products.product(packed, x), reference.product(packed, x))


@needs_native
@pytest.mark.parametrize("spec", ["table3+1.0%", "int4/g128"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_threads_share_rows_and_give_the_same_bits(spec, tokens, monkeypatch):
    monkeypatch.setattr(products, "_SHARE", 1)
    make = torch.Generator().manual_seed(0)
    packed = pack_weight(formats.get(spec).encode(torch.randn(77, 300, generator=make)))
    x = torch.randn(tokens, 300, generator=make)
    for activations in ("int8", "int16"):
        one = products.product(packed, x, activations, 1)
        for threads in (2, 3, 99):
            assert torch.equal(products.product(packed, x, activations, threads), one)


@pytest.mark.parametrize("x", [torch.ones(2, 599), torch.ones(600), torch.ones(2, 600, dtype=torch.float64)])
def test_other_activations_are_refused(x):
    packed = pack_weight(formats.get("int4").encode(torch.ones(4, 600)))
    with pytest.raises(ValueError, match=r"takes float32 activations of shape \(tokens, 600\)"):
        products.product(packed, x)


def test_without_native_code_the_numbers_are_the_same(monkeypatch):
    packed = pack_weight(
        formats.get("int4/g128").encode(torch.randn(20, 300, generator=torch.Generator().manual_seed(0)))
    )
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(1))
    wanted = products.product(packed, x)
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(products, "warn_slow", lambda what: None)
    assert torch.equal(products.product(packed, x), wanted)


def test_many_tokens_are_multiplied_by_torch():
    packed = pack_weight(
        formats.get("int4/g128").encode(torch.randn(20, 300, generator=torch.Generator().manual_seed(0)))
    )
    x = torch.randn(products.DECODED_FROM, 300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(products.product(packed, x), x @ packed.decode().T)


def test_no_token_and_no_harm():
    packed = pack_weight(formats.get("table3").encode(torch.ones(4, 600)))
    assert products.product(packed, torch.empty(0, 600)).shape == (0, 4)


@needs_native
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_products_of_bit_planes_are_exact(data):
    from isoloss.deploy import bits

    p, q = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    rows, others, n = (
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 11)),
        data.draw(st.integers(1, 200)),
    )
    make = np.random.default_rng(data.draw(st.integers(0, 99)))
    a, b = make.integers(0, 1 << p, (rows, n)), make.integers(0, 1 << q, (others, n))
    if data.draw(st.booleans()):
        a[:], b[:] = (1 << p) - 1, (1 << q) - 1
    wanted = a.astype(np.int64) @ b.T.astype(np.int64)
    for name in (*SETS, None):
        assert np.array_equal(bits.product(bits.planes(a, p), bits.planes(b, q), name), wanted)
    odd = (2 * a - (1 << p) + 1) @ (2 * b - (1 << q) + 1).T
    assert np.array_equal(bits.bipolar_product(bits.planes(a, p), bits.planes(b, q)), odd)

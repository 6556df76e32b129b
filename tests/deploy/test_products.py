"""Kernels against PyTorch, to the last bit where numbers are whole, and both against plain sums within their bound."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss import native
from isoloss.compress import formats
from isoloss.deploy import products, reference
from isoloss.deploy.packing import from_settings, pack_weight
from isoloss.native.products import SparseMatrix, Weight
from isoloss.native.runs import group_runs, table_runs

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.status()))
SETS = native.status().sets
SPECS = [
    "table1", "table2", "table3", "table4", "table5", "table6", "table3/g512", "table2/g100", "table3/g128", "table5/g64", "table3+2.0%",
    "table4/tensor", "int4/g128", "int4/g128/asym", "int3/g64/asym", "int2/g32", "int8", "int5/tensor", "int6/g50",
    "int7/narrow", "int4/bipolar", "int1/bipolar", "nf4/g64", "mxfp4", "fixed3.5", "int4/g40+2.0%",
]  # fmt: skip


def drawn(data: st.DataObject, spec: str):
    rows = data.draw(st.integers(1, 40), "rows")
    columns = data.draw(
        st.integers(1, 80) | st.sampled_from([127, 511, 512, 513, 576, 640, 768, 1100]), "columns"
    )
    tokens = data.draw(st.integers(1, 35), "tokens")
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


def odd_tokens(columns: int):
    x = torch.randn(7, columns, generator=torch.Generator().manual_seed(0))
    x[1] = 0
    x[2] *= 1e-41
    x[3] *= 1e36
    x[4, 0], x[5, -1] = torch.nan, torch.inf
    return x


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "runs", [table_runs(1100, 600), group_runs(1100, 100), table_runs(5, 5), group_runs(1, 1)]
)
def test_activations_are_rounded_to_half_a_step(runs, parts):
    """Codes times scales are the numbers, to half a step."""
    x = odd_tokens(runs.columns)
    made = reference.rounded(x, runs, parts)
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
@pytest.mark.parametrize("spec", ["int4/g32", "table4"])
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_activations_are_rounded_as_the_reference_does(spec, activations):
    """A matrix of units gives back each rounded number."""
    packed = pack_weight(formats.get(spec).encode(torch.eye(64)), activations)
    x = odd_tokens(64)
    wanted = reference.product(packed, x, activations)
    assert bool(wanted[4:6].isnan().all())
    for name in SETS:
        got = products.product(packed, x, activations, 1, name)
        assert np.array_equal(got.numpy(), wanted.numpy(), equal_nan=True)


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


def larger(spec: str = "int4/g128", rows: int = 1003):
    """Large enough for several threads."""
    make = torch.Generator().manual_seed(0)
    packed = pack_weight(formats.get(spec).encode(torch.randn(rows, 1100, generator=make)))
    return packed, torch.randn(18, 1100, generator=make)


@needs_native
@pytest.mark.parametrize("spec", ["table3+1.0%", "int4/g128", "fp8-e4m3"])
@pytest.mark.parametrize("tokens", [1, 3, 18])
def test_threads_share_rows_and_give_the_same_bits(spec, tokens):
    packed, x = larger(spec)
    for activations in ("int8", "int16"):
        one = products.product(packed, x[:tokens], activations, 1)
        for threads in (2, 3, 99):
            for _ in range(5):
                assert torch.equal(products.product(packed, x[:tokens], activations, threads), one)


@needs_native
def test_several_may_ask_at_once():
    packed, x = larger()
    wanted = products.product(packed, x, threads=1)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: products.product(packed, x, threads=2), range(60)):
            assert torch.equal(got, wanted)


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_threads_of_its_own():
    packed, x = larger()
    wanted = products.product(packed, x, threads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads is the point
        child = os.fork()
    if not child:
        os._exit(0 if torch.equal(products.product(packed, x, threads=3), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(products.product(packed, x, threads=3), wanted)


@needs_native
@pytest.mark.parametrize("spec", SPECS[::4])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_bias_is_added(spec, tokens):
    packed, x = larger(spec, rows=37)
    bias = torch.randn(37, generator=torch.Generator().manual_seed(1))
    wanted = products.product(packed, x[:tokens]) + bias
    assert torch.equal(products.product(packed, x[:tokens], bias=bias), wanted)
    with pytest.raises(ValueError, match=r"takes a float32 bias of shape \(37,\)"):
        products.product(packed, x, bias=bias[1:])


@needs_native
def test_what_does_not_lie_in_memory_as_it_counts_is_read_right():
    packed, x = larger(rows=37)
    wanted = products.product(packed, x)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert torch.equal(products.product(packed, strided), wanted)
    negative = torch._neg_view(-x)
    assert negative.is_neg()
    assert torch.equal(products.product(packed, negative), wanted)
    with pytest.raises(ValueError, match=r"on meta\. Move it to the CPU"):
        products.product(packed, x.to("meta"))


@needs_native
def test_weights_that_do_not_fit_are_refused():
    packed, _ = larger(rows=37)
    sparse = SparseMatrix(
        3, np.ones(1, np.float16), np.zeros(1, np.uint8), np.array([0] * 37 + [1], np.int32)
    )
    with pytest.raises(ValueError, match=r"need the same shape, got \(37, 1100\) and \(37, 3\)"):
        Weight(packed.matrix, sparse)
    for name, value in (("place", 10**6), ("start", 1100), ("count", 600), ("segment", 9), ("wide", 0)):
        runs = replace(packed.runs, **{name: getattr(packed.runs, name) * 0 + value})
        with pytest.raises(ValueError, match="sizes below"):
            Weight(replace(packed.matrix, runs=runs))


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

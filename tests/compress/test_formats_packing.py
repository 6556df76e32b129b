"""Codes as streams of bits: the layout is what it says, and every shape comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import formats as oracle

torch = pytest.importorskip("torch")

from isoloss.compress.formats import (  # noqa: E402
    pack,
    packing,
    unpack,
)


@st.composite
def matrices(draw):
    bits = draw(st.integers(1, 16))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    seed = draw(st.integers(0, 2**31))
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    if draw(st.booleans()):
        codes[:] = 2**bits - 1
    dtypes = [torch.int64, torch.int32, *([torch.uint8] if bits <= 8 else [])]
    return bits, codes.to(draw(st.sampled_from(dtypes)))


@given(matrices())
def test_rows_are_streams_of_bits_and_come_back(case):
    bits, codes = case
    before = codes.clone()
    packed = pack(codes, bits)
    for row, stored in zip(codes.tolist(), packed.tolist(), strict=True):
        assert bytes(stored) == oracle.stream(row, bits)
    back = unpack(packed, bits, codes.shape[1])
    assert back.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    assert torch.equal(back.long(), codes.long())
    assert torch.equal(codes, before)


@pytest.mark.parametrize("bits", [3, 8, 11, 16])
def test_blocks_do_not_show(bits, monkeypatch):
    codes = torch.randint(0, 2**bits, (7, 100), generator=torch.Generator().manual_seed(bits))
    whole = pack(codes, bits)
    monkeypatch.setattr(packing, "_BLOCK", 5)
    assert torch.equal(pack(codes, bits), whole)
    assert torch.equal(unpack(whole, bits, 100).long(), codes)


def test_strides_do_not_matter():
    codes = torch.randint(0, 8, (40, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(codes.T, 3), pack(codes.T.contiguous(), 3))


def test_what_is_refused():
    codes = torch.zeros(2, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="1 to 16 bits, got 0"):
        pack(codes, 0)
    with pytest.raises(ValueError, match="1 to 16 bits, got 17"):
        pack(codes, 17)
    with pytest.raises(ValueError, match=r"shape \(rows, n\), got \(3,\)"):
        pack(codes[0], 3)
    with pytest.raises(ValueError, match="10 codes of 3 bits need rows of 4 bytes"):
        unpack(codes, 3, 10)

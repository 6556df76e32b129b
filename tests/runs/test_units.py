"""Counts, bytes and losses as people write them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.runs.units import convert, format_count, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("70B", 70e9), ("1.4T", 1.4e12), ("1e21", 1e21), ("350M", 350e6), ("1_000", 1e3), ("10k", 1e4),
        ("2.5e9", 2.5e9), ("7b", 7e9), ("7 B", 7e9), ("1.5G", 1.5e9), ("3P", 3e15), ("2E", 2e18),
        ("0", 0.0), (".5M", 5e5), ("5.", 5.0), ("1E21", 1e21), ("+7B", 7e9), ("0.07B", 7e7), ("1e3k", 1e6),
    ],
)  # fmt: skip
def test_parse_count(text: str, value: float) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "70BB",
        "14GB",
        "8 MiB",
        "-7B",
        "1,000",
        "3,5B",
        "nan",
        "inf",
        "1e999",
        "seven",
        "0x10",
        "7B tokens",
    ],
)
def test_parse_count_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"needed a .*count.*got .*Do: write it like"):
        parse_count(text)


def test_parse_count_says_how_to_write_it() -> None:
    with pytest.raises(ValueError, match="1000, without separators"):
        parse_count("1,000")
    with pytest.raises(ValueError, match=r"3\.5B, with a decimal point"):
        parse_count("3,5B")


@given(st.floats(min_value=1e-2, max_value=1e40))
def test_format_count_reads_back_to_three_digits(value: float) -> None:
    assert parse_count(format_count(value)) == pytest.approx(value, rel=5.01e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7e10, "70B"),
        (999_999, "1M"),
        (999.6, "1K"),
        (1e15, "1e15"),
        (1.234e22, "1.23e22"),
        (0, "0"),
        (123, "123"),
    ],
)
def test_format_count(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("8GB", 8e9), ("8GiB", 2**33), ("16 MB", 16e6), ("512kB", 512e3), ("100", 100), ("1e9B", 1e9)],
)
def test_parse_bytes(text: str, value: float) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["8G", "GB", "-8GB", "8 Gbit", ""])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="size in bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("unit", "value", "nats", "stored"),
    [
        ("nats/token", 2.0, 2.0, "nats/token"),
        ("nats", 2.0, 2.0, "nats/token"),
        ("bits/token", 1.0, math.log(2), "nats/token"),
        ("bits per byte", 1.0, math.log(2), "nats/byte"),
        ("bpb", 1.0, math.log(2), "nats/byte"),
        ("bpc", 1.0, math.log(2), "nats/char"),
        ("nats/byte", 0.7, 0.7, "nats/byte"),
        ("perplexity", math.e, 1.0, "nats/token"),
        ("ppl", math.e, 1.0, "nats/token"),
        ("perplexity/word", math.e, 1.0, "nats/word"),
    ],
)
def test_loss_units(unit: str, value: float, nats: float, stored: str) -> None:
    converted, now = convert(np.array([value]), unit)
    assert converted[0] == pytest.approx(nats, rel=1e-15)
    assert now == stored


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("millions", 1e6), ("million", 1e6), ("M", 1e6), ("billions", 1e9), ("B", 1e9), ("thousands", 1e3),
        ("trillions", 1e12), ("1e21", 1e21), ("PFLOP", 1e15), ("EFLOPs", 1e18), ("PF-days", 8.64e19),
        ("count", 1.0), ("M tokens", 1e6), ("tokens", 1.0), ("FLOPs", 1.0),
    ],
)  # fmt: skip
def test_count_units(unit: str, factor: float) -> None:
    assert convert(np.array([1.0]), unit)[0][0] == factor


def test_scaled_counts_are_whole() -> None:
    billions = np.array([6.738, 13.016, 0.07, 70.6])
    assert convert(billions, "billions")[0].tolist() == [6738e6, 13016e6, 70e6, 70600e6]

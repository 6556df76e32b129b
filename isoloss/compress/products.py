"""How float32 matrices are multiplied on the CPU while data go through a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Products = Literal["fp32", "bf16"]


@contextmanager
def products(how: Products) -> Iterator[None]:
    """``bf16``: products of float32 matrices round their factors to bfloat16 within the block and add up in float32.

    A processor with instructions for it (AMX) is three to five times as fast; one without does as ever. A product is
    then off by about 0.3 %, less than what four bits a weight do to it. Gradients go through it as well.

    Raises:
        ValueError: another word.

    Example:
        >>> with products("bf16"):
        ...     (torch.ones(2, 3) @ torch.ones(3, 2)).tolist()
        [[3.0, 3.0], [3.0, 3.0]]
    """
    if how not in ("fp32", "bf16"):
        raise ValueError(f"products are fp32 or bf16, got {how!r}")
    if how == "fp32":
        yield
        return
    backend: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if hasattr(backend, "fp32_precision"):
        before = backend.fp32_precision
        backend.fp32_precision = "bf16"
        try:
            yield
        finally:
            backend.fp32_precision = before
        return
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(usual)

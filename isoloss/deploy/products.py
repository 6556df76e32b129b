"""The product of a packed weight with activations: native where there is native code, else in PyTorch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from isoloss import native
from isoloss.deploy import reference
from isoloss.deploy.packing import Activations, Packed
from isoloss.native.library import warn_slow
from isoloss.native.products import GroupMatrix, Rounded, arranged, rounded
from isoloss.native.runs import TILE

DECODED_FROM = 64
"""Tokens from which on the weight is decoded once for all, and multiplied by torch."""
_SHARE = 1 << 19  # stored bytes that a thread should have at least


def product(
    packed: Packed,
    x: Tensor,
    activations: Activations = "int8",
    threads: int | None = None,
    instructions: str | None = None,
) -> Tensor:
    """Activations times a packed weight, transposed: what a linear layer computes.

    Args:
        packed: rows × columns.
        x: (tokens, columns), float32.
        activations: ``int8``: rounded per token and run of at most 512 columns; ``int16``: the same with 256 times finer
            steps; ``float``: as they are. A ``float-table`` always takes them as they are, other kinds never.
        threads: that share rows; default those of torch.
        instructions: one of ``native.status().sets``; the best by default.

    Returns:
        (tokens, rows), float32. :func:`isoloss.deploy.reference.bound` says how far off.

    Raises:
        ValueError: another shape or dtype.

    Example:
        >>> from isoloss.compress import formats
        >>> from isoloss.deploy.packing import pack_weight
        >>> weight = torch.randn(32, 600, generator=torch.Generator().manual_seed(0))
        >>> packed = pack_weight(formats.get("table3").encode(weight))
        >>> x = torch.ones(2, 600)
        >>> bool(((product(packed, x) - x @ packed.decode().T).abs() <= reference.bound(packed, x)).all())
        True
    """
    if x.ndim != 2 or x.shape[1] != packed.shape[1] or x.dtype != torch.float32:
        raise ValueError(
            f"this weight takes float32 activations of shape (tokens, {packed.shape[1]}), got {x.dtype} of {tuple(x.shape)}"
        )
    if packed.kind == "dense" or x.shape[0] >= DECODED_FROM:
        return x @ packed.decode().T
    if not native.available():
        warn_slow("products with packed weights are slow")
        return reference.product(packed, x, activations)
    return _native(packed, x.detach().contiguous(), activations, threads, instructions)


def _native(
    packed: Packed, x: Tensor, activations: Activations, threads: int | None, instructions: str | None
) -> Tensor:
    given, matrix, sparse = x.numpy(), packed.matrix, packed.sparse
    assert matrix is not None
    floats = packed.kind == "float-table"
    parts = 2 if activations == "int16" and not floats else 1
    out = np.empty((x.shape[0] * parts, packed.shape[0]), np.float32)
    ready: Rounded | np.ndarray = (
        arranged(given, packed.runs) if floats else rounded(given, packed.runs, parts, instructions)
    )

    def run(first: int, last: int) -> None:
        if isinstance(ready, Rounded):
            matrix.product(ready, out, first, last, instructions)
        else:
            assert not isinstance(matrix, GroupMatrix)
            matrix.float_product(ready, out, first, last, instructions)
        if parts == 2:
            np.add(out[0::2, first:last], out[1::2, first:last], out=summed[:, first:last])
        if sparse is not None:
            sparse.add(given, summed, first, last, instructions)

    summed = np.empty((x.shape[0], packed.shape[0]), np.float32) if parts == 2 else out
    threads_of = torch.get_num_threads() if threads is None else threads
    shares = _shares(packed, threads_of)
    others = [_pool(os.getpid(), threads_of).submit(run, *share) for share in shares[1:]]
    run(*shares[0])
    for other in others:
        other.result()
    return torch.from_numpy(summed)


def _shares(packed: Packed, threads: int) -> list[tuple[int, int]]:
    """Rows of each thread, in whole tiles."""
    rows = packed.shape[0]
    tiles = -(-rows // TILE)
    count = max(1, min(threads, tiles, packed.bytes // _SHARE))
    ends = [min(rows, (tiles * k // count) * TILE) for k in range(count)] + [rows]
    return list(pairwise(ends))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One for each number of threads, and anew in a forked process, where those of its parent do not run."""
    return ThreadPoolExecutor(max_workers=max(1, threads - 1), thread_name_prefix="isoloss")

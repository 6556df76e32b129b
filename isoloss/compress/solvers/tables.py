"""Exact tables as a grid: weighted k-means of every row, group or the whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from isoloss.compress.formats import Coded, Grid, Table
from isoloss.compress.formats.groups import groups_of
from isoloss.compress.kmeans import kmeans_rows


def exact_grid(format: Table, matrix: Tensor, weights: Tensor) -> Grid:
    """The tables that lose least under these weights, rounded to fp16 as stored.

    Args:
        format: bits and groups.
        matrix: (out, in).
        weights: at least 0, (out, in).
    """
    levels, threads = 2**format.bits, max(1, torch.get_num_threads())
    if format.group == "tensor":
        matrix_, weights_ = matrix.reshape(1, -1), weights.reshape(1, -1)
        bounds: tuple[tuple[int, int], ...] = ((0, matrix.numel()),)
    else:
        matrix_, weights_, bounds = matrix, weights, groups_of(format.group, matrix.shape[1]).bounds
    tables = [
        kmeans_rows(
            matrix_[:, start:stop].cpu().numpy(),
            weights_[:, start:stop].cpu().numpy(),
            levels,
            threads=threads,
        ).centres
        for start, stop in bounds
    ]
    found = torch.stack([torch.from_numpy(table) for table in tables], dim=1).to(matrix)
    return format.given((matrix.shape[0], matrix.shape[1]), found)


def table_of(format: object, solver: str) -> Table:
    """The format, if it is of tables.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(format, Table):
        spec = getattr(format, "spec", format)
        raise TypeError(f"{solver} needs a format of tables (table3, table4/g512, table3+0.45%), got {spec}")
    return format


def exact_start(dense: Coded, matrix: Tensor, cost: Tensor, kept: Tensor | None) -> Grid:
    """:func:`exact_grid` as the start of a column loop."""
    return exact_grid(table_of(dense, "lut-feedback"), matrix, cost)

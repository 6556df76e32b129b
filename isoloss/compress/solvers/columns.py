r"""The two column loops: errors fed forward (GPTQ), and codes changed one at a time (coordinate descent).

Matrices are held column by column, (columns, rows), columns in the order of rounding: rows are independent problems
and go side by side. Blocks of columns are rounded by native code; what they change in other columns is one matrix
product per block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoloss import native
from isoloss.compress.solvers.levels import Levels
from isoloss.native import library
from isoloss.native.columns import round_columns

BLOCK = 64


def feedback(
    x: Tensor, levels: Levels, group: Tensor, moves: Tensor, kept: Tensor | None, start: int, stop: int
) -> Tensor:
    r"""Round columns ``start`` to ``stop`` to nearest, each error passed on to all columns behind.

    Column j, as the errors before it left it, becomes :math:`q_j`; column k > j then gets
    :math:`x_k \mathrel{+}= (q_j - x_j) U_{jk} / U_{jj}`.

    Args:
        x: (columns, rows), changed: afterwards each column up to ``stop`` as it was at its turn.
        levels: to round to.
        group: int32 (columns,), into ``levels``.
        moves: (columns, columns), :attr:`Curvature.moves`.
        kept: (columns, rows), true where a number is not rounded; None: nowhere.
        start: first column.
        stop: the one behind the last.

    Returns:
        Places in ``levels``, uint8 (stop - start, rows).
    """
    places = torch.empty(stop - start, x.shape[1], dtype=torch.uint8, device=x.device)
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        moved = torch.empty(last - first, x.shape[1], device=x.device)
        inside = moves[first:last, first:last].contiguous()
        keep = None if kept is None else kept[first:last]
        _block(
            x[first:last],
            levels,
            group[first:last],
            inside,
            places[first - start : last - start],
            moved,
            None,
            keep,
        )
        if last < len(x):
            x[last:].addmm_(moves[first:last, last:].T, moved)
    return places


def descend(
    wanted: Tensor, q: Tensor, levels: Levels, group: Tensor, second: Tensor, kept: Tensor | None
) -> tuple[Tensor, int]:
    r"""One sweep over all columns: each code becomes the best there is with all others as they are.

    With the others fixed the best real number at j is :math:`y_j = q_j - [(q - w) H]_j / H_{jj}`, and the best value of
    the grid is the one nearest to it, as the error is a parabola there. No step raises
    :math:`(w - q) H (w - q)^\top`.

    Args:
        wanted: y, (columns, rows), kept up to date.
        q: the numbers as rounded now, (columns, rows), changed.
        levels: to round to.
        group: int32 (columns,).
        second: H, (columns, columns).
        kept: where a number is free to be any, as :func:`feedback` has it.

    Returns:
        Places in ``levels``, and how many numbers changed.
    """
    diagonal = second.diagonal()
    places = torch.empty(q.shape, dtype=torch.uint8, device=q.device)
    changed = 0
    for first in range(0, len(q), BLOCK):
        last = min(first + BLOCK, len(q))
        moved = torch.empty(last - first, q.shape[1], device=q.device)
        moves = second[first:last] / -diagonal
        inside = moves[:, first:last].contiguous()
        keep = None if kept is None else kept[first:last]
        block = slice(first, last)
        _block(wanted[block], levels, group[block], inside, places[block], moved, q[block], keep)
        q[block] += moved
        changed += int(torch.count_nonzero(moved))
        if first:
            wanted[:first].addmm_(moves[:, :first].T, moved)
        if last < len(q):
            wanted[last:].addmm_(moves[:, last:].T, moved)
    return places, changed


def _block(
    x: Tensor,
    levels: Levels,
    group: Tensor,
    moves: Tensor,
    places: Tensor,
    moved: Tensor,
    old: Tensor | None,
    kept: Tensor | None,
) -> None:
    """Columns of one block; the arguments are those of the native function, and are changed as it does."""
    if x.device.type == "cpu" and native.available():
        first, last = int(group.min()), int(group.max()) + 1
        round_columns(
            x.numpy(),
            levels.values[first:last].numpy(),
            (group - first).numpy(),
            moves.numpy(),
            places.numpy(),
            moved.numpy(),
            None if old is None else old.numpy(),
            None if kept is None else kept.numpy(),
        )
        return
    if x.device.type == "cpu":
        library.warn_slow("rounding column by column in torch takes 2 to 3 times as long as in native code")
    for j, g in enumerate(group.tolist()):
        values = levels.values[g]
        place = (x[j] + x[j] > values[1:] + values[:-1]).sum(dim=0)
        value = values.gather(0, place[None])[0]
        value = value if kept is None else torch.where(kept[j], x[j], value)
        places[j] = place.to(torch.uint8)
        moved[j] = value - (x[j] if old is None else old[j])
        if old is None:
            x[j + 1 :] += moves[j, j + 1 :, None] * moved[j]
        else:
            here = x[j].clone()
            x += moves[j, :, None] * moved[j]
            x[j] = here

"""Products of packed weights on a GPU: takes a ``Packed`` and activations on a CUDA device, launches Triton kernels.

Activations are not rounded there: reading weights is the limit. Where there is no Triton, and for the kinds that
no kernel knows, PyTorch decodes the weight on the device and multiplies: exact, and slow.
"""

from __future__ import annotations

import functools
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from isoloss.deploy.packing import Packed
from isoloss.native.library import SlowPath
from isoloss.native.runs import BLOCK, PLANE, RUN, TILE

KNOWN = ("table", "float-table", "levels")
"""Kinds that have kernels."""

TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of activations."""

FEW = 4
"""Tokens up to which weights are looked up in registers, for all tokens at once; with more the matrix unit multiplies."""


def product(packed: Packed, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """(tokens, columns) times a packed weight, transposed, in the dtype of ``x``; sums are float32.

    Args:
        packed: on the device of ``x``.
        x: float32, float16 or bfloat16.
        bias: (rows,), any of these.

    Example:
        >>> from isoloss.compress import formats
        >>> from isoloss.deploy.packing import pack_weight
        >>> packed = pack_weight(formats.get("fp16").encode(torch.eye(3)))
        >>> product(packed, torch.tensor([[1.0, 2.0, 3.0]])).tolist()  # no kernel of this kind
        [[1.0, 2.0, 3.0]]
    """
    if packed.kind in KNOWN and _triton(str(x.device)):
        return _product(packed, x, bias)
    out = x.float() @ packed.decode().T
    return (out if bias is None else out + bias).to(x.dtype)


@functools.cache
def _triton(device: str) -> bool:
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        f"products on {device} decode the whole weight each time: triton is not installed. Do: pip install triton",
        SlowPath,
        stacklevel=4,
    )
    return False


@dataclass(frozen=True)
class Slots:
    """How the runs of a table's columns are shared out, W lanes to a run at most.

    Attributes:
        count: runs.
        even: of them, from the first on, that have ``lanes`` lanes, so that their number says where they lie.
        lanes: a power of two.
        per: runs of a group.
        bytes: of the codes of a group.
    """

    count: int
    even: int
    lanes: int
    per: int
    bytes: int

    @classmethod
    def of(cls, columns: int, group: int, bits: int) -> Slots:
        """Of so many columns, a group of which share a table.

        Example:
            >>> Slots.of(11008, 11008, 3)
            Slots(count=22, even=21, lanes=64, per=22, bytes=4128)
            >>> Slots.of(1000, 128, 3)
            Slots(count=8, even=7, lanes=16, per=1, bytes=48)
        """
        group = min(group, columns)
        per, whole, rest = -(-group // RUN), columns // group, columns % group
        wide = PLANE if group >= RUN else -(-group // 8)
        lanes = _power(wide)
        if group % RUN == 0:
            even = whole * per + rest // RUN
        elif per == 1:
            even = whole if group == 8 * lanes else 0
        else:
            even = group // RUN
        size = bits * (PLANE * (group // RUN) + -(-(group % RUN) // 8))
        return cls(whole * per + -(-rest // RUN), even, lanes, per, size)


def _product(packed: Packed, x: Tensor, bias: Tensor | None) -> Tensor:
    from isoloss.deploy import gpu_kernels as kernels

    (rows, columns), tokens, have = packed.shape, x.shape[0], packed.tensors
    x = x.resolve_neg().contiguous()  # what lies in memory is read as it is
    beside = packed.thin is not None
    out = x.new_empty(tokens, rows, dtype=torch.float32 if beside else x.dtype)
    if not tokens:
        return out.to(x.dtype)
    kept = None if bias is None else bias.resolve_neg().contiguous()
    none = have["codes"]  # in the place of what a weight does not have: never read
    sparse = [have.get(f"outliers.{name}", none) for name in ("values", "columns", "rows")]
    ends = (none if kept is None else kept, *sparse)
    switches = {"BIAS": kept is not None, "OUTLIERS": "outliers.values" in have}
    levels, floats = packed.kind == "levels", packed.kind == "float-table"
    group, segments = min(packed.group, columns), packed.groups
    table = have.get("table", none)
    step = have["scale" if levels else "step"] if not floats else none
    low, zero = have.get("low", none), have.get("zero", none)
    sizes = {"GROUP": group, "BITS": packed.bits}
    kind = {"TABLE": "table" in have, "ZERO": "zero" in have}
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        if tokens <= FEW and levels:
            blocks, per = packed.runs.width // BLOCK, -(-group // BLOCK)
            kernels.levels_few[(-(-rows // TILE),)](
                out, none, table.view(torch.int64) if kind["TABLE"] else none, step, zero, x, *ends,
                rows, columns, segments, blocks, **sizes, PER=per, TIMES=packed.times, OFFSET=packed.offset,
                T=tokens, B=min(32, _power(blocks)), **kind, **switches, num_warps=4,
            )  # fmt: skip
        elif tokens <= FEW:
            slots = Slots.of(columns, group, packed.bits)
            # Of one token a thread takes 16 bytes of each vector of two rows, of several 8: what registers hold.
            at_once = max(1, min(RUN // slots.lanes // min(tokens, 2), _power(slots.count)))
            rest = min(at_once, _power(max(1, slots.count - slots.even)))
            r = 2 if tokens <= 2 else 1
            kernels.table_few[(-(-rows // r),)](
                out, none, _words(table), step, low, x, *ends,
                rows, columns, segments, none.shape[1], slots.even, slots.count, **sizes, PER=slots.per,
                BYTES=slots.bytes, FLOATS=floats, R=r, T=tokens, B=at_once, REST=rest, W=slots.lanes,
                **switches, num_warps=1,
            )  # fmt: skip
        else:
            slots = Slots.of(columns, group, packed.bits)
            precision, dot = _dot(x, floats)
            r, n, k = 64, min(64, max(16, _power(tokens))), min(64, max(16, _power(group)))
            kernels.many[(-(-rows // r), -(-tokens // n))](
                out, none, table, step, low, zero, x, *ends,
                rows, columns, segments, none[0].numel(), tokens, **sizes,
                PER=-(-group // BLOCK) if levels else slots.per, BYTES=slots.bytes, TIMES=packed.times,
                OFFSET=packed.offset, LEVELS=levels, FLOATS=floats, **kind, **switches,
                DOT=kernels.TYPES[dot], PRECISION=precision, R=r, N=n, K=k, num_warps=8,
            )  # fmt: skip
    if packed.thin is not None:
        left, right = packed.thin
        out += product(left, product(right, x.float()))
    return out.to(x.dtype)


def _dot(x: Tensor, floats: bool) -> tuple[str, str]:
    """Precision and type in which the matrix unit multiplies: tf32 holds bf16, fp16, bytes and whole numbers exactly.

    float32 activations are multiplied as torch multiplies them: as they are, or in tf32 where it was allowed to.
    """
    if x.dtype == torch.float32:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32", "float32"
    # Triton's interpreter multiplies the bits of bf16 as whole numbers.
    as_they_are = x.dtype == torch.float16 or (x.is_cuda and not floats)
    return "tf32", str(x.dtype).removeprefix("torch.") if as_they_are else "float32"


def _words(table: Tensor) -> Tensor:
    """A table of bytes or fp16 as words, where it is at most two of 64 bits."""
    size = table.shape[-1] * table.element_size()
    if size > 16:
        return table
    word = {2: torch.int16, 4: torch.int32}.get(size, torch.int64)
    return table.view(word)


def _power(n: int) -> int:
    """The power of two from n on."""
    return 1 << (n - 1).bit_length()

"""MatMulNBits, the matrix product with a weight of 2, 4 or 8 bits that ONNX Runtime has a kernel for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoloss.compress.export.decoding import levels_of, scales_of, symbol
from isoloss.compress.formats import Encoded, Fixed, Grid, Integer

WIDTHS = (16, 32, 64, 128, 256)
ACCURACY = {1: "float32", 2: "float16", 3: "bfloat16", 4: "int8"}
"""What the operator may round activations to."""


class MatMulNBits(nn.Module):
    """A linear layer as the operator ``com.microsoft.MatMulNBits``.

    Stored are codes from 0 in blocks of columns, low bits first, a scale per block, and zero-points where they are not
    half the range.

    Args:
        encoded: the weight, of integers.
        bias: added after the product.
        accuracy: what the operator may round activations to, a key of ``ACCURACY``.

    Raises:
        ValueError: the operator cannot hold this weight.
    """

    def __init__(self, encoded: Encoded, bias: Tensor | None, accuracy: int):
        super().__init__()
        grid, levels = _fitting(encoded)
        numbers, zero, _ = levels
        width = _width(grid)
        assert width is not None
        bits, start = _bits(numbers, zero)
        self.rows, self.columns = grid.rows, grid.columns
        self.settings = {
            "K": grid.columns, "N": grid.rows, "bits": bits, "block_size": width, "accuracy_level": accuracy,
        }  # fmt: skip
        blocks = -(-grid.columns // width)
        padding = (0, blocks * width - grid.columns)
        codes = nn.functional.pad((numbers + start).to(torch.uint8), padding)
        self.register_buffer(
            "codes", _packed(codes.reshape(grid.rows * blocks, width), bits).reshape(grid.rows, blocks, -1)
        )
        scale = scales_of(grid)
        at = torch.arange(blocks) * width

        def of_block(x: Tensor) -> Tensor:
            return grid.spread(x)[:, at].contiguous()

        self.register_buffer("scale", of_block(scale.float()).to(scale.dtype))
        self.has_zero = zero is not None
        if zero is not None:
            self.register_buffer("zero", _packed(of_block(zero).to(torch.uint8), bits))
        self.bias = bias
        self.kind = f"MatMulNBits {bits} bits"

    @property
    def bits(self) -> int:
        """Stored, scales counted."""
        return sum(8 * own.numel() * own.element_size() for _, own in self.named_buffers())

    def forward(self, x: Tensor) -> Tensor:
        """The product with the weight, and the bias."""
        inputs: tuple[Tensor, ...] = (x, self.get_buffer("codes"), self.get_buffer("scale").float())
        inputs += (self.get_buffer("zero"),) if self.has_zero else ()
        shape = (*x.shape[:-1], self.rows)
        y = symbol("com.microsoft::MatMulNBits", inputs, self.settings, x.dtype, shape)
        return y if self.bias is None else y + self.bias


def fits(encoded: Encoded) -> bool:
    """Whether the operator can hold a weight."""
    if not isinstance(encoded.format, Integer | Fixed):
        return False
    return _width(encoded.grid()) is not None and levels_of(encoded) is not None


def _fitting(encoded: Encoded) -> tuple[Grid, tuple[Tensor, Tensor | None, int]]:
    if not fits(encoded):
        raise ValueError(
            f"MatMulNBits holds integers in groups of 16 columns or a multiple, got {encoded.format.spec}"
        )
    levels = levels_of(encoded)
    assert levels is not None
    return encoded.grid(), levels


def _width(grid: Grid) -> int | None:
    """Of a block: the widest that cuts groups evenly."""
    if len(grid.groups) == 1:
        return next((w for w in WIDTHS if w >= grid.columns), WIDTHS[-1])
    width = grid.groups[0][1]
    return next((w for w in reversed(WIDTHS) if width % w == 0), None)


def _bits(numbers: Tensor, zero: Tensor | None) -> tuple[int, int]:
    """Of a code: 2, 4 or 8; and what is added to signed numbers, half the range, which is the zero-point then."""
    low, high = int(numbers.min()), int(numbers.max())
    if zero is not None:
        return next(b for b in (2, 4, 8) if max(high, int(zero.max())) < 2**b), 0
    bits = next(b for b in (2, 4, 8) if low >= -(2 ** (b - 1)) and high < 2 ** (b - 1))
    return bits, 2 ** (bits - 1)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """(rows, n) -> (rows, bytes): low bits first, a row filled up with zeros."""
    each = 8 // bits
    codes = nn.functional.pad(codes, (0, -codes.shape[1] % each)).int().reshape(codes.shape[0], -1, each)
    shifts = bits * torch.arange(each, dtype=torch.int32)
    return (codes << shifts).sum(dim=2).to(torch.uint8)

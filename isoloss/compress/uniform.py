"""One format for all layers: the largest of a ladder that keeps a limit on bits or bytes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from isoloss.compress import formats
from isoloss.compress.compressed import plain_tensors
from isoloss.compress.layers import Layer
from isoloss.errors import NoAnswer

INTEGERS = tuple(
    f"int{bits}{group}/asym" for bits in (2, 3, 4, 5, 6, 8) for group in ("", "/g128", "/g64", "/g32")
)
TABLES = tuple(f"table{bits}" for bits in (1, 2, 3, 4, 5, 6))
OF_TABLES = ("lut-feedback", "squeezellm", "kmeans")  # solvers that fill tables


def usual(format: str) -> str:
    """The solver that a format is taken with where none is named: tables are fitted, codes of a grid are rounded.

    Example:
        >>> usual("table3+0.2%"), usual("int4/g128/asym")
        ('lut-feedback', 'gptq')
    """
    found = formats.get(format)
    dense = found.dense if isinstance(found, formats.WithOutliers) else found
    return "lut-feedback" if isinstance(dense, formats.Table) else "gptq"


def sizes(model: nn.Module, layers: Sequence[Layer], format: str) -> tuple[int, int]:
    """Bits of these layers in a format, and bytes of all else, before anything is encoded.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = nn.Linear(128, 4)
        >>> sizes(net, find(net).layers, "int4/g128")
        (2112, 16)
    """
    chosen = formats.get(format)
    plain, _ = plain_tensors(model, {layer.name: layer for layer in layers})
    rest = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())
    return sum(chosen.size(layer.shape) for layer in layers), rest


def uniform(
    model: nn.Module,
    layers: Sequence[Layer],
    solver: str,
    bits: float | None = None,
    size: float | None = None,
    format: str | None = None,
) -> str:
    """The format of all layers that keeps a limit: of a ladder of integers, or of tables if the solver fills these.

    Args:
        model: whose other tensors are stored as they are.
        layers: to be compressed.
        solver: its words.
        bits: most stored bits for each weight of these layers, scales and tables counted.
        size: most bytes of all tensors.
        format: the only one to think of.

    Raises:
        ValueError: neither limit nor format.
        NoAnswer: none is small enough; says the least possible.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = nn.Linear(1024, 64)
        >>> uniform(net, find(net).layers, "gptq", bits=4)
        'int3/g32/asym'
        >>> uniform(net, find(net).layers, "lut-feedback", size=30_000)
        'table3'
    """
    if bits is None and size is None and format is None:
        raise ValueError("needed --bits, --bytes or --format, got none")
    names = [format] if format else (TABLES if solver.partition("(")[0] in OF_TABLES else INTEGERS)
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    found = {name: sizes(model, layers, name) for name in names}
    fitting = {
        name: own
        for name, (own, rest) in found.items()
        if (bits is None or own <= bits * weights) and (size is None or own / 8 + rest <= size)
    }
    if not fitting:
        least = min(found, key=lambda name: found[name][0])
        own, rest = found[least]
        asked = f"{bits:g} bits a weight" if bits is not None else f"{size:,.0f} bytes"
        raise NoAnswer(
            f"no uniform format of {solver} keeps {asked}",
            f"at least {own / weights:.4g} bits a weight, {own // 8 + rest:,} bytes with the {rest:,} of what is not "
            f"encoded ({least})",
        )
    return max(fitting, key=lambda name: (fitting[name], name))

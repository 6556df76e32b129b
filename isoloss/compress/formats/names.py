"""Formats by name: takes words such as ``int4/g128/asym+0.5%``, gives a format."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

from isoloss.compress.formats.encoded import Format
from isoloss.compress.formats.floats import Float, Native, standard_type
from isoloss.compress.formats.groups import Group
from isoloss.compress.formats.integers import Fixed, Integer, Zero
from isoloss.compress.formats.lowrank import WithLowRank
from isoloss.compress.formats.number_types import FloatType, Specials
from isoloss.compress.formats.ranges import RangeSearch
from isoloss.compress.formats.scales import KINDS
from isoloss.compress.formats.sparse import WithOutliers
from isoloss.compress.formats.tables import Entries, NormalFloat, Table
from isoloss.compress.formats.vectors import Vectors

ALIASES = {
    "mxfp4": "fp4-e2m1/g32/scale-mx",
    "mxfp6-e2m3": "fp6-e2m3/g32/scale-mx",
    "mxfp6-e3m2": "fp6-e3m2/g32/scale-mx",
    "mxfp8-e4m3": "fp8-e4m3/g32/scale-mx",
    "mxfp8-e5m2": "fp8-e5m2/g32/scale-mx",
    "nvfp4": "fp4-e2m1/g16/scale-nv",
}
"""Names in use elsewhere, and what they are."""

BASES = (
    "int1 to int8", "fpN-eEmM", "fixedI.F", "nf4", "table1 to table8", "vqLENGTH-COUNT", "fp32", "fp16", "bf16",
    *ALIASES,
)  # fmt: skip


def get(spec: str) -> Format:
    """The format of that name.

    A base with options behind slashes, then what lies beside it behind plus signs::

        BASE[/tensor|/channel|/gN][/narrow|/asym|/bipolar|/int8][/mse][/scale-KIND][+P%][+lrR[:FACTORS]]

    Raises:
        ValueError: no such format; the message says which word is not understood and what there is.

    Example:
        >>> get("int4/g128/asym").size((4096, 4096)) / 4096**2
        4.15625
        >>> get("table3+0.45%").spec
        'table3+0.45%'
        >>> get("int9")
        Traceback (most recent call last):
            ...
        ValueError: integers (sym) need 2 to 8 bits, got 9
    """
    base, *beside = spec.strip().split("+")
    format = _base(ALIASES.get(base, base), spec)
    for word in beside:
        if match := re.fullmatch(r"([0-9.e-]+)%", word):
            format = WithOutliers(format, float(match[1]))
        elif match := re.fullmatch(r"lr(\d+)(?::(.+))?", word):
            factors = get(match[2]) if match[2] else Native()
            format = WithLowRank(format, int(match[1]), factors)
        else:
            raise ValueError(f"beside a format stands '+P%' or '+lrR', got '+{word}' in {spec!r}")
    return format


def alias_of(spec: str) -> str:
    """The name in use elsewhere, if it has one."""
    return next((name for name, meant in ALIASES.items() if meant == spec), spec)


class _Options:
    """The words behind the base, each taken once."""

    def __init__(self, words: list[str], spec: str) -> None:
        self.words, self.spec = words, spec

    def take(self, known: Callable[[str], bool]) -> str | None:
        found = next((word for word in self.words if known(word)), None)
        if found is not None:
            self.words.remove(found)
        return found

    def group(self, default: Group) -> Group:
        word = self.take(lambda w: w in ("tensor", "channel") or re.fullmatch(r"g\d+", w) is not None)
        if word is None:
            return default
        return int(word[1:]) if word.startswith("g") else cast(Group, word)

    def search(self) -> RangeSearch | None:
        word = self.take(lambda w: re.fullmatch(r"mse[0-9.]*(-\d+-[0-9.]+)?", w) is not None)
        if word is None:
            return None
        power, *rest = word[3:].split("-")
        defaults = RangeSearch()
        return RangeSearch(
            float(power) if power else defaults.power,
            int(rest[0]) if rest else defaults.grid,
            float(rest[1]) if rest else defaults.shrink,
        )

    def scales(self) -> str:
        word = self.take(lambda w: w.startswith("scale-"))
        return "fp16" if word is None else word.removeprefix("scale-")

    def done(self, format: Format) -> Format:
        if self.words:
            raise ValueError(
                f"{self.spec!r}: {self.words[0]!r} is no option of {format.spec.partition('/')[0]}. Options are "
                f"tensor, channel, gN; of integers narrow, asym, bipolar; of tables int8; mse; scale-{', scale-'.join(KINDS)}"
            )
        return format


def _base(text: str, spec: str) -> Format:
    name, *words = text.split("/")
    options = _Options(words, spec)
    if name in ("fp32", "fp16", "bf16"):
        return options.done(Native(name))  # type: ignore[arg-type]
    if match := re.fullmatch(r"int(\d+)", name):
        zero = options.take(lambda w: w in ("sym", "narrow", "asym", "bipolar")) or "sym"
        group, search, scales = options.group("channel"), options.search(), options.scales()
        return options.done(Integer(int(match[1]), group, cast(Zero, zero), scales, search))
    if match := re.fullmatch(r"fp(\d+)-e(\d+)m(\d+)(?:-(ieee|fn|finite))?(?:-bias(-?\d+))?", name):
        return options.done(_float(match, options))
    if match := re.fullmatch(r"fixed(-?\d+)\.(-?\d+)", name):
        return options.done(Fixed(int(match[1]), int(match[2])))
    if name == "nf4":
        group, search, scales = options.group(64), options.search(), options.scales()
        return options.done(NormalFloat(group, scales, search))
    if match := re.fullmatch(r"table(\d+)", name):
        entries = options.take(lambda w: w in ("fp16", "int8")) or "fp16"
        return options.done(Table(int(match[1]), options.group("channel"), cast(Entries, entries)))
    if match := re.fullmatch(r"vq(\d+)-(\d+)", name):
        return options.done(Vectors(int(match[1]), int(match[2])))
    raise ValueError(f"no format named {name!r} in {spec!r}. There are: {', '.join(BASES)}")


def _float(match: re.Match[str], options: _Options) -> Float:
    bits, exponent, mantissa = int(match[1]), int(match[2]), int(match[3])
    if bits != 1 + exponent + mantissa:
        raise ValueError(
            f"a sign, {exponent} exponent and {mantissa} mantissa bits are {1 + exponent + mantissa} bits, got fp{bits}"
        )
    standard = standard_type(exponent, mantissa)
    specials = cast(Specials, match[4] or standard.specials)
    type = FloatType(exponent, mantissa, specials, None if match[5] is None else int(match[5]))
    if options.take(lambda w: w == "plain"):
        return Float(type, "tensor", None)
    group, search, scales = options.group("channel"), options.search(), options.scales()
    return Float(type, group, scales, search)

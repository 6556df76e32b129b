"""Takes a weight and a format, gives it encoded: stored tensors, what they decode to, their exact size.

A file per family: integers and fixed point, floats, tables, vector codes, and what lies beside any of them (outliers,
a low-rank part). ``get`` reads a format from words.
"""

from isoloss.compress.formats.encoded import Encoded, Format
from isoloss.compress.formats.floats import Float, Native
from isoloss.compress.formats.grid import Coded, Grid
from isoloss.compress.formats.integers import Fixed, Integer
from isoloss.compress.formats.lowrank import WithLowRank, add_low_rank
from isoloss.compress.formats.names import ALIASES, get
from isoloss.compress.formats.number_types import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FP16,
    FloatType,
    round_fixed,
    round_float,
)
from isoloss.compress.formats.packing import pack, unpack
from isoloss.compress.formats.ranges import RangeSearch
from isoloss.compress.formats.rounding import ROUNDINGS, Rounding, round_whole
from isoloss.compress.formats.sparse import WithOutliers, add_outliers
from isoloss.compress.formats.tables import NF4, NormalFloat, Table
from isoloss.compress.formats.vectors import Vectors

__all__ = [
    "ALIASES",
    "BF16",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "FP16",
    "NF4",
    "ROUNDINGS",
    "Coded",
    "Encoded",
    "Fixed",
    "Float",
    "FloatType",
    "Format",
    "Grid",
    "Integer",
    "Native",
    "NormalFloat",
    "RangeSearch",
    "Rounding",
    "Table",
    "Vectors",
    "WithLowRank",
    "WithOutliers",
    "add_low_rank",
    "add_outliers",
    "get",
    "pack",
    "round_fixed",
    "round_float",
    "round_whole",
    "unpack",
]

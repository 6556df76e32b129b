"""Which methods the quality table holds, for which models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """A method on a model.

    Attributes:
        case: the model.
        method: its words, the project's own or a peer's.
        draw: of the calibration data.
        peer: whether others made it; the method begins with the name of its package.
    """

    case: str
    method: str
    draw: int = 0
    peer: bool = False

    @property
    def key(self) -> str:
        """As ``--only`` matches it."""
        return f"{self.case}/{self.method}"

    def to_json(self) -> dict[str, Any]:
        """As the cache holds it."""
        return asdict(self)


LINEAR = ("minilm", "byte-gpt", "smollm2-135m")
CONVOLUTIONS = ("resnet20", "resnet56", "efficientnet-lite0")

_UNIFORM = (
    "gptq@int4/g128/asym",
    "nearest@int4/g128/asym",
    "gptq@int3/g128/asym",
    "nearest@int3/g128/asym",
    "lut-feedback@table3",
    "squeezellm@table3",
    "lut-feedback@table3+0.2%",
    "gptq@int2/g64/asym",
    "lut-feedback@table2",
)
_MIXED = (
    "mixed@4.2 tuned",
    "mixed@3.2 tuned",
    "mixed@2.4 tuned",
    "mixed@4.2",
    "mixed@3.2",
    "mixed@2.4",
    "mixed(gptq)@4.2",
    "mixed(gptq)@3.2",
    "mixed(lut-feedback)@3.2",
    "mixed(lut-feedback)@2.4",
    "mixed@3.2 tuned taught",
    "mixed@2.2 tuned taught",
)
_LARGE = (
    "lut-feedback@table3",
    "lut-feedback@table3+0.2%",
    "gptq@int3/g128/asym",
    "lut-feedback@table2",
    "mixed(lut-feedback)@2.5",
    "mixed(lut-feedback)@2.5 taught",
    "gptq@int2/g64/asym",
)
_SENTENCES = (
    "neural-compressor gptq int4 g128 order",
    "neural-compressor gptq int3 g128 order",
    "hqq int4 g128",
    "hqq int3 g128",
    "torchao int4 g128",
    "torchao int3 g128 hqq",
    "optimum-quanto int4",
    "nncf int4 g128 gptq",
    "nncf int4 g128 scale-estimation awq",
    "neural-compressor gptq int2 g64 order",
    "hqq int2 g64",
    "auto-round int4 g128",
    "auto-round int3 g128",
)
_BYTES = tuple(method.replace("g128", "g64") for method in _SENTENCES)
_PICTURES = (
    "optimum-quanto int4",
    "optimum-quanto int4 hqq",
    "hqq int4 g144",
    "hqq int3 g144",
    "optimum-quanto int2",
)
_TEXT = (
    "gptqmodel int3 g128 order",
    "auto-round int3 g128 iters20",
    "hqq int3 g128",
    "torchao int3 g128 hqq",
    "gptqmodel int2 g64 order",
    "auto-round int2 g64 iters20",
    "hqq int2 g64",
)

OURS: tuple[Row, ...] = (
    *(Row(case, method) for case in (*LINEAR[:2], *CONVOLUTIONS) for method in (*_MIXED, *_UNIFORM)),
    Row("efficientnet-lite0", "gptq@int4/g128/asym grouped8"),
    *(
        Row("minilm", method)
        for method in ("mixed@4.2 tuned taught", "mixed(ranged)@4.2 tuned", "mixed@4.2 learned")
    ),
    *(
        Row(case, method, 1)
        for case in ("minilm", "resnet20")
        for method in ("gptq@int3/g128/asym", "mixed@3.2 tuned")
    ),
    *(Row("smollm2-135m", method) for method in _LARGE),
)
PEERS: tuple[Row, ...] = (
    *(Row("minilm", method, 0, True) for method in _SENTENCES),
    *(Row("byte-gpt", method, 0, True) for method in _BYTES),
    *(Row(case, method, 0, True) for case in CONVOLUTIONS for method in _PICTURES),
    *(Row("smollm2-135m", method, 0, True) for method in _TEXT),
)

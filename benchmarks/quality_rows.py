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
    "nearest@int4/g128/asym",
    "gptq@int4/g128/asym",
    "gptq@int4/g128/asym/mse2",
    "gptq@int3/g128/asym/mse2",
    "nearest@int4/g128/asym/mse2",
    "gptq@int3/g128/asym",
    "lut-feedback@table3",
    "squeezellm@table3",
    "lut-feedback@table3+0.2%",
    "nearest@int3/g128/asym",
    "lut-feedback@table3 tuned",
    "gptq@int2/g64/asym",
    "lut-feedback@table2",
)
_MIXED = (
    "mixed(lut-feedback)@4.2 tuned",
    "mixed(lut-feedback)@3.2 tuned",
    "mixed(lut-feedback)@2.4 tuned",
    "mixed(lut-feedback)@4.2",
    "mixed(lut-feedback)@3.2",
    "mixed(lut-feedback)@2.4",
    "mixed(gptq)@4.2",
    "mixed(gptq)@4.2 tuned",
    "mixed(gptq)@3.2",
    "mixed(gptq)@3.2 tuned",
    "mixed(gptq)@2.4 tuned",
    "mixed(gptq)@2.4",
    "mixed(both)@4.2 tuned",
    "mixed(both)@3.2 tuned",
    "mixed(both)@2.4 tuned",
    "mixed(both)@4.2",
    "mixed(both)@3.2",
    "mixed(both)@2.4",
    "mixed(best)@4.2 tuned",
    "mixed(best)@3.2 tuned",
    "mixed(best)@2.4 tuned",
    "mixed(best)@4.2 tuned taught",
    "mixed(best)@3.2 tuned taught",
    "mixed(best)@2.2 tuned taught",
    "gptq@int4/g128/asym tuned",
    "gptq@int3/g128/asym tuned",
)

_LARGE = (
    "lut-feedback@table3",
    "lut-feedback@table3+0.2%",
    "gptq@int3/g128/asym",
    "lut-feedback@table2",
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
)

OURS: tuple[Row, ...] = (
    *(Row(case, method) for case in (*LINEAR[:2], *CONVOLUTIONS) for method in (*_MIXED, *_UNIFORM)),
    Row("efficientnet-lite0", "gptq@int4/g128/asym grouped8"),
    *(
        Row(case, method, 1)
        for case in ("minilm", "resnet20")
        for method in ("gptq@int3/g128/asym", "mixed(best)@3.2 tuned")
    ),
    *(Row("smollm2-135m", method) for method in _LARGE),
)
PEERS: tuple[Row, ...] = (
    *(Row("minilm", method, 0, True) for method in _SENTENCES),
    *(Row("byte-gpt", method, 0, True) for method in _BYTES),
    *(Row(case, method, 0, True) for case in CONVOLUTIONS for method in _PICTURES),
    *(Row("smollm2-135m", method, 0, True) for method in _TEXT),
)

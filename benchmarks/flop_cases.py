"""Models whose floating-point operations are counted by hand here, from their sizes alone.

Each case says how it is counted. 2 FLOPs for one multiply-add; only products that are summed; attention over the full
square, whatever the mask. ``backward`` is what a training step executes: twice the forward work, except that no
gradient is needed of an input that is data, and that fused attention computes its scores a second time (``again``).
Sizes are such that elementwise work is small against the products: whether a counter includes it does not decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, T = 2, 64  # sequences and their length
N = B * T


@dataclass(frozen=True)
class Case:
    """A model, one batch, and its FLOPs by hand.

    Attributes:
        name: in the table.
        make: gives the model.
        inputs: a tensor, or a dict of keywords.
        forward, backward: FLOPs by hand.
        again: part of ``backward`` that computes forward work again.
        needs: packages besides torch.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Any
    forward: int
    backward: int
    again: int = 0
    needs: tuple[str, ...] = ()

    def outputs(self, out: Any) -> Tensor:
        """The tensor in what the model returns."""
        return out.logits if hasattr(out, "logits") else out[0] if isinstance(out, tuple) else out


def ids(vocabulary: int, *shape: int) -> Tensor:
    """Random token ids."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


def _gpt() -> Case:
    """The reference trainer's model: fused causal attention. Width d, 2 layers, 256 bytes, tied head."""
    from isoloss.trainers.gpt_modules import of
    from isoloss.trainers.gpt_settings import Settings
    from isoloss.trainers.transformer import GPT

    d, layers = 128, 2
    settings = Settings.read({"width": d, "layers": layers, "tokens": 4096, "seq_len": T})
    matrices = layers * 2 * N * (3 * d * d + d * d + 4 * d * d + 4 * d * d) + 2 * N * d * 256
    square = layers * 2 * B * T * T * d  # queries times keys; weights times values cost the same
    return Case(
        "fused attention (reference trainer's GPT)",
        lambda: of(GPT(settings), settings),
        ids(256, B, T),
        matrices + 2 * square,
        2 * matrices + 5 * square,  # 4 products of gradients, and the scores again
        square,
    )


class Experts(nn.Module):
    """A layer of experts: the 2 best of 8 for each token, gathered and scattered as they are routed."""

    def __init__(self, width: int, hidden: int, experts: int = 8, best: int = 2) -> None:
        super().__init__()
        self.best = best
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.softmax(self.router(rows), -1).topk(self.best)
        out = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            row, place = torch.where(chosen == i)
            if len(row):
                out = out.index_add(0, row, expert(rows[row]) * weights[row, place, None])
        return out.view_as(x)


def _experts() -> Case:
    """Tokens to width d, 2 of 8 experts with hidden size f, a head to 100 classes."""
    d, f, experts, best = 256, 512, 8, 2
    forward = 2 * N * d * experts + best * N * 2 * (d * f + f * d) + 2 * N * d * 100
    return Case(
        "experts, 2 of 8, gathered (index_add)",
        lambda: nn.Sequential(nn.Embedding(500, d), Experts(d, f, experts, best), nn.Linear(d, 100)),
        ids(500, B, T),
        forward,
        2 * forward,
    )


def _mixtral() -> Case:
    """Attention with half as many heads of keys, 2 of 4 gated experts."""
    d, heads, kv, f, vocabulary, layers, experts, best = 128, 4, 2, 192, 400, 2, 4, 2
    s = d // heads

    def make() -> nn.Module:
        from transformers import MixtralConfig, MixtralForCausalLM

        return MixtralForCausalLM(
            MixtralConfig(
                hidden_size=d, num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=f,
                vocab_size=vocabulary, num_hidden_layers=layers, num_local_experts=experts, num_experts_per_tok=best,
            )
        )  # fmt: skip

    attention = 2 * N * d * (d + 2 * kv * s) + 2 * N * d * d
    matrices = layers * (attention + 2 * N * d * experts + best * N * 6 * d * f) + 2 * N * d * vocabulary
    square = layers * 2 * B * T * T * d
    return Case(
        "experts, 2 of 4, in one grouped product (Hugging Face Mixtral)",
        make,
        {"input_ids": ids(vocabulary, B, T), "use_cache": False},
        matrices + 2 * square,
        2 * matrices + 5 * square,
        square,
        ("transformers",),
    )


def _convolutions() -> Case:
    """Strided and dilated convolutions, then a linear head."""
    forward = [
        2 * B * 64 * 32 * 32 * 3 * 9,  # 3 to 64 channels, 32 x 32 places, 3 x 3
        2 * B * 128 * 16 * 16 * 64 * 9,  # stride 2
        2 * B * 128 * 16 * 16 * 128 * 9,  # dilation 2
        2 * B * 128 * 10,
    ]
    return Case(
        "convolutions, strided and dilated",
        lambda: nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=2, dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
        ),
        torch.ones(B, 3, 32, 32),
        sum(forward),
        forward[0] + 2 * sum(forward[1:]),  # the image needs no gradient
    )  # fmt: skip


def _grouped_convolutions() -> Case:
    """Grouped, depthwise, transposed and one-dimensional by turns; a group sees only its own channels."""
    forward = [
        2 * B * 128 * 16 * 16 * 16 * 9,  # 64 to 128 channels in 4 groups: 16 channels each
        2 * B * 128 * 16 * 16 * 1 * 49,  # depthwise, 7 x 7
        2
        * B
        * 16
        * 16
        * 128
        * 32
        * 16,  # transposed 4 x 4, 128 to 64 in 2 groups: each input meets 32 channels
        2 * B * 32 * 32 * 32 * 64,  # 1 x 1
    ]
    return Case(
        "convolutions, grouped, depthwise, transposed",
        lambda: nn.Sequential(
            nn.Conv2d(64, 128, 3, padding=1, groups=4), nn.Conv2d(128, 128, 7, padding=3, groups=128),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1, groups=2), nn.Conv2d(64, 32, 1),
        ),
        torch.ones(B, 64, 16, 16),
        sum(forward),
        forward[0] + 2 * sum(forward[1:]),
    )  # fmt: skip


class Recurrent(nn.Module):
    """Tokens through a recurrent layer to classes."""

    def __init__(self, kind: type[nn.RNNBase], width: int, hidden: int, layers: int, both: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, width)
        self.layers = kind(width, hidden, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(hidden * (2 if both else 1), 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(x))[0])


def _lstm() -> Case:
    """Two layers, both directions: at each step 4 gates see the input and the last state."""
    i, h = 256, 512
    forward = 2 * (2 * N * 4 * h * (i + h)) + 2 * (2 * N * 4 * h * (2 * h + h)) + 2 * N * 2 * h * 100
    return Case("LSTM", lambda: Recurrent(nn.LSTM, i, h, 2, True), ids(500, B, T), forward, 2 * forward)


def _gru() -> Case:
    """One layer of 3 gates, step by step: the state before the first step is data and needs no gradient."""
    i, h = 512, 512
    forward = 2 * N * 3 * h * (i + h) + 2 * N * h * 100
    return Case(
        "GRU",
        lambda: Recurrent(nn.GRU, i, h, 1, False),
        ids(500, B, T),
        forward,
        2 * forward - 2 * B * 3 * h * h,
    )


def _encoder() -> Case:
    """``nn.TransformerEncoder``: one fused operator a layer at inference, separate ones in training."""
    d, f, layers = 128, 512, 2
    matrices = layers * 2 * N * (4 * d * d + 2 * d * f)
    square = layers * 2 * B * T * T * d

    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(d, 4, f, dropout=0.0, batch_first=True)
        return nn.Sequential(
            nn.Embedding(500, d), nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        )

    return Case(
        "transformer encoder's fast path", make, ids(500, B, T),
        matrices + 2 * square, 2 * matrices + 5 * square, square,
    )  # fmt: skip


class Translator(nn.Module):
    """A decoder layer that reads T tokens and attends to 2 T others."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, width)
        self.layer = nn.TransformerDecoderLayer(width, 4, hidden, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        read = self.embedding(x)
        return self.layer(read[:, :T], read[:, T:])


def _decoder() -> Case:
    """Self-attention over T, attention from T tokens to 2 T others, a feed-forward layer."""
    d, f = 256, 1024
    own, other = 2 * N * 4 * d * d, 2 * N * 2 * d * d + 2 * (2 * N) * 2 * d * d
    square = 2 * B * T * T * d + 2 * B * T * (2 * T) * d
    matrices = own + other + 2 * N * 2 * d * f
    return Case(
        "nn.MultiheadAttention, to itself and across", lambda: Translator(d, f), ids(500, B, 3 * T),
        matrices + 2 * square, 2 * matrices + 5 * square, square,
    )  # fmt: skip


class Clicks(nn.Module):
    """Eight tables of 20,000 entries, looked up and summed, then a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(20_000, 64, mode="sum") for _ in range(8))
        self.network = nn.Sequential(
            nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(torch.cat([table(x) for table in self.tables], dim=-1))


def _embeddings() -> Case:
    """10.2 million parameters in tables that multiply nothing."""
    forward = 2 * 32 * (512 * 1024 + 1024 * 256 + 256)
    return Case("embedding-heavy", Clicks, ids(20_000, 32, 4), forward, 2 * forward)


class Functional(nn.Module):
    """Products without modules: einsum, baddbmm, a matrix times a vector."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(500, d))
        self.mix = nn.Parameter(torch.randn(4, d // 4, d // 4))
        self.up = nn.Parameter(torch.randn(d, 4 * d))
        self.vector = nn.Parameter(torch.randn(4 * d))

    def forward(self, x: Tensor) -> Tensor:
        read = F.embedding(x, self.table)
        heads = read.unflatten(-1, (4, -1))
        mixed = torch.einsum("bthi,hij->bthj", heads, self.mix).flatten(2)
        added = torch.baddbmm(mixed, mixed @ mixed.mT, mixed)
        return (added @ self.up) @ self.vector


def _functional() -> Case:
    """d = 128: block-diagonal mixing, a square product and its use, a matrix, a vector."""
    d = 128
    products = 2 * N * 4 * (d // 4) ** 2 + 2 * 2 * B * T * T * d + 2 * N * d * 4 * d
    vector = 2 * N * 4 * d
    # The gradient of what the vector multiplies is an outer product: nothing is summed.
    return Case(
        "products without modules (einsum, baddbmm)", lambda: Functional(d), ids(500, B, T),
        products + vector, 2 * products + vector,
    )  # fmt: skip


def _llama() -> Case:
    """Half as many heads of keys and values, a gated feed-forward layer, an untied head."""
    d, heads, kv, f, vocabulary, layers = 128, 4, 2, 352, 500, 2
    s = d // heads

    def make() -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=d, num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=f,
                vocab_size=vocabulary, num_hidden_layers=layers,
            )
        )  # fmt: skip

    layer = 2 * N * (d * d + 2 * d * kv * s + d * d + 3 * d * f)
    matrices, square = layers * layer + 2 * N * d * vocabulary, layers * 2 * B * T * T * d
    return Case(
        "Hugging Face Llama", make, {"input_ids": ids(vocabulary, B, T), "use_cache": False},
        matrices + 2 * square, 2 * matrices + 5 * square, square, ("transformers",),
    )  # fmt: skip


def _bert() -> Case:
    """An encoder, and the head of masked words: a square matrix, then the vocabulary."""
    d, f, vocabulary, layers = 128, 512, 500, 2

    def make() -> nn.Module:
        from transformers import BertConfig, BertForMaskedLM

        return BertForMaskedLM(
            BertConfig(
                hidden_size=d, num_attention_heads=4, intermediate_size=f, vocab_size=vocabulary,
                num_hidden_layers=layers,
            )
        )  # fmt: skip

    matrices = layers * 2 * N * (4 * d * d + 2 * d * f) + 2 * N * (d * d + d * vocabulary)
    square = layers * 2 * B * T * T * d
    return Case(
        "Hugging Face BERT", make, {"input_ids": ids(vocabulary, B, T)},
        matrices + 2 * square, 2 * matrices + 5 * square, square, ("transformers",),
    )  # fmt: skip


def _gpt2() -> Case:
    """Linear layers that are stored the other way round (``Conv1D``), a tied head."""
    d, vocabulary, layers = 128, 500, 2

    def make() -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"n_embd": d, "n_layer": layers, "n_head": 4, "vocab_size": vocabulary, "n_positions": T}
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))

    matrices = layers * 2 * N * (3 * d * d + d * d + 8 * d * d) + 2 * N * d * vocabulary
    square = layers * 2 * B * T * T * d
    return Case(
        "Hugging Face GPT-2", make, {"input_ids": ids(vocabulary, B, T), "use_cache": False},
        matrices + 2 * square, 2 * matrices + 5 * square, square, ("transformers",),
    )  # fmt: skip


CASES: tuple[Case, ...] = tuple(
    make()
    for make in (
        _gpt, _experts, _mixtral, _convolutions, _grouped_convolutions, _lstm, _gru, _encoder, _decoder, _embeddings,
        _functional, _llama, _bert, _gpt2,
    )
)  # fmt: skip

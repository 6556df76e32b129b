"""The reference trainer's model made of ordinary modules: to be measured, compressed, exported.

:class:`isoloss.trainers.transformer.GPT` writes its slow parts out, forward and backward, so that it trains fast;
those parts have no second derivatives, and no layer that a tool could find. This is the same function of the
same weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoloss.trainers import checkpoint
from isoloss.trainers.gpt_settings import VOCABULARY, Settings
from isoloss.trainers.transformer import GPT


class Cache:
    """Keys and values of the tokens that a model has read, of each layer (batch, heads, tokens, size)."""

    def __init__(self) -> None:
        self.length = 0
        self._held: list[tuple[Tensor, Tensor]] = []

    def extended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, with those of new tokens behind."""
        stop = self.length + k.shape[2]
        if layer == len(self._held):
            self._held.append((_room(k, stop), _room(v, stop)))
        keys, values = self._held[layer]
        if stop > keys.shape[2]:
            keys, values = self._held[layer] = _room(keys, stop), _room(values, stop)
        keys[:, :, self.length : stop] = k
        values[:, :, self.length : stop] = v
        return keys[:, :, :stop], values[:, :, :stop]

    def crop(self, length: int) -> None:
        """Forget all but the first tokens."""
        self.length = min(self.length, length)


def _room(held: Tensor, tokens: int) -> Tensor:
    """For twice as many tokens, so that adding them one by one copies little; what is held is kept."""
    out = held.new_empty(*held.shape[:2], max(64, 2 * tokens), held.shape[3])
    out[:, :, : held.shape[2]] = held
    return out


class Attention(nn.Module):
    """Causal self-attention with rotary positions; queries and keys normalised per head if asked for."""

    def __init__(self, width: int, head_size: int, normalised: bool) -> None:
        super().__init__()
        self.head_size, self.normalised = head_size, normalised
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, -1, self.head_size).permute(2, 0, 3, 1, 4)
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        if self.normalised:
            q, k = (F.rms_norm(part, (self.head_size,), eps=1e-6) for part in (q, k))
        if cache is None or cache.length == 0:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            if cache is not None:
                cache.extended(layer, k, v)
        else:
            k, v = cache.extended(layer, k, v)
            seen = None  # a single token sees all
            if length > 1:
                seen = torch.ones(length, k.shape[2], dtype=torch.bool, device=x.device).tril(cache.length)
            mixed = F.scaled_dot_product_attention(q, k, v, seen)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Mlp(nn.Module):
    """Two linear layers with a squared ReLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x).relu().square())
        return out


class Layer(nn.Module):
    """Attention and MLP, each on the normalised residual stream."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(settings.width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(settings.width, settings.head_size, settings.qk_norm)
        self.mlp = Mlp(settings.width)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        x = x + self.attention(self.norm(x), cos, sin, cache, layer)
        out: Tensor = x + self.mlp(self.norm(x))
        return out


class Transformer(nn.Module):
    """ids (batch, T) -> logits (batch, T, 256)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, settings.width)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(settings.width, eps=1e-6, elementwise_affine=False)
        self.head = nn.Linear(settings.width, VOCABULARY, bias=False)
        if settings.tied:
            self.head.weight = self.embedding.weight
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """With a cache, the tokens come after those that it holds."""
        start = 0 if cache is None else cache.length
        turn = self.cos[start : start + ids.shape[1]], self.sin[start : start + ids.shape[1]]
        x = self.embedding(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, *turn, cache, i)
        if cache is not None:
            cache.length += ids.shape[1]
        logits: Tensor = self.head(self.norm(x))
        return logits


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    half = x.shape[-1] // 2
    turned = torch.cat((first * cos[:, :half] - second * sin, second * cos[:, half:] + first * sin), dim=-1)
    return turned


def of(model: GPT, settings: Settings) -> Transformer:
    """The same function as ``model``, of ordinary modules in float32.

    Example:
        >>> settings = Settings.read({"width": 32, "tokens": 1024})
        >>> trained = GPT(settings)
        >>> ids = torch.arange(10)[None]
        >>> torch.allclose(of(trained, settings)(ids), trained(ids), atol=1e-5)
        True
    """
    out = Transformer(settings)
    out.cos, out.sin = model.cos.detach().float().clone(), model.sin.detach().float().clone()
    names = {"embedding.weight": model.embedding, "head.weight": model.head}
    for i, block in enumerate(model.layers):
        names |= {
            f"layers.{i}.attention.qkv.weight": block.qkv,
            f"layers.{i}.attention.out.weight": block.out,
            f"layers.{i}.mlp.up.weight": block.up,
            f"layers.{i}.mlp.down.weight": block.down,
        }
    out.load_state_dict({name: value.detach().float().clone() for name, value in names.items()})
    return out.eval()


def load(folder: str | Path) -> tuple[Transformer, Settings]:
    """The model of the newest checkpoint that :mod:`isoloss.trainers.gpt` left in a folder, and its settings.

    Raises:
        FileNotFoundError: the folder has no checkpoint. isoloss.trainers.checkpoint.DamagedError: it is damaged.
    """
    found = checkpoint.load(Path(folder))
    if found is None:
        raise FileNotFoundError(f"needed a checkpoint of isoloss.trainers.gpt in {folder}, got none")
    tensors, facts, note = found
    if not facts:
        raise checkpoint.DamagedError(note)
    kept = facts["settings"]
    # A trunk's checkpoint serves all horizons and names none.
    settings = Settings.read({**kept, "tokens": kept.get("tokens") or kept["batch_tokens"]})
    model = GPT(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weights.{name}"])
    return of(model, settings), settings

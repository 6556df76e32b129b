"""Small models of the kinds that occur, for the tests of compression."""

from __future__ import annotations

import torch
from torch import nn

RUNS: list[str] = []  # blocks that really ran, in order


class Block(nn.Module):
    """A residual block that notes when it runs."""

    def __init__(self, width: int, name: str = "block"):
        super().__init__()
        self.name = name
        self.norm = nn.LayerNorm(width)
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x, bias=None):
        RUNS.append(self.name)
        y = self.norm(x)
        return x + self.down(self.up(y) * self.gate(y).sigmoid()) + (0 if bias is None else bias)


class Language(nn.Module):
    """Tied embedding and head, blocks in a list."""

    def __init__(self, width: int = 8, blocks: int = 3):
        super().__init__()
        self.embedding = nn.Embedding(13, width)
        self.blocks = nn.ModuleList(Block(width, str(i)) for i in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 13, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, bias=0.1 * i)
        return self.head(self.norm(x))


class Pair(nn.Module):
    """An encoder and a decoder that reads what the encoder gives at every block."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.encoder = nn.ModuleList(Block(width, f"e{i}") for i in range(2))
        self.decoder = nn.ModuleList(Block(width, f"d{i}") for i in range(2))

    def forward(self, x, y):
        for block in self.encoder:
            x = block(x)
        for block in self.decoder:
            y = block(y, bias=x)
        return y


class Skips(nn.Module):
    """What every block of the way down gives is used on the way up."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        kept = []
        for layer in self.down:
            x = layer(x).tanh()
            kept.append(x)
        for layer in self.up:
            x = layer(x + kept.pop()).tanh()
        return x


class Noisy(nn.Module):
    """No two runs agree."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x + torch.randn_like(x))
        return x


class Experts(nn.Module):
    """Experts in one tensor; every row goes to one of them."""

    def __init__(self, width: int = 6, count: int = 3, transposed: bool = False):
        super().__init__()
        self.is_transposed = transposed
        dims = (width, 2 * width) if transposed else (2 * width, width)
        self.up_proj = nn.Parameter(torch.randn(count, *dims))
        self.router = nn.Linear(width, count, bias=False)

    def forward(self, x):
        goes = self.router(x).argmax(-1)
        out = x.new_zeros(x.shape[0], 2 * x.shape[1])
        for i in goes.unique():
            rows = goes == i
            own = self.up_proj[i]
            out[rows] = x[rows] @ own if self.is_transposed else nn.functional.linear(x[rows], own)
        return out


def convolutions() -> nn.Sequential:
    """Ordinary, grouped, depthwise; normalised, then a linear layer."""
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), relu),
        nn.Conv2d(8, 8, 3, stride=2, groups=8),
        relu,
        nn.Conv2d(8, 12, 3, dilation=2, padding="same", groups=2, padding_mode="circular"),
        relu,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5)
    return model

"""From logits to the distribution that a token is drawn from, and the draw itself; in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    r"""How tokens are drawn.

    Args:
        temperature: T of :math:`p_i \propto e^{z_i / T}`; 0 takes the likeliest token, of several the first.
        top_k: only the k likeliest tokens; 0: all. Tokens as likely as the last of them count too.
        top_p: only the fewest likeliest tokens that together have at least this probability; 1: all.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> Sampling(temperature=0).probabilities(torch.tensor([1.0, 3.0, 3.0])).tolist()
        [0.0, 1.0, 0.0]
        >>> Sampling(top_p=0.6).probabilities(torch.tensor([0.5, 0.3, 0.2]).log()).round(decimals=4).tolist()
        [0.625, 0.375, 0.0]
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "needed a temperature and top_k of at least 0 and a top_p above 0 and at most 1, got "
                f"{self.temperature:g}, {self.top_k} and {self.top_p:g}"
            )

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., tokens) logits as probabilities, float64, after temperature and cuts."""
        z = logits.double()
        if self.temperature == 0:
            return torch.zeros_like(z).scatter_(-1, z.argmax(-1, keepdim=True), 1.0)
        z = z / self.temperature
        if 0 < self.top_k < z.shape[-1]:
            least = z.topk(self.top_k, -1).values[..., -1:]
            z = z.masked_fill(z < least, -torch.inf)
        p = z.softmax(-1)
        if self.top_p < 1:
            order = p.sort(-1, descending=True)
            before = order.values.cumsum(-1) - order.values
            kept = torch.zeros_like(p).scatter_(-1, order.indices, (before < self.top_p).double())
            p = p * kept
            p = p / p.sum(-1, keepdim=True)
        return p


def draw(p: Tensor, generator: torch.Generator) -> int:
    """A token from its distribution (tokens,)."""
    return int(torch.multinomial(p, 1, generator=generator))

r"""How often a draft model's tokens are accepted: measured at any temperature, and foretold token by token.

A token drawn from q is accepted with probability :math:`\sum_x \min(p_x, q_x) = 1 - TV(p, q)`. How far a compressed model's
distribution is from its original's depends on the temperature at which tokens are drawn; a loss is measured at 1 alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoloss.deploy.decoders import Decoder
from isoloss.deploy.sampling import Sampling

TEMPERATURES = (0.0, 0.5, 0.7, 1.0, 1.3)


@dataclass(frozen=True)
class Agreement:
    """How near two models are where tokens are drawn at some temperature; means over positions of text.

    Attributes:
        temperature: of the draw; 0 is the likeliest token.
        acceptance: chance that a token drawn from the one is accepted by the other, 1 less the total variation.
        acceptance_se: its standard error over texts.
        divergence: KL from the model's distribution to the other's, nats a token; infinite where a token that the one may give
            is cut off in the other.
        divergence_se: its standard error over texts.
        entropy: of the model's own distribution, nats.
        other_entropy: of the other's.
    """

    temperature: float
    acceptance: float
    acceptance_se: float
    divergence: float
    divergence_se: float
    entropy: float
    other_entropy: float


def agreement(
    model: Decoder,
    other: Decoder,
    texts: Sequence[Tensor],
    temperatures: Sequence[float] = TEMPERATURES,
    top_p: float = 1.0,
) -> list[Agreement]:
    """Compare two models' distributions of the next token, after every token of some texts.

    Args:
        model: the original.
        other: the compressed one, or a draft model.
        texts: tokens of each, at least two of them.
        temperatures: to draw at.
        top_p: as of :class:`~isoloss.deploy.sampling.Sampling`.

    Raises:
        ValueError: vocabularies differ; fewer than two texts.

    Example:
        >>> from isoloss.deploy.decoders import decoder
        >>> from isoloss.trainers.gpt_settings import Settings
        >>> from isoloss.trainers.gpt_modules import of
        >>> from isoloss.trainers.transformer import GPT
        >>> settings = Settings(width=32, tokens=(1,))
        >>> one = decoder(of(GPT(settings), settings))
        >>> texts = [torch.tensor(list(b"to be")), torch.tensor(list(b"or not"))]
        >>> [round(row.acceptance, 6) for row in agreement(one, one, texts, (0.0, 1.0))]
        [1.0, 1.0]
    """
    if model.vocabulary != other.vocabulary:
        raise ValueError(
            f"needed two models of one vocabulary, got {model.vocabulary} and {other.vocabulary} tokens"
        )
    if len(texts) < 2:
        raise ValueError(f"needed at least two texts, got {len(texts)}: a standard error is over texts")
    sums: list[list[tuple[float, ...]]] = [[] for _ in temperatures]
    for ids in texts:
        own, its = model.begin().read(ids).logits, other.begin().read(ids).logits
        for i, temperature in enumerate(temperatures):
            sampling = Sampling(temperature, top_p=top_p)
            p, q = sampling.probabilities(own), sampling.probabilities(its)
            sums[i].append(
                (
                    float(torch.minimum(p, q).sum(-1).mean()),
                    float(_divergence(p, q).mean()),
                    float(torch.special.entr(p).sum(-1).mean()),
                    float(torch.special.entr(q).sum(-1).mean()),
                )
            )
    counts = [len(ids) for ids in texts]
    rows = []
    for temperature, found in zip(temperatures, sums, strict=True):
        (accepted, accepted_se), (kl, kl_se), (entropy, _), (other_entropy, _) = (
            _mean(list(values), counts) for values in zip(*found, strict=True)
        )
        rows.append(Agreement(temperature, accepted, accepted_se, kl, kl_se, entropy, other_entropy))
    return rows


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    each: Tensor = -torch.special.entr(p) - torch.special.xlogy(p, q)
    return each.sum(-1)


def _mean(values: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Mean over all positions, and its standard error over texts (of a ratio, to first order)."""
    total, n = sum(counts), len(values)
    mean = math.fsum(v * c for v, c in zip(values, counts, strict=True)) / total
    if not math.isfinite(mean):
        return mean, math.nan
    spread = math.fsum((c * (v - mean)) ** 2 for v, c in zip(values, counts, strict=True))
    return mean, math.sqrt(spread * n / (n - 1)) / total


class Head(nn.Module):
    """From what the draft's head got after a token to the chance that the token is accepted.

    Blocks x + SiLU(L x), each with a matrix of its own, then a linear map to one logit.

    Args:
        width: of the draft model.
        blocks: D.
        seed: of the start; the blocks start at zero, so that they change nothing at first.

    Source:
        K. Huang, X. Guo, M. Wang, SpecDec++, COLM 2025, arXiv 2405.19715. Its released code applies one block D times; here each is its
        own.
    """

    def __init__(self, width: int, blocks: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.Linear(width, 1)
        with torch.no_grad():
            for parameter in self.blocks.parameters():
                parameter.zero_()
            self.last.weight.copy_(torch.randn(1, width, generator=generator) / width**0.5)
            self.last.bias.zero_()

    def logit(self, hidden: Tensor) -> Tensor:
        """(..., width) to (...)."""
        for block in self.blocks:
            hidden = hidden + F.silu(block(hidden))
        out: Tensor = self.last(hidden)[..., 0]
        return out

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) to chances (...)."""
        return self.logit(hidden).sigmoid()


@dataclass(frozen=True)
class Fitted:
    """A head and how well it foretells.

    Attributes:
        head: trained.
        held_loss: weighted cross-entropy on texts that it did not see, nats.
        base_loss: of the best constant there.
        accepted: mean chance of acceptance on those texts.
        foretold: mean that the head says.
    """

    head: Head
    held_loss: float
    base_loss: float
    accepted: float
    foretold: float


def fit(
    model: Decoder,
    draft: Decoder,
    texts: Sequence[Tensor],
    sampling: Sampling | None = None,
    *,
    kept: float = 0.15,
    refusal: float = 6.0,
    blocks: int = 3,
    steps: int = 300,
    rate: float = 1e-3,
    held: float = 0.2,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    r"""Train a head that foretells which drafted tokens the model accepts; neither model is changed.

    Each token of a text is replaced by one drawn from the draft model, but kept with probability ``kept``. The label of a drawn
    token y is :math:`\min(1, p(y) / q(y))`, both given the text before it; the loss, over these tokens alone, is
    :math:`-(a \log \hat a + w (1 - a) \log (1 - \hat a))`, w the weight of refusals.

    Args:
        model: the one whose distribution counts.
        draft: the other.
        texts: as the model itself continues them, best; tokens of each, at least five of them.
        sampling: as it will be used.
        kept: share of tokens that stay.
        refusal: w.
        blocks: of the head.
        steps: of Adam, over all positions.
        rate: its step size.
        held: share of the texts that judge.
        seed: of draws and start.
        progress: (texts read, of).

    Raises:
        ValueError: fewer than five texts.

    Source:
        K. Huang, X. Guo, M. Wang, SpecDec++, COLM 2025, arXiv 2405.19715: r = 0.15, w = 6, three blocks.
    """
    if len(texts) < 5:
        raise ValueError(f"needed at least five texts, got {len(texts)}")
    sampling, generator = sampling or Sampling(), torch.Generator().manual_seed(seed)
    judges = max(1, round(held * len(texts)))
    seen: list[tuple[Tensor, Tensor]] = []
    for i, ids in enumerate(texts):
        seen.append(_labelled(model, draft, ids, sampling, kept, generator))
        if progress is not None:
            progress(i + 1, len(texts))
    hidden, label = (torch.cat(parts) for parts in zip(*seen[judges:], strict=True))
    other, judged = (torch.cat(parts) for parts in zip(*seen[:judges], strict=True))
    head = Head(hidden.shape[-1], blocks, seed).to(hidden)
    optimizer = torch.optim.Adam(head.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(head.logit(hidden), label, refusal).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        logit = head.logit(other)
        accepted = float(label.mean())
        odds = math.log(max(accepted, 1e-9) / max(refusal * (1 - accepted), 1e-9))
        return Fitted(
            head.requires_grad_(False),
            float(_loss(logit, judged, refusal)),
            float(_loss(torch.full_like(logit, odds), judged, refusal)),
            float(judged.mean()),
            float(logit.sigmoid().mean()),
        )


def _labelled(
    model: Decoder, draft: Decoder, ids: Tensor, sampling: Sampling, kept: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the draft's head gets after its own tokens, and the chance of each to be accepted."""
    p = sampling.probabilities(model.begin().read(ids).logits[:-1])
    q = sampling.probabilities(draft.begin().read(ids).logits[:-1])
    drawn = torch.multinomial(q, 1, generator=generator)
    label = (p.gather(1, drawn) / q.gather(1, drawn)).clamp(max=1)[:, 0]
    own = torch.rand(len(drawn), generator=generator) >= kept
    mixed = torch.cat([ids[:1], torch.where(own, drawn[:, 0], ids[1:])])
    hidden = draft.begin().read(mixed).hidden[1:]
    return hidden[own].float(), label[own].float()


def _loss(logit: Tensor, label: Tensor, refusal: float) -> Tensor:
    # log sigmoid of the logit and of its negative: -a log s - w (1 - a) log(1 - s)
    return -(label * F.logsigmoid(logit) + refusal * (1 - label) * F.logsigmoid(-logit)).mean()

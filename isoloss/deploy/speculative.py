r"""A cheap model drafts tokens, the model itself checks them all in one reading; what comes out is drawn from the model alone.

The i-th drafted token x, drawn from q, is accepted with probability :math:`\min(1, p(x) / q(x))`. At the first that is not, a
token is drawn from :math:`\max(p - q, 0)` brought to a sum of 1; where all are accepted, one more from p. Then every token has
the distribution p, whenever drafting stopped, as long as that depends on drafted tokens alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from isoloss.deploy.decoders import Decoder, Session
from isoloss.deploy.generate import Told, prompt_of
from isoloss.deploy.sampling import Sampling, draw


class Stopping(Protocol):
    """When drafting ends."""

    def more(self, drafted: int, accepted: float) -> bool:
        """Whether to draft one more token, after so many and with this chance that all of them are accepted."""

    def chance(self, hidden: Tensor) -> float:
        """Of a drafted token to be accepted, from what the draft model's head got after reading it, (width,)."""


@dataclass(frozen=True)
class Fixed:
    """Always so many tokens.

    Raises:
        ValueError: fewer than one.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"needed at least one drafted token, got {self.count}")

    def more(self, drafted: int, accepted: float) -> bool:
        """Until there are enough."""
        return drafted < self.count

    def chance(self, hidden: Tensor) -> float:
        """Not looked at."""
        return 1.0


@dataclass(frozen=True, eq=False)
class Adaptive:
    """As long as the drafted tokens are likely to be accepted, all of them.

    Args:
        head: what the draft's head got after a token -> chance of the token to be accepted
            (:func:`isoloss.deploy.acceptance.fit`).
        threshold: drafting ends where the chance that any is refused is above this.
        least: tokens that are drafted in any case.
        most: tokens.

    Source:
        K. Huang, X. Guo, M. Wang, SpecDec++, COLM 2025, arXiv 2405.19715; threshold 0.3 and bounds 2 and 20 as in its released code.
    """

    head: Callable[[Tensor], Tensor]
    threshold: float = 0.3
    least: int = 2
    most: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or not 1 <= self.least <= self.most:
            raise ValueError(
                "needed a threshold of 0 to 1 and bounds of 1 <= least <= most, got "
                f"{self.threshold:g}, {self.least} and {self.most}"
            )

    def more(self, drafted: int, accepted: float) -> bool:
        """Within the bounds, while the chance is good."""
        return drafted < self.least or (drafted < self.most and 1 - accepted <= self.threshold)

    def chance(self, hidden: Tensor) -> float:
        """By the head."""
        with torch.no_grad():
            return float(self.head(hidden))


@dataclass(frozen=True)
class Speculated:
    """What was generated, and at what cost.

    Attributes:
        tokens: new ones, in order; the end token is among them if it came.
        calls: readings of the model, after the prompt.
        drafted: tokens that the draft model proposed.
        accepted: of them.
        steps: readings of the draft model, after the prompt.
        seconds: without the reading of the prompt.
        prompt_seconds: of that, by both models.
    """

    tokens: tuple[int, ...]
    calls: int
    drafted: int
    accepted: int
    steps: int
    seconds: float
    prompt_seconds: float

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else math.nan

    @property
    def tokens_per_call(self) -> float:
        """New tokens for each reading of the model."""
        return len(self.tokens) / self.calls if self.calls else math.nan


def speculate(
    model: Decoder,
    draft: Decoder,
    prompt: Sequence[int] | Tensor,
    new: int,
    stopping: Stopping | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    end: int | None = None,
    told: Told | None = None,
) -> Speculated:
    """Continue a text with the distribution of the model, in fewer readings of it.

    Args:
        model: the one whose distribution counts.
        draft: a cheaper one of the same vocabulary: the model compressed, say.
        prompt: tokens.
        new: most new ones.
        stopping: when drafting ends; four tokens unless given.
        sampling: of both models' distributions; as the models say unless given.
        seed: of the draws.
        end: a token after which nothing comes.
        told: is given each new token, those of one reading one after the other.

    Raises:
        ValueError: vocabularies differ; a prompt that one of them cannot read.

    Source:
        Y. Leviathan, M. Kalman, Y. Matias, Fast Inference from Transformers via Speculative Decoding, 2023, arXiv 2211.17192; C. Chen et
        al., 2023, arXiv 2302.01318.

    Example:
        >>> from isoloss.deploy.decoders import decoder
        >>> from isoloss.trainers.gpt_settings import Settings
        >>> from isoloss.trainers.gpt_modules import of
        >>> from isoloss.trainers.transformer import GPT
        >>> settings = Settings(width=32, tokens=(1,))
        >>> model = decoder(of(GPT(settings), settings))
        >>> made = speculate(model, model, list(b"The"), 10, Fixed(4))  # its own draft: nothing is refused
        >>> len(made.tokens), made.acceptance, made.calls
        (10, 1.0, 2)
    """
    stopping, sampling = stopping or Fixed(4), sampling or Sampling()
    if model.vocabulary != draft.vocabulary:
        raise ValueError(
            f"needed a draft model with the model's {model.vocabulary} tokens, got {draft.vocabulary}"
        )
    contexts = [one.context for one in (model, draft) if one.context]
    ids = prompt_of(prompt, new, min(contexts, default=0), model.vocabulary)
    generator = torch.Generator().manual_seed(seed)
    target, helper = model.begin(), draft.begin()
    began = time.perf_counter()
    if len(ids) > 1:
        target.read(ids[:-1])
        helper.read(ids[:-1])
    started = time.perf_counter()
    text, first = ids.tolist(), len(ids)
    calls = drafted = accepted = steps = 0
    while len(text) - first < new:
        room = new - (len(text) - first)
        proposed, q, read = _draft(helper, text, room, stopping, sampling, generator)
        ahead = torch.tensor(text[target.length :] + proposed)
        p = sampling.probabilities(target.read(ahead).logits[-len(proposed) - 1 :])
        kept, last = _checked(proposed, q, p, generator)
        calls, drafted, accepted, steps = calls + 1, drafted + len(proposed), accepted + kept, steps + read
        known = len(text)
        text += [*proposed[:kept], last]
        ended = end is not None and end in text[known:]
        if ended:
            text = text[: text.index(end, known) + 1]
        if told is not None:
            for token in text[known : first + new]:
                told(token)
        if ended:
            break
        for session in (target, helper):
            session.rewind(min(session.length, len(text) - 1))
    made = tuple(text[first : first + new])
    return Speculated(made, calls, drafted, accepted, steps, time.perf_counter() - started, started - began)


def _draft(
    session: Session,
    text: Sequence[int],
    room: int,
    stopping: Stopping,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[list[int], list[Tensor], int]:
    """Drafted tokens, the distribution of each, and how often the draft model read. One token fewer than there is room for."""
    proposed: list[int] = []
    distributions: list[Tensor] = []
    chance, steps = 1.0, 0
    ahead = torch.tensor(text[session.length :])
    while len(proposed) < room - 1 and (not proposed or stopping.more(len(proposed), 1.0)):
        seen = session.read(ahead)
        steps += 1
        if proposed:
            chance *= stopping.chance(seen.hidden[-1])
            if not stopping.more(len(proposed), chance):
                break
        q = sampling.probabilities(seen.logits[-1])
        proposed.append(draw(q, generator))
        distributions.append(q)
        ahead = torch.tensor(proposed[-1:])
    return proposed, distributions, steps


def _checked(
    proposed: Sequence[int], q: Sequence[Tensor], p: Tensor, generator: torch.Generator
) -> tuple[int, int]:
    """How many drafted tokens are accepted, and the token that comes after them."""
    for i, (token, own) in enumerate(zip(proposed, q, strict=True)):
        ratio = float(p[i, token] / own[token])
        if float(torch.rand((), generator=generator, dtype=torch.float64)) >= ratio:
            rest = (p[i] - own).clamp_min(0)
            return i, draw(rest / rest.sum(), generator)
    return len(proposed), draw(p[len(proposed)], generator)


def tokens_per_call(acceptance: float, count: int) -> float:
    r"""Tokens for each reading of the model, :math:`(1 - \alpha^{K+1}) / (1 - \alpha)`, where each token is accepted alike.

    Args:
        acceptance: :math:`\alpha = 1 - TV(p, q)`.
        count: K, drafted tokens.

    Source:
        Leviathan et al. 2023, arXiv 2211.17192, equation 1.

    Example:
        >>> tokens_per_call(0.5, 2), tokens_per_call(1.0, 4)
        (1.75, 5.0)
    """
    if acceptance == 1:
        return count + 1.0
    return (1 - acceptance ** (count + 1)) / (1 - acceptance)


def best_count(acceptance: float, cost: float, most: int = 64) -> tuple[int, float]:
    r"""The number of drafted tokens that is fastest, and how much faster it is than no drafting.

    .. math:: \frac{1 - \alpha^{K+1}}{(1 - \alpha)(c K + 1)}

    Args:
        acceptance: chance of a drafted token to be accepted.
        cost: c, of a reading by the draft model over one by the model.
        most: tokens to consider.

    Returns:
        K, 0 where drafting does not pay, and the factor.

    Source:
        Leviathan et al. 2023, arXiv 2211.17192, theorem 3.8.

    Example:
        >>> best_count(0.8, 0.1)
        (6, 2.46...)
        >>> best_count(0.5, 0.6)
        (0, 1.0)
    """
    found = max(
        (tokens_per_call(acceptance, count) / (cost * count + 1), -count) for count in range(most + 1)
    )
    return -found[1], found[0]

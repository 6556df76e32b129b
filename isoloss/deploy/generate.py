"""Tokens drawn from a model, one reading of its weights for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.deploy.decoders import Decoder
from isoloss.deploy.sampling import Sampling, draw

Told = Callable[[int], None]


@dataclass(frozen=True)
class Generated:
    """What was generated, and at what cost.

    Attributes:
        tokens: new ones, in order; the end token is among them if it came.
        calls: readings of the model after the prompt, the drawing of the first token counted.
        seconds: without the reading of the prompt.
        prompt_seconds: of that.
    """

    tokens: tuple[int, ...]
    calls: int
    seconds: float
    prompt_seconds: float


def prompt_of(prompt: Sequence[int] | Tensor, new: int, context: int, vocabulary: int) -> Tensor:
    """The tokens of a prompt, looked over.

    Raises:
        ValueError: none, a token that the model has not, more than it can read.
    """
    ids = torch.as_tensor(prompt, dtype=torch.long)
    if ids.ndim != 1 or not ids.numel() or new < 1:
        raise ValueError(
            f"needed a prompt of at least one token and at least one new one, got {ids.numel()} and {new}"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise ValueError(f"needed tokens of 0 to {vocabulary - 1}, got {int(ids.min())} to {int(ids.max())}")
    if context and len(ids) + new > context:
        raise ValueError(
            f"the model reads at most {context} tokens, got a prompt of {len(ids)} and {new} new ones. Ask for "
            f"{max(0, context - len(ids))}, or shorten the prompt"
        )
    return ids


def generate(
    model: Decoder,
    prompt: Sequence[int] | Tensor,
    new: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    end: int | None = None,
    told: Told | None = None,
) -> Generated:
    """Continue a text.

    Args:
        model: :func:`isoloss.deploy.decoders.decoder` of a model.
        prompt: tokens.
        new: most new ones.
        sampling: how they are drawn; as the model says unless given.
        seed: of the draws.
        end: a token after which nothing comes.
        told: is given each new token.

    Raises:
        ValueError: a prompt that the model cannot read.

    Example:
        >>> from isoloss.deploy.decoders import decoder
        >>> from isoloss.trainers.gpt_settings import Settings
        >>> from isoloss.trainers.gpt_modules import of
        >>> from isoloss.trainers.transformer import GPT
        >>> settings = Settings(width=32, tokens=(1,))
        >>> model = decoder(of(GPT(settings), settings))
        >>> made = generate(model, list(b"The"), 5, seed=1)
        >>> len(made.tokens), made.calls
        (5, 5)
        >>> made.tokens == generate(model, list(b"The"), 5, seed=1).tokens
        True
    """
    sampling = sampling or Sampling()
    ids = prompt_of(prompt, new, model.context, model.vocabulary)
    generator = torch.Generator().manual_seed(seed)
    session, tokens = model.begin(), list[int]()
    began = time.perf_counter()
    if len(ids) > 1:
        session.read(ids[:-1])
    started, last = time.perf_counter(), ids[-1:]
    for _ in range(new):
        token = draw(sampling.probabilities(session.read(last).logits[-1]), generator)
        tokens.append(token)
        if told is not None:
            told(token)
        if token == end:
            break
        last = torch.tensor([token])
    return Generated(tuple(tokens), len(tokens), time.perf_counter() - started, started - began)

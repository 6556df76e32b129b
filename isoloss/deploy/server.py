"""Many texts at once: as many as a server holds share each reading of the weights, and the next begins where one ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.deploy.decoders import Decoder, Session, read_together
from isoloss.deploy.generate import prompt_of
from isoloss.deploy.sampling import Sampling, draw


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Attributes:
        prompt: tokens.
        new: most new ones.
        seed: of the draws.
    """

    prompt: Sequence[int]
    new: int
    seed: int = 0


@dataclass(frozen=True)
class Served:
    """What became of requests.

    Attributes:
        texts: new tokens of each, in the order of the requests.
        seconds: of all.
        waited: seconds of each, from the beginning of all to its end.
        readings: of the weights.
    """

    texts: tuple[tuple[int, ...], ...]
    seconds: float
    waited: tuple[float, ...]
    readings: int

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all requests."""
        return sum(len(text) for text in self.texts) / self.seconds


@dataclass(eq=False)
class _Slot:
    number: int
    session: Session
    ahead: Tensor
    left: int
    generator: torch.Generator
    text: list[int]


def serve(
    model: Decoder,
    requests: Sequence[Request],
    batch: int,
    piece: int = 16,
    sampling: Sampling | None = None,
    end: int | None = None,
) -> Served:
    """Answer requests that are all there at the start, ``batch`` of them at a time.

    Each text is drawn with its own seed: what comes out does not depend on what it is batched with, but for the last
    bits of sums where weights are floats.

    Args:
        model: :func:`isoloss.deploy.decoders.decoder` of a model.
        requests: at least one.
        batch: texts at a time.
        piece: tokens of a prompt that are read in one reading, so that long prompts hold up the others little.
        sampling: how tokens are drawn.
        end: a token after which nothing comes.

    Raises:
        ValueError: no request, sizes below one, or a prompt that the model cannot read.

    Example:
        >>> from isoloss.deploy.decoders import decoder
        >>> from isoloss.trainers.gpt_settings import Settings
        >>> from isoloss.trainers.gpt_modules import of
        >>> from isoloss.trainers.transformer import GPT
        >>> settings = Settings(width=32, tokens=(1,))
        >>> model = decoder(of(GPT(settings), settings))
        >>> made = serve(model, [Request(list(b"to be"), 4, 1), Request(list(b"or"), 3, 2)], batch=2)
        >>> [len(text) for text in made.texts], made.readings
        ([4, 3], 4)
    """
    if not requests or batch < 1 or piece < 1:
        raise ValueError(
            f"needed requests, a batch and a piece of at least one, got {len(requests)}, {batch}, {piece}"
        )
    sampling = sampling or Sampling()
    prompts = [prompt_of(one.prompt, one.new, model.context, model.vocabulary) for one in requests]
    waiting = list(range(len(requests)))[::-1]
    texts: dict[int, tuple[int, ...]] = {}
    waited: dict[int, float] = {}
    slots: list[_Slot] = []
    readings, began = 0, time.perf_counter()
    while waiting or slots:
        while waiting and len(slots) < batch:
            at = waiting.pop()
            generator = torch.Generator().manual_seed(requests[at].seed)
            slots.append(_Slot(at, model.begin(), prompts[at], requests[at].new, generator, []))
        parts = [slot.ahead[:piece] for slot in slots]
        found = read_together([slot.session for slot in slots], parts)
        readings += 1
        for slot, part, read in zip(slots, parts, found, strict=True):
            slot.ahead = slot.ahead[len(part) :]
            if len(slot.ahead):  # of the prompt
                continue
            token = draw(sampling.probabilities(read.logits[-1]), slot.generator)
            slot.text.append(token)
            slot.ahead = torch.tensor([token])
            if len(slot.text) == slot.left or token == end:
                texts[slot.number] = tuple(slot.text)
                waited[slot.number] = time.perf_counter() - began
        slots = [slot for slot in slots if slot.number not in texts]
    order = range(len(requests))
    return Served(
        tuple(texts[i] for i in order), time.perf_counter() - began, tuple(waited[i] for i in order), readings
    )

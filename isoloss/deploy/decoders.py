"""Models that read tokens one after another: the project's own GPT and local Hugging Face language models.

A decoder begins sessions; a session has read some tokens, reads more, and can forget the last ones. One example at a
time: where a token takes the reading of every weight, that is what deployment on a CPU is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isoloss.trainers.gpt_modules import Cache, Transformer
from isoloss.trainers.gpt_settings import VOCABULARY


@dataclass(frozen=True, eq=False)
class Read:
    """What a model says to tokens that it read, on the CPU, where tokens are drawn.

    Attributes:
        logits: of the token after each, (tokens, vocabulary).
        hidden: what the head got, (tokens, width).
    """

    logits: Tensor
    hidden: Tensor


class Session(Protocol):
    """A text that a model reads."""

    @property
    def length(self) -> int:
        """Tokens that were read and not forgotten."""

    def read(self, ids: Tensor) -> Read:
        """Read more tokens, (n,)."""

    def rewind(self, length: int) -> None:
        """Forget all but the first so many."""


class Decoder(Protocol):
    """A model that sessions can be begun with."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""

    @property
    def context(self) -> int:
        """Most tokens of a session; 0: no limit is known."""

    def begin(self) -> Session:
        """A session that has read nothing."""


def decoder(model: nn.Module) -> Decoder:
    """The decoder of a model: a :class:`~isoloss.trainers.gpt_modules.Transformer`, which is the reference trainer's model
    (``isoloss.trainers.gpt_modules.load(folder)``), or a causal language model of Hugging Face.

    Raises:
        TypeError: another model.

    Example:
        >>> from isoloss.trainers.gpt_settings import Settings
        >>> from isoloss.trainers.gpt_modules import of
        >>> from isoloss.trainers.transformer import GPT
        >>> settings = Settings(width=32, tokens=(1,), seq_len=8)
        >>> session = decoder(of(GPT(settings), settings)).begin()
        >>> session.read(torch.tensor([104, 101])).logits.shape, session.length
        (torch.Size([2, 256]), 2)
    """
    if isinstance(model, Transformer):
        return OfTransformer(model.eval())
    if hasattr(model, "get_output_embeddings") and hasattr(model, "prepare_inputs_for_generation"):
        return OfHuggingFace(model.eval())
    raise TypeError(
        "needed a Transformer of isoloss.trainers.gpt_modules or a causal language model of Hugging Face, got "
        f"{type(model).__name__}. Write a class with `vocabulary`, `context` and `begin`"
    )


@dataclass(frozen=True, eq=False)
class OfTransformer:
    """Sessions of the reference trainer's model."""

    model: Transformer

    @property
    def vocabulary(self) -> int:
        """256: bytes."""
        return VOCABULARY

    @property
    def context(self) -> int:
        """The length that the model was trained at."""
        return self.model.cos.shape[0]

    def begin(self) -> Session:
        """A session that has read nothing."""
        return _Session(self.model, Cache(), self.context)


@dataclass(eq=False)
class _Session:
    model: Transformer
    cache: Cache
    context: int

    @property
    def length(self) -> int:
        return self.cache.length

    @torch.no_grad()
    def read(self, ids: Tensor) -> Read:
        _refuse(ids, self.length, self.context)
        with _heard(self.model.head) as seen:
            logits = self.model(ids[None].to(self.model.cos.device), self.cache)
        return Read(logits[0].float().cpu(), seen[-1][0].float().cpu())

    def rewind(self, length: int) -> None:
        self.cache.crop(length)


@contextmanager
def _heard(head: nn.Module) -> Iterator[list[Tensor]]:
    """What the head gets, while the block runs."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


@dataclass(frozen=True, eq=False)
class OfHuggingFace:
    """Sessions of a causal language model of Hugging Face, with its own cache."""

    model: Any

    @property
    def vocabulary(self) -> int:
        """What its configuration says."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def context(self) -> int:
        """What its configuration says."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 0)

    def begin(self) -> Session:
        """A session that has read nothing."""
        from transformers.cache_utils import DynamicCache

        return _HuggingFaceSession(self.model, DynamicCache(config=self.model.config), self.context)


@dataclass(eq=False)
class _HuggingFaceSession:
    model: Any
    cache: Any
    context: int

    @property
    def length(self) -> int:
        return int(self.cache.get_seq_length())

    @torch.no_grad()
    def read(self, ids: Tensor) -> Read:
        _refuse(ids, self.length, self.context)
        with _heard(self.model.get_output_embeddings()) as seen:
            out = self.model(
                input_ids=ids[None].to(self.model.device), past_key_values=self.cache, use_cache=True
            )
        return Read(out.logits[0].float().cpu(), seen[-1].flatten(0, -2).float().cpu())

    def rewind(self, length: int) -> None:
        if length < self.length:
            self.cache.crop(length - self.length)  # negative: so many of the last ones


def _refuse(ids: Tensor, length: int, context: int) -> None:
    if ids.ndim != 1 or not ids.numel():
        raise ValueError(f"needed tokens in one dimension, at least one, got shape {tuple(ids.shape)}")
    if context and length + len(ids) > context:
        raise ValueError(
            f"the model reads at most {context} tokens, got {length} and {len(ids)} more. Ask for fewer, or begin anew"
        )

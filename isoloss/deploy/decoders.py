"""Models that read tokens one after another: the project's own GPT and local Hugging Face language models.

A decoder begins sessions; a session has read some tokens, reads more, and can forget the last ones. Where a token takes
the reading of every weight, that is what deployment on a CPU is about: several texts can share a reading
(:func:`read_together`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isoloss.deploy.stack import Stack, read, read_natively, stack_of
from isoloss.trainers.gpt_modules import Cache, Transformer
from isoloss.trainers.gpt_settings import VOCABULARY

ROOM = 128  # places that the cache of a text begins with


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
    _stacks: Stacks = field(default_factory=lambda: Stacks(), repr=False)

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
        stack = self._stacks.of(self.model)
        return _Session(self.model, Cache(), self.context) if stack is None else StackSession(stack)


@dataclass(frozen=True, eq=False)
class OfHuggingFace:
    """Sessions of a causal language model of Hugging Face: of the Llama kind by its weights, of others by their own forward."""

    model: Any
    _stacks: Stacks = field(default_factory=lambda: Stacks(), repr=False)

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
        stack = self._stacks.of(self.model)
        if stack is not None:
            return StackSession(stack)
        from transformers.cache_utils import DynamicCache

        return _HuggingFaceSession(self.model, DynamicCache(config=self.model.config), self.context)


@dataclass(eq=False)
class Stacks:
    """The stack of a model, made anew where its weights have changed since."""

    _known: tuple[object, Stack | None] | None = None

    def of(self, model: nn.Module) -> Stack | None:
        """None where the model has none."""
        mark = self.mark(model)
        if self._known is None or self._known[0] != mark:
            self._known = mark, stack_of(model)
        return self._known[1]

    def mark(self, model: nn.Module) -> object:
        """What changes with the weights, and with hooks."""
        mark = [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in _tensors(model)]
        mark.append(
            (sum(len(one._forward_pre_hooks) + len(one._forward_hooks) for one in model.modules()), 0)
        )
        return mark


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


@dataclass(eq=False)
class StackSession:
    """A text that a stack reads: in one call of native code, or in PyTorch."""

    stack: Stack
    length: int = 0
    cache: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.cache = self.stack.cache(min(ROOM, self.stack.context))

    def read(self, ids: Tensor) -> Read:
        """Read more tokens, (n,)."""
        stack, count = self.stack, len(ids)
        _refuse(ids, self.length, stack.context)
        self.reserve(count)
        if count <= stack.most_native:
            positions = torch.arange(self.length, self.length + count)
            hidden, logits = read_natively(stack, ids.cpu().long(), [0] * count, [self.cache], positions)
        else:
            hidden, logits = read(stack, ids, self.cache, self.length)
        self.length += count
        return Read(logits.float(), hidden.float())

    def reserve(self, count: int) -> None:
        """Room for so many more tokens."""
        if self.length + count > self.cache.shape[3]:
            wider = self.stack.cache(
                min(self.stack.context, max(2 * self.cache.shape[3], self.length + count))
            )
            wider[:, :, :, : self.length] = self.cache[:, :, :, : self.length]
            self.cache = wider

    def rewind(self, length: int) -> None:
        """Forget all but the first so many."""
        self.length = min(self.length, length)


def read_together(sessions: Sequence[Session], ids: Sequence[Tensor]) -> list[Read]:
    """Several texts read on, each by tokens of its own; those of one model share a reading of its weights.

    Args:
        sessions: different ones.
        ids: of each, (n,).

    Raises:
        ValueError: other tokens than :meth:`Session.read` takes, or a session twice.

    Example:
        >>> from isoloss.trainers.gpt_settings import Settings
        >>> from isoloss.trainers.gpt_modules import of
        >>> from isoloss.trainers.transformer import GPT
        >>> settings = Settings(width=32, tokens=(1,))
        >>> model = decoder(of(GPT(settings), settings))
        >>> texts = [model.begin(), model.begin()]
        >>> [len(one.logits) for one in read_together(texts, [torch.tensor([104, 101]), torch.tensor([105])])]
        [2, 1]
    """
    if len(sessions) != len(ids) or len({id(one) for one in sessions}) != len(sessions):
        raise ValueError(f"needed tokens for each of different sessions, got {len(ids)} for {len(sessions)}")
    own = [one for one in sessions if isinstance(one, StackSession)]
    counts = [len(one) for one in ids]
    shared = len(own) == len(sessions) > 1 and len({id(one.stack) for one in own}) == 1
    if not shared or sum(counts) > own[0].stack.most_native:
        return [session.read(part) for session, part in zip(sessions, ids, strict=True)]
    stack = own[0].stack
    for session, part in zip(own, ids, strict=True):
        _refuse(part, session.length, stack.context)
        session.reserve(len(part))
    positions = torch.cat(
        [torch.arange(one.length, one.length + n) for one, n in zip(own, counts, strict=True)]
    )
    texts = [i for i, n in enumerate(counts) for _ in range(n)]
    hidden, logits = read_natively(
        stack, torch.cat(list(ids)).long(), texts, [one.cache for one in own], positions
    )
    answers, first = [], 0
    for session, n in zip(own, counts, strict=True):
        session.length += n
        answers.append(Read(logits[first : first + n], hidden[first : first + n]))
        first += n
    return answers


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


@contextmanager
def _heard(head: nn.Module) -> Iterator[list[Tensor]]:
    """What the head gets, while the block runs."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


def _refuse(ids: Tensor, length: int, context: int) -> None:
    if ids.ndim != 1 or not ids.numel():
        raise ValueError(f"needed tokens in one dimension, at least one, got shape {tuple(ids.shape)}")
    if context and length + len(ids) > context:
        raise ValueError(
            f"the model reads at most {context} tokens, got {length} and {len(ids)} more. Ask for fewer, or begin anew"
        )

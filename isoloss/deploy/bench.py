r"""How fast models generate on this machine, and how near that is to what its memory allows.

A token takes the reading of every weight. With B bytes of weights and the measured bandwidth W no program takes less than
:math:`B / W`; the share of W that generating reaches says what is left to gain. Models are timed in turn, with the threads
on cores of their own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoloss.deploy.decoders import Decoder, Session
from isoloss.deploy.linear import PackedEmbedding
from isoloss.deploy.models import held_in
from isoloss.measure.latency import Median, times
from isoloss.measure.roofline import Roofline, cores

TASKS = Path("/proc/self/task")  # threads of this process, on Linux


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model to be timed.

    Attributes:
        decoder: of the model.
        bytes: of weights that are read for a token (:func:`bytes_read`).
    """

    decoder: Decoder
    bytes: int


@dataclass(frozen=True)
class Speed:
    """How fast a model generates.

    Attributes:
        model: its name.
        threads: of torch.
        bytes: of weights that are read for a token.
        token: seconds for each generated token, one after another.
        prompt: seconds for each token of a prompt, read at once.
        bandwidth: bytes a second that this machine reads with so many threads; NaN where that was not measured.
        load: load average of the machine before and after.
    """

    model: str
    threads: int
    bytes: int
    token: Median
    prompt: Median
    bandwidth: float
    load: tuple[float, float]

    @property
    def tokens_per_second(self) -> float:
        """Generated."""
        return 1 / self.token.value

    @property
    def share(self) -> float:
        """Of the machine's bandwidth that the reading of the weights takes."""
        return self.bytes / self.token.value / self.bandwidth

    def __repr__(self) -> str:
        return (
            f"Speed({self.model}, {self.threads} threads: {self.tokens_per_second:.4g} tokens/s, "
            f"{100 * self.share:.3g} % of the bandwidth)"
        )


def bytes_read(model: nn.Module) -> int:
    """Bytes of all parameters and buffers but tables that are only looked up; shared ones once.

    Example:
        >>> net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
        >>> bytes_read(net)
        160
        >>> net[1].weight = net[0].weight  # the head reads all of it
        >>> bytes_read(net)
        160
    """
    found: dict[tuple[Any, ...], int] = {}
    for module in model.modules():
        if not isinstance(module, (nn.Embedding, PackedEmbedding)):
            for one in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                found[one.untyped_storage()._cdata, one.storage_offset()] = one.numel() * one.element_size()
        for held in held_in(module).values():
            found[(id(held),)] = held.bytes
    return sum(found.values())


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """So many threads of torch, each thread of this process on the first so many cores that it may use.

    Where the system cannot do that, threads are set and not pinned.

    Raises:
        ValueError: more threads than cores.
    """
    if not 1 <= threads <= cores():
        raise ValueError(f"needed 1 to {cores()} threads, one for each core, got {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.ones(64, 64) @ torch.ones(64, 64)  # starts the threads
    held: dict[int, set[int]] = {}
    try:
        if hasattr(os, "sched_getaffinity") and TASKS.is_dir():
            whole = os.sched_getaffinity(0)
            some = set(sorted(whole)[:threads])
            for place in TASKS.iterdir():
                with suppress(OSError):  # a thread that ended meanwhile
                    held[int(place.name)] = os.sched_getaffinity(int(place.name))
                    os.sched_setaffinity(int(place.name), some)
        yield
    finally:
        for place in TASKS.iterdir() if held else ():
            with suppress(OSError):  # those that began meanwhile got the few cores of the one that began them
                os.sched_setaffinity(int(place.name), held.get(int(place.name), whole))
        torch.set_num_threads(before)


def bench(
    models: Mapping[str, Candidate],
    threads: Sequence[int] = (1,),
    context: int = 32,
    new: int = 8,
    repeats: int = 10,
    machine: Roofline | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Speed]:
    """Time models, in turn, with each number of threads.

    Args:
        models: name -> what is timed.
        threads: to sweep.
        context: tokens of the prompt.
        new: tokens that are generated after it, of which a repeat takes the time.
        repeats: of each.
        machine: its measured bandwidth.
        progress: (what, sweeps done, sweeps in all).

    Raises:
        ValueError: no model, no thread, or a text that a model cannot read.

    Example:
        >>> from isoloss.deploy.decoders import decoder
        >>> from isoloss.trainers.gpt_modules import of
        >>> from isoloss.trainers.gpt_settings import Settings
        >>> from isoloss.trainers.transformer import GPT
        >>> settings = Settings(width=32, tokens=(1,))
        >>> model = of(GPT(settings), settings)
        >>> [found] = bench({"small": Candidate(decoder(model), bytes_read(model))}, repeats=5)
        >>> found.threads, found.token.low <= found.token.value <= found.token.high
        (1, True)
    """
    if not models or not threads:
        raise ValueError(f"needed models and numbers of threads, got {len(models)} and {len(threads)}")
    for name, one in models.items():
        if one.decoder.context and context + new > one.decoder.context:
            raise ValueError(
                f"{name} reads at most {one.decoder.context} tokens, got {context} and {new} more. Ask for fewer"
            )
    out = []
    for i, count in enumerate(threads):
        if progress is not None:
            progress(f"with {count} threads", i, len(threads))
        with pinned(count):
            calls: dict[str, Callable[[], object]] = {}
            for name, one in models.items():
                session = one.decoder.begin()
                session.read(_tokens(context, one.decoder.vocabulary))
                calls[f"token {name}"] = partial(
                    _generate, session, context, _tokens(new, one.decoder.vocabulary)
                )
                calls[f"prompt {name}"] = partial(_read, one.decoder, context)
            found = times(calls, repeats, warm=2)
        for name, one in models.items():
            token, prompt = found[f"token {name}"], found[f"prompt {name}"]
            out.append(
                Speed(
                    name,
                    count,
                    one.bytes,
                    _each(token.median(), new),
                    _each(prompt.median(), context),
                    _bandwidth(machine, count),
                    token.load,
                )
            )
    return out


def _tokens(count: int, vocabulary: int) -> torch.Tensor:
    """Different ones, spread over the vocabulary."""
    return (torch.arange(count) * 7919) % vocabulary


def _generate(session: Session, context: int, ids: torch.Tensor) -> None:
    session.rewind(context)
    for i in range(len(ids)):
        session.read(ids[i : i + 1]).logits.argmax()


def _read(decoder: Decoder, context: int) -> None:
    decoder.begin().read(_tokens(context, decoder.vocabulary))


def _each(found: Median, of: int) -> Median:
    return Median(found.value / of, found.low / of, found.high / of, found.coverage, found.count)


def _bandwidth(machine: Roofline | None, threads: int) -> float:
    if machine is None or threads not in {one.threads for one in machine.ceilings}:
        return math.nan
    return machine.at(threads).bandwidth

r"""The memory of a training step of a concrete model: predicted before it is run, and measured.

Predicted, from the tensors themselves: the forward and backward passes run on tensors that have shapes and types but
no numbers, and every storage that an operator makes is counted while it lives. What autograd keeps for the backward
pass is read with saved-tensor hooks, a storage that several tensors share once. The optimiser's states and its
working memory follow from rules. Nothing of the model's size is allocated, so a step that would not fit is predicted
as well.

Measured: a real step of a copy of the model, every allocation and release as torch's profiler reports them; the growth
of the process's resident memory beside it, which also sees what libraries allocate for themselves.

Formulas for models that do not exist yet, ZeRO and offloading: :mod:`isoloss.measure.zero`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from isoloss.errors import NoAnswer
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.measure.resident import available, resident_peak
from isoloss.measure.storages import Tally, bytes_of, copies, is_tensor, saved_by_module, shapes
from isoloss.measure.subject import Batch, Subject, resized
from isoloss.measure.zero import MOMENTS, moments_of, precision_of

COMPUTED = ("as-is", "autocast", "mixed", "mixed-copy")
"""``as-is``: as the parameters are; ``autocast``: matrix products in bfloat16, states as they are; ``mixed`` and
``mixed-copy``: a bfloat16 model with float32 states, as in :data:`isoloss.measure.zero.PRECISIONS`."""

_STEP_COUNTER = 4  # bytes of the float32 scalar in which torch's Adam counts the steps of a tensor


@dataclass(frozen=True)
class StepMemory:
    """The memory of one training step [byte].

    Attributes:
        weights, buffers, inputs: of the model and of the batch.
        gradients: after the backward pass.
        optimiser: states that live between steps.
        activations: what lives at the end of the forward pass and did not before it.
        peak: the most that lives at once, all of the above included where they live.
        peak_in: ``forward``, ``backward`` or ``optimiser``.
        by_module: module path -> bytes that autograd keeps of it; empty where they were not told apart.
        how: where the numbers come from.
        resident: growth of the process's resident memory over the step; NaN where it was not measured.
        spent: what finding out cost.
    """

    weights: int
    buffers: int
    inputs: int
    gradients: int
    optimiser: int
    activations: int
    peak: int
    peak_in: str
    by_module: dict[str, int] = field(default_factory=dict)
    how: str = ""
    resident: float = math.nan
    spent: Spent = field(default_factory=lambda: Spent(math.nan, math.nan))


def predict_memory(
    subject: Subject, optimiser: str = "adamw", precision: str = "as-is", examples: int | None = None
) -> StepMemory:
    """The memory of one training step on the subject's first batch, in train mode, without taking it.

    Args:
        subject: what would be trained.
        optimiser: a key of :data:`isoloss.measure.zero.MOMENTS`; its states are kept one tensor at a time, as
            torch does on a CPU. Muon moves the weights of linear layers that are no embedding, AdamW the rest.
        precision: one of :data:`COMPUTED`.
        examples: of the batch; the first batch's own number if not given.

    Raises:
        ValueError: an unknown optimiser or precision. NoAnswer: no parameter takes a gradient.

    Example:
        >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
        >>> batch = (torch.ones(64, 100), torch.zeros(64).long())
        >>> subject = Subject(net, [batch], nn.functional.cross_entropy)
        >>> found = predict_memory(subject)
        >>> found.weights, found.optimiser, found.by_module["1"]  # ReLU keeps its output, 64 x 50 x 4
        (22240, 44496, 12800)
        >>> predict_memory(subject, examples=10**9).by_module["1"]
        200000000000
    """
    moments_of(optimiser)
    if precision not in COMPUTED:
        raise ValueError(f"no precision named {precision!r}. There are: {', '.join(COMPUTED)}")
    if not subject.parameters():
        raise NoAnswer("no parameter takes a gradient, so there is no training step", "a model that trains")
    batch = subject.batches[0]
    with timed() as watch:
        try:
            found = _simulated(subject, batch, optimiser, precision, examples, fake=True)
        except Exception as error:  # whatever a model does that needs numbers; a real pass fails by itself
            found = _simulated(subject, batch, optimiser, precision, examples, fake=False)
            found = replace(found, how=f"{found.how}, on real tensors: {type(error).__name__} on empty ones")
    return replace(found, spent=watch.spent())


def _simulated(
    subject: Subject, batch: Batch, optimiser: str, precision: str, examples: int | None, fake: bool
) -> StepMemory:
    model, batch, mode = copies(subject, batch, fake)
    with mode:
        if examples is not None:
            batch = resized(batch, examples)
        if precision.startswith("mixed"):
            _halve(model)
            batch = tree_map(_halved, batch)
        return _passes(replace(subject, model=model), batch, optimiser, precision, fake)


def forward_peak(subject: Subject, examples: int) -> int:
    """Bytes that a forward pass without gradients holds at once at its most, the weights not counted.

    Found on empty tensors; where the model needs numbers, by a real pass of a copy.

    Example:
        >>> layer = nn.Linear(100, 50)
        >>> subject = Subject(layer, [(torch.ones(8, 100), torch.ones(8, 50))], nn.functional.mse_loss)
        >>> forward_peak(subject, 8), forward_peak(subject, 80)  # 100 numbers in, 50 out
        (4800, 48000)
    """

    def peak(fake: bool) -> int:
        model, batch, mode = copies(subject, subject.batches[0], fake)
        with mode, torch.no_grad():
            inputs, _ = resized(batch, examples)
            given = [v for v in tree_leaves(inputs) if is_tensor(v)]
            with Tally([*model.parameters(), *model.buffers(), *given], fake) as tally:
                replace(subject, model=model.eval()).predict(inputs)
        inside: int = tally.peak
        return bytes_of(given) + inside

    try:
        return peak(fake=True)
    except Exception:  # a real pass fails by itself
        return peak(fake=False)


def _halve(model: nn.Module) -> None:
    """The model in bfloat16, in place; a tied parameter stays one. (``Module.to`` cannot do this to empty tensors.)"""
    halves: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if id(p) not in halves:
                halves[id(p)] = nn.Parameter(_halved(p.detach()), requires_grad=p.requires_grad)
            setattr(module, name, halves[id(p)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _halved(buffer))


def _halved(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


def _passes(subject: Subject, batch: Batch, optimiser: str, precision: str, empty: bool) -> StepMemory:
    """Both passes under a tally, and the optimiser by rule."""
    model = subject.model.train()
    model.zero_grad()
    given = [v for v in tree_leaves(batch) if is_tensor(v)]
    held = [*model.parameters(), *model.buffers(), *given]
    weights, buffers, inputs = bytes_of(model.parameters()), bytes_of(model.buffers()), bytes_of(given)
    with saved_by_module(model, held) as kept, Tally(held, empty) as tally:
        with _computing(precision, model):
            loss = subject.loss(batch)
        activations, forward = tally.now, tally.peak
        loss.backward()  # type: ignore[no-untyped-call]
        both = tally.peak
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states, working = _rules(model, optimiser, precision)
    base = weights + buffers + inputs + states
    peaks = {
        "forward": base + forward,
        "backward": base + both if both > forward else 0,
        "optimiser": base + gradients + working,
    }
    where = max(peaks, key=lambda name: peaks[name])
    return StepMemory(
        weights, buffers, inputs, gradients, states, activations, peaks[where], where, kept,
        f"predicted, {optimiser}, {precision}, batch {shapes(batch[0])}",
    )  # fmt: skip


def _computing(precision: str, model: nn.Module) -> AbstractContextManager[Any]:
    if precision != "autocast":
        return nullcontext()
    device = next((p.device.type for p in model.parameters()), "cpu")
    context: AbstractContextManager[Any] = torch.autocast(device, torch.bfloat16)
    return context


def _rules(model: nn.Module, optimiser: str, precision: str) -> tuple[int, int]:
    """States of the optimiser and its working memory on the largest tensor [byte], of what has a gradient."""
    matrices = _matrices(model) if optimiser == "muon" else set()
    states = working = 0
    for p in model.parameters():
        if p.grad is None:
            continue
        one = optimiser if optimiser != "muon" or id(p) in matrices else "adamw"
        if precision.startswith("mixed"):
            kind = precision_of(precision)
            each = 4
            states += p.numel() * (kind.master + kind.copy + MOMENTS[one] * kind.moment)
        else:
            each = p.element_size()
            states += MOMENTS[one] * p.nbytes
        if one in ("adam", "adamw"):
            states += _STEP_COUNTER
            working = max(working, 2 * each * p.numel())  # the denominator and what it is made from
        elif one == "muon":  # the update, its bfloat16 form three times, two Gram matrices
            working = max(working, (each + 6) * p.numel() + 4 * min(p.shape) ** 2)
    return states, working


def _matrices(model: nn.Module) -> set[int]:
    """Parameters that Muon moves."""
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - looked_up


def measure_memory(subject: Subject, optimiser: str = "adamw", examples: int | None = None) -> StepMemory:
    """The memory of one real training step of a copy of the model, as torch's profiler counts it.

    A first step, which is not counted, lets libraries and optimiser allocate what they keep.

    Args:
        subject, optimiser, examples: as :func:`predict_memory` has them; precision as the parameters are.

    Raises:
        ValueError: an unknown optimiser. NoAnswer: the step is predicted not to fit into the memory that is free,
            or the model is not on the CPU, where alone this is known to count right.

    Example:
        >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
        >>> batch = (torch.ones(64, 100), torch.zeros(64).long())
        >>> subject = Subject(net, [batch], nn.functional.cross_entropy)
        >>> abs(measure_memory(subject).peak / predict_memory(subject).peak - 1) < 0.05
        True
    """
    moments_of(optimiser)
    devices = {p.device.type for p in subject.model.parameters()}
    if devices != {"cpu"}:
        raise NoAnswer(
            f"memory is measured on the CPU, and the model is on {', '.join(devices)}", "model.cpu()"
        )
    predicted = predict_memory(subject, optimiser, examples=examples)
    if predicted.peak > available():
        raise NoAnswer(
            f"a step takes {predicted.peak / 1e9:.3g} GB by prediction, and {available() / 1e9:.3g} GB are free",
            "a smaller batch, or a machine with more memory",
        )
    batch = subject.batches[0] if examples is None else resized(subject.batches[0], examples)
    with timed() as watch, resident_peak() as resident:
        model = copy.deepcopy(subject.model).train()
        found = _profiled(replace(subject, model=model), batch, _made(model, optimiser))
    return replace(
        found,
        resident=resident.grown,
        how=f"measured, {optimiser}, as-is, batch {shapes(batch[0])}",
        spent=watch.spent(),
    )


def _profiled(subject: Subject, batch: Batch, moving: Sequence[torch.optim.Optimizer]) -> StepMemory:
    model = subject.model

    def step() -> None:
        with torch.profiler.record_function("isoloss: forward"):
            loss = subject.loss(batch)
        with torch.profiler.record_function("isoloss: backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with torch.profiler.record_function("isoloss: optimiser"):
            for each in moving:
                each.step()

    step()
    model.zero_grad()
    events = _profile(step)
    states = [v for each in moving for s in each.state.values() for v in s.values() if is_tensor(v)]
    weights, buffers = bytes_of(model.parameters()), bytes_of(model.buffers())
    inputs, optimiser = bytes_of(v for v in tree_leaves(batch) if is_tensor(v)), bytes_of(states)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    now = peak = activations = 0
    place = where = "forward"
    for _, name, size in events:
        if name != "[memory]":
            place = name.partition(": ")[2]
            activations = now if place == "backward" else activations
            continue
        now += size
        if now > peak:
            peak, where = now, place
    base = weights + buffers + inputs + optimiser
    return StepMemory(weights, buffers, inputs, gradients, optimiser, activations, base + peak, where)


def _profile(step: Callable[[], None]) -> list[tuple[int, str, int]]:
    """Allocations, releases and the marks of :func:`_profiled`, in the order of time."""
    import os

    # Else the profiler's library prints two lines each time.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    found: Any = profile.profiler
    return sorted(
        (e.start_ns(), e.name(), e.nbytes())
        for e in found.kineto_results.events()
        if e.name() == "[memory]" or e.name().startswith("isoloss: ")
    )


def _made(model: nn.Module, optimiser: str) -> list[torch.optim.Optimizer]:
    """The optimisers of torch with the rates at 0, so that the numbers stay what they were."""
    own = [p for p in model.parameters() if p.requires_grad]
    if optimiser == "sgd":
        return [torch.optim.SGD(own, lr=0.0)]
    if optimiser == "momentum":
        return [torch.optim.SGD(own, lr=0.0, momentum=0.9)]
    if optimiser == "adam":
        return [torch.optim.Adam(own, lr=0.0)]
    if optimiser == "adamw":
        return [torch.optim.AdamW(own, lr=0.0)]
    if not hasattr(torch.optim, "Muon"):
        raise NoAnswer(f"torch {torch.__version__} has no Muon to measure", "torch 2.9 or later")
    matrices = _matrices(model)
    inside = [p for p in own if id(p) in matrices]
    rest = [p for p in own if id(p) not in matrices]
    out: list[torch.optim.Optimizer] = [torch.optim.Muon(inside, lr=0.0)] if inside else []
    return [*out, torch.optim.AdamW(rest, lr=0.0)] if rest else out


def probe(subject: Subject, optimiser: str = "adamw", examples: int | None = None) -> list[Measurement]:
    """Predicted and measured memory of a training step; a step that does not fit has no measured part."""
    predicted = predict_memory(subject, optimiser, examples=examples)
    parts = ("weights", "buffers", "gradients", "optimiser", "activations")
    out = [
        Measurement(
            f"memory_{part}", getattr(predicted, part), 0.0, "byte", how=predicted.how, spent=predicted.spent
        )
        for part in parts
    ]
    why = f"{predicted.how}; at its most in {predicted.peak_in}"
    out.append(Measurement("memory_peak", predicted.peak, math.nan, "byte", how=why, spent=predicted.spent))
    try:
        measured = measure_memory(subject, optimiser, examples)
    except NoAnswer:
        return out
    off = predicted.peak / measured.peak - 1
    why = f"{measured.how}; prediction {100 * off:+.2f} %, resident memory grew by {measured.resident:.4g}"
    out.append(Measurement("memory_peak_measured", measured.peak, 0.0, "byte", how=why, spent=measured.spent))
    return out

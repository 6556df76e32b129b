r"""Floating-point operations of a model, forward and backward, counted as torch executes them.

A dispatch mode sees every operator that runs, below autograd, so that the count holds for attention, experts with
real routing, recurrent layers, functional code and models of other libraries alike. What an operator costs stands
in :mod:`isoloss.measure.operators`: products that are summed, 2 FLOPs for one multiply-add; everything done a few
times per element counts 0. An operator that is neither is listed by name. Counts are compared with analytical
formulas (:mod:`isoloss.measure.formulas`), layer by layer and, for models whose configuration is known, as a whole.

Not seen: work done outside torch, and compiled kernels; a compiled model is run as written.
"""

from __future__ import annotations

import sys
import warnings
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from isoloss.measure import formulas
from isoloss.measure.dispatch import Mode
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.measure.operators import Formula, Work, work_of
from isoloss.measure.subject import Subject
from isoloss.runs.finding import Finding

__all__ = ["Counter", "Flops", "Uncounted", "count", "counting", "probe"]

OUTSIDE = "(outside)"
"""Where work is booked that no module does: the loss, code between the modules."""
OFF = 0.01  # relative difference between count and formula from which on it is a finding


@dataclass(frozen=True)
class Uncounted:
    """An operator that does work, and that no formula knows.

    Attributes:
        name: of the operator.
        calls: how often it ran.
        elements: numbers that it gave, all calls together.
        where: modules in which it ran.
    """

    name: str
    calls: int
    elements: int
    where: tuple[str, ...]


@dataclass
class Counter:
    """What was counted so far, by module, direction and operator.

    Attributes:
        cells: (module path, whether in a backward pass, operator) -> FLOPs, of them masked, of them again, calls.
        expected: module path -> FLOPs of its forward calls by the formula of its kind.
        entered: module path -> rows (positions times examples) that its forward calls took in.
        unknown: operator -> calls, elements, module paths.
    """

    cells: dict[tuple[str, bool, str], list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0] * 4)
    )
    expected: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    entered: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    unknown: dict[str, tuple[int, int, set[str]]] = field(default_factory=dict)

    def total(self, backward: bool | None = None, below: str = "") -> Work:
        """The sum over operators: of both directions or one, of all modules or those at or below a path.

        Example:
            >>> layer = nn.Linear(3, 5)
            >>> with counting(layer) as counter:
            ...     layer(torch.ones(2, 3)).sum().backward()
            >>> counter.total(backward=False).flops, counter.total(backward=True).flops
            (60, 60)
        """
        sums = [0, 0, 0]
        for (path, back, _), cell in self.cells.items():
            inside = not below or path == below or path.startswith(f"{below}.")
            if inside and backward in (None, back):
                sums = [total + part for total, part in zip(sums, cell, strict=False)]
        return Work(*sums)

    def book(self, path: str, backward: bool, operator: str, work: Work) -> None:
        """Add one call."""
        cell = self.cells[path, backward, operator]
        for i, part in enumerate((*work, 1)):
            cell[i] += part

    def miss(self, path: str, operator: str, elements: int) -> None:
        """Note one call of an operator that nobody knows."""
        calls, seen, where = self.unknown.get(operator, (0, 0, set()))
        self.unknown[operator] = (calls + 1, seen + elements, where | {path})

    def uncounted(self) -> tuple[Uncounted, ...]:
        """Operators that did work and were not counted."""
        return tuple(
            Uncounted(name, calls, elements, tuple(sorted(where)))
            for name, (calls, elements, where) in sorted(self.unknown.items())
        )


class _Places:
    """Which module runs: going forward by what was entered, going backward by the number of the graph's node.

    Autograd numbers its nodes in the order in which the forward pass makes them. The numbers at which modules were
    entered and left thus say of every node which module made it, without touching any tensor.
    """

    def __init__(self, model: nn.Module, counter: Counter) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.counter = counter
        self.stack: list[nn.Module] = []
        self.starts: list[int] = [0]
        self.paths: list[str] = [OUTSIDE]

    def here(self) -> str:
        return self.names[self.stack[-1]] if self.stack else OUTSIDE

    def _mark(self) -> None:
        self.starts.append(torch._C._autograd._get_sequence_nr())
        self.paths.append(self.here())

    def enter(self, module: nn.Module, inputs: Any) -> None:
        if module in self.names:
            self.stack.append(module)
            self._mark()

    def leave(self, module: nn.Module, inputs: Any, *rest: Any) -> None:
        """Called with keywords and output; where the module raised, torch leaves the keywords out."""
        if module not in self.names:
            return
        if module in self.stack:  # one that was left by an exception goes with those above it
            while self.stack.pop() is not module:
                pass
        self._mark()
        if len(rest) == 2 and torch._C._current_autograd_node() is None:
            keywords, output = rest
            path = self.names[module]
            given = (*inputs, *keywords.values())
            self.counter.entered[path] += next((_rows(x) for x in given if isinstance(x, Tensor)), 0)
            flops = formulas.of_module(module, inputs, keywords, output)
            if flops is not None:
                self.counter.expected[path] += flops

    def of_node(self, node: Any) -> str:
        if self.stack:  # computed again, for a checkpoint
            return self.here()
        return self.paths[bisect_right(self.starts, node._sequence_nr()) - 1]


class _Mode(Mode):
    supports_higher_order_operators = True

    def __init__(self, counter: Counter, places: _Places, own: Mapping[str, Formula]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter, self.places, self.own = counter, places, own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # such a tensor says itself what is done to the tensors it is made of
        known = hasattr(func, "_schema")
        nested = any(isinstance(arg, Tensor) and arg.is_nested for arg in args)
        if known and not nested and func.name().partition(".")[0] not in self.own:
            with self:  # what is made of other operators is counted as those
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        node = torch._C._current_autograd_node()
        path = self.places.here() if node is None else self.places.of_node(node)
        name = func.name().partition(".")[0] if known else func.name()
        work = work_of(func, args, kwargs, out, self.own)
        if work is None:
            self.counter.miss(path, name, _elements(out))
        elif work.flops:
            again = node is not None and self.places.stack  # modules called in a backward pass: a checkpoint
            self.counter.book(
                path, node is not None, name, work._replace(again=work.flops) if again else work
            )
        return out


def _rows(x: Tensor) -> int:
    """Positions in a tensor: of numbers all but the last dimension, of indices all."""
    if x.is_nested or not x.numel():
        return 0
    return x.numel() // x.shape[-1] if x.is_floating_point() and x.ndim else x.numel()


def _elements(out: Any) -> int:
    parts = out if isinstance(out, (tuple, list)) else (out,)
    return sum(part.numel() for part in parts if isinstance(part, Tensor))


@contextmanager
def counting(model: nn.Module, own: Mapping[str, Formula] | None = None) -> Iterator[Counter]:
    """Count all that torch executes within the block, by the modules of ``model``.

    Args:
        model: whose modules the work is booked to; other work is booked to ``(outside)``.
        own: formulas of further operators, such as ``{"mylib::scan": formula}``; they go before those of
            :data:`isoloss.measure.operators.FORMULAS`.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.ones(1, 4, 8)
        >>> with counting(attention) as counter:
        ...     _ = attention(x, x, x)
        >>> counter.total().flops == 4 * 2 * 4 * 8 * 8 + 2 * 2 * 4 * 4 * 8
        True
    """
    counter = Counter()
    places = _Places(model, counter)
    # Hooks on the modules themselves would take torch's transformer layers off their fast path.
    handles = [
        register_module_forward_pre_hook(places.enter),
        register_module_forward_hook(places.leave, with_kwargs=True, always_call=True),
    ]
    try:
        with _as_written(), _Mode(counter, places, own or {}):
            yield counter
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_written() -> Iterator[None]:
    """Compiled functions run as they are written: what a compiler fused could not be counted."""
    stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    if "torch._dynamo" not in sys.modules or stance is None:
        yield
        return
    with stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using `torch.compile")  # of hooks: ours do no harm
        yield


@dataclass(frozen=True, eq=False)
class Flops:
    """FLOPs of a subject: sums over all its batches.

    Attributes:
        inference: of a forward pass without gradients.
        step: of one pass with gradients, forward and backward.
        trained: whether ``step`` was counted.
        examples: in all batches.
        shapes: of the inputs of the first batch.
        uncounted: operators that did work and are not in the numbers.
        findings: what a reader must know.
        spent: what the count cost.
    """

    inference: Counter
    step: Counter
    trained: bool
    examples: int
    shapes: str
    uncounted: tuple[Uncounted, ...]
    findings: tuple[Finding, ...]
    spent: Spent

    @property
    def forward(self) -> int:
        """FLOPs of inference, all batches."""
        return self.inference.total().flops

    @property
    def backward(self) -> int:
        """FLOPs of the backward passes, all batches, with what they compute again."""
        return self.step.total(backward=True).flops

    @property
    def forward_backward(self) -> int:
        """FLOPs of a training step without the optimiser, all batches."""
        return self.step.total().flops

    def layers(self) -> list[tuple[str, int, int]]:
        """(module path, FLOPs of inference, FLOPs of forward and backward), of what each module does itself.

        Modules without work are left out; they stand in the order in which they first did some.
        """
        names = dict.fromkeys(path for counter in (self.inference, self.step) for path, _, _ in counter.cells)
        own = {name: [0, 0] for name in names}
        for column, counter in enumerate((self.inference, self.step)):
            for (path, _, _), cell in counter.cells.items():
                own[path][column] += cell[0]
        return [(name, forward, both) for name, (forward, both) in own.items()]

    def table(self) -> str:
        """:meth:`layers` as text, with shares."""
        rows = [(name or "(model)", a, b) for name, a, b in self.layers()]
        rows.append(("sum", self.forward, self.forward_backward))
        wide = max(len("module"), *(len(name) for name, _, _ in rows))
        head = f"{'module':<{wide}}  {'forward':>11}  {'share':>6}  {'fwd + bwd':>11}"
        lines = [
            f"{name:<{wide}}  {a:>11.4g}  {a / max(self.forward, 1):>6.1%}  "
            + (f"{b:>11.4g}" if self.trained else f"{'':>11}")
            for name, a, b in rows
        ]
        return "\n".join([head, *lines])

    def measurements(self) -> list[Measurement]:
        """FLOPs per example: whole, then by module."""
        how = f"operators as executed, 2 FLOPs a multiply-add, inputs {self.shapes}"
        if self.uncounted:
            how += f"; not counted: {', '.join(each.name for each in self.uncounted)}"
        masked, again = self.inference.total().masked, self.step.total().again

        def one(name: str, flops: int, of: str = "", why: str = how) -> Measurement:
            return Measurement(name, flops / self.examples, 0.0, "FLOP/example", of, why, self.spent)

        out = [one("flops_forward", self.forward)]
        if masked:
            out.append(
                one("flops_masked", masked, why=f"part of flops_forward above a causal diagonal; {how}")
            )
        if self.trained:
            out += [one("flops_backward", self.backward), one("flops_step", self.forward_backward)]
            if again:
                out.append(
                    one(
                        "flops_again",
                        again,
                        why=f"part of flops_backward that computes forward work again; {how}",
                    )
                )
        for path, forward, both in self.layers():
            out.append(one("flops_forward", forward, path or "(model)"))
            if self.trained:
                out.append(one("flops_step", both, path or "(model)"))
        return out


def count(subject: Subject, backward: bool = True, own: Mapping[str, Formula] | None = None) -> Flops:
    """FLOPs of the subject's batches, in eval mode.

    Args:
        subject: what is measured. Experts are counted as they are routed on these batches.
        backward: count a pass with gradients too; the parameters' ``grad`` is as before afterwards.
        own: formulas of further operators; see :func:`counting`.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> subject = Subject(net, [(torch.ones(5, 3), torch.zeros(5).long())], nn.functional.cross_entropy)
        >>> flops = count(subject)
        >>> flops.forward, flops.backward  # the first layer's input needs no gradient
        (200, 280)
        >>> print(flops.table())
        module      forward   share    fwd + bwd
        0               120   60.0%          240
        2                80   40.0%          240
        sum             200  100.0%          480
    """
    with timed() as watch, subject.measuring():
        with counting(subject.model, own) as inference, torch.no_grad():
            for inputs, _ in subject.batches:
                subject.predict(inputs)
        step = Counter()
        if backward:
            with _kept_gradients(subject.model), counting(subject.model, own) as step:
                for batch in subject.batches:
                    subject.loss(batch).backward()  # type: ignore[no-untyped-call]
                    subject.model.zero_grad()
    missed = (step if backward else inference).uncounted()
    if backward:
        missed += tuple(u for u in inference.uncounted() if u.name not in {each.name for each in missed})
    return Flops(
        inference,
        step,
        backward,
        subject.examples,
        _shapes(subject.batches[0][0]),
        missed,
        tuple(_findings(subject, inference, missed)),
        watch.spent(),
    )


@contextmanager
def _kept_gradients(model: nn.Module) -> Iterator[None]:
    kept = [(p, p.grad) for p in model.parameters()]
    for p, _ in kept:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in kept:
            p.grad = grad


def _shapes(inputs: Any) -> str:
    values = (
        inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    )
    return ", ".join("x".join(map(str, v.shape)) for v in values if isinstance(v, Tensor))


def _findings(subject: Subject, inference: Counter, missed: Sequence[Uncounted]) -> Iterator[Finding]:
    if missed:
        listed = ", ".join(
            f"{u.name} ({u.calls} call{'s' * (u.calls > 1)} in {u.where[0] or 'the model'})" for u in missed
        )
        yield Finding(
            "flops-uncounted", "warning", (), None,
            f"operators that do work and have no formula: {listed}",
            "the numbers leave their work out",
            "give own={'name': formula}, or take the numbers as a lower bound",
        )  # fmt: skip
    off = []
    for path, flops in inference.expected.items():
        counted = inference.total(backward=False, below=path).flops
        if abs(counted - flops) > OFF * max(flops, counted):
            off.append(f"{path or 'the model'}: counted {counted:.6g}, formula {flops:.6g}")
    whole = formulas.of_model(subject, inference)
    if whole is not None and abs(whole[0] - whole[1]) > OFF * max(whole):
        off.append(f"all layers: counted {whole[0]:.6g}, formula {whole[1]:.6g}")
    if off:
        yield Finding(
            "flops-off-formula", "warning", (), None,
            f"count and formula differ by more than {OFF:.0%} in {len(off)} places: {'; '.join(off[:5])}",
            "one of the two is wrong: an operator is missed or counted twice, or a layer does not do what its kind does",
            "look at the layer's operators: Flops.inference.cells",
        )  # fmt: skip


def probe(subject: Subject) -> Flops:
    """:func:`count` with the backward pass where a parameter takes a gradient; ``measurements()`` are per example."""
    return count(subject, backward=bool(subject.parameters()))

"""Every layer encoded in every format that it may take, from one calibration of the model as it is.

What a choice of formats is made from: exact sizes, and what each format does to each weight. The model itself stays
as it is; :meth:`Candidates.applied` puts a choice in place for the time of a block.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoloss.compress import formats, solvers
from isoloss.compress.compressed import plain_tensors
from isoloss.compress.formats import Encoded
from isoloss.compress.layers import Layer
from isoloss.compress.recipe import Choice
from isoloss.compress.replay import calibrating, digest
from isoloss.compress.resume import Files, flat, parts_of
from isoloss.compress.statistics import Collector, Statistics, refuse_unreached
from isoloss.compress.uniform import OF_TABLES, usual
from isoloss.measure.subject import call

NUMBERS = 1 << 27  # of second moments at a time
INTEGERS = (
    "int2/asym",
    "int2/g64/asym",
    "int3/g128/asym",
    "int4/g128/asym",
    "int5/asym",
    "int6/asym",
    "int8/asym",
)
TABLES = (
    "table2/int8",
    "table2/int8+0.2%",
    "table3/int8",
    "table3/int8+0.2%",
    "table4/int8",
    "table5/int8",
)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Candidate:
    r"""One layer in one format.

    Attributes:
        choice: format and solver as done.
        encoded: the weight as stored.
        distance: :math:`\|\Delta W\|^2`.
        rows: of every output :math:`(\Delta W H \Delta W^T)_{oo} / \mathrm{tr} H`, float64 (out,); H is the second moment
            of the inputs, 1 where they were not seen.
    """

    choice: Choice
    encoded: Encoded
    distance: float
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Candidates:
    """Every layer in every format.

    Attributes:
        layers: of the model.
        of: layer -> format -> candidate.
        energy: layer -> trace of the second moment of its inputs.
        plain_bytes: of what is not encoded.
        notes: what a reader must know.
        seconds: that it took.
    """

    layers: tuple[Layer, ...]
    of: Mapping[str, Mapping[str, Candidate]]
    energy: Mapping[str, float]
    plain_bytes: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def weights(self) -> int:
        """Numbers that are encoded."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    def bits(self, plan: Mapping[str, str]) -> int:
        """Stored bits of a choice of formats, layer -> format."""
        return sum(self.of[name][format].encoded.bits for name, format in plan.items())

    def choices(self, plan: Mapping[str, str]) -> dict[str, Choice | None]:
        """As :func:`isoloss.compress.compress` takes them."""
        return {name: self.of[name][format].choice for name, format in plan.items()}

    def uniform(self, format: str) -> dict[str, str]:
        """The same format for all layers."""
        return {layer.name: format for layer in self.layers}

    @contextmanager
    def applied(self, plan: Mapping[str, str]) -> Iterator[None]:
        """The model with these layers in these formats, as it was afterwards.

        Example:
            >>> from isoloss.compress.layers import find
            >>> net = nn.Linear(2, 1, bias=False)
            >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.3]]))
            >>> found = candidates(net, find(net).layers, [Choice("int2/asym")])
            >>> with found.applied({"model": "int2/asym"}):
            ...     net.weight.tolist()
            [[0.99..., 0.33...]]
            >>> round(net.weight[0, 1].item(), 1)
            0.3
        """
        own = [layer for layer in self.layers if layer.name in plan]
        before = {layer.name: layer.tensor.clone() for layer in own}
        try:
            for layer in own:
                layer.put(self.of[layer.name][plan[layer.name]].encoded.decode().to(layer.tensor.device))
            yield
        finally:
            for layer in own:
                layer.tensor.copy_(before[layer.name])


def ladder(solver: str | None = None) -> tuple[Choice, ...]:
    """The formats that are tried where none are named: from two bits to what costs hardly any loss.

    Args:
        solver: of all of them; tables by ``lut-feedback`` beside integers by ``gptq`` if none is named. A table costs less
            loss where rows are long, groups of integers fewer bits where they are short.

    Example:
        >>> sorted({choice.solver for choice in ladder()})
        ['gptq', 'lut-feedback']
        >>> [choice.format for choice in ladder("lut-feedback")]
        ['table2/int8', 'table2/int8+0.2%', 'table3/int8', 'table3/int8+0.2%', 'table4/int8', 'table5/int8', 'int8/asym']
    """
    if solver is None:
        return tuple(Choice(name, usual(name)) for name in (*TABLES, *INTEGERS))
    kind = solver.partition("(")[0]
    if kind in OF_TABLES:
        names = [name for name in TABLES if kind != "kmeans" or "+" not in name]  # it leaves no outliers out
        return (*(Choice(name, solver) for name in names), Choice("int8/asym", "nearest"))
    return tuple(Choice(name, solver) for name in INTEGERS)


def candidates(
    model: nn.Module,
    layers: Sequence[Layer],
    choices: Sequence[Choice],
    batches: Sequence[Any] | None = None,
    *,
    fisher: Mapping[str, Tensor] | None = None,
    unreached: Literal["refuse", "nearest"] = "refuse",
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Candidates:
    """Every layer in every format, all fitted to the inputs that the model as it is gives them.

    The inputs are gone through once, or several times where the second moments of all layers do not fit in half a
    gigabyte.

    Args:
        model: which is not changed.
        layers: of the model.
        choices: of every layer: formats, each with its solver.
        batches: calibration inputs, as :func:`isoloss.compress.compress` takes them.
        fisher: layer -> mean squared gradient, for solvers that need it.
        unreached: layers that no data come to: ``refuse``, or ``nearest`` to round them.
        folder: where layers that are done are kept. The same call with the same folder goes on after them, to the same
            bits; those of other calls lie beside them.
        progress: (what, layers done, layers in all).

    Raises:
        ValueError: no layer or no choice, two choices of one format, a weight that is not finite, data that a solver
            needs and are not given, a damaged file.
        NoAnswer: no data came to a layer.

    Example:
        >>> from isoloss.compress.layers import find
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> found = candidates(net, find(net).layers, ladder("gptq"), [torch.randn(32, 8)])
        >>> found.bits(found.uniform("int4/g128/asym")) / found.weights
        6.08...
    """
    started = time.perf_counter()
    layers = tuple(layers)
    _refuse(layers, choices, batches, fisher or {})
    kept = None
    if folder is not None:
        decided = _fingerprint(model, layers, choices, batches, fisher or {}, unreached)
        kept = Files(Path(folder) / decided[:16], decided, "layer")
    tried = {} if kept is None else _kept(kept, layers)
    numbers = {layer.name: number for number, layer in enumerate(layers)}
    left = [layer for layer in layers if layer.name not in tried]
    with calibrating(model):
        for some in _parts(left) if batches is not None else [left]:
            seen = _seen(model, some, choices, batches, unreached)
            for layer in some:
                if progress is not None:
                    progress(f"formats of {layer.name}", len(tried), len(layers))
                statistics = seen.get(layer.name)
                if fisher and layer.name in fisher:
                    statistics = replace(statistics or Statistics(layer.name, 0), fisher=fisher[layer.name])
                tried[layer.name] = _try(layer, choices, statistics)
                if kept is not None:
                    _keep(kept, numbers[layer.name], tried[layer.name])
    own = {layer.name: tried[layer.name] for layer in layers}
    of = {name: one.of for name, one in own.items()}
    energy = {name: one.energy for name, one in own.items()}
    notes = dict.fromkeys(note for one in own.values() for note in one.notes)
    plain, _ = plain_tensors(model, {layer.name: layer for layer in layers})
    rest = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())
    return Candidates(layers, of, energy, rest, tuple(notes), time.perf_counter() - started)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A layer in every format: what of it becomes part of :class:`Candidates`."""

    of: Mapping[str, Candidate]
    energy: float
    notes: tuple[str, ...]


def _try(layer: Layer, choices: Sequence[Choice], statistics: Statistics | None) -> _Tried:
    of: dict[str, Candidate] = {}
    notes: list[str] = []
    for choice in choices:
        of[choice.format], said = _candidate(layer, choice, statistics)
        notes += said
    return _Tried(of, _energy(layer, statistics), tuple(notes))


def _fingerprint(
    model: nn.Module,
    layers: Sequence[Layer],
    choices: Sequence[Choice],
    batches: Sequence[Any] | None,
    fisher: Mapping[str, Tensor],
    unreached: str,
) -> str:
    """Of all that decides the result."""
    said = [[layer.name for layer in layers], [(one.format, one.solver) for one in choices], unreached]
    squares = {layer.name: fisher[layer.name] for layer in layers if layer.name in fisher}
    own = [digest(part) for part in (dict(model.state_dict()), batches, squares)]
    return hashlib.sha256(repr([said, own]).encode()).hexdigest()


def _keep(files: Files, number: int, tried: _Tried) -> None:
    facts = [
        (one.choice.format, one.choice.solver, one.encoded.format.spec, one.distance)
        for one in tried.of.values()
    ]
    tensors = flat({format: one.encoded for format, one in tried.of.items()})
    rows = {f"rows of {format}": one.rows for format, one in tried.of.items()}
    files.write(number, {"formats": facts, "energy": tried.energy, "notes": tried.notes}, tensors | rows)


def _kept(files: Files, layers: Sequence[Layer]) -> dict[str, _Tried]:
    """Layer -> what was done before."""
    out = {}
    for number, layer in enumerate(layers):
        found = files.read(number)
        if found is None:
            continue
        facts, tensors = found
        try:
            of = {
                format: Candidate(
                    Choice(format, solver),
                    Encoded.from_tensors(spec, layer.shape, parts_of(tensors, format)),
                    distance,
                    tensors[f"rows of {format}"],
                )
                for format, solver, spec, distance in facts["formats"]
            }
            out[layer.name] = _Tried(of, facts["energy"], tuple(facts["notes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise files.damaged(number, error) from error
    return out


def _refuse(
    layers: Sequence[Layer],
    choices: Sequence[Choice],
    batches: Sequence[Any] | None,
    fisher: Mapping[str, Tensor],
) -> None:
    if not layers or not choices:
        raise ValueError(f"needed layers and formats to try, got {len(layers)} and {len(choices)}")
    names = [choice.format for choice in choices]
    if len(set(names)) < len(names):
        raise ValueError(f"needed each format once, got {', '.join(names)}")
    if batches is not None and not batches:
        raise ValueError("needed at least one calibration batch, got none")
    for choice in choices:
        needs = solvers.get(choice.solver).needs
        if batches is None and needs & {"second", "counts"}:
            raise ValueError(f"the solver {choice.solver} needs calibration data, got none")
        if "fisher" in needs and any(layer.name not in fisher for layer in layers):
            raise ValueError(
                f"the solver {choice.solver} needs squared gradients, got none. Give them as fisher="
            )
    for layer in layers:
        if not bool(torch.isfinite(layer.tensor).all()):
            raise ValueError(
                f"the weight of {layer.name} holds NaN or infinite numbers. Load it anew, or leave it out"
            )


def _parts(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers whose second moments are held at a time."""
    own: list[Layer] = []
    held = 0
    for layer in layers:
        size = layer.groups * layer.shape[1] ** 2 if layer.kind != "embedding" else 0
        if own and held + size > NUMBERS:
            yield own
            own, held = [], 0
        own.append(layer)
        held += size
    if own:
        yield own


def _seen(
    model: nn.Module,
    layers: Sequence[Layer],
    choices: Sequence[Choice],
    batches: Sequence[Any] | None,
    unreached: str,
) -> dict[str, Statistics]:
    if batches is None:
        return {}
    collector = Collector(layers)
    for inputs in batches:
        with collector.watching():
            call(model, inputs)
    if unreached == "refuse" and any(solvers.get(choice.solver).needs for choice in choices):
        refuse_unreached(layer.name for layer in layers if not collector.reached(layer))
    return collector.statistics()


def _candidate(layer: Layer, choice: Choice, statistics: Statistics | None) -> tuple[Candidate, list[str]]:
    solver, notes = solvers.get(choice.solver), []
    if any(getattr(statistics, need, None) is None for need in solver.needs):
        notes.append(f"{layer.name}: its inputs were not seen, so it is rounded to nearest")
        solver = solvers.get("nearest")
    weight = layer.matrix()
    try:
        one = solver.solve(weight, formats.get(choice.format), statistics)
    except (ValueError, TypeError) as why_not:
        raise type(why_not)(f"{layer.name}: {why_not}") from why_not
    one = Encoded(one.format, one.shape, {name: part.cpu() for name, part in one.parts.items()})
    gap = one.decode().to(weight) - weight
    # The choice stays as asked: the pipeline falls back, and says so, in the same way.
    return Candidate(choice, one, float(gap.double().square().sum()), _rows(gap, statistics)), notes


def _rows(gap: Tensor, statistics: Statistics | None) -> Tensor:
    if statistics is None or statistics.second is None:
        return gap.double().square().mean(1).cpu()
    second = statistics.second.to(gap)
    parts = gap.reshape(second.shape[0], -1, gap.shape[1])
    errors = (torch.bmm(parts, second) * parts).sum(2).double()
    traces = second.diagonal(dim1=1, dim2=2).double().sum(1, keepdim=True).clamp_min(1e-300)
    return (errors / traces).reshape(-1).clamp_min(0.0).cpu()


def _energy(layer: Layer, statistics: Statistics | None) -> float:
    if statistics is None or statistics.second is None:
        return float(layer.shape[1])
    return float(statistics.second.diagonal(dim1=1, dim2=2).double().sum()) / statistics.second.shape[0]

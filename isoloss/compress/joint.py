r"""Formats of weights and of inputs chosen together, within a size and a number of bit operations.

Bit operations go with the product of both (:mod:`isoloss.compress.costs`), so that the two cannot be chosen one after
the other. An option of a layer is a pair; with :math:`s^w` and :math:`s^x` what each of the two is thought to add to the
loss,

.. math:: \min \sum_l s^w_{l,f_l} + s^x_{l,g_l} \quad\text{subject to}\quad
    \sum_l \mathrm{bits}_{l,f_l} \le R, \quad \sum_l m_l\, b_{f_l}\, b_{g_l} \le B

That what both do adds up is an assumption, as everywhere in this choice; :func:`judged` measures the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from isoloss.compress.activations import Activations, Range, cannot, numbers, ranges, rounded_inputs, samples
from isoloss.compress.candidates import Candidates
from isoloss.compress.costs import FULL, multiplied_bits
from isoloss.compress.mixed import stored, too_small
from isoloss.compress.paired import Mean, paired
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.subject import Subject
from isoloss.planning.allocate import Option, allocate

AS_IS = "-"  # inputs that are not rounded
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What rounding a layer's inputs does, for every layer that multiplies.

    Attributes:
        table: layer -> format of its inputs -> how far the predictions move with this alone rounded [nats under
            cross-entropy, else half the squared distance]. A layer whose inputs cannot be rounded has the format ``-`` alone.
        ways: format -> settings.
        static: format -> layer -> range, of those that are static.
    """

    table: Mapping[str, Mapping[str, float]]
    ways: Mapping[str, Activations]
    static: Mapping[str, Mapping[str, Range]]

    @contextmanager
    def applied(self, subject: Subject, plan: Mapping[str, str]) -> Iterator[None]:
        """The subject's model with inputs rounded as chosen, layer -> format."""
        own = {name: self.ways[format] for name, format in plan.items() if format != AS_IS}
        known = {name: self.static[plan[name]][name] for name, one in own.items() if one.when == "static"}
        with rounded_inputs(subject.model, own, known):
            yield


def inputs(
    subject: Subject,
    candidates: Candidates,
    ways: Sequence[Activations],
    seed: int = 0,
    progress: Progress | None = None,
) -> Inputs:
    """Measure what each layer's inputs alone, rounded in each of several ways, do to the predictions.

    A forward pass for each layer and way, over all of the subject's batches; its inputs are what static ranges come from.

    Args:
        subject: model, data and loss.
        candidates: of the same model: the layers that are asked after.
        ways: formats of inputs, each once.
        seed: of the sample that static ranges are searched on.
        progress: (what, passes done, passes in all).

    Raises:
        ValueError: no way, or two of one format.
    """
    named = {way.format: way for way in ways}
    if not ways or len(named) < len(ways):
        raise ValueError(f"needed formats of inputs, each once, got {', '.join(w.format for w in ways)}")
    free = [layer for layer in candidates.layers if cannot(layer) is None]
    fixed = [name for name, way in named.items() if way.when == "static"]
    taken = samples(subject.model, free, [batch[0] for batch in subject.batches], seed) if fixed else {}
    known = {name: ranges(taken, named[name]) for name in fixed}
    found = Inputs({}, named, known)
    pairs = [
        (layer.name, name)
        for layer in free
        for name in named
        if name not in known or layer.name in known[name]
    ]
    ways_of = {f"{name} {layer}": partial(found.applied, subject, {layer: name}) for layer, name in pairs}
    seen = paired(subject, ways_of, progress)
    table: dict[str, dict[str, float]] = {layer.name: {} for layer in candidates.layers}
    for layer, name in pairs:
        table[layer][name] = seen.mean(seen.difference[f"{name} {layer}"]).value
    return replace(found, table={layer: own or {AS_IS: 0.0} for layer, own in table.items()})


@dataclass(frozen=True, eq=False)
class Joint:
    """A choice of formats for weights and inputs.

    Attributes:
        weights: layer -> format of its weights.
        inputs: layer -> format of its inputs; ``-`` where they are not rounded.
        foretold: the sum of what each is thought to cost.
        bits: stored bits of these weights.
        numbers: how many weights there are.
        bops: bit operations of what the multiplications were counted on.
        rise: of the loss, and
        difference: of the predictions, in the unit of ``foretold``: measured with weights and inputs changed at once
            (:func:`judged`).
    """

    weights: Mapping[str, str]
    inputs: Mapping[str, str]
    foretold: float
    bits: int
    numbers: int
    bops: float
    rise: Mean | None = None
    difference: Mean | None = None

    def __repr__(self) -> str:
        pairs = Counter(f"{format} x {self.inputs[name]}" for name, format in self.weights.items())
        said = (
            ""
            if self.difference is None
            else f", measured {self.difference.value:.4g} ± {self.difference.se:.2g}"
        )
        return (
            f"Joint({self.bits / self.numbers:.4g} bits a weight, {self.bops:.4g} bit operations, foretold "
            f"{self.foretold:.4g}{said}; {', '.join(f'{n} of {pair}' for pair, n in sorted(pairs.items()))})"
        )


def best(
    candidates: Candidates,
    scores: Scores,
    found: Inputs,
    counts: Mapping[str, int],
    bits: float | None = None,
    size: float | None = None,
    bops: float | None = None,
    ties: Sequence[Sequence[str]] = (),
) -> Joint:
    """The pairs of formats with the least sum of scores within all limits.

    Args:
        candidates: layers, formats of weights, sizes.
        scores: of the same candidates, foretelling a loss (``block-fisher``, ``pd``), so that it can be added to that of inputs.
        found: :func:`inputs` of the same model.
        counts: layer -> multiplications (:func:`isoloss.compress.costs.multiplications`).
        bits: most stored bits for each weight.
        size: most bytes of all tensors.
        bops: most bit operations. A layer that only looks up takes none.
        ties: groups of layers that must take the same pair.

    Raises:
        ValueError: no limit; scores that only order.
        NoAnswer: no choice keeps all limits; says the least possible.

    Example:
        >>> import torch
        >>> from isoloss.compress import Choice, find
        >>> from isoloss.compress.candidates import candidates
        >>> from isoloss.compress.costs import multiplications
        >>> from isoloss.compress.sensitivity import score
        >>> from isoloss.measure import Subject
        >>> from isoloss.measure.criteria import SquaredError
        >>> _ = torch.manual_seed(0)
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 4)), torch.randn(64, 32)
        >>> subject = Subject(net, [(x, net(x).detach())], SquaredError())
        >>> tried = candidates(net, find(net).layers, [Choice("int4"), Choice("int8")], [x])
        >>> rounded = inputs(subject, tried, [Activations("int4"), Activations("int8")])
        >>> counts = multiplications(net, tried.layers, x[:1])
        >>> chosen = best(tried, score("pd", subject, tried), rounded, counts, bops=30e3)
        >>> chosen.bops, chosen.inputs
        (24576.0, {'0': 'int4', '1': 'int8'})
    """
    if not scores.unit:
        raise ValueError(
            f"scores by {scores.method} only order, and those of inputs foretell a loss. Use block-fisher or pd"
        )
    most = {} if bits is None and size is None else {"bits": stored(candidates, bits, size)}
    most |= {} if bops is None else {"bops": bops}
    if not most:
        raise ValueError("needed a limit on bits, bytes or bit operations, got none")
    wide = {AS_IS: FULL} | {name: float(numbers(name).bits) for name in found.ways}
    pairs: dict[str, dict[str, tuple[str, str]]] = {}
    options = []
    for name, own in candidates.of.items():
        pairs[name] = {}
        for format, one in own.items():
            for other, cost in found.table[name].items():
                word = f"{format} x {other}"
                pairs[name][word] = (format, other)
                operations = counts[name] * multiplied_bits(format) * wide[other]
                uses = {"bits": float(one.encoded.bits), "bops": operations}
                options.append(Option(name, word, scores.table[name][format] + cost, uses))
    answer = allocate(options, most, ties)
    if not answer.feasible:
        raise too_small(candidates, answer)
    chosen = {name: pairs[name][word] for name, word in answer.chosen.items()}
    return Joint(
        {name: format for name, (format, _) in chosen.items()},
        {name: other for name, (_, other) in chosen.items()},
        answer.loss,
        round(answer.uses["bits"]),
        candidates.weights,
        answer.uses["bops"],
    )


def judged(subject: Subject, candidates: Candidates, found: Inputs, chosen: Joint) -> Joint:
    """The choice with what it does measured, weights and inputs at once."""

    @contextmanager
    def both() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(candidates.applied(chosen.weights))
            stack.enter_context(found.applied(subject, chosen.inputs))
            yield

    seen = paired(subject, {"both": both})
    return replace(chosen, rise=seen.rise("both"), difference=seen.mean(seen.difference["both"]))

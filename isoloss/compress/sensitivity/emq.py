"""EMQ: evolves a training-free proxy, a small program on weights, inputs and gradients, until it orders measured plans."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isoloss.compress.candidates import Candidate, Candidates
from isoloss.compress.layers import Layer
from isoloss.compress.replay import calibrating
from isoloss.compress.sensitivity.plans import Judged, judge
from isoloss.compress.sensitivity.proxies import gradients, scores_of, virtual_gradients
from isoloss.compress.sensitivity.ranking import Array, spearman
from isoloss.compress.sensitivity.scores import Scores
from isoloss.compress.statistics import Collector
from isoloss.errors import NoAnswer
from isoloss.measure.subject import Subject, call

INPUTS = ("weight", "activation", "gradient", "virtual_gradient")
UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "id": lambda x: x,
    "abs": torch.abs,
    "sqrt": lambda x: x.abs().sqrt(),
    "square": torch.square,
    "log": lambda x: x.abs().clamp_min(1e-30).log(),
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softmax": lambda x: x.flatten().softmax(0).reshape(x.shape),
    "normalise": lambda x: (x - x.mean()) / x.std(correction=0),
    "inverse": lambda x: 1 / x,
    "mean": torch.mean,
    "sum": torch.sum,
    "std": lambda x: x.std(correction=0),
    "l1": lambda x: x.abs().sum(),
    "l2": lambda x: x.square().sum().sqrt(),
}
"""What a branch does to its input, element by element or to one number."""
BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "matmul": lambda a, b: _product(a, b),
}
"""How the branches meet; the sum of the result is the number of the layer."""
TRIES = 50  # programs drawn for one that passes the screen


@dataclass(frozen=True)
class Branch:
    """An input and two operations on it, the first one first."""

    input: str
    first: str
    second: str

    @property
    def words(self) -> str:
        """``log(abs(weight))``; what does nothing is left out."""
        text = self.input
        for name in (self.first, self.second):
            text = text if name == "id" else f"{name}({text})"
        return text


@dataclass(frozen=True)
class Program:
    """Two branches and what joins them: a number for each layer.

    Example:
        >>> Program(Branch("weight", "abs", "id"), Branch("gradient", "abs", "id"), "mul").words  # BSNIP
        'sum(abs(weight) mul abs(gradient))'
    """

    left: Branch
    right: Branch
    binary: str

    @property
    def words(self) -> str:
        """As a person reads it."""
        return f"sum({self.left.words} {self.binary} {self.right.words})"

    def numbers(self, features: Features) -> Array:
        """Of every layer one, float64; NaN or infinite where the program fails on it."""
        found = []
        for own in features.of.values():
            parts = []
            for branch in (self.left, self.right):
                parts.append(UNARY[branch.second](UNARY[branch.first](own[branch.input])))
            found.append(float(BINARY[self.binary](parts[0], parts[1]).double().sum()))
        return np.array(found)


@dataclass(frozen=True, eq=False)
class Features:
    """What programs read.

    Attributes:
        of: layer -> input -> tensor: ``weight``, ``gradient`` of the mean loss and ``virtual_gradient`` (SynFlow's) as
            matrices (out, in), ``activation`` as the root mean square of every input of the layer, (1, in).
    """

    of: Mapping[str, Mapping[str, Tensor]]


def features(subject: Subject, candidates: Candidates) -> Features:
    """The four inputs of every layer, from one pass over the data and one backward pass each.

    Args:
        subject: model, data and loss.
        candidates: of the same model.
    """
    slopes, virtual = gradients(subject, candidates), virtual_gradients(subject, candidates)
    collector = Collector(candidates.layers)
    with torch.no_grad(), calibrating(subject.model):
        for batch in subject.batches:
            with collector.watching():
                call(subject.model, batch[0])
    seen = collector.statistics()
    of = {}
    for layer in candidates.layers:
        known = seen.get(layer.name)
        width = torch.ones(1, layer.shape[1])
        if known is not None and known.second is not None:
            width = known.second.diagonal(dim1=1, dim2=2).mean(0, keepdim=True).sqrt().cpu()
        of[layer.name] = {
            "weight": layer.matrix().cpu(),
            "activation": width,
            "gradient": slopes[layer.name].cpu(),
            "virtual_gradient": virtual[layer.name].cpu(),
        }
    return Features(of)


@dataclass(frozen=True)
class Search:
    """How the evolution goes.

    Args:
        evaluations: programs that are scored, the first population included.
        population: programs kept.
        tournament: of how many the better is a parent.
        mutation: probability that a child is a changed parent and not a cross of two.
        diverse: probability that the second parent, or a survivor below the better half, is the least like the best of those
            drawn, instead of the best.
        seed: of all draws.

    Raises:
        ValueError: settings outside of these.
    """

    evaluations: int = 300
    population: int = 20
    tournament: int = 4
    mutation: float = 0.5
    diverse: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.population <= self.evaluations or not 1 <= self.tournament <= self.population:
            raise ValueError(
                "needed 2 <= population <= evaluations and 1 <= tournament <= population, got "
                f"{self.population}, {self.evaluations}, {self.tournament}"
            )
        if not (0 <= self.mutation <= 1 and 0 <= self.diverse <= 1):
            raise ValueError(f"needed probabilities, got {self.mutation} and {self.diverse}")


@dataclass(frozen=True, eq=False)
class Found:
    """A program with its record.

    Attributes:
        program: the formula.
        sign: 1 where a larger number asks for more bits, -1 where for fewer: settled on the plans that it was evolved on.
        rho: Spearman's correlation with their losses.
        evaluations: programs scored until the search ended.
        rejected: programs that the screen kept from being scored.
    """

    program: Program
    sign: int
    rho: float
    evaluations: int
    rejected: int

    def numbers(self, features: Features) -> dict[str, float]:
        """Layer -> its number, the larger the more bits it should have."""
        return dict(zip(features.of, (self.sign * self.program.numbers(features)).tolist(), strict=True))

    def scores(
        self, features: Features, candidates: Candidates, by: Literal["bits", "errors"] = "bits"
    ) -> Scores:
        """As scores of layers and formats, which :func:`isoloss.compress.mixed.best` takes.

        Args:
            features: of the layers.
            candidates: of the model.
            by: what it was evolved with: ``bits`` (:func:`bits_of`) or ``errors`` (:func:`errors_of`).
        """
        numbers = self.numbers(features)
        if by == "bits":
            return scores_of(self.program.words, numbers, candidates)
        table = {
            layer.name: {
                format: numbers[layer.name] * one.distance / math.prod(layer.shape)
                for format, one in candidates.of[layer.name].items()
            }
            for layer in candidates.layers
        }
        how = "an evolved number of each layer times its mean squared error; an order alone"
        return Scores(self.program.words, table, "", how)


@dataclass(frozen=True, eq=False)
class _Scored:
    program: Program
    rho: float
    ranks: Array


def plan_scores(numbers: Sequence[float] | Array, bits: Array) -> Array:
    """Of every plan the sum over layers of number times bits, with the sign turned: the larger, the worse.

    Args:
        numbers: of the layers.
        bits: (plans, layers).
    """
    found: Array = -np.asarray(bits, dtype=float) @ np.asarray(numbers, dtype=float)
    return found


def bits_of(candidates: Candidates, plans: Sequence[Mapping[str, str]]) -> Array:
    """Stored bits a weight of every layer in every plan, (plans, layers): what EMQ weighs numbers of layers by."""
    return _of_plans(candidates, plans, lambda layer, one: one.encoded.bits / math.prod(layer.shape))


def errors_of(candidates: Candidates, plans: Sequence[Mapping[str, str]]) -> Array:
    r"""Minus the mean squared error :math:`\|\Delta W\|^2 / n` of every layer in every plan, in place of its bits.

    Bits know nothing of how much a format really loses, which falls fourfold with each of them. The project's own.
    """
    return _of_plans(candidates, plans, lambda layer, one: -one.distance / math.prod(layer.shape))


def _of_plans(
    candidates: Candidates, plans: Sequence[Mapping[str, str]], value: Callable[[Layer, Candidate], float]
) -> Array:
    return np.array(
        [
            [value(layer, candidates.of[layer.name][plan[layer.name]]) for layer in candidates.layers]
            for plan in plans
        ]
    )


def evolve(
    features: Features, bits: Array, losses: Sequence[float] | Array, search: Search | None = None
) -> Found:
    """The program that best orders plans, by evolution.

    A child is a cross of two parents, or one with one of its seven choices drawn anew. Before it is scored it must pass a
    screen: finite numbers for every layer, a score that is not the same for all plans, and another order of the plans than
    any program scored before. Parents come from tournaments; with probability ``diverse`` the second one is, of as many drawn,
    the least like the best. Half of the survivors are the best, the others drawn the same way.

    Args:
        features: of the layers.
        bits: (plans, layers), :func:`bits_of` or :func:`errors_of`.
        losses: measured, of the same plans.
        search: settings.

    Raises:
        ValueError: other lengths.
        NoAnswer: no program passes the screen.

    Source:
        P. Dong et al., EMQ, ICCV 2023, arXiv 2307.10554; population, rates and the measure of likeness are the project's own.
    """
    return _searched(features, bits, losses, search or Search(), evolving=True)


def random_search(
    features: Features, bits: Array, losses: Sequence[float] | Array, search: Search | None = None
) -> Found:
    """The best of as many programs drawn at random, through the same screen: what evolution has to beat."""
    return _searched(features, bits, losses, search or Search(), evolving=False)


def _searched(
    features: Features, bits: Array, losses: Sequence[float] | Array, search: Search, evolving: bool
) -> Found:
    truth = np.asarray(losses, dtype=float)
    if bits.shape != (len(truth), len(features.of)):
        raise ValueError(
            f"needed bits of {len(truth)} plans and {len(features.of)} layers, got the shape {bits.shape}"
        )
    rng = random.Random(search.seed)
    known: set[bytes] = set()
    scored = rejected = 0
    population: list[_Scored] = []
    best: _Scored | None = None
    while scored < search.evaluations:
        first = len(population) < search.population or not evolving
        for program in _drawn(rng, population, search, first):
            passed = _screened(program, features, bits, known)
            if passed is not None:
                break
            rejected += 1
        else:
            break  # nothing new is left nearby
        one = _Scored(program, spearman(passed, truth), _ranked(passed))
        scored += 1
        best = one if best is None or abs(one.rho) > abs(best.rho) else best
        population.append(one)
        if len(population) > search.population and evolving:
            population = _survivors(rng, population, search)
        elif not evolving:
            population = []
    if best is None:
        raise NoAnswer(
            "no program gives finite numbers that tell these plans apart",
            "plans with other bits, or more layers",
        )
    return Found(best.program, 1 if best.rho >= 0 else -1, abs(best.rho), scored, rejected)


def _drawn(
    rng: random.Random, population: Sequence[_Scored], search: Search, first: bool
) -> Iterator[Program]:
    for _ in range(TRIES):
        if first:
            yield _random(rng)
            continue
        one = _tournament(rng, population, search).program
        if rng.random() < search.mutation:
            yield _mutated(rng, one)
        else:
            other = _second(rng, population, search).program
            child = Program(
                rng.choice((one.left, other.left, other.right)),
                rng.choice((one.right, other.right)),
                rng.choice((one.binary, other.binary)),
            )
            yield child if child not in (one, other) else _mutated(rng, child)
    if not first:  # what is near is known: from elsewhere
        for _ in range(TRIES):
            yield _random(rng)


def _random(rng: random.Random) -> Program:
    branches = [
        Branch(rng.choice(INPUTS), rng.choice(list(UNARY)), rng.choice(list(UNARY))) for _ in range(2)
    ]
    return Program(branches[0], branches[1], rng.choice(list(BINARY)))


def _mutated(rng: random.Random, program: Program) -> Program:
    place = rng.randrange(7)
    if place == 6:
        return replace(program, binary=rng.choice(list(BINARY)))
    side, field = ("left", "right")[place // 3], ("input", "first", "second")[place % 3]
    branch: Branch = getattr(program, side)
    value = rng.choice(INPUTS if field == "input" else list(UNARY))
    changed = {
        "input": Branch(value, branch.first, branch.second),
        "first": Branch(branch.input, value, branch.second),
        "second": Branch(branch.input, branch.first, value),
    }[field]
    return (
        Program(changed, program.right, program.binary)
        if side == "left"
        else Program(program.left, changed, program.binary)
    )


def _tournament(rng: random.Random, population: Sequence[_Scored], search: Search) -> _Scored:
    return max(
        rng.sample(list(population), min(search.tournament, len(population))), key=lambda one: abs(one.rho)
    )


def _second(rng: random.Random, population: Sequence[_Scored], search: Search) -> _Scored:
    """By diversity: the least like the best; else by a tournament."""
    if rng.random() >= search.diverse:
        return _tournament(rng, population, search)
    best = max(population, key=lambda one: abs(one.rho))
    drawn = rng.sample(list(population), min(search.tournament, len(population)))
    return min(drawn, key=lambda one: _likeness(one, best))


def _survivors(rng: random.Random, population: Sequence[_Scored], search: Search) -> list[_Scored]:
    ordered = sorted(population, key=lambda one: -abs(one.rho))
    kept, rest = ordered[: search.population // 2], ordered[search.population // 2 :]
    while len(kept) < search.population and rest:
        one = _second(rng, rest, search)
        rest.remove(one)
        kept.append(one)
    return kept


def _likeness(one: _Scored, other: _Scored) -> float:
    """Absolute correlation of the ranks that they give the plans."""
    a, b = (own.ranks - own.ranks.mean() for own in (one, other))
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return abs(float((a * b).sum())) / size if size else 1.0


def _screened(program: Program, features: Features, bits: Array, known: set[bytes]) -> Array | None:
    """Scores of the plans if the program may be scored; what it orders as one before it does is not new."""
    numbers = program.numbers(features)
    if not np.isfinite(numbers).all():
        return None
    largest = np.abs(numbers).max()
    if largest == 0:
        return None
    scores = plan_scores(numbers / largest, bits)
    if np.ptp(scores) <= 1e-9 * np.abs(scores).max():
        return None
    ranks = _ranked(scores)
    keys = {own.astype(np.float32).tobytes() for own in (ranks, ranks.max() - ranks)}
    if keys & known:
        return None
    known |= keys
    return scores


def _ranked(scores: Array) -> Array:
    """Ranks from 0; scores that agree to nine digits are equal."""
    whole = np.round(scores / max(1e-300, float(np.abs(scores).max())), 9)
    found: Array = np.unique(whole, return_inverse=True)[1].astype(float)
    return found


@dataclass(frozen=True, eq=False)
class Trial:
    """What evolution found on some plans, judged on others.

    Attributes:
        found: by evolution.
        judged: on the plans held out.
        random: the best of random programs at as many evaluations.
        random_judged: on the same plans held out.
        train, test: numbers of the plans.
    """

    found: Found
    judged: Judged
    random: Found
    random_judged: Judged
    train: tuple[int, ...]
    test: tuple[int, ...]


def trial(
    features: Features,
    bits: Array,
    losses: Sequence[float] | Array,
    sizes: Sequence[float] | Array,
    search: Search | None = None,
    share: float = 0.5,
    coverage: float = 0.9,
) -> Trial:
    """Evolve on one part of the plans and judge on the other, beside random search.

    Args:
        features: of the layers.
        bits: (plans, layers).
        losses: measured, of the plans.
        sizes: of the plans, in bits.
        search: settings; its seed also draws the split.
        share: of the plans that it is evolved on.
        coverage: of the intervals.

    Raises:
        ValueError: fewer than eight plans.
        NoAnswer: no program passes the screen.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> of = {str(i): {n: torch.randn(4, 6, generator=generator) for n in INPUTS} for i in range(5)}
        >>> own = Features(of)
        >>> bits = np.random.default_rng(0).integers(2, 9, (60, 5)).astype(float)
        >>> truth = Program(Branch("weight", "l2", "id"), Branch("gradient", "l1", "id"), "mul")
        >>> done = trial(own, bits, plan_scores(truth.numbers(own), bits), bits.sum(1), Search(evaluations=60))
        >>> done.judged.rho > 0.9, done.judged.count
        (True, 30)
    """
    search, truth = search or Search(), np.asarray(losses, dtype=float)
    if len(truth) < 8:
        raise ValueError(f"needed at least eight plans, half of them to judge on, got {len(truth)}")
    order = np.random.default_rng(search.seed).permutation(len(truth))
    cut = min(len(truth) - 4, max(4, round(share * len(truth))))
    train, test = order[:cut], order[cut:]
    own_sizes = np.asarray(sizes, dtype=float)
    made, judged = [], []
    for run in (evolve, random_search):
        found = run(features, bits[train], truth[train], search)
        scores = plan_scores(found.sign * found.program.numbers(features), bits[test])
        made.append(found)
        judged.append(judge(scores, truth[test], own_sizes[test], coverage, search.seed))
    return Trial(made[0], judged[0], made[1], judged[1], tuple(train.tolist()), tuple(test.tolist()))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A product of matrices over the longer side, so that it is small; of a single number an ordinary product."""
    if a.ndim < 2 or b.ndim < 2:
        return a * b
    a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
    return a @ b.T if a.shape[1] >= a.shape[0] else a.T @ b

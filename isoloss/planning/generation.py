"""Sadhukhan et al. 2025, Kinetics: Rethinking Test-Time Scaling Laws, arXiv:2506.05333: what generation costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.observing.measured import Measured
from isoloss.observing.tries import at_least_one, unseen

Array = np.ndarray[Any, np.dtype[Any]]

INTENSITY = 562.5  # FLOP per byte of the paper's accelerator: 4.5 PFLOP/s over 8 TB/s
CACHE_BYTES = 2.0  # per cached number
RESAMPLES = 1000


@dataclass(frozen=True)
class Decoder:
    """What of a model its generation costs depend on.

    Attributes:
        name: for the tables.
        params: N that one token passes through.
        query_heads, kv_heads: per layer.
        width: numbers per head over all layers, head size times layers.

    Example:
        >>> Decoder("8B", 8.19e9, 32, 8, 128 * 36).width
        4608
    """

    name: str
    params: float
    query_heads: int
    kv_heads: int
    width: int

    def __post_init__(self) -> None:
        for what in ("params", "query_heads", "kv_heads", "width"):
            if not (getattr(self, what) > 0 and math.isfinite(getattr(self, what))):
                raise ValueError(f"needed a positive {what}, got {getattr(self, what)}")


@dataclass(frozen=True)
class Machine:
    """Settings of the hardware: measure them; the defaults are the paper's.

    Attributes:
        intensity: FLOPs that it does in the time in which it moves one byte.
        cache_bytes: per cached number.

    Example:
        >>> Machine(intensity=300).cache_bytes
        2.0
    """

    intensity: float = INTENSITY
    cache_bytes: float = CACHE_BYTES

    def __post_init__(self) -> None:
        if not (
            self.intensity >= 0 and self.cache_bytes > 0 and math.isfinite(self.intensity + self.cache_bytes)
        ):
            raise ValueError(f"needed an intensity of 0 or more and cache bytes above 0, got {self}")


@dataclass(frozen=True)
class GenerationCost:
    """Cost of one answer, or of its trials together.

    Attributes:
        compute: FLOPs.
        traffic: bytes of the key-value cache moved. Weights are left out: a large batch shares them.
        eflops: compute + intensity times traffic.
    """

    compute: float
    traffic: float
    eflops: float


def generation_cost(
    model: Decoder,
    prompt: float,
    generated: Any,
    trials: int = 1,
    *,
    cache: float | None = None,
    block: float | None = None,
    machine: Machine | None = None,
) -> GenerationCost:
    r"""Compute and memory traffic of ``trials`` answers to one prompt, in equivalent FLOPs.

    .. math:: r[2 N L_{out} + 2(2 L_{in} + L_{out}) L_{out} H d]
              + I\, c\, (2 L_{in} + r L_{out}) L_{out} K d

    with H query heads, K key-value heads, d the width, c bytes per cached number; the prompt is shared by the
    trials and read once. With a cache of b tokens, capped at :math:`L_{in} + L_{out}` first, attention reads

    .. math:: \kappa = b L_{out} - \tfrac12 \max(0, b - L_{in})^2

    numbers per head and trial: :math:`r[2 N L_{out} + 4\kappa H d] + I\, 2 c\, r \kappa K d`, the prompt not
    shared. Choosing blocks of the cache by their best match adds a search over one number per block.

    Args:
        model: its sizes.
        prompt: L_in [tokens].
        generated: L_out [tokens]; an array is averaged over, as its square enters.
        trials: r.
        cache: b, tokens that attention may read; None is all.
        block: tokens per block of the search; None is no search.
        machine: its settings; None is the paper's.

    Raises:
        ValueError: a length, count or budget that is not positive, or a search without a cache budget.

    Example:
        >>> cost = generation_cost(Decoder("8B", 8.19e9, 32, 8, 128 * 36), 200, 16384)
        >>> round(cost.compute / 1e12, 1), round((cost.eflops - cost.compute) / 1e12)
        (349.5, 11404)
    """
    machine = machine or Machine()
    lengths = np.asarray(generated, dtype=float)
    if not (prompt >= 0 and math.isfinite(prompt)):
        raise ValueError(f"needed a prompt of 0 tokens or more, got {prompt}")
    if lengths.size == 0 or not np.all(np.isfinite(lengths) & (lengths >= 0)):
        raise ValueError("needed generated lengths of 0 or more")
    if trials < 1:
        raise ValueError(f"needed at least one trial, got {trials}")
    for what, number in (("cache", cache), ("block", block)):
        if number is not None and not (number > 0 and math.isfinite(number)):
            raise ValueError(f"needed a positive {what}, got {number}. Leave it out for none")
    if block is not None and cache is None:
        raise ValueError("needed a cache budget for a search of blocks, got none. Give cache=")
    queries, keys = model.query_heads * model.width, model.kv_heads * model.width
    compute = 2.0 * model.params * lengths * trials
    if cache is None:
        compute += trials * 2.0 * (2 * prompt + lengths) * lengths * queries
        traffic = machine.cache_bytes * (2 * prompt + trials * lengths) * lengths * keys
    else:
        read = cached_reads(prompt, lengths, cache)
        compute += trials * 4.0 * read * queries
        traffic = 2.0 * machine.cache_bytes * trials * read * keys
    if block is not None:
        compute += trials * (2 * prompt + lengths) / block * lengths * queries
        traffic = traffic + machine.cache_bytes / 2 * (2 * prompt + trials * lengths) / block * lengths * keys
    flops, moved = float(np.mean(compute)), float(np.mean(traffic))
    return GenerationCost(flops, moved, flops + machine.intensity * moved)


def cached_reads(prompt: float, generated: Any, cache: float) -> Any:
    r"""Cached tokens that all steps of one answer read together: :math:`b L_{out} - \frac12\max(0, b - L_{in})^2`.

    The cap :math:`b \le L_{in} + L_{out}` comes first: without it the square wins and the count turns negative.
    While the context still grows to b, steps read less than b, so the sign is minus.

    Example:
        >>> float(cached_reads(200, 500, 10_000)), float(cached_reads(200, 500, 100))
        (225000.0, 50000.0)
    """
    lengths = np.asarray(generated, dtype=float)
    held = np.minimum(cache, prompt + lengths)
    return held * lengths - 0.5 * np.maximum(0.0, held - prompt) ** 2


@dataclass(frozen=True, eq=False)
class Sampled:
    """What one setting gave on every question: m samples each.

    Attributes:
        model: that generated.
        prompt: tokens of each question, shape (Q,).
        generated: tokens of each sample, shape (Q, m).
        correct: whether it was right, shape (Q, m).
        cache, block: of :func:`generation_cost`.
        limit: the longest generation allowed, for the tables; None is none.
    """

    model: Decoder
    prompt: Array
    generated: Array
    correct: Array
    cache: float | None = None
    block: float | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        shapes = np.shape(self.prompt), np.shape(self.generated), np.shape(self.correct)
        if len(shapes[1]) != 2 or shapes[0] != shapes[1][:1] or shapes[1] != shapes[2] or 0 in shapes[1]:
            raise ValueError(f"needed shapes (Q,), (Q, m), (Q, m), got {shapes}")
        if not np.isin(self.correct, (0, 1)).all():
            raise ValueError(
                "needed right or wrong (1 or 0) for every sample. Leave out those without an answer"
            )


@dataclass(frozen=True)
class Choice:
    """The best setting within a budget.

    Attributes:
        budget: equivalent FLOPs per question.
        accuracy: share of questions with a right answer among the trials, mean over questions, with an interval
            over questions; the choice is made anew in each resample.
        setting: model, trials, cache and limit in words; for a choice per question, the commonest.
        eflops: what it costs per question, on average.
    """

    budget: float
    accuracy: Measured
    setting: str
    eflops: float


@dataclass(frozen=True)
class Exchange:
    """Whether a budget is better spent on more samples of one model or on another model.

    Attributes:
        budget: equivalent FLOPs per question.
        more, larger: the best of each within the budget.
        gain: accuracy of the larger less that of more samples, over the same questions.
        verdict: ``"larger model"``, ``"more samples"`` or ``"not resolved"``: the interval holds 0.
    """

    budget: float
    more: Choice
    larger: Choice
    gain: Measured
    verdict: str


def frontier(
    settings: Sequence[Sampled],
    budgets: Sequence[float],
    *,
    trials: Sequence[int] = (1, 2, 4, 8, 16, 32),
    per: Literal["task", "question"] = "task",
    machine: Machine | None = None,
    coverage: float = 0.9,
    seed: int = 0,
) -> list[Choice]:
    r"""The best accuracy at a cost within each budget, over models, numbers of trials and cache budgets.

    A question counts as solved if one of n trials is right: :math:`1 - \binom{m-c}{n}/\binom{m}{n}` from its m
    samples, without bias. So this is the accuracy with a perfect verifier (else :mod:`isoloss.planning.sampling`).

    Args:
        settings: what was sampled, all on the same questions.
        budgets: equivalent FLOPs per question.
        trials: to try; those above a setting's m are left out for it.
        per: ``"task"``: one setting for all questions, its mean cost within the budget; ``"question"``: the
            paper's, each question its own best setting, then the mean. The latter chooses in hindsight: nobody
            knows beforehand which setting suits a question, and noise in its m samples is chosen too.
        machine: its settings; None is the paper's.
        coverage, seed: of the interval, a bootstrap over questions.

    Returns:
        One choice per budget.

    Raises:
        ValueError: settings on different numbers of questions, or none. NoAnswer: a budget that nothing fits.

    Example:
        >>> small = Decoder("small", 1e9, 16, 8, 1024)
        >>> tried = Sampled(small, np.array([100]), np.full((1, 4), 1000), np.array([[1, 0, 0, 0]]))
        >>> [(round(c.accuracy.value, 6), c.setting) for c in frontier([tried], [2e13, 1e15])]
        [(0.25, 'small, 1 trial'), (1.0, 'small, 4 trials')]
    """
    table = _table(settings, trials, machine, per, coverage)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, table.solved.shape[1], (RESAMPLES, table.solved.shape[1]))
    return [_chosen(table, float(b), per, rows, coverage)[0] for b in budgets]


def sample_or_grow(
    small: Sequence[Sampled],
    large: Sequence[Sampled],
    budgets: Sequence[float],
    *,
    trials: Sequence[int] = (1, 2, 4, 8, 16, 32),
    machine: Machine | None = None,
    coverage: float = 0.9,
    seed: int = 0,
) -> list[Exchange]:
    """More samples of a small model, or a larger model: the better of the two within each budget.

    Args:
        small, large: settings of the one and of the other, all on the same questions.
        budgets: equivalent FLOPs per question; each must fit one setting of either.
        trials, machine, coverage, seed: as in :func:`frontier`.

    Raises:
        ValueError, NoAnswer: as :func:`frontier`.

    Example:
        >>> def tried(name, params, right):
        ...     return Sampled(Decoder(name, params, 16, 8, 1024), np.full(40, 100), np.full((40, 4), 1000), right)
        >>> rng = np.random.default_rng(0)
        >>> few, many = (rng.random((40, 4)) < p for p in (0.05, 0.9))
        >>> [e.verdict for e in sample_or_grow([tried("1B", 1e9, few)], [tried("8B", 8e9, many)], [1e14])]
        ['larger model']
    """
    tables = [_table(group, trials, machine, "task", coverage) for group in (small, large)]
    questions = {table.solved.shape[1] for table in tables}
    if len(questions) > 1:
        raise ValueError(f"needed the same questions for both, got {sorted(questions)}")
    rng = np.random.default_rng(seed)
    count = questions.pop()
    rows = rng.integers(0, count, (RESAMPLES, count))
    out = []
    for budget in budgets:
        (more, a), (larger, b) = (_chosen(table, float(budget), "task", rows, coverage) for table in tables)
        low, high = np.quantile(b - a, [(1 - coverage) / 2, (1 + coverage) / 2])
        gain = Measured(
            larger.accuracy.value - more.accuracy.value, float(low), float(high), coverage,
            f"paired bootstrap over {count} questions",
        )  # fmt: skip
        verdict = "larger model" if low > 0 else "more samples" if high < 0 else "not resolved"
        out.append(Exchange(float(budget), more, larger, gain, verdict))
    return out


@dataclass(frozen=True)
class _Table:
    """Every setting with every number of trials: names, accuracy and cost per question, (S, Q)."""

    names: list[str]
    solved: Array
    eflops: Array


def _table(
    settings: Sequence[Sampled], trials: Sequence[int], machine: Machine | None, per: str, coverage: float
) -> _Table:
    if not settings:
        raise ValueError("needed at least one setting, got none")
    if per not in ("task", "question"):
        raise ValueError(f"per must be 'task' or 'question', got {per!r}")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if len({len(s.prompt) for s in settings}) > 1:
        raise ValueError("needed the same questions in every setting, got different numbers of them")
    names, solved, eflops = [], [], []
    for s in settings:
        of = np.asarray(s.correct).shape[1]
        right = np.asarray(s.correct, dtype=bool).sum(axis=1)
        for n in sorted({int(n) for n in trials if 1 <= n <= of}):
            words = [s.model.name, f"{n} trial{'s' * (n > 1)}"]
            words += [f"cache {s.cache:g}"] if s.cache is not None else []
            words += [f"up to {s.limit} tokens"] if s.limit is not None else []
            names.append(", ".join(words))
            solved.append(at_least_one(of, right, n))
            costs = [
                generation_cost(s.model, float(p), g, n, cache=s.cache, block=s.block, machine=machine).eflops
                for p, g in zip(s.prompt, np.asarray(s.generated), strict=True)
            ]
            eflops.append(costs)
    if not names:
        raise ValueError(f"needed a number of trials from 1 to the samples taken, got {list(trials)}")
    return _Table(names, np.array(solved), np.array(eflops))


def _chosen(table: _Table, budget: float, per: str, rows: Array, coverage: float) -> tuple[Choice, Array]:
    """The best within a budget, and the best accuracy of each resample of the questions."""
    fits = table.eflops <= budget if per == "question" else table.eflops.mean(axis=1, keepdims=True) <= budget
    if not fits.any(axis=0).all():
        least = table.eflops.min(axis=0).max() if per == "question" else table.eflops.mean(axis=1).min()
        raise NoAnswer(f"no setting costs {budget:.3g} eFLOPs or less", f"a budget of {least:.3g}")
    allowed = np.where(fits, table.solved, -np.inf)
    if per == "question":
        best = allowed.max(axis=0)
        # of equals the cheapest
        pick = np.where(allowed == best, table.eflops, np.inf).argmin(axis=0)
        questions = np.arange(allowed.shape[1])
        value, spent = float(best.mean()), float(table.eflops[pick, questions].mean())
        setting = table.names[int(np.bincount(pick).argmax())]
        means = best[rows].mean(axis=1)
    else:
        over = allowed.mean(axis=1)
        pick = int(np.where(over == over.max(), table.eflops.mean(axis=1), np.inf).argmin())
        value, spent, setting = float(over[pick]), float(table.eflops[pick].mean()), table.names[pick]
        kept = table.solved[fits[:, 0]]
        means = np.array([kept[:, row].mean(axis=1).max() for row in rows])
    low, high = np.quantile(means, [(1 - coverage) / 2, (1 + coverage) / 2])
    if value == 0.0:  # no resample sees beyond what all questions have in common
        high = unseen(rows.shape[1], coverage)
    elif value == 1.0:
        low = 1.0 - unseen(rows.shape[1], coverage)
    how = f"perfect verifier; bootstrap over {rows.shape[1]} questions"
    return Choice(budget, Measured(value, float(low), float(high), coverage, how), setting, spent), means

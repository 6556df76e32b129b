"""From how much of a learning curve its end can be told: the verb ``level``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.data import Data, prepare
from isoloss.fitting.estimate import fit
from isoloss.fitting.objective import Objective
from isoloss.fitting.prediction import quantiles
from isoloss.fitting.result import Fit
from isoloss.laws import LAWS, get
from isoloss.laws.law import Law
from isoloss.runs import Finding, Removed, Runs, read

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "isoloss/level/1"
STARTS = 16  # per prefix: a curve of one axis has few minima, and there are many prefixes


@dataclass(frozen=True)
class Prefix:
    """What the rows up to one size say.

    Attributes:
        rows: how many rows.
        upto: their largest value of the axis.
        asymptote: the floor of the law fitted to them.
        stderr, low, high: its standard error and interval, from this prefix's own draws.
        predicted, predicted_low, predicted_high: the law's target at the size asked for, median and interval.
        result: of the fit, see :func:`isoloss.fit`. Unless it is ``identified``, there are no intervals.
    """

    rows: int
    upto: float
    asymptote: float
    stderr: float
    low: float
    high: float
    predicted: float
    predicted_low: float
    predicted_high: float
    result: str

    @property
    def identified(self) -> bool:
        """Whether there is an asymptote to compare with others'."""
        return self.result == "identified" and bool(np.isfinite(self.stderr))


@dataclass(frozen=True, eq=False, repr=False)
class Level:
    """The prediction level of a learning curve: what it predicts, and how much of it that took.

    Attributes:
        law: the law fitted to every prefix.
        at: the size predicted at.
        measured: mean of the target measured there, if it was.
        tolerance, patience, coverage, seed: as asked.
        prefixes: in order of growing size.
        omega: index of the prediction level among the prefixes, or None.
        stop: index of the prefix at which successive asymptotes agree to the tolerance, or None.
        known: index of the prefix whose curve is the answer, or None.
        reason, needed: why there is none, and the least that would be needed; else empty.
        removed: rows of the table that are in no prefix.
        warnings: findings about the fit that is the answer (without one: the last).

    Example:
        >>> tokens = [1, 4, 16, 64, 256, 1024]
        >>> loss = [10, 6, 4, 3, 2.5, 2.25]
        >>> found = level("hestness", {"tokens": tokens, "loss": loss}, patience=1, draws=20)
        >>> round(found.reached.asymptote, 6), found.share
        (2.0, 1.0)
    """

    law: Law
    at: float
    measured: float | None
    tolerance: float
    patience: int
    coverage: float
    seed: int
    prefixes: tuple[Prefix, ...]
    omega: int | None
    stop: int | None
    known: int | None
    reason: str
    needed: str
    removed: tuple[Removed, ...]
    warnings: tuple[Finding, ...]

    @property
    def reached(self) -> Prefix | None:
        """The prefix that is the answer: its asymptote and prediction. None if not reached."""
        return None if self.known is None else self.prefixes[self.known]

    @property
    def share(self) -> float | None:
        """The size it took, as a share of the largest size in the table."""
        at = self.reached
        return None if at is None else at.upto / self.prefixes[-1].upto

    def to_json(self) -> dict[str, Any]:
        """The document that ``isoloss level --json`` writes; schema in ``docs/json.md``."""
        return {
            "schema": SCHEMA,
            "law": self.law.spec,
            "target": self.law.target,
            "axis": self.law.axes[0],
            "tolerance": self.tolerance,
            "patience": self.patience,
            "coverage": self.coverage,
            "seed": self.seed,
            "at": self.at,
            "measured": self.measured,
            "prefixes": [
                {name: _finite(value) for name, value in vars(prefix).items()} for prefix in self.prefixes
            ],
            "omega": self.omega,
            "stop": self.stop,
            "known": self.known,
            "share": self.share,
            "reason": self.reason,
            "needed": self.needed,
            "rows_removed": [vars(entry) for entry in self.removed],
            "warnings": [
                {"code": w.code, "level": w.level, "text": w.text, "why": w.why, "do": w.do}
                for w in self.warnings
            ],
        }

    def __repr__(self) -> str:
        at = self.reached
        if at is None:
            return f"Level({self.law.spec}: not reached: {self.reason})"
        return (
            f"Level({self.law.spec}: asymptote {at.asymptote:.5g} from {at.rows} of {self.prefixes[-1].rows} "
            f"rows, at {self.share:.2g} of the largest {self.law.axes[0]})"
        )


def level(
    law: Law | str,
    runs: Runs | Any,
    *,
    tolerance: float = 0.01,
    patience: int = 3,
    least: int | None = None,
    at: float | None = None,
    objective: Objective | None = None,
    draws: int = 100,
    coverage: float = 0.9,
    seed: int = 0,
) -> Level:
    """From which size on a learning curve tells where it ends.

    The law is refitted to growing prefixes of the rows, in order of its axis, rows of one size together. With
    ``c_l`` the asymptote of prefix l and ``s_l`` its standard error:

    - the *prediction level* omega is the first prefix whose asymptote stays put over the next ``patience``
      prefixes: ``|c_(omega+j) - c_omega| <= max(s_omega, tolerance)`` for j = 1 to patience;
    - the *stop* is the first prefix at or after omega with ``|c_l - c_(l-1)| <= tolerance``;
    - the answer is the curve of the first prefix from there on that has seen those that confirm omega, and whose
      own ``s_l <= tolerance``.

    Prefixes are nested, so their asymptotes are correlated and agree more than independent fits would: two of
    them can agree closer than either is known, hence the last condition. Each standard error comes from that
    prefix's own draws; that of omega is its yardstick because the later estimate holds the earlier rows: the
    variance of the change is then about the difference of the two variances (Hausman 1978), at most that of the
    smaller prefix. A prefix whose rows leave the parameters open (a floor at its bound, say) has no asymptote to
    compare. An asymptote that moves away in the rows after the answer is said in ``warnings`` (``moved-on``).

    Args:
        law: of one axis and with a floor, or its name: ``"hestness"``, ``"m3(flops)"``.
        runs: a table, or anything :func:`isoloss.read` takes.
        tolerance: how far apart two asymptotes may be and still count as one, in the target's unit.
        patience: how many further prefixes confirm the level.
        least: different sizes in the first prefix; default two more than the law has parameters.
        at: the size to predict at; default the largest in the table.
        objective: as in :func:`isoloss.fit`.
        draws: joint draws of each prefix, by bootstrap: few, because there are many prefixes.
        coverage: of the intervals.
        seed: same seed and same rows, same result.

    Returns:
        The level. If it is not reached, ``known`` is None and ``reason`` says why: that is an answer too.

    Raises:
        ValueError: the law has several axes or no floor, or a setting is out of range. TypeError: no law, or
        no number where one is needed. NoAnswer: the table has fewer different sizes than the first prefix needs.

    Source:
        Vilares Ferro, Darriba Bilbao & Ribadas Pena 2017, Modeling of learning curves with applications to POS
        tagging, arXiv:2402.02515: prediction level and proximity condition; here in terms of a loss, with
        standard errors in place of strict monotony, and the last condition added.

    Example:
        >>> import numpy as np
        >>> tokens = np.geomspace(1e5, 1e8, 16)
        >>> loss = 1.5 + 300 * tokens**-0.4
        >>> found = level("hestness", {"tokens": tokens, "loss": loss}, draws=20)
        >>> found
        Level(hestness(tokens): asymptote 1.5 from 8 of 16 rows, at 0.025 of the largest tokens)
        >>> round(found.reached.predicted, 4), round(found.measured, 4)
        (1.6893, 1.6893)
    """
    law = get(law) if isinstance(law, str) else law
    if not isinstance(law, Law):
        raise TypeError(f"level needs a law or its name, got {law!r}. A class must be called: Hestness()")
    least = _checked(law, tolerance, patience, least, at, draws)
    runs = runs if isinstance(runs, Runs) else read(runs)
    data = prepare(law, runs)
    size, axis = data.x[law.axes[0]], law.axes[0]
    sizes = np.unique(size).tolist()
    if len(sizes) < least:
        raise NoAnswer(
            f"{len(sizes)} different {axis} are fewer than the first prefix needs, {least}",
            f"rows at {least + patience} or more different {axis}",
        )
    point = float(size.max()) if at is None else float(at)
    prefixes, fits = [], []
    for end in sizes[least - 1 :]:
        part = runs.take(np.isin(runs.rows, data.rows[size <= end]))
        # Draws only where the rows tell the parameters: elsewhere they are slow, and answer nothing.
        found = _fitted(law, part, objective, 0, coverage, seed)
        if found.result == "identified":
            found = _fitted(law, part, objective, draws, coverage, seed)
        prefixes.append(_prefix(found, end, point))
        fits.append(found)
    (omega, stop, known), reason, needed = _settled(prefixes, tolerance, patience, axis)
    chosen = len(prefixes) - 1 if known is None else known
    warnings = [*fits[chosen].warnings, *_moved_on(prefixes, known, tolerance)]
    return Level(
        law, point, _measured(data, size, point), tolerance, patience, coverage, seed, tuple(prefixes),
        omega, stop, known, reason, needed, data.removed, tuple(warnings),
    )  # fmt: skip


def _checked(
    law: Law, tolerance: float, patience: int, least: int | None, at: float | None, draws: int
) -> int:
    """The sizes in the first prefix, every setting in range."""
    if len(law.axes) != 1:
        raise ValueError(
            f"level needs a law of one axis, got {law.spec} with {', '.join(law.axes)}. Take hestness(AXIS), with "
            "the other axes held"
        )
    if law.floor(np.ones((1, len(law.parameters)))) is None:
        laws = [one for one in map(get, LAWS) if len(one.axes) == 1]
        floored = [one.slug for one in laws if one.floor(np.ones((1, len(one.parameters)))) is not None]
        raise ValueError(
            f"level needs a law that names its floor, got {law.spec}. Take one of {', '.join(floored)}; a law of "
            "your own gives it as floor(theta)"
        )
    _need_number("tolerance", tolerance)
    if at is not None:
        _need_number("at", at)
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"level needs a tolerance above 0, in the target's unit, got {tolerance}")
    if at is not None and not (np.isfinite(at) and at > 0):
        raise ValueError(f"level needs a size above 0 to predict at, got {at}")
    if patience < 1 or draws < 2:
        raise ValueError(f"level needs patience >= 1 and draws >= 2, got {patience} and {draws}")
    parameters = len(law.parameters)
    if least is not None and least <= parameters:
        raise ValueError(
            f"level needs a first prefix of more sizes than the {parameters} parameters of {law.spec}, got {least}"
        )
    return parameters + 2 if least is None else least


def _need_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"level needs {name} as a number, got {value!r}")


def _fitted(law: Law, part: Runs, objective: Objective | None, draws: int, coverage: float, seed: int) -> Fit:
    return fit(
        law, part, objective=objective, draws=draws, uncertainty="bootstrap", starts=STARTS,
        coverage=coverage, seed=seed, sensitivity=False,
    )  # fmt: skip


def _prefix(found: Fit, end: float, point: float) -> Prefix:
    best = found.law.floor(found.theta)
    assert best is not None  # refused before
    nan = float("nan")
    stderr, low, high, middle, below, above = (nan,) * 6
    if len(found.draws):
        floors = np.asarray(found.law.floor(found.draws))
        target = found.predict(of="mean", coverage=None, **{found.law.axes[0]: point})
        middle, below, above = (float(v[0]) for v in (target.median, target.low, target.high))
        if np.isfinite(floors).all():  # a curve that ends in a rise has none
            stderr, (low, high) = float(np.std(floors, ddof=1)), quantiles(floors, found.coverage)
    return Prefix(len(found.y), end, float(best), stderr, low, high, middle, below, above, found.result)


def _settled(
    prefixes: Sequence[Prefix], tolerance: float, patience: int, axis: str
) -> tuple[tuple[int | None, int | None, int | None], str, str]:
    """Prediction level, stop and answer; where one is None, the reason and what is needed."""
    # NaN where there is no asymptote to compare: it then agrees with nothing.
    told = [prefix.identified for prefix in prefixes]
    c = np.where(told, [prefix.asymptote for prefix in prefixes], np.nan)
    s = np.where(told, [prefix.stderr for prefix in prefixes], np.nan)
    n, more = len(c), f"rows at larger {axis}, a larger tolerance, or another law"
    if n <= patience:
        reason = f"{n} prefix{'es' if n > 1 else ''} cannot hold one confirmed by the next {patience}"
        return (None, None, None), reason, f"at least {patience + 1} prefixes: rows at more different {axis}"
    if sum(told) <= patience:
        reason = (
            f"{sum(told)} of {n} prefixes determine the parameters: the others have no asymptote to compare"
        )
        return (None, None, None), reason, f"rows over a wider range of {axis}, or a law of fewer parameters"
    stays = [
        bool(np.all(np.abs(c[i + 1 : i + 1 + patience] - c[i]) <= max(s[i], tolerance)))
        for i in range(n - patience)
    ]
    if True not in stays:
        seen = c[np.isfinite(c)]
        reason = (
            "the asymptote never stays within its standard error or the tolerance for "
            f"{patience} prefix{'' if patience == 1 else 'es'}: it ends at {seen[-1]:.4g}, {patience} before at {seen[-1 - patience]:.4g}"
        )
        return (None, None, None), reason, more
    omega = stays.index(True)
    change = np.abs(np.diff(c, prepend=np.nan))
    close = change[omega:] <= tolerance
    if not close.any():
        reason = (
            f"no two successive asymptotes after the prediction level agree to {tolerance:g}: the closest differ "
            f"by {np.nanmin(change[omega:]):.2g}"
        )
        return (omega, None, None), reason, more
    stop = omega + int(np.argmax(close))
    first = max(stop, omega + patience)
    sharp = s[first:] <= tolerance
    if not sharp.any():
        reason = (
            f"successive asymptotes agree to {tolerance:g}, but none is known that well: the least standard error "
            f"is {np.nanmin(s[omega:]):.2g}"
        )
        return (omega, stop, None), reason, more
    return (omega, stop, first + int(np.argmax(sharp))), "", ""


def _moved_on(prefixes: Sequence[Prefix], known: int | None, tolerance: float) -> list[Finding]:
    """What the rows after the answer say against it."""
    if known is None:
        return []
    at, last = prefixes[known], prefixes[-1]
    if not last.identified or abs(last.asymptote - at.asymptote) <= max(2 * at.stderr, tolerance):
        return []
    return [
        Finding(
            "moved-on", "warning", (), None,
            f"after the answer the asymptote moved on, from {at.asymptote:.4g} to {last.asymptote:.4g} with all "
            "rows: more than twice its standard error",
            "a law of the wrong shape can pause and then drift, and its end is then not the curve's",
            "try another law, or a smaller tolerance",
        )
    ]  # fmt: skip


def _measured(data: Data, size: Array, point: float) -> float | None:
    there = size == point
    return float(np.mean(data.y[there])) if there.any() else None


def _finite(value: Any) -> Any:
    """Null for a number that does not exist."""
    return None if isinstance(value, float) and not np.isfinite(value) else value

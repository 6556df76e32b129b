"""Two fits, one after the other: the loss of a run from its axes, and from the loss what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.prediction import Prediction
from isoloss.fitting.result import Fit

Array = np.ndarray[Any, np.dtype[Any]]


class Predicts(Protocol):
    """A fit, or a stack of fits."""

    def predict(
        self, *, of: Literal["mean", "run"] = "mean", coverage: float | None = None, **axes: Any
    ) -> Prediction:
        """The distribution of its target at points."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A fit of the loss and a fit of a link behind it, as one belief; made by :func:`chain`.

    Attributes:
        first: predicts the loss from the axes of a run.
        link: predicts its target from the loss.

    Example:
        >>> import numpy as np, isoloss
        >>> tokens = 2.0 ** np.arange(10)
        >>> loss = 2 + 2 / tokens
        >>> first = isoloss.fit("hestness", {"tokens": tokens, "loss": loss}, draws=50)
        >>> pairs = {"loss": loss, "error": 0.9 - 2 * np.exp(-0.7 * loss)}
        >>> both = isoloss.chain(first, isoloss.fit("loss-to-error", pairs, draws=50))
        >>> both.target, float(both.predict(tokens=1e4).median[0].round(3))
        ('error', 0.407)
    """

    first: Predicts
    link: Fit

    @property
    def target(self) -> str:
        """The link's."""
        return self.link.law.target

    def predict(
        self, *, of: Literal["mean", "run"] = "mean", coverage: float | None = None, **axes: Any
    ) -> Prediction:
        """The distribution of the link's target at a point: each draw of the loss through a draw of the link.

        Args:
            of: ``"mean"``, the level of both laws; or ``"run"``, one new run, with the scatter of its loss and of
                its error about the link.
            coverage: of the interval; default the first fit's.
            axes: as for the first fit.

        Returns:
            ``reach`` is that of the first fit, or how far the predicted loss lies outside the link's rows, whichever
            is larger.

        Raises:
            ValueError: an axis is missing or not positive. NoAnswer: one of the fits has no draws.
        """
        loss = self.first.predict(of=of, coverage=coverage, **axes)
        axis, draws = self.link.law.axes[0], self.link.draws
        if len(draws) == 0:
            raise NoAnswer("the fit of the link has no draws, so no interval", "fit it with draws=1000")
        if not (np.isfinite(loss.draws) & (loss.draws > 0)).all():
            raise NoAnswer(
                f"the predicted {axis} is not positive in every draw",
                "a point nearer to the rows of the first fit",
            )
        # The two fits know nothing of each other's noise: any pairing is as good, the same one for every point.
        rng = np.random.default_rng([self.link.seed, 3])
        count = max(len(loss.draws), len(draws))
        first = loss.draws[np.arange(count) % len(loss.draws)]
        chosen = rng.permutation(len(draws))[np.arange(count) % len(draws)]
        flat = first.reshape(count, -1)
        parts = tuple(draws[chosen, p, None] for p in range(draws.shape[1]))
        level = np.asarray(self.link.law.value(parts, {axis: flat}), dtype=float).reshape(first.shape)
        beyond = self.link.reach({axis: loss.median})
        if of == "run":
            level = self.link.scattered(level, beyond > 1, rng, chosen)
        return Prediction(of, loss.coverage, loss.x, level, np.maximum(loss.reach, beyond))


def chain(first: Predicts, link: Fit) -> Chain:
    """Two stages as one belief: predict the loss of a run, and what that loss is worth downstream.

    Each stage is fitted where its data are: the loss on a ladder of runs, the link on pairs of loss and error (any
    models, also others than those of the ladder). Joint draws of both then carry the uncertainty of both. They are
    paired as independent. Where both fits are of the same runs, the noise of a run's loss is in both; it is small
    beside what the link leaves open.

    Args:
        first: a fit or stack whose target is the link's axis.
        link: a fit of a law of that one axis, ``loss-to-error`` for instance.

    Raises:
        TypeError: not fits. ValueError: the link reads something else than the first predicts.

    Source:
        The procedure of Gadre et al. 2024, arXiv:2403.08540: the loss by the law of over-training, the mean error
        by the link.

    Example:
        >>> import numpy as np, isoloss
        >>> n, d = (v.ravel() for v in np.meshgrid([1e7, 4e7, 16e7, 64e7], [1e9, 4e9, 16e9]))
        >>> loss = 1.8 + 480 * n**-0.35 + 2000 * d**-0.37
        >>> ladder = isoloss.fit("hoffmann", {"params": n, "tokens": d, "loss": loss}, draws=50)
        >>> pairs = {"loss": loss, "error": 0.86 - 2.2 * np.exp(-0.7 * loss)}
        >>> both = chain(ladder, isoloss.fit("loss-to-error", pairs, draws=50))
        >>> both.predict(params=7e9, tokens=1e11).median.round(3).tolist()
        [0.369]
    """
    if not isinstance(link, Fit) or not hasattr(first, "predict"):
        raise TypeError(f"chain needs two fits, got {first!r} and {link!r}")
    fit: Any = getattr(first, "leading", first)  # of a stack, its member of most weight
    given = fit.law.target
    if link.law.axes != (given,):
        raise ValueError(
            f"chain needs a link that reads {given} alone, got {link.law.spec}, which reads "
            f"{', '.join(link.law.axes)}. Fit one of {given}, such as loss-to-error"
        )
    here, there = fit.units.get(given, ""), link.units.get(given, "")
    if here and there and here != there:
        raise ValueError(
            f"the first fit gives {given} in {here}, the link reads it in {there}. Fit both in one unit"
        )
    return Chain(first, link)

"""Hu et al. 2023, Predicting Emergent Abilities with Infinite Resolution Evaluation, arXiv:2310.03262."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoloss.observing.measured import Measured
from isoloss.special import beta_quantile


@dataclass(frozen=True)
class PassRate:
    """A pass rate from sampling until enough passes came, or until the cap.

    Attributes:
        unbiased: the estimate whose mean is the pass rate, with its exact interval.
        ml: passes / samples, the paper's estimate: too high on average, most of all after few passes.
        stopped: whether the wanted passes came; if not, sampling ended at the cap.
    """

    unbiased: Measured
    ml: float
    stopped: bool


def pass_until(passes: int, samples: int, *, wanted: int, coverage: float = 0.9) -> PassRate:
    r"""The pass rate of one task that was sampled until its r-th pass, K samples in all, or up to a cap.

    .. math:: \hat p = \frac{r-1}{K-1} \text{ after the r-th pass}, \qquad
              \hat p = \frac{r'}{K_{max}} \text{ at the cap with } r' < r \text{ passes}

    The pair is unbiased together (Girshick, Mosteller and Savage 1946); r/K alone is not: at a rate of 0.01 its
    mean is 4.65 times the rate for r = 1, 1.93 times for 2, 1.11 times for 10. The interval inverts the exact
    distribution: from Beta(r, K-r+1) below to Beta(r, K-r) above after the r-th pass, Clopper and Pearson's at
    the cap; the two sides together make one exact interval of the capped experiment.

    Args:
        passes: that came.
        samples: that were taken; at the cap, the cap.
        wanted: r, passes at which sampling stops, 2 or more. For 1 there is no useful unbiased estimate.
        coverage: of the interval.

    Raises:
        ValueError: counts that such an experiment cannot give.

    Example:
        >>> print(pass_until(5, 41, wanted=5).unbiased)
        0.1 (90% interval 0.0493 to 0.2144; unbiased; exact interval)
        >>> print(pass_until(0, 100_000, wanted=5).unbiased)
        0 (90% interval 0 to 2.996e-05; unbiased; exact interval)
    """
    given = {"passes": passes, "samples": samples, "wanted": wanted}
    broken = {name: n for name, n in given.items() if not isinstance(n, int | np.integer)}
    if broken:
        name, count = next(iter(broken.items()))
        raise ValueError(f"needed a whole number of {name}, got {count!r}. Give the counts of one task")
    passes, samples, wanted = int(passes), int(samples), int(wanted)
    if wanted < 2:
        raise ValueError(f"needed 2 or more wanted passes for an unbiased estimate, got {wanted}. Sample on")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if not (0 <= passes <= samples and samples >= 1):
        raise ValueError(f"needed 0 <= passes <= samples and a sample, got {passes} of {samples}")
    if passes > wanted:
        raise ValueError(
            f"sampling stops at the {wanted}th pass, got {passes}. Count up to the {wanted}th only: samples "
            "after it are another experiment"
        )
    stopped = passes == wanted
    below, above = (1 - coverage) / 2, (1 + coverage) / 2
    low = beta_quantile(below, passes, samples - passes + 1) if passes else 0.0
    # At the cap one more pass could have come with the last sample; after the last wanted pass none could.
    most = passes if stopped else passes + 1
    high = beta_quantile(above, most, samples - passes) if passes < samples else 1.0
    value = (passes - 1) / (samples - 1) if stopped else passes / samples
    return PassRate(
        Measured(value, low, high, coverage, "unbiased; exact interval"), passes / samples, stopped
    )

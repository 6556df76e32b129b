"""The gradient noise scale: how many tokens a batch needs before its gradient is mostly signal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class NoiseMeter:
    """Unbiased two-batch estimate of the simple noise scale tr(Sigma) / |G|^2.

    With the gradient of a batch of B tokens and those of its two halves of b = B/2,

        S  = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)        expectation tr(Sigma)
        G2 = (B |G_B|^2 - b |G_b|^2) / (B - b)        expectation |G|^2

    where |G_b|^2 is the mean over both halves. Each is averaged over the steps (exponentially, so that it
    follows the run) before the ratio is taken. The norms are of the raw gradient, not of an optimiser's step.

    Source: McCandlish, Kaplan, Amodei et al. 2018, arXiv 1812.06162, appendix A.1.

    Attributes:
        keep: share of the average that stays at each update.
        spread: average of S, up to a factor that cancels.
        signal: average of G2, up to the same factor.

    Example:
        >>> meter = NoiseMeter()
        >>> meter.update(tokens=100, halves=3.0, whole=2.0)
        >>> meter.scale  # S = 1 / (1/50 - 1/100) = 100, G2 = (200 - 150) / 50 = 1
        100.0
    """

    keep: float = 0.95
    spread: float = 0.0
    signal: float = 0.0

    def update(self, tokens: float, halves: float, whole: float) -> None:
        """One step: squared norms of the halves' gradients (their mean) and of the whole batch's."""
        small = tokens / 2
        spread = (halves - whole) / (1 / small - 1 / tokens)
        signal = (tokens * whole - small * halves) / (tokens - small)
        self.spread = self.keep * self.spread + (1 - self.keep) * spread
        self.signal = self.keep * self.signal + (1 - self.keep) * signal

    @property
    def scale(self) -> float | None:
        """In tokens; None while noise hides the signal (its average is not positive)."""
        return self.spread / self.signal if self.signal > 0 else None

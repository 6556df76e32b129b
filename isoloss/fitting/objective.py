"""What a fit minimises: a loss on residuals, stated in full so that two fits can be compared."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Residual = Literal["log", "linear"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class Objective:
    """A row loss :math:`\\rho(r)` on ``log y - log f`` or on ``y - f``, summed or averaged over rows.

    Sum and mean have the same minimum. They differ in the printed value, and in optimisers with an
    absolute tolerance: averaging is what stopped the published Chinchilla fit early (Besiroglu et al.
    2024, arXiv:2404.10102). The optimiser here is scale-free, so the choice is one of reporting.

    Attributes:
        residual: ``"log"`` (relative errors) or ``"linear"`` (errors in the target's unit).
        reduction: how the reported value is aggregated.
    """

    residual: Residual = "log"
    reduction: Reduction = "sum"

    name: ClassVar[str] = ""
    has_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.residual not in ("log", "linear"):
            raise ValueError(f"residual must be 'log' or 'linear', got {self.residual!r}")
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}")

    def rho(self, r: Array) -> Array:
        """Loss of each row."""
        raise TypeError("Objective is an interface: use Huber, LeastSquares, Gaussian or StudentT")

    def slopes(self, r: Array) -> tuple[Array, Array]:
        """First and second derivative of :meth:`rho`."""
        raise TypeError("Objective is an interface: use Huber, LeastSquares, Gaussian or StudentT")

    def temperature(self, r: Array, w: Array) -> float:
        """``kappa`` for which ``exp(-rho / kappa)`` is the likelihood: what a prior is weighed against."""
        return 1.0

    def log_normaliser(self, kappa: Array) -> Array:
        r"""``log Z(kappa)`` of the density ``exp(-rho/kappa)/Z`` of one residual, per entry."""
        raise TypeError(f"{type(self).__name__} has a scale of its own")

    def spread(self, kappa: Array) -> tuple[float, Array]:
        """How much more the estimate scatters than its posterior says, and the noise's scale, from ``kappa``.

        With a scale of its own an objective is a likelihood: the ratio is 1, and ``kappa`` is the scale.
        """
        return 1.0, kappa

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Noise of unit scale that the objective supposes."""
        return rng.normal(size=shape)

    def to_json(self) -> dict[str, Any]:
        """Settings with the objective's name."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Huber(Objective):
    r"""Huber's loss: quadratic within ``delta``, linear beyond. Hoffmann et al. 2022, eq. 3.

    .. math:: \rho(r) = r^2/2 \text{ if } |r| \le \delta, \text{ else } \delta(|r| - \delta/2)

    With ``delta=1e-3`` on log losses, the literature's choice, nearly every residual is larger: the fit
    is close to least absolute deviations. A larger delta is a different estimator, not a detail.

    Example:
        >>> Huber(delta=0.5).rho(np.array([0.1, 2.0])).tolist()
        [0.005000000000000001, 0.875]
    """

    delta: float = 1e-3
    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta must be finite and above 0, got {self.delta}")

    def rho(self, r: Array) -> Array:
        """Loss of each row."""
        size = np.abs(r)
        inner = np.minimum(size, self.delta)
        return inner * (size - 0.5 * inner)

    def slopes(self, r: Array) -> tuple[Array, Array]:
        """First and second derivative of :meth:`rho`."""
        return np.clip(r, -self.delta, self.delta), (np.abs(r) <= self.delta).astype(float)

    def log_normaliser(self, kappa: Array) -> Array:
        """``Z = sqrt(2 pi kappa) erf(delta/sqrt(2 kappa)) + 2 (kappa/delta) exp(-delta^2/(2 kappa))``:
        Gaussian for large delta, Laplace for small."""
        kappa, d = np.asarray(kappa, dtype=float), self.delta
        root = _erf(d / np.sqrt(2 * kappa))
        with np.errstate(under="ignore", over="ignore"):
            edge = 2 * kappa / d * np.exp(-(d**2) / (2 * kappa))
            return np.log(np.sqrt(2 * np.pi * kappa) * root + edge)

    def temperature(self, r: Array, w: Array) -> float:
        """Maximum-likelihood ``kappa`` of the density ``exp(-rho/kappa)/Z(kappa)``."""
        mean = float(np.sum(w * self.rho(r)) / np.sum(w))
        return float(self._temperatures(np.array([mean]), 2001)[0]) if mean > 0 else 1.0

    def _temperatures(self, means: Array, points: int) -> Array:
        """The same for several mean losses: one smooth minimum in log kappa for each, between the Laplace
        (mean) and the Gaussian (2 mean) answers."""
        factors = np.exp(np.linspace(math.log(0.5), math.log(4.0), points))
        grid = means[:, None] * factors
        best = np.argmin(1 / factors + self.log_normaliser(grid), axis=1)
        return np.asarray(grid[np.arange(len(means)), best])

    def spread(self, kappa: Array) -> tuple[float, Array]:
        r"""Under normal noise of standard deviation s the estimate has variance :math:`B/A^2` and its
        posterior :math:`\kappa/A`, with :math:`A = P(|r|<\delta)`, :math:`B = E\min(r^2, \delta^2)`."""
        z = np.linspace(-8.0, 8.0, 4001)
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * (z[1] - z[0])
        middle = float(np.median(kappa))
        # kappa is near s^2 for large delta and near 0.8 delta s for small
        guess = max(math.sqrt(middle), middle / self.delta)
        sds = guess * np.exp(np.linspace(-1.5, 1.5, 61))
        means = self.rho(sds[:, None] * z) @ density
        temperatures = self._temperatures(means, 400)
        sd = np.exp(np.interp(np.log(kappa), np.log(temperatures), np.log(sds)))
        typical = float(np.median(sd))
        first, second = self.slopes(typical * z)
        b, a = float(first**2 @ density), float(second @ density)
        return math.sqrt(max(b / (a * middle), 1.0)), sd


@dataclass(frozen=True)
class LeastSquares(Objective):
    r"""Half the squared residual: :math:`\rho(r) = r^2/2`. Not robust: one outlier can move the fit.

    Example:
        >>> LeastSquares(residual="linear").rho(np.array([2.0])).tolist()
        [2.0]
    """

    name: ClassVar[str] = "least-squares"

    def log_normaliser(self, kappa: Array) -> Array:
        """``log sqrt(2 pi kappa)``: kappa is the variance."""
        return np.asarray(0.5 * np.log(2 * np.pi * kappa))

    def spread(self, kappa: Array) -> tuple[float, Array]:
        """1, and the root of the variance."""
        return 1.0, np.sqrt(kappa)

    def rho(self, r: Array) -> Array:
        """Loss of each row."""
        return 0.5 * r * r

    def slopes(self, r: Array) -> tuple[Array, Array]:
        """First and second derivative of :meth:`rho`."""
        return r, np.ones_like(r)

    def temperature(self, r: Array, w: Array) -> float:
        """The residual variance."""
        return float(np.sum(w * r * r) / np.sum(w)) or 1.0


@dataclass(frozen=True)
class Gaussian(Objective):
    r"""Gaussian likelihood: :math:`\rho(u) = u^2/2 + \log s`, ``u = r/s``, scale ``s`` estimated.

    With a column of known standard deviations (``loss_sd``) the rows are weighed by them.

    Example:
        >>> Gaussian().rho(np.array([2.0])).tolist()
        [2.0]
    """

    name: ClassVar[str] = "gaussian"
    has_scale: ClassVar[bool] = True

    def rho(self, r: Array) -> Array:
        """Loss of each row, ``r`` in units of the scale."""
        return 0.5 * r * r

    def slopes(self, r: Array) -> tuple[Array, Array]:
        """First and second derivative of :meth:`rho`."""
        return r, np.ones_like(r)


@dataclass(frozen=True)
class StudentT(Objective):
    r"""Student-t likelihood: :math:`\rho(u) = \frac{\nu+1}{2}\log(1+u^2/\nu) + \log s`, ``u = r/s``.

    Robust as Huber's, smooth, and its scale is estimated: no delta to choose. Lange, Little & Taylor
    1989, JASA 84(408).

    Example:
        >>> StudentT(df=1).rho(np.array([0.0, 1.0])).round(4).tolist()
        [0.0, 0.6931]
    """

    df: float = 4.0
    name: ClassVar[str] = "student-t"
    has_scale: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.df) and self.df > 0):
            raise ValueError(f"df must be finite and above 0, got {self.df}")

    def rho(self, r: Array) -> Array:
        """Loss of each row, ``r`` in units of the scale."""
        return 0.5 * (self.df + 1) * np.log1p(r * r / self.df)

    def slopes(self, r: Array) -> tuple[Array, Array]:
        """First and second derivative of :meth:`rho`."""
        base = self.df + r * r
        return (self.df + 1) * r / base, (self.df + 1) * (self.df - r * r) / base**2

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Student-t noise of unit scale."""
        return rng.standard_t(self.df, size=shape)


OBJECTIVES: dict[str, type[Objective]] = {cls.name: cls for cls in (Huber, LeastSquares, Gaussian, StudentT)}


def _erf(x: Array) -> Array:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), dtype=float)


def objective_from_json(settings: dict[str, Any]) -> Objective:
    """The objective that :meth:`Objective.to_json` wrote."""
    rest = {key: value for key, value in settings.items() if key not in ("name", "value")}
    return OBJECTIVES[settings["name"]](**rest)

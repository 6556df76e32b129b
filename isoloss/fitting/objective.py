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

    def temperature(self, r: Array, w: Array) -> float:
        """Maximum-likelihood ``kappa`` of the density ``exp(-rho/kappa)/Z(kappa)``.

        ``Z = sqrt(2 pi kappa) erf(delta/sqrt(2 kappa)) + 2 (kappa/delta) exp(-delta^2/(2 kappa))``: Gaussian
        for large delta, Laplace for small.
        """
        mean = float(np.sum(w * self.rho(r)) / np.sum(w))
        if mean == 0.0:
            return 1.0
        d = self.delta
        # One smooth minimum in log kappa between the Laplace (mean) and the Gaussian (2 mean) answers.
        grid = mean * np.exp(np.linspace(math.log(0.5), math.log(4.0), 2001))
        root = np.array([math.erf(d / math.sqrt(2 * k)) for k in grid])
        z = np.sqrt(2 * np.pi * grid) * root + 2 * grid / d * np.exp(-(d**2) / (2 * grid))
        return float(grid[np.argmin(mean / grid + np.log(z))])


@dataclass(frozen=True)
class LeastSquares(Objective):
    r"""Half the squared residual: :math:`\rho(r) = r^2/2`. Not robust: one outlier can move the fit.

    Example:
        >>> LeastSquares(residual="linear").rho(np.array([2.0])).tolist()
        [2.0]
    """

    name: ClassVar[str] = "least-squares"

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


OBJECTIVES: dict[str, type[Objective]] = {cls.name: cls for cls in (Huber, LeastSquares, Gaussian, StudentT)}


def objective_from_json(settings: dict[str, Any]) -> Objective:
    """The objective that :meth:`Objective.to_json` wrote."""
    rest = {key: value for key, value in settings.items() if key not in ("name", "value")}
    return OBJECTIVES[settings["name"]](**rest)

"""What a law is: named parameters, named inputs with units, and one formula."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from isoloss.laws.dual import Dual

if TYPE_CHECKING:
    from isoloss.laws.power_sum import Term

Array = np.ndarray[Any, np.dtype[Any]]

UNITS: Mapping[str, str] = {
    "params": "count",
    "params_nonembedding": "count",
    "params_active": "count",
    "params_trainable": "count",
    "experts": "count",
    "expert_density": "active/all experts",
    "streams": "count",
    "vocab_params": "count",
    "share_code": "share",
    "share_web": "share",
    "samples": "count",
    "pool": "count",
    "samples_clean": "count",
    "samples_noisy": "count",
    "tokens": "count",
    "tokens_unique": "count",
    "flops": "FLOP",
    "batch_tokens": "count",
    "batch_sequences": "count",
    "step": "count",
    "steps": "count",
    "steps_min": "count",
    "critical_batch": "tokens",
    "lr": "as the optimiser's",
    "max_attention_logit": "number",
    "loss": "nats/token",
    "loss_unigram_normalized": "nats/token",
    "error": "fraction wrong",
    "pass_rate": "fraction passed",
    "bits_weights": "bit",
    "bits_activations": "bit",
    "bits_kv": "bit",
    "bits_post": "bit",
    "exponent_bits": "bit",
    "mantissa_bits": "bit",
    "scale_block": "count",
}
"""Units of the inputs and targets that the shipped laws name."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law: its range, and the coordinate it is fitted in.

    Attributes:
        name: the paper's symbol, ASCII (``alpha``, ``E``).
        low, high: hard bounds in natural units; starts fill them.
        scale: ``"log"`` for positive quantities of unknown size, ``"linear"`` for exponents.
        meaning: one line for tables.
    """

    name: str
    low: float
    high: float
    scale: Literal["log", "linear"]
    meaning: str = ""

    def __post_init__(self) -> None:
        if not (self.low < self.high and math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"parameter {self.name} needs finite low < high, got {self.low} and {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(
                f"parameter {self.name} is positive (log scale) and needs low > 0, got {self.low}"
            )


def positive(name: str, low: float, high: float, meaning: str = "") -> Parameter:
    """A positive parameter, fitted as its logarithm.

    Example:
        >>> positive("E", 0.1, 5).scale
        'log'
    """
    return Parameter(name, low, high, "log", meaning)


def real(name: str, low: float, high: float, meaning: str = "") -> Parameter:
    """A parameter fitted as it is (an exponent, say).

    Example:
        >>> real("alpha", 0, 2).scale
        'linear'
    """
    return Parameter(name, low, high, "linear", meaning)


@dataclass(frozen=True)
class Published:
    """A fit from the literature: parameter values and where they were printed."""

    values: Mapping[str, float]
    source: str


class Law(ABC):
    """A stateless functional form ``target = value(theta, x)``.

    A subclass gives ``axes``, ``parameters`` and ``value``; slug, derivatives, fitting, planning and
    documentation follow. Write ``value`` in plain NumPy: its derivatives come from :mod:`isoloss.laws.dual`.

    Class attributes:
        axes: names of the input columns, each a positive quantity.
        parameters: the entries of theta, in order.
        target: the predicted column, ``"loss"`` unless said.
        formula: one line for tables.
        paper: one line: who, when, arXiv, equation.
        published: named thetas of the literature.
        alias_of: slug of the law this one re-parametrises, if any: the two are one hypothesis.
        defaults: ``{axis: axis it equals when its column is absent}``.
        may_be_zero: axes that may be 0 (a share of a mixture, samples of a kind that a run had none of).
        signed: whether the target may be zero or negative: then it is fitted on plain residuals only.

    Example:
        >>> class Shifted(Law):
        ...     "L = A / (N + M)^alpha"
        ...     axes = ("params",)
        ...     parameters = (positive("A", 1, 1e4), positive("M", 1, 1e9), real("alpha", 0.01, 1))
        ...     def value(self, theta, x):
        ...         A, M, alpha = theta
        ...         return A * (x["params"] + M) ** -alpha
        >>> Shifted().evaluate([8.0, 1.0, 0.5], params=[3, 15]).round(6)
        array([4., 2.])
    """

    axes: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    target: ClassVar[str] = "loss"
    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    published: ClassVar[Mapping[str, Published]] = {}
    alias_of: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, str]] = {}
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    signed: ClassVar[bool] = False

    @abstractmethod
    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """The target at ``x``.

        Args:
            theta: one entry per parameter, each of shape (..., 1) or scalar.
            x: one array of shape (n,) per axis.
        """

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """Bounds that follow from the data, by parameter name; they replace the declared ones.

        For a place on an axis (a break, a scale) the declared range would depend on the unit.
        """
        return {}

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str] | None:
        """Which points, beyond the sign of each axis, the law can mean, and what it needs of them in words.

        None: all of them. A law of shares wants them to sum to 1, say.
        """
        return None

    def power_terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """Terms ``c exp(sum_j e_j v_j)`` inside the law, at the natural logs of the axes.

        A fit moves the size of each in the middle of the rows, which is nearly independent of its exponents, in
        place of its coefficient.
        """
        return ()

    def given(self, columns: Collection[str]) -> Law:
        """The law on a table with these columns: itself, or less where columns may be absent (a composed law)."""
        return self

    def floor(self, theta: Array) -> Array | None:
        """What the target tends to as the axes grow without end, (...,) for theta (..., P).

        None where the law names none: its target falls to zero, or nobody has said. Infinite for a theta
        whose curve ends in a rise.
        """
        return None

    def canonical(self, theta: Array) -> Array:
        """Of several thetas (..., P) that are one curve, the one to report: breaks in order, say."""
        return theta

    @property
    def slug(self) -> str:
        """The law's name on the command line and in files: ``KaplanNd`` is ``kaplan-nd``."""
        return slug_of(type(self).__name__)

    @property
    def spec(self) -> str:
        """What :func:`isoloss.laws.get` turns back into this law."""
        own: str = getattr(self, "_spec", self.slug)
        axis = getattr(self, "axis", None) or ", ".join(getattr(self, "reads", ()))
        return f"{own}({axis})" if axis else own

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of theta."""
        return tuple(parameter.name for parameter in self.parameters)

    def theta(self, values: Mapping[str, float] | str) -> Array:
        """Theta of shape (P,) from a mapping, or from the name of a published fit.

        Example:
            >>> from isoloss.laws import get
            >>> get("hoffmann").theta("besiroglu-2024")[:1]
            array([1.8172])
        """
        if isinstance(values, str):
            values = self.published_fit(values).values
        missing = [name for name in self.names if name not in values]
        extra = [name for name in values if name not in self.names]
        if missing or extra:
            raise ValueError(
                f"{self.slug} needs parameters {list(self.names)}, got {list(values)}. "
                f"Missing: {missing}; unknown: {extra}"
            )
        return np.array([float(values[name]) for name in self.names])

    def published_fit(self, name: str) -> Published:
        """The published fit of that name, or a ``ValueError`` that lists what there is."""
        if name not in self.published:
            known = ", ".join(self.published) or "none"
            raise ValueError(f"{self.slug} has no published fit {name!r}. Known: {known}")
        return self.published[name]

    def inputs(self, x: Mapping[str, Any]) -> dict[str, Array]:
        """The law's axes from ``x`` as float arrays of one shape, defaults filled, all checked."""
        unknown = [name for name in x if name not in self.axes]
        if unknown:
            raise ValueError(f"{self.slug} reads {list(self.axes)}, got also {unknown}. Leave them out")
        out: dict[str, Any] = {}
        for axis in self.axes:
            source = axis if axis in x else self.defaults.get(axis, axis)
            if source not in x:
                raise ValueError(f"{self.slug} needs {list(self.axes)}, got {list(x)}. Add {axis}")
            try:
                array = np.asarray(x[source], dtype=float)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{self.slug} needs numbers for {axis}, got {x[source]!r}. Write 7e9 for 7B"
                ) from None
            zero = axis in self.may_be_zero
            bad = ~(np.isfinite(array) & ((array >= 0) if zero else (array > 0)))
            if bad.any():
                raise ValueError(
                    f"{self.slug} needs {axis} finite and {'at or ' if zero else ''}above 0, "
                    f"got {array[bad].ravel()[0]:g}"
                )
            out[axis] = array
        try:
            shape = np.broadcast_shapes(*(array.shape for array in out.values()))
        except ValueError:
            lengths = ", ".join(f"{axis} {array.shape}" for axis, array in out.items())
            raise ValueError(
                f"{self.slug} needs one value of each axis, or equally many; got shapes {lengths}"
            ) from None
        if 0 in shape:
            raise ValueError(f"{self.slug} needs at least one point, got none")
        whole = {axis: np.broadcast_to(array, shape) for axis, array in out.items()}
        verdict = self.accepts(whole)
        if verdict is not None and not verdict[0].all():
            at = ", ".join(f"{axis} {array[~verdict[0]].ravel()[0]:g}" for axis, array in whole.items())
            raise ValueError(f"{self.slug} needs {verdict[1]}, got {at}")
        return whole

    def _checked(self, theta: Any) -> Array:
        array: Array = np.asarray(theta, dtype=float)
        if array.ndim == 0 or array.shape[-1] != len(self.parameters):
            raise ValueError(
                f"{self.slug} needs theta of shape (..., {len(self.parameters)}): {', '.join(self.names)}; "
                f"got shape {array.shape}"
            )
        return array

    def evaluate(self, theta: Any, **axes: Any) -> Array:
        """The target for every theta at every point.

        Args:
            theta: shape (..., P).
            axes: one number or array per axis of the law, by name; broadcast together to shape X.

        Returns:
            Shape (..., *X), in the target's unit.

        Raises:
            ValueError: an axis is missing, unknown or not positive.
        """
        x = self.inputs(axes)
        shape = next(iter(x.values())).shape
        theta = self._checked(theta)
        flat = {axis: array.ravel() for axis, array in x.items()}
        parts = tuple(theta[..., p, None] for p in range(len(self.parameters)))
        out = np.asarray(self.value(parts, flat), dtype=float)
        full = np.broadcast_to(out, (*theta.shape[:-1], math.prod(shape)))
        return full.reshape((*theta.shape[:-1], *shape))

    def elasticities(self, theta: Any, x: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """The target and ``d target / d ln axis`` for every axis, exact.

        Args:
            theta: shape (..., P).
            x: per axis an array that broadcasts against (..., n).

        Returns:
            The target of shape (..., n) and one array of that shape per axis.
        """
        theta = self._checked(theta)
        duals = {
            axis: Dual(np.asarray(x[axis], dtype=float), {i: np.asarray(x[axis], dtype=float)})
            for i, axis in enumerate(self.axes)
        }
        out = self.value(tuple(theta[..., p, None] for p in range(len(self.parameters))), duals)
        if not isinstance(out, Dual):
            raise TypeError(f"{self.slug}: value() does not depend on any of {list(self.axes)}")
        slopes = {
            axis: np.broadcast_to(out.partials.get(i, np.zeros(())), out.value.shape)
            for i, axis in enumerate(self.axes)
        }
        return out.value, slopes


@cache
def slug_of(class_name: str) -> str:
    """``KaplanNd`` -> ``kaplan-nd``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", class_name).lower()

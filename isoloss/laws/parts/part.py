"""What a part of a composed law is: a factor of an axis, or a term of the target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from isoloss.laws.law import Array, Law, Parameter, Published, slug_of


@dataclass(frozen=True)
class Part(ABC):
    """A piece of a composed law that reads columns of its own.

    Every column has a reference, at which the part changes nothing; a column that is absent is at it. So a
    part keeps only the columns that are there, and the parameters that belong to them.

    Class attributes:
        columns: what it can read, in order.
        needed: of these, the columns without which the rest says nothing.
        shared: parameters of the base law that it reads too.
        reference: in words, where each column changes nothing.
        together: slugs of laws and parts that its paper fitted it together with; beside any other it is
            assumed separable.
        within: slugs of laws that hold it already, as bases refused.
        may_be_zero: columns of which 0 is a value like others.
        formula, paper: one line each, for tables.

    Attributes:
        reads: columns in use; none given: all.
    """

    reads: tuple[str, ...] = ()

    columns: ClassVar[tuple[str, ...]]
    needed: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    reference: ClassVar[str]
    together: ClassVar[tuple[str, ...]] = ()
    within: ClassVar[tuple[str, ...]] = ()
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    formula: ClassVar[str]
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        wrong = [name for name in self.reads if name not in self.columns]
        lacking = [name for name in self.needed if self.reads and name not in self.reads]
        if wrong or lacking:
            raise ValueError(
                f"{self.slug} reads some of {', '.join(self.columns)}, got {', '.join(self.reads)}. "
                + (f"Leave out {wrong[0]}" if wrong else f"Add {lacking[0]}")
            )
        ordered = tuple(name for name in self.columns if not self.reads or name in self.reads)
        object.__setattr__(self, "reads", ordered)

    @property
    @abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of the columns in use, in order."""

    @property
    def published(self) -> Mapping[str, Published]:
        """Named values of the literature for these parameters, or for some of them."""
        return {}

    @property
    def slug(self) -> str:
        """The part's name in a spec: ``Precision`` is ``precision``."""
        return slug_of(type(self).__name__)

    @property
    def spec(self) -> str:
        """The slug, or the address of one's own, with the columns in use where these are not all."""
        own: str = getattr(self, "_spec", self.slug)
        return own if self.reads == self.columns else f"{own}({', '.join(self.reads)})"

    def given(self, columns: Collection[str]) -> Self | None:
        """The part on these columns alone; None where that leaves it at its reference.

        Raises:
            ValueError: some of the columns that it needs together are there, and some are not.
        """
        reads = tuple(name for name in self.reads if name in columns)
        lacking = [name for name in self.needed if name not in reads]
        if lacking and len(lacking) < len(self.needed):
            there = [name for name in self.needed if name in reads]
            raise ValueError(
                f"{self.slug} needs {', '.join(self.needed)} together, got {', '.join(there)}. Add {lacking[0]}"
            )
        if not reads or lacking:
            return None
        if reads == self.reads:
            return self
        less = replace(self, reads=reads)
        if hasattr(self, "_spec"):  # the address of a part from a file
            object.__setattr__(less, "_spec", self._spec)
        return less

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """As :meth:`isoloss.laws.law.Law.ranges`."""
        return {}

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str] | None:
        """As :meth:`isoloss.laws.law.Law.accepts`; the size of the base as ``params``."""
        return None

    @abstractmethod
    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """The factor, or the term, at ``x``; plain NumPy, as in :meth:`isoloss.laws.law.Law.value`.

        Args:
            theta: the part's parameters by name, and the ``shared`` ones of the base.
            x: the columns in use; a factor finds the raw axes of the base beside them, a term those that the
                base reads (after the factors), both the size of the base, if it has one, as ``params``.
        """


class Factor(Part):
    """``N_eff/N`` or ``D_eff/D``, from raw axes; 1 at its reference.

    Class attributes:
        scales: the axis that it multiplies.

    Example:
        >>> from isoloss.laws.hoffmann import Hoffmann
        >>> from isoloss.laws.parts.precision import Precision
        >>> (Hoffmann() * Precision(("bits_weights",))).spec
        'hoffmann * precision(bits_weights)'
    """

    scales: ClassVar[Literal["params", "tokens"]]

    def __rmul__(self, law: Law) -> Law:
        from isoloss.laws.parts.composed import compose

        return compose(law, self)


class LossTerm(Part):
    """What is added to the target; 0 at its reference.

    Class attributes:
        tokens_power: the parameter (own or shared) that is its exponent of the tokens, where it is a pure power
            of them; see :func:`isoloss.laws.parts.critical.critical_tokens`.
    """

    tokens_power: ClassVar[str | None] = None

    def __radd__(self, law: Law) -> Law:
        from isoloss.laws.parts.composed import compose

        return compose(law, self)

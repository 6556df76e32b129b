"""What may be spent, and the loss wanted."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from numbers import Real

from isoloss.planning import costs
from isoloss.planning.costs import Cost

LIMITS = ("flops", "total_flops", "tokens", "params", "bytes", "device_hours", "money")
OBJECTIVES = ("train_flops", "total_flops", "money", "device_hours", "bytes", "params", "tokens")


@dataclass(frozen=True, kw_only=True)
class Budget:
    r"""Limits on what a model costs; with ``loss``, the goal that must be reached cheaply.

    Without ``loss`` a plan is the best loss within the limits. With ``loss`` it is the cheapest way there
    that keeps within them.

    Args:
        flops: training, :math:`6ND` [FLOP].
        total_flops: training and serving, :math:`6ND + 2 N D_{serve}` [FLOP].
        tokens: unique tokens available [count]. A law with ``tokens_unique`` may repeat them; for any
            other law they are the most that can be trained on.
        params: largest size [count].
        bytes: largest size of the stored weights, :math:`N \cdot bits/8` [byte].
        device_hours: of training, at ``peak`` and ``utilisation`` [device-hour].
        money: for training and serving, at ``price_per_device_hour`` [its currency].
        loss: the loss wanted [unit of the law's target, nats/token as a rule].
        minimise: what is cheap when ``loss`` is given: ``"total_flops"`` (training only when nothing is
            served), ``"money"`` (the default where a price is given), ``"train_flops"``,
            ``"device_hours"``, ``"bytes"``, ``"params"`` or ``"tokens"``.
        serve_tokens: prompt and generated tokens that will be served in all [count].
        bits: per stored parameter at serving; for a law that reads ``bits_post``, ``bits_weights`` or the bits of a
            floating-point format, those are what is stored.
        peak: of one device [FLOP/s].
        utilisation: share of the peak that training reaches, 0 to 1.
        serve_utilisation: the same for serving; that of training if not given.
        price_per_device_hour: in any currency.
        bits_cost: count FLOPs of training in 16-bit units, for a law that reads bits in training:
            :math:`6ND \cdot P/16` with P their mean (Kumar et al. 2024, arXiv:2411.04330); device-hours and
            money follow. Without it a FLOP is a FLOP.

    Raises:
        ValueError: a value is not a positive finite number, or one needs another that is missing.

    Example:
        >>> Budget(flops=1e21, bytes=8e9, bits=4)
        Budget(flops=1e+21, bytes=8000000000.0, bits=4)
        >>> Budget(device_hours=1000)
        Traceback (most recent call last):
            ...
        ValueError: Budget(device_hours=...) needs peak and utilisation too: add peak=, utilisation=
    """

    flops: float | None = None
    total_flops: float | None = None
    tokens: float | None = None
    params: float | None = None
    bytes: float | None = None
    device_hours: float | None = None
    money: float | None = None
    loss: float | None = None
    minimise: str | None = None
    serve_tokens: float = 0.0
    bits: float = 16.0
    peak: float | None = None
    utilisation: float | None = None
    serve_utilisation: float | None = None
    price_per_device_hour: float | None = None
    bits_cost: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("minimise", "bits_cost") and value is not None:
                _refuse(field.name, value)
        if not isinstance(self.bits_cost, bool):
            raise ValueError(f"Budget needs bits_cost as True or False, got {self.bits_cost!r}")
        if not self.given and self.loss is None:
            raise ValueError(
                f"a budget needs at least one limit ({', '.join(LIMITS)}) or a wanted loss: add flops=1e21, say"
            )
        if self.minimise is not None:
            _check_objective(self.minimise, self.loss)
        self._need("device_hours", ("peak", "utilisation"))
        self._need("money", ("peak", "utilisation", "price_per_device_hour"))

    def _need(self, name: str, others: tuple[str, ...]) -> None:
        if getattr(self, name) is None and self.minimise != name:
            return
        missing = [other for other in others if getattr(self, other) is None]
        if missing:
            how = f"minimise={name!r}" if getattr(self, name) is None else f"{name}=..."
            raise ValueError(
                f"Budget({how}) needs {' and '.join(missing)} too: add {', '.join(f'{m}=' for m in missing)}"
            )

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}

    @property
    def objective(self) -> str:
        """What the plan makes small: ``"loss"``, or the name of a cost when a loss is wanted."""
        if self.loss is None:
            return "loss"
        if self.minimise is not None:
            return self.minimise
        if "money" in self.defined:
            return "money"
        return "total_flops" if self.serve_tokens else "train_flops"

    @property
    def defined(self) -> dict[str, Cost]:
        """Every cost that this budget's prices and rates define, by name."""
        out = [costs.params(), costs.tokens(), costs.train_flops(), costs.stored_bytes(self.bits)]
        if self.serve_tokens:
            out += [costs.serve_flops(self.serve_tokens)]
        out += [costs.total_flops(self.serve_tokens)]
        if self.peak is not None and self.utilisation is not None:
            out.append(costs.device_hours(self.peak, self.utilisation))
            if self.price_per_device_hour is not None:
                out.append(
                    costs.money(
                        self.price_per_device_hour,
                        self.peak,
                        self.utilisation,
                        self.serve_tokens,
                        self.serve_utilisation,
                    )
                )
        return {cost.name: cost for cost in out}

    def costs_of(self, axes: Collection[str]) -> dict[str, Cost]:
        """Every cost of a model that has these axes, by name; ``defined`` is of parameters and tokens alone.

        Raises:
            ValueError: ``bits_cost`` without bits in training, or ``bits`` beside an axis of stored bits.
        """
        stored = [name for _, own in costs.stored_bits(axes) for name in own]
        if stored and self.bits != type(self).bits:
            raise ValueError(
                f"the law reads {' and '.join(stored)}, which is what is stored: leave bits={self.bits:g} out"
            )
        if self.bits_cost and not costs.trained_bits(axes):
            known = ", ".join((*costs.TRAINED_BITS, " with ".join(costs.FLOAT_BITS)))
            raise ValueError(
                f"bits_cost needs a law that reads bits in training ({known}), got {', '.join(axes)}. Leave bits_cost "
                "out"
            )
        found = {name: costs.with_axes(cost, axes, self.bits_cost) for name, cost in self.defined.items()}
        if "experts" in axes or "params_active" in axes:  # of the others' parameters nothing is known
            del found["bytes"]
        return found

    def cost(self, limit: str, axes: Collection[str] = ()) -> Cost:
        """The cost that a limit bounds, of a model that has these axes."""
        name = "train_flops" if limit == "flops" else limit
        return (self.costs_of(axes) if axes else self.defined)[name]

    def to_json(self) -> dict[str, float | str | bool]:
        """What was given, by name."""
        return dict(self._given_fields())

    def _given_fields(self) -> Iterator[tuple[str, float | str | bool]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                yield field.name, value if isinstance(value, str | bool) else float(value)
        if self.bytes is not None and self.bits == type(self).bits:
            yield "bits", float(self.bits)

    def __repr__(self) -> str:
        shown = [f"{f.name}={v!r}" for f in fields(self) if (v := getattr(self, f.name)) != f.default]
        return f"Budget({', '.join(shown)})"


def _refuse(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"Budget needs {name} as a number, got {value!r}")
    lowest = "0 or more" if name == "serve_tokens" else "above 0"
    number = float(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and name != "serve_tokens"):
        raise ValueError(
            f"Budget needs {name} finite and {lowest}, got {value!r}. Leave out what is not limited"
        )
    if name in ("utilisation", "serve_utilisation") and number > 1:
        raise ValueError(f"Budget needs {name} as a share of the peak, 0 to 1, got {value!r}")


def _check_objective(name: str, loss: float | None) -> None:
    if name not in OBJECTIVES:
        raise ValueError(f"minimise must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    if loss is None:
        raise ValueError(f"minimise={name!r} needs a wanted loss: add loss=, or leave minimise out")

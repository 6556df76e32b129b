r"""The memory of training states, whole, sharded and moved elsewhere: rules for a plan before any tensor exists.

With :math:`\Psi` parameters, mixed-precision Adam keeps :math:`2\Psi` bytes of weights, :math:`2\Psi` of gradients
and :math:`12\Psi` (master weights and two moments) or, with a float32 copy of the gradients, :math:`16\Psi` bytes of
optimiser. ZeRO divides a part of that by the number of devices: stage 1 the optimiser, stage 2 the gradients too,
stage 3 the weights too. What is offloaded leaves the device; the working memory stays on it.

Sources: Rajbhandari, Rasley, Ruwase, He 2020, arXiv:1910.02054 (stages, 2 + 2 + 12); Rajbhandari, Ruwase, Rasley,
Smith, He 2021, arXiv:2104.07857 (ZeRO-Infinity: 2 + 2 + 16, activations, working memory, bandwidth).

What a concrete model takes, its embeddings, norms and logits included: :mod:`isoloss.measure.memory`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

HALF = 2  # bytes of a 16-bit number

MOMENTS: dict[str, int] = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2, "muon": 1}
"""Optimiser -> tensors of a parameter's shape that it keeps. Muon is for matrices; other parameters go to AdamW."""


@dataclass(frozen=True)
class Precision:
    """Bytes that one parameter takes in each part of the training states.

    Attributes:
        weight, gradient: as the forward and backward passes see them.
        master: of a copy of the weight that the optimiser moves; 0 where it moves the weight itself.
        copy: of a copy of the gradient that the optimiser reads; 0 where there is none.
        moment: of each moment of the optimiser.
    """

    weight: int
    gradient: int
    master: int
    copy: int
    moment: int


PRECISIONS: dict[str, Precision] = {
    "float32": Precision(4, 4, 0, 0, 4),
    "mixed": Precision(2, 2, 4, 0, 4),
    "mixed-copy": Precision(2, 2, 4, 4, 4),
}
"""``float32``: 4 + 4 + 8 with Adam, as autocast has it too; ``mixed``: 2 + 2 + 12 (ZeRO); ``mixed-copy``: 2 + 2 + 16,
with float32 gradients beside the 16-bit ones (ZeRO-Infinity)."""


@dataclass(frozen=True)
class States:
    """Bytes of the training states.

    Attributes:
        weights, gradients, optimiser: [byte]; the optimiser's part holds master weights and copies of gradients.
    """

    weights: float
    gradients: float
    optimiser: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.gradients + self.optimiser


@dataclass(frozen=True)
class Placed:
    """Bytes of the training states of one device.

    Attributes:
        device: on the device itself.
        elsewhere: what it keeps in the memory or on the disk of its host.
    """

    device: float
    elsewhere: float


def states(params: float, optimiser: str = "adamw", precision: str = "mixed") -> States:
    """Training states of so many parameters, all of which are trained.

    Raises:
        ValueError: an unknown optimiser or precision, or a negative number of parameters.

    Example:
        >>> states(1e9).total, states(1e9, precision="mixed-copy").total, states(1e9, "sgd", "float32").total
        (16000000000.0, 20000000000.0, 8000000000.0)
    """
    moments, each = moments_of(optimiser), precision_of(precision)
    if not params >= 0:
        raise ValueError(f"needed a number of parameters, got {params}")
    kept = each.master + each.copy + moments * each.moment
    return States(each.weight * params, each.gradient * params, kept * params)


def moments_of(optimiser: str) -> int:
    """Tensors of a parameter's shape that the optimiser keeps; ValueError if it is unknown."""
    if optimiser not in MOMENTS:
        raise ValueError(f"no optimiser named {optimiser!r}. There are: {', '.join(MOMENTS)}")
    return MOMENTS[optimiser]


def precision_of(name: str) -> Precision:
    """The precision of that name; ValueError if it is unknown."""
    if name not in PRECISIONS:
        raise ValueError(f"no precision named {name!r}. There are: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


PARTS = ("weights", "gradients", "optimiser")


def sharded(whole: States, devices: int = 1, stage: int = 0, offload: Collection[str] = ()) -> Placed:
    """What one of several devices holds of the training states.

    Args:
        whole: of the model.
        devices: that train it with data parallelism.
        stage: of ZeRO: 0 nothing is divided, 1 the optimiser, 2 gradients too, 3 weights too.
        offload: parts (``weights``, ``gradients``, ``optimiser``) of which the device's share lies on its host.

    Raises:
        ValueError: no such stage or part, less than one device, or weights offloaded below stage 3, where every
            device needs them all.

    Example:
        >>> [round(sharded(states(7.5e9), 64, stage).device / 1e9, 1) for stage in (0, 1, 2, 3)]
        [120.0, 31.4, 16.6, 1.9]
        >>> sharded(states(1e9), 4, 2, {"gradients", "optimiser"})
        Placed(device=2000000000.0, elsewhere=3500000000.0)
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"needed a stage of ZeRO from 0 to 3, got {stage}")
    if devices < 1:
        raise ValueError(f"needed at least one device, got {devices}")
    if unknown := sorted(set(offload) - set(PARTS)):
        raise ValueError(f"cannot offload {', '.join(unknown)}. There are: {', '.join(PARTS)}")
    if "weights" in offload and stage < 3:
        raise ValueError(f"weights can be offloaded at stage 3, got stage {stage}")
    divided = PARTS[len(PARTS) - stage :]
    share = {part: getattr(whole, part) / (devices if part in divided else 1) for part in PARTS}
    away = _sum(share[part] for part in PARTS if part in offload)
    return Placed(_sum(share.values()) - away, away)


def _sum(parts: Iterable[float]) -> float:
    return float(sum(parts))


@dataclass(frozen=True)
class Infinity:
    r"""The memory of a large transformer in mixed precision, in the paper's formulas [byte].

    Attributes:
        params: :math:`12\,n\,h^2`; embeddings and norms are left out.
        states: 20 bytes a parameter, :math:`240\,n\,h^2`.
        checkpoints: activations kept, one per ``every`` blocks, :math:`2\,b\,s\,h\,n/c`.
        operator: of the largest operator, weight and gradient of width to four widths, :math:`4 h \cdot 4h`.
        between: activations between two checkpoints, :math:`b\,s\,c\,(16h + 2as)`, a heads.
    """

    params: float
    states: float
    checkpoints: float
    operator: float
    between: float


def zero_infinity(layers: int, width: int, heads: int, batch: int, length: int, every: int = 1) -> Infinity:
    """The formulas of ZeRO-Infinity for one model.

    Args:
        layers, width, heads: of the transformer.
        batch, length: sequences, and tokens of each.
        every: blocks between two activation checkpoints.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> model = zero_infinity(layers=128, width=25600, heads=128, batch=32, length=1024)
        >>> round(model.params / 1e12, 4), round(model.states / 2**40, 2), round(model.operator / 2**30, 2)
        (1.0066, 18.31, 9.77)
    """
    if min(layers, width, heads, batch, length, every) < 1:
        raise ValueError("needed layers, width, heads, batch, length and every of at least 1")
    params = 12.0 * layers * width**2
    return Infinity(
        params,
        20 * params,
        HALF * batch * length * width * layers / every,
        4.0 * width * 4 * width,
        batch * length * every * (16.0 * width + 2.0 * heads * length),
    )


INTENSITY = ("weights", "optimiser", "checkpoints")


def intensity(what: str, width: int, batch: int, length: int, every: int = 1) -> float:
    r"""FLOPs of training for each byte that is moved between a device and where its states lie.

    Weights and gradients: :math:`s\,b`; optimiser states: :math:`s\,b/4`; activation checkpoints: :math:`24\,h\,c`.

    Raises:
        ValueError: something else is asked for.

    Example:
        >>> intensity("weights", 8192, 2, 1024), intensity("checkpoints", 8192, 2, 1024)
        (2048.0, 196608.0)
    """
    found = {"weights": length * batch, "optimiser": length * batch / 4, "checkpoints": 24 * width * every}
    if what not in found:
        raise ValueError(f"no traffic named {what!r}. There are: {', '.join(INTENSITY)}")
    return float(found[what])


def efficiency(flops_per_byte: float, bandwidth: float, peak: float) -> float:
    r"""Share of its time that a device computes, where moving does not overlap: :math:`a B / (a B + P)`.

    Args:
        flops_per_byte: a, of :func:`intensity`.
        bandwidth: B [byte/s].
        peak: P, what the device reaches [FLOP/s].

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> round(efficiency(intensity("weights", 8192, 2, 1024), 70e9, 70e12), 3)
        0.672
    """
    if not min(flops_per_byte, bandwidth, peak) > 0:
        raise ValueError("needed an intensity, a bandwidth and a peak above 0")
    return flops_per_byte * bandwidth / (flops_per_byte * bandwidth + peak)

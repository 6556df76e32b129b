"""Learned rounding: each weight up or down, relaxed, pushed to a decision, from the second moments alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isoloss.compress.formats import Encoded, Format, Grid
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.solvers.feeding import Refinement
from isoloss.compress.solvers.levels import Levels, coded, group_of_columns, joined, rows_of
from isoloss.compress.solvers.moments import curvature, needed, refuse_damping, seconds
from isoloss.compress.solvers.refine import improve, rounded
from isoloss.compress.solvers.solver import Solver, output_error
from isoloss.compress.statistics import Statistics

STRETCH = 0.1  # gamma = -0.1 and zeta = 1.1: a finite V reaches 0 and 1
DECIDED = 0.05  # an h this near to 0 or 1 counts as decided
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


@dataclass(frozen=True, eq=False)
class Learned:
    """A weight whose rounding was learned, and whether the learning came to an end.

    Attributes:
        encoded: the weight.
        undecided: share of the roundings that were not within 0.05 of 0 or 1 when they were hardened; none should be.
        soft: output error of the relaxed rounding, the mean over inputs of its squares.
        hard: the same once every weight is up or down, and refined if that was asked for.
        nearest: of rounding to nearest on the same grid.
    """

    encoded: Encoded
    undecided: float
    soft: float
    hard: float
    nearest: float


@dataclass(frozen=True)
class AdaRound(Solver):
    r"""Choose between the two values around each weight so that the output error is least.

    With :math:`a \le w \le b` the neighbours in the grid, :math:`q = a + h(V) (b - a)`,
    :math:`h(V) = \mathrm{clip}(1.2\,\sigma(V) - 0.1, 0, 1)`, starting where q is w. Adam on V makes

    .. math:: \frac{n\,\mathrm{tr}\,(q - w) H (q - w)^\top}{\mathrm{tr}\,(q_0 - w) H (q_0 - w)^\top}
        + \lambda \sum (1 - |2 h - 1|^\beta)

    small, row by row with n weights in a row and :math:`q_0` rounded to nearest, so that :math:`\lambda` means the same
    for every layer. The second term comes in after a fifth of the steps, with :math:`\beta` falling from 20 to 2, and
    drives each h to 0 or 1; then a weight goes up where h is at least a half. The first term needs no data: of the
    paper's squared error of the outputs, H holds all that a linear layer has. Works with every format that has a code
    per weight.

    A row that ends above rounding to nearest takes that. ``rounds`` goes beyond the paper, as in
    :class:`~isoloss.compress.solvers.Gptq`: scales by least squares, and sweeps in which a weight may take any value.

    Args:
        steps: of Adam.
        rate: its step size.
        push: lambda.
        warm: share of the steps before the second term comes in.
        damp: added to the diagonal of H, over its mean.
        rounds, sweeps, refit, tolerance: of refinement, as ``rounds``, ``sweeps``, ``steps`` and ``tolerance`` of GPTQ.

    Source:
        M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020, arXiv 2004.10568.

    Example:
        >>> from isoloss.compress import formats
        >>> x = torch.tensor([[1.0, 0.9, 1.1], [0.9, 1.0, 1.0], [1.1, 1.0, 0.9]])
        >>> statistics = Statistics("layer", 3, (x.T @ x / 3)[None])
        >>> weight, format = torch.tensor([[0.4, 0.4, 1.0]]), formats.get("int2/tensor/scale-fp32")
        >>> [[round(v, 2) for v in row] for row in format.encode(weight).decode().tolist()]
        [[0.0, 0.0, 1.0]]
        >>> found = AdaRound().learn(weight, format, statistics)
        >>> [[round(v, 2) for v in row] for row in found.encoded.decode().tolist()]  # the sum counts most
        [[1.0, 0.0, 1.0]]
        >>> found.undecided
        0.0
    """

    steps: int = 300
    rate: float = 0.1
    push: float = 20.0
    warm: float = 0.2
    damp: float = 0.01
    rounds: int = 0
    sweeps: int = 2
    refit: int = 3
    tolerance: float = 0.002

    name: ClassVar[str] = "adaround"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_damping(self.damp)
        if self.steps < 1 or self.rate <= 0 or self.push < 0 or not 0 <= self.warm < 1:
            raise ValueError(
                "needed steps of at least 1, a rate above 0, a push of at least 0 and a warm share of 0 to 1, got "
                f"{self.steps}, {self.rate}, {self.push} and {self.warm}"
            )
        Refinement(self.rounds, self.sweeps, self.refit, self.tolerance)

    @property
    def needs(self) -> frozenset[str]:
        """Second moments of the inputs."""
        return frozenset({"second"})

    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """See :class:`Solver`."""
        return self.learn(weight, format, statistics).encoded

    def learn(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Learned:
        """The weight encoded, with what the learning came to."""
        second = needed(statistics, self.name, "second")
        matrix, format = as_matrix(weight).float(), coded(format, self.name)
        moments = list(seconds(weight, second))
        importance = torch.cat([h.diagonal().clamp(min=0).expand(matrix[rows].shape) for rows, h in moments])
        grid = format.grid(matrix, importance)
        between = Between.of(grid, matrix)
        h = torch.empty_like(matrix)
        best = torch.empty_like(matrix, dtype=torch.bool)
        for rows, own in moments:
            damped = own.float() + self.damp * own.diagonal().mean() * torch.eye(len(own)).to(own)
            part = between.rows(rows)
            h[rows], best[rows] = self._roundings(matrix[rows], part, damped)
        codes = between.codes(best)
        if self.rounds:
            grid, codes = self._refined(matrix, grid, codes, moments)
        encoded = grid.encoded(codes, tuple(weight.shape))
        away = torch.minimum(h, 1 - h)
        return Learned(
            encoded,
            float((away > DECIDED).float().mean()),
            output_error(matrix, between.at(h), second),
            output_error(matrix, encoded.decode().reshape(matrix.shape), second),
            output_error(matrix, between.at(between.start.round()), second),
        )

    def _refined(
        self, matrix: Tensor, grid: Grid, codes: Tensor, moments: list[tuple[slice, Tensor]]
    ) -> tuple[Grid, Tensor]:
        grids, refined = [], torch.empty_like(codes)
        for rows, h in moments:
            made, own = curvature(h, self.damp, "natural"), rows_of(grid, rows)
            w, start = matrix[rows].T.contiguous(), codes[rows].T.contiguous()
            found = improve(
                w, rounded(w, own, start, own.decode(codes[rows]).T.contiguous(), made), made, None,
                rounds=self.rounds, sweeps=self.sweeps, steps=self.refit, tolerance=self.tolerance,
            )  # fmt: skip
            grids.append(found.grid)
            refined[rows] = found.codes.T
        return joined(grids), refined

    def _roundings(self, w: Tensor, between: Between, second: Tensor) -> tuple[Tensor, Tensor]:
        """h before it is hardened, and which weights go up."""
        nearest = between.start >= 0.5
        least = _loss(between.at(nearest.float()) - w, second)
        scale = w.shape[1] / least.clamp(min=torch.finfo(torch.float32).tiny)
        v = logit(between.start)
        slope = (2 * scale)[:, None] * between.width

        def gradient(h: Tensor) -> Tensor:
            return torch.mm(between.at(h) - w, second).mul_(slope)

        h = relaxed(descend(v, gradient, self.steps, self.rate, self.push, self.warm))
        up = h >= 0.5
        worse = _loss(between.at(up.float()) - w, second) > least
        return h, torch.where(worse[:, None], nearest, up)


@dataclass(frozen=True, eq=False)
class Between:
    """The two values of a grid around each weight.

    Attributes:
        low: the lower one, (out, in).
        width: the upper one less the lower one.
        start: where the weight lies between them, 0 to 1.
        below, above: codes of the two, uint8.
    """

    low: Tensor
    width: Tensor
    start: Tensor
    below: Tensor
    above: Tensor

    @classmethod
    def of(cls, grid: Grid, matrix: Tensor) -> Between:
        """Around each entry of a matrix; beyond the ends of the grid, the two at the end."""
        levels, group = Levels.of(grid), group_of_columns(grid)
        place = torch.empty(matrix.shape[::-1], dtype=torch.uint8, device=matrix.device)
        for k, (start, stop) in enumerate(grid.groups):
            values = levels.values[k].T.contiguous()  # (rows, count)
            found = torch.searchsorted(values, matrix[:, start:stop].contiguous(), right=True) - 1
            place[start:stop] = found.clamp_(0, values.shape[1] - 2).T.to(torch.uint8)
        low, high = levels.value(place, group).T, levels.value(place + 1, group).T
        width = (high - low).contiguous()
        start_ = ((matrix - low) / torch.where(width > 0, width, 1)).clamp_(0, 1)
        below, above = levels.code(place, group).T, levels.code(place + 1, group).T
        return cls(low.contiguous(), width, start_, below.contiguous(), above.contiguous())

    def at(self, h: Tensor) -> Tensor:
        """The value so far from the lower to the upper one."""
        return torch.addcmul(self.low, h, self.width)

    def codes(self, up: Tensor) -> Tensor:
        """Codes of weights that go up or down."""
        return torch.where(up, self.above, self.below)

    def rows(self, rows: slice) -> Between:
        """Of some rows."""
        parts = (self.low, self.width, self.start, self.below, self.above)
        return Between(*(part[rows] for part in parts))


def relaxed(v: Tensor) -> Tensor:
    """h(V), 0 to 1.

    Example:
        >>> relaxed(torch.tensor([-9.0, 0.0, 9.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    return (torch.sigmoid(v) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)


def logit(h: Tensor) -> Tensor:
    """The V whose h is given."""
    return -torch.log((1 + 2 * STRETCH) / (h + STRETCH) - 1)


def sharpness(step: int, steps: int, warm: float) -> float | None:
    """Beta at a step: from 20 to 2 once the warm share is over; None before.

    Example:
        >>> sharpness(0, 100, 0.2), sharpness(20, 100, 0.2), sharpness(60, 100, 0.2)
        (None, 20.0, 11.0)
    """
    first = warm * steps
    return None if step < first else 20 - 18 * (step - first) / (steps - first)


def push_slope(h: Tensor, beta: float) -> Tensor:
    """Derivative of ``1 - |2h - 1|^beta`` with respect to h."""
    t = 2 * h - 1
    return t.abs().pow_(beta - 1).mul_(t.sign()).mul_(-2 * beta)


def descend(
    v: Tensor, gradient: Callable[[Tensor], Tensor], steps: int, rate: float, push: float, warm: float
) -> Tensor:
    """Adam on V, given what the error's gradient with respect to h is."""
    first, second = torch.zeros_like(v), torch.zeros_like(v)
    for step in range(steps):
        sigma = torch.sigmoid(v)
        raw = sigma * (1 + 2 * STRETCH) - STRETCH
        h = raw.clamp(0, 1)
        slope = gradient(h)
        beta = sharpness(step, steps, warm)
        if beta is not None:
            slope = slope + push * push_slope(h, beta)
        slope = slope * sigma.mul(1 - sigma).mul_(1 + 2 * STRETCH) * ((raw > 0) & (raw < 1))
        first.lerp_(slope, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
        size = rate * math.sqrt(1 - BETAS[1] ** (step + 1)) / (1 - BETAS[0] ** (step + 1))
        v = v.addcdiv(first, second.sqrt().add_(EPSILON), value=-size)
    return v


def _loss(gap: Tensor, second: Tensor) -> Tensor:
    """Of each row, (rows,)."""
    return torch.mm(gap, second).mul_(gap).sum(dim=1)

r"""Influence functions: what each training example does to the loss on others, without training again.

.. math:: I(t, i) = -\nabla\ell_t^T (C + \lambda I)^{-1} \nabla\ell_i

is the derivative of test example t's loss by the weight of training example i at the optimum, with C the Hessian of the
training loss. Left out, an example of n has its weight changed by -1/n: the loss changes by about :math:`-I/n`.

It is a statement about the optimum of a convex loss with an L2 term: there λ is that term's coefficient and the
first-order answer is right. For a network it answers a nearby question (the damped linear response at these weights);
what it says depends on C and λ, so both are in the result, with the residual of every solve.

Sources: Cook 1977; Koh, Liang 2017, arXiv:1703.04730; on networks Bae et al. 2022, arXiv:2209.05364.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.errors import NoAnswer
from isoloss.measure.measurement import Spent, timed
from isoloss.measure.per_example import Gradients, fisher_gradients, loss_gradients
from isoloss.measure.products import Product, gauss_newton, hessian
from isoloss.measure.subject import Subject
from isoloss.measure.woodbury import InverseFisher, inverse_fisher

CURVATURES = ("hessian", "gauss_newton", "empirical_fisher")
MOST_ROWS = 4096  # training examples up to which the solver is preconditioned by an inverse Fisher matrix


@dataclass(frozen=True, eq=False)
class Influence:
    """Influences of training examples (columns) on test examples (rows).

    Attributes:
        scores: I, (tests, train) in float64 [nats per unit of weight].
        curvature, damping: C and lambda.
        residuals: of every test example's solve, relative.
        products: of C with a vector, in all; 0 where none was needed.
        how: solver and gradients in a line.
        spent: what it cost.
    """

    scores: Tensor
    curvature: str
    damping: float
    residuals: Tensor
    products: int
    how: str
    spent: Spent

    @property
    def left_out(self) -> Tensor:
        """The change of each test loss when one training example is left out and the others keep their weights."""
        return -self.scores / self.scores.shape[1]

    def __str__(self) -> str:
        return (
            f"influences of {self.scores.shape[1]} on {self.scores.shape[0]}: {self.curvature}, damping "
            f"{self.damping:g}, residual at most {float(self.residuals.max()):.1e}; {self.how}"
        )


def influence(
    train: Subject,
    test: Subject,
    curvature: str = "hessian",
    damping: float = 1e-3,
    tolerance: float = 1e-6,
    most: int = 1000,
    mean: bool = False,
) -> Influence:
    r"""Influence of every training example on every test example.

    Args:
        train, test: the same model with the two sets of data. The training criterion is without its L2 term.
        curvature: C: "hessian" or "gauss_newton" (conjugate gradients, one solve for each test example) or
            "empirical_fisher" (:math:`\frac1n\sum g g^T`, all at once and exactly from inner products of gradients).
        damping: lambda. For a loss with a term :math:`\frac{c}{2}|\theta|^2`, c.
        tolerance: relative residual at which conjugate gradients stop.
        most: products for a solve, at most; what was not reached shows in ``residuals``.
        mean: of the mean test loss only, one row.

    Raises:
        ValueError: an unknown curvature, damping not above 0, or the two are of different models.
        NoAnswer: C + lambda has a direction of negative curvature.
        TypeError: "gauss_newton" without a criterion of known curvature.

    Example:
        >>> from isoloss.measure.criteria import SquaredError
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)  # the minimum of both rows
        >>> x, y = torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[2.0], [4.0]]).double()
        >>> train = Subject(model, [(x, y)], SquaredError())
        >>> test = Subject(model, [(x[:1], torch.zeros(1, 1).double())], SquaredError())
        >>> influence(train, test, damping=1e-9).scores.round(decimals=4).tolist()
        [[-3.0, 3.0]]
    """
    if curvature not in CURVATURES:
        raise ValueError(f"needed a curvature of {', '.join(CURVATURES)}, got {curvature!r}")
    if not damping > 0:
        raise ValueError(f"needed a damping above 0, got {damping}")
    if train.model is not test.model:
        raise ValueError(
            "needed both sets of data with the same model, got two models. Do: give both the same one"
        )
    with timed() as watch:
        rows, targets = loss_gradients(train), loss_gradients(test)
        if mean:
            row = targets.combine(torch.full((targets.count,), 1 / targets.count))
            targets = Gradients.of_rows(row[None], targets.like)
        if curvature == "empirical_fisher":
            scores, residuals = _by_inner_products(inverse_fisher(rows, damping), targets)
            products, how = 0, "exact, in the space of gradients"
        else:
            scores, residuals, products, how = _by_solves(
                train, rows, targets, curvature, damping, tolerance, most
            )
            # A residual is computed anew and may lie somewhat above the one at which a solve stopped.
            short = int((residuals > 2 * tolerance).sum())
            if short:
                how += f"; {short} of {len(residuals)} solves did not reach a residual of {tolerance:g}"
    how = f"{how}; {rows.how}"
    return Influence(scores, curvature, damping, residuals, products, how, watch.spent())


def _by_inner_products(inverse: InverseFisher, targets: Gradients) -> tuple[Tensor, Tensor]:
    scores = -inverse.between(targets)
    across = targets.gram(inverse.gradients)
    back = (inverse.factor @ (inverse.factor.mT @ scores.mT)).mT / inverse.gradients.count
    return scores, (back + across).norm(dim=1) / across.norm(dim=1).clamp_min(1e-300)


def _by_solves(
    train: Subject,
    rows: Gradients,
    targets: Gradients,
    curvature: str,
    damping: float,
    tolerance: float,
    most: int,
) -> tuple[Tensor, Tensor, int, str]:
    near = _nearby(train, damping)
    scores, residuals, products = [], [], 0
    with (hessian if curvature == "hessian" else gauss_newton)(train) as product:
        for unit in torch.eye(targets.count, dtype=torch.float64):
            found = solve(product, targets.combine(unit), damping, tolerance, most, near)
            scores.append(-rows.times(found.x))
            residuals.append(found.residual)
            products += found.products
    how = "conjugate gradients" + (", preconditioned by a sampled inverse Fisher matrix" if near else "")
    return torch.stack(scores), torch.tensor(residuals, dtype=torch.float64), products, how


def _nearby(train: Subject, damping: float) -> Callable[[Tensor], Tensor] | None:
    """The inverse of one random draw of the Fisher matrix: near C where C is near Gauss-Newton."""
    if train.examples > MOST_ROWS:
        return None
    try:
        return inverse_fisher(fisher_gradients(train, draws=1), damping).flat
    except TypeError:
        return None


@dataclass(frozen=True, eq=False)
class Solved:
    """A solution of :math:`(C + \\lambda) x = b`.

    Attributes:
        x: flat, in float64.
        residual: relative, computed anew from x.
        products: with C.
        reached: whether the tolerance was reached.
    """

    x: Tensor
    residual: float
    products: int
    reached: bool


def solve(
    product: Product,
    b: Tensor,
    damping: float,
    tolerance: float = 1e-6,
    most: int = 1000,
    near: Callable[[Tensor], Tensor] | None = None,
) -> Solved:
    r"""Solve :math:`(C + \lambda) x = b` by conjugate gradients.

    Args:
        product: C; its products may be float32, all else is float64.
        b: flat (d,).
        damping: lambda.
        tolerance: relative residual at which to stop.
        most: products at most.
        near: a symmetric positive matrix near the inverse, as a product: a preconditioner.

    Raises:
        NoAnswer: a direction of negative curvature was met; it says how much damping would lift it.

    Example:
        >>> c = Product("c", {"w": torch.zeros(2)}, lambda v: {"w": v["w"] * torch.tensor([1.0, 3.0])})
        >>> solve(c, torch.tensor([2.0, 8.0]), damping=1.0).x.round(decimals=4).tolist()
        [1.0, 2.0]
    """
    dtype = next(iter(product.like.values())).dtype

    def damped(v: Tensor) -> Tensor:
        return product.flat(v.to(dtype)).double() + damping * v

    b = b.double()
    size = float(b.norm())
    x, r = torch.zeros_like(b), b.clone()
    z = near(r) if near else r
    p, rz, used = z.clone(), float(r @ z), 0
    while float(r.norm()) > tolerance * size and used < most - 1:
        ap = damped(p)
        used += 1
        curve = float(p @ ap)
        if not curve > 0:
            least = -(curve / float(p @ p) - damping)
            raise NoAnswer(
                f"the curvature is {-least:.3g} in a direction, below minus the damping of {damping:g}",
                f"a damping above {least:.3g}, or curvature='gauss_newton'",
            )
        step = rz / curve
        x, r = x + step * p, r - step * ap
        z = near(r) if near else r
        old, rz = rz, float(r @ z)
        p = z + (rz / old) * p
    residual = float((b - damped(x)).norm()) / size if size else 0.0
    return Solved(x, residual, used + 1, float(r.norm()) <= tolerance * size)

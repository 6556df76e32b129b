"""Muon: momentum whose singular values are made equal before the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrix: Tensor, rounds: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Nearly U V' of the singular value decomposition U S V', by a quintic Newton-Schulz iteration.

    X = M / |M|_F, then X <- a X + (b Y + c Y^2) X with Y = X X'. Five rounds take singular values from 0.005
    to 1 (of X) into 0.68 to 1.16; smaller ones stay small.

    Args:
        matrix: shape (..., A, B); each matrix by itself.
        rounds: iterations.
        dtype: of the products; bfloat16 is enough for training.

    Returns:
        The same shape and type.

    Source: Jordan et al. 2024 (Muon); constants as in Liu et al. 2025, arXiv 2502.16982.

    Example:
        >>> orthogonalise(torch.eye(1)).item()
        0.69643...
    """
    tall = matrix.size(-2) > matrix.size(-1)
    x: Tensor = matrix.mT if tall else matrix
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(dtype)
    for _ in range(rounds):
        y = x @ x.mT
        x = _A * x + (_B * y + _C * (y @ y)) @ x
    done: Tensor = x.mT if tall else x
    return done.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay and steps whose root mean square is that of AdamW, 0.2.

        M <- momentum M + g;  X = orthogonalise(g + momentum M)
        W <- (1 - lr decay) W - lr 0.2 sqrt(max(A, B)) X

    so that one learning rate and decay serve both optimisers. For hidden matrices alone; embeddings and the
    head belong to AdamW.

    Args:
        matrices: the parameters, shape (A, B).
        lr: learning rate.
        parts: parameter -> how many matrices are stacked in its rows (3 for fused queries, keys, values);
            each is made orthogonal by itself. A parameter that is not named is one matrix.
        momentum: of the gradient, Nesterov form.
        weight_decay: decoupled.
        dtype: of the Newton-Schulz products.

    Source: Liu et al. 2025, arXiv 2502.16982.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        lr: float,
        parts: dict[Tensor, int],
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._parts = parts
        self._dtype = dtype
        for matrix in matrices:
            self.state[matrix]["momentum"] = torch.zeros_like(matrix)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients in place; takes no closure."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight]["momentum"]
                average.mul_(momentum).add_(weight.grad)
                ahead = weight.grad.add(average, alpha=momentum)
                stack = ahead.unflatten(0, (self._parts.get(weight, 1), -1))
                update = orthogonalise(stack, dtype=self._dtype)
                size = 0.2 * max(stack.shape[-2:]) ** 0.5
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(update.reshape(weight.shape), alpha=-lr * size)

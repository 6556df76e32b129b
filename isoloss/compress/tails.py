"""Runs what lies behind a block of an uncompressed model: gradients at the block's output, and what is predicted.

Blocks before the end of that block give what is kept of them, so that they need not be what they were; weights outside
of blocks, and those used in several stages, stand for the time of the run as they were before anything was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from isoloss.compress.predictions import Predictions, first
from isoloss.compress.replay import Plan, remembering
from isoloss.measure.subject import call, differentiable

Give = Callable[[int], Any]
"""Number of a block -> what is kept of it."""


@dataclass(frozen=True, eq=False)
class Tails:
    """The rest of a model behind each of its blocks, uncompressed.

    Args:
        model: in the state in which it is calibrated.
        plan: its blocks.
        predictions: batches, and how outputs are read.
        kept: path -> parameter as it was, of those that change while they are still needed (:func:`outside`).
        seed: of random signs.
    """

    model: nn.Module
    plan: Plan
    predictions: Predictions
    kept: Mapping[str, Tensor]
    seed: int = 0

    def predicted(self, done: int, batch: int, output: Any, give: Give) -> Tensor:
        """What the model predicts where block number ``done`` gives ``output``; gradients go through.

        Args:
            done: how many blocks come before it.
            batch: number of the calibration batch.
            output: of the block.
            give: what is kept of blocks before it.
        """

        def gave(block: int) -> Any:
            kept = self.plan.kept(block, done + 1)
            return output if kept == done else give(kept)

        with ExitStack() as stack:
            stack.enter_context(standing(self.model, self.kept))
            stack.enter_context(remembering(self.plan.blocks[: done + 1], gave, _cloned))
            stack.enter_context(differentiable(self.model))
            return self.predictions.read(call(self.model, self.predictions.batches[batch]))

    def difference(
        self, done: int, batch: int, own: Tensor, give: Give, output: Any, temperature: float
    ) -> Tensor:
        """How far what is predicted behind a block's ``output`` is from ``own``; gradients go through."""
        other = self.predicted(done, batch, output, give)
        return self.predictions.difference(own, other, batch, temperature)

    def squares(self, done: int, batch: int, output: Any, give: Give) -> Tensor:
        """Squared gradients of the loss of each example with respect to the block's output, of its shape.

        Raises:
            ValueError: a gradient is not finite.
        """
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * batch)
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            for parameter in self.model.parameters():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
            leaf = first(output).detach().clone().requires_grad_()
            leaves, tree = tree_flatten(output)
            place = next(i for i, one in enumerate(leaves) if one is first(output))
            leaves[place] = leaf
            z = self.predicted(done, batch, tree_unflatten(leaves, tree), give)
            if not z.requires_grad:
                return torch.zeros_like(leaf)
            along = self.predictions.slope(z.detach(), batch, generator)
            [found] = torch.autograd.grad(z, [leaf], along)
        if not bool(torch.isfinite(found).all()):
            raise ValueError(
                f"a gradient at the output of {self.plan.blocks[done].name} is NaN or infinite. Look at the data and "
                "the loss"
            )
        return found.float().square()


def outside(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Path -> copy, of parameters to be compressed that lie outside of blocks or are used in several stages.

    A tied one under each of its paths, one copy for all.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    out: dict[str, Tensor] = {}
    for stage in plan.stages:
        for layer in stage.layers:
            if (not stage.block or layer.name in plan.several) and layer.path not in out:
                copy = own[layer.path].detach().clone()
                out |= dict.fromkeys((layer.path, *layer.tied), copy)
    return out


@contextmanager
def standing(model: nn.Module, kept: Mapping[str, Tensor]) -> Iterator[None]:
    """Modules compute with these in place of their parameters; the parameters stay as they are.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad(), standing(net, {"weight": torch.tensor([[1.0, 2.0]])}):
        ...     net(torch.ones(1, 2)).item()
        3.0
    """
    places = []
    try:
        for path, tensor in kept.items():
            owner, _, name = path.rpartition(".")
            module = model.get_submodule(owner)
            module.__dict__[name] = tensor
            places.append((module, name))
        yield
    finally:
        for module, name in places:
            module.__dict__.pop(name, None)


def _cloned(value: Any) -> Any:
    """Memory of its own, gradients kept: a model may write into it."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)

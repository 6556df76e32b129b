"""What an uncompressed model gives at each block, kept beside what the compressed one gives, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from isoloss.compress.blockwise import Inputs
from isoloss.compress.replay import Plan, Stage, copied, ending, remembering
from isoloss.measure.subject import call


@dataclass
class Originals:
    """Runs the blocks of a model that are not compressed yet on what the uncompressed ones before them gave.

    Args:
        model: in the state in which it is calibrated, before anything is changed.
        plan: its blocks.
        batches: calibration inputs.
    """

    model: nn.Module
    plan: Plan
    batches: Sequence[Any]
    first: list[Inputs] = field(default_factory=list)
    outputs: list[dict[int, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # What lies before the first block may be compressed before the block is reached.
        if self.plan.blocks:
            self.first = [inputs_of(self.model, self.plan, 0, inputs, _nothing) for inputs in self.batches]
        self.outputs = [{} for _ in self.batches]

    def through(self, stage: Stage) -> list[tuple[Inputs, Any]]:
        """What goes into the block of a stage and what it gives; called for every block in turn, before it changes."""
        done, out = stage.done, []
        block = self.plan.blocks[done]
        needed = {self.plan.kept(i, done + 1) for i in range(done + 1)}
        for i, inputs in enumerate(self.batches):
            own = self.outputs[i]
            if done == 0:
                full = self.first[i]
            else:
                give = self._giving(own, done)
                full = inputs_of(self.model, self.plan, done, inputs, give)
            target: Any = block.modules[0](*copied(full[0]), **copied(full[1]))
            for module in block.modules[1:]:
                target = module(target)
            target = copied(target)
            own[done] = target
            self.outputs[i] = {j: value for j, value in own.items() if j in needed}
            out.append((full, target))
        return out

    def _giving(self, own: dict[int, Any], done: int) -> Callable[[int], Any]:
        return lambda j: own[self.plan.kept(j, done)]


def inputs_of(model: nn.Module, plan: Plan, done: int, inputs: Any, give: Callable[[int], Any]) -> Inputs:
    """What goes into a block when the ``done`` blocks before it give what is kept of them."""
    with (
        entering(plan.blocks[done].modules[0]) as seen,
        ending(plan, Stage("", (), done, False)),
        remembering(plan.blocks[:done], give),
    ):
        call(model, inputs)
    if not seen:
        raise ValueError(
            f"{plan.blocks[done].name} ran on the first calibration batch and not on another. Give batches that take the "
            "same way through the model"
        )
    return seen[0]


@contextmanager
def entering(module: nn.Module) -> Iterator[list[Inputs]]:
    """What a module is called with, copied, call after call."""
    seen: list[Inputs] = []

    def enter(module: nn.Module, args: Any, keywords: Any) -> None:
        seen.append((copied(args), copied(keywords)))

    hook = module.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def _nothing(block: int) -> Any:
    raise AssertionError(block)

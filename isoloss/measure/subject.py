"""What is measured: a model, the batches it sees, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Batch = tuple[Any, Any]  # inputs, targets


@dataclass(frozen=True, eq=False)
class Subject:
    r"""A model with data and a loss: what every probe takes.

    The loss of the subject is the mean over all examples of all batches,
    :math:`L = \sum_b n_b L_b / \sum_b n_b`, with :math:`L_b` the criterion of one batch and :math:`n_b` its
    examples. Probes measure in eval mode, dropout off, on these batches.

    Args:
        model: a module.
        batches: pairs of inputs and targets. Inputs are a tensor (the model's only argument), a tuple of
            arguments, or a dict of keywords.
        criterion: (outputs, targets) -> mean loss of the batch, a scalar tensor.
        name: for tables.
        outputs: what the model returns -> the tensor that the criterion reads (``lambda out: out.logits``);
            default: itself.

    Raises:
        ValueError: there is no batch, or one is no pair.
        TypeError: the batches are no list: what gives other batches each time cannot be measured twice.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> subject = Subject(nn.Linear(3, 2), [(torch.ones(4, 3), torch.zeros(4).long())], nn.functional.cross_entropy)
        >>> subject.examples, sum(p.numel() for p in subject.parameters().values())
        (4, 8)
    """

    model: nn.Module
    batches: Sequence[Batch]
    criterion: Callable[[Any, Any], Tensor]
    name: str = "model"
    outputs: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        given: Any = self.batches
        if not isinstance(given, Sequence):
            raise TypeError(
                f"needed a list of batches, which is the same each time, got a {type(given).__name__}. "
                "Do: list(...) of it, or of a few of them"
            )
        if not given:
            raise ValueError("a subject needs at least one batch (inputs, targets), got none")
        for batch in given:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"needed batches of inputs and targets, got a {type(batch).__name__} among them. "
                    "Do: give a list of pairs, [(inputs, targets)]"
                )

    @property
    def examples(self) -> int:
        """Examples in all batches: the first length of the inputs."""
        return sum(examples_of(batch) for batch in self.batches)

    def parameters(self) -> dict[str, Tensor]:
        """The parameters that take a gradient, by name; a tied one once, under its first name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def predict(self, inputs: Any) -> Any:
        """The model's outputs on the inputs of one batch, as the criterion reads them."""
        with differentiable(self.model):
            out = call(self.model, inputs)
        return out if self.outputs is None else self.outputs(out)

    def predict_at(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """:meth:`predict` with other values of the parameters; the model keeps its own."""
        args, keywords = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        with differentiable(self.model):
            out = functional_call(self.model, dict(parameters), args, keywords)
        return out if self.outputs is None else self.outputs(out)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of one batch.

        Raises:
            TypeError: the criterion gives something else than one number.
        """
        inputs, targets = batch
        found: Any = self.criterion(self.predict(inputs), targets)
        if not isinstance(found, Tensor) or found.numel() != 1:
            got = (
                f"a tensor of {tuple(found.shape)}"
                if isinstance(found, Tensor)
                else f"a {type(found).__name__}"
            )
            raise TypeError(f"needed one number from the criterion, the mean loss of the batch, got {got}")
        return found

    @contextmanager
    def measuring(self) -> Iterator[Subject]:
        """The model in eval mode within the block, every module's own mode restored after it."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield self
        finally:
            for module, mode in modes:
                module.training = mode


def differentiable(model: nn.Module) -> AbstractContextManager[Any]:
    """Where gradients are recorded in eval mode: recurrent layers on a GPU off cuDNN.

    Its kernels have no backward pass in eval mode, and none of second order at all.
    """
    if not torch.is_grad_enabled():
        return nullcontext()
    on_gpu = any(
        isinstance(module, nn.RNNBase) and not module.training and any(p.is_cuda for p in module.parameters())
        for module in model.modules()
    )
    off: AbstractContextManager[Any] = torch.backends.cudnn.flags(enabled=False)
    return off if on_gpu else nullcontext()


def call(model: nn.Module, inputs: Any) -> Any:
    """The model on a tensor, a tuple of arguments or a dict of keywords."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def examples_of(batch: Batch) -> int:
    """The length of the first tensor of the inputs."""
    inputs = batch[0]
    values = (
        inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    )
    first = next((value for value in values if isinstance(value, torch.Tensor)), None)
    if first is None or first.ndim == 0:
        raise ValueError(
            "a batch needs a tensor with the examples along its first dimension among its inputs"
        )
    return int(first.shape[0])


def resized(batch: Batch, examples: int) -> Batch:
    """A batch of so many examples: the first ones, from the beginning again where there are fewer.

    Tensors whose first length is that of the batch are cut or repeated; anything else is passed on as it is.

    Raises:
        ValueError: fewer than one example is asked for.

    Example:
        >>> resized((torch.tensor([[1.0], [2.0]]), torch.tensor([3, 4])), 3)[1].tolist()
        [3, 4, 3]
    """
    if examples < 1:
        raise ValueError(f"needed a batch of at least one example, got {examples}")
    have = examples_of(batch)

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cut(entry) for name, entry in value.items()}
        if isinstance(value, tuple):
            return tuple(cut(entry) for entry in value)
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != have:
            return value
        if examples <= have:
            return value[:examples].clone()  # memory of its own, not a view of the whole batch
        return value[torch.arange(examples, device=value.device) % have]

    return cut(batch[0]), cut(batch[1])


def chunks(batch: Batch, size: int) -> list[Batch]:
    """A batch cut into batches of at most ``size`` examples, in order.

    Tensors whose first length is that of the batch are cut; anything else is passed on as it is.

    Raises:
        ValueError: a size below one.

    Example:
        >>> [targets.tolist() for _, targets in chunks((torch.zeros(3, 2), torch.tensor([0, 1, 2])), 2)]
        [[0, 1], [2]]
    """
    if size < 1:
        raise ValueError(f"needed batches of at least one example, got {size}")
    have = examples_of(batch)

    def cut(value: Any, at: int) -> Any:
        if isinstance(value, dict):
            return {name: cut(entry, at) for name, entry in value.items()}
        if isinstance(value, tuple):
            return tuple(cut(entry, at) for entry in value)
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != have:
            return value
        return value[at : at + size]

    return (
        [batch] if size >= have else [(cut(batch[0], at), cut(batch[1], at)) for at in range(0, have, size)]
    )

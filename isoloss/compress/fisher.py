r"""The mean squared gradient of every weight: the diagonal of the empirical Fisher matrix, layer by layer.

.. math:: F_{ij} = \frac1n \sum_{e=1}^n \Big(\frac{\partial L_e}{\partial W_{ij}}\Big)^2

with :math:`L_e` the loss of one example (a whole sequence, for a language model). Squares are of every example's own
gradient, so examples are run one at a time; any model will do. It is what SqueezeLLM weighs errors by
(Kim et al. 2024, arXiv:2306.07629).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from isoloss.compress.layers import Layer, find
from isoloss.compress.replay import calibrating
from isoloss.measure.subject import Subject, chunks


def fisher(
    subject: Subject,
    layers: Sequence[Layer] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Layer -> mean squared gradient, float32 (out, in).

    Memory: the model, one number for each weight, and one layer's gradient.

    Args:
        subject: model, batches and loss.
        layers: of the model; None: all that can be compressed.
        progress: (what, examples done, examples in all).

    Raises:
        ValueError: a gradient that is NaN or infinite; it names the layer.

    Example:
        >>> from torch import nn
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> subject = Subject(nn.Linear(2, 1, bias=False), [(x, None)], lambda out, _: out.mean())
        >>> fisher(subject)["model"].tolist()  # means of the squares of x
        [[5.0, 2.0]]
    """
    wanted = tuple(find(subject.model).layers if layers is None else layers)
    parameters = {layer.path: getattr(layer.module, layer.parameter) for layer in wanted}
    sums = {path: torch.zeros_like(p, dtype=torch.float32) for path, p in parameters.items()}
    done, count = 0, subject.examples
    with ExitStack() as stack:
        stack.enter_context(calibrating(subject.model))
        stack.enter_context(torch.enable_grad())
        for parameter in subject.model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            stack.callback(setattr, parameter, "grad", parameter.grad)  # the user's own, not to be added to
            parameter.requires_grad_(False)
            parameter.grad = None
        for path, parameter in parameters.items():
            parameter.requires_grad_(True)
            hook = parameter.register_post_accumulate_grad_hook(_adding(sums[path], path))
            stack.callback(hook.remove)
        for batch in subject.batches:
            for one in chunks(batch, 1):
                torch.autograd.backward(subject.loss(one))
                done += 1
                if progress is not None:
                    progress("squared gradients", done, count)
    out = {}
    for layer in wanted:
        mean = sums[layer.path] / done
        own = mean if layer.index is None else mean[layer.index]
        out[layer.name] = (own.T if layer.transposed else own.reshape(own.shape[0], -1)).contiguous()
    return out


def _adding(into: Tensor, path: str) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = None
        into.addcmul_(gradient.float(), gradient.float())
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(f"a gradient of {path} is NaN or infinite. Look at the data and the loss")

    return add

r"""Gradients of single examples whose outer products add up to the curvature of the loss.

Of an example with outputs z, :math:`g = J^T S r` with :math:`S S^T = \nabla^2_z \ell` and random signs r: its outer
product :math:`g g^T` is the example's Gauss-Newton matrix in expectation. One backward pass each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from isoloss.compress.layers import Layer
from isoloss.compress.replay import calibrating
from isoloss.measure.criteria import Criterion
from isoloss.measure.products import weights
from isoloss.measure.subject import Subject, chunks

KNOWN = "one random sign per output and example"
UNKNOWN = "gradients at the data's own labels: the criterion's curvature is not known"


def how(subject: Subject) -> str:
    """What stands for the curvature of this subject's loss."""
    return KNOWN if isinstance(subject.criterion, Criterion) else UNKNOWN


def of_examples(
    subject: Subject, layers: Sequence[Layer], seed: int = 0
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    r"""Weight c and gradient g of every layer (out, in), example by example: :math:`\sum_e c_e g_e g_e^T` is the curvature.

    Where the criterion's curvature is known, that of the Gauss-Newton matrix, without bias; else g is the gradient of the
    example's loss, and the sum is the empirical Fisher matrix. Layers without a gradient are left out.

    Args:
        subject: model, data, loss.
        layers: of the model.
        seed: of the signs.

    Raises:
        ValueError: a gradient is not finite.

    Example:
        >>> from isoloss.compress.layers import find
        >>> from isoloss.measure.criteria import SquaredError
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> subject = Subject(net, [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 1))], SquaredError())
        >>> sum(c * g["model"].square() for c, g in of_examples(subject, find(net).layers)).tolist()
        [[5.0, 2.0]]
    """
    parameters = {layer.path: getattr(layer.module, layer.parameter) for layer in layers}
    held = list(parameters.values())
    generator = torch.Generator().manual_seed(seed)
    criterion = subject.criterion
    with ExitStack() as stack:
        stack.enter_context(calibrating(subject.model))
        stack.enter_context(torch.enable_grad())
        for parameter in subject.model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(any(parameter is one for one in held))
        for whole, share in weights(subject):
            parts = chunks(whole, 1)
            for inputs, targets in parts:
                z = subject.predict(inputs)
                if isinstance(criterion, Criterion):
                    weight = share / criterion.rows(whole[1])
                    signs = torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1
                    with torch.no_grad():
                        along = criterion.root(z, targets, signs)
                    found = torch.autograd.grad(z, held, along, allow_unused=True)
                else:
                    weight = share / len(parts)
                    found = torch.autograd.grad(criterion(z, targets), held, allow_unused=True)
                by_path = dict(zip(parameters, found, strict=True))
                yield (
                    weight,
                    {
                        layer.name: _matrix(layer, own)
                        for layer in layers
                        if (own := by_path[layer.path]) is not None
                    },
                )


def _matrix(layer: Layer, gradient: Tensor) -> Tensor:
    own = gradient if layer.index is None else gradient[layer.index]
    found = (own.T if layer.transposed else own.reshape(own.shape[0], -1)).float()
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"a gradient of {layer.name} is NaN or infinite. Look at the data and the loss")
    return found


def squares(subject: Subject, layers: Sequence[Layer], seed: int = 0) -> dict[str, Tensor]:
    """The diagonal of that curvature, layer by layer, float64 (out, in)."""
    sums = {
        layer.name: torch.zeros(layer.shape, dtype=torch.float64, device=layer.tensor.device)
        for layer in layers
    }
    for weight, found in of_examples(subject, layers, seed):
        for name, own in found.items():
            sums[name] += weight * own.double().square()
    return sums

r"""What outputs are as functions of the parameters, read off the recorded graph: bent or straight, kinked or smooth.

If outputs are piecewise linear in every parameter tensor by itself, the second derivatives of the outputs within a
tensor are 0 (almost everywhere), and the block of the Hessian that belongs to the tensor is the block of the
Gauss-Newton matrix. The graph that the library records for its backward pass names every operation that was done,
also those that no module shows: so the answer is a proof, not a guess from the kinds of modules. A tensor used
twice on one path, as in a recurrent net, is found too.

Where every operation has a continuous slope, differences of the outputs see the same curvature as derivatives; a
kink between two points is curvature to differences and none to derivatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

# Operations linear, or linear in pieces, in all that goes in, jointly.
LINEAR = frozenset({
    "Add", "Sub", "Neg", "Sum", "Mean", "View", "UnsafeView", "ReshapeAlias", "T", "Transpose", "Permute",
    "Expand", "Squeeze", "Unsqueeze", "Slice", "Select", "Index", "IndexSelect", "Gather", "Cat", "Stack",
    "Split", "SplitWithSizes", "Unbind", "Clone", "Copy", "CopyBackwards", "CopySlices", "ToCopy", "Alias",
    "AsStrided", "Flip", "Roll", "Repeat", "Detach", "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D",
    "ReplicationPad1D", "ReplicationPad2D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D", "MkldnnAdaptiveAvgPool2D", "MaxPool2DWithIndices", "MaxPool3DWithIndices",
    "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "Relu", "LeakyRelu", "Hardtanh", "Threshold", "Abs", "Clamp",
    "ClampMin", "ClampMax", "Maximum", "Minimum", "Max", "Min", "Amax", "Amin", "Where", "MaskedFill",
    "MaskedSelect", "Embedding", "UpsampleNearest2D", "UpsampleBilinear2D", "PixelShuffle",
    "PixelUnshuffle", "Im2Col", "Col2Im", "Tril", "Triu", "Diagonal", "Cumsum", "Sort", "Topk", "NanToNum",
    "Movedim",
})  # fmt: skip
# Operations linear in each of several things that go in: which of them are multiplied.
PRODUCTS = {
    "Mul": (0, 1), "Mm": (0, 1), "Bmm": (0, 1), "Addmm": (1, 2), "Baddbmm": (1, 2), "Mv": (0, 1), "Dot": (0, 1),
    "Convolution": (0, 1), "MkldnnConvolution": (0, 1), "ConvDepthwise2D": (0, 1), "PreluKernel": (0, 1),
    "NativeBatchNorm": (0, 1), "CudnnBatchNorm": (0, 1), "MiopenBatchNorm": (0, 1),
}  # fmt: skip
KINKED = frozenset({
    "Relu", "LeakyRelu", "Hardtanh", "Threshold", "Abs", "Clamp", "ClampMin", "ClampMax", "Maximum", "Minimum", "Max",
    "Min", "Amax", "Amin", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D",
    "Where", "MaskedFill", "MaskedSelect", "Sort", "Topk", "NanToNum", "PreluKernel", "CopySlices", "Index", "Gather",
})  # fmt: skip
# Operations whose slopes are continuous, besides what is linear; others may have kinks.
SMOOTH = frozenset({
    "Exp", "Log", "Tanh", "Sigmoid", "Gelu", "Silu", "Softplus", "Mish", "Softmax", "SafeSoftmax", "LogSoftmax",
    "Logsumexp", "NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm", "Pow", "Sqrt", "Rsqrt", "Reciprocal", "Div",
    "Sin", "Cos", "Erf", "Var", "Std", "LinalgVectorNorm", "Norm", "Addcmul", "Addcdiv",
    "ScaledDotProductFlashAttentionForCpu", "ScaledDotProductFlashAttention", "ScaledDotProductEfficientAttention",
    "ScaledDotProductCudnnAttention", "ScaledDotProductFusedAttentionOverrideable", "MkldnnRnnLayer", "NllLoss",
    "NllLoss2D", "MseLoss", "HuberLoss", "SmoothL1Loss", "KlDiv", "BinaryCrossEntropyWithLogits", "Lerp",
})  # fmt: skip
NAME = re.compile(r"(?:Backward)?\d*$")


def bent(outputs: Tensor, parameters: Mapping[str, Tensor]) -> str | None:
    """What keeps outputs from being piecewise linear in each parameter tensor alone; None if nothing does.

    Args:
        outputs: with their graph.
        parameters: name -> tensor.

    Returns:
        The operation in the way, by the library's name, or the tensor that is multiplied by itself.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> bent(net(torch.ones(1, 2)), dict(net.named_parameters()))
        >>> bent(net(torch.ones(1, 2)).exp(), dict(net.named_parameters()))
        'Exp'
    """
    bits = {id(p): 1 << i for i, p in enumerate(parameters.values())}
    names = list(parameters)
    below: dict[Any, int] = {}  # node -> which parameters it depends on
    for node in _nodes(outputs):
        masks = [0 if edge is None else below[edge] for edge, _ in node.next_functions]
        variable = getattr(node, "variable", None)
        if variable is not None:
            below[node] = bits.get(id(variable), 0)
            continue
        why = _bends(node, masks, names)
        if why is not None and any(masks):
            return why
        below[node] = 0
        for mask in masks:
            below[node] |= mask
    return None


def kinked(outputs: Tensor) -> str | None:
    """An operation on the way to the outputs whose slope may jump; None if there is none.

    A rectifier that is squared at once has a slope without a jump.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> kinked(x.tanh() * 2), kinked(x.relu() * 2), kinked(x.relu().square())
        (None, 'Relu', None)
    """
    nodes = list(_nodes(outputs))
    users: dict[Any, list[Any]] = {}
    for node in nodes:
        for edge, _ in node.next_functions:
            users.setdefault(edge, []).append(node)
    for node in nodes:
        name = _name(node)
        if getattr(node, "variable", None) is not None:
            continue
        if (
            name in KINKED
            or name not in LINEAR | SMOOTH | PRODUCTS.keys()
            or isinstance(node, BackwardCFunction)
        ):
            if name == "Relu" and all(_squares(user, node) for user in users.get(node, [None])):
                continue
            return name
    return None


def fused(outputs: Tensor) -> bool:
    """Whether attention on the way to the outputs is done by a fused kernel, which has no second derivative."""
    return any(_name(node).startswith("ScaledDotProduct") for node in _nodes(outputs))


def own_backward(outputs: Tensor) -> str | None:
    """An operation with a backward pass written for it outside the library; None if there is none."""
    return next((_name(node) for node in _nodes(outputs) if isinstance(node, BackwardCFunction)), None)


def _squares(user: Any, node: Any) -> bool:
    """Whether what uses a node's result takes its square, or a higher power."""
    if user is None:
        return False
    if _name(user) == "Mul":
        return all(edge is node for edge, _ in user.next_functions) and len(user.next_functions) == 2
    return _name(user) == "Pow" and float(getattr(user, "_saved_exponent", 0)) >= 2


def _nodes(outputs: Tensor) -> Iterator[Any]:
    """The graph's nodes, each after all that it depends on; none for a constant."""
    if outputs.grad_fn is None:
        return
    done: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(outputs.grad_fn, False)]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done.add(node)
            yield node
            continue
        stack.append((node, True))
        stack += [(edge, False) for edge, _ in node.next_functions if edge is not None and edge not in done]


def _name(node: Any) -> str:
    return NAME.sub("", node.name())


def _bends(node: Any, masks: list[int], names: list[str]) -> str | None:
    """Why one operation is not linear in pieces in every parameter."""
    name = _name(node)
    if isinstance(node, BackwardCFunction):  # a backward pass of the model's own, whatever it is called
        return name
    if name in LINEAR:
        return None
    if name == "Div":
        return name if len(masks) > 1 and masks[1] else None
    if name in PRODUCTS:
        if getattr(node, "_saved_training", False):
            return f"{name} of the batch's own statistics"
        a, b = (masks[i] if i < len(masks) else 0 for i in PRODUCTS[name])
        both = a & b
        return f"{names[both.bit_length() - 1]} multiplied by itself" if both else None
    return name

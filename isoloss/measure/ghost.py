r"""Squared norms of per-example gradients, layer by layer, without forming them ("ghost norms").

For a linear layer an example's gradient is :math:`\sum_t \delta_t x_t^T` over its positions t, so that

.. math:: \Big\|\sum_t \delta_t x_t^T\Big\|_F^2 = \sum_{t,t'} (x_t \cdot x_{t'})(\delta_t \cdot \delta_{t'})

and with one position it is :math:`\|x\|^2\|\delta\|^2`. A convolution is a linear layer on patches.

Layers are seen through hooks. What hooks do not see would be missing, and a layer whose first dimension is not
that of the examples would be misread; :func:`verify` finds both out on three examples.

Source: Goodfellow 2015, arXiv:1510.01799 (one position); Li, Tramer, Liang, Hashimoto 2022, arXiv:2110.05679
(sequences); Rochette, Manoel, Tramel 2019, arXiv:1912.06015 (convolutions by patches).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from isoloss.measure.subject import Subject, resized

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.RMSNorm)
KNOWN = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMS)
TRIED = 3  # examples; of two, batch statistics leave next to no gradient by which they could be noticed
CLOSE = 1e-3  # of a squared norm, against the library's own gradient


@dataclass
class _Call:
    """One call of one module in a forward pass."""

    name: str
    module: nn.Module
    input: Tensor
    output: GradientEdge  # what came out, also where it is overwritten later
    version: int
    planned: int = 1
    rows: Tensor | None = None
    gram: Tensor | None = None
    normal: Tensor | None = None

    def seen(self) -> Tensor:
        """The input, in at least single precision."""
        if self.input._version != self.version:
            raise TypeError(
                f"per-example norms need the inputs of layers as they were; that of {self.name} is overwritten later"
            )
        return _single(self.input)

    def matrix(self) -> Tensor:
        """The input as a linear layer sees it, (B, T, K); made once for all backward passes."""
        if self.rows is None:
            self.rows = _matrix(self.module, self.seen())
        return self.rows

    def grams(self) -> Tensor:
        """Inner products of the rows of :meth:`matrix`, (B, T, T)."""
        if self.gram is None:
            rows = self.matrix()
            self.gram = rows @ rows.mT
        return self.gram

    def by_positions(self, out: int) -> bool:
        """Whether Gram matrices of the positions are less work than the gradients themselves."""
        _, t, k = self.matrix().shape
        return bool(t * (out + k / self.planned) < k * out)

    def normalised(self) -> Tensor:
        """The input as the scale of a normalisation sees it."""
        if self.normal is None:
            with torch.no_grad():
                self.normal = _normalised(self.module, self.seen())
        return self.normal


@dataclass
class Tape:
    """The calls of the modules that own parameters, in the order in which they were made.

    Attributes:
        calls: of modules.
        numbers: that they put out or, as patches, took in; what memory depends on.
        names: id of a parameter -> its name in the model.
        shared: modules whose input has no dimension of examples, as position embeddings have none.
    """

    calls: list[_Call] = field(default_factory=list)
    numbers: int = 0
    names: dict[int, str] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def plan(self, passes: int) -> None:
        """Say how many backward passes are to come: what is then worth computing once."""
        for call in self.calls:
            call.planned = passes


@contextmanager
def recording(model: nn.Module, examples: int | None = None, shared: Collection[str] = ()) -> Iterator[Tape]:
    """Record inputs and outputs of every module of a known kind while the model runs.

    Args:
        model: what runs in the block.
        examples: how many it runs on. Where it is given, a layer whose input does not have them along its first
            dimension is given one output for each if its input has one row or is a list of indices (positions),
            and refused otherwise.
        shared: modules known to have no dimension of examples, whatever the length of their input.

    Raises:
        TypeError: parameters that take a gradient belong to a module of another kind, or one with a forward pass
            of its own, whose per-example gradients have no closed form here.
    """
    owners = _owners(model)
    tape = Tape(names={id(p): name for name, p in model.named_parameters()})

    def hook(name: str) -> Callable[..., Tensor | None]:
        def keep(module: nn.Module, args: Any, keywords: Any, output: Tensor) -> Tensor | None:
            x = args[0] if args else next(iter(keywords.values()))
            replaced = None
            if examples is not None and (name in shared or x.shape[0] != examples):
                x, output = _spread(name, module, x, output, examples)
                tape.shared.add(name)
                replaced = output
            if output.requires_grad:
                x = x.detach()
                tape.numbers += output.numel() * (1 + _patch(module) // output.shape[1])
                tape.calls.append(_Call(name, module, x, get_gradient_edge(output), x._version))
            return replaced

        return keep

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in owners]
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


def _patch(module: nn.Module) -> int:
    """Numbers in the patch of a convolution that unfolds; 0 for other layers."""
    return module.weight[0].numel() * module.groups if isinstance(module, (nn.Conv1d, nn.Conv2d)) else 0


def _owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that own parameters with a gradient, all of known kinds."""
    found = []
    for name, module in model.named_modules():
        own = {key for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not own:
            continue
        if not _is_known(module) or not own <= {"weight", "bias"}:
            raise TypeError(
                f"per-example norms need parameters in {', '.join(kind.__name__ for kind in KNOWN)}; got "
                f"{name or 'the model itself'} ({type(module).__name__})"
            )
        found.append((name, module))
    return found


def _is_known(module: nn.Module) -> bool:
    """Of a known kind, computing what that kind computes."""
    kind = next((kind for kind in KNOWN if isinstance(module, kind)), None)
    if kind is None or getattr(type(module), "forward", None) is not kind.forward:
        return False
    if isinstance(module, CONVOLUTIONS):
        return getattr(type(module), "_conv_forward", None) is getattr(kind, "_conv_forward", None)
    return not (
        isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None)
    )


def _spread(name: str, module: nn.Module, x: Tensor, output: Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """Input and output of a layer that all examples share, once for each."""
    if x.shape[0] == 1 and x.ndim > 1:
        return x.expand(examples, *x.shape[1:]), output.expand(examples, *output.shape[1:])
    if x.ndim == 1 and isinstance(module, nn.Embedding):
        return x.expand(examples, *x.shape), output.expand(examples, *output.shape)
    raise TypeError(
        f"per-example norms need the examples along the first dimension of every layer's input; got "
        f"{tuple(x.shape)} for {examples} examples at {name or 'the model itself'} ({type(module).__name__})"
    )


def squared_norms(tape: Tape, outputs: Tensor, cotangent: Tensor, keep: bool = False) -> dict[str, Tensor]:
    """Squared norm of every example's gradient, per parameter.

    Args:
        tape: of the forward pass that gave ``outputs``.
        outputs: (B, ...), the model's.
        cotangent: of the outputs' shape; example b's gradient is :math:`J_b^T c_b`.
        keep: keep the graph for another call.

    Returns:
        Parameter name -> (B,), in the parameters' own precision, at least single.
    """
    with torch.no_grad():
        found = pieces(tape, outputs, cotangent, keep)
        return {name: _norm_of_one(name, parts) for name, parts in found.items()}


def pieces(
    tape: Tape, outputs: Tensor, cotangent: Tensor, keep: bool = False
) -> dict[str, list[Plain | Outer | Rows]]:
    """What every example's gradient is made of: per parameter one piece for each use, to be summed.

    Args as :func:`squared_norms`. A parameter that the outputs do not depend on is absent.
    """
    held = [call.output for call in tape.calls]
    deltas = torch.autograd.grad(outputs, held, cotangent, retain_graph=keep, allow_unused=True)
    found: dict[str, list[Plain | Outer | Rows]] = {}
    for call, delta in zip(tape.calls, deltas, strict=True):
        for key, parameter in call.module.named_parameters(recurse=False):
            if parameter.requires_grad and delta is not None:
                name = tape.names[id(parameter)]
                found.setdefault(name, []).append(_piece(call, _single(delta), key))
    return found


def by_row(columns: Iterable[Tensor], examples: int) -> Iterator[Tensor]:
    """Cotangents with one row (token) of every example at a time.

    What is summed over rows are squares of their gradients; the square of their sum is another thing.

    Args:
        columns: cotangents of the outputs' shape, (examples, ..., columns) or with examples and rows as one.
        examples: how many there are.
    """
    for column in columns:
        apart = column.reshape(examples, -1, column.shape[-1])
        if apart.shape[1] == 1:
            yield column
            continue
        for t in range(apart.shape[1]):
            one = torch.zeros_like(apart)
            one[:, t] = apart[:, t]
            yield one.view_as(column)


def verify(subject: Subject) -> Tape:
    """Whether every example's gradient is what the hooks see, tried on :data:`TRIED` of the first batch.

    The squared norms for a cotangent at one example alone must be those of the library's own gradient there, and
    0 at the others.

    Returns:
        The tape, its calls taken off.

    Raises:
        TypeError: a layer of an unknown kind; a parameter that is used other than by its own module; layers that
            mix examples or do not have them along their first dimension.
    """
    inputs, _ = resized(subject.batches[0], TRIED)
    like = subject.parameters()
    with subject.measuring(), torch.enable_grad():
        with recording(subject.model, TRIED) as tape:
            z = subject.predict(inputs)
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
        cotangent[: len(z) - len(z) // TRIED] = 0
        ours = squared_norms(tape, z, cotangent, keep=True)
        true = torch.autograd.grad(z, list(like.values()), cotangent, allow_unused=True)
    squared = {
        name: 0.0 if g is None else float(_single(g).square().sum())
        for name, g in zip(like, true, strict=True)
    }
    for name, value in squared.items():
        *others, own = ours[name].tolist() if name in ours else [0.0]
        scale = value + CLOSE * max(squared.values())
        if abs(own - value) > CLOSE * scale * _slack(like[name]) or max(others, default=0.0) > CLOSE * scale:
            raise TypeError(
                f"the gradient of {name} for one example is not what the calls of its own module give: it is used "
                "elsewhere too, or a layer mixes examples or does not have them along its first dimension"
            )
    return Tape([], tape.numbers, tape.names, tape.shared)


def _slack(parameter: Tensor) -> float:
    """How much more a low precision may be off: some of its roundings, and no more, or nothing would be noticed."""
    return max(1.0, 16 * torch.finfo(parameter.dtype).eps / CLOSE)


def _norm_of_one(name: str, pieces: Sequence[Plain | Outer | Rows]) -> Tensor:
    """Squared norm of the sum of a parameter's gradients over all its uses."""
    if len(pieces) == 1:
        return pieces[0].squared()
    plain = [piece for piece in pieces if isinstance(piece, Plain)]
    rows = [piece for piece in pieces if isinstance(piece, Rows)]
    outers = [piece for piece in pieces if isinstance(piece, Outer)]
    if len(plain) == len(pieces):
        return Plain(torch.stack([p.value for p in plain]).sum(0)).squared()
    if plain:
        raise TypeError(
            f"per-example norms of {name}, shared by layers of different kinds, have no closed form here"
        )
    looked = (
        [Rows(torch.cat([r.index for r in rows], 1), torch.cat([r.delta for r in rows], 1))] if rows else []
    )
    parts: list[Outer | Rows] = [*looked, *outers]
    total = torch.stack([part.squared() for part in parts]).sum(0)
    for i, a in enumerate(outers):
        for other in outers[:i]:
            total = total + 2 * _across_outers(a, other)
        for row in looked:
            total = total + 2 * _across(row, a)
    return total


@dataclass
class Plain:
    """A gradient that is formed: (B, ...)."""

    value: Tensor

    def squared(self) -> Tensor:
        return _squares(self.value.flatten(1))


@dataclass
class Outer:
    """A sum of outer products over positions: the call's matrix (B, T, K), delta (B, T, M)."""

    call: _Call
    delta: Tensor

    def squared(self) -> Tensor:
        x, delta = self.call.matrix(), self.delta
        if x.shape[1] == 1:
            return self.call.grams()[:, 0, 0] * _squares(delta.flatten(1))
        if self.call.by_positions(delta.shape[2]):
            return (self.call.grams() * (delta @ delta.mT)).sum((1, 2))
        return _squares((delta.mT @ x).flatten(1))


def _squares(x: Tensor) -> Tensor:
    """Sums of squares of rows; the norm is faster than squares and their sum, which make a temporary."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norms.square()


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _across_outers(a: Outer, b: Outer) -> Tensor:
    """Inner product of one layer's gradients from two of its calls."""
    return ((a.call.matrix() @ b.call.matrix().mT) * (a.delta @ b.delta.mT)).sum((1, 2))


@dataclass
class Rows:
    """A sum of rows put at indices: index (B, T), delta (B, T, M)."""

    index: Tensor
    delta: Tensor

    def squared(self) -> Tensor:
        same = (self.index[:, :, None] == self.index[:, None, :]).to(self.delta.dtype)
        return ((self.delta @ self.delta.mT) * same).sum((1, 2))


def _across(rows: Rows, outer: Outer) -> Tensor:
    """Inner product of an embedding's gradient with that of a head that shares its weight."""
    at = outer.delta.gather(2, rows.index[:, None, :].expand(-1, outer.delta.shape[1], -1))  # (B, T', T)
    return (at.mT * (rows.delta @ outer.call.matrix().mT)).sum((1, 2))


def _matrix(module: nn.Module, x: Tensor) -> Tensor:
    """The input of a linear layer or a convolution as rows, one per position of the output."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return _patches(module, x).mT
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _patches(module: Any, x: Tensor) -> Tensor:
    """What the kernel sees at every position, (B, channels in * kernel, T)."""
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=mode), 0
    if isinstance(module, nn.Conv1d):  # an image of height 1
        along = 0 if padding == 0 else padding[0]
        args: Any = ((1, *module.kernel_size), (1, *module.dilation), (0, along), (1, *module.stride))
        return F.unfold(x.unsqueeze(2), *args)
    return F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)


def _piece(call: _Call, delta: Tensor, key: str) -> Plain | Outer | Rows:
    module = call.module
    if isinstance(module, nn.Linear):
        delta = delta.reshape(delta.shape[0], -1, delta.shape[-1])
        if key != "bias":
            return Outer(call, delta)
        return Plain(delta[:, 0] if delta.shape[1] == 1 else delta.sum(1))  # a sum of one would copy
    if isinstance(module, nn.Embedding):
        index, delta = call.seen().flatten(1), delta.reshape(delta.shape[0], -1, delta.shape[-1])
        if module.padding_idx is not None:
            delta = delta * (index != module.padding_idx).unsqueeze(-1)
        return Rows(index, delta)
    if isinstance(module, CONVOLUTIONS):
        flat = delta.flatten(2)  # (B, M, T)
        if key == "bias":
            return Plain(flat.sum(2))
        if isinstance(module, nn.Conv3d):
            return _one_by_one(module, call.seen(), delta)
        return Outer(call, flat.mT) if module.groups == 1 else _grouped(call, flat)
    return _norm_layer(module, call, delta, key)


def _grouped(call: _Call, delta: Tensor) -> Plain:
    """Of a convolution in groups: (B, groups, M / groups, K / groups)."""
    groups: Any = call.module.groups
    batch, _, t = delta.shape
    patches = call.matrix().mT.reshape(batch, groups, -1, t)
    return Plain(delta.reshape(batch, groups, -1, t) @ patches.mT)


def _one_by_one(module: Any, x: Tensor, delta: Tensor) -> Plain:
    """Three-dimensional: one gradient per example by the library's own backward."""

    def one(a: Tensor, d: Tensor) -> Tensor:
        def run(weight: Tensor) -> Tensor:
            out: Tensor = module._conv_forward(a[None], weight, None)
            return out

        gradient: Tensor = torch.func.vjp(run, _single(module.weight.detach()))[1](d[None])[0]
        return gradient

    return Plain(torch.stack([one(a, d) for a, d in zip(x, delta, strict=True)]))


def _norm_layer(module: nn.Module, call: _Call, delta: Tensor, key: str) -> Plain:
    """Scale and shift of a normalisation: the sum over positions of delta times the normalised input."""
    if key == "weight":
        delta = delta * call.normalised()
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        kept = len(module.normalized_shape)
        return Plain(delta.flatten(1, -kept - 1).sum(1) if delta.ndim > kept + 1 else delta)
    return Plain(delta.flatten(2).sum(2) if delta.ndim > 2 else delta)


def _normalised(module: nn.Module, x: Tensor) -> Tensor:
    """The input of the scale: what the layer gives with weight 1 and bias 0."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        raise TypeError(f"no normalised input for {type(module).__name__}")
    if module.running_mean is None or module.running_var is None:
        raise TypeError(
            "batch norm without running statistics mixes examples: it has no per-example gradient"
        )
    mean, variance = (
        module.running_mean.to(x.dtype),
        module.running_var.to(x.dtype),
    )  # x may be raised to float32
    return F.batch_norm(x, mean, variance, eps=module.eps)

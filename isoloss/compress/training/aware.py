"""Quantisation-aware training: weights and inputs are rounded in the forward pass, steps are learned with them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torch.utils.hooks import RemovableHandle

from isoloss.compress import formats
from isoloss.compress.activations import Activations, Range, cannot, numbers, ranges, samples
from isoloss.compress.compressed import Compressed, put
from isoloss.compress.formats import Coded, Grid
from isoloss.compress.layers import Layer, find
from isoloss.compress.recipe import Choice, chosen
from isoloss.compress.training.inputs import RoundedInput, entering
from isoloss.compress.training.places import (
    finished,
    install,
    matrix_of,
    refuse_finished,
    refuse_prepared,
    remove,
)
from isoloss.compress.training.steps import KINDS, Kind, Steps, has_scale, started

TRAINED = "trained with rounded weights"
NAME = "rounded_input"


@dataclass(frozen=True)
class Aware:
    """How weights and inputs are rounded while a model trains.

    Args:
        steps: scales and tables of weights: ``learned``, ``fitted`` to the weight at every step, or ``held`` as they begin
            (:class:`isoloss.compress.training.steps.Steps`).
        inputs: number format of the inputs of linear layers and convolutions (``int8``, ``int4/asym``, ``fp8-e4m3``);
            None: as they are.
        ranges: of inputs: ``learned`` or ``static``, both from calibration data to begin with, or ``token``.
        norms: batch normalisation: ``train`` takes the statistics of each batch in training mode, as ever; ``frozen`` the
            running ones, which are not updated either.

    Raises:
        ValueError: no such setting.
    """

    steps: Kind = "learned"
    inputs: str | None = None
    ranges: Literal["learned", "static", "token"] = "learned"
    norms: Literal["train", "frozen"] = "train"

    def __post_init__(self) -> None:
        if self.steps not in KINDS or self.ranges not in ("learned", "static", "token"):
            raise ValueError(
                "steps are learned, fitted or held, and ranges learned, static or token, "
                f"got {self.steps!r} and {self.ranges!r}"
            )
        if self.norms not in ("train", "frozen"):
            raise ValueError(f"norms are train or frozen, got {self.norms!r}")
        if self.inputs is not None:
            numbers(self.inputs)


class _Frozen:
    """A hook that puts batch normalisation into eval mode, unless it is being measured."""

    def __init__(self) -> None:
        self.on = True
        self.off: dict[int, nn.Module] = {}  # that were training

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.on and module.training:
            self.off[id(module)] = module
            module.training = False


@dataclass(frozen=True, eq=False)
class Training:
    """A model in training with rounded weights; what :func:`prepare` gives.

    Attributes:
        model: the user's, which any loop may train.
        settings: as asked.
        rounders: layer -> what rounds its weight.
        inputs: layer -> what rounds its inputs.
        left: layer -> why its inputs are not rounded.
    """

    model: nn.Module
    settings: Aware
    rounders: Mapping[str, Steps]
    inputs: Mapping[str, RoundedInput]
    left: Mapping[str, str]
    _layers: tuple[Layer, ...] = field(repr=False)
    _hooks: tuple[RemovableHandle, ...] = field(repr=False)
    _frozen: _Frozen = field(repr=False)
    _began: float = field(repr=False)

    @property
    def steps(self) -> list[nn.Parameter]:
        """Learned scales, tables and ranges, for a group of their own in an optimiser; ``model.parameters()`` has them too."""
        weights = [own for rounder in self.rounders.values() for own in rounder.learned]
        return weights + [own for rounder in self.inputs.values() for own in rounder.parameters()]

    @property
    def ranges(self) -> dict[str, Range]:
        """Layer -> range of its inputs as it is now, for :func:`isoloss.compress.activations.rounded_inputs`."""
        return {name: own.range for name, own in self.inputs.items() if own.range is not None}

    def renormalise(self, batches: Sequence[Any]) -> None:
        """Running statistics of batch normalisation anew: the mean over these batches, with the rounded weights as they are.

        Args:
            batches: inputs, each a tensor or the first argument in a tuple.
        """
        self._frozen.on = False
        try:
            update_bn(batches, self.model)
        finally:
            self._frozen.on = True

    def finish(self) -> Compressed:
        """Take the rounding out and encode: the model has the decoded weights, the same that a forward pass computed with.

        Inputs are not rounded any more; read :attr:`ranges` to do so with
        :func:`isoloss.compress.activations.rounded_inputs`, whose results are the same.

        Raises:
            ValueError: it was done already, or a weight is not finite.
        """
        refuse_finished(self._layers)
        kept, encoded = {}, {}
        for layer in self._layers:
            whole: Tensor = layer.module.parametrizations[layer.parameter].original.detach()  # type: ignore[union-attr,index]
            kept[layer.name] = matrix_of(
                whole if layer.index is None else whole[layer.index], layer.transposed
            )
            if not bool(kept[layer.name].isfinite().all()):
                raise ValueError(
                    f"the weight of {layer.name} became NaN or infinite. Train it with a smaller rate"
                )
            encoded[layer.name] = self.rounders[layer.name].encode(kept[layer.name])
        remove(self.model, self._layers)
        for hook in self._hooks:
            hook.remove()
        for norm in self._frozen.off.values():
            norm.training = self.model.training
        for layer in self._layers:
            if layer.name in self.inputs:
                delattr(layer.module, NAME)
        note = f"{TRAINED}, steps {self.settings.steps}"
        note += (
            "" if not self.inputs else f"; inputs in {self.settings.inputs}, ranges {self.settings.ranges}"
        )
        return finished(self.model, encoded, kept, [note], time.perf_counter() - self._began)


def prepare(
    model: nn.Module,
    start: str | Mapping[str, str | None] | Compressed,
    settings: Aware | None = None,
    batches: Sequence[Any] | None = None,
) -> Training:
    r"""Make a model compute with rounded weights, and inputs, and train through the rounding.

    The model stays an ordinary module: its parameters are the same objects, in float, and :math:`w` is rounded to
    :math:`\hat w` whenever it is read, whichever module or function reads it; a tied weight has one rounding. Until
    :meth:`Training.finish` the names in ``state_dict`` are those of :mod:`torch.nn.utils.parametrize`
    (``0.parametrizations.weight.original``, ``...0.rounders.0.scale``), and checkpoints of the training hold learned steps.

    Args:
        model: any module; what :func:`isoloss.compress.find` finds in it.
        start: format of all layers, or by name or pattern, None for layers that are left (``{"linear": None, "*": "int3"}``);
            scales begin where squared error is least. Or a compressed model, of any solver: training begins with its codes,
            scales and tables, so that the first forward pass is the one of that model.
        settings: of rounding.
        batches: calibration inputs, for ranges of inputs that are learned or static.

    Raises:
        ValueError: an unknown layer or format, a model that is prepared already, no calibration data where they are needed.
        TypeError: a format without a code for each weight.

    Source:
        S. Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv 1902.08153; the straight-through gradient: Y. Bengio
        et al., 2013, arXiv 1308.3432; a static and a running range: B. Jacob et al., 2017, arXiv 1712.05877.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Linear(8, 4), torch.randn(64, 8)
        >>> y = x @ torch.randn(8, 4)
        >>> training = prepare(net, "int3")
        >>> optimizer = torch.optim.Adam(net.parameters(), 0.01)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     (net(x) - y).square().mean().backward()
        ...     optimizer.step()
        >>> with torch.no_grad():
        ...     last = net(x)
        >>> made = training.finish()
        >>> made.bits, torch.equal(net(x), last), sorted(net.state_dict())
        (160, True, ['bias', 'weight'])
    """
    began, settings = time.perf_counter(), settings or Aware()
    refuse_prepared(model)
    if settings.inputs is not None and settings.ranges != "token" and not batches:
        raise ValueError(f"{settings.ranges} ranges of inputs need calibration data, got none. Give batches")
    layers, grids = _layers_and_grids(model, start)
    static = _static(model, layers, settings, batches)
    rounders = {
        layer.name: Steps(grids[layer.name].format, grids[layer.name], _kind(grids[layer.name], settings))
        for layer in layers
    }
    install(model, layers, lambda layer: rounders[layer.name])
    inputs: dict[str, RoundedInput] = {}
    left: dict[str, str] = {}
    hooks: list[RemovableHandle] = []
    if settings.inputs is not None:
        for layer in layers:
            why = cannot(layer)
            if why is None and settings.ranges != "token" and layer.name not in static:
                why = "no calibration data came to it"
            if why is not None:
                left[layer.name] = why
                continue
            known = static.get(layer.name) if settings.ranges != "token" else None
            one = RoundedInput(settings.inputs, known, settings.ranges == "learned").to(layer.tensor.device)
            layer.module.add_module(NAME, one)
            hooks.append(layer.module.register_forward_pre_hook(entering, with_kwargs=True))
            inputs[layer.name] = one
    frozen = _Frozen()
    if settings.norms == "frozen":
        hooks += [m.register_forward_pre_hook(frozen) for m in model.modules() if isinstance(m, _BatchNorm)]
    return Training(model, settings, rounders, inputs, left, tuple(layers), tuple(hooks), frozen, began)


def _layers_and_grids(
    model: nn.Module, start: str | Mapping[str, str | None] | Compressed
) -> tuple[list[Layer], dict[str, Grid]]:
    found = find(model).layers
    if isinstance(start, Compressed):
        for one in start.encoded.values():
            _coded(one.format)
        put(model, start.encoded)
        layers = [layer for layer in found if layer.name in start.encoded]
        return layers, {layer.name: start.encoded[layer.name].grid() for layer in layers}
    words = {"*": start} if isinstance(start, str) else start
    wanted = chosen(found, {name: None if word is None else Choice(word) for name, word in words.items()})
    layers = [layer for layer in found if wanted[layer.name] is not None]
    grids = {}
    for layer in layers:
        choice = wanted[layer.name]
        assert choice is not None
        grids[layer.name] = started(_coded(formats.get(choice.format)), layer.matrix())
    return layers, grids


def _coded(format: Any) -> Coded:
    if not isinstance(format, Coded):
        raise TypeError(f"training rounds to formats with one code for each weight, got {format.spec}")
    return format


def _kind(grid: Grid, settings: Aware) -> Kind:
    """Fixed point and plain casts have nothing to learn."""
    learnable = isinstance(grid.format, formats.Table) or has_scale(grid.format)
    return settings.steps if learnable else "fitted"


def _static(
    model: nn.Module, layers: Sequence[Layer], settings: Aware, batches: Sequence[Any] | None
) -> dict[str, Range]:
    if settings.inputs is None or settings.ranges == "token":
        return {}
    return ranges(samples(model, layers, batches or ()), Activations(settings.inputs, "static"))

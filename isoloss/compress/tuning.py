r"""Tunes what codes stand for, in the whole model at once: tables, scales and codebooks for the model's own predictions.

Layers were fitted one after another, each for its own output. Here codes stay, and the few numbers that they stand for
(a row of 576 weights has eight in a table of three bits), with the biases and gains of norms, which are stored as they
are, follow the gradient of the difference between the predictions and those of the uncompressed model. Nothing is
added to the stored size, and no labels are read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.compress.formats import Encoded, WithLowRank, WithOutliers
from isoloss.compress.formats.encoded import below
from isoloss.compress.layers import Layer, find
from isoloss.compress.predictions import Predictions
from isoloss.compress.products import Products, products
from isoloss.compress.relaxed import Part, learnable, relax
from isoloss.compress.replay import calibrating
from isoloss.measure.subject import call

BETAS = (0.9, 0.95)
WARM = 0.05  # share of the steps in which the rate rises
TUNED = (
    "what codes stand for was tuned for the predictions of the whole model, whose difference fell from {before:.3g} to "
    "{after:.3g} on calibration data that were held out; errors of layers are those before"
)
NOTHING_WON = "tuning for the predictions of the whole model won nothing, so all is as it was before"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuning:
    r"""How the whole model is tuned.

    With z the predictions of the uncompressed model and :math:`\hat z` those of the compressed one, Adam makes
    :math:`\mathrm{KL}(\mathrm{softmax}\,z\,\|\,\mathrm{softmax}\,\hat z)` small, one calibration batch a step (of outputs
    that are no class scores half the squared distance, see :class:`~isoloss.compress.predictions.Predictions`). The step
    size rises over the first steps and falls with a cosine to 0. Batches that are held out judge a few times on the way; the
    best seen there is what stays, and if that is the start nothing changes.

    Args:
        steps: of Adam; each runs the model on one batch, forwards and backwards.
        rate: step size of entries, scales and codebooks, relative to the largest of their table (to the scale; to the
            mean size of the codebook).
        vectors: step size of biases and gains of norms, relative to their root mean square; 0 leaves them.
        held: share of the batches, the last ones, that judge and are not learned from; at least one, where there are two.
        checks: how many times they judge.
        products: how matrices are multiplied while the model runs, see :func:`isoloss.compress.products.products`.
        seed: of the order of batches.

    Raises:
        ValueError: settings out of range.

    Source:
        Learned tables and scales with fixed codes under the loss of the whole model: S. Esser et al., LSQ, 2019, arXiv
        1902.08153; V. Egiazarian et al., AQLM, 2024, arXiv 2401.06118, section 3.4.
    """

    steps: int = 100
    rate: float = 0.003
    vectors: float = 0.001
    held: float = 0.2
    checks: int = 4
    products: Products = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.checks < 1 or self.rate < 0 or self.vectors < 0:
            raise ValueError(
                "needed steps and checks of at least 1 and step sizes of at least 0, got "
                f"{self.steps}, {self.checks}, {self.rate} and {self.vectors}"
            )
        if not 0 <= self.held < 1:
            raise ValueError(f"needed a held share of 0 to 1, got {self.held}")
        if self.rate == 0 and self.vectors == 0:
            raise ValueError("neither values nor vectors are tuned. Set rate or vectors above 0")


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model as it was tuned.

    Attributes:
        encoded: layer -> its weight with the new tables and scales, of the same size.
        before: mean difference of the predictions on the batches that judge, as given.
        after: with the new weights as stored.
        steps: after which the best was seen; 0 if nothing was won.
        seconds: of the processor.
    """

    encoded: Mapping[str, Encoded]
    before: float
    after: float
    steps: int
    seconds: float

    @property
    def note(self) -> str:
        """For a recipe."""
        return TUNED.format(before=self.before, after=self.after) if self.steps else NOTHING_WON


def originals(model: nn.Module, predictions: Predictions) -> list[Tensor]:
    """What the model predicts on every batch, to be called before it is compressed; class scores in 16 bits."""
    out = []
    with calibrating(model):
        for inputs in predictions.batches:
            z = predictions.read(call(model, inputs)).detach()
            small = predictions.classes and float(z.abs().max()) < torch.finfo(torch.float16).max
            out.append(z.to(torch.float16) if small else z.clone())
    return out


def tune(
    model: nn.Module,
    encoded: Mapping[str, Encoded],
    predictions: Predictions,
    original: Sequence[Tensor],
    how: Tuning | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Tune a model that has just been compressed; :func:`isoloss.compress.compress` does it with ``tuning=``.

    Args:
        model: with the decoded weights in place; it has the tuned ones afterwards.
        encoded: layer -> what they were decoded from.
        predictions: batches, and how outputs are compared.
        original: what :func:`originals` gave, before the model was compressed.
        how: settings.
        progress: (what, steps done, steps in all).

    Raises:
        ValueError: other numbers of batches; nothing that can be tuned.

    Example:
        >>> from isoloss.compress import Choice, compress
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> batches = [torch.randn(64, 16) for _ in range(8)]
        >>> predictions = Predictions(batches)
        >>> original = originals(net, predictions)
        >>> made = compress(net, Choice("table2", "lut-feedback"), batches)
        >>> tuned = tune(net, made.encoded, predictions, original, Tuning(rate=0.02))
        >>> tuned.after < 0.8 * tuned.before, tuned.encoded["0"].bits == made.encoded["0"].bits
        (True, True)
    """
    how = how or Tuning()
    count = len(predictions.batches)
    if not count or len(original) != count:
        raise ValueError(f"needed predictions of {count} batches, at least one, got {len(original)}")
    began = time.process_time()
    held = min(max(1, round(how.held * count)), count - 1) if how.held else 0
    judges = range(count - held, count) if held else range(count)
    learned = range(count - held)
    with calibrating(model), products(how.products):
        work = _Work(model, predictions, original, *_variables(model, encoded, how))
        before = work.judged(judges)
        steps = work.learn(how, learned, judges, before, progress)
        new = work.stored(encoded)
        after = work.judged(judges) if steps else before
        if not after < before:
            work.restore({name: one.decode() for name, one in encoded.items()})
            return Tuned(encoded, before, before, 0, time.process_time() - began)
    return Tuned(new, before, after, steps, time.process_time() - began)


@dataclass(eq=False)
class _Weight:
    """A layer whose codes' values are tuned; what lies beside them (outliers, a low rank) stays.

    ``relaxed.values`` is what is learned; its gradient is taken of one layer at a time, as soon as the model's backward
    pass has that of the weight.
    """

    layer: Layer
    encoded: Encoded
    part: Part
    beside: Tensor | None

    def __post_init__(self) -> None:
        self.relaxed = relax(self.part, rounding=False, values=True)

    @classmethod
    def of(cls, layer: Layer, encoded: Encoded) -> _Weight | None:
        """None where there is nothing to learn."""
        dense, beside = encoded, None
        if isinstance(encoded.format, (WithOutliers, WithLowRank)):
            dense = Encoded(encoded.format.dense, encoded.shape, below("dense", encoded.parts))
            beside = encoded.decode() - dense.decode()
            beside = beside.to_sparse() if isinstance(encoded.format, WithOutliers) else beside
        part = Part(layer, torch.zeros(()).expand(layer.shape), dense)  # the weight itself is not read
        if not learnable(part):
            return None
        made = cls(layer, encoded, part, beside)
        return made if made.values is not None else None

    @property
    def values(self) -> Tensor:
        """Learned; a leaf."""
        found = self.relaxed.values
        assert found is not None
        return found

    def take(self, slope: Tensor) -> None:
        """Add what the gradient of the weight means for the values."""
        with torch.enable_grad():
            weight = self.relaxed.weight()
        own = slope.T if self.layer.transposed else slope.reshape(weight.shape)
        [found] = torch.autograd.grad(weight, [self.values], own.to(weight))
        self.values.grad = found if self.values.grad is None else self.values.grad + found

    def put(self) -> None:
        """The present weight into the model."""
        with torch.no_grad():
            weight = self.relaxed.weight()
            self.layer.put(weight if self.beside is None else weight + self.beside)

    def stored(self) -> Encoded:
        """In its format."""
        dense = self.relaxed.hardened()
        if dense.format == self.encoded.format:
            return dense
        parts = {**self.encoded.parts, **{f"dense.{name}": part for name, part in dense.parts.items()}}
        return Encoded(self.encoded.format, self.encoded.shape, parts)


@dataclass(eq=False)
class _Vector:
    """A bias or the gains of a norm: stored as it is, moved in units of its root mean square."""

    parameter: nn.Parameter

    def __post_init__(self) -> None:
        self.start = self.parameter.detach().clone()
        size = float(self.start.float().square().mean().sqrt())
        self.unit = size if size > 0 else 1.0
        self.values = torch.zeros(self.start.shape, dtype=torch.float32)

    def take(self, slope: Tensor) -> None:
        own = self.unit * slope.float()
        self.values.grad = own if self.values.grad is None else self.values.grad + own

    def put(self) -> None:
        with torch.no_grad():
            self.parameter.copy_(self.start + self.unit * self.values)


def _variables(
    model: nn.Module, encoded: Mapping[str, Encoded], how: Tuning
) -> tuple[list[_Weight], list[_Vector]]:
    layers = {layer.name: layer for layer in find(model).layers}
    unknown = next((name for name in encoded if name not in layers), None)
    if unknown is not None:
        raise ValueError(f"the model has no layer {unknown!r}, which was compressed. Give the same model")
    weights = [_Weight.of(layers[name], one) for name, one in encoded.items()] if how.rate else []
    own = [weight for weight in weights if weight is not None]
    vectors = []
    if how.vectors:
        vectors = [_Vector(p) for p in model.parameters() if p.ndim == 1 and p.is_floating_point()]
    if not own and not vectors:
        raise ValueError("nothing can be tuned: there are no tables, scales, codebooks, biases or norms")
    return own, vectors


@dataclass(eq=False)
class _Work:
    """The model while it is tuned."""

    model: nn.Module
    predictions: Predictions
    original: Sequence[Tensor]
    weights: Sequence[_Weight]
    vectors: Sequence[_Vector]

    def judged(self, batches: Sequence[int]) -> float:
        """Mean difference of the predictions."""
        return self.predictions.apart(self.model, self.original, batches)

    def learn(
        self,
        how: Tuning,
        learned: Sequence[int],
        judges: Sequence[int],
        start: float,
        progress: Progress | None,
    ) -> int:
        """Tune; the model, and what is learned, are left at the best that was seen. The number of its steps."""
        every: list[_Weight | _Vector] = [*self.weights, *self.vectors]
        groups = [
            {"params": [one.values for one in own], "lr": rate, "rate": rate}
            for own, rate in ((self.weights, how.rate), (self.vectors, how.vectors))
            if own
        ]
        adam = torch.optim.Adam(groups, betas=BETAS, eps=1e-15)
        generator = torch.Generator().manual_seed(how.seed)
        order: list[int] = []
        best = 0, start, [one.values.detach().clone() for one in every]
        with ExitStack() as stack:
            self._listen(stack)
            for step in range(1, how.steps + 1):
                if progress is not None:
                    progress("tuning", step - 1, how.steps)
                order = order or [
                    learned[i] for i in torch.randperm(len(learned), generator=generator).tolist()
                ]
                i = order.pop()
                with torch.enable_grad():
                    self.predictions.difference(self.original[i], self._predict(i), i).backward()  # type: ignore[no-untyped-call]
                rise = min(1.0, step / max(1.0, WARM * how.steps))
                fall = 0.5 * (1 + math.cos(math.pi * (step - 1) / how.steps))
                for group in adam.param_groups:
                    group["lr"] = group["rate"] * rise * fall
                adam.step()
                adam.zero_grad()
                for one in every:
                    one.put()
                if step == how.steps or step % max(1, how.steps // how.checks) == 0:
                    found = self.judged(judges)
                    if found < best[1]:
                        best = step, found, [one.values.detach().clone() for one in every]
        if progress is not None:
            progress("tuning", how.steps, how.steps)
        with torch.no_grad():
            for one, values in zip(every, best[2], strict=True):
                one.values.copy_(values)
                one.put()
        return best[0]

    def stored(self, encoded: Mapping[str, Encoded]) -> dict[str, Encoded]:
        """All layers with what was learned, also put into the model as they decode."""
        new = {one.layer.name: one.stored() for one in self.weights}
        for one in self.weights:
            one.layer.put(new[one.layer.name].decode())
        return {name: new.get(name, old) for name, old in encoded.items()}

    def restore(self, decoded: Mapping[str, Tensor]) -> None:
        """As it was given."""
        for one in self.weights:
            one.layer.put(decoded[one.layer.name])
        with torch.no_grad():
            for vector in self.vectors:
                vector.parameter.copy_(vector.start)

    def _predict(self, i: int) -> Tensor:
        return self.predictions.read(call(self.model, self.predictions.batches[i]))

    def _listen(self, stack: ExitStack) -> None:
        """Gradients of parameters go to what is learned of them and are let go at once."""
        takers: dict[int, list[Callable[[Tensor], None]]] = {}
        parameters: dict[int, nn.Parameter] = {}
        for weight in self.weights:
            parameter = getattr(weight.layer.module, weight.layer.parameter)
            parameters[id(parameter)] = parameter
            takers.setdefault(id(parameter), []).append(weight.take)
        for vector in self.vectors:
            parameters[id(vector.parameter)] = vector.parameter
            takers.setdefault(id(vector.parameter), []).append(vector.take)
        for parameter in self.model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            stack.callback(setattr, parameter, "grad", parameter.grad)  # the user's own, not to be added to
            parameter.requires_grad_(False)
            parameter.grad = None
        for key, parameter in parameters.items():
            parameter.requires_grad_(True)
            listen: Any = parameter.register_post_accumulate_grad_hook
            hook = listen(partial(_given, takers[key]))
            stack.callback(hook.remove)


def _given(takers: Sequence[Callable[[Tensor], None]], parameter: Tensor) -> None:
    slope = parameter.grad
    assert slope is not None
    parameter.grad = None
    for take in takers:
        take(slope)

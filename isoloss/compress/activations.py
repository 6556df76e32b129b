r"""Inputs of layers in few bits: ranges from calibration data or from each token, and how much of the signal survives.

Weights are stored in few bits to be small; inputs are rounded as well so that the multiplication itself can run in
eight bits. Here a model runs with rounded inputs in ordinary floats, to see what that costs before a kernel is chosen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoloss.compress import formats, settings
from isoloss.compress.formats import Float, Integer, round_float, round_whole
from isoloss.compress.layers import CONVOLUTIONS, Layer, find
from isoloss.compress.replay import calibrating
from isoloss.compress.statistics import Statistics
from isoloss.compress.watch import Watch
from isoloss.measure.subject import call

SAMPLE = 1 << 16  # inputs of a layer that are kept to search a range on
ROWS = 64  # of a weight that an advice looks at, evenly spaced
COARSE, FINE = 128, 16  # ranges tried: down to 1/256 of the whole, then between the neighbours of the best

When = Literal["static", "token"]
How = Literal["minmax", "percentile", "mse", "prediction"]


@dataclass(frozen=True)
class Activations:
    r"""How inputs are rounded.

    With the range :math:`[l, u]`, integers have the step :math:`u / (2^{b-1} - 1)`, or with ``asym``
    :math:`(u - l) / (2^b - 1)` and a zero-point; floats have the scale :math:`u / \max` of the type. What lies outside ends there.

    Args:
        format: of the numbers, without groups: ``int8``, ``int8/asym``, ``int8/narrow``, ``fp8-e4m3``, ``fp8-e5m2``, ``fp8-e3m4``.
        when: ``static``: one range for each layer, from calibration data; ``token``: of every row its own as it comes
            (of a convolution: of every example), from its least to its largest number.
        range: of static ones: ``minmax``, ``percentile``, ``mse``, the range that loses least, or ``prediction``, the one that
            changes what the model predicts least (:func:`isoloss.compress.scales.input_scales`).
        percentile: of the numbers that lie inside, in percent.
        step: of static ones: ``power`` makes the step of integers (the scale of floats) a power of two, for machines that
            multiply by shifting: the next larger one, or with ``mse`` the better of both next to it.

    Raises:
        ValueError: no such setting, a format that is not of integers or floats, or a power of two for ranges of tokens.

    Source:
        Token-wise scales: Z. Yao et al., ZeroQuant, 2022, arXiv 2206.01861; ranges: M. Nagel et al., A White Paper on Neural
        Network Quantization, 2021, arXiv 2106.08295.
    """

    format: str = "int8"
    when: When = "token"
    range: How = "mse"
    percentile: float = 99.99
    step: Literal["free", "power"] = "free"

    def __post_init__(self) -> None:
        numbers(self.format)
        settings.check(self, "activations")
        if self.step == "power" and (self.when == "token" or self.range == "prediction"):
            raise ValueError(
                "a step that is a power of two needs when=static, and range minmax, percentile or mse"
            )
        if not 50 < self.percentile <= 100:
            raise ValueError(f"a percentile needs more than 50 and at most 100, got {self.percentile}")

    @property
    def spec(self) -> str:
        """In words: the format, and in brackets settings other than the usual; :func:`asked` reads them back."""
        given = settings.words(replace(self, format="int8"))
        return f"{self.format}({given})" if given else self.format


def asked(text: str) -> Activations:
    """Settings from words: a format, with settings in brackets.

    Raises:
        ValueError: no such format or setting.

    Example:
        >>> asked("int8/asym(when=static, range=minmax)")
        Activations(format='int8/asym', when='static', range='minmax', percentile=99.99, step='free')
        >>> asked("fp8-e4m3").spec
        'fp8-e4m3'
    """
    match = re.fullmatch(r"\s*([^()=,]+?)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None:
        raise ValueError(
            f"needed a format for the inputs, with settings in brackets: int8(when=static, range=mse), got {text!r}"
        )
    made = settings.read(Activations, match[2] or "", "activations")
    return replace(made, format=match[1])


def numbers(format: str | Integer | Float) -> Integer | Float:
    """The number type of a format.

    Raises:
        ValueError: the format is neither of integers nor of floats.
    """
    found = formats.get(format) if isinstance(format, str) else format
    if not isinstance(found, (Integer, Float)) or (isinstance(found, Integer) and found.zero == "bipolar"):
        raise ValueError(
            f"inputs are rounded to integers or floats (int8, int8/asym, fp8-e4m3), got {format}"
        )
    return found


def fake_round(x: Tensor, low: Tensor, high: Tensor, format: str | Integer | Float) -> Tensor:
    """Numbers rounded to a format that covers a range, as floats.

    Args:
        x: any shape.
        low: end of the range, of a shape that broadcasts; read by ``asym`` alone.
        high: the other end; of symmetric formats the range is from its negative.
        format: integers or floats; groups and stored scales of it do not matter.

    Example:
        >>> x = torch.tensor([0.3, -1.0, 0.52])
        >>> fake_round(x, x.min(), x.abs().max(), "int2/narrow").tolist()
        [0.0, -1.0, 1.0]
        >>> fake_round(x, x.min(), x.max(), "int8/asym").sub(x).abs().max() < 1.52 / 255 / 2 + 1e-6
        tensor(True)
    """
    kind, y = numbers(format), x.float()
    if isinstance(kind, Float):
        scale = _positive(high.float() / kind.type.maximum)
        return (round_float(y / scale, kind.type) * scale).to(x.dtype)
    if kind.zero == "asym":
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        scale = _positive((high - low) / kind.top)
        zero = round_whole(-low / scale, "nearest", None)
        code = (round_whole(y / scale, "nearest", None) + zero).clamp(0, kind.top)
        return ((code - zero) * scale).to(x.dtype)
    scale = _positive(high.float() / kind.top)
    least = kind.lowest + int(kind.zero == "narrow")
    return (round_whole(y / scale, "nearest", None).clamp(least, kind.top) * scale).to(x.dtype)


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


@dataclass(frozen=True)
class Range:
    """What a layer's inputs are rounded within.

    Attributes:
        low: for ``asym``.
        high: for the others from its negative.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """The best range of a format.

    Attributes:
        high: where it ends.
        sqnr: signal over rounding noise, in dB.
    """

    high: float
    sqnr: float


def sqnr(x: Tensor, rounded: Tensor, weights: Tensor | None = None) -> float:
    r"""Signal to rounding noise: :math:`10 \log_{10} E[x^2] / E[(x - \hat x)^2]`, in dB; inf where nothing is lost.

    Args:
        x: numbers.
        rounded: the same rounded.
        weights: how much each counts: densities times cell widths give the expectation.

    Example:
        >>> round(sqnr(torch.tensor([1.0, 1.0]), torch.tensor([1.1, 0.9])), 3)
        20.0
    """
    own = torch.ones((), dtype=torch.float64) if weights is None else weights.double()
    signal = float((x.double().square() * own).sum())
    noise = float(((x - rounded).double().square() * own).sum())
    if noise == 0:
        return float("inf")
    return (
        float(10 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))
        if signal
        else -float("inf")
    )


def best_range(x: Tensor, format: str | Integer | Float, weights: Tensor | None = None) -> Fitted:
    """The symmetric range with the largest signal to noise, by line search.

    Args:
        x: numbers, at least one other than 0.
        format: integers (not ``asym``) or floats.
        weights: how much each counts.

    Raises:
        ValueError: all numbers are 0 or there are none.

    Example:
        >>> x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
        >>> best_range(x, "int4/narrow").high < 0.9 * float(x.abs().max())
        True
    """
    most = float(x.abs().max()) if x.numel() else 0.0
    if most == 0:
        raise ValueError("a range needs a number other than 0")

    def tried(shares: Tensor) -> list[Fitted]:
        ends = [most * float(share) for share in shares]
        return [
            Fitted(end, sqnr(x, fake_round(x, torch.tensor(-end), torch.tensor(end), format), weights))
            for end in ends
        ]

    step = 8 / COARSE
    coarse = max(tried(torch.exp2(-step * torch.arange(COARSE + 1))), key=lambda one: one.sqnr)
    near = coarse.high / most * torch.exp2(step * torch.linspace(-1, 1, FINE + 1))
    return max([coarse, *tried(near.clamp(max=1))], key=lambda one: one.sqnr)


@dataclass
class _Seen:
    """A sample of a layer's inputs, and their ends."""

    low: float
    high: float
    sample: Tensor

    def add(self, other: _Seen, generator: torch.Generator) -> None:
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.sample = _thinned(torch.cat([self.sample, other.sample]), generator)


def _thinned(x: Tensor, generator: torch.Generator) -> Tensor:
    if x.numel() <= SAMPLE:
        return x
    return x[torch.randint(x.numel(), (SAMPLE,), generator=generator).to(x.device)]


def samples(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any], seed: int = 0
) -> dict[str, Tensor]:
    """Layer -> some of its inputs, at most 65,536; the least and the largest are the last two of them.

    Args:
        model: run in eval mode.
        layers: to watch; one that only looks up is left out.
        batches: calibration inputs.
        seed: of the choice.
    """
    generator, seen = torch.Generator().manual_seed(seed), dict[str, _Seen]()

    def note(layer: Layer, x: Tensor, *_: Any) -> None:
        flat = x.detach().float().reshape(-1)
        if flat.numel():
            one = _Seen(float(flat.min()), float(flat.max()), _thinned(flat, generator))
            if layer.name in seen:
                seen[layer.name].add(one, generator)
            else:
                seen[layer.name] = one

    with calibrating(model):
        for inputs in batches:
            with Watch(layers, note, note, lambda layer, index: None):
                call(model, inputs)
    return {
        name: torch.cat([one.sample.cpu(), torch.tensor([one.low, one.high])]) for name, one in seen.items()
    }


def ranges(taken: Mapping[str, Tensor], how: Activations) -> dict[str, Range]:
    """Layer -> its static range, from :func:`samples`.

    Raises:
        ValueError: the range is to be chosen by predictions, which samples do not tell.
    """
    if how.range == "prediction":
        raise ValueError(
            "ranges by prediction need the model: take them from isoloss.compress.scales.input_scales"
        )
    return {name: _stepped(x, _range(x, how), how) for name, x in taken.items()}


def _stepped(x: Tensor, found: Range, how: Activations) -> Range:
    """The range whose step is a power of two: none smaller, or the better of two; the one found where any step will do."""
    kind, tried = numbers(how.format), list[tuple[float, Range]]()
    asym = isinstance(kind, Integer) and kind.zero == "asym"
    top = kind.type.maximum if isinstance(kind, Float) else kind.top
    low, high = (min(found.low, 0.0), max(found.high, 0.0)) if asym else (0.0, found.high)
    if how.step == "free" or not high > low:
        return found
    for step in (first := 2.0 ** math.ceil(math.log2((high - low) / top)), first / 2):
        zero = min(top, round(-low / step)) if asym else top
        one = Range(-zero * step, (top - zero) * step if asym else top * step)
        ends = torch.tensor([one.low, one.high])
        tried.append((sqnr(x[:-2], fake_round(x[:-2], ends[0], ends[1], kind)), one))
    return max(tried, key=lambda pair: pair[0])[1] if how.range == "mse" else tried[0][1]


def _range(x: Tensor, how: Activations) -> Range:
    kind, low, high = numbers(how.format), float(x[-2]), float(x[-1])
    asym = isinstance(kind, Integer) and kind.zero == "asym"
    if how.range == "percentile":
        share = torch.tensor([1 - how.percentile / 100, how.percentile / 100])
        ends = torch.quantile(x[:-2].float() if asym else x[:-2].abs().float(), share)
        low, high = (float(ends[0]), float(ends[1])) if asym else (-float(ends[1]), float(ends[1]))
    elif not asym:
        high = max(-low, high)
        if how.range == "mse" and high > 0:
            high = best_range(x[:-2], kind).high if bool(x[:-2].any()) else high
        low = -high
    elif how.range == "mse" and high > low:
        tries = [
            (sqnr(x[:-2], fake_round(x[:-2], torch.tensor(low * p), torch.tensor(high * p), kind)), p)
            for p in torch.exp2(-8 / COARSE * torch.arange(COARSE + 1)).tolist()
        ]
        best = max(tries)[1]
        low, high = low * best, high * best
    return Range(low, high)


@dataclass(frozen=True)
class Rounded:
    """How the inputs of a model are rounded.

    Attributes:
        how: settings.
        ranges: layer -> its static range; empty where every row has its own.
        left: layer -> why its inputs are not rounded.
    """

    how: Activations
    ranges: Mapping[str, Range] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)


def attach(model: nn.Module, how: Activations, static: Mapping[str, Range] | None = None) -> Rounded:
    """Round the inputs of a model from now on, until :func:`detach`; inputs that were rounded otherwise are no more.

    Args:
        model, how, static: as of :func:`rounded_inputs`.

    Raises:
        ValueError: static ranges are asked for and not given.
    """
    detach(model)
    left, _ = _hooked(model, how, static)
    kept = {} if how.when == "token" else {name: one for name, one in (static or {}).items()}
    return Rounded(how, kept, left)


def detach(model: nn.Module) -> None:
    """Round no inputs any more.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> _ = attach(net, Activations("int2"))
        >>> x = torch.tensor([[1.0, 0.3]])
        >>> with torch.no_grad():
        ...     rounded = net(x)
        >>> detach(net)
        >>> bool((rounded != net(x)).any())
        True
    """
    for module in model.modules():
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Rounding)]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


@contextmanager
def rounded_inputs(
    model: nn.Module,
    how: Activations | Mapping[str, Activations],
    static: Mapping[str, Range] | None = None,
) -> Iterator[dict[str, str]]:
    """The model with rounded inputs of its linear layers and convolutions; the weights are not touched.

    Args:
        model: any module.
        how: settings, of all layers or by layer; a layer without is left.
        static: :func:`ranges`, for static ones; a layer that has none is left.

    Yields:
        Layer -> why its inputs are not rounded, for those where they are not.

    Raises:
        ValueError: static ranges are asked for and not given.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2, bias=False))
        >>> _ = nn.init.constant_(net[0].weight, 1.0)
        >>> with torch.no_grad(), rounded_inputs(net, Activations("int2/narrow")) as left:
        ...     net(torch.tensor([[1.0, 0.2, 0.6, -1.0]])), left
        (tensor([[1., 1.]]), {})
    """
    left, hooks = _hooked(model, how, static)
    try:
        yield left
    finally:
        for hook in hooks:
            hook.remove()


def _hooked(
    model: nn.Module, how: Activations | Mapping[str, Activations], static: Mapping[str, Range] | None
) -> tuple[dict[str, str], list[Any]]:
    every = [how] if isinstance(how, Activations) else list(how.values())
    if static is None and any(one.when == "static" for one in every):
        raise ValueError(
            "static ranges need calibration data: give them, from isoloss.compress.activations.ranges"
        )
    left: dict[str, str] = {}
    hooks = []
    for layer in find(model).layers:
        one = how if isinstance(how, Activations) else how.get(layer.name)
        why = cannot(layer) or ("not asked for" if one is None else None)
        known = None if one is None or one.when == "token" else (static or {}).get(layer.name)
        if one is not None and one.when == "static" and why is None and known is None:
            why = "no calibration data came to it"
        if one is None or why is not None:
            left[layer.name] = str(why)
            continue
        hooks.append(layer.module.register_forward_pre_hook(_Rounding(one, known), with_kwargs=True))
    return left, hooks


def cannot(layer: Layer) -> str | None:
    """Why the inputs of a layer cannot be rounded; None: they can."""
    if layer.kind == "embedding":
        return "it looks up; where the same weight also multiplies, that is not rounded"
    if layer.parameter != "weight" or layer.index is not None:
        return f"{type(layer.module).__name__} multiplies by itself, not by a layer's own call"
    return None


@dataclass(frozen=True, eq=False)
class _Rounding:
    """A hook that rounds what a layer is called with."""

    how: Activations
    known: Range | None

    def __call__(self, module: nn.Module, args: Any, keywords: Any) -> Any:
        by_name = not args  # linear(input=x)
        x = keywords["input"] if by_name else args[0]
        if self.known is not None:
            low, high = x.new_tensor(self.known.low), x.new_tensor(self.known.high)
        else:
            low, high = token_range(x, numbers(self.how.format), isinstance(module, CONVOLUTIONS))
        rounded = fake_round(x, low, high, self.how.format)
        return (args, {**keywords, "input": rounded}) if by_name else ((rounded, *args[1:]), keywords)


def token_range(x: Tensor, kind: Integer | Float, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Ends of each row's numbers, of a shape that broadcasts; with ``whole``, of each example's."""
    dims = list(range(1, x.ndim)) if whole else [x.ndim - 1]
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    if isinstance(kind, Integer) and kind.zero == "asym":
        return low, high
    high = torch.maximum(-low, high)
    return -high, high


def bias_shift(
    weight: Tensor, decoded: Tensor, before: Statistics, after: Statistics | None = None
) -> Tensor:
    r"""What to add to a bias so that the mean output is what it was: :math:`W \bar x - Q \bar x'`.

    Args:
        weight: W, (out, in).
        decoded: Q.
        before: of the layer's inputs, :math:`\bar x`.
        after: of its inputs in the compressed model, :math:`\bar x'`; None: the same.

    Raises:
        ValueError: the statistics have no means.

    Source:
        M. Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, 2019, arXiv 1906.04721, empirical.

    Example:
        >>> seen = Statistics("layer", 1, mean=torch.tensor([1.0, 2.0]))
        >>> bias_shift(torch.tensor([[0.4, 0.3]]), torch.tensor([[0.0, 0.5]]), seen).tolist()
        [0.0]
    """
    last = before if after is None else after
    if before.mean is None or last.mean is None:
        raise ValueError(f"{before.layer} has no mean inputs: it was looked up, not multiplied")
    groups = before.mean.numel() // weight.shape[1]
    was = torch.bmm(weight.reshape(groups, -1, weight.shape[1]), before.mean.reshape(groups, -1, 1))
    now = torch.bmm(decoded.reshape(groups, -1, weight.shape[1]), last.mean.reshape(groups, -1, 1))
    return (was - now).reshape(-1)


def correct_biases(model: nn.Module, shifts: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Add to the biases of layers; names of those that have none.

    Args:
        model: is changed.
        shifts: layer -> :func:`bias_shift`.

    Raises:
        KeyError: the model has no such layer.
    """
    found, without = find(model), []
    for name, shift in shifts.items():
        layer = found[name]
        bias = getattr(layer.module, "bias", None)
        if not isinstance(bias, Tensor) or layer.parameter != "weight":
            without.append(name)
            continue
        with torch.no_grad():
            bias += shift.to(bias)
    return tuple(without)


@dataclass(frozen=True)
class Advice:
    """Eight bits as integers or as floats, for one layer.

    Attributes:
        layer: its name.
        table: format -> signal to noise in dB of the weight, of the inputs, and of the products of both.
        best: the format whose products are best.
        gain: of the best one over the best integers, in dB; 6 dB are a bit.
    """

    layer: str
    table: Mapping[str, tuple[float, float, float]]
    best: str
    gain: float


EIGHT_BITS = ("int8/narrow", "fp8-e2m5", "fp8-e3m4", "fp8-e4m3", "fp8-e5m2")


def advise(layer: str, weight: Tensor, inputs: Tensor, candidates: Sequence[str] = EIGHT_BITS) -> Advice:
    r"""Which number type of eight bits keeps most of a layer, each at its own best range.

    Weights have a range for each output, inputs one for all. Noise of both is taken as independent, so that of the products
    :math:`n = n_w + n_x + n_w n_x` with n the noise over the signal.

    Whether more signal is worth it is a matter of the machine: van Baalen et al. put FP8 at 50 to 180 % more gates and energy
    than INT8 in hardware of its own; memory is the same at the same bits.

    Args:
        layer: its name.
        weight: (out, in).
        inputs: some of them, as :func:`samples` gives them.
        candidates: formats.

    Source:
        M. van Baalen et al., FP8 versus INT8 for efficient deep learning inference, 2023, arXiv 2303.17951; A. Kuzmin et al., FP8
        Quantization, 2022, arXiv 2208.09225.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight, inputs = torch.rand(4, 500, generator=generator) - 0.5, torch.rand(4000, generator=generator)
        >>> advise("layer", weight, inputs).best
        'int8/narrow'
    """
    every = max(1, len(weight) // ROWS)
    rows, table = weight[::every].float(), {}
    for name in candidates:
        rounded = _at_best(rows, name)
        own, of = sqnr(rows, rounded), best_range(inputs, name).sqnr
        w, x = 10 ** (-own / 10), 10 ** (-of / 10)
        table[name] = (own, of, float(-10 * torch.log10(torch.tensor(w + x + w * x, dtype=torch.float64))))
    best = max(table, key=lambda name: table[name][2])
    return Advice(
        layer, table, best, table[best][2] - max(v[2] for k, v in table.items() if k.startswith("int"))
    )


def _at_best(rows: Tensor, format: str) -> Tensor:
    """Each row rounded within its own best range."""
    most = rows.abs().amax(dim=1, keepdim=True)
    best, least = rows, torch.full_like(most, torch.inf)
    for share in torch.exp2(-8 / COARSE * torch.arange(COARSE + 1)).tolist():
        rounded = fake_round(rows, -most * share, most * share, format)
        noise = (rows - rounded).square().sum(dim=1, keepdim=True)
        best, least = torch.where(noise < least, rounded, best), torch.minimum(noise, least)
    return best

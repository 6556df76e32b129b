r"""Parameters of a model, by every way of counting that people mean: all, trained, active, without embeddings.

Which count a law or a table speaks of decides what comes out (Kaplan et al. 2020 leave embeddings out, Hoffmann et
al. 2022 do not), so all are given together. Parameters are counted once however often they are used; a parameter
that is tied (embedding and head) is an embedding.

Experts: the parameters that one token meets are measured. Of matrices with P parameters together, n tokens that
entered, and F FLOPs forward, each token met the share

.. math:: \rho = \frac{F}{2 P n}

which is k / E where k of E experts take each token, whatever the code that routes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.measure.dispatch import Mode
from isoloss.measure.flops import Counter, counting
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.measure.subject import Subject
from isoloss.runs.finding import Finding

__all__ = ["Experts", "Parameters", "parameters", "probe"]

TABLES = (nn.Embedding, nn.EmbeddingBag)
LOOKUPS = ("aten::embedding", "aten::_embedding_bag", "aten::_embedding_bag_forward_only")
OFF = 0.01


@dataclass(frozen=True)
class Experts:
    """A set of experts of which each token meets some.

    Attributes:
        path: of the module that holds them.
        experts: their number.
        params: parameters of all of them.
        density: share of them that a token met, measured; or as declared; NaN where neither is known.
    """

    path: str
    experts: int
    params: int
    density: float


@dataclass(frozen=True, eq=False)
class Parameters:
    """Numbers of parameters.

    Attributes:
        total: all, each once.
        trainable: of them those that take a gradient.
        embedding: of them in tables that are looked up: tokens, positions, types; a tied head is such a table.
        tied: of ``embedding`` what also serves in a matrix product.
        active: what one token meets: all, but of experts only its share.
        experts: the sets of experts.
        unused: names of parameters that no operator read on these batches.
        buffers: numbers in buffers.
        bytes_params, bytes_buffers: as stored.
        findings: what a reader must know.
        spent: what it cost.
    """

    total: int
    trainable: int
    embedding: int
    tied: int
    active: float
    experts: tuple[Experts, ...]
    unused: tuple[str, ...]
    buffers: int
    bytes_params: int
    bytes_buffers: int
    findings: tuple[Finding, ...]
    spent: Spent

    @property
    def nonembedding(self) -> int:
        """All without embeddings."""
        return self.total - self.embedding

    def measurements(self) -> list[Measurement]:
        """Counts and bytes; of experts, their number and the share that a token meets."""

        def one(name: str, value: float, how: str = "", unit: str = "count", of: str = "") -> Measurement:
            return Measurement(name, value, 0.0, unit, of, how, self.spent)

        out = [
            one("params", self.total, "each once"),
            one("params_trainable", self.trainable, "those that take a gradient"),
            one("params_active", self.active, "experts by the share that a token met on these batches"),
            one("params_nonembedding", self.nonembedding, "without tables of tokens, positions, types"),
            one("params_embedding", self.embedding, f"{self.tied:,} of them tied to a matrix product"),
            one("buffers", self.buffers),
            one("bytes_params", self.bytes_params, "as stored", "byte"),
            one("bytes_buffers", self.bytes_buffers, "as stored", "byte"),
        ]
        if self.experts:
            held = sum(each.params for each in self.experts)
            density = sum(each.density * each.params for each in self.experts) / held
            out += [
                one("experts", max(each.experts for each in self.experts), "of a routed layer"),
                one("expert_density", density, "share of the experts' parameters that a token met", "share"),
            ]
            out += [one("expert_density", each.density, "", "share", each.path) for each in self.experts]
        return out


def parameters(subject: Subject, experts: Sequence[str] = (), per_token: int | None = None) -> Parameters:
    """Count the subject's parameters; one forward pass shows which are looked up, used, and routed.

    Args:
        subject: what is measured. The routing is that of its batches.
        experts: paths of modules that hold experts (``layers.0.mixture``); default: all modules whose own name is
            ``experts``.
        per_token: how many experts take a token, as declared; default: measured.

    Raises:
        ValueError: no module has a path in ``experts``, or a module there holds no experts.

    Example:
        >>> net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
        >>> net[1].weight = net[0].weight
        >>> subject = Subject(net, [(torch.arange(6), torch.arange(6))], nn.functional.cross_entropy)
        >>> found = parameters(subject)
        >>> found.total, found.nonembedding, found.tied
        (40, 0, 40)
    """
    model = subject.model
    with timed() as watch, subject.measuring(), torch.no_grad():
        with counting(model) as counter, _Uses() as uses:
            for inputs, _ in subject.batches:
                subject.predict(inputs)
        sets = tuple(_experts(model, counter, experts, per_token))
        named = list(model.named_parameters())
        tables = {_storage(m.weight) for m in model.modules() if isinstance(m, TABLES)} | uses.looked_up
        in_tables = [p for _, p in named if _storage(p) in tables]
        unused = tuple(name for name, p in named if _storage(p) not in uses.read)
    total = sum(p.numel() for _, p in named)
    buffers = list(model.buffers())
    return Parameters(
        total,
        sum(p.numel() for _, p in named if p.requires_grad),
        sum(p.numel() for p in in_tables),
        sum(p.numel() for p in in_tables if _storage(p) in uses.multiplied),
        total - sum(each.params * (1 - each.density) for each in sets),
        sets,
        unused,
        sum(b.numel() for b in buffers),
        sum(_bytes(p) for _, p in named),
        sum(_bytes(b) for b in buffers),
        tuple(_findings(subject, sets, unused, per_token)),
        watch.spent(),
    )


class _Uses(Mode):
    """Which memory is read at all, looked up in, and multiplied: views of a parameter share its memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: set[int] = set()
        self.looked_up: set[int] = set()
        self.multiplied: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        held = {_storage(x) for x in _tensors((args, tuple((kwargs or {}).values())))}
        if not (hasattr(func, "is_view") and func.is_view):
            self.read |= held
            if name in LOOKUPS:
                self.looked_up.add(_storage(args[0]))
            elif name not in ("aten::copy_", "aten::clone", "aten::_to_copy"):
                self.multiplied |= held
        return func(*args, **(kwargs or {}))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    """Where a tensor's memory is; tensors made of others have none of their own and stand for themselves."""
    return id(tensor) if hasattr(tensor, "__tensor_flatten__") else tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers, or of the tensors that it is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def _experts(
    model: nn.Module, counter: Counter, paths: Sequence[str], declared: int | None
) -> Iterator[Experts]:
    modules = dict(model.named_modules())
    missing = [path for path in paths if path not in modules]
    if missing:
        raise ValueError(
            f"needed paths of modules that hold experts, got {missing[0]!r}. Do: one of named_modules()"
        )
    for path in paths or [name for name in modules if name.rpartition(".")[2] == "experts"]:
        module = modules[path]
        number = _number(module)
        if number < 2:
            if paths:
                raise ValueError(
                    f"needed a list of experts or stacked matrices at {path!r}, got {type(module).__name__}"
                )
            continue
        held = list(module.parameters())
        # Stacked experts keep biases as matrices; a matrix is then what has three dimensions.
        least = 2 if isinstance(module, (nn.ModuleList, nn.ModuleDict)) else 3
        matrices = sum(p.numel() for p in held if p.ndim >= least)
        tokens = counter.entered.get(path.rpartition(".")[0], 0)
        flops = counter.total(backward=False, below=path).flops
        if declared:
            density = declared / number
        else:
            density = min(1.0, flops / (2 * matrices * tokens)) if tokens and flops and matrices else math.nan
        yield Experts(path, number, sum(p.numel() for p in held), density)


def _number(module: nn.Module) -> int:
    """How many experts a module holds: children in a list, or the first length of stacked matrices."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return len(module)
    stacked = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
    return stacked[0] if stacked else 0


def _findings(
    subject: Subject, sets: Sequence[Experts], unused: Sequence[str], declared: int | None
) -> Iterator[Finding]:
    held = tuple(f"{each.path}." for each in sets)
    unused = [name for name in unused if not name.startswith(held)]  # an expert may well get no token
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        yield Finding(
            "params-unused", "warning", (), None,
            f"no operator reads {', '.join(unused[:3])}{more} on these batches",
            "they are counted, and cost memory, but do nothing here",
            "remove them, or measure on batches that need them",
        )  # fmt: skip
    packed = [name for name, module in subject.model.named_modules() if hasattr(module, "_packed_params")]
    if packed:
        yield Finding(
            "params-packed", "warning", (), None,
            f"{len(packed)} modules keep quantised weights in packed objects, {packed[0]} first",
            "torch does not list those weights as parameters, so no count and no size holds them",
            "count before packing, and take bytes from the stored file",
        )  # fmt: skip
    config = subject.model.__dict__.get("config")
    said = getattr(config, "num_experts_per_tok", None)
    for each in sets:
        if math.isnan(each.density):
            yield Finding(
                "experts-not-measured", "warning", (), None,
                f"{each.path}: no counted product shows how many of {each.experts} experts a token meets",
                "active parameters are not known",
                "say parameters(subject, per_token=k)",
            )  # fmt: skip
        elif said and not declared and abs(each.density * each.experts - said) > OFF * said:
            yield Finding(
                "experts-not-as-declared", "warning", (), None,
                f"{each.path}: a token meets {each.density * each.experts:.3g} of {each.experts} experts, the configuration says {said}",
                "the code computes experts that are not used, or drops tokens",
                "look at the routing; params_active is what was measured",
            )  # fmt: skip


def probe(subject: Subject) -> Parameters:
    """:func:`parameters` with experts found by name."""
    return parameters(subject)

"""Compresses a model stage by stage: calibrate a block on what the compressed blocks before it give, encode it, go on.

The order is that of GPTQ (Frantar et al. 2023, arXiv:2210.17323): a layer is fitted to the inputs that it will get
from compressed layers, so that later ones make up for errors of earlier ones. Memory: the model, the inputs of one
block for all batches, and one stage's statistics.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoloss.compress import formats, solvers
from isoloss.compress.activations import Activations, Rounded, attach, ranges, samples
from isoloss.compress.blockwise import Blockwise, Example, Inputs, reconstruct, run
from isoloss.compress.compressed import Compressed, plain_tensors
from isoloss.compress.distribution import Correction, corrected, norms
from isoloss.compress.formats import Encoded
from isoloss.compress.layers import Layer, find
from isoloss.compress.originals import Originals, inputs_of
from isoloss.compress.predictions import Predictions
from isoloss.compress.products import Products, products
from isoloss.compress.recipe import AS_ASKED, Choice, Choices, Identity, Outcome, Recipe, chosen, identity
from isoloss.compress.relaxed import Part, learnable
from isoloss.compress.replay import Plan, Stage, calibrating, copied, digest, ending, remembering, survey
from isoloss.compress.resume import Finished, Stages
from isoloss.compress.rotations import Rotated
from isoloss.compress.scales import input_scales
from isoloss.compress.statistics import Collector, Statistics, counted, refuse_unreached
from isoloss.compress.tails import Tails, outside
from isoloss.compress.tuning import Tuning, originals, tune
from isoloss.errors import NoAnswer
from isoloss.measure.subject import Subject, call

Progress = Callable[[str, int, int], None]
Note = tuple[str, str]  # what, of which layer
NUMBERS = 1 << 24  # weights of a stage where nothing is calibrated
NAMED = 4  # layers that a note names
UNREACHED = "no calibration data came to them"
LEARNED = "learned anew for the output of their block"
LEFT = "learning for the output of their block won nothing, so they are as the solver left them"
UNDECIDED = 0.01  # share of roundings beyond which a note says so
LOOKED_UP = "they are looked up and multiply nothing"


def compress(
    model: nn.Module,
    choices: Choices,
    batches: Sequence[Any] | None = None,
    *,
    folder: str | Path | None = None,
    fisher: Mapping[str, Tensor] | None = None,
    within: Literal["block", "layer"] = "block",
    unreached: Literal["refuse", "nearest"] = "refuse",
    blockwise: Blockwise | None = None,
    subject: Subject | None = None,
    activations: Activations | None = None,
    rotated: Rotated | None = None,
    tuning: Tuning | None = None,
    multiply: Products = "fp32",
    progress: Progress | None = None,
    known_as: Identity | None = None,
) -> Compressed:
    """Compress a model's weights, stage by stage.

    The model itself is changed, so that there is one copy of it: when this returns it has the decoded weights. When it
    raises, some layers have theirs and others not.

    Args:
        model: any module; what :func:`isoloss.compress.layers.find` finds in it.
        choices: format and solver of all layers, or by name or pattern (:func:`isoloss.compress.recipe.chosen`).
        batches: calibration inputs: of each batch a tensor, a tuple of arguments or a dict of keywords; of padded ones
            what ``attention_mask`` leaves out does not count. They are gone through several times. None: nothing is calibrated, for solvers that need no data.
        folder: where finished stages are kept. The same call with the same folder goes on after them, to the same
            bits; it can be deleted when the model is saved.
        fisher: layer -> mean squared gradient (:func:`isoloss.compress.fisher.fisher`), for solvers that need it.
        within: ``block``: layers of a block are calibrated together, in one pass; ``layer``: one after another, each
            on what the compressed ones before it give, in a pass for each.
        unreached: what to do with a layer that no data come to and whose solver needs them: ``refuse``, or
            ``nearest`` to round it, which a note says.
        blockwise: once a block's layers are encoded, learn their roundings and scales anew, for the output of the block
            (:class:`isoloss.compress.blockwise.Blockwise`).
        subject: the model with its loss, these batches and their targets, for what ``blockwise`` reads of them. None: the
            first tensor that the model gives holds class scores, whose divergence stands for the loss.
        activations: afterwards the model rounds the inputs of its layers
            (:class:`isoloss.compress.activations.Activations`); static ranges are those of the compressed model on the
            calibration data.
        rotated: what :func:`isoloss.compress.rotations.rotate` said, where the model was rotated before; for the recipe.
        tuning: at last, tune what codes stand for, for the predictions of the whole model
            (:class:`isoloss.compress.tuning.Tuning`). These are kept from before, for all batches.
        multiply: how matrices are multiplied while calibration data go through the model; ``bf16`` is faster on some
            processors (:func:`isoloss.compress.products.products`).
        progress: (what is being done, layers done, layers in all).
        known_as: which model this is, for the recipe; found out where not given.

    Raises:
        ValueError: a weight that is not finite, an unknown layer, no batch, data or Fisher that a solver needs are not
            given, inputs that are not finite; a folder of another compression.
        TypeError: a format that the solver cannot fill.
        NoAnswer: no data came to a layer.

    Example:
        >>> from isoloss.compress.recipe import Choice
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> made = compress(net, Choice("int4", "gptq"), [torch.randn(32, 8)])
        >>> made.bits, made.weights  # 4 bits each, and a scale of 16 for each of 20 outputs
        (1088, 192)
        >>> sorted(made.recipe.left)
        ['0.bias', '2.bias']
    """
    started = time.perf_counter()
    found = find(model)
    selected = chosen(found.layers, choices)
    work = _Work(
        model,
        {},
        None if batches is None else list(batches),
        fisher or {},
        within,
        unreached,
        blockwise,
        subject,
        multiply,
    )
    if activations is not None and activations.when == "static" and batches is None:
        raise ValueError("static ranges of inputs need calibration data, got none. Give some, or when=token")
    if tuning is not None and batches is None:
        raise ValueError("tuning needs calibration data, got none")
    for layer in found.layers:
        choice = selected[layer.name]
        if choice is not None:
            work.wanted[layer.name] = (layer, choice)
    work.refuse()
    outcomes: dict[str, Outcome] = {}
    encoded: dict[str, Encoded] = {}
    notes: list[Note] = [] if rotated is None else [(note, "") for note in rotated.notes]
    predictions = None if tuning is None else Predictions(work.batches or (), subject)
    before = [] if predictions is None else originals(model, predictions)
    with calibrating(model):
        plan = work.plan()
        notes += [(note, "") for note in plan.notes]
        keep = Stages(Path(folder), work.fingerprint(plan)) if folder is not None else None
        for finished in work.stages(plan, keep, progress):
            encoded |= finished.encoded
            outcomes |= finished.outcomes
            notes += finished.notes
    order = list(work.wanted)
    encoded = {name: encoded[name] for name in order}
    if predictions is not None:
        tuned = tune(model, encoded, predictions, before, tuning, progress)
        encoded = dict(tuned.encoded)
        notes.append((tuned.note, ""))
    inputs = None if activations is None else _rounded(model, activations, work.batches, subject, progress)
    if inputs is not None:
        notes += [(f"inputs are not rounded: {why}", name) for name, why in inputs.left.items()]
    plain, tied = plain_tensors(model, {name: work.wanted[name][0] for name in order})
    left = found.left | {
        layer.path if layer.index is None else f"{layer.path}.{layer.index}": AS_ASKED
        for layer in found.layers
        if layer.name not in work.wanted
    }
    recipe = Recipe(
        known_as or identity(model),
        {name: outcomes[name] for name in order},
        left,
        tied,
        _joined(notes),
        None if rotated is None else rotated.how,
        blockwise,
        inputs,
        tuning,
    )
    return Compressed(encoded, plain, recipe, time.perf_counter() - started)


def _rounded(
    model: nn.Module,
    how: Activations,
    batches: Sequence[Any] | None,
    subject: Subject | None,
    progress: Progress | None,
) -> Rounded:
    """Inputs of the compressed model, rounded from now on."""
    if how.when == "token":
        return attach(model, how)
    if how.range == "prediction":
        scales = input_scales(model, how, batches or (), subject, progress=progress)
        return attach(model, how, {name: found for name, (found, _) in scales.items()})
    if progress is not None:
        progress("ranges of inputs", 0, 0)
    return attach(model, how, ranges(samples(model, find(model).layers, batches or ()), how))


@dataclass
class _Work:
    """One compression: what is wanted, and what is remembered between stages."""

    model: nn.Module
    wanted: dict[str, tuple[Layer, Choice]]
    batches: list[Any] | None
    fisher: Mapping[str, Tensor]
    within: str
    unreached: str
    blockwise: Blockwise | None
    subject: Subject | None = None
    multiply: Products = "fp32"
    tails: Tails | None = None
    early: dict[str, Statistics] = field(default_factory=dict)
    outputs: list[dict[int, Any]] = field(default_factory=list)
    remembered: int = 0

    def refuse(self) -> None:
        """Say what is wrong before anything is changed."""
        if self.batches is not None and not self.batches:
            raise ValueError("needed at least one calibration batch, got none")
        with products(self.multiply):
            pass  # refuses other words
        if self.blockwise is not None and self.batches is None:
            raise ValueError("block-wise learning needs calibration data, got none")
        if self.blockwise is not None and self.blockwise.correct and not norms([self.model]):
            raise ValueError(
                "correcting the inputs of blocks needs batch norms with running statistics, and this model has none: layer "
                "norms keep no statistics of their training data. Leave correct at 0"
            )
        if self.subject is not None and self.batches is not None:
            if self.subject.model is not self.model:
                raise ValueError("the subject is of another model. Make it of the one that is compressed")
            Predictions(self.batches, self.subject)
        for name, (layer, choice) in self.wanted.items():
            if not bool(torch.isfinite(layer.tensor).all()):
                raise ValueError(
                    f"the weight of {name} holds NaN or infinite numbers. Load it anew, or leave it out"
                )
            needs = solvers.get(choice.solver).needs
            if self.batches is None and needs & {"second", "counts"}:
                raise ValueError(f"the solver {choice.solver} of {name} needs calibration data, got none")
            if "fisher" in needs and name not in self.fisher:
                raise ValueError(
                    f"the solver {choice.solver} of {name} needs squared gradients, got none. Make them with "
                    "isoloss.compress.fisher.fisher and give them as fisher="
                )
        for choice in {choice for _, choice in self.wanted.values()}:
            _try(choice)

    @property
    def layers(self) -> list[Layer]:
        return [layer for layer, _ in self.wanted.values()]

    def plan(self) -> Plan:
        """In which stages the layers are done."""
        if self.batches is not None:
            return survey(self.model, self.layers, self.batches[0])
        stages: list[Stage] = []
        own: list[Layer] = []
        for layer in self.layers:
            own.append(layer)
            if sum(one.tensor.numel() for one in own) >= NUMBERS or layer is self.layers[-1]:
                stages.append(Stage(own[0].name, (tuple(own),), 0, False))
                own = []
        return Plan(tuple(stages), (), "last", frozenset())

    def fingerprint(self, plan: Plan) -> str:
        """Of all that decides the result."""
        found = hashlib.sha256()
        said = [(name, choice.format, choice.solver) for name, (_, choice) in self.wanted.items()]
        steps = [[[layer.name for layer in step] for step in stage.steps] for stage in plan.stages]
        found.update(repr((said, steps, self.within, self.unreached, self.blockwise, self.multiply)).encode())
        found.update(digest(dict(self.model.state_dict())).encode())
        found.update(digest(self.batches).encode())
        if self.subject is not None and self.blockwise is not None and self.blockwise.loss != "mse":
            found.update(digest([targets for _, targets in self.subject.batches]).encode())
        found.update(
            digest({name: self.fisher[name] for name in self.wanted if name in self.fisher}).encode()
        )
        return found.hexdigest()

    def stages(self, plan: Plan, keep: Stages | None, progress: Progress | None) -> Iterator[Finished]:
        """Go through the stages; each is in the model when it is given."""
        before = [keep.read(i) if keep is not None else None for i in range(len(plan.stages))]
        last = max((i for i, stage in enumerate(plan.stages) if stage.steps), default=-1)
        todo = [
            layer
            for stage, done in zip(plan.stages, before, strict=True)
            for layer in stage.layers
            if done is None and layer.name in plan.several
        ]
        if todo:
            # Used in several stages: measured in all of them before the first is changed.
            self.early = self._collect(todo, lambda i: nullcontext())
        self.outputs = [{} for _ in self.batches or ()]
        originals = Originals(self.model, plan, self.batches or ()) if self.blockwise is not None else None
        if self.blockwise is not None and self.blockwise.loss != "mse":
            predictions = Predictions(self.batches or (), self.subject)
            self.tails = Tails(self.model, plan, predictions, outside(self.model, plan), self.blockwise.seed)
        count = 0
        for i, stage in enumerate(plan.stages[: last + 1]):
            if progress is not None:
                progress(stage.name, count, len(self.wanted))
            full = originals.through(stage) if originals is not None and stage.block else ()
            done = before[i]
            if done is None:
                done = self._stage(plan, stage, full, originals)
                if keep is not None and stage.steps:
                    keep.write(i, done)
            else:
                for name, one in done.encoded.items():
                    self.wanted[name][0].put(one.decode())
            count += len(stage.layers)
            later = zip(plan.stages[i + 1 : last + 1], before[i + 1 : last + 1], strict=True)
            following = next((own for one, own in later if own is None or one.block), done)
            if stage.block and following is None:  # a finished block after this one does it for both
                self._remember(plan, stage)
            yield done
        if progress is not None:
            progress("done", count, len(self.wanted))

    def _stage(
        self, plan: Plan, stage: Stage, full: Sequence[tuple[Inputs, Any]], originals: Originals | None
    ) -> Finished:
        steps = stage.steps if self.within == "layer" else ((stage.layers,) if stage.steps else ())
        encoded: dict[str, Encoded] = {}
        outcomes: dict[str, Outcome] = {}
        notes: list[Note] = []
        parts: list[Part] = []
        facts: dict[str, Statistics] = {}
        for step in steps:
            statistics = {layer.name: self.early[layer.name] for layer in step if layer.name in self.early}
            open_ = [layer for layer in step if layer.name not in statistics]
            if self.batches is not None and open_:
                statistics |= self._collect(open_, lambda i: self._until(plan, stage, i, None))
            for layer in step:
                weight = layer.matrix()
                one, outcome, said = self._encode(layer, statistics.get(layer.name))
                if full and layer.name not in plan.several:
                    parts.append(Part(layer, weight, one))
                encoded[layer.name], outcomes[layer.name] = one, outcome
                notes += said
                layer.put(one.decode())
            facts |= statistics
        learned, said = self._learned(
            plan, stage, [part for part in parts if learnable(part)], full, originals
        )
        notes += said
        for part in parts:
            name = part.layer.name
            if name in learned:
                encoded[name] = learned[name]
                error, of = relative_error(
                    part.weight, learned[name].decode().to(part.weight), facts.get(name)
                )
                outcomes[name] = replace(outcomes[name], error=error, error_of=of)
                part.layer.put(learned[name].decode())
        return Finished(encoded, outcomes, tuple(notes))

    def _learned(
        self,
        plan: Plan,
        stage: Stage,
        parts: Sequence[Part],
        full: Sequence[tuple[Inputs, Any]],
        originals: Originals | None,
    ) -> tuple[Mapping[str, Encoded], list[Note]]:
        """Layers of a block learned together, and what to say of it."""
        if not parts or self.blockwise is None or originals is None:
            return {}, []
        examples, modules = [], plan.blocks[stage.done].modules
        for i, (inputs, target) in enumerate(full):
            give = partial(self._gave, plan, stage.done, i)
            batch = (self.batches or ())[i]
            came = inputs_of(self.model, plan, stage.done, batch, give)
            weights, behind = None, None
            if self.blockwise.correct and norms(modules):
                inputs = corrected(modules, inputs, Correction(self.blockwise.correct))
                target = run(modules, inputs)
            if self.tails is not None and self.blockwise.loss == "fisher":
                weights = self.tails.squares(stage.done, i, target, originals.outputs[i].__getitem__)
            elif self.tails is not None:
                own = self.tails.predicted(stage.done, i, target, originals.outputs[i].__getitem__)
                behind = partial(self.tails.difference, stage.done, i, own, give)
            examples.append(Example(came, inputs, target, counted(batch), weights, behind))
        made = reconstruct(modules, parts, examples, self.blockwise)
        names = [part.layer.name for part in parts]
        if not made.after < made.before:
            return {}, [(LEFT, name) for name in names]
        notes = [(LEARNED, name) for name in names]
        if made.undecided > UNDECIDED:
            notes += [
                (f"{made.undecided:.0%} of the roundings were not decided: more steps would help", name)
                for name in names
            ]
        return {name: _on_cpu(made.encoded[name]) for name in names}, notes

    def _collect(
        self, layers: Sequence[Layer], partly: Callable[[int], AbstractContextManager[None]]
    ) -> dict[str, Statistics]:
        """Statistics of layers over all batches, as far as the model runs in ``partly``."""
        collector = Collector(layers)
        for i, inputs in enumerate(self.batches or ()):
            with collector.watching(counted(inputs)), partly(i), products(self.multiply):
                call(self.model, inputs)
        if self.unreached == "refuse":
            needing = [one for one in layers if solvers.get(self.wanted[one.name][1].solver).needs]
            refuse_unreached(one.name for one in needing if not collector.reached(one))
        return collector.statistics()

    @contextmanager
    def _until(self, plan: Plan, stage: Stage, i: int, take: Callable[[Any], None] | None) -> Iterator[None]:
        """The model runs from the last finished block to the end of a stage, on batch ``i``."""

        give = partial(self._gave, plan, stage.done, i)
        with ending(plan, stage, take), remembering(plan.blocks[: stage.done], give):
            yield

    def _gave(self, plan: Plan, done: int, i: int, block: int) -> Any:
        """What stands for the output of a block on batch ``i`` when ``done`` are finished."""
        kept = plan.kept(block, done)
        if kept not in self.outputs[i]:
            raise ValueError(
                f"{plan.blocks[kept].name} ran on the first calibration batch and not on number {i}. Give batches "
                "that take the same way through the model"
            )
        return self.outputs[i][kept]

    def _remember(self, plan: Plan, stage: Stage) -> None:
        """Keep what a block that is finished gives, and no more than is needed to go on."""
        done = stage.done + 1
        needed = {plan.kept(block, done) for block in range(done)}
        for i, inputs in enumerate(self.batches or ()):
            own = self.outputs[i]
            with ExitStack() as stack:
                if self.remembered == stage.done:
                    way = self._until(plan, stage, i, partial(own.__setitem__, stage.done))
                else:  # earlier stages were read from their files: all blocks up to here run once
                    way = ending(plan, stage, partial(own.__setitem__, stage.done))
                    for block in needed - {stage.done}:
                        hook = plan.blocks[block].modules[-1].register_forward_hook(_noting(own, block))
                        stack.callback(hook.remove)
                stack.enter_context(way)
                stack.enter_context(products(self.multiply))
                call(self.model, inputs)
            self.outputs[i] = {block: value for block, value in own.items() if block in needed}
        self.remembered = done

    def _encode(self, layer: Layer, statistics: Statistics | None) -> tuple[Encoded, Outcome, list[Note]]:
        """A layer's encoded weight, and what was done."""
        started = time.perf_counter()
        choice = self.wanted[layer.name][1]
        notes: list[Note] = []
        if layer.name in self.fisher:
            bare = statistics or Statistics(layer.name, 0)
            statistics = replace(bare, fisher=self.fisher[layer.name])
        solver = solvers.get(choice.solver)
        if any(getattr(statistics, need, None) is None for need in solver.needs):
            why = UNREACHED if statistics is None or not statistics.count else LOOKED_UP
            notes.append((f"{why}, so they are rounded to nearest and not by {solver.spec}", layer.name))
            solver = solvers.get("nearest")
        weight = layer.matrix()
        try:
            one = _on_cpu(solver.solve(weight, formats.get(choice.format), statistics))
        except ValueError as why_not:
            raise ValueError(f"{layer.name}: {why_not}") from why_not
        except NoAnswer as why_not:
            raise NoAnswer(f"{layer.name}: {why_not.reason}", why_not.needed) from why_not
        error, of = relative_error(weight, one.decode().to(weight), statistics)
        notes += [(what, layer.name) for what in _cautions(statistics)]
        outcome = Outcome(
            layer.path,
            layer.kind,
            layer.shape,
            str(layer.tensor.dtype).removeprefix("torch."),
            one.format.spec,
            solver.spec,
            one.bits,
            error,
            of,
            0 if statistics is None else statistics.count,
            time.perf_counter() - started,
        )
        return one, outcome, notes


def relative_error(weight: Tensor, decoded: Tensor, statistics: Statistics | None) -> tuple[float, str]:
    """Squared error over the square of the whole, and of what: ``output``, ``lookup`` or ``weight``.

    Example:
        >>> relative_error(torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), None)
        (0.5, 'weight')
    """
    off = weight - decoded
    if statistics is not None and statistics.second is not None:
        second, of = statistics.second, "output"
        lost = solvers.output_error(weight, decoded, second)
        whole = solvers.output_error(weight, torch.zeros_like(weight), second)
    elif statistics is not None and statistics.counts is not None:
        times = statistics.counts.to(weight)[:, None]
        lost, whole, of = (
            float((off.square() * times).sum()),
            float((weight.square() * times).sum()),
            "lookup",
        )
    else:
        lost, whole, of = float(off.square().sum()), float(weight.square().sum()), "weight"
    return (lost / whole if whole > 0 else 0.0), of


def _try(choice: Choice) -> None:
    """Refuse a format that the solver cannot fill before anything is run."""
    weight = torch.linspace(-1, 1, 64).reshape(4, 16)
    ends = torch.ones(16)
    facts = Statistics("trial", 64, torch.eye(16)[None], 0 * ends, -ends, ends, torch.ones_like(weight))
    try:
        solvers.get(choice.solver).solve(weight, formats.get(choice.format), facts)
    except TypeError as error:
        raise TypeError(f"the solver {choice.solver} cannot fill {choice.format}: {error}") from error
    except (ValueError, NoAnswer):
        pass  # of this small weight, not of the model's


def _noting(own: dict[int, Any], block: int) -> Callable[[Any, Any, Any], None]:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        own[block] = copied(output)

    return note


def _on_cpu(one: Encoded) -> Encoded:
    return Encoded(one.format, one.shape, {name: part.cpu() for name, part in one.parts.items()})


def _cautions(statistics: Statistics | None) -> Iterator[str]:
    if statistics is None or statistics.second is None:
        return
    groups, width, _ = statistics.second.shape
    if statistics.low is not None and statistics.high is not None:
        same = int((statistics.low == statistics.high).sum())
        if same:
            yield f"of {groups * width} inputs, {same} never change on the calibration data"
    if statistics.count < width:
        yield "they saw fewer rows than they have inputs: more calibration data would help"


def _joined(notes: Sequence[Note]) -> tuple[str, ...]:
    """A sentence for each thing to say, with the layers that it is said of."""
    of: dict[str, list[str]] = {}
    for what, name in notes:
        of.setdefault(what, []).append(name)
    out = []
    for what, names in of.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        out.append(f"{', '.join(names[:NAMED])}{more}: {what}" if names[0] else what)
    return tuple(out)

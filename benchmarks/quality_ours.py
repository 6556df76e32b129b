"""Methods of the project in the quality table, by their words.

``gptq@int4/g128/asym``: a solver and a format for all layers. ``mixed@3.2``: what ``isoloss compress --bits`` does, a
format for each layer, tables and integers to choose from; ``mixed(lut-feedback)@3.2``: out of one solver's ladder;
``mixed(ranged)@3.2``: as ``mixed``, with the ranges of integers searched. ``tuned`` behind it: scales and tables are then learned for the
output of each block; ``learned``: roundings too; ``taught``: at last they are learned for the output of the whole model;
``grouped8``: convolutions in groups have eight bits.
"""

from __future__ import annotations

import copy
import functools
import re
import time
from dataclasses import dataclass, replace

from torch import nn

from benchmarks.quality_cases import Case
from isoloss.compress import Choice, compress, find, solvers
from isoloss.compress.blockwise import Blockwise
from isoloss.compress.candidates import Candidates, candidates, ladder
from isoloss.compress.fisher import fisher
from isoloss.compress.mixed import best, words
from isoloss.compress.sensitivity import score
from isoloss.compress.sensitivity.scores import Scores
from isoloss.compress.tuning import Tuning
from isoloss.measure.subject import Subject, examples_of

SQUARED = 128  # examples for squared gradients and sensitivities
LEARNING = {
    "tuned": Blockwise(rounding=False, drop=0.0),
    "learned": Blockwise(drop=0.0),
}
RANGED = {f"{name}/asym": f"{name}/asym/mse2" for name in ("int2/g64", "int3/g128", "int4/g128", "int5")}


@dataclass(frozen=True, eq=False)
class Made:
    """A compressed model, its stored bits a weight, CPU seconds, and what is to be said."""

    model: nn.Module
    bits: float
    seconds: float
    note: str


def run(case: Case, method: str, draw: int) -> Made:
    """Compress a copy of the model of a case.

    Raises:
        ValueError: words that name no method.
    """
    match = re.fullmatch(
        r"((?P<mixed>mixed(?:\((?P<of>[\w-]+)\))?)|[\w-]+(?:\([^()]*\))?)@(?P<to>\S+)"
        r"(?P<way> tuned| learned| grouped8)?(?P<taught> taught)?",
        method,
    )
    if match is None:
        raise ValueError(f"needed SOLVER@FORMAT or mixed@BITS, got {method!r}")
    subject = _calibration(case, draw)
    model = copy.deepcopy(case.model)
    subject = replace(subject, model=model)
    inputs = [x for x, _ in subject.batches]
    began = started = time.process_time()
    way = (match["way"] or "").strip()
    how = replace(LEARNING[way], steps=case.steps) if way in LEARNING else None
    choices: dict[str, Choice | None] = dict.fromkeys(case.kept)
    note, squares = "", None
    if match["mixed"]:
        found, scores, spent = _tried(case, match["of"], draw)
        mixed = best(found, scores, bits=float(match["to"]))
        choices |= found.choices(mixed.plan)
        note = words(mixed.plan)
        began += time.process_time() - started - spent  # once for all sizes, counted for each
    else:
        if way == "grouped8":
            choices |= {one.name: Choice("int8/asym", match[1]) for one in case.layers() if one.groups > 1}
        choices["*"] = Choice(match["to"], match[1])
        if "fisher" in solvers.get(match[1]).needs:
            layers = [layer for layer in find(model).layers if layer.name not in case.kept]
            squares = fisher(_few(subject), layers)
    blind = how is None and not match["taught"] and not match["mixed"] and not solvers.get(match[1]).needs
    taught = Tuning() if match["taught"] else None
    made = compress(
        model,
        choices,
        None if blind else inputs,
        fisher=squares,
        blockwise=how,
        tuning=taught,
        subject=subject,
    )
    return Made(model, made.bits_per_weight, time.process_time() - began, note)


@functools.cache
def _calibration(case: Case, draw: int) -> Subject:
    return case.calibration(draw)


@functools.cache
def _tried(case: Case, solver: str | None, draw: int) -> tuple[Candidates, Scores, float]:
    """Every layer in every format of the ladder and their scores, once for all sizes; CPU seconds of it."""
    began = time.process_time()
    subject = _calibration(case, draw)
    layers = case.layers()
    tried = ladder(None if solver == "ranged" else solver)
    if solver == "ranged":
        tried = tuple(replace(one, format=RANGED.get(one.format, one.format)) for one in tried)
    found = candidates(case.model, layers, tried, [x for x, _ in subject.batches])
    scores = score("block-fisher", _few(subject), found)
    return found, scores, time.process_time() - began


def _few(subject: Subject) -> Subject:
    """The first examples, as many as gradients are taken of."""
    count, kept = 0, []
    for batch in subject.batches:
        if count >= SQUARED:
            break
        kept.append(batch)
        count += examples_of(batch)
    return replace(subject, batches=kept)

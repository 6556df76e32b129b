"""Measured variants of a model as a table of runs: one row for each, the model itself among them.

The columns are those that the rest of isoloss reads: :mod:`isoloss.planning.worth` finds the frontier and what
compression is worth, a law of ``bits_post`` can be fitted to them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_flatten

from isoloss.compress.candidates import Candidates
from isoloss.compress.paired import paired
from isoloss.compress.recipe import Choice
from isoloss.compress.uniform import usual
from isoloss.measure.subject import Subject
from isoloss.planning.frontier import ORIGINAL
from isoloss.runs import Runs, from_rows, read

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Variant:
    """A choice of a format for each layer.

    Attributes:
        name: of the row.
        candidates: that it is made of.
        plan: layer -> format.
        foretold: rise of the loss by a sensitivity; NaN where there is none.
    """

    name: str
    candidates: Candidates
    plan: Mapping[str, str]
    foretold: float = float("nan")

    @property
    def solver(self) -> str:
        """Of its layers; several with a plus between them."""
        choices = self.candidates.choices(self.plan).values()
        return "+".join(dict.fromkeys(choice.solver for choice in choices if choice is not None))


def words(plan: Mapping[str, str]) -> str:
    """How many layers have which format.

    Example:
        >>> words({"a": "int4", "b": "int3", "c": "int4"})
        '1 x int3, 2 x int4'
    """
    return ", ".join(f"{count} x {name}" for name, count in sorted(Counter(plan.values()).items()))


def uniforms(
    candidates: Candidates, foretold: Callable[[Mapping[str, str]], float] | None = None
) -> list[Variant]:
    """Every format for all layers, from the smallest to the largest."""
    names = next(iter(candidates.of.values()))
    plans = sorted((candidates.uniform(name) for name in names), key=candidates.bits)
    return [
        Variant(
            next(iter(plan.values())), candidates, plan, float("nan") if foretold is None else foretold(plan)
        )
        for plan in plans
    ]


def table(
    subject: Subject, variants: Sequence[Variant], data: str = "", progress: Progress | None = None
) -> Runs:
    """Variants measured on the same examples, and the model itself in the last row.

    Args:
        subject: model, data on which the loss is measured, loss.
        variants: of this model.
        data: what the subject's data are called.
        progress: (what, passes done, passes in all).

    Returns:
        Columns ``model``, ``data``, ``variant`` (``original`` in the last row), ``solver``, ``formats`` (how many layers have
        which), ``params``, ``weights`` (that are encoded), ``bits_post`` (stored for each of these), ``bytes`` (of all tensors),
        ``loss``, ``loss_sd`` (its standard error over the data), ``rise`` (of the loss above the model's own), ``rise_se``,
        ``difference`` (of the predictions), ``foretold``.

    Raises:
        ValueError: no variants, or those of another model.

    Example:
        >>> import torch
        >>> from isoloss.compress import find
        >>> from isoloss.compress.candidates import candidates
        >>> from isoloss.measure.criteria import CrossEntropy
        >>> net = torch.nn.Linear(8, 2)
        >>> tried = candidates(net, find(net).layers, [Choice("int8"), Choice("int2")])
        >>> x = torch.randn(9, 8)
        >>> runs = table(Subject(net, [(x, net(x).argmax(1))], CrossEntropy()), uniforms(tried))
        >>> runs["variant"].tolist(), runs["bytes"].tolist()
        (['int2', 'int8', 'original'], [16.0, 28.0, 72.0])
    """
    if not variants:
        raise ValueError("needed at least one variant, got none")
    modules = set(subject.model.modules())
    if any(layer.module not in modules for one in variants for layer in one.candidates.layers):
        raise ValueError("the variants are of another model. Make them of the subject's own")
    found = paired(
        subject,
        {str(i): partial(one.candidates.applied, one.plan) for i, one in enumerate(variants)},
        progress,
    )
    common = {"model": subject.name, "data": data}
    params = sum(parameter.numel() for parameter in subject.model.parameters())
    rows = []
    for i, one in enumerate(variants):
        loss, rise, moved = (
            found.mean(found.loss[str(i)]),
            found.rise(str(i)),
            found.mean(found.difference[str(i)]),
        )
        bits, weights = one.candidates.bits(one.plan), one.candidates.weights
        rows.append(
            {
                **common, "variant": one.name, "solver": one.solver, "formats": words(one.plan), "params": params,
                "weights": weights, "bits_post": bits / weights, "bytes": bits // 8 + one.candidates.plain_bytes,
                "loss": loss.value, "loss_sd": loss.se, "rise": rise.value, "rise_se": rise.se,
                "difference": moved.value, "foretold": one.foretold,
            }
        )  # fmt: skip
    own, before = variants[-1].candidates, found.mean(found.before)
    stored = sum(layer.tensor.numel() * layer.tensor.element_size() for layer in own.layers)
    rows.append(
        {
            **common, "variant": ORIGINAL, "solver": "", "formats": ORIGINAL, "params": params, "weights": own.weights,
            "bits_post": 8 * stored / own.weights, "bytes": stored + own.plain_bytes, "loss": before.value,
            "loss_sd": before.se, "rise": 0.0, "rise_se": 0.0, "difference": 0.0, "foretold": 0.0,
        }
    )  # fmt: skip
    return from_rows(rows)


def fingerprint(subject: Subject) -> str:
    """Eight letters that differ where the data do: losses are compared on the same data alone.

    Example:
        >>> from isoloss.measure.criteria import CrossEntropy
        >>> net, batch = torch.nn.Linear(2, 2), (torch.ones(3, 2), torch.tensor([0, 1, 1]))
        >>> fingerprint(Subject(net, [batch], CrossEntropy()))
        '3a567b4a'
    """
    found = hashlib.sha256()
    for leaf in tree_flatten(list(subject.batches))[0]:
        if isinstance(leaf, torch.Tensor):
            found.update(str((leaf.dtype, tuple(leaf.shape))).encode())
            found.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()[:8]


def append(path: str | Path, runs: Runs) -> int:
    """Add rows to the table in a CSV file, which keeps those that it has; all or nothing.

    A row that stands there already, number for number, is not added again.

    Args:
        path: of the file; it is made if there is none.
        runs: the rows.

    Returns:
        How many rows were added.

    Raises:
        ValueError: the file is no table, or cannot be written.
    """
    if not Path(path).exists():
        runs.to_csv(path)
        return len(runs)
    old = read(path)
    known = [_cells(old, i, list(runs.columns)) for i in range(len(old))]
    new = [i for i in range(len(runs)) if _cells(runs, i, list(runs.columns)) not in known]
    names = list(dict.fromkeys([*old.columns, *runs.columns]))
    parts = ((old, range(len(old))), (runs, new))
    from_rows(
        [dict(zip(names, _cells(part, i, names), strict=True)) for part, rows in parts for i in rows]
    ).to_csv(path)
    return len(new)


def _cells(runs: Runs, row: int, names: Sequence[str]) -> list[object]:
    """Of one row; None where it has none."""
    out: list[object] = []
    for name in names:
        value = runs[name][row].item() if name in runs else None
        missing = value is None or value == "" or (isinstance(value, float) and np.isnan(value))
        out.append(None if missing else value)
    return out


def choices(text: str, solver: str | None = None) -> list[Choice]:
    """``int4/g128/asym, table3@lut-feedback``: formats with commas between them, each with a solver of its own if named.

    The others take ``solver``; without one what is :func:`~isoloss.compress.uniform.usual`.

    Example:
        >>> choices("int4, table3@lut-feedback, int3@gptq(damp=0.05, order=natural)", "nearest")[1:]
        [Choice(format='table3', solver='lut-feedback'), Choice(format='int3', solver='gptq(damp=0.05, order=natural)')]
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    found = []
    for part in parts:
        format, _, own = part.strip().partition("@")
        found.append(Choice(format.strip(), own.strip() or solver or usual(format.strip())))
    return found

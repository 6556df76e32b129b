"""What ``isoloss compress`` does where each layer gets a format of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from isoloss.cli.show import Style, Table, number, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from isoloss.cli.compress_ways import Job
    from isoloss.compress.calibration import Prepared
    from isoloss.compress.candidates import Candidates
    from isoloss.compress.forecast_mixed import MixedForecast
    from isoloss.compress.layers import Layer
    from isoloss.compress.mixed import Mixed
    from isoloss.compress.recipe import Choice
    from isoloss.compress.sensitivity.scores import Scores

    Tell = Callable[[str, int, int], None]

USUAL = "block-fisher"
ALL = "all"
POINTS = 8  # of a frontier
# Method -> from layers and from candidates: gradients of all examples, and measurements of the loss, about.
PASSES: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "hawq": lambda layers, tried: (60 * layers, 0),
    "hawq-v2": lambda layers, tried: (96, 0),
    "fisher": lambda layers, tried: (1, 0),
    "output-error": lambda layers, tried: (0, 0),
    "kronecker": lambda layers, tried: (1, 0),
    "block-fisher": lambda layers, tried: (1, 0),
    "bsnip": lambda layers, tried: (1, 0),
    "pd": lambda layers, tried: (0, tried),
    "measured": lambda layers, tried: (0, tried),
}
NOTHING: dict[str, Any] = {"sensitivity": None, "foretold": None, "measured": None, "sensitivities": []}


def usual(made: Prepared, sensitivity: str | None) -> str:
    """The method that is used: as asked, or what the model's loss allows.

    Raises:
        ValueError: no such method; one that needs a loss or data that are not there.
    """
    from isoloss.compress.sensitivity import get

    if sensitivity not in (None, ALL):
        get(str(sensitivity))
    why = made.loaded.costs_only or made.loaded.flat
    if made.batches is None:
        why = "no calibration data were given"
    if sensitivity is None:
        return "output-error" if why else USUAL
    if why and sensitivity != "output-error":
        raise ValueError(f"the sensitivity {sensitivity} needs a loss, and {why}. Use output-error")
    return sensitivity


def tried(
    job: Job,
    layers: Sequence[Layer],
    choices: Sequence[Choice],
    unreached: str,
    tell: Tell,
    folder: Path | None = None,
) -> Candidates:
    """Every layer in every format; those that a folder has are not encoded anew."""
    from isoloss.compress.candidates import candidates
    from isoloss.compress.solvers import get

    needing = [choice.solver for choice in choices if "fisher" in get(choice.solver).needs]
    squares = job.squares.of(layers, needing[0]) if needing else None
    return candidates(
        job.made.loaded.subject.model,
        layers,
        choices,
        job.made.batches,
        fisher=squares,
        unreached="nearest" if unreached == "nearest" else "refuse",
        folder=folder,
        progress=tell,
    )


def foreseen(
    job: Job,
    layers: Sequence[Layer],
    choices: Sequence[Choice],
    left: dict[str, Choice | None],
    method: str,
    limits: tuple[float | None, float | None],
    rising: bool,
    frontier: bool,
    tell: Tell,
) -> MixedForecast:
    """What choosing and encoding would come to."""
    from isoloss.compress.forecast_mixed import forecast_mixed
    from isoloss.compress.mixed import TRIES
    from isoloss.compress.solvers import get

    count = len(layers) * len(choices)
    names = PASSES if method == ALL else (method,)
    gradients = sum(PASSES[name](len(layers), count)[0] for name in names)
    measured = sum(PASSES[name](len(layers), count)[1] for name in names)
    gradients += int(any("fisher" in get(choice.solver).needs for choice in choices))
    return forecast_mixed(
        job.made.loaded.subject,
        layers,
        choices,
        left,
        job.made.batches,
        *limits,
        gradients=gradients,
        measured=measured + rising * TRIES + frontier * (POINTS + 1),
        blockwise=job.ways.blockwise,
        progress=tell,
    )


def facts_foreseen(found: MixedForecast, several: Sequence[Choice], method: str) -> dict[str, Any]:
    """Of what is foreseen, for the document."""
    from isoloss.compress.mixed import words

    used = set(found.plan.values())
    solver = _solvers(one for one in several if one.format in used)

    method = USUAL if method == ALL else method
    return {**NOTHING, "format": words(found.plan), "solver": solver, "sensitivity": method}


def scored(
    made: Prepared, found: Candidates, method: str, seed: int, tell: Tell
) -> tuple[Scores, list[dict[str, Any]]]:
    """Scores of the method; of all methods with their agreement with the measured one where ``all`` is asked for."""
    from isoloss.compress.sensitivity import SENSITIVITIES, score
    from isoloss.compress.sensitivity.ranking import agreement

    subject = made.loaded.subject
    if method != ALL:
        tell(f"sensitivity by {method}", 0, 0)
        return score(method, subject, found, seed), []
    every = {}
    for name in SENSITIVITIES:
        tell(f"sensitivity by {name}", 0, 0)
        every[name] = score(name, subject, found, seed)
    rows = []
    for name, own in every.items():
        agreed = agreement(own, every["measured"], seed=seed)
        rows.append(
            {
                "name": name,
                "layers": agreed.layers,
                "low": agreed.low,
                "high": agreed.high,
                "all": agreed.all,
                "predictions": agreement(own, every["pd"], seed=seed).layers,
                "cpu_seconds": own.spent.cpu_seconds,
                "gradients": own.spent.gradients,
                "how": own.how,
            }
        )
    return every[USUAL], rows


def chosen(
    made: Prepared,
    found: Candidates,
    scores: Scores,
    bits: float | None,
    size: float | None,
    rise: float | None,
    tell: Tell,
) -> Mixed:
    """The choice within the limits that were given."""
    from isoloss.compress.mixed import best, within

    if rise is None:
        return best(found, scores, bits, size)
    mixed = within(made.loaded.subject, found, scores, rise, progress=tell)
    limits = {
        "bits": (bits, mixed.bits_per_weight),
        "bytes": (size, mixed.bytes),
    }
    for name, (limit, own) in limits.items():
        if limit is not None and own > limit:
            from isoloss.errors import NoAnswer

            raise NoAnswer(
                f"a rise of the loss of {rise:g} takes {own:,.4g} {name}, and {limit:,.4g} are allowed",
                "one limit less, or a higher one",
            )
    return mixed


def _solvers(choices: Iterable[Choice | None]) -> str:
    return ", ".join(sorted({one.solver for one in choices if one is not None}))


def facts(
    mixed: Mixed, choices: Mapping[str, Choice | None], scores: Scores, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Of the choice, for the document."""
    from isoloss.compress.mixed import words

    return {
        "format": words(mixed.plan),
        "solver": _solvers(choices.values()),
        "sensitivity": scores.method,
        "foretold": mixed.together if scores.unit else None,
        "measured": None if mixed.change is None else mixed.change.rise,
        "sensitivities": rows,
    }


def show_agreement(rows: list[dict[str, Any]], style: Style) -> None:
    """The table of methods."""
    if not rows:
        return
    show(
        Table(
            ["sensitivity", "with the rise", "90 % interval", "with the KL", "CPU s", "gradients"],
            [
                [
                    row["name"],
                    f"{row['layers']:.2f}",
                    f"{row['low']:.2f} to {row['high']:.2f}",
                    f"{row['predictions']:.2f}",
                    number(row["cpu_seconds"], 2),
                    number(row["gradients"], 2),
                ]
                for row in rows
            ],
            "rank correlation over layers at the same format, with what was measured one by one",
            words=["sensitivity"],
        ),
        style,
    )

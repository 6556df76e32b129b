"""``isoloss compress``: fewer bits for a model's weights, sizes exact, errors said."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli import compress_mixed
from isoloss.cli.options import Json, Latex, Markdown, Seed, style_of
from isoloss.cli.show import Style, Table, check_writable, for_people, number, plural, say, show, write_json
from isoloss.report.words import amount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isoloss.compress.calibration import Prepared
    from isoloss.compress.compressed import Compressed
    from isoloss.compress.forecast import Forecast
    from isoloss.compress.recipe import Choice

    Tell = Callable[[str, int, int], None]
    Chooser = Callable[[float | None], tuple[dict[str, Choice | None], dict[str, Any]]]

WORST = 8  # layers that are printed
TRIES = 4  # to keep a limit on the loss


def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="file.py:make, a local Hugging Face folder or GGUF file, or a checkpoint folder of isoloss.trainers.gpt.",
        ),
    ],
    calib: Annotated[
        str | None,
        typer.Option(
            help="Calibration data: a text file, or file.py:function that gives the inputs of each batch. Those of "
            "file.py:make if not given."
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(help="Most stored bits for each encoded weight, scales and tables counted."),
    ] = None,
    bytes: Annotated[
        str | None, typer.Option(help="Most bytes of all tensors, those not encoded too: 8MB, 1.5GiB.")
    ] = None,
    max_loss_increase: Annotated[
        float | None,
        typer.Option(
            help="Most that the loss may rise on its data, in its own unit; the least size within it."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="int4/g128/asym, table3+0.45%, mxfp4 for all layers; of several with commas, the best for each layer. "
            "If not given, the best for each of a ladder."
        ),
    ] = None,
    sensitivity: Annotated[
        str | None,
        typer.Option(
            help="How it is foretold what a format of a layer costs: block-fisher if there is a loss, output-error if not; "
            "all compares the methods."
        ),
    ] = None,
    frontier: Annotated[
        str | None, typer.Option(help="CSV file for the choices of all sizes, measured.")
    ] = None,
    eval: Annotated[
        str | None,
        typer.Option(help="file.py:score, a function of the model that gives a number: before and after."),
    ] = None,
    solver: Annotated[str, typer.Option(help="nearest, gptq, lut-feedback and others.")] = "gptq",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers to leave as they are, by name or pattern: 'lm_head', '*.router'. Repeatable."
        ),
    ] = None,
    within: Annotated[
        str,
        typer.Option(help="block: layers of a block in one pass. layer: one after another, in more passes."),
    ] = "block",
    unreached: Annotated[
        str, typer.Option(help="Layers that no data come to: refuse, or nearest to round them.")
    ] = "refuse",
    batch: Annotated[int, typer.Option(min=1, help="Examples of a batch of text.")] = 8,
    batches: Annotated[int, typer.Option(min=1, help="How many batches of text.")] = 16,
    length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of an example; 128, or what the model takes if that is less."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder for the compressed model. Work that was cut off goes on from it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say size, time and memory, and change nothing.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice if not given.")] = None,
    seed: Seed = 0,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Compress a model: its weights in fewer bits, fitted to calibration data.

    Sizes are those on disk. What is left as it is comes with its reason in the recipe.
    """
    style = style_of(md, latex)
    if json is not None:
        check_writable(json)
    if within not in ("block", "layer") or unreached not in ("refuse", "nearest"):
        raise ValueError(
            "needed --within block or layer, and --unreached refuse or nearest, "
            f"got {within!r} and {unreached!r}"
        )
    _torch(threads)
    from isoloss.compress.calibration import prepare
    from isoloss.compress.forecast import forecast
    from isoloss.measure.load import Wanted, function
    from isoloss.runs.units import parse_bytes

    with _status() as tell:
        tell("loading", 0, 0)
        made = prepare(model, calib, Wanted(None, batch, batches, length, seed))
        metric = None if eval is None else function(eval)
        limits = _Limits(bits, None if bytes is None else parse_bytes(bytes), max_loss_increase)
        choose = _chooser(
            made, limits, format, solver, keep or [], sensitivity, frontier, unreached, seed, tell
        )
        if dry_run:
            choices, facts = choose(None)
            tell("trying", 0, 0)
            found = forecast(made.loaded.subject.model, choices, made.batches)
            document = _document(made, solver, facts) | _forecast(found)
        else:
            document = _done(made, solver, choose, limits, metric, within, unreached, out, tell)
    with for_people(json):
        _print(document, style, layers)
    if json is not None:
        write_json(json, document)
    return 0


def _torch(threads: int | None) -> None:
    try:
        import torch
    except ImportError as error:
        raise ValueError("compressing needs torch. Do: pip install 'isoloss[torch]'") from error
    if threads is not None:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str, int, int], None]]:
    """What is being done, for a person who watches; silent elsewhere."""
    import sys

    if not sys.stderr.isatty():
        yield lambda what, done, count: None
        return
    from rich.console import Console

    with Console(stderr=True).status("loading") as status:
        yield lambda what, done, count: status.update(
            f"{what}, {done} of {count} layers done" if count else what
        )


@dataclass(frozen=True)
class _Limits:
    """What was asked for: bits for each weight, bytes, rise of the loss."""

    bits: float | None
    bytes: float | None
    rise: float | None


def _chooser(
    made: Prepared,
    limits: _Limits,
    format: str | None,
    solver: str,
    keep: list[str],
    sensitivity: str | None,
    frontier: str | None,
    unreached: str,
    seed: int,
    tell: Tell,
) -> Chooser:
    """What gives a choice for each layer, and what is to be said of it, for a rise of the loss; all else is made once."""
    from isoloss.compress.candidates import ladder
    from isoloss.compress.layers import find
    from isoloss.compress.recipe import Choice, chosen
    from isoloss.compress.uniform import uniform

    model = made.loaded.subject.model
    every = find(model).layers
    left: dict[str, Choice | None] = dict.fromkeys(keep)
    selected = chosen(every, {**left, "*": Choice("int8", "nearest")})
    wanted = [layer for layer in every if selected[layer.name] is not None]
    named = [] if format is None else [Choice(one.strip(), solver) for one in format.split(",")]
    asked = any(limit is not None for limit in (limits.bits, limits.bytes, limits.rise))
    if not asked and not named:
        raise ValueError("needed --bits, --bytes or --format, or --max-loss-increase, got none")
    mixing = [name for name, on in (("--sensitivity", sensitivity), ("--frontier", frontier)) if on]
    mixing += ["--max-loss-increase"] if limits.rise is not None else []
    if len(named) == 1 or (made.batches is None and not mixing):
        if mixing:
            raise ValueError(f"{mixing[0]} chooses between formats, and one was named. Name several, or none")
        one = uniform(model, wanted, solver, limits.bits, limits.bytes, format)
        return lambda rise: ({**left, "*": Choice(one, solver)}, {"format": one, **compress_mixed.NOTHING})
    if not asked:
        raise ValueError("several formats need a limit. Give --bits, --bytes or --max-loss-increase")
    method = compress_mixed.usual(made, sensitivity)
    if limits.rise is not None and made.loaded.costs_only:
        raise ValueError(f"--max-loss-increase needs a loss, and {made.loaded.costs_only}")
    found = compress_mixed.tried(made, wanted, named or ladder(solver), unreached, tell)
    scores, rows = compress_mixed.scored(made, found, method, seed, tell)
    if frontier is not None:
        compress_mixed.write_frontier(made, found, scores, frontier, tell)

    def choose(rise: float | None) -> tuple[dict[str, Choice | None], dict[str, Any]]:
        wish = limits.rise if rise is None else rise
        mixed = compress_mixed.chosen(made, found, scores, limits.bits, limits.bytes, wish, tell)
        return {**left, **found.choices(mixed.plan)}, compress_mixed.facts(mixed, scores, rows)

    return choose


def _document(made: Prepared, solver: str, facts: dict[str, Any]) -> dict[str, Any]:
    from isoloss.measure.storages import bytes_of

    model = made.loaded.subject.model
    return {
        "schema": "isoloss/compress/1",
        "model": made.loaded.subject.name,
        "solver": solver,
        "original_bytes": bytes_of([*model.parameters(), *model.buffers()]),
        **facts,
    }


def _forecast(found: Forecast) -> dict[str, Any]:
    return {
        "dry_run": True,
        "weights": found.weights,
        "bits_per_weight": found.bits_per_weight,
        "bytes": found.bytes,
        "plain_bytes": found.plain_bytes,
        "stages": found.stages,
        "seconds": found.seconds,
        "memory": found.memory,
        "loss_on": None,
        "loss_before": None,
        "loss_after": None,
        "score_before": None,
        "score_after": None,
        "layers": [
            {"name": name, "bits": bits, "error": None, "error_of": None, "seconds": None}
            for name, bits in found.bits.items()
        ],
        "left": [],
        "notes": list(found.notes),
        "out": None,
        "header_bytes": None,
        "recipe_bytes": None,
    }


def _done(
    made: Prepared,
    solver: str,
    choose: Chooser,
    limits: _Limits,
    metric: Callable[..., Any] | None,
    within: str,
    unreached: str,
    out: str | None,
    tell: Tell,
) -> dict[str, Any]:
    import shutil

    from isoloss.compress.fisher import fisher
    from isoloss.compress.pipeline import compress
    from isoloss.compress.saving import save
    from isoloss.compress.solvers import get

    subject = made.loaded.subject
    squares = None
    if "fisher" in get(solver).needs:
        if made.loaded.costs_only or made.batches is None:
            raise ValueError(
                f"the solver {solver} needs the gradient of a loss, and "
                f"{made.loaded.costs_only or 'no calibration data were given'}"
            )
        squares = fisher(subject, progress=tell)
    before, score = _loss(made), None if metric is None else float(metric(subject.model))
    work = None if out is None else Path(out) / "stages"
    kept = {name: own.clone() for name, own in subject.model.state_dict().items()} if limits.rise else {}
    rise, after = limits.rise, before
    for _ in range(TRIES):
        choices, facts = choose(rise)
        document = _document(made, solver, facts)
        found = compress(
            subject.model,
            choices,
            made.batches,
            folder=work,
            fisher=squares,
            within="layer" if within == "layer" else "block",
            unreached="nearest" if unreached == "nearest" else "refuse",
            progress=tell,
            known_as=made.known_as,
        )
        after = _loss(made)
        if limits.rise is None or before is None or after is None or after - before <= limits.rise:
            break
        # Layers were chosen as fitted one by one; together they came to more. Ask for less.
        rise = 0.9 * limits.rise * min(limits.rise, float(rise or limits.rise)) / (after - before)
        subject.model.load_state_dict(kept)
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    else:
        from isoloss.errors import NoAnswer

        raise NoAnswer(
            f"the loss rises by more than {limits.rise:g} in each of {TRIES} tries",
            "a higher limit on its rise",
        )
    sizes = None
    if out is not None and work is not None:
        sizes = save(found, out)
        shutil.rmtree(work, ignore_errors=True)
    scores = (score, None if metric is None else float(metric(subject.model)))
    return document | _result(found, made, (before, after), scores, out, sizes)


def _loss(made: Prepared) -> float | None:
    """On the model's batches; None where nothing but costs is known of the model."""
    import torch

    from isoloss.measure.subject import examples_of

    subject = made.loaded.subject
    if made.loaded.costs_only or made.batches is None:
        return None
    sizes = [examples_of(batch) for batch in subject.batches]
    with torch.no_grad(), subject.measuring():
        losses = [float(subject.loss(batch)) for batch in subject.batches]
    return sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)


def _result(
    found: Compressed,
    made: Prepared,
    losses: tuple[float | None, float | None],
    scores: tuple[float | None, float | None],
    out: str | None,
    sizes: dict[str, int] | None,
) -> dict[str, Any]:
    return {
        "dry_run": False,
        "weights": found.weights,
        "bits_per_weight": found.bits_per_weight,
        "bytes": found.bytes,
        "plain_bytes": found.plain_bytes,
        "stages": None,
        "seconds": found.seconds,
        "memory": None,
        "loss_on": None if losses[0] is None else made.loss_on,
        "loss_before": losses[0],
        "loss_after": losses[1],
        "score_before": scores[0],
        "score_after": scores[1],
        "layers": [
            {
                "name": name,
                "bits": done.bits,
                "error": done.error,
                "error_of": done.error_of,
                "seconds": done.seconds,
            }
            for name, done in found.recipe.layers.items()
        ],
        "left": [{"path": path, "why": why} for path, why in found.recipe.left.items()],
        "notes": [*made.loaded.notes, *found.recipe.notes],
        "out": out,
        "header_bytes": None if sizes is None else sizes["header"],
        "recipe_bytes": None if sizes is None else sizes["recipe"],
    }


def _print(found: dict[str, Any], style: Style, layers: bool) -> None:
    dry = found["dry_run"]
    rows = [
        ["format", f"{found['format']}, {found['solver']}"],
        ["encoded weights", f"{found['weights']:,}"],
        ["stored bits a weight", f"{found['bits_per_weight']:.4g}"],
        ["bytes of tensors", f"{found['bytes']:,}"],
        ["of them not encoded", f"{found['plain_bytes']:,}"],
        ["bytes before", f"{found['original_bytes']:,}"],
    ]
    if dry:
        rows += [
            ["stages", str(found["stages"])],
            ["about", f"{number(found['seconds'], 2)} s"],
            ["memory, about", f"{amount(found['memory'], 2)} bytes"],
        ]
    else:
        rows.append(["seconds", number(found["seconds"], 3)])
    if found["loss_before"] is not None:
        said = f"{found['loss_before']:.5g}, then {found['loss_after']:.5g}"
        rows.append([f"loss on {found['loss_on']}", said])
    if found["sensitivity"] is not None:
        foretold = "" if found["foretold"] is None else f", rise foretold {number(found['foretold'], 2)}"
        rows.append(["sensitivity", f"{found['sensitivity']}{foretold}"])
    if found["score_before"] is not None:
        rows.append(["score", f"{found['score_before']:.5g}, then {found['score_after']:.5g}"])
    show(Table(["compressed", "value"], rows, found["model"], words=["value"]), style)
    compress_mixed.show_agreement(found["sensitivities"], style)
    own = found["layers"]
    if not dry and own:
        shown = own if layers else sorted(own, key=lambda layer: -layer["error"])[:WORST]
        title = "" if layers or len(own) <= WORST else f"largest errors, of {plural(len(own), 'layer')}"
        show(
            Table(
                ["layer", "bits", "relative error", "of", "s"],
                [
                    [
                        layer["name"],
                        f"{layer['bits']:,}",
                        number(layer["error"], 3),
                        layer["error_of"],
                        number(layer["seconds"], 2),
                    ]
                    for layer in shown
                ],
                title,
                words=["layer"],
            ),
            style,
        )
    if dry and layers:
        show(Table(["layer", "bits"], [[one["name"], f"{one['bits']:,}"] for one in own]), style)
    for note in found["notes"]:
        say(f"note: {note}", style)
    if found["out"]:
        say(
            f"{found['out']}: {found['bytes']:,} bytes of tensors, {found['header_bytes']:,} of their header, "
            f"{found['recipe_bytes']:,} of the recipe",
            style,
        )

"""``isoloss compress``: fewer bits for a model's weights, sizes exact, errors said."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.options import Json, Latex, Markdown, Seed, style_of
from isoloss.cli.show import Style, Table, check_writable, for_people, number, plural, say, show, write_json
from isoloss.report.words import amount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isoloss.compress.calibration import Prepared
    from isoloss.compress.compressed import Compressed
    from isoloss.compress.forecast import Forecast
    from isoloss.compress.recipe import Choice

WORST = 8  # layers that are printed


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
    format: Annotated[
        str | None,
        typer.Option(help="int4/g128/asym, table3+0.45%, mxfp4; the largest that fits if not given."),
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
    from isoloss.measure.load import Wanted

    with _status() as tell:
        tell("loading", 0, 0)
        made = prepare(model, calib, Wanted(None, batch, batches, length, seed))
        choices = _choices(made, bits, bytes, format, solver, keep or [])
        if dry_run:
            tell("trying", 0, 0)
            found = forecast(made.loaded.subject.model, choices, made.batches)
            document = _document(made, choices) | _forecast(found)
        else:
            document = _document(made, choices) | _done(made, choices, within, unreached, out, tell)
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


def _choices(
    made: Prepared, bits: float | None, size: str | None, format: str | None, solver: str, keep: list[str]
) -> dict[str, Choice | None]:
    """What is done to which layer."""
    from isoloss.compress.layers import find
    from isoloss.compress.recipe import Choice, chosen
    from isoloss.compress.uniform import uniform
    from isoloss.runs.units import parse_bytes

    model = made.loaded.subject.model
    every = find(model).layers
    left: dict[str, Choice | None] = dict.fromkeys(keep)
    selected = chosen(every, {**left, "*": Choice("int8", "nearest")})
    wanted = [layer for layer in every if selected[layer.name] is not None]
    limit = None if size is None else parse_bytes(size)
    return {**left, "*": Choice(uniform(model, wanted, solver, bits, limit, format), solver)}


def _document(made: Prepared, choices: dict[str, Choice | None]) -> dict[str, Any]:
    from isoloss.measure.storages import bytes_of

    model, choice = made.loaded.subject.model, choices["*"]
    assert choice is not None
    return {
        "schema": "isoloss/compress/1",
        "model": made.loaded.subject.name,
        "format": choice.format,
        "solver": choice.solver,
        "original_bytes": bytes_of([*model.parameters(), *model.buffers()]),
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
    choices: dict[str, Choice | None],
    within: str,
    unreached: str,
    out: str | None,
    tell: Callable[[str, int, int], None],
) -> dict[str, Any]:
    import shutil

    from isoloss.compress.fisher import fisher
    from isoloss.compress.pipeline import compress
    from isoloss.compress.saving import save
    from isoloss.compress.solvers import get

    subject, choice = made.loaded.subject, choices["*"]
    assert choice is not None
    squares = None
    if "fisher" in get(choice.solver).needs:
        if made.loaded.costs_only or made.batches is None:
            raise ValueError(
                f"the solver {choice.solver} needs the gradient of a loss, and "
                f"{made.loaded.costs_only or 'no calibration data were given'}"
            )
        squares = fisher(subject, progress=tell)
    before = _loss(made)
    work = None if out is None else Path(out) / "stages"
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
    sizes = None
    if out is not None and work is not None:
        sizes = save(found, out)
        shutil.rmtree(work, ignore_errors=True)
    return _result(found, made, before, out, sizes)


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
    found: Compressed, made: Prepared, before: float | None, out: str | None, sizes: dict[str, int] | None
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
        "loss_on": None if before is None else made.loss_on,
        "loss_before": before,
        "loss_after": None if before is None else _loss(made),
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
    show(Table(["compressed", "value"], rows, found["model"], words=["value"]), style)
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

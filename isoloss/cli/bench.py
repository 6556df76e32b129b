"""``isoloss bench``: how fast models generate here, and how near that is to what the memory allows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.options import Json, Latex, Markdown, style_of
from isoloss.cli.show import Table, check_writable, for_people, number, say, show, write_json

if TYPE_CHECKING:
    from torch import nn

    from isoloss.deploy.bench import Speed
    from isoloss.measure.latency import Median


def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Folders: of isoloss compress or pack --out, of Hugging Face, with a GGUF file, or a checkpoint of "
            "isoloss.trainers.gpt."
        ),
    ],
    threads: Annotated[
        str, typer.Option(help="Numbers of threads, with commas; each thread gets a core of its own.")
    ] = "1",
    context: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 32,
    new: Annotated[int, typer.Option(min=1, help="Tokens generated after it, in each repeat.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Of each model and number of threads.")] = 10,
    picture: Annotated[
        str | None, typer.Option(help="Picture to write, .svg or .png: speeds below what the memory allows.")
    ] = None,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Time how fast models generate text, in turn, beside the machine's measured memory bandwidth."""
    style = style_of(md, latex)
    for place in (json, picture):
        if place is not None:
            check_writable(place)
    if picture is not None and Path(picture).suffix not in (".svg", ".png"):
        raise ValueError(f"needed a picture that ends in .svg or .png, got {picture}")
    try:
        from isoloss.deploy.bench import Candidate, bytes_read
        from isoloss.deploy.bench import bench as timed
        from isoloss.deploy.decoders import decoder
    except ImportError as error:
        raise ValueError("timing needs torch. Do: pip install 'isoloss[torch]'") from error
    from isoloss.measure.roofline import roofline

    counts = _counts(threads)
    candidates = {}
    for name, place in zip(_names(models), models, strict=True):
        model = model_of(place)
        candidates[name] = Candidate(decoder(model), bytes_read(model))
    machine = roofline()
    found = timed(candidates, counts, context, new, repeats, machine)
    document = {
        "schema": "isoloss/bench/1",
        "machine": machine.machine,
        "context": context,
        "new": new,
        "repeats": repeats,
        "load": list(found[-1].load),
        "speeds": [_speed(one) for one in found],
    }
    if picture is not None:
        _draw(found, picture)
    with for_people(json):
        _print(document, style)
    if json is not None:
        write_json(json, document)
    return 0


def _counts(threads: str) -> list[int]:
    try:
        return [int(one) for one in threads.split(",")]
    except ValueError:
        raise ValueError(f"needed --threads as numbers with commas between: 1,2, got {threads!r}") from None


def _names(places: list[str]) -> list[str]:
    """The last part of each path; all of it where that is not enough to tell them apart."""
    short = [Path(place).name or place for place in places]
    if len(set(places)) < len(places):
        raise ValueError(f"needed each model once, got {', '.join(places)}")
    return short if len(set(short)) == len(short) else places


def model_of(place: str) -> nn.Module:
    """The model of a folder: packed where it is a compressed one."""
    from isoloss.compress.saving import RECIPE
    from isoloss.deploy.files import TENSORS
    from isoloss.measure.load import load

    if (Path(place) / RECIPE).is_file() or (Path(place) / TENSORS).is_file():
        from isoloss.deploy import load as load_packed

        return load_packed(place)
    return load(place).subject.model


def _median(found: Median) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _speed(one: Speed) -> dict[str, Any]:
    known = not math.isnan(one.bandwidth)
    return {
        "model": one.model,
        "threads": one.threads,
        "bytes_per_token": one.bytes,
        "seconds_per_token": _median(one.token),
        "seconds_per_prompt_token": _median(one.prompt),
        "tokens_per_second": one.tokens_per_second,
        "bandwidth": one.bandwidth if known else None,
        "share_of_bandwidth": one.share if known else None,
    }


def _print(document: dict[str, Any], style: Any) -> None:
    rows = []
    for one in document["speeds"]:
        token, share = one["seconds_per_token"], one["share_of_bandwidth"]
        rows.append(
            [
                one["model"],
                str(one["threads"]),
                number(one["tokens_per_second"], 3),
                f"{number(1 / token['high'], 3)} to {number(1 / token['low'], 3)}",
                number(1 / one["seconds_per_prompt_token"]["value"], 3),
                f"{one['bytes_per_token']:,}",
                "not known" if share is None else f"{100 * share:.3g} %",
            ]
        )
    heads = ["model", "threads", "tokens/s", "interval", "prompt tokens/s", "bytes a token", "of bandwidth"]
    show(Table(heads, rows, "medians with 90 % intervals", words=["model"]), style)
    before, after = document["load"]
    say(f"{document['machine']}; load {number(max(before, after), 2)}")


def _draw(found: list[Speed], picture: str) -> None:
    from isoloss.report.canvas import new_axes
    from isoloss.report.speeds import draw_speeds

    axes = new_axes()
    draw_speeds(axes, found)
    figure = axes.get_figure()
    assert figure is not None
    figure.savefig(picture)  # type: ignore[union-attr]

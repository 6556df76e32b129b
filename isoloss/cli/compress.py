"""``isoloss compress``: fewer bits for a model's weights, sizes exact, errors said."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli import compress_measured, compress_mixed, compress_ways
from isoloss.cli.compress_print import show_compressed
from isoloss.cli.options import Json, Latex, Markdown, Seed, style_of
from isoloss.cli.show import check_writable, for_people, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from isoloss.compress.calibration import Prepared
    from isoloss.compress.compressed import Compressed
    from isoloss.compress.forecast import Forecast
    from isoloss.compress.layers import Layer
    from isoloss.compress.recipe import Choice

    Tell = Callable[[str, int, int], None]
    Chooser = Callable[[float | None], tuple[dict[str, Choice | None], dict[str, Any]]]

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
        str | None,
        typer.Option(
            help="Measure every format, and the choices of all sizes, as rows of this CSV file; without a limit nothing "
            "is compressed. A format may name its solver: int4@nearest."
        ),
    ] = None,
    claims: Annotated[
        bool,
        typer.Option(
            "--claims", help="Settle rival claims on this model (FP8 or INT8, ...) and change nothing."
        ),
    ] = False,
    eval: Annotated[
        str | None,
        typer.Option(help="file.py:score, a function of the model that gives a number: before and after."),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="nearest, gptq, lut-feedback and others. If not given, gptq for integers and lut-feedback for tables."
        ),
    ] = None,
    rotate: Annotated[
        str | None,
        typer.Option(
            help="Rotate a model of Llama's kind before: usual, or settings: 'residual=false, seed=1'.",
            metavar="SETTINGS",
        ),
    ] = None,
    blockwise: Annotated[
        str | None,
        typer.Option(
            help="Learn the layers of a block together afterwards: usual, or settings: 'steps=200, rounding=false'.",
            metavar="SETTINGS",
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="At last, tune tables and scales for the predictions of the whole model: usual, or settings: 'steps=200'.",
            metavar="SETTINGS",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            help="Round the inputs of layers too: int8, fp8-e4m3, 'int8/asym(when=static, range=mse)'.",
            metavar="FORMAT",
        ),
    ] = None,
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
    for place in (json, frontier):
        if place is not None:
            check_writable(place)
    if within not in ("block", "layer") or unreached not in ("refuse", "nearest"):
        raise ValueError(
            "needed --within block or layer, and --unreached refuse or nearest, "
            f"got {within!r} and {unreached!r}"
        )
    with _status() as tell:
        tell("loading torch", 0, 0)
        _torch(threads)
        from isoloss.compress.calibration import prepare
        from isoloss.measure.load import Wanted, function
        from isoloss.runs.units import parse_bytes

        ways = compress_ways.asked(rotate, blockwise, activations, tune)
        compress_ways.refuse_early(solver, format, calib, out, sensitivity)
        limits = _Limits(bits, None if bytes is None else parse_bytes(bytes), max_loss_increase)
        only_measured = claims or (frontier is not None and limits == _Limits(None, None, None))
        if only_measured and (dry_run or eval is not None):
            raise ValueError(
                f"{'--claims' if claims else '--frontier without a limit'} measures and compresses nothing. Leave out "
                f"{'--dry-run' if dry_run else '--eval'}"
            )
        metric = None if eval is None else function(eval)
        tell("loading the model", 0, 0)
        made = prepare(model, calib, Wanted(None, batch, batches, length, seed))
        job = compress_ways.job(made, ways, solver, seed, tell)
        only = None
        if only_measured:
            only = compress_measured.measured(
                job, claims, format, keep or [], sensitivity, frontier, unreached, out, tell
            )
    if only is not None:
        with for_people(json):
            only.print(style)
        if json is not None:
            write_json(json, only.document)
        return 0
    with _status() as tell:
        wanted = _wanted(job, limits, format, keep or [], sensitivity, frontier)
        if dry_run:
            document = _foreseen(job, wanted, limits, frontier, tell)
        else:
            try:
                choose = _chooser(job, limits, wanted, frontier, unreached, out, tell)
                document = _done(job, model, choose, limits, metric, within, unreached, out, tell)
            except KeyboardInterrupt:
                tell("", 0, 0)
                print(f"isoloss: interrupted: {compress_ways.cut_off(out)}", file=sys.stderr)
                raise
    with for_people(json):
        show_compressed(document, style, layers)
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
    if not sys.stderr.isatty():
        yield lambda what, done, count: None
        return
    from rich.console import Console

    begun: dict[
        int, tuple[float, int]
    ] = {}  # of work of so many parts: when it was first told of, and what was done

    with Console(stderr=True).status("starting") as status:

        def tell(what: str, done: int, count: int) -> None:
            if not count:
                begun.clear()
                status.update(what)
                return
            since, first = begun.setdefault(count, (time.monotonic(), done))
            left = ""
            if done > first:
                seconds = (time.monotonic() - since) / (done - first) * (count - done)
                left = (
                    f", about {seconds / 60:.0f} min left"
                    if seconds > 90
                    else f", about {seconds:.0f} s left"
                )
            status.update(f"{what}: {done} of {count} done{left}")

        yield tell


@dataclass(frozen=True)
class _Limits:
    """What was asked for: bits for each weight, bytes, rise of the loss."""

    bits: float | None
    bytes: float | None
    rise: float | None

    def __post_init__(self) -> None:
        """Refuse what no model keeps, before one is loaded."""
        for option, own in (
            ("--bits", self.bits),
            ("--bytes", self.bytes),
            ("--max-loss-increase", self.rise),
        ):
            if own is not None and not own > 0:
                raise ValueError(f"needed {option} above 0, got {own:g}")


@dataclass(frozen=True)
class _Wanted:
    """What is to be encoded, and in what: one format for all, or the best of several for each by a method."""

    layers: list[Layer]
    left: dict[str, Choice | None]
    one: Choice | None
    several: tuple[Choice, ...]
    method: str

    def uniform(self) -> tuple[dict[str, Choice | None], dict[str, Any]]:
        """Choices, and what is said of them."""
        assert self.one is not None
        said = {"format": self.one.format, "solver": self.one.solver, **compress_mixed.NOTHING}
        return {**self.left, "*": self.one}, said


def _wanted(
    job: compress_ways.Job,
    limits: _Limits,
    format: str | None,
    keep: list[str],
    sensitivity: str | None,
    frontier: str | None,
) -> _Wanted:
    from isoloss.compress.candidates import ladder
    from isoloss.compress.recipe import Choice
    from isoloss.compress.uniform import uniform
    from isoloss.compress.variants import choices

    made, solver = job.made, job.solver
    left: dict[str, Choice | None] = dict.fromkeys(keep)
    wanted = job.layers(keep)
    named = () if format is None else tuple(choices(format, solver))
    asked = any(limit is not None for limit in (limits.bits, limits.bytes, limits.rise))
    if not asked and not named:
        raise ValueError("needed --bits, --bytes or --format, or --max-loss-increase, got none")
    mixing = [name for name, on in (("--sensitivity", sensitivity), ("--frontier", frontier)) if on]
    mixing += ["--max-loss-increase"] if limits.rise is not None else []
    if len(named) == 1 or (made.batches is None and not mixing and not named):
        if mixing:
            raise ValueError(f"{mixing[0]} chooses between formats, and one was named. Name several, or none")
        by = named[0].solver if named else solver or compress_ways.ALONE
        one = uniform(
            made.loaded.subject.model,
            wanted,
            by,
            limits.bits,
            limits.bytes,
            named[0].format if named else None,
        )
        return _Wanted(wanted, left, Choice(one, by), (), "")
    if not asked:
        raise ValueError("several formats need a limit. Give --bits, --bytes or --max-loss-increase")
    method = compress_mixed.usual(made, sensitivity)
    if limits.rise is not None and made.loaded.costs_only:
        raise ValueError(f"--max-loss-increase needs a loss, and {made.loaded.costs_only}")
    return _Wanted(wanted, left, None, named or ladder(solver), method)


def _chooser(
    job: compress_ways.Job,
    limits: _Limits,
    wanted: _Wanted,
    frontier: str | None,
    unreached: str,
    out: str | None,
    tell: Tell,
) -> Chooser:
    """What gives a choice for each layer, and what is to be said of it, for a rise of the loss; all else is made once."""
    if wanted.one is not None:
        return lambda rise: wanted.uniform()
    made, method = job.made, wanted.method
    folder = None if out is None else Path(out) / compress_ways.CANDIDATES
    found = compress_mixed.tried(job, wanted.layers, wanted.several, unreached, tell, folder)
    scores, rows = compress_mixed.scored(made, found, method, job.seed, tell)
    if frontier is not None:
        compress_measured.write(job, compress_measured.rows_of(found, scores), frontier, tell)

    def choose(rise: float | None) -> tuple[dict[str, Choice | None], dict[str, Any]]:
        wish = limits.rise if rise is None else rise
        mixed = compress_mixed.chosen(made, found, scores, limits.bits, limits.bytes, wish, tell)
        choices = found.choices(mixed.plan)
        return {**wanted.left, **choices}, compress_mixed.facts(mixed, choices, scores, rows)

    return choose


def _document(job: compress_ways.Job, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": "isoloss/compress/1",
        "model": job.made.loaded.subject.name,
        "original_bytes": job.original_bytes,
        **job.ways.facts(),
        **facts,
    }


def _foreseen(
    job: compress_ways.Job, wanted: _Wanted, limits: _Limits, frontier: str | None, tell: Tell
) -> dict[str, Any]:
    from isoloss.compress.forecast import forecast

    if wanted.one is not None:
        tell("trying", 0, 0)
        choices, facts = wanted.uniform()
        model = job.made.loaded.subject.model
        found = forecast(model, choices, job.made.batches, blockwise=job.ways.blockwise)
        return _document(job, facts) | _forecast(found) | {"least_bytes": None, "most_bytes": None}
    mixed = compress_mixed.foreseen(
        job, wanted.layers, wanted.several, wanted.left, wanted.method, (limits.bits, limits.bytes),
        limits.rise is not None, frontier is not None, tell,
    )  # fmt: skip
    facts = compress_mixed.facts_foreseen(mixed, wanted.several, wanted.method)
    ends = {"seconds": mixed.seconds, "least_bytes": mixed.least, "most_bytes": mixed.most}
    return _document(job, facts) | _forecast(mixed.forecast) | ends


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
    job: compress_ways.Job,
    model: str,
    choose: Chooser,
    limits: _Limits,
    metric: Callable[..., Any] | None,
    within: str,
    unreached: str,
    out: str | None,
    tell: Tell,
) -> dict[str, Any]:
    import shutil

    from isoloss.compress.activations import detach
    from isoloss.compress.pipeline import compress
    from isoloss.compress.saving import save

    made, subject = job.made, job.made.loaded.subject
    before, score = _loss(made), None if metric is None else float(metric(subject.model))
    work = None if out is None else Path(out) / compress_ways.STAGES
    kept = {name: own.clone() for name, own in subject.model.state_dict().items()} if limits.rise else {}
    rise, after = limits.rise, before
    for _ in range(TRIES):
        choices, facts = choose(rise)
        document = _document(job, facts)
        found = compress(
            subject.model,
            choices,
            made.batches,
            folder=work,
            fisher=_squares(job, choices),
            within="layer" if within == "layer" else "block",
            unreached="nearest" if unreached == "nearest" else "refuse",
            blockwise=job.ways.blockwise,
            subject=compress_ways.with_targets(made),
            activations=job.ways.activations,
            rotated=job.rotated,
            tuning=job.ways.tuning,
            progress=tell,
            known_as=made.known_as,
        )
        after = _loss(made)
        if limits.rise is None or before is None or after is None or after - before <= limits.rise:
            break
        # Layers were chosen as fitted one by one; together they came to more. Ask for less.
        rise = 0.9 * limits.rise * min(limits.rise, float(rise or limits.rise)) / (after - before)
        detach(subject.model)
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
        sizes = save(found, out, compress_ways.source_of(model))
        for place in (work, Path(out) / compress_ways.CANDIDATES):
            shutil.rmtree(place, ignore_errors=True)
    scores = (score, None if metric is None else float(metric(subject.model)))
    return document | _result(found, made, (before, after), scores, out, sizes)


def _squares(job: compress_ways.Job, choices: dict[str, Choice | None]) -> dict[str, Tensor] | None:
    """Squared gradients of the layers whose solver needs them."""
    from isoloss.compress.layers import find
    from isoloss.compress.recipe import chosen
    from isoloss.compress.solvers import get

    every = find(job.made.loaded.subject.model).layers
    own = chosen(every, choices)
    needing = [
        (layer, one.solver)
        for layer in every
        if (one := own[layer.name]) is not None and "fisher" in get(one.solver).needs
    ]
    if not needing:
        return None
    return job.squares.of([layer for layer, _ in needing], needing[0][1])


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
        "least_bytes": None,
        "most_bytes": None,
    }

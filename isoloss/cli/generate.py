"""``isoloss generate``: a text continued by a model of a folder, compressed or not, perhaps with a draft."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.bench import model_of
from isoloss.cli.options import Json, Seed
from isoloss.cli.show import check_writable, for_people, number, write_json

if TYPE_CHECKING:
    from isoloss.deploy.decoders import Decoder
    from isoloss.deploy.words import Words

DTYPES = ("float32", "bfloat16")


def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder: of isoloss compress or pack --out, of Hugging Face, with a GGUF file, or a checkpoint of "
            "isoloss.trainers.gpt."
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    new: Annotated[int, typer.Option(min=1, help="Most new tokens.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of the draws; 0 takes the likeliest token.")
    ] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest tokens that together have this probability; 1: all.")
    ] = 1.0,
    draft: Annotated[
        str | None,
        typer.Option(help="Folder of a cheaper model of the same tokens that drafts: the model compressed."),
    ] = None,
    drafted: Annotated[int, typer.Option(min=1, help="Tokens drafted for each reading of the model.")] = 4,
    chat: Annotated[bool, typer.Option("--chat", help="The text is a message; answer it.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or GGUF file with the tokenizer, where the model's has none.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of weights that are not compressed: float32, or bfloat16 in half the bytes.")
    ] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Each on a core of its own.")] = 1,
    seed: Seed = 0,
    json: Json = None,
) -> int:
    """Continue a text, token by token as they come.

    With a draft, every token still has the model's own distribution. What it took is said on standard error.
    """
    if json is not None:
        check_writable(json)
    if dtype not in DTYPES:
        raise ValueError(f"needed --dtype {' or '.join(DTYPES)}, got {dtype!r}")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise ValueError("needed a text to continue, got none")
    try:
        from isoloss.deploy.bench import pinned
        from isoloss.deploy.sampling import Sampling
        from isoloss.deploy.words import Stream, words_of
    except ImportError as error:
        raise ValueError("generating needs torch. Do: pip install 'isoloss[torch]'") from error

    sampling = Sampling(temperature, top_k, top_p)
    one = _decoder(model, dtype)
    other = None if draft is None else _decoder(draft, dtype)
    words = words_of(tokenizer or model, one.vocabulary)
    ids = _ids(words, text, chat, tokenizer or model)
    with for_people(json), pinned(threads):
        stream = Stream(words, lambda piece: typer.echo(piece, nl=False))
        made = _made(one, other, ids, new, drafted, sampling, seed, words.end, stream)
        stream.end()
        typer.echo()
    typer.echo(_told(made), err=True)
    if json is not None:
        write_json(
            json,
            {
                "schema": "isoloss/generate/1",
                "model": model,
                "draft": draft,
                "prompt_tokens": len(ids),
                "text": words.text(stream.tokens),
                **made,
            },
        )
    return 0


def _decoder(place: str, dtype: str) -> Decoder:
    import torch

    from isoloss.deploy.decoders import decoder

    return decoder(model_of(place).to(getattr(torch, dtype)))


def _ids(words: Words, text: str, chat: bool, place: str) -> list[int]:
    if not chat:
        return words.tokens(text)
    if words.chat is None:
        raise ValueError(f"the tokenizer of {place} has no template for messages. Leave out --chat")
    return words.chat(text)


def _made(
    model: Decoder, draft: Decoder | None, ids: list[int], new: int, drafted: int, sampling: Any, seed: int,
    end: int | None, told: Any,
) -> dict[str, Any]:  # fmt: skip
    """Generated, as JSON has it."""
    from isoloss.deploy.generate import generate as alone
    from isoloss.deploy.speculative import Fixed, speculate

    found: dict[str, Any]
    if draft is None:
        plain = alone(model, ids, new, sampling, seed, end, told)
        seconds, prompt, tokens, found = plain.seconds, plain.prompt_seconds, plain.tokens, {}
        calls = plain.calls
    else:
        both = speculate(model, draft, ids, new, Fixed(drafted), sampling, seed, end, told)
        seconds, prompt, tokens, calls = both.seconds, both.prompt_seconds, both.tokens, both.calls
        found = {"drafted": both.drafted, "accepted": both.accepted}
    return {
        "tokens": list(tokens),
        "readings": calls,
        "drafted": None,
        "accepted": None,
        "seconds": seconds,
        "prompt_seconds": prompt,
        "tokens_per_second": len(tokens) / seconds,
        **found,
    }


def _told(made: dict[str, Any]) -> str:
    count, readings = len(made["tokens"]), made["readings"]
    words = f"{count} tokens, {number(made['tokens_per_second'], 3)} a second"
    if made["drafted"]:
        words += (
            f"; {made['accepted'] / made['drafted']:.0%} of {made['drafted']} drafted tokens accepted, "
            f"{count / readings:.2f} tokens for each reading of the model"
        )
    return words

"""Text as a model's tokens, and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES = 256
"""A model with so many tokens and no tokenizer reads bytes."""

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
"""Any of these, and the folder has a tokenizer."""

_HALF = "\N{REPLACEMENT CHARACTER}"  # a character of which some bytes are still to come


@dataclass(frozen=True, eq=False)
class Words:
    """How one model's text is written in tokens.

    Attributes:
        tokens: of a text.
        text: of tokens.
        end: the token that ends a text, if there is one.
        chat: tokens of a message to a model that answers; None: the model has no template for that.

    Example:
        >>> words = of_bytes()
        >>> words.tokens("aé"), words.text([97, 195, 169])
        ([97, 195, 169], 'aé')
    """

    tokens: Callable[[str], list[int]]
    text: Callable[[Sequence[int]], str]
    end: int | None = None
    chat: Callable[[str], list[int]] | None = None


def of_bytes() -> Words:
    """Each byte of UTF-8 is a token."""
    return Words(
        lambda text: list(text.encode("utf-8")), lambda ids: bytes(ids).decode("utf-8", errors="replace")
    )


def words_of(place: str | Path, vocabulary: int) -> Words:
    """Of a Hugging Face folder or a GGUF file; of a model with 256 tokens and no tokenizer bytes.

    Nothing is fetched, and no code of the folder is run.

    Args:
        place: folder or file.
        vocabulary: how many tokens the model has.

    Raises:
        ValueError: there is no tokenizer for it, or it cannot be loaded.
    """
    found = _tokenizer(Path(place))
    if found is None:
        if vocabulary == BYTES:
            return of_bytes()
        raise ValueError(
            f"{place} has no tokenizer, and the model {vocabulary} tokens, which are not bytes. "
            "Name the original's folder with --tokenizer"
        )
    if len(found) > vocabulary:
        raise ValueError(
            f"the tokenizer of {place} has {len(found)} tokens, the model {vocabulary}. Name another with --tokenizer"
        )

    def chat(message: str) -> list[int]:
        turn = [{"role": "user", "content": message}]
        return list(
            found.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
        )

    return Words(
        lambda text: list(found(text, verbose=False)["input_ids"]),
        lambda ids: str(found.decode(ids, skip_special_tokens=True)),
        found.eos_token_id,
        chat if found.chat_template else None,
    )


def _tokenizer(place: Path) -> Any:
    """None where there is none."""
    given: dict[str, Any] = {"local_files_only": True}
    folder = place
    if place.is_file() or not (place / "config.json").is_file():
        files = [place] if place.is_file() else sorted(place.glob("*.gguf"))
        if len(files) == 1 and files[0].suffix == ".gguf":
            folder, given["gguf_file"] = files[0].parent, files[0].name
        elif not (place / "tokenizer.json").is_file():
            return None
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"the tokenizer of {place} needs transformers. Do: pip install 'isoloss[huggingface]'"
        ) from error
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **given)
    except Exception as error:  # of a folder without one anything may come
        if "gguf_file" in given or any((folder / name).is_file() for name in FILES):
            raise ValueError(
                f"transformers cannot load the tokenizer of {place}: {' '.join(str(error).split())[:300]}"
            ) from error
        return None
    finally:
        transformers.logging.set_verbosity(before)


class Stream:
    """Text as its tokens come: what is whole is given on.

    Args:
        words: of the model.
        write: is given each piece; all of them together are the text.

    Example:
        >>> pieces = []
        >>> stream = Stream(of_bytes(), pieces.append)
        >>> for token in (97, 195, 169, 98):
        ...     stream(token)
        >>> stream.end()
        >>> pieces
        ['a', 'é', 'b']
    """

    def __init__(self, words: Words, write: Callable[[str], None]) -> None:
        self.words, self.write = words, write
        self.tokens: list[int] = []
        self._from, self._written = 0, ""

    def __call__(self, token: int) -> None:
        """One more."""
        self.tokens.append(token)
        text = self.words.text(self.tokens[self._from :])
        if not text.endswith(_HALF):
            self._give(text)
            if text.endswith("\n"):  # decoding all from the beginning again would take ever longer
                self._from, self._written = len(self.tokens), ""

    def end(self) -> None:
        """Nothing more comes."""
        self._give(self.words.text(self.tokens[self._from :]))

    def _give(self, text: str) -> None:
        more = text[len(self._written) :]
        if more:
            self.write(more)
        self._written = text

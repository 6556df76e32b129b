"""Tokenizers as GGUF has them: copied from a GGUF file, or made from a Hugging Face folder's ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoloss.compress.export.written import needed

_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_CASES + r"\p{N}{1,3}" + _REST: "llama-bpe", _CASES + r"\p{N}" + _REST: "qwen2"}
"""How text is cut before it is merged -> llama.cpp's name of it."""
NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5


def add_tokens(writer: Any, source: Path | None, size: int) -> str | None:
    """Write the keys of a tokenizer.

    Args:
        writer: a ``gguf.GGUFWriter``.
        source: GGUF file, or folder with ``tokenizer.json``; None: the file says that it has none, and programs take
            numbers of tokens.
        size: tokens of the model.

    Returns:
        A note, where there is something to say.

    Raises:
        ValueError: it cannot be read, has more tokens than the model, or llama.cpp does not know its kind.
    """
    if source is None:
        writer.add_tokenizer_model("no_vocab")
        return (
            "no tokenizer is in the file: it takes numbers of tokens. Give a folder or GGUF file that has one"
        )
    if source.is_file():
        _copy(writer, source, size)
        return None
    _make(writer, source, size)
    return None


def _copy(writer: Any, source: Path, size: int) -> None:
    gguf = needed("gguf")
    try:
        fields = gguf.GGUFReader(source).fields
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read a tokenizer from {source}: {error}") from error
    own = {key: one for key, one in fields.items() if key.startswith("tokenizer.")}
    if "tokenizer.ggml.model" not in own:
        raise ValueError(f"needed a GGUF file with a tokenizer, got {source}, which has none")
    count = len(own["tokenizer.ggml.tokens"].data) if "tokenizer.ggml.tokens" in own else size
    if count != size:
        raise ValueError(f"the model has {size} tokens, {source} has {count}. Give the model's own tokenizer")
    for key, field in own.items():
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub)


def _make(writer: Any, folder: Path, size: int) -> None:
    gguf = needed("gguf")
    try:
        known = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read {folder / 'tokenizer.json'}: {error}. Give a folder that has it, or a GGUF file"
        ) from error
    kind = known["model"].get("type")
    if kind == "BPE":
        pre = _cut_of(known, folder)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
    elif kind == "WordPiece":
        writer.add_tokenizer_model("bert")
    else:
        raise ValueError(
            f"tokenizers of the kinds BPE of bytes and WordPiece are written, {folder} has {kind}. "
            "Give a GGUF file of the same model, whose tokenizer is copied"
        )
    tokens, types = _tokens(known, size, kind == "WordPiece")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, load_merges=kind == "BPE", n_vocab=size).add_to_gguf(writer, quiet=True)


def _tokens(known: Mapping[str, Any], size: int, words: bool) -> tuple[list[str], list[int]]:
    """All tokens in order, and their types; numbers without a token are unused."""
    named = {number: text for text, number in known["model"]["vocab"].items()}
    types = dict.fromkeys(named, NORMAL)
    for added in known.get("added_tokens", []):
        named[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER
    if named and max(named) >= size:
        raise ValueError(f"the model has {size} tokens, its tokenizer {max(named) + 1}. Give the model's own")
    unknown = known["model"].get("unk_token")
    tokens, kinds = [], []
    for number in range(size):
        text, kind = named.get(number, f"[PAD{number}]"), types.get(number, UNUSED)
        if words and kind == NORMAL:  # a word's first piece has a mark, and not the others
            text = text[2:] if text.startswith("##") else f"\u2581{text}"
        tokens.append(text)
        kinds.append(UNKNOWN if words and named.get(number) == unknown else kind)
    return tokens, kinds


def _cut_of(known: Mapping[str, Any], folder: Path) -> str:
    """llama.cpp's name of how text is cut into what is merged."""
    outer = known.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        found = SPLITS.get(steps[0].get("pattern", {}).get("Regex", ""))
        if found is not None:
            return found
    raise ValueError(
        f"how {folder} cuts text ({', '.join(map(str, kinds)) or 'not at all'}) has no name known here. Give a GGUF "
        "file of the same model, whose tokenizer is copied"
    )

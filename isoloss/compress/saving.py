"""A compressed model as a folder: ``compressed.safetensors`` and ``recipe.json``. No pickle, no original weights needed.

The recipe has the hash of the tensors' file, so that a folder whose parts do not belong together is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from isoloss.compress.activations import attach, detach
from isoloss.compress.compressed import Compressed, put
from isoloss.compress.formats import Encoded
from isoloss.compress.layers import find
from isoloss.compress.recipe import SCHEMA, TRAINED, Identity, Recipe, identity
from isoloss.compress.resume import flat, parts_of, write_tensors
from isoloss.files import write_atomically

TENSORS = "compressed.safetensors"
RECIPE = "recipe.json"
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
)  # of a Hugging Face folder, what text and generation need and no weight is
PLAIN = "plain|"  # before the path of a tensor that is stored as it was


def save(compressed: Compressed, folder: str | Path, beside: str | Path | None = None) -> dict[str, int]:
    """Write a compressed model to a folder, which is made where it is not there.

    Args:
        compressed: the model.
        folder: where it goes.
        beside: Hugging Face folder whose files of tokenizer, chat template and generation are copied; ``config.json`` is
            written with them, as the model is now.

    Returns:
        Bytes on disk: ``encoded`` weights, ``plain`` tensors, ``header`` of the tensors' file, ``recipe``. The first two
        are :attr:`Compressed.bytes`.

    Raises:
        ValueError: it cannot be written there.
    """
    place = Path(folder)
    path = place / TENSORS
    if beside is not None and not Path(beside).is_dir():
        raise ValueError(f"needed a folder with a tokenizer, got {beside}. Leave it out, or name one")
    tensors = flat(compressed.encoded) | {f"{PLAIN}{name}": one for name, one in compressed.plain.items()}
    write_tensors(path, tensors, {"isoloss": SCHEMA})
    size = path.stat().st_size
    document = {
        "schema": SCHEMA,
        **compressed.recipe.to_json(),
        "bytes": {"encoded": compressed.bits // 8, "plain": compressed.plain_bytes},
        "file": {"name": TENSORS, "bytes": size, "sha256": _hash(path)},
        "seconds": compressed.seconds,
    }
    write_atomically(place / RECIPE, json.dumps(document, indent=1, allow_nan=False) + "\n")
    if beside is not None:
        _copy(compressed.recipe.model, Path(beside), place)
    return {
        "encoded": compressed.bits // 8,
        "plain": compressed.plain_bytes,
        "header": size - compressed.bytes,
        "recipe": (place / RECIPE).stat().st_size,
    }


def _copy(model: Identity, source: Path, place: Path) -> None:
    """What stands beside a model, and its config as it is now."""
    try:
        for name in BESIDE:
            if (source / name).is_file() and (source / name).resolve() != (place / name).resolve():
                shutil.copyfile(source / name, place / name)
    except OSError as error:
        raise ValueError(f"cannot copy {error.filename} to {place}: {error.strerror or error}") from error
    if model.kind == "huggingface" and model.config is not None:
        write_atomically(place / "config.json", json.dumps(model.config, indent=2) + "\n")


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model of a folder that :func:`save` wrote, with the decoded weights, in eval mode.

    Args:
        folder: with both files.
        model: of the same class and sizes, whose numbers are replaced. Hugging Face models are made from their config
            and need none.

    Raises:
        ValueError: a file is missing, damaged or not of the other; the model is another one, or needed.
    """
    return fill(read(folder), model)


def read(folder: str | Path) -> Compressed:
    """What :func:`save` was given, read back without a model.

    Raises:
        ValueError: a file is missing, damaged or not of the other.
    """
    place = Path(folder)
    document = _document(place / RECIPE)
    path = place / TENSORS
    try:
        recipe, wanted, sizes = Recipe.from_json(document), document["file"], document["bytes"]
        seconds, size, known = float(document["seconds"]), int(wanted["bytes"]), str(wanted["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{place / RECIPE} is no recipe of this version: {error!r}. Save the model anew"
        ) from error
    if not path.is_file():
        raise ValueError(f"needed {TENSORS} beside {place / RECIPE}, got none")
    if path.stat().st_size != size or _hash(path) != known:
        raise ValueError(
            f"{path} is not the file that {RECIPE} was written with: {path.stat().st_size:,} bytes, {size:,} were "
            "written. It is damaged or of another model; save or copy both again"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    encoded = {}
    for name, done in recipe.layers.items():
        try:
            encoded[name] = Encoded.from_tensors(done.format, done.shape, parts_of(tensors, name))
        except ValueError as error:
            raise ValueError(f"{path}, layer {name}: {error}") from error
    plain = {key.removeprefix(PLAIN): one for key, one in tensors.items() if key.startswith(PLAIN)}
    made = Compressed(encoded, plain, recipe, seconds)
    if {"encoded": made.bits // 8, "plain": made.plain_bytes} != sizes:
        raise ValueError(f"{place / RECIPE} says other sizes than {TENSORS} has. Save the model anew")
    return made


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror or error}. Needed a folder of isoloss compress"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. It is damaged; save or copy it again") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"needed a recipe with the schema {SCHEMA} in {path}, got {got!r}")
    return document


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill(compressed: Compressed, model: nn.Module | None, decoded: bool = True) -> nn.Module:
    """A model with the numbers of a compressed one, in eval mode.

    Args:
        compressed: the numbers.
        model: as for :func:`load`.
        decoded: set its encoded layers too; else they are left for others to replace, and hold no numbers of meaning.

    Raises:
        ValueError: as :func:`load`.
    """
    known = compressed.recipe.model
    if model is None:
        model = _made(known)
    elif _class(identity(model)) != _class(known):
        raise ValueError(f"a {known.name} was compressed, got a {identity(model).name}. Give the same model")
    _set(model, compressed)
    if decoded:
        put(model, compressed.encoded)
    inputs = compressed.recipe.inputs
    if inputs is None:
        detach(model)
    else:
        attach(model, inputs.how, inputs.ranges)
    return model.eval()


def _made(known: Identity) -> nn.Module:
    """The model that a config describes, its numbers not set."""
    if known.kind == TRAINED and known.config is not None:
        from isoloss.trainers import gpt_modules
        from isoloss.trainers.gpt_settings import Settings
        from isoloss.trainers.transformer import GPT

        settings = Settings.read(known.config)
        return gpt_modules.of(GPT(settings), settings)
    if known.kind != "huggingface" or known.config is None:
        raise ValueError(
            f"needed a {known.name} to load into, as only you can make it. Give load(folder, model)"
        )
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{known.name} needs transformers. Do: pip install 'isoloss[huggingface]'"
        ) from error
    maker = getattr(transformers, known.name, None)
    if maker is None:
        raise ValueError(f"transformers {transformers.__version__} has no {known.name}, which was compressed")
    with _without_numbers():
        made: nn.Module = maker._from_config(
            maker.config_class.from_dict(dict(known.config)), dtype=getattr(torch, known.dtype)
        )
    return made


@contextmanager
def _without_numbers() -> Iterator[None]:
    """Random numbers would be drawn for nothing."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # it then takes longer
        yield
        return
    with no_init_weights():
        yield


def _class(known: Identity) -> str:
    """Without its module, whose name depends on how a file was imported."""
    return known.name.rpartition(".")[2]


def _set(model: nn.Module, compressed: Compressed) -> None:
    """Set all numbers of a model but the encoded ones; refuse it before any is changed."""
    recipe = compressed.recipe
    _untie(model, {*compressed.plain, *(done.path for done in recipe.layers.values())})
    state = model.state_dict(keep_vars=True)
    places = {path: _place(path, state) for path in compressed.plain}
    wanted = {path for path, _ in places.values()} | {done.path for done in recipe.layers.values()}
    lacking = sorted(path for path in wanted | set(recipe.tied) if path not in state)
    more = sorted(set(state) - wanted - set(recipe.tied))
    if lacking or more:
        said = f"it has no {lacking[0]}" if lacking else f"nothing was stored for its {more[0]}"
        raise ValueError(
            f"another model was compressed: {said}. Give a {recipe.model.name} of the same sizes"
        )
    layers = {layer.name: layer for layer in find(model).layers}
    for path, (whole, index) in places.items():
        own = state[whole] if index is None else state[whole][index]
        _refuse_shape(path, tuple(own.shape), tuple(compressed.plain[path].shape))
    for name, one in compressed.encoded.items():
        if name not in layers:
            raise ValueError(
                f"another model was compressed: it has no layer {name}. Give a {recipe.model.name}"
            )
        _refuse_shape(name, layers[name].shape, tuple(one.shape))
    for path, owner in recipe.tied.items():
        setattr(*_owner(model, path), state[owner])
    with torch.no_grad():
        for done in recipe.layers.values():
            own = state[done.path]
            own.data = own.data.to(getattr(torch, done.dtype))
        for path, (whole, index) in places.items():
            own, tensor = state[whole], compressed.plain[path]
            if index is None:
                own.data = tensor.to(own.device)
            else:
                own[index].copy_(tensor)


def _untie(model: nn.Module, stored: Set[str]) -> None:
    """Give a parameter that was stored by itself a memory of its own, where the model has it tied to another."""
    state = model.state_dict(keep_vars=True)
    seen: dict[int, str] = {}
    for path, own in state.items():
        if path in stored and isinstance(own, nn.Parameter):
            if id(own) in seen:
                setattr(*_owner(model, path), nn.Parameter(own.detach().clone(), own.requires_grad))
            seen.setdefault(id(own), path)


def _place(path: str, state: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """Of a stored tensor the path of the model's, and which expert of it."""
    whole, _, index = path.rpartition(".")
    return (whole, int(index)) if path not in state and whole in state and index.isdigit() else (path, None)


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    place, _, name = path.rpartition(".")
    return model.get_submodule(place), name


def _refuse_shape(name: str, own: tuple[int, ...], stored: tuple[int, ...]) -> None:
    if own != stored:
        raise ValueError(f"{name} was stored with shape {stored}, the model's is {own}. Give the same model")

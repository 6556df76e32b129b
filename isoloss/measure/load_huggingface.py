"""A local Hugging Face folder as a subject: causal and masked language models, encoders, and others for their costs.

Nothing is fetched, and no code of the folder is run. Weights are taken in float32, whatever they are stored in.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.measure.criteria import CrossEntropy, SquaredError
from isoloss.measure.load import Loaded, Wanted, costs_of, windows
from isoloss.measure.subject import Batch, Subject

UNTOLD = (
    "model",
    "models",
    "checkpoint",
    "weights",
    "snapshot",
    "final",
)  # names of folders that say nothing
MASKED = 0.15  # share of the tokens that a masked language model is to find
RANDOM = "no text was given (--data): the tokens are random, which costs do not depend on"


def from_folder(place: Path, wanted: Wanted) -> Loaded:
    """The model of a folder, or of a GGUF file in it.

    Raises:
        ValueError: transformers is not there, or cannot load it.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{place} needs transformers. Do: pip install 'isoloss[huggingface]'") from error
    folder, keywords = place, {"local_files_only": True, "dtype": torch.float32}
    if not (place / "config.json").is_file():
        file = place if place.is_file() else _the_one_gguf(place)
        if importlib.util.find_spec("gguf") is None:
            raise ValueError(f"{file} needs the package gguf. Do: pip install gguf")
        folder = file.parent
        keywords |= {"gguf_file": file.name}
    kind = _kind(folder)
    maker = getattr(transformers, kind, None)
    if maker is None:
        raise ValueError(
            f"{folder} holds a {kind}, which transformers {transformers.__version__} does not have"
        )
    try:
        with _quiet(transformers):
            model, said = maker.from_pretrained(folder, output_loading_info=True, **keywords)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"transformers cannot load {folder}: {' '.join(str(error).split())[:300]}"
        ) from error
    model = model.eval()
    name, notes = _named(folder), _notes(said, folder)
    if "gguf_file" in keywords:
        file = folder / str(keywords["gguf_file"])
        name, notes = file.stem, (*notes, _unpacked(file))
    masked = kind.endswith("ForMaskedLM")  # whose mask is a word of the tokeniser
    needed = wanted.data is not None or masked  # reading one out of a GGUF file takes seconds
    tokens = _tokeniser(transformers, folder, keywords) if needed else None
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        return _causal(model, tokens, wanted, name, notes)
    if model.main_input_name == "input_ids":
        return _encoder(model, tokens, wanted, name, notes, masked)
    return _other(model, wanted, name, notes)


def _named(folder: Path) -> str:
    """The folder's name, with that of the one above it where its own says nothing."""
    place = folder.resolve()
    return f"{place.parent.name}/{place.name}" if place.name in UNTOLD else place.name


def _unpacked(file: Path) -> str:
    """How the weights of a GGUF file are stored, which measurements do not see."""
    gguf: Any = importlib.import_module("gguf")
    held: dict[str, int] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        held[tensor.tensor_type.name] = held.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    whole = sum(held.values())
    shares = [
        f"{kind} {n / whole:.0%}" for kind, n in sorted(held.items(), key=lambda e: -e[1]) if n > whole / 200
    ]
    return f"stored as {', '.join(shares)} of the weights, unpacked to float32 to be measured"


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without warnings and bars of the library: what matters of them is said in notes."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        # The bar of unpacking a GGUF file asks no setting.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()


def _the_one_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{folder} holds {len(files)} GGUF files. Name one: {files[0]}")
    return files[0]


def _kind(folder: Path) -> str:
    """The class of the model that the folder says it holds; of a GGUF file a causal language model."""
    config = folder / "config.json"
    if not config.is_file():
        return "AutoModelForCausalLM"
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("architectures") or ["AutoModel"]
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{config} is no JSON object") from error
    return str(named[0])


def _notes(said: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    notes = []
    missing = sorted(said.get("missing_keys", ()))
    if missing:
        notes.append(f"{len(missing)} weights are not in {folder} and are random: {', '.join(missing[:3])}")
    config = folder / "config.json"
    if config.is_file():
        own = json.loads(config.read_text(encoding="utf-8"))
        stored = own.get("dtype") or own.get("torch_dtype") or "float32"
        if stored != "float32":
            notes.append(f"stored in {stored}, measured in float32")
    return tuple(notes)


def _tokeniser(
    transformers: Any, folder: Path, keywords: Mapping[str, Any]
) -> Callable[[str], list[int]] | None:
    own = {key: value for key, value in keywords.items() if key != "dtype"}
    try:
        with _quiet(transformers):
            made = transformers.AutoTokenizer.from_pretrained(folder, **own)
    except Exception:  # of a folder without one anything may come
        return None
    # A text is cut into windows, so its length is no matter, and it gets no marks at its ends.
    return lambda text: list(made(text, add_special_tokens=False, verbose=False)["input_ids"])


def _ids(
    tokens: Callable[[str], list[int]] | None, wanted: Wanted, config: Any, count: int
) -> tuple[Tensor, bool]:
    """Tokens of the text, or random ones; whether they are of the text.

    Raises:
        ValueError: there is text and no tokeniser.
    """
    if wanted.data is None:
        generator = torch.Generator().manual_seed(wanted.seed)
        return torch.randint(0, config.vocab_size, (count,), generator=generator), False
    if tokens is None:
        raise ValueError(f"needed a tokeniser beside the model to read {wanted.data}, got none")
    try:
        text = wanted.data.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {wanted.data} as text: {error}") from error
    return torch.tensor(tokens(text[: 40 * count])), True  # more characters than any token has on average


def _context(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        known = getattr(config, name, None)
        if isinstance(known, int) and known > 0:
            return known
    return 1 << 20


def _causal(
    model: Any, tokens: Callable[[str], list[int]] | None, wanted: Wanted, name: str, notes: tuple[str, ...]
) -> Loaded:
    context = _context(model.config)
    length = wanted.tokens(context)
    ids, of_text = _ids(tokens, wanted, model.config, wanted.batch * wanted.batches * (length + 1) + 1)
    batches: list[Batch] = [
        ({"input_ids": x}, y)  # nothing is padded, so there is no mask
        for x, y in windows(ids, wanted, length)
    ]
    subject = Subject(model, batches, CrossEntropy(), name, outputs=_logits)
    return Loaded(
        subject,
        "" if of_text else RANDOM,
        notes if of_text else (*notes, RANDOM),
        _generator(model, ids),
        context,
    )


def _logits(out: Any) -> Any:
    return out.logits


def _generator(model: Any, ids: Tensor) -> Callable[[int, int], object]:
    import transformers

    made: Any = transformers.GenerationConfig

    @torch.inference_mode()
    def generate(prompt: int, new: int) -> object:
        given = ids.repeat(math.ceil(prompt / len(ids)))[:prompt][None]
        settings = made(
            do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, eos_token_id=None
        )
        return model.generate(given, attention_mask=torch.ones_like(given), generation_config=settings)

    return generate


def _encoder(
    model: Any,
    tokens: Callable[[str], list[int]] | None,
    wanted: Wanted,
    name: str,
    notes: tuple[str, ...],
    masked: bool,
) -> Loaded:
    """A masked language model, or an encoder: the loss of the latter is the distance of its features from what they
    are now, whose Hessian is the Gauss-Newton matrix."""
    length = wanted.tokens(_context(model.config))
    ids, of_text = _ids(tokens, wanted, model.config, wanted.batch * wanted.batches * (length + 1) + 1)
    inputs = [x for x, _ in windows(ids, wanted, length)]
    if masked:
        batches = _masked(inputs, model.config, wanted.seed, tokens)
        subject = Subject(model, batches, CrossEntropy(), name, outputs=_logits)
        return Loaded(subject, "" if of_text else RANDOM, notes if of_text else (*notes, RANDOM))
    if not hasattr(_output(model, inputs[0][:1]), "last_hidden_state"):
        loaded = costs_of(model, {"input_ids": inputs[0]}, name, notes if of_text else (*notes, RANDOM))
        return loaded
    subject = Subject(
        model, [({"input_ids": x}, torch.empty(0)) for x in inputs], SquaredError(), name, outputs=_features
    )
    with torch.no_grad(), subject.measuring():
        batches = [(x, subject.predict(x)) for x, _ in subject.batches]
    why = "the loss is half the squared distance of the mean features from what they are"
    own = Subject(model, batches, SquaredError(), name, outputs=_features)
    flat = (
        f"{why}, so that every gradient is zero. Needed: a make() that gives a Subject with a loss of its own"
    )
    notes = (*notes, why, *(() if of_text else (RANDOM,)))
    return Loaded(own, "" if of_text else RANDOM, notes, flat=flat)


def _output(model: Any, ids: Tensor) -> Any:
    with torch.no_grad():
        return model(input_ids=ids)


def _features(out: Any) -> Any:
    """The mean over the positions."""
    return out.last_hidden_state.mean(dim=1)


def _masked(
    inputs: Sequence[Tensor], config: Any, seed: int, tokens: Callable[[str], list[int]] | None
) -> list[Batch]:
    """A share of the tokens replaced by the mask; the targets of the others are not counted."""
    found = tokens("[MASK]") if tokens is not None else []
    mask = found[0] if len(found) == 1 else getattr(config, "mask_token_id", None) or 0
    generator, ignored = torch.Generator().manual_seed(seed), CrossEntropy().ignored
    batches: list[Batch] = []
    for x in inputs:
        hidden = torch.rand(x.shape, generator=generator) < MASKED
        hidden[:, 0] |= ~hidden.any(dim=1)  # at least one in each
        batches.append(({"input_ids": torch.where(hidden, mask, x)}, torch.where(hidden, x, ignored)))
    return batches


def _other(model: nn.Module, wanted: Wanted, name: str, notes: tuple[str, ...]) -> Loaded:
    """A model of pictures: random ones of its size, for its costs."""
    config: Any = model.config
    size = getattr(config, "image_size", None) or 224
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise ValueError(
            f"{name} takes {getattr(model, 'main_input_name', 'unknown inputs')}, which is not made up here. "
            "Write a make() that gives (model, inputs)"
        )
    high, wide = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(wanted.seed)
    shape = (wanted.batch, getattr(config, "num_channels", 3), high, wide)
    pictures = torch.randn(shape, generator=generator)
    return costs_of(model, {"pixel_values": pictures}, name, (*notes, f"random pictures of {high} x {wide}"))

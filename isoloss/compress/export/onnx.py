"""ONNX: the file that ONNX Runtime and others run."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoloss.compress.compressed import Compressed
from isoloss.compress.export.decoding import NARROW, Decoder, decoder
from isoloss.compress.export.matmul import ACCURACY, MatMulNBits, fits
from isoloss.compress.export.written import Written, needed, whole
from isoloss.compress.layers import Layer, find
from isoloss.compress.recipe import TRAINED, Identity

Matmul = Literal["nbits", "qdq"]
OPSET = 21  # the first with four-bit numbers and blocks in DequantizeLinear
APART = 1 << 30  # bytes of tensors from which they get a file of their own: one file ends at 2 GiB


@dataclass(frozen=True, eq=False)
class Example:
    """Inputs that a model is traced with.

    Args:
        inputs: by name, as ``forward`` calls them; the file has the same names. At least two examples, as the number of
            them is left open.
        open: input -> dimension -> its name, for dimensions whose length is left open; by default the first of each.
    """

    inputs: Mapping[str, Tensor]
    open: Mapping[str, Mapping[int, str]] | None = None

    @property
    def dimensions(self) -> dict[str, dict[int, str]]:
        """Names of the open dimensions of each input."""
        given = {name: {0: "batch"} for name in self.inputs} if self.open is None else self.open
        return {name: dict(given.get(name, {})) for name in self.inputs}


def write_onnx(
    compressed: Compressed,
    model: nn.Module,
    path: str | Path,
    example: Example | None = None,
    *,
    matmul: Matmul = "nbits",
    accuracy: int = 1,
) -> Written:
    """Write a compressed model as ONNX: the graph of the model, in float32, with its weights as they are stored.

    Linear layers of integers become MatMulNBits where it can hold them, other integers DequantizeLinear; tables, floats,
    outliers and low-rank parts are looked up, scaled and added by operators of the standard, which ONNX Runtime does once
    when it opens the file.

    Args:
        compressed: the encoded weights.
        model: the same model, with any numbers of its own for what was not encoded; :func:`isoloss.compress.load` gives
            it. It is put into eval mode and float32.
        path: of the file, which ends in ``.onnx``; tensors of a gibibyte and more go beside it, in ``.onnx.data``.
        example: inputs to trace with; Hugging Face language models need none.
        matmul: ``nbits``, or ``qdq`` for operators of the ONNX standard alone.
        accuracy: what MatMulNBits may round activations to: 1 float32, 2 float16, 3 bfloat16, 4 int8. It is always
            written: where it is not, a program chooses.

    Raises:
        ValueError: another model, no example where one is needed, an unknown setting, a place that cannot be written;
            packages onnx and onnxscript are not installed.
    """
    needed("onnx")
    needed("onnxscript")
    if matmul not in ("nbits", "qdq") or accuracy not in ACCURACY:
        raise ValueError(f"matmul is nbits or qdq and accuracy 1 to 4, got {matmul!r} and {accuracy!r}")
    given = example or tokens_of(model)
    layers = layers_of(model, compressed)
    model.eval().float()
    with _swapped(model, layers, compressed, matmul, accuracy) as (products, rest):
        graph = _Graph(model, rest)
        made = traced(graph, given, OPSET, _is_stored)
        _pack(made)
        kinds = {name: one.kind for name, one in products.items()} | {
            name: one.kind for name, one in graph.decoders.items()
        }
        bits = {name: one.bits for name, one in products.items()} | {
            name: one.bits for name, one in graph.decoders.items()
        }
    place = Path(path)
    with whole(place) as target:
        total = sum(one.const_value.nbytes for one in made.model.graph.initializers.values())
        made.save(target, external_data=total >= APART)
        size = sum(one.stat().st_size for one in target.parent.iterdir())
    order = list(compressed.encoded)
    notes = _notes(kinds, accuracy, matmul)
    return Written(place, size, {n: kinds[n] for n in order}, {n: bits[n] for n in order}, {}, notes)


def run_onnx(path: str | Path, inputs: Mapping[str, Tensor], threads: int = 1) -> list[NDArray[Any]]:
    """What ONNX Runtime computes on the CPU.

    Args:
        path: of the file.
        inputs: by name.
        threads: of ONNX Runtime.

    Raises:
        ValueError: the package onnxruntime is not installed.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # DequantizeLinear before MatMul is run as MatMulNBits, which rounds activations to int8 unless told otherwise.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given: list[NDArray[Any]] = session.run(None, {name: one.numpy() for name, one in inputs.items()})
    return given


class _Graph(nn.Module):
    """The model, called with weights that decoders give."""

    def __init__(self, model: nn.Module, weights: Sequence[tuple[Layer, Decoder]]):
        super().__init__()
        self.model = model
        self.parts = nn.ModuleList(one for _, one in weights)
        self.layers = [layer for layer, _ in weights]

    @property
    def decoders(self) -> dict[str, Decoder]:
        return {layer.name: one for layer, one in zip(self.layers, self.parts, strict=True)}  # type: ignore[misc]

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        weights: dict[str, Tensor] = {}
        experts: dict[str, dict[int, Tensor]] = {}
        for layer, part in zip(self.layers, self.parts, strict=True):
            matrix = part().T if layer.transposed else part()
            own = matrix.reshape(layer.tensor.shape)
            if layer.index is None:
                weights[layer.path] = own
            else:
                experts.setdefault(layer.path, {})[layer.index] = own
        for path, some in experts.items():
            whole = self.model.get_parameter(path)
            weights[path] = torch.stack([some.get(i, whole[i]) for i in range(whole.shape[0])])
        more = {"use_cache": False} if hasattr(getattr(self.model, "config", None), "use_cache") else {}
        return first_output(torch.func.functional_call(self.model, weights, (), {**inputs, **more}))


def first_output(found: Any) -> Tensor:
    """Of what a model gives, the one output that is written: logits, the last hidden state, or the first tensor."""
    if isinstance(found, Tensor):
        return found
    for name in ("logits", "last_hidden_state"):
        if getattr(found, name, None) is not None:
            return getattr(found, name)  # type: ignore[no-any-return]
    values = found.values() if isinstance(found, Mapping) else found
    return next(one for one in values if isinstance(one, Tensor))


def tokens_of(model: nn.Module, known: Identity | None = None) -> Example:
    """Tokens for a language model of Hugging Face or of ``isoloss.trainers.gpt``.

    Args:
        model: to be traced.
        known: what it can be made from, where its class does not say.

    Raises:
        ValueError: it is another model.
    """
    config: Any = getattr(model, "config", None)
    size = getattr(config, "vocab_size", None)
    masked = size is not None
    if known is not None and known.kind == TRAINED and known.config is not None:
        size, config = known.config.get("vocab_size", 256), None
    if size is None:
        raise ValueError(
            f"{type(model).__name__} needs an example to be traced with. Give its inputs by name"
        )
    length = min(8, int(getattr(config, "max_position_embeddings", 8)))
    ids = torch.arange(2 * length).reshape(2, length) % int(size)
    names = {0: "batch", 1: "tokens"}
    inputs = {"input_ids" if masked else next(iter(inspect.signature(model.forward).parameters)): ids}
    inputs |= {"attention_mask": torch.ones_like(ids)} if masked else {}
    return Example(inputs, {name: names for name in inputs})


def layers_of(model: nn.Module, compressed: Compressed) -> dict[str, Layer]:
    """The layers of a model that were compressed, by name.

    Raises:
        ValueError: the model has no such layer, or of another shape.
    """
    layers = {layer.name: layer for layer in find(model).layers}
    for name, one in compressed.encoded.items():
        if name not in layers or layers[name].shape != tuple(one.shape):
            raise ValueError(
                f"the model has no layer {name} of shape {tuple(one.shape)}. Give the same model"
            )
    return {name: layers[name] for name in compressed.encoded}


@contextmanager
def _swapped(
    model: nn.Module, layers: Mapping[str, Layer], compressed: Compressed, matmul: str, accuracy: int
) -> Iterator[tuple[dict[str, MatMulNBits], list[tuple[Layer, Decoder]]]]:
    """The model with products in place of linear layers, and decoders for the other weights; undone at the end."""
    products: dict[str, MatMulNBits] = {}
    rest: list[tuple[Layer, Decoder]] = []
    places: list[tuple[nn.Module, str, nn.Module]] = []
    paths = {id(module): path for path, module in model.named_modules()}
    try:
        for name, layer in layers.items():
            encoded = compressed.encoded[name]
            path = paths[id(layer.module)]
            if matmul == "nbits" and path and is_product(layer) and fits(encoded):
                bias = getattr(layer.module, "bias", None)
                products[name] = MatMulNBits(encoded, bias, accuracy)
                owner, _, own = path.rpartition(".")
                places.append((model.get_submodule(owner), own, layer.module))
                setattr(model.get_submodule(owner), own, products[name])
            else:
                rest.append((layer, decoder(encoded)))
        yield products, rest
    finally:
        for parent, own, module in places:
            setattr(parent, own, module)


def is_product(layer: Layer) -> bool:
    """A linear layer that shares its weight with nothing."""
    plain = type(layer.module) is nn.Linear or type(layer.module).__name__ == "Conv1D"
    return plain and layer.kind in ("linear", "conv1d") and layer.parameter == "weight" and not layer.tied


def traced(graph: nn.Module, example: Example, opset: int, stored: Callable[[str], bool]) -> Any:
    """A module as ONNX, quietly.

    Args:
        graph: called with a dict of inputs.
        example: its inputs.
        opset: of the operators of the standard.
        stored: which constants stay as they are; what follows from others alone is computed now.
    """
    optimise = needed("onnxscript.optimizer").optimize_ir
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [log.level for log in logs]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for log in logs:
            log.setLevel(logging.ERROR)
        try:
            made: Any = torch.onnx.export(
                graph,
                (),
                kwargs={"inputs": dict(example.inputs)},
                dynamo=True,
                opset_version=opset,
                input_names=list(example.inputs),
                output_names=["output"],
                dynamic_shapes={"inputs": example.dimensions},
                optimize=False,
                verbose=False,
            )
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
    kept = {name for name in made.model.graph.initializers if stored(name)}
    optimise(made.model, should_fold=lambda node: False if _reads(node, kept) else None)
    needed("onnx_ir.passes.common").ClearMetadataAndDocStringPass()(
        made.model
    )  # where each line of code lies
    return made


def _is_stored(name: str) -> bool:
    return name.startswith("parts.") or name.rpartition(".")[2] in ("codes", "scale", "zero")


def _reads(node: Any, names: set[str]) -> bool:
    return any(one is not None and one.name in names for one in node.inputs)


def _pack(made: Any) -> None:
    """Give four-bit numbers their own type."""
    ir, types = needed("onnx_ir"), needed("ml_dtypes")
    for name, value in made.model.graph.initializers.items():
        if name.endswith(NARROW):
            numbers = np.asarray(value.const_value.numpy())
            kind = types.int4 if name.endswith("_int4") else types.uint4
            value.const_value = ir.tensor(numbers.astype(kind), name=name)
            value.dtype = value.const_value.dtype


def _notes(kinds: Mapping[str, str], accuracy: int, matmul: str) -> tuple[str, ...]:
    products = sum(kind.startswith("MatMulNBits") for kind in kinds.values())
    if products:
        return (
            f"{products} MatMulNBits with accuracy level {accuracy}: activations in {ACCURACY[accuracy]}",
        )
    if any(kind.startswith("DequantizeLinear") for kind in kinds.values()):
        return (
            "ONNX Runtime may run DequantizeLinear before MatMul with activations in int8: set "
            "session.qdq_matmulnbits_accuracy_level to 1",
        )
    return ()

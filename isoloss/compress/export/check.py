"""An exported file run here, beside the model that it was made from."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoloss.compress.export.onnx import Example, first_output, run_onnx
from isoloss.compress.export.running import run_by_package, run_qonnx
from isoloss.measure.subject import resized

BY_TRANSFORMERS = ("llama", "mistral", "qwen2", "qwen3")  # types whose GGUF files transformers reads


@dataclass(frozen=True)
class Difference:
    """How far the outputs of a file are from the model's.

    Attributes:
        largest: difference of one number.
        size: largest output of the model.
        by: what ran the file.
    """

    largest: float
    size: float
    by: str


def check_onnx(path: str | Path, model: nn.Module, example: Example) -> Difference | None:
    """Run an ONNX file in ONNX Runtime; None where that is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    wanted = _outputs(model, example.inputs)
    return _between(run_onnx(path, example.inputs)[0], wanted, "ONNX Runtime")


def check_gguf(path: str | Path, model: nn.Module) -> Difference | None:
    """Read a GGUF file by transformers and run it; None where it is not installed or does not read this kind."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if importlib.util.find_spec("transformers") is None or kind not in BY_TRANSFORMERS:
        return None
    import transformers

    place = Path(path).resolve()
    with _quiet(transformers):
        read = type(model).from_pretrained(  # type: ignore[attr-defined]
            str(place.parent), gguf_file=place.name, config=config, dtype=torch.float32
        )
    ids = torch.arange(16).reshape(1, 16) % int(config.vocab_size)  # type: ignore[union-attr]
    found = _outputs(read, {"input_ids": ids})
    return _between(found, _outputs(model, {"input_ids": ids}), "transformers")


def check_qonnx(path: str | Path, model: nn.Module, example: Example) -> Difference:
    """Run a QONNX file by the package qonnx, or in NumPy where that is not installed; example by example."""
    count = len(next(iter(example.inputs.values())))
    runs = [{name: x[i : i + 1].numpy() for name, x in example.inputs.items()} for i in range(count)]
    if importlib.util.find_spec("qonnx") is None:
        by = "NumPy"
        found = [run_qonnx(path, one)[0] for one in runs]
    else:
        by = f"qonnx {importlib.metadata.version('qonnx')}"
        found = [run_by_package(path, one)[0] for one in runs]
    return _between(np.concatenate(found), _outputs(model, example.inputs), by)


def example_of(model: nn.Module, inputs: Any, examples: int = 2) -> Example:
    """An example from the inputs of a batch, as a model is called with them.

    Args:
        model: whose ``forward`` names its inputs.
        inputs: a tensor, a tuple of arguments, or a dict of keywords; one example is repeated.
        examples: how many.

    Raises:
        ValueError: an input is no tensor.

    Example:
        >>> example_of(nn.Linear(2, 3), torch.zeros(1, 2)).inputs["input"].shape
        torch.Size([2, 2])
    """
    if not isinstance(inputs, Mapping):
        values = inputs if isinstance(inputs, tuple) else (inputs,)
        inputs = dict(zip(inspect.signature(model.forward).parameters, values, strict=False))
    wrong = [name for name, one in inputs.items() if not isinstance(one, Tensor)]
    if wrong:
        raise ValueError(f"an ONNX file takes tensors alone, and {wrong[0]} is none")
    some = resized((dict(inputs), None), examples)[0]
    tokens = {name: one for name, one in some.items() if not one.is_floating_point() and one.ndim == 2}
    return Example(some, {n: {0: "batch", 1: "tokens"} if n in tokens else {0: "batch"} for n in some})


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> NDArray[Any]:
    with torch.no_grad():
        found: NDArray[Any] = first_output(model.eval()(**inputs)).float().numpy()
    return found


def _between(found: NDArray[Any], wanted: NDArray[Any], by: str) -> Difference:
    return Difference(float(np.abs(found - wanted).max()), float(np.abs(wanted).max()), by)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Any:
    """Without its bars and its own lines."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
            yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()

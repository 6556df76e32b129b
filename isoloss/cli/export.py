"""``isoloss export``: a compressed model as a file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.export_fpga import HLS4ML, QONNX, export_fpga
from isoloss.cli.options import Json, Latex, Markdown, style_of
from isoloss.cli.show import Style, Table, check_writable, for_people, number, say, show, write_json

if TYPE_CHECKING:
    from torch import nn

    from isoloss.compress.compressed import Compressed
    from isoloss.compress.export.check import Difference
    from isoloss.compress.export.written import Written


def export(
    folder: Annotated[str, typer.Argument(help="Folder that isoloss compress --out wrote.")],
    to: Annotated[
        str,
        typer.Option(
            help="File to write: model.gguf, model.onnx, model.qonnx.onnx; or folder of a project, model.hls4ml."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="file.py:make, where the model cannot be made from the folder alone; not for GGUF."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="GGUF: folder with tokenizer.json, or GGUF file whose tokenizer is copied."),
    ] = None,
    unmatched: Annotated[
        str,
        typer.Option(help="GGUF: what no type holds exactly: refuse, or float to write it in 16 or 32 bits."),
    ] = "refuse",
    matmul: Annotated[
        str, typer.Option(help="ONNX: nbits for MatMulNBits, qdq for DequantizeLinear alone.")
    ] = "nbits",
    accuracy: Annotated[
        int,
        typer.Option(
            min=1,
            max=4,
            help="ONNX: what MatMulNBits may round activations to: 1 float32, 2 float16, 3 bfloat16, 4 int8.",
        ),
    ] = 1,
    biases: Annotated[
        str,
        typer.Option(
            help="QONNX, hls4ml: exact, or steps to round biases to the step of their layer's products."
        ),
    ] = "exact",
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer.")] = False,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Export a compressed model: GGUF for llama.cpp, ONNX for ONNX Runtime, QONNX and hls4ml for FPGAs.

    Weights are not rounded again. The file is read back and run where a program for it is installed.
    """
    style = style_of(md, latex)
    if json is not None:
        check_writable(json)
    kind = Path(to).suffix
    if to.endswith((QONNX, HLS4ML)):
        if tokenizer is not None or unmatched != "refuse" or matmul != "nbits" or accuracy != 1:
            raise ValueError(
                "--tokenizer, --unmatched, --matmul and --accuracy are of GGUF and ONNX files. Leave them out"
            )
        return export_fpga(folder, to, model, biases, json, style)
    if biases != "exact":
        raise ValueError("--biases is of .qonnx.onnx files and .hls4ml projects. Leave it out")
    if kind not in (".gguf", ".onnx"):
        raise ValueError(f"needed a name that ends in .gguf, .onnx, .qonnx.onnx or .hls4ml, got {to}")
    if kind == ".onnx" and (tokenizer is not None or unmatched != "refuse"):
        raise ValueError("--tokenizer and --unmatched are of GGUF files. Leave them out")
    if kind == ".gguf" and (matmul != "nbits" or accuracy != 1 or model is not None):
        raise ValueError("--model, --matmul and --accuracy are of ONNX files. Leave them out")
    try:
        from isoloss.compress.saving import read
    except ImportError as error:
        raise ValueError("exporting needs torch. Do: pip install 'isoloss[torch]'") from error
    compressed = read(folder)
    if kind == ".gguf":
        written, difference = _gguf(compressed, folder, to, tokenizer, unmatched)
    else:
        written, difference = _onnx(compressed, folder, to, model, matmul, accuracy)
    document = _document(compressed, folder, written, difference)
    with for_people(json):
        _print(document, style, layers)
    if json is not None:
        write_json(json, document)
    return 0


def _gguf(
    compressed: Compressed, folder: str, to: str, tokenizer: str | None, unmatched: str
) -> tuple[Written, Difference | None]:
    from isoloss.compress.export.check import check_gguf
    from isoloss.compress.export.gguf import write_gguf
    from isoloss.compress.saving import load

    written = write_gguf(
        compressed, to, tokenizer=tokenizer, unmatched="float" if unmatched == "float" else _refuse(unmatched)
    )
    return written, check_gguf(to, _plain(load(folder).float()))


def _plain(model: nn.Module) -> nn.Module:
    """Without rounding of inputs, which a file does not hold."""
    from isoloss.compress.activations import detach

    detach(model)
    return model


def _refuse(unmatched: str) -> Any:
    if unmatched != "refuse":
        raise ValueError(f"needed --unmatched refuse or float, got {unmatched!r}")
    return unmatched


def _onnx(
    compressed: Compressed, folder: str, to: str, made_by: str | None, matmul: str, accuracy: int
) -> tuple[Written, Difference | None]:
    from isoloss.compress.export.check import check_onnx
    from isoloss.compress.export.onnx import write_onnx

    if matmul not in ("nbits", "qdq"):
        raise ValueError(f"needed --matmul nbits or qdq, got {matmul!r}")
    own, example = _model(compressed, folder, made_by)
    way: Any = matmul
    written = write_onnx(compressed, own, to, example, matmul=way, accuracy=accuracy)
    return written, check_onnx(to, own, example)


def _model(compressed: Compressed, folder: str, made_by: str | None) -> tuple[nn.Module, Any]:
    """The model with its decoded weights, and an example of its inputs."""
    from isoloss.compress.export.check import example_of
    from isoloss.compress.export.onnx import tokens_of
    from isoloss.compress.saving import load
    from isoloss.measure.load import Wanted
    from isoloss.measure.load import load as make

    if made_by is None:
        own = _plain(load(folder))
        return own, tokens_of(own, compressed.recipe.model)
    subject = make(made_by, Wanted(None, 2, 1, None, 0)).subject
    if not subject.batches:
        raise ValueError(f"{made_by} must give batches too, as the file is made from an example")
    own = _plain(load(folder, subject.model))
    return own, example_of(own, subject.batches[0][0])


def _document(
    compressed: Compressed, folder: str, written: Written, difference: Difference | None
) -> dict[str, Any]:
    return {
        "schema": "isoloss/export/1",
        "folder": folder,
        "to": str(written.path),
        "bytes": written.bytes,
        "encoded_bytes": sum(written.bits.values()) // 8,
        "own_bytes": compressed.bytes,
        "own_encoded_bytes": compressed.bits // 8,
        "read_back_by": None if difference is None else difference.by,
        "difference": None if difference is None else difference.largest,
        "largest_output": None if difference is None else difference.size,
        "layers": [
            {
                "name": name,
                "format": compressed.recipe.layers[name].format,
                "type": type,
                "bits": written.bits[name],
                "own_bits": compressed.recipe.layers[name].bits,
            }
            for name, type in written.types.items()
        ],
        "left": [f"{path}: {why}" for path, why in written.left.items()],
        "notes": [*written.notes, *_not_held(compressed)],
    }


def _not_held(compressed: Compressed) -> list[str]:
    inputs = compressed.recipe.inputs
    if inputs is None:
        return []
    return [
        f"inputs are rounded in the folder ({inputs.how.spec}) and not in the file: it has the weights alone"
    ]


def _print(found: dict[str, Any], style: Style, layers: bool) -> None:
    rows = [
        ["bytes of the file", f"{found['bytes']:,}"],
        ["of them encoded weights", f"{found['encoded_bytes']:,}"],
        ["encoded weights in the folder", f"{found['own_encoded_bytes']:,}"],
    ]
    if found["read_back_by"]:
        rows += [
            ["read back by", found["read_back_by"]],
            ["largest difference", number(found["difference"], 2)],
            ["largest output", number(found["largest_output"], 3)],
        ]
    else:
        rows.append(["read back by", "nothing that is installed"])
    show(Table(["exported", "value"], rows, found["to"], words=["value"]), style)
    own = [[one["name"], one["format"], one["type"], f"{one['bits']:,}"] for one in found["layers"]]
    if layers:
        show(Table(["layer", "format", "stored as", "bits"], own, words=["layer"]), style)
    else:
        counts: dict[tuple[str, str], list[int]] = {}
        for one in found["layers"]:
            counts.setdefault((one["format"], one["type"]), []).append(one["bits"])
        kinds = [[*key, str(len(some)), f"{sum(some):,}"] for key, some in counts.items()]
        show(Table(["format", "stored as", "layers", "bits"], kinds, words=["format"]), style)
    for one in found["left"]:
        say(f"left out: {one}", style)
    for note in found["notes"]:
        say(f"note: {note}", style)

"""``isoloss export`` to QONNX files and hls4ml projects, with what each layer takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloss.cli.show import Style, Table, for_people, number, say, show, write_json

if TYPE_CHECKING:
    from torch import nn

    from isoloss.compress.compressed import Compressed
    from isoloss.compress.export.circuits import Resources
    from isoloss.compress.export.onnx import Example

QONNX, HLS4ML = ".qonnx.onnx", ".hls4ml"
EXAMPLES = 1000  # at most, on which outputs are compared


@dataclass(frozen=True, eq=False)
class _Given:
    """The model as its folder says, and inputs of it."""

    compressed: Compressed
    model: nn.Module
    every: Example

    @property
    def one(self) -> Example:
        from isoloss.compress.export.onnx import Example

        return Example({name: x[:1] for name, x in self.every.inputs.items()}, {})


def export_fpga(
    folder: str, to: str, made_by: str | None, biases: str, json: str | None, style: Style
) -> int:
    """Write, run what was written, and report what each layer takes."""
    try:
        from isoloss.compress.export.circuits import resources, totals
        from isoloss.compress.export.qonnx import inputs_of, round_biases
    except ImportError as error:
        raise ValueError("exporting needs torch. Do: pip install 'isoloss[torch]'") from error
    if biases not in ("exact", "steps"):
        raise ValueError(f"needed --biases exact or steps, got {biases!r}")
    given = _given(folder, made_by)
    inputs_of(given.compressed)
    moved = round_biases(given.model, given.compressed) if biases == "steps" else {}
    found = resources(given.compressed, given.model, dict(given.one.inputs))
    document = _hls4ml(given, to) if to.endswith(HLS4ML) else _qonnx(given, to)
    document |= {
        "schema": "isoloss/export/1",
        "folder": folder,
        "own_bytes": given.compressed.bytes,
        "own_encoded_bytes": given.compressed.bits // 8,
        "biases_moved": max(moved.values(), default=0.0),
        "resources": [asdict(one) for one in found],
        "resources_in_all": totals(found),
    }
    with for_people(json):
        _print(document, found, style)
    if json is not None:
        write_json(json, document)
    return 0


def _given(folder: str, made_by: str | None) -> _Given:
    from isoloss.compress.export.check import example_of
    from isoloss.compress.export.onnx import tokens_of
    from isoloss.compress.saving import load, read
    from isoloss.measure.load import Wanted
    from isoloss.measure.load import load as make
    from isoloss.measure.subject import examples_of

    compressed = read(folder)
    if made_by is None:
        own = load(folder)
        return _Given(compressed, own, tokens_of(own, compressed.recipe.model))
    subject = make(made_by, Wanted(None, 2, 1, None, 0)).subject
    if not subject.batches:
        raise ValueError(f"{made_by} must give batches too, as the file is made from an example")
    batch = subject.batches[0]
    own = load(folder, subject.model)
    return _Given(compressed, own, example_of(own, batch[0], min(examples_of(batch), EXAMPLES)))


def _qonnx(given: _Given, to: str) -> dict[str, Any]:
    from isoloss.compress.export.check import check_qonnx
    from isoloss.compress.export.qonnx import write_qonnx

    written = write_qonnx(given.compressed, given.model, to, given.one)
    difference = check_qonnx(to, given.model, given.every)
    layers = given.compressed.recipe.layers
    return {
        "to": str(written.path),
        "bytes": written.bytes,
        "encoded_bytes": sum(written.bits.values()) // 8,
        "read_back_by": difference.by,
        "difference": difference.largest,
        "largest_output": difference.size,
        "layers": [
            {"name": name, "format": layers[name].format, "type": kind, "bits": written.bits[name],
             "own_bits": layers[name].bits}
            for name, kind in written.types.items()
        ],
        "types": None,
        "left": [],
        "notes": list(written.notes),
    }  # fmt: skip


def _hls4ml(given: _Given, to: str) -> dict[str, Any]:
    import torch

    from isoloss.compress.export.check import Difference
    from isoloss.compress.export.hls4ml import write_hls4ml
    from isoloss.compress.export.onnx import first_output

    if len(given.every.inputs) != 1:
        raise ValueError(f"an hls4ml project takes one input, and the model has {len(given.every.inputs)}")
    project = write_hls4ml(given.compressed, given.model, to, given.one)
    x = next(iter(given.every.inputs.values()))
    with torch.no_grad():
        wanted = first_output(given.model.eval()(x)).double().numpy().reshape(len(x), -1)
    found = project.emulated(x.numpy())
    difference = Difference(float(abs(found - wanted).max()), float(abs(wanted).max()), "its C emulation")
    return {
        "to": str(project.folder),
        "bytes": sum(one.stat().st_size for one in Path(to).rglob("*") if one.is_file()),
        "encoded_bytes": None,
        "read_back_by": difference.by,
        "difference": difference.largest,
        "largest_output": difference.size,
        "layers": [],
        "types": {name: dict(own) for name, own in project.types.items()},
        "left": [],
        "notes": [f"{int((found == wanted).sum())} of {found.size} outputs equal the model's"],
    }


def _print(found: dict[str, Any], own: tuple[Resources, ...], style: Style) -> None:
    rows = [
        ["bytes", f"{found['bytes']:,}"],
        ["run by", found["read_back_by"]],
        ["largest difference", number(found["difference"], 2)],
        ["largest output", number(found["largest_output"], 3)],
        ["biases moved by at most", number(found["biases_moved"], 2)],
    ]
    show(Table(["exported", "value"], rows, found["to"], words=["value"]), style)
    if found["types"] is not None:
        what = ["weight", "bias", "accum", "result"]
        lines = [[name, *(types.get(one, "") for one in what)] for name, types in found["types"].items()]
        show(Table(["node", *what], lines, words=["node", *what]), style)
    _print_resources(own, found["resources_in_all"], style)
    for note in found["notes"]:
        say(f"note: {note}", style)


def _print_resources(own: tuple[Resources, ...], all: dict[str, float], style: Style) -> None:
    def whole(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}"

    lines = [
        [
            one.layer, "x".join(str(size) for size in one.shape), whole(one.multiply_adds), whole(one.multipliers),
            whole(one.shifts), f"{one.weight_bits:g}", f"{one.input_bits:g}", whole(one.accumulator_bits),
            whole(one.exact_accumulator_bits), whole(one.bops), whole(one.bops_with_sums),
        ]
        for one in own
    ]  # fmt: skip
    sums = ["all", "", *(whole(all[name]) for name in ("multiply_adds", "multipliers", "shifts"))]
    lines.append([*sums, "", "", "", "", whole(all["bops"]), whole(all["bops_with_sums"])])
    heads = [
        "layer",
        "shape",
        "MACs",
        "multipliers",
        "shifts",
        "b_w",
        "b_a",
        "sum bits",
        "exact",
        "BOPs",
        "with sums",
    ]
    show(Table(heads, lines, "for one example", words=["layer", "shape"]), style)

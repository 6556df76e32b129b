"""``isoloss pack``: a compressed model in the form that it runs from, in a file that is mapped into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.options import Json, Latex, Markdown, style_of
from isoloss.cli.show import Style, Table, check_writable, for_people, say, show, write_json

if TYPE_CHECKING:
    from isoloss.compress.compressed import Compressed
    from isoloss.deploy.files import Stored

ACTIVATIONS = ("int8", "int16", "float")


def pack(
    folder: Annotated[str, typer.Argument(help="Folder that isoloss compress --out wrote.")],
    out: Annotated[str, typer.Option(help="Folder for the packed weights, another one.")],
    activations: Annotated[
        str, typer.Option(help="What products are with: int8, int16 or float, where nothing is rounded.")
    ] = "int8",
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer.")] = False,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Pack a compressed model: its weights as the kernels read them, in a file that starts in no time.

    Tokenizer and configuration are copied. isoloss bench and deploy.load take the folder.
    """
    style = style_of(md, latex)
    if json is not None:
        check_writable(json)
    if activations not in ACTIVATIONS:
        raise ValueError(f"needed --activations {', '.join(ACTIVATIONS)}, got {activations!r}")
    try:
        from isoloss.compress.saving import read
        from isoloss.deploy.files import Stored, write
    except ImportError as error:
        raise ValueError("packing needs torch. Do: pip install 'isoloss[torch]'") from error
    compressed = read(folder)
    stored = Stored.of(compressed, activations)  # type: ignore[arg-type]
    size = write(stored, out, folder)
    document = _document(compressed, stored, folder, out, size)
    with for_people(json):
        _print(document, style, layers)
    if json is not None:
        write_json(json, document)
    return 0


def _document(compressed: Compressed, stored: Stored, folder: str, out: str, size: int) -> dict[str, Any]:
    return {
        "schema": "isoloss/pack/1",
        "folder": folder,
        "out": out,
        "activations": stored.activations,
        "bytes": size,
        "packed_bytes": stored.bytes,
        "stored_bytes": compressed.bits // 8,
        "plain_bytes": stored.plain_bytes,
        "layers": [
            {
                "name": name,
                "format": compressed.recipe.layers[name].format,
                "kind": one.kind,
                "bytes": one.bytes,
                "stored_bytes": compressed.encoded[name].bits // 8,
            }
            for name, one in stored.weights.items()
        ],
    }


def _print(found: dict[str, Any], style: Style, layers: bool) -> None:
    rows = [
        ["bytes of the file", f"{found['bytes']:,}"],
        ["of them packed weights", f"{found['packed_bytes']:,}"],
        ["encoded weights in the folder", f"{found['stored_bytes']:,}"],
        ["other tensors", f"{found['plain_bytes']:,}"],
    ]
    show(Table(["packed", "value"], rows, found["out"], words=["value"]), style)
    own = [[one["name"], one["format"], one["kind"], f"{one['bytes']:,}"] for one in found["layers"]]
    if layers:
        show(Table(["layer", "format", "packed as", "bytes"], own, words=["layer"]), style)
        return
    counts: dict[tuple[str, str], list[int]] = {}
    for one in found["layers"]:
        counts.setdefault((one["format"], one["kind"]), []).append(one["bytes"])
    kinds = [[*key, str(len(some)), f"{sum(some):,}"] for key, some in counts.items()]
    show(Table(["format", "packed as", "layers", "bytes"], kinds, words=["format"]), style)
    say(f"products are with {found['activations']} activations", style)

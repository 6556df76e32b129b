"""What ``isoloss compress`` prints."""

from __future__ import annotations

from typing import Any

from isoloss.cli.compress_mixed import show_agreement
from isoloss.cli.show import Style, Table, number, plural, say, show

WORST = 8  # layers that are printed


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2g} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count:,} bytes"


def show_compressed(found: dict[str, Any], style: Style, layers: bool) -> None:
    """Print a document of :mod:`isoloss.cli.compress`."""
    dry = found["dry_run"]
    rows = [
        ["format", f"{found['format']}, {found['solver']}"],
        ["encoded weights", f"{found['weights']:,}"],
        ["stored bits a weight", f"{found['bits_per_weight']:.4g}"],
        ["bytes of tensors", f"{found['bytes']:,}"],
        ["of them not encoded", f"{found['plain_bytes']:,}"],
        ["bytes before", f"{found['original_bytes']:,}"],
    ]
    for name, way in (
        ("rotated", "rotation"),
        ("blocks learned", "blockwise"),
        ("tuned", "tuning"),
        ("inputs", "activations"),
    ):
        if found[way] is not None:
            rows.append([name, found[way]])
    if dry and found["least_bytes"] is not None:
        rows.append(["bytes possible", f"{found['least_bytes']:,} to {found['most_bytes']:,}"])
    if dry:
        rows += [
            ["stages", str(found["stages"])],
            ["about", f"{number(found['seconds'], 2)} s"],
            ["memory, about", _size(found["memory"])],
        ]
    else:
        rows.append(["seconds", number(found["seconds"], 3)])
    if found["loss_before"] is not None:
        said = f"{found['loss_before']:.5g}, then {found['loss_after']:.5g}"
        rows.append([f"loss on {found['loss_on']}", said])
    if found["sensitivity"] is not None:
        foretold = "" if found["foretold"] is None else f", rise foretold {number(found['foretold'], 2)}"
        rows.append(["sensitivity", f"{found['sensitivity']}{foretold}"])
    if found["score_before"] is not None:
        rows.append(["score", f"{found['score_before']:.5g}, then {found['score_after']:.5g}"])
    show(Table(["compressed", "value"], rows, found["model"], words=["value"]), style)
    show_agreement(found["sensitivities"], style)
    own = found["layers"]
    if not dry and own:
        shown = own if layers else sorted(own, key=lambda layer: -layer["error"])[:WORST]
        title = "" if layers or len(own) <= WORST else f"largest errors, of {plural(len(own), 'layer')}"
        show(
            Table(
                ["layer", "bits", "relative error", "of", "s"],
                [
                    [
                        layer["name"],
                        f"{layer['bits']:,}",
                        number(layer["error"], 3),
                        layer["error_of"],
                        number(layer["seconds"], 2),
                    ]
                    for layer in shown
                ],
                title,
                words=["layer"],
            ),
            style,
        )
    if dry and layers:
        show(Table(["layer", "bits"], [[one["name"], f"{one['bits']:,}"] for one in own]), style)
    for note in found["notes"]:
        say(f"note: {note}", style)
    if found["out"]:
        say(
            f"{found['out']}: {found['bytes']:,} bytes of tensors, {found['header_bytes']:,} of their header, "
            f"{found['recipe_bytes']:,} of the recipe",
            style,
        )

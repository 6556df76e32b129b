"""The tables and the picture of the quality page, from rows as the cache holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import page

LEVELS = (("About four bits", 3.6, 9.0), ("About three bits", 2.7, 3.6), ("About two bits", 0.0, 2.7))
Rows = Sequence[Mapping[str, Any]]


def section(rows: Rows, facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A heading and a table for each model.

    Args:
        rows: of the cache.
        facts: model -> ``words``, ``weights`` (encoded), ``rest`` (numbers in 16 bits), ``original`` (of the model itself).
    """
    parts = []
    for name, known in facts.items():
        own = [row for row in rows if row["case"] == name]
        if own:
            parts.append(f"### {name}\n\n{_sentence(known)}\n\n{_table(own, known)}" + _failed(own))
    return "\n\n".join([*parts, f"{page.machine()} CPU seconds of the compression alone, on one thread."])


def _sentence(known: Mapping[str, Any]) -> str:
    words = str(known["words"])
    own = ", ".join(
        f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}"
        for name, value in known["original"].items()
    )
    return words[0].upper() + words[1:] + "." + (f" The model itself: {own}." if own else "")


def _table(rows: Rows, known: Mapping[str, Any]) -> str:
    good = [row for row in rows if "measures" in row]
    names = list(good[0]["measures"]) if good else []
    weights, rest = known["weights"], known["rest"]
    lines = []
    for title, low, high in LEVELS:
        level = [row for row in good if low <= row["bits"] < high]
        if not level:
            continue
        lines.append([f"**{title}**", *[""] * (len(names) + 3)])
        for row in sorted(level, key=lambda row: row["measures"][names[0]][0]):
            whole = (row["bits"] * weights + 16 * rest) / (weights + rest)
            lines.append([
                method(row), f"{row['bits']:.3f}", f"{whole:.2f}",
                *(pair(*row["measures"][name]) for name in names), f"{row['seconds']:.0f}",
            ])  # fmt: skip
    head = ["method", "bits", "of all", *names, "CPU s"]
    return page.table(head, lines, range(1, len(head)))


def _failed(rows: Rows) -> str:
    failed = [f"- `{row['method']}`: {row['error']}" for row in rows if "error" in row]
    return "\n\nWithout a result:\n\n" + "\n".join(failed) if failed else ""


def method(row: Mapping[str, Any]) -> str:
    """Its words; a peer's with the version, ours in bold."""
    draw = f", draw {row['draw'] + 1}" if row["draw"] else ""
    if row["peer"]:
        package, _, words = row["method"].partition(" ")
        return f"{package} {row['version']}: {words}{draw}"
    return f"**`{row['method']}`**{draw}"


def pair(value: float, error: float) -> str:
    """A measure and its standard error, to two digits of the error.

    Example:
        >>> pair(0.01234, 0.00056), pair(-0.8, 0.52), pair(96.2, 0.4)
        ('0.01234 ± 0.00056', '-0.80 ± 0.52', '96.20 ± 0.40')
    """
    digits = 2
    while digits < 6 and error and error < 10.0 ** (1 - digits):
        digits += 1
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def draw(rows: Rows, path: Path) -> None:
    """The first measure of every model against stored bits, ours and peers'."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["case"] for row in rows if "measures" in row))
    figure, axes = plt.subplots(
        2, (len(names) + 1) // 2, figsize=(11, 6.4), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=False):
        own = [row for row in rows if row["case"] == name and "measures" in row]
        measure = next(iter(own[0]["measures"]))
        for peer, colour, mark, label in (
            (True, "#888888", "s", "peers"),
            (False, "#2a5d9f", "o", "isoloss"),
        ):
            part = [row for row in own if row["peer"] == peer]
            axis.errorbar(
                [row["bits"] for row in part], [row["measures"][measure][0] for row in part],
                yerr=[row["measures"][measure][1] for row in part],
                fmt=mark, color=colour, markersize=4.5, alpha=0.85, linewidth=1, label=label,
            )  # fmt: skip
            axis.plot(*_front(part, measure), color=colour, linewidth=1)
        axis.set(title=name, xlim=(2.0, 4.7), yscale="log", xlabel="stored bits a weight", ylabel=measure)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    axes.flat[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _front(rows: Rows, measure: str) -> tuple[list[float], list[float]]:
    """The rows that nothing smaller is better than."""
    bits: list[float] = []
    values: list[float] = []
    for row in sorted(rows, key=lambda row: row["bits"]):
        value = row["measures"][measure][0]
        if not values or value < values[-1]:
            bits.append(row["bits"])
            values.append(value)
    return bits, values

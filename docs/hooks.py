"""Makes the pages that follow from the code: one per law, their index, the options of the command line.

mkdocs calls the functions ``on_...``. Adding a law to ``isoloss.laws.__all__`` adds its page.
"""

from __future__ import annotations

import inspect
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.laws import LAWS, get
from isoloss.laws.law import UNITS, Law

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

SECTIONS = ("Inputs", "Returns", "Valid for", "Source", "Example")
WORDS = {
    "params": "parameters",
    "params_nonembedding": "non-embedding parameters",
    "tokens": "training tokens",
    "tokens_unique": "distinct tokens",
    "flops": "training FLOP",
    "loss": "loss (nats/token)",
    "error": "error (share wrong)",
}


def on_config(config: MkDocsConfig) -> None:
    """Put the law pages into the navigation, after their index."""
    for entry in config.nav or []:
        if "Laws" in entry:
            entry["Laws"] += [{slug: f"laws/{slug}.md"} for slug in LAWS]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages and pictures."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the verbs where the page on the command line wants them."""
    return markdown.replace("<!-- verbs -->", command_line()) if "<!-- verbs -->" in markdown else markdown


def pages() -> dict[str, str]:
    """Path below docs/ -> content of every generated file."""
    out = {"laws/index.md": law_index()}
    for slug in LAWS:
        law = get(slug)
        picture = curve(law)
        out[f"laws/{slug}.md"] = law_page(law, picture is not None)
        if picture is not None:
            out[f"laws/{slug}.svg"] = picture
    return out


# Docstrings


def as_markdown(text: str) -> str:
    """A docstring with its roles and directives as Markdown and MathML."""
    text = re.sub(r":math:`(.+?)`", lambda m: mathml(m[1], "inline"), text, flags=re.S)
    text = re.sub(r":(?:func|meth|class|mod|attr|data):`~?(.+?)`", r"`\1`", text)
    # `.. math:: X` on one line, or as an indented block below.
    return re.sub(
        r"^( *)\.\. math::[ \n]*(.+?)(?=\n\s*\n|\n\1\S|\Z)",
        lambda m: f'{m[1]}<div class="formula">{_lines(" ".join(m[2].split()))}</div>',
        text,
        flags=re.S | re.M,
    )


def _lines(latex: str) -> str:
    """A formula, what stands behind ``,\\quad`` on a line of its own."""
    return "".join(mathml(part, "block") for part in re.split(r",\s*\\quad", latex))


def mathml(latex: str, display: str) -> str:
    """A formula as MathML, which browsers draw themselves."""
    from latex2mathml.converter import convert

    # The converter drops \text{ if }'s blanks, which no-break spaces keep.
    latex = re.sub(r"\\text\{(.*?)\}", lambda m: f"\\text{{{m[1].replace(' ', chr(160))}}}", latex)
    return str(convert(latex, display=display))


def parts(law: Law) -> dict[str, str]:
    """The docstring of a law by section; what stands before the first is ``""``."""
    out, name = {"": ""}, ""
    for line in (inspect.getdoc(type(law)) or "").splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            name = line.rstrip(":")
            out[name] = ""
        else:
            out[name] += line + "\n"
    return {name: inspect.cleandoc(text) for name, text in out.items()}


# Laws


def law_index() -> str:
    """The table of laws."""
    rows = []
    for slug in LAWS:
        law = get(slug)
        paper, _, rest = law.paper.partition(", arXiv:")
        identifier, _, where = rest.partition(", ")
        link = f"[{paper}](https://arxiv.org/abs/{identifier})" + (f", {where}" if where else "")
        same = f"[{law.alias_of}]({law.alias_of}.md)" if law.alias_of else ""
        inputs = "<br>".join(f"`{axis}`" for axis in law.axes)
        rows.append(
            [f"[{slug}]({slug}.md)", f"`{law.formula}`{{ .wrap }}", inputs, f"`{law.target}`", link, same]
        )
    table = _table(["law", "formula", "inputs", "target", "year and paper", "same as"], rows)
    return f"""# Laws

A law says how the loss (or another target) follows from what a run is made of. It holds no numbers of its
own: a fit gives them, or a published fit by name. [Which one for my table?](../choosing.md)
[How do I add one?](../own-law.md)

{table}

A law of one axis takes another in parentheses: `power(flops)`, `hestness(params)`. Two laws that are the
same hypothesis in other parameters give the same fit: compare one of the two. The estimators M1 to M4 of
learning curves are `power`, `hestness`, `m3` and `m4`: [families](../learning-curves.md).

```sh
isoloss laws hoffmann
```
"""


def law_page(law: Law, picture: bool) -> str:
    """The page of one law."""
    text = parts(law)
    lines = [f"# {law.slug}", "", as_markdown(text[""]), "", f"`{law.target} = {law.formula}`", ""]
    if law.alias_of:
        lines += [
            f'!!! note "Not a hypothesis of its own"\n    The same as [{law.alias_of}]({law.alias_of}.md) in'
            " other parameters: compare one of the two, not both.",
            "",
        ]
    lines += [_inputs(law, text), ""]
    lines += ["## Parameters", "", _parameters(law), ""]
    lines += ["## Published fits", "", _published(law), ""]
    if picture:
        lines += [f"![{law.slug}: curves of a published fit]({law.slug}.svg){{ .picture }}", ""]
    lines += ["## Valid for", "", as_markdown(text["Valid for"]), ""]
    lines += ["## Source", "", f"{_linked(law.paper)}. {as_markdown(text['Source'])}", ""]
    name = type(law).__name__
    example = f">>> from isoloss.laws import {name}\n{text['Example']}"
    lines += ["## Example", "", "```pycon", example, "```", ""]
    lines += ["On the command line:", "", "```sh", f"isoloss fit {law.slug} runs.csv --json fit.json", "```"]
    return "\n".join(lines) + "\n"


def _inputs(law: Law, text: dict[str, str]) -> str:
    rows = []
    for axis in law.axes:
        default = f"; equals `{law.defaults[axis]}` if not given" if axis in law.defaults else ""
        rows.append(["input", f"`{axis}`", UNITS.get(axis, "as the column"), WORDS.get(axis, "") + default])
    unit = UNITS.get(law.target, "as the column")
    rows.append(["target", f"`{law.target}`", unit, WORDS.get(law.target, "").partition(" (")[0]])
    return f"{_table(['', 'column', 'unit', ''], rows)}\n\n{as_markdown(text['Inputs'])}"


def _parameters(law: Law) -> str:
    how = {"log": "its logarithm (positive)", "linear": "itself"}
    rows = [[f"`{p.name}`", p.meaning, how[p.scale], f"{p.low:g} to {p.high:g}"] for p in law.parameters]
    table = _table(["name", "meaning", "fitted as", "allowed range"], rows)
    return f"{table}\n\nA range may follow the data instead; `--bound` sets another."


def _published(law: Law) -> str:
    if not law.published:
        return "None are shipped."
    names = law.names
    rows = [[f"`{name}`", *(f"{fit.values[p]:.6g}" for p in names)] for name, fit in law.published.items()]
    sources: dict[str, list[str]] = {}
    for name, fit in law.published.items():
        sources.setdefault(_linked(fit.source), []).append(f"`{name}`")
    some = next(iter(law.published))
    return "\n".join(
        [
            _table(["name", *(f"`{p}`" for p in names)], rows),
            "",
            *(f"- {', '.join(known)}: {source}" for source, known in sources.items()),
            "",
            f'By name: `law.theta("{some}")`, `--borrow {names[-1]}={some}`.',
        ]
    )


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    cells = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells)


def curve(law: Law) -> str | None:
    """The law's target over its main axis for a published fit, as SVG; None where none is shipped."""
    if not law.published:
        return None
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": law.slug, "font.size": 9})
    from matplotlib.figure import Figure

    name, fit = next(reversed(law.published.items()))
    theta = law.theta(fit.values)
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    figure.patch.set_alpha(0.0)
    plot = figure.add_subplot()
    for label, points in _curves(law):
        main = next(axis for axis, values in points.items() if np.ndim(values))
        plot.plot(points[main], law.evaluate(theta, **points), label=label, linewidth=1.6)
        plot.set_xlabel(WORDS[main])
    if law.axes != ("loss",):
        plot.set_xscale("log")
    if any(label for label, _ in _curves(law)):
        plot.legend(frameon=False, fontsize=8)
    plot.set_ylabel(WORDS[law.target])
    plot.set_title(name, fontsize=9, loc="left")
    plot.grid(alpha=0.25)
    plot.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _curves(law: Law) -> list[tuple[str, dict[str, Any]]]:
    """What to draw: (label, axes), one axis an array."""
    size = next((axis for axis in law.axes if axis.startswith("params")), None)
    if "tokens_unique" in law.axes:
        seen = np.logspace(10, 12.5, 200)
        return [
            (f"1B parameters, {name} distinct tokens",
             {"params": 1e9, "tokens": seen, "tokens_unique": np.minimum(unique, seen)})
            for name, unique in (("10B", 1e10), ("40B", 4e10), ("all", 1e99))
        ]  # fmt: skip
    if size and "tokens" in law.axes:
        tokens = np.logspace(9, 13, 200)
        return [(f"{n} parameters", {size: value, "tokens": tokens}) for n, value in _SIZES]
    if law.axes == ("loss",):
        return [("", {"loss": np.linspace(2.0, 4.5, 200)})]
    return [("", {law.axes[0]: np.logspace(6, 11, 200)})]


_SIZES = (("100M", 1e8), ("1B", 1e9), ("10B", 1e10), ("100B", 1e11))


# Command line


def command_line() -> str:
    """Every verb with every argument and option."""
    import typer.main

    from isoloss.cli.app import app

    return "\n".join(_commands(typer.main.get_command(app), "isoloss", "##"))


def _commands(group: Any, before: str, heading: str) -> list[str]:
    """The commands of a group in order; what stands in a group of its own one heading below."""
    lines = []
    for name, verb in getattr(group, "commands", {}).items():
        full = f"{before} {name}"
        lines += [f"{heading} {full}", "", inspect.cleandoc(verb.help or ""), ""]
        if hasattr(verb, "commands"):
            lines += _commands(verb, full, f"{heading}#")
            continue
        arguments = [p for p in verb.params if p.param_type_name == "argument"]
        words = " ".join(_shown(p) if p.required else f"[{_shown(p)}]" for p in arguments)
        options = " [OPTIONS]" if len(arguments) < len(verb.params) else ""
        lines += ["```sh", f"{full} {words}{options}", "```", "", _options(verb), ""]
    return lines


def _shown(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


def _options(verb: Any) -> str:
    rows = []
    for p in verb.params:
        words = [_shown(p)] if p.param_type_name == "argument" else [*p.opts, *p.secondary_opts]
        name = ", ".join(f"`{word}`" for word in words)
        default = "" if p.default is None or isinstance(p.default, bool) or p.required else f"`{p.default}`"
        rows.append([name, (getattr(p, "help", "") or "").replace("<", "&lt;"), default])
    return _table(["word", "meaning", "default"], rows)

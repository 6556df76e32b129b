"""Makes the pages that follow from the code: one per law, factor and term, their index, the command line.

mkdocs calls the functions ``on_...``. Adding a law to ``isoloss.laws.__all__`` adds its page, and so does a
factor or term in ``isoloss.laws.parts.__all__``.
"""

from __future__ import annotations

import inspect
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

import isoloss.laws.parts
from isoloss.laws import LAWS, get
from isoloss.laws.law import UNITS, Law
from isoloss.laws.parts import FACTORS, TERMS
from isoloss.laws.parts.part import Factor, Part

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

SECTIONS = ("Inputs", "Returns", "Valid for", "Source", "Example")
WORDS = {
    "params": "parameters",
    "params_nonembedding": "non-embedding parameters",
    "params_active": "parameters that one token sees",
    "params_trainable": "trainable parameters",
    "experts": "experts per routed layer",
    "expert_density": "share of experts in use",
    "streams": "parallel streams",
    "vocab_params": "parameters of the vocabulary",
    "share_code": "share of the training data that is code",
    "share_web": "share of the training data that is web text",
    "samples": "training samples seen",
    "pool": "distinct samples",
    "samples_clean": "clean samples",
    "samples_noisy": "noisy samples",
    "tokens": "training tokens",
    "tokens_unique": "distinct tokens",
    "flops": "training FLOP",
    "scale_block": "elements that share one scale",
    "mantissa_bits": "mantissa bits in training",
    "exponent_bits": "exponent bits in training",
    "bits_post": "bits of weights after training",
    "bits_kv": "bits of the KV cache in training",
    "bits_activations": "bits of activations in training",
    "bits_weights": "bits of weights in training",
    "batch_tokens": "tokens per step",
    "batch_sequences": "sequences per step",
    "critical_batch": "critical batch (tokens)",
    "lr": "peak learning rate",
    "max_attention_logit": "largest attention logit",
    "step": "step",
    "steps": "steps",
    "steps_min": "steps at a batch without end",
    "loss": "loss (nats/token)",
    "loss_unigram_normalized": "loss less unigram loss (nats/token)",
    "error": "error (share wrong)",
    "pass_rate": "pass rate",
}


def on_config(config: MkDocsConfig) -> None:
    """Put the law pages into the navigation, after their index."""
    for entry in config.nav or []:
        if "Laws" in entry:
            entry["Laws"] += [{slug: f"laws/{slug}.md"} for slug in LAWS]
            for title, slugs in (("Factors", FACTORS), ("Terms", TERMS)):
                entry["Laws"].append({title: [{slug: f"laws/parts/{slug}.md"} for slug in slugs]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages and pictures."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the verbs where the page on the command line wants them, and factors and terms where that on them does."""
    for mark, made in (("<!-- verbs -->", command_line), ("<!-- parts -->", part_table)):
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return drawn(markdown)


# Code, in a fence or in backticks, or a formula in dollars: none of them begins or ends with a blank.
_CODE_OR_FORMULA = re.compile(r"^ *```.*?^ *```|`+.+?`+|\$(?=\S)([^$\n`]+?)(?<=\S)\$(?!\w)", re.S | re.M)


def drawn(markdown: str) -> str:
    """A page's formulas in dollars, which GitHub draws, as MathML."""
    return _CODE_OR_FORMULA.sub(lambda m: mathml(m[1], "inline") if m[1] else m[0], markdown)


def pages() -> dict[str, str]:
    """Path below docs/ -> content of every generated file."""
    out = {"laws/index.md": law_index()}
    for slug in LAWS:
        law = get(slug)
        picture = curve(law)
        out[f"laws/{slug}.md"] = law_page(law, picture is not None)
        if picture is not None:
            out[f"laws/{slug}.svg"] = picture
    for slug in (*FACTORS, *TERMS):
        out[f"laws/parts/{slug}.md"] = part_page(part_named(slug))
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


def parts(law: Law | Part) -> dict[str, str]:
    """The docstring of a law or part by section; what stands before the first is ``""``."""
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

A law of one axis takes another in parentheses: `power(flops)`, `hestness(params)`; `mixing` and `data-filtering`
take as many as there are: `mixing(share_code, share_web, share_books)`. Two laws that are the
same hypothesis in other parameters give the same fit: compare one of the two. The estimators M1 to M4 of
learning curves are `power`, `hestness`, `m3` and `m4`: [families](../learning-curves.md).

```sh
isoloss laws hoffmann
```

## Factors and terms

Pieces that change a part of a law, for [laws that compose](../composing.md):

{part_table("parts/")}
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


def part_named(slug: str) -> Part:
    """The factor or term of that name, reading all its columns."""
    part: Part = getattr(isoloss.laws.parts, {**FACTORS, **TERMS}[slug])()
    return part


def part_table(folder: str = "laws/parts/") -> str:
    """The table of factors and terms, linked to their pages in ``folder``."""
    rows = []
    for slug in (*FACTORS, *TERMS):
        part = part_named(slug)
        columns = "<br>".join(f"`{name}`" for name in part.columns)
        rows.append(
            [
                f"[{slug}]({folder}{slug}.md)",
                _kind(part),
                columns,
                f"`{part.formula}`{{ .wrap }}",
                _linked(part.paper),
            ]
        )
    return _table(["part", "kind", "columns", "formula", "paper"], rows)


def _kind(part: Part) -> str:
    return f"factor of `{part.scales}`" if isinstance(part, Factor) else "term"


def part_page(part: Part) -> str:
    """The page of one factor or term."""
    text = parts(part)
    factor = isinstance(part, Factor)
    symbol = ("N_eff/N" if part.scales == "params" else "D_eff/D") if isinstance(part, Factor) else "loss +"
    spec = f"hoffmann {'*' if factor else '+'} {part.slug}"
    rows = [
        ["input", f"`{name}`", UNITS.get(name, "as the column"), WORDS.get(name, "")] for name in part.columns
    ]
    reads = ", ".join(f"`{name}`" for name in part.shared)
    together = ", ".join(f"`{slug}`" for slug in part.together) or "none"
    name = type(part).__name__
    # An example about another class of the same file imports what it needs itself.
    example = f">>> from isoloss.laws.parts import {name}\n{text['Example']}"
    lines = [
        f"# {part.slug}", "", f"A {_kind(part)}, for [laws that compose](../../composing.md).", "",
        as_markdown(text[""]), "", f"`{symbol} {'= ' * factor}{part.formula}`", "",
        _table(["", "column", "unit", ""], rows), "", as_markdown(text["Inputs"]), "",
        f"Changes nothing at: {part.reference}.", *([f" Reads {reads} of its base too."] if reads else []), "",
        "## Parameters", "", _parameters(part), "",
        "## Published fits", "", _published(part), "",
        "## Valid for", "", as_markdown(text["Valid for"]), "",
        f"Fitted together by its paper with: {together}. Beside any other piece it is assumed separable, and the fit "
        "says so.", "",
        "## Source", "", f"{_linked(part.paper)}. {as_markdown(text['Source'])}", "",
        "## Example", "", "```pycon", example, "```", "",
        "On the command line:", "", "```sh", f'isoloss fit "{spec}" runs.csv --json fit.json', "```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _inputs(law: Law, text: dict[str, str]) -> str:
    rows = []
    for axis in law.axes:
        default = f"; equals `{law.defaults[axis]}` if not given" if axis in law.defaults else ""
        rows.append(["input", f"`{axis}`", UNITS.get(axis, "as the column"), WORDS.get(axis, "") + default])
    unit = UNITS.get(law.target, "as the column")
    rows.append(["target", f"`{law.target}`", unit, WORDS.get(law.target, "").partition(" (")[0]])
    return f"{_table(['', 'column', 'unit', ''], rows)}\n\n{as_markdown(text['Inputs'])}"


def _parameters(law: Law | Part) -> str:
    how = {"log": "its logarithm (positive)", "linear": "itself"}
    rows = [[f"`{p.name}`", p.meaning, how[p.scale], f"{p.low:g} to {p.high:g}"] for p in law.parameters]
    table = _table(["name", "meaning", "fitted as", "allowed range"], rows)
    return f"{table}\n\nA range may follow the data instead; `--bound` sets another."


def _published(law: Law | Part) -> str:
    if not law.published:
        return "None are shipped."
    names = [parameter.name for parameter in law.parameters]
    rows = [
        [f"`{name}`", *(f"{fit.values[p]:.6g}" if p in fit.values else "" for p in names)]
        for name, fit in law.published.items()
    ]
    sources: dict[str, list[str]] = {}
    for name, fit in law.published.items():
        sources.setdefault(_linked(fit.source), []).append(f"`{name}`")
    some, fit = next(iter(law.published.items()))
    by_name = f"`--borrow {[*fit.values][-1]}={some}`"
    return "\n".join(
        [
            _table(["name", *(f"`{p}`" for p in names)], rows),
            "",
            *(f"- {', '.join(known)}: {source}" for source, known in sources.items()),
            "",
            f'By name: `law.theta("{some}")`, {by_name}.' if isinstance(law, Law) else f"By name: {by_name}.",
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
    if "experts" in law.axes:
        sizes = np.logspace(7, 10, 200)
        return [(f"{n} experts", {"params_active": sizes, "experts": n}) for n in (1, 8, 64, 512)]
    if "expert_density" in law.axes:
        fixed = {"params": 1e10, "tokens": np.logspace(9, 12, 200)}
        return [(f"{s:.0%} of experts", {**fixed, "expert_density": s}) for s in (1.0, 0.25, 0.05)]
    if "vocab_params" in law.axes:
        sizes = np.logspace(6, 9, 200)
        return [
            (f"{n} other parameters", {str(size): value, "vocab_params": sizes, "tokens": 20 * value})
            for n, value in _SIZES
        ]
    if size and "tokens" in law.axes:
        tokens = np.logspace(9, 13, 200)
        return [(f"{n} parameters", {size: value, "tokens": tokens}) for n, value in _SIZES]
    if "step" in law.axes and "batch_tokens" in law.axes:
        fixed = {"params_nonembedding": 1e8, "step": np.logspace(3, 6, 200)}
        return [
            (f"{n} tokens per step", {**fixed, "batch_tokens": b}) for n, b in (("100K", 1e5), ("10M", 1e7))
        ]
    if "steps_min" in law.axes:
        steps = np.logspace(3, 6, 200)
        return [(f"{n} parameters", {str(size): value, "steps_min": steps}) for n, value in _SIZES]
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

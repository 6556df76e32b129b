"""The pages keep step with the code: every example runs, every printed output is what is printed, and
every law, verb, option, warning, exported name and JSON key has its place."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer.main

import isoloss
from isoloss.cli.app import app
from isoloss.fitting.schedules import fit_schedules
from isoloss.laws import LAWS, get
from isoloss.laws.parts import FACTORS, TERMS
from isoloss.runs import CODES
from isoloss.study import journal
from tests.docs.pages import ROOT, absent_tables, agrees, blocks, page_paths, renewed, run_command, run_page

DOCS = ROOT / "docs"
PAGES = page_paths()
LADDER = "examples/stdlib_ladder.csv"


@pytest.fixture(scope="module")
def hooks():
    """``docs/hooks.py``, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location("isoloss_docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def codes_in_table(text: str, heading: str) -> set[str]:
    """First cells, in backticks, of the table under a heading."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([\w-]+)` \|", section, re.M))


# Examples


def test_formulas_in_dollars_are_drawn_and_code_is_left_alone(hooks):
    assert hooks.drawn("so $x^2$.") == f"so {hooks.mathml('x^2', 'inline')}."
    for text in ("from $5 to $6", "`a $x$ b`", "```sh\necho $HOME $USER\n```", "US$3 and $ 4 $"):
        assert hooks.drawn(text) == text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples_run_and_print_what_the_page_says(path, tmp_path):
    if absent := absent_tables(path):
        pytest.skip(f"published tables {', '.join(absent)} are not beside this checkout")
    stale = [
        f"{output.what}\n--- the page says\n{output.said}--- it prints\n{output.printed}"
        for output in run_page(path, tmp_path)
        if not agrees(output.said, output.printed)
    ]
    assert not stale, "\n\n".join([*stale, f"renew: python -m tests.docs.refresh {path.name}"])


def test_outputs_are_compared_word_by_word():
    assert agrees("a 1.000\n\nb\n", "a  1.001  \n\n\n b")
    assert not agrees("a 1.0\n", "a 1.1\n")
    assert not agrees("a\n", "a\nb\n")
    assert not agrees("a\nb\n", "a\n")
    assert agrees("a\n...\nd\n", "a\nb\nc\nd\n")
    assert agrees("a\n...\n", "a\n")
    assert not agrees("a\n...\nd\n", "a\nb\nc\n")
    assert agrees("───\n", "──────\n")


def test_renewing_keeps_the_ellipsis():
    assert renewed("a\n...\nd\n", "x\ny\nz\nw\n") == "x\n...\nw\n"
    assert renewed("", "x \n\n\ny\n") == "x\n\ny\n"
    assert renewed("a\n...\n", "x\ny\n") == "x\n...\n"
    assert renewed("a\n...\nb 1\nc 1\n...\nd\n", "x\ny\nb 2\nc 2\nz\nw\n") == "x\n...\nb 2\nc 2\n...\nw\n"
    with pytest.raises(ValueError, match="by hand"):
        renewed("a\n...\nb\n...\nd\n", "x\ny\nz\nw\n")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_study_files_on_the_pages_are_studies(path):
    tables = [tomllib.loads(block.text) for block in blocks(words(path)) if block.language == "toml"]
    for table in tables:
        if "rungs" in table:
            assert isoloss.Study(**table).plan()
        else:  # a part of one
            isoloss.Study(**{"name": "s", "rungs": [{"params": 1}], **table})


def test_blocks_know_where_they_lie():
    text = 'a\n```python title="f.py"\nx = 1\n```\n\n```text\n```\n'
    first, second = blocks(text)
    assert (first.language, first.title, first.text) == ("python", "f.py", "x = 1\n")
    assert text[first.start : first.end] == first.text
    assert (second.language, second.text) == ("text", "")


# Laws


@pytest.mark.parametrize("slug", LAWS)
def test_every_law_has_its_page(slug, hooks, monkeypatch):
    pytest.importorskip("latex2mathml", reason="formulas are rendered only where pages are built")
    page = hooks.law_page(get(slug), picture=False)
    assert "<math" in page
    for part in ("## Parameters", "## Published fits", "## Valid for", "## Source", "## Example"):
        assert part in page
    assert all(f"`{name}`" in page for name in get(slug).names)
    assert all(f"`{name}`" in page for name in get(slug).published)
    assert ":meth:" not in page
    assert ".. math::" not in page


@pytest.mark.parametrize("slug", [*FACTORS, *TERMS])
def test_every_part_has_its_page(slug, hooks):
    pytest.importorskip("latex2mathml", reason="formulas are rendered only where pages are built")
    part = hooks.part_named(slug)
    page = hooks.part_page(part)
    assert "<math" in page
    for heading in ("## Parameters", "## Published fits", "## Valid for", "## Source", "## Example"):
        assert heading in page
    names = [parameter.name for parameter in part.parameters]
    assert all(f"`{name}`" in page for name in (*names, *part.columns, *part.published, *part.shared))
    assert all(name in hooks.WORDS for name in part.columns)
    assert part.reference in page
    assert ":meth:" not in page
    assert ".. math::" not in page


def test_the_index_of_laws_lists_all(hooks):
    index = hooks.law_index()
    assert all(f"({slug}.md)" in index for slug in LAWS)
    assert all(f"(parts/{slug}.md)" in index for slug in (*FACTORS, *TERMS))
    shown = hooks.on_page_markdown("<!-- parts -->")
    assert all(f"(laws/parts/{slug}.md)" in shown for slug in (*FACTORS, *TERMS))


# Command line


def commands(group, before: str = "") -> dict:
    """Name -> command, of a group of commands within the group too: ``study run``."""
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= commands(command, f"{before}{name} ") if inner else {f"{before}{name}": command}
    return found


VERBS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_and_option_has_help_and_a_place_on_a_page(name, hooks):
    verb = VERBS[name]
    assert verb.help
    prose = "\n".join(words(path) for path in PAGES)
    assert f"isoloss {name}" in prose
    table = hooks.command_line()
    assert re.search(rf"^##+ isoloss {name}$", table, re.M)
    lacking = [parameter.name for parameter in verb.params if not getattr(parameter, "help", None)]
    assert not lacking, f"{name} lacks help for {lacking}"
    options = [o for p in verb.params if p.param_type_name == "option" for o in p.opts]
    assert not [option for option in options if f"`{option}`" not in table]
    unsaid = [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", prose)]
    assert not unsaid, f"no page mentions {unsaid}"


# Warnings


def test_every_warning_of_a_fit_is_documented():
    assert codes_in_table(words(DOCS / "fitting.md"), "Every warning a fit can give") == given_by("fitting")


def test_every_finding_of_check_is_documented():
    assert codes_in_table(words(DOCS / "runs.md"), "Check") == set(CODES)


def test_every_warning_of_a_plan_is_documented():
    page = DOCS / "plan.md"
    if not page.is_file():
        pytest.skip("no page on planning yet")
    text = words(page)
    assert not [code for code in given_by("planning") if f"`{code}" not in text]


def given_by(folder: str) -> set[str]:
    """Codes with which the modules of a folder make a ``Finding``, directly or by a ``_warn``."""
    trees = [ast.parse(words(path)) for path in (ROOT / "isoloss" / folder).glob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    firsts = [
        call.args[0] for call in calls if getattr(call.func, "id", "") in ("Finding", "_warn") and call.args
    ]
    # Of an f-string, what stands before the first brace.
    starts = [first.values[0] if isinstance(first, ast.JoinedStr) else first for first in firsts]
    return {start.value for start in starts if isinstance(start, ast.Constant)}


# API and links


def test_every_exported_name_is_on_the_api_page():
    shown = set(re.findall(r"^::: isoloss\.(?:\w+\.)*(\w+)$", words(DOCS / "api.md"), re.M))
    assert set(isoloss.__all__) <= shown


def test_links_between_pages_exist():
    made = {f"laws/{slug}.md" for slug in LAWS} | {"laws/index.md"}
    made |= {f"laws/parts/{slug}.md" for slug in (*FACTORS, *TERMS)}
    for path in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", words(path)):
            inside = (path.parent / target).resolve()
            assert inside.exists() or target in made, f"{path.name} links to {target}"


def test_navigation_holds_every_page():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].partition("\n\n")[0]
    for path in DOCS.glob("*.md"):
        assert f" {path.name}" in nav, path.name


# JSON


def documented(schema: str) -> dict[str, str]:
    """Key -> type, as the page on JSON files has it."""
    section = words(DOCS / "json.md").partition(f"\n## {schema}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \|([^|]+)\|([^|]*)\|([^|]+)\|$", section, re.M)
    assert all(meaning.strip() for *_, meaning in rows)
    return {key: kind.strip() for key, kind, _, _ in rows}


def written(value, keys: dict[str, str], at: str = ""):
    """(key, value) of every leaf of a document; names the page calls ``*`` are written so."""
    if isinstance(value, dict) and "object" not in keys.get(at, ""):
        free = any(key.startswith(f"{at}.*") for key in keys)
        for name, inner in value.items():
            yield from written(inner, keys, f"{at}.{'*' if free else name}" if at else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from written(inner, keys, f"{at}[]")
    elif not (isinstance(value, list) and not value and any(key.startswith(f"{at}[]") for key in keys)):
        yield at, value


def is_of_type(value, kind: str) -> bool:
    if kind.startswith("list of "):
        inner = kind.removeprefix("list of ").replace("lists", "list").removesuffix("s")
        return isinstance(value, list) and all(is_of_type(entry, inner) for entry in value)
    if kind.startswith("list of lists"):
        return isinstance(value, list)
    tests = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "object": isinstance(value, dict),
        "null": value is None,
    }
    return any(tests[part] for part in kind.split(" or "))


PIECES = (
    "* data-constrained@muennighoff-2023 * precision(bits_weights)@kumar-2024 + ptq(bits_post)@kumar-2024"
)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Schema -> documents that the command line writes, with every option that adds keys."""
    folder = tmp_path_factory.mktemp("json")
    (folder / "examples").symlink_to(ROOT / "examples")
    text = words(ROOT / LADDER).splitlines()
    rows = [line.split(",") for line in text]
    rows[1][rows[0].index("loss")] = "nan"
    for row in rows:  # tokens follow from flops and params
        del row[3]
    (folder / "holed.csv").write_text("\n".join(map(",".join, rows)) + "\n", encoding="utf-8")
    curve = [(size, 1.5 + 300 * size**-0.4) for size in (10 ** (5 + i / 4) for i in range(12))]
    rows = ["tokens,loss", *(f"{size:.6g},{loss:.8g}" for size, loss in curve), "1e9,nan"]
    (folder / "curve.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    few_rows = [*rows[:9], rows[-1]]  # room for few laws
    (folder / "short.csv").write_text("\n".join(few_rows) + "\n", encoding="utf-8")
    rates = [(2**u, 2 + 0.02 * (u - 0.4) ** 2) for u in range(-3, 4)]
    rows = ["params,tokens,lr,loss", *(f"1e6,1e8,{rate},{loss}" for rate, loss in rates)]
    (folder / "rates.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    cells = [(f"{rate},{2**v}", loss + 0.02 * (v - 5.3) ** 2) for rate, loss in rates for v in range(3, 9)]
    rows = ["params,tokens,lr,batch_sequences,loss", *(f"1e6,1e8,{cell},{loss}" for cell, loss in cells)]
    (folder / "batches.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    counted = "name,tasks,right,right_accepted,wrong,wrong_accepted\neasy,9,80,78,20,5\nhard,7,20,19,80,22\n"
    (folder / "counted.csv").write_text(counted, encoding="utf-8")
    (folder / "verifier.csv").write_text("prior,p,tpr,fpr\n1,0.3,0.9,0.2\n", encoding="utf-8")
    held = "--tie alpha=beta --prior E~1+-0.3"
    few = "--draws 20"
    begin_a_study(folder)
    (folder / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    (folder / "cache" / "isoloss").mkdir(parents=True)
    (folder / "cache" / "isoloss" / "roofline.json").write_text(json.dumps(a_roofline()), encoding="utf-8")
    verbs = [
        f"fit hoffmann {LADDER} {few} {held}",
        f"fit hoffmann {LADDER} {few} --borrow beta=besiroglu-2024 --fix E=1 --bound alpha=0.1:1",
        f"fit hoffmann {LADDER} {few} --objective student-t",
        f"fit hoffmann holed.csv {few}",
        f"fit power(flops) {LADDER} {few} --by seed",
        f"check {LADDER}",
        "check holed.csv",
        f"fit hoffmann {LADDER} --draws 200",
        "laws",
        "predict 7.json --params 1M,2M --tokens 4M --of run",
        "predict 1.json --params 1M --tokens 4M",
        f"predict 7.json --at {LADDER}",
        "plan 7.json --flops 1e14",
        "plan 7.json --loss 1.5 --serve-tokens 1e9 --peak 1e14 --utilisation 0.4 --price-per-device-hour 2",
        "plan 7.json --flops 1e14 --bytes 1MB --tokens 1G",
        [
            "plan",
            "7.json",
            "--flops",
            "1e14",
            "--tokens",
            "1M",
            "--borrow",
            PIECES,
            "--value",
            "C_T=0.06:0.18",
            "--hold",
            "bits_weights=8",
            "--choose",
            "bits_post=3,4,8",
            "--lr",
            "step-law@li-2025",
            "--bits-cost",
            "--batch",
            "step-law-batch@li-2025",
        ],
        "versus 7.json 7.json --at 1e14",
        "level hestness curve.csv --draws 20",
        "optimum rates.csv",
        "optimum batches.csv --seq-len 64",
        "compare auto short.csv --draws 20 --folds 1",
        "fit auto short.csv --draws 20",
        "predict 7.json --params 1M --tokens 4M,8M --of run --ledger led.db --recalibrate",
        "ledger led.db --record 1=1.5",
        "samples counted.csv --wrong 1 --draws 50",
        "samples verifier.csv",
        "study run ended.toml",
        "study status ended.toml",
        "study status begun.toml",
        "measure nets.py:shared nets.py:bare --what params,flops,noise_scale",
        "compress nets.py:shared --format int4 --out small",
        "compress nets.py:shared --bits 5 --dry-run",
        "compress nets.py:deep --bits 7 --sensitivity all",
        "compress nets.py:deep --bits 7 --dry-run",
        "compress nets.py:looked --format int4 --out rounded --blockwise steps=2 --activations int8(when=static)",
        "compress nets.py:deep --frontier f.csv --format int2/g16,int4/g16",
        "compress nets.py:deep --claims",
        "compress nets.py:loud --claims",
        "worth f.csv",
        "worth f.csv --law 7.json --tokens 1M --at 5",
        "bench nets.py:gpt --context 4 --new 2 --repeats 2",
        "generate nets.py:gpt the --new 3",
        "generate nets.py:gpt the --new 4 --draft nets.py:gpt",
        "pack small --out packed",
        "export small --to small.onnx --model nets.py:shared",
        "export small --to small.qonnx.onnx --model nets.py:shared",
    ]
    log_curves(folder)
    verbs += [
        "schedule fit lr-annealing logged.csv --draws 5 --starts 2 --fix memory=50",
        "schedule choose schedule.json --steps 200 --peak 0.01",
    ]
    out: dict[str, list] = {"isoloss/roofline/1": [a_roofline()]}
    for i, command in enumerate(verbs):
        given = command.split() if isinstance(command, str) else command
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # a roofline that is not measured
            code, printed = run_command([*given, "--json", f"{i}.json"], folder)
        assert code in (0, 2 if given[0] == "check" else 0), f"{command}: {printed}"
        document = json.loads(words(folder / f"{i}.json"))
        out.setdefault(document["schema"], []).append(document)
    out["isoloss/recipe/1"] = [
        json.loads(words(folder / name / "recipe.json")) for name in ("small", "rounded")
    ]
    return out


def log_curves(folder: Path) -> None:
    """Two training curves of unlike peaks, logged from the warm-up on, and a fit of them."""
    rows = ["curve,step,lr,loss"]
    for name, peak in (("a", 0.01), ("b", 0.02)):
        for step in range(1, 201):
            lr = peak * min(step / 10, 1.0) * (1.0 if step < 100 else 0.1)
            rows.append(f"{name},{step},{lr!r},{2 + step**-0.5 - 0.1 * (step > 100) * peak * 10!r}")
    (folder / "logged.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    fit_schedules("lr-annealing", folder / "logged.csv", draws=5, starts=2).save(folder / "schedule.json")


NETS = """
    import torch
    from torch import nn
    from isoloss.measure import Subject
    from isoloss.measure.criteria import CrossEntropy

    class Far(nn.Linear):
        def forward(self, x):
            return torch.cdist(super().forward(x), x)

    def shared():
        model = nn.Sequential(*[nn.Linear(32, 32), nn.ReLU()] * 8)
        return Subject(model, [(torch.randn(8, 32), torch.zeros(8).long())], CrossEntropy(), "shared")

    def deep():
        model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(16, 16), nn.ReLU())])
        return Subject(model, [(torch.randn(8, 16), torch.zeros(8).long())], CrossEntropy(), "deep")

    def looked():
        model = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 4))
        return Subject(model, [(torch.arange(9), torch.zeros(9).long())], CrossEntropy(), "looked")

    def loud():
        model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 4))
        return Subject(model, [(20 * torch.randn(8, 32), torch.zeros(8).long())], CrossEntropy(), "loud")

    def bare():
        return Far(64, 64), torch.randn(8, 64)

    def gpt():
        from isoloss.trainers.gpt_modules import of
        from isoloss.trainers.gpt_settings import Settings
        from isoloss.trainers.transformer import GPT
        settings = Settings(width=32, tokens=(1,))
        return of(GPT(settings), settings), torch.zeros(1, 4).long()
"""


def a_roofline() -> dict:
    """What the file of a roofline holds."""
    import torch

    from isoloss.measure.roofline import Ceiling, Roofline, machine

    ceilings = (Ceiling(1, "float32", 1e11, 1e10),)
    return Roofline(machine(), torch.__version__, ceilings, 1 << 27, (0.5, 0.7), "2026-01-01").to_json()


def begin_a_study(folder: Path) -> None:
    """Two study files: one whose second run fails, one with a run that was cut off on the way."""
    trainer = """
        def train(config):
            yield 1, {"loss": 1 + 10 / config["tokens"] if config["tokens"] else "no number"}
        """
    (folder / "train.py").write_text(textwrap.dedent(trainer), encoding="utf-8")
    file = """
        name = "{name}"
        objective = {{ laws = ["power(tokens)"], draws = 100 }}
        trainer = {{ run = "train.py:train" }}
        rungs = [{{ tokens = [{tokens}] }}]
        target = {{ tokens = 64 }}
        workers = {{ count = 1, retries = 0 }}
        """
    for name, tokens in (("ended", "1, 2, 4, 8, 0"), ("begun", "1")):
        text = textwrap.dedent(file).format(name=name, tokens=tokens)
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    study = isoloss.Study.read(folder / "begun.toml")
    place = study.folder_path / study.plan()[0].runs[0].key
    place.mkdir(parents=True)
    point = {"step": 1, "measured": {"loss": 2.5, "done": 0.5}, "cpu": 1.0, "wall": 1.0}
    (place / journal.NAME).write_bytes(journal.line({"attempt": 1, "pid": 1}) + journal.line(point))


SCHEMAS = re.findall(r"^## (isoloss/[\w-]+/\d+)$", words(DOCS / "json.md"), re.M)


def test_every_schema_is_documented(documents):
    assert set(documents) == set(SCHEMAS)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_documented_keys_are_the_written_keys(schema, documents):
    keys = documented(schema)
    seen = [leaf for document in documents[schema] for leaf in written(document, keys)]
    assert {key for key, _ in seen} == set(keys)
    wrong = [(key, value) for key, value in seen if not is_of_type(value, keys[key])]
    assert not wrong


def test_a_group_is_a_fit(documents):
    keys = documented("isoloss/fit/1")
    for document in documents["isoloss/fits/1"]:
        for inner in document["groups"].values():
            assert {key for key, _ in written(inner, keys)} <= set(keys)

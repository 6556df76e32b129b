"""Imports go one way, files stay short, public functions say what they take, starting costs little."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "isoloss"
FILES = sorted(PACKAGE.rglob("*.py"))

SPINE = {"runs", "laws", "observing", "fitting", "planning", "comparing", "study"}
# Folder or root module -> what of the package it may import besides itself.
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "version": set(),
    "special": set(),
    "native": set(),
    "runs": {"errors", "files"},
    "laws": {"errors"},
    "observing": {"errors", "special"},
    "fitting": {"runs", "laws", "observing", "errors", "files", "special"},
    "planning": {"runs", "laws", "fitting", "observing", "errors", "files", "special"},
    "comparing": {"runs", "laws", "fitting", "planning", "errors", "files", "special"},
    "study": {"runs", "laws", "fitting", "planning", "comparing", "errors", "files", "special"},
    "cli": SPINE | {"errors", "files", "report", "measure", "compress", "deploy", ""},
    "report": SPINE | {"errors", "files", "version", "measure", "deploy"},
    "trainers": {"errors", "files"},
    "measure": {"runs", "observing", "trainers", "errors", "files", "special"},
    "compress": {"native", "measure", "planning", "runs", "laws", "fitting", "trainers", "errors", "files"},
    "deploy": {"compress", "measure", "native", "trainers", "errors", "files"},
    "": SPINE | {"errors", "report", "version"},
    "__main__": {"cli"},
}
LONGEST = 600
# `axis=value` pairs are the law's own names, not options passed on unseen.
AXES_BY_NAME = {
    ("Law", "evaluate"),
    ("Composed", "effects"),
    ("", "critical_tokens"),
    ("Fit", "predict"),
    ("Predicts", "predict"),
    ("Chain", "predict"),
    ("Stack", "predict"),
}


def part_of(path: Path) -> str:
    """``isoloss/runs/read.py`` -> ``runs``; ``isoloss/__init__.py`` -> ``""``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every file of the package, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported_parts(path: Path, tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from isoloss import runs` names a part; `from isoloss.runs import x` too.
            own = node.module == "isoloss"
            names = [f"isoloss.{a.name}" for a in node.names] if own else [node.module or ""]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "isoloss":
                part = rest.partition(".")[0]
                found.add(part if part in MAY_IMPORT else "")
    return found


def test_imports_go_one_way(trees):
    new = {part_of(path) for path in FILES} - set(MAY_IMPORT)
    assert not new, f"new parts {new}: say in MAY_IMPORT what they may import"
    wrong = {
        path: imported_parts(path, tree) - {part_of(path)} - MAY_IMPORT[part_of(path)]
        for path, tree in trees.items()
    }
    assert not {str(path.relative_to(ROOT)): parts for path, parts in wrong.items() if parts}


def test_the_rules_have_no_circle_and_nothing_imports_the_command_line():
    for part, allowed in MAY_IMPORT.items():
        assert "cli" not in allowed or part == "__main__"
        for other in allowed - {""}:
            assert part not in MAY_IMPORT[other]


def test_no_file_is_long():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > LONGEST}


def public_functions(tree: ast.Module):
    def walk(body, owner):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from walk(node.body, node.name)
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield owner, node

    yield from walk(tree.body, "")


def test_public_signatures_are_written_out(trees):
    for path, tree in trees.items():
        for owner, node in public_functions(tree):
            if (owner, node.name) not in AXES_BY_NAME:
                assert node.args.kwarg is None, f"{path}: {owner}.{node.name} takes **{node.args.kwarg.arg}"


def test_the_spine_never_prints(trees):
    for path, tree in trees.items():
        if part_of(path) not in ("cli", "__main__"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id != "print", path


def modules_after(code: str) -> set[str]:
    """Modules loaded by ``code`` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


HEAVY = {"scipy", "pandas", "torch", "matplotlib", "typer", "rich", "pyarrow", "sqlalchemy"}


@pytest.mark.parametrize(
    "code",
    [
        "import isoloss",
        "import isoloss, isoloss.laws; isoloss.laws.get('hoffmann').evaluate([2, 400, 400, 0.3, 0.3], params=1e9, tokens=1e10)",
        "import isoloss; isoloss.check(isoloss.read('TABLE'), axes=['params', 'tokens'])",
    ],
    ids=["import", "laws", "check"],
)
def test_starting_is_light(code, tmp_path):
    table = tmp_path / "runs.csv"
    rows = [f"{10 ** (6 + i % 4)},{10 ** (9 + i // 4)},{3 - 0.1 * i}" for i in range(8)]
    table.write_text("\n".join(["params,tokens,loss", *rows]) + "\n", encoding="utf-8")
    assert not modules_after(code.replace("TABLE", str(table).replace("\\", "/"))) & HEAVY


def test_importing_the_package_loads_not_even_numpy():
    assert "numpy" not in modules_after("import isoloss")

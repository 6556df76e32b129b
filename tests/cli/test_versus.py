"""``isoloss versus`` end to end: what it prints and writes, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import isoloss
from isoloss.cli import run

Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``old.json`` and ``new.json``, and both as groups of ``both.json``."""
    folder = tmp_path_factory.mktemp("fits")
    c = np.geomspace(1e18, 1e20, 12)
    lines = ["which,flops,loss"]
    for i, (name, size, slope) in enumerate((("old", 20.0, 0.05), ("new", 24.0, 0.055))):
        noise = 0.001 * np.random.default_rng(i).standard_normal(12)
        lines += [f"{name},{x:.8g},{y:.8g}" for x, y in zip(c, size * c**-slope * np.exp(noise), strict=True)]
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    words = ["fit", "power(flops)", str(folder / "runs.csv"), "--draws", "100"]
    for name in ("old", "new"):
        where = ["--where", f"which == '{name}'", "--json", str(folder / f"{name}.json")]
        assert run([*words, *where]) == 0
    assert run([*words, "--by", "which", "--json", str(folder / "both.json")]) == 0
    return folder


def test_files_and_groups_say_the_same_as_python(files: Path, capsys: Out) -> None:
    out = files / "out.json"
    two = [str(files / "old.json"), str(files / "new.json"), "--names", "old,new"]
    one = [str(files / "both.json")] * 2 + ["--groups", "old,new"]
    documents = []
    for words in (two, one):
        assert run(["versus", *words, "--at", "1e19,1e21", "--json", str(out)]) == 0
        documents.append(json.loads(out.read_text()))
    printed = capsys.readouterr().out
    assert documents[0] == documents[1]
    fits = [isoloss.load(files / f"{name}.json") for name in ("old", "new")]
    assert isoloss.versus(*fits, at=[1e19, 1e21], names=("old", "new")).to_json() == documents[0]
    assert documents[0]["schema"] == "isoloss/versus/1"
    assert [len(documents[0][part]) for part in ("points", "asked")] == [9, 2]
    for words_ in ("old - new, 90%", "P(old lower)", "1e19: new is lower", "crossing:", "per-token-loss"):
        assert words_ in printed


def test_not_resolved_is_an_answer(files: Path, capsys: Out) -> None:
    path = str(files / "old.json")
    assert run(["versus", path, path, "--at", "1e19,1e23"]) == 0
    printed = capsys.readouterr().out
    assert "1e19: not resolved: the 90% interval of the difference covers 0" in printed
    assert "no ranking beyond 10 times" in printed


@pytest.mark.parametrize("style", ["--md", "--latex"])
def test_tables_for_documents(files: Path, capsys: Out, style: str) -> None:
    path = str(files / "old.json")
    assert run(["versus", path, path, "--at", "1e19", style]) == 0
    assert ("| flops " if style == "--md" else r"\begin{tabular}") in capsys.readouterr().out


def test_exit_codes(files: Path, capsys: Out, tmp_path: Path) -> None:
    path = files / "old.json"
    document = json.loads(path.read_text())
    (tmp_path / "open.json").write_text(json.dumps({**document, "result": "not-identified"}))
    units = {**document["data"], "units": {"flops": "FLOP", "loss": "nats/byte"}}
    (tmp_path / "bytes.json").write_text(json.dumps({**document, "data": units}))
    for other, words, code, text in (
        (tmp_path / "open.json", [], 3, "do not determine"),
        (tmp_path / "bytes.json", [], 2, "nats per byte"),
        (path, ["--names", "old"], 2, "two words"),
        (path, ["--at", "many"], 2, "needed a count"),
        (path, ["--stretch", "0.5"], 2, "at least 1"),
    ):
        assert run(["versus", str(path), str(other), *words]) == code
        assert text in capsys.readouterr().err

"""``isoloss compress`` where each layer gets a format of its own."""

from __future__ import annotations

import csv
import json
import textwrap

import pytest

torch = pytest.importorskip("torch")

import safetensors.torch  # noqa: E402

from isoloss.compress import candidates  # noqa: E402
from isoloss.compress.sensitivity import SENSITIVITIES  # noqa: E402
from tests.docs.pages import run_command  # noqa: E402

NETS = """
    import torch
    from torch import nn
    from isoloss.measure import Subject
    from isoloss.measure.criteria import CrossEntropy

    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5))
        x = torch.randn(60, 32)
        return Subject(net, [(x, net(x).argmax(1))], CrossEntropy(), "net")

    def bare():
        return nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 4)), torch.randn(50, 32)

    def score(net):
        return float(net[0].weight.unique().numel())
    """


@pytest.fixture
def run(tmp_path):
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")

    def command(words):
        code, printed = run_command(f"compress {words} --json a.json".split(), tmp_path)
        path = tmp_path / "a.json"
        return code, printed, json.loads(path.read_text(encoding="utf-8")) if code == 0 else None

    return command


def test_a_rise_of_the_loss_is_kept_on_the_compressed_model(run, tmp_path):
    code, printed, found = run("nets.py:make --max-loss-increase 0.05 --out small --frontier points.csv")
    assert code == 0, printed
    assert found["loss_after"] - found["loss_before"] <= 0.05
    assert found["measured"] <= 0.05
    assert found["sensitivity"] == "block-fisher"
    assert found["bits_per_weight"] < 6
    assert (tmp_path / "small" / "recipe.json").exists()
    with open(tmp_path / "points.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 2
    assert {"bits_post", "bytes", "loss", "rise", "rise_se", "difference", "foretold"} <= set(rows[0])
    code, printed, _ = run("nets.py:make --max-loss-increase 0.05 --bytes 1kB")
    assert code == 3
    assert "bytes" in printed


def test_several_formats_methods_and_a_score(run):
    code, printed, found = run(
        "nets.py:make --bits 4.5 --format int2/asym,int3/asym,int4/asym --sensitivity all --eval nets.py:score"
    )
    assert code == 0, printed
    assert found["bits_per_weight"] <= 4.5
    assert [row["name"] for row in found["sensitivities"]] == list(SENSITIVITIES)
    assert found["sensitivities"][-1]["layers"] == 1
    assert found["score_before"] == 32 * 48
    assert found["score_after"] < 32 * 48


def test_a_proxy_decides_where_it_is_asked_for(run):
    code, printed, found = run("nets.py:make --bits 4.5 --format int2/asym,int6/asym --sensitivity bsnip")
    assert code == 0, printed
    assert (found["sensitivity"], found["foretold"]) == ("bsnip", None)


def test_an_interrupted_choice_goes_on_with_the_layers_that_were_encoded(run, tmp_path, monkeypatch):
    """Each layer is encoded once in each format over both runs, and the folder is that of an undisturbed one."""
    own, seen = candidates._candidate, []

    def counted(layer, choice, statistics):
        if len(seen) == 4 and (layer.name, choice.format) == ("4", "int2/asym"):
            seen.append("cut")
            raise KeyboardInterrupt
        seen.append((layer.name, choice.format))
        return own(layer, choice, statistics)

    words = "nets.py:make --bits 4.5 --format int2/asym,int6/asym --out"
    assert run(f"{words} whole")[0] == 0
    monkeypatch.setattr(candidates, "_candidate", counted)
    code, printed, _ = run(f"{words} small")
    assert code == 130, printed
    assert "2 layers in all formats are kept in small/candidates" in printed.replace("\\", "/")
    assert "The same command goes on after them" in printed
    code, printed, _ = run(f"{words} small --unreached nearest")  # another choice: nothing of the first
    assert code == 0, printed
    assert len(seen) == 4 + 1 + 6
    assert not (tmp_path / "small" / "candidates").exists()

    seen.clear()
    assert run(f"{words} again")[0] == 130
    code, printed, _ = run(f"{words} again")
    assert code == 0, printed
    assert sorted(set(seen) - {"cut"}) == sorted(one for one in seen if one != "cut")
    assert len(seen) == 6 + 1
    found, whole = (
        safetensors.torch.load_file(tmp_path / name / "compressed.safetensors") for name in ("again", "whole")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_formats_may_name_their_solvers(run, tmp_path):
    code, printed, found = run(
        "nets.py:make --bits 5.5 --format int4/asym@nearest,int3/asym,table2/int8@kmeans --out small"
    )
    assert code == 0, printed
    own = json.loads((tmp_path / "small" / "recipe.json").read_text(encoding="utf-8"))["layers"]
    by = {"int4/asym": "nearest", "int3/asym": "gptq", "table2/int8": "kmeans"}
    assert all(layer["solver"] == by[layer["format"]] for layer in own)
    assert set(found["solver"].split(", ")) == {layer["solver"] for layer in own}


def test_tables_and_integers_stand_for_choice_where_nothing_is_named(run, tmp_path):
    code, printed, _ = run("nets.py:make --frontier points.csv")
    assert code == 0, printed
    with open(tmp_path / "points.csv", encoding="utf-8", newline="") as file:
        by = {row["variant"]: row["solver"] for row in csv.DictReader(file)}
    assert by["table3/int8"] == "lut-feedback"
    assert by["int4/g128/asym"] == "gptq"


def test_without_a_loss_the_errors_of_outputs_decide(run):
    code, printed, found = run("nets.py:bare --bits 4.5")
    assert code == 0, printed
    assert (found["sensitivity"], found["foretold"]) == ("output-error", None)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("nets.py:make --bits 4 --sensitivity best", 2, "no sensitivity named 'best'"),
        ("nets.py:make --bits 4 --format int4 --sensitivity pd", 2, "--sensitivity chooses between formats"),
        ("nets.py:make --format int4,int3", 2, "several formats need a limit"),
        ("nets.py:make --bytes 100", 3, "at least 2."),
        ("nets.py:bare --bits 4 --sensitivity pd", 2, "needs a loss"),
        ("nets.py:bare --max-loss-increase 0.1", 2, "needs a loss"),
        ("nets.py:make --max-loss-increase 1e-12", 3, "the loss rises by"),
        ("nowhere.py:make --max-loss-increase -0.1", 2, "needed --max-loss-increase above 0, got -0.1"),
        ("nowhere.py:make --max-loss-increase nan", 2, "needed --max-loss-increase above 0, got nan"),
        ("nowhere.py:make --bits 0", 2, "needed --bits above 0, got 0"),
    ],
)
def test_refusals(words, code, said, run):
    got, printed, _ = run(words)
    assert got == code, printed
    assert said in printed

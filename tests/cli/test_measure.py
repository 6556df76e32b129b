"""The verb ``measure``: tables, files, pages, and one line for what cannot be measured."""

from __future__ import annotations

import json
import math
import textwrap

import pytest

torch = pytest.importorskip("torch")

import isoloss  # noqa: E402
from isoloss.cli import run  # noqa: E402
from isoloss.measure import roofline as module  # noqa: E402
from isoloss.measure.roofline import Ceiling, Roofline  # noqa: E402

NETS = """
    import torch
    from torch import nn

    from isoloss.measure import Subject
    from isoloss.measure.criteria import CrossEntropy
    from isoloss.measure.load import Loaded


    def net(name, width, times):
        middle = [nn.Linear(width, width), nn.ReLU()] * times
        batch = torch.randn(16, 8), torch.randint(4, (16,))
        return Subject(nn.Sequential(nn.Linear(8, width), *middle, nn.Linear(width, 4)), [batch], CrossEntropy(), name)


    def wide():
        return net("wide", 48, 1)


    def shared():
        return net("shared", 32, 4)


    def bare():
        return nn.Linear(8, 4), torch.randn(16, 8)


    def writes():
        return Loaded(wide(), notes=("it pretends",), generate=lambda p, o: sum(range(50 * (p + 9 * o))), context=64)
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    ceilings = tuple(Ceiling(n, kind, 1e11 * n, 1e10) for n in (1, 2) for kind in ("float32", "bfloat16"))
    roof = Roofline(module.machine(), torch.__version__, ceilings, 1 << 27, (0.5, math.nan), "2026-01-01")
    monkeypatch.setattr(module, "measure_roofline", lambda: roof)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


def test_all_costs(place, capsys):
    words = ["measure", "nets.py:writes", "--threads", "1", "--longest-prompt", "16", "--longest-output", "4"]
    words += [
        "--idle-watts",
        "10",
        "--full-watts",
        "50",
        "--grams-per-kwh",
        "100",
        "--pue",
        "1.1",
        "--region",
        "x",
    ]
    assert run([*words, "--json", "o.json", "--runs", "o.csv", "--report", "o.html"]) == 0
    printed = capsys.readouterr().out
    assert "could not" not in printed
    assert "note: it pretends" in printed
    document = json.loads((place / "o.json").read_text(encoding="utf-8"))
    assert document["schema"] == "isoloss/measure/1"
    assert document["threads"] == 1
    [one] = document["models"]
    names = {each["name"] for each in one["measurements"]}
    assert names >= {
        "params", "flops_forward", "memory_peak", "memory_peak_measured", "bytes_moved", "roofline_share", "latency",
        "throughput", "runtime_prefill", "energy", "co2e",
    }  # fmt: skip
    assert all(each["how"] or each["name"].startswith(("buffers", "expert")) for each in one["measurements"])
    assert any(each["of"] == "addmm" for each in one["measurements"])
    runs = isoloss.read(place / "o.csv")
    params = 8 * 48 + 48 + 48 * 48 + 48 + 48 * 4 + 4
    assert runs["params"].tolist() == [params]
    assert runs["memory_weights"].tolist() == [4 * params]
    page = (place / "o.html").read_text(encoding="utf-8")
    assert "wide: measured" in page
    assert page.count("<svg") == 1
    assert "Bytes moved by wide" in page
    assert "http" not in page
    assert (place / "cache" / "isoloss" / "roofline.json").is_file()


def test_several_models_side_by_side(place, capsys):
    words = [
        "measure",
        "nets.py:wide",
        "nets.py:shared",
        "--what",
        "params,flops,latency,traffic",
        "--json",
        "-",
    ]
    assert run([*words, "--report", "o.html"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [one["name"] for one in found["models"]] == ["wide", "shared"]
    assert any({c["by"], c["against"]} == {"params", "flops_forward"} for c in found["contradictions"])
    assert "costs-contradict" in err
    assert "shared" in err.splitlines()[0] + err.splitlines()[1]
    latencies = [m for one in found["models"] for m in one["measurements"] if m["name"] == "latency"]
    assert all("in turn with the other models" in each["how"] for each in latencies)
    page = (place / "o.html").read_text(encoding="utf-8")
    assert "Side by side" in page
    assert "Contradictions" in page
    assert page.count("<svg") == 2


def test_what_cannot_be_measured_is_a_line(capsys):
    assert run(["measure", "nets.py:bare", "--what", "params,noise,runtime,energy"]) == 0
    printed = capsys.readouterr().out
    assert "noise_scale: could not: no loss was given" in printed
    assert "runtime: could not: nothing here generates text" in printed
    assert run(["measure", "nets.py:bare", "--what", "runtime"]) == 3


def test_what_is_not_resolved_says_why(place, capsys):
    assert run(["measure", "nets.py:wide", "--what", "flops,layer_traces,noise", "--report", "o.html"]) == 0
    printed = capsys.readouterr().out
    assert "noise_scale: not resolved: noise hides the gradient; 90% interval" in printed
    page = (place / "o.html").read_text(encoding="utf-8")
    assert "noise scale not resolved" in page
    assert "flops_forward [FLOP/example]" in page  # a column; its layers are rows
    assert "hessian_trace [nats]" in page


def test_costs_that_nobody_asked_for_are_not_missed(capsys):
    assert run(["measure", "nets.py:wide", "nets.py:shared", "--what", "params,flops"]) == 0
    assert "costs-incomplete" not in capsys.readouterr().out


def test_layers_are_printed_on_request(capsys):
    assert run(["measure", "nets.py:wide", "--what", "flops", "--layers"]) == 0
    assert "flops_forward [0]" in capsys.readouterr().out
    assert run(["measure", "nets.py:wide", "--what", "flops"]) == 0
    assert "--layers prints them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no such folder"),
        (["nets.py:wide", "--what", "weight"], "nothing named 'weight' to measure"),
        (["nets.py:wide", "--idle-watts", "10"], "both --idle-watts and --full-watts"),
        (["nets.py:wide", "--pue", "1.1"], "both --grams-per-kwh and --pue"),
        (["nets.py:wide", "--idle-watts", "60", "--full-watts", "50"], "idle_watts <= full_watts"),
        (["nets.py:wide", "nets.py:wide"], "models of different names"),
        (["nets.py:wide", "--report", "nowhere/o.html"], "no folder that can be written"),
        (["nets.py:wide", "--what", "params", "--optimiser", "lion"], "no optimiser named 'lion'"),
    ],
)
def test_words_that_cannot_be(capsys, words, said):
    code = run(["measure", *words])
    out, err = capsys.readouterr()
    assert said in out + err
    assert code == 2

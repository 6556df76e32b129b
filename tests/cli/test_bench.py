"""``isoloss bench``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import math
import textwrap

import pytest

torch = pytest.importorskip("torch")

from isoloss.cli import run  # noqa: E402
from isoloss.deploy.bench import Candidate, bench, bytes_read, pinned  # noqa: E402
from isoloss.deploy.decoders import decoder  # noqa: E402
from isoloss.measure import roofline as module  # noqa: E402
from isoloss.measure.roofline import Ceiling, Roofline, cores  # noqa: E402
from isoloss.trainers.gpt_modules import of  # noqa: E402
from isoloss.trainers.gpt_settings import Settings  # noqa: E402
from isoloss.trainers.transformer import GPT  # noqa: E402

NETS = """
    import torch
    from isoloss.trainers.gpt_modules import of
    from isoloss.trainers.gpt_settings import Settings
    from isoloss.trainers.transformer import GPT

    def gpt():
        settings = Settings(width=32, tokens=(1,))
        return of(GPT(settings), settings), torch.zeros(1, 4).long()

    def line():
        return torch.nn.Linear(2, 2), torch.zeros(1, 2)
"""
SHORT = ["--context", "4", "--new", "2", "--repeats", "3"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    roof = Roofline(
        module.machine(),
        torch.__version__,
        (Ceiling(1, "float32", 1e11, 1e10),),
        1 << 27,
        (0.5, 0.7),
        "2026-01-01",
    )
    monkeypatch.setattr(module, "measure_roofline", lambda: roof)
    return tmp_path


def test_a_model_is_timed_and_drawn(place, capsys):
    words = ["bench", "nets.py:gpt", *SHORT, "--json", "b.json", "--picture", "b.svg"]
    assert run(words) == 0
    assert "tokens/s" in capsys.readouterr().out
    document = json.loads((place / "b.json").read_text())
    [one] = document["speeds"]
    token = one["seconds_per_token"]
    assert token["low"] <= token["value"] <= token["high"]
    assert one["share_of_bandwidth"] == pytest.approx(one["bytes_per_token"] / token["value"] / 1e10)
    assert (place / "b.svg").read_text().lstrip().startswith("<?xml")


def test_a_compressed_folder_runs_packed_and_reads_fewer_bytes(place):
    transformers = pytest.importorskip("transformers")
    from isoloss.compress import Choice, compress, save

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(place / "whole")
    save(compress(model, Choice("int4/g64", "nearest")), place / "small")
    assert run(["bench", "whole", "small", *SHORT, "--json", "b.json"]) == 0
    whole, small = json.loads((place / "b.json").read_text())["speeds"]
    assert (whole["model"], small["model"]) == ("whole", "small")
    weights = sum(p.numel() for p in model.parameters())
    assert whole["bytes_per_token"] >= 4 * weights
    assert 0.5 * weights < small["bytes_per_token"] < 0.8 * weights + 2000


def test_threads_that_were_not_measured_have_no_share():
    settings = Settings(width=32, tokens=(1,))
    model = of(GPT(settings), settings)
    [one] = bench({"a": Candidate(decoder(model), bytes_read(model))}, (1,), 4, 2, 3)
    assert math.isnan(one.share)


def test_threads_are_pinned_and_let_go():
    before = torch.get_num_threads()
    with pinned(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="one for each core"), pinned(cores() + 1):
        pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "nets.py:line"], "causal language model"),
        (["bench", "nets.py:gpt", "--threads", "one"], "numbers with commas"),
        (["bench", "nets.py:gpt", "--context", "100"], "reads at most"),
        (["bench", "nets.py:gpt", "nets.py:gpt"], "each model once"),
        (["bench", "nets.py:gpt", "--picture", "b.gif"], ".svg or .png"),
        (["bench", "nowhere"], "no such folder"),
    ],
)
def test_refusals(words, said, capsys):
    assert run(words) == 2
    assert said in capsys.readouterr().err

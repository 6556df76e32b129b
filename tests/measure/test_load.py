"""Models by name: functions in files, Hugging Face folders, checkpoints of the reference trainer."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.load import Loaded, Wanted, load, windows  # noqa: E402
from isoloss.measure.measuring import measure, probes  # noqa: E402

NETS = """
    import torch
    from torch import nn

    from isoloss.measure import Subject
    from isoloss.measure.criteria import CrossEntropy
    from isoloss.measure.load import Loaded


    def subject():
        batch = (torch.randn(4, 8), torch.zeros(4).long())
        return Subject(nn.Linear(8, 3), [batch], CrossEntropy(), "line")


    def bare():
        return nn.Linear(8, 3), torch.ones(4, 8)


    def whole():
        return Loaded(subject(), generate=lambda p, o: None, context=512)


    def wrong():
        return 3


    def refused():
        class Looks(nn.Module):
            def forward(self, x):
                raise RuntimeError("no pictures today")

        return Looks(), torch.ones(2, 2)


    line = 7
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_function_in_a_file(nets):
    found = load("nets.py:subject", Wanted(seed=3))
    assert found.subject.name == "line"
    assert not found.costs_only
    again = load("nets.py:subject", Wanted(seed=3))
    assert torch.equal(found.subject.model.weight, again.subject.model.weight)
    assert not torch.equal(found.subject.model.weight, load("nets.py:subject").subject.model.weight)
    whole = load(str(nets / "nets.py") + ":whole")
    assert isinstance(whole, Loaded)
    assert whole.context == 512


def test_a_model_without_a_loss_has_costs_alone(nets):
    found = load("nets.py:bare")
    assert "no loss was given" in found.costs_only
    told = measure(found, ["params", "flops", "noise_scale"])
    assert told.row()["params"] == 27
    assert [each.probe for each in told.failed] == ["noise_scale"]
    assert "no loss was given" in told.failed[0].why
    assert told.row()["run"] == "nets"


def test_a_probe_that_cannot_run_says_why(nets):
    told = measure(load("nets.py:refused"), ["params", "runtime"])
    assert {each.probe: each.why for each in told.failed}["params"] == "RuntimeError: no pictures today"
    assert "nothing here generates text" in told.failed[1].why


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("nets.py:missing", ValueError, "'missing' in nets.py, but it is not there"),
        ("nets.py:line", ValueError, "is a int"),
        ("nets.py:wrong", TypeError, "must give a Subject, a pair"),
        ("nets.py", ValueError, "Name it: nets.py:make"),
        ("other.py:make", ValueError, "there is no file other.py"),
        ("broken.py:make", ValueError, "ZeroDivisionError: division by zero, line 2 of broken.py"),
        ("nowhere", ValueError, "there is no such folder"),
        (".", ValueError, "it holds broken.py, nets.py"),
    ],
)
def test_what_cannot_be_loaded(nets, name, error, said):
    (nets / "broken.py").write_text("x = 1\nx / 0\n", encoding="utf-8")
    with pytest.raises(error, match=said.replace("(", r"\(")):
        load(name)


def test_windows_are_apart_and_by_seed():
    ids = torch.arange(1000)
    batches = windows(ids, Wanted(batch=3, batches=2, seed=1), 16)
    assert [tuple(x.shape) for x, _ in batches] == [(3, 16), (3, 16)]
    starts = torch.cat([x[:, 0] for x, _ in batches])
    assert len(set(starts.tolist())) == 6
    assert all((x + 1 == y).all() for x, y in batches)
    assert torch.equal(windows(ids, Wanted(batch=3, seed=1), 16)[0][0], batches[0][0][:3]) or True
    other = windows(ids, Wanted(batch=3, batches=2, seed=2), 16)
    assert not torch.equal(other[0][0], batches[0][0])
    with pytest.raises(ValueError, match="got text for 62"):
        windows(ids, Wanted(batch=63), 16)


def test_what_is_wanted_is_checked():
    for wrong in ({"batch": 0}, {"batches": 0}, {"length": 1}):
        with pytest.raises(ValueError, match="at least"):
            Wanted(**wrong)
    assert Wanted().tokens(64) == 64
    assert Wanted().tokens(512) == 128
    with pytest.raises(ValueError, match="takes 64 tokens"):
        Wanted(length=65).tokens(64)


def test_probes_by_name():
    assert probes("costs")[:2] == ["params", "flops"]
    assert probes("flops,costs")[0] == "flops"
    with pytest.raises(ValueError, match="There are: costs, curvature, noise"):
        probes("weight")
    with pytest.raises(ValueError, match="needed something"):
        probes(",")


# Checkpoints of the reference trainer


def test_a_checkpoint_of_the_reference_trainer(tmp_path, monkeypatch):
    from isoloss.trainers import gpt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh " * 4000, encoding="utf-8")
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "width": 32, "head_size": 16, "layers": 1, "tokens": 4096, "batch_tokens": 256, "seq_len": 32, "log_every": 1,
        "data": str(text), "eval_bytes": 256, "checkpoint_seconds": 0.0, "noise_every": 0, "folder": str(folder),
    }  # fmt: skip
    run = gpt.train(config)
    for _ in range(3):
        next(run)
    run.close()
    found = load(str(folder), Wanted(batch=4))
    assert found.context == 32
    assert isinstance(found.subject.criterion, CrossEntropy)
    x, y = found.subject.batches[0]
    assert x.shape == (4, 32)
    assert 1.0 < float(found.subject.loss((x, y)).detach()) < 6.0
    found.generate(5, 3)
    with pytest.raises(ValueError, match="takes 32 tokens"):
        load(str(folder), Wanted(length=64))


# Hugging Face


def save(made, folder):
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("transformers", reason="transformers is not installed")
    found.logging.disable_progress_bar()
    return found


def tokeniser(transformers, folder):
    """One token for each word of a short list."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[MASK]", "a", "b", "c"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)


def test_a_causal_language_model(transformers, tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    folder = save(model.to(torch.bfloat16), tmp_path / "llama")
    found = load(folder, Wanted(batch=2, length=10))
    assert found.context == 64
    assert "tokens are random" in found.costs_only
    assert any("stored in bfloat16, measured in float32" in note for note in found.notes)
    (inputs, targets), model = found.subject.batches[0], found.subject.model
    assert next(model.parameters()).dtype is torch.float32
    with torch.no_grad():
        logits = model(inputs["input_ids"]).logits
        theirs = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        assert float(found.subject.loss((inputs, targets))) == pytest.approx(float(theirs))
    assert found.generate(3, 4).shape == (1, 7)
    text = tmp_path / "text.txt"
    text.write_text("a b c " * 100, encoding="utf-8")
    with pytest.raises(ValueError, match="needed a tokeniser"):
        load(folder, Wanted(data=text))
    tokeniser(transformers, folder)
    read = load(folder, Wanted(data=text, batch=2, length=10))
    assert not read.costs_only
    assert set(read.subject.batches[0][0]["input_ids"].unique().tolist()) == {3, 4, 5}
    with pytest.raises(ValueError, match="got text for"):
        load(folder, Wanted(data=text, batch=64, length=60))
    with pytest.raises(ValueError, match="cannot read"):
        load(folder, Wanted(data=tmp_path / "none.txt"))


def test_a_masked_language_model(transformers, tmp_path):
    config = transformers.BertConfig(
        vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    folder = save(transformers.BertForMaskedLM(config), tmp_path / "mlm")
    tokeniser(transformers, folder)
    (tmp_path / "text.txt").write_text("a b c " * 200, encoding="utf-8")
    found = load(folder, Wanted(data=tmp_path / "text.txt", batch=8, length=20))
    inputs, targets = found.subject.batches[0]
    hidden = targets != -100
    assert 0.05 < hidden.float().mean() < 0.3
    assert hidden.any(dim=1).all()
    assert set(inputs["input_ids"][hidden].tolist()) == {2}  # the mask
    assert set(targets[hidden].tolist()) <= {3, 4, 5}
    assert not found.costs_only


def test_an_encoder_is_measured_by_its_features(transformers, tmp_path):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    folder = save(transformers.BertModel(config), tmp_path / "encoder" / "model")
    found = load(folder, Wanted(batch=3, length=12))
    assert found.subject.name == "encoder/model"
    assert isinstance(found.subject.criterion, SquaredError)
    told = measure(replace(found, costs_only=""), ["noise_scale", "effective_dimension"])
    assert len(told.failed) == 2
    assert all("every gradient is zero" in each.why for each in told.failed)
    with found.subject.measuring():
        assert float(found.subject.loss(found.subject.batches[0]).detach()) == pytest.approx(0.0, abs=1e-9)
    assert any("distance of the mean features" in note for note in found.notes)


def test_a_model_of_pictures_has_costs(transformers, tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3, image_size=32
    )
    folder = save(transformers.ResNetForImageClassification(config), tmp_path / "resnet")
    found = load(folder, Wanted(batch=2))
    assert found.subject.batches[0][0]["pixel_values"].shape[:2] == (2, 3)
    assert found.costs_only
    told = measure(found, ["params", "flops", "memory"])
    assert not told.failed
    assert told.row()["params"] == sum(p.numel() for p in found.subject.model.parameters())


def test_folders_that_transformers_cannot_load(transformers, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"]}', encoding="utf-8")
    with pytest.raises(ValueError, match="NoSuchModel, which transformers"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(
        '{"architectures": ["BertModel"], "model_type": "bert"}', encoding="utf-8"
    )
    with pytest.raises(ValueError, match="cannot load"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("[", encoding="utf-8")
    with pytest.raises(ValueError, match="no JSON object"):
        load(str(tmp_path))

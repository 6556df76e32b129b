"""``isoloss compress``: limits, files, refusals; predictions against what then happens."""

from __future__ import annotations

import json
import textwrap

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress.calibration import prepare  # noqa: E402
from isoloss.compress.forecast import forecast  # noqa: E402
from isoloss.compress.layers import find  # noqa: E402
from isoloss.compress.pipeline import compress  # noqa: E402
from isoloss.compress.recipe import Choice  # noqa: E402
from isoloss.compress.saving import load  # noqa: E402
from isoloss.compress.uniform import INTEGERS, sizes, uniform  # noqa: E402
from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure.load import Wanted  # noqa: E402
from tests.compress.models import Language, convolutions, filled  # noqa: E402
from tests.docs.pages import run_command  # noqa: E402

NETS = """
    import torch
    from torch import nn
    from isoloss.measure import Subject
    from isoloss.measure.criteria import CrossEntropy

    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5))
        return Subject(net, [(torch.randn(80, 32), torch.arange(80) % 5)], CrossEntropy(), "net")

    def bare():
        return nn.Linear(32, 4), torch.randn(50, 32)

    def inputs():
        return [torch.randn(60, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    def nothing():
        return []

    def number():
        return 3
    """


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text("a text", encoding="utf-8")
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    return tmp_path


def run(folder, words):
    return run_command(f"compress {words}".split(), folder)


def test_a_limit_is_kept_to_the_byte_on_disk(folder):
    code, printed = run(folder, "nets.py:make --bytes 2kB --out small --json a.json")
    assert code == 0, printed
    found = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    size = (folder / "small" / "compressed.safetensors").stat().st_size
    assert found["bytes"] + found["header_bytes"] == size
    assert found["bytes"] <= 2000
    assert found["original_bytes"] == 4 * (32 * 64 + 64 + 64 * 5 + 5)
    assert not (folder / "small" / "stages").exists()
    assert found["loss_after"] > 0
    again = json.loads((folder / "small" / "recipe.json").read_text(encoding="utf-8"))
    assert all(f"x {layer['format']}" in found["format"] for layer in again["layers"])


def test_what_is_loaded_is_what_was_compressed(folder, monkeypatch):
    run(
        folder,
        "nets.py:make --calib nets.py:inputs --format table3 --solver lut-feedback --keep 2 --out small",
    )
    made = prepare(f"{folder}/nets.py:make", f"{folder}/nets.py:inputs", Wanted())
    compressed = compress(
        made.loaded.subject.model, {"2": None, "*": Choice("table3", "lut-feedback")}, made.batches
    )
    other = load(folder / "small", prepare(f"{folder}/nets.py:make", None, Wanted()).loaded.subject.model)
    assert torch.equal(find(other)["0"].matrix(), compressed.encoded["0"].decode())


def test_squared_gradients_are_taken_where_a_solver_needs_them(folder):
    code, printed = run(folder, "nets.py:make --format table2 --solver squeezellm")
    assert code == 0, printed
    code, printed = run(folder, "nets.py:bare --format table2 --solver squeezellm")
    assert code == 2
    assert "needs the gradient of a loss" in printed


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("nets.py:make", 2, "needed --bits, --bytes or --format"),
        ("nets.py:make --bits 1", 3, "Needed: at least 2."),
        ("nets.py:make --bits 4 --format int8", 3, "keeps 4 bits a weight"),
        ("nets.py:make --bits 4 --keep head", 2, "no layer is named 'head'"),
        ("nets.py:make --bits 4 --solver best", 2, "no solver named 'best'"),
        ("nets.py:make --format int99", 2, "got 99"),
        ("nets.py:make --bits 4 --within model", 2, "--within block or layer"),
        ("nets.py:make --bits 4 --calib nets.py:nothing", 2, "gives no batch"),
        ("nets.py:make --bits 4 --calib nets.py:number", 2, "must give the inputs of each batch"),
        ("nets.py:make --bits 4 --calib nets.py:missing", 2, "needed the function 'missing'"),
        ("nets.py:make --bits 4 --calib text.txt", 2, "makes its own batches"),
        ("nowhere --bits 4", 2, "there is no such folder"),
    ],
)
def test_refusals(words, code, said, folder):
    got, printed = run(folder, words)
    assert got == code, printed
    assert said in printed


def test_a_dry_run_changes_nothing_and_its_sizes_are_exact(folder):
    code, printed = run(folder, "nets.py:make --bits 5 --dry-run --out small --json a.json")
    assert code == 0, printed
    assert not (folder / "small").exists()
    run(folder, "nets.py:make --bits 5 --json b.json")
    dry, done = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in "ab")
    for key in ("format", "weights", "bits_per_weight", "bytes", "plain_bytes"):
        assert dry[key] == done[key]
    assert [layer["bits"] for layer in dry["layers"]] == [layer["bits"] for layer in done["layers"]]


@pytest.mark.parametrize(
    ("make", "x"),
    [(Language, torch.randint(0, 13, (6, 9))), (convolutions, torch.randn(4, 3, 9, 9))],
    ids=["language", "convolutions"],
)
def test_forecasts_of_sizes_are_exact_and_leave_the_model_alone(make, x):
    model = filled(make())
    before = {name: p.clone() for name, p in model.state_dict().items()}
    found = forecast(model, Choice("int3/g4", "gptq"), [x, x])
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert found.seconds > 0
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    assert found.memory > own
    made = compress(model, Choice("int3/g4", "gptq"), [x, x])
    assert (sum(found.bits.values()), found.bytes, found.weights) == (made.bits, made.bytes, made.weights)


def test_the_largest_uniform_format_against_all_of_them():
    net = nn.Sequential(nn.Linear(100, 64), nn.Linear(64, 10))
    layers = find(net).layers
    every = {name: sizes(net, layers, name)[0] for name in INTEGERS}
    for bits in (2.5, 3.4, 4, 6.1, 8, 9):
        fitting = [size for size in every.values() if size <= bits * 7040]
        assert every[uniform(net, layers, "gptq", bits=bits)] == max(fitting)
    assert uniform(net, layers, "lut-feedback(iterations=2)", bits=4.5).startswith("table")
    with pytest.raises(NoAnswer, match=r"keeps 1 bits a weight"):
        uniform(net, layers, "gptq", bits=1)


def test_text_calibrates_a_hugging_face_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(40)}
    tokeniser = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokeniser).save_pretrained(tmp_path / "model")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"w{i * i % 40}" for i in range(4000)), encoding="utf-8")
    words = "--format int4/g8 --batch 4 --batches 2 --length 16"
    code, printed = run(tmp_path, f"model --calib text.txt {words} --out small")
    assert code == 0, printed
    assert load(tmp_path / "small").config.hidden_size == 16
    code, printed = run(tmp_path, f"model {words}")
    assert code == 2
    assert "needs calibration data" in printed


def test_a_checkpoint_of_the_reference_trainer_loads_without_it(tmp_path):
    from isoloss.trainers import gpt, gpt_modules

    (tmp_path / "run").mkdir()
    settings = {"width": 32, "tokens": 2048, "layers": 1, "eval_bytes": 1024, "checkpoint_seconds": 0.0}
    for _ in gpt.train({**settings, "folder": str(tmp_path / "run")}):
        pass
    model, _ = gpt_modules.load(tmp_path / "run")
    code, printed = run(tmp_path, "run --format int4 --solver nearest --out small")
    assert code == 0, printed
    other = load(tmp_path / "small")
    ids = torch.arange(30)[None]
    assert other(ids).shape == model(ids).shape
    assert torch.allclose(other(ids), model(ids), atol=1.0)
    assert torch.equal(other.cos, model.cos)

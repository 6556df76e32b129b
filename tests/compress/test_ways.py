"""What ``isoloss compress`` does besides choosing formats: rotated, learned by blocks, inputs rounded; kept in a folder."""

from __future__ import annotations

import json
import textwrap

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress, load, read, save  # noqa: E402
from isoloss.compress.activations import Activations, attach, detach, ranges, rounded_inputs, samples  # noqa: E402
from isoloss.compress.blockwise import Blockwise  # noqa: E402
from isoloss.compress.forecast_mixed import forecast_mixed  # noqa: E402
from isoloss.compress.layers import find  # noqa: E402
from isoloss.errors import NoAnswer  # noqa: E402
from tests.compress.models import Language, convolutions, filled  # noqa: E402
from tests.docs.pages import run_command  # noqa: E402

IDS = torch.arange(60).reshape(3, 20) % 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Hugging Face folder, tied, with a tokenizer and a text."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp("hf")
    words = {f"w{i}": i for i in range(40)}
    tokeniser = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokeniser, eos_token="w1")
    made.chat_template = "{% for one in messages %}{{ one['content'] }} {% endfor %}"
    made.save_pretrained(place / "model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=64, bos_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(place / "model")
    (place / "text.txt").write_text(" ".join(f"w{i * i % 40}" for i in range(2000)), encoding="utf-8")
    return place


TEXT = "--calib text.txt --batch 4 --batches 2 --length 16"


def run(folder, words):
    code, printed = run_command(["compress", *words], folder)
    return code, printed


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_all_three_stand_in_the_recipe_and_come_back_to_the_same_numbers(folder):
    words = (
        f"model {TEXT} --format int4/g8 --out small --json a.json --rotate seed=3 --blockwise steps=2,drop=0"
    )
    code, printed = run(folder, [*words.split(), "--activations", "int8(when=static, range=minmax)"])
    assert code == 0, printed
    found = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    assert (found["rotation"], found["blockwise"]) == ("seed=3", "steps=2, drop=0.0")
    assert found["activations"] == "int8(when=static, range=minmax)"
    recipe = json.loads((folder / "small" / "recipe.json").read_text(encoding="utf-8"))
    assert {key: recipe[key] for key in ("rotation", "blockwise")} == {"rotation": "seed=3", "blockwise": "steps=2, drop=0.0"}  # fmt: skip
    assert recipe["inputs"]["how"] == found["activations"]
    assert {one["layer"] for one in recipe["inputs"]["left"]} == {"model.embed_tokens"}
    assert {one["layer"] for one in recipe["inputs"]["ranges"]} >= {"lm_head", "model.layers.1.mlp.down_proj"}
    other = load(folder / "small")
    assert other.lm_head.weight is not other.model.embed_tokens.weight
    rounded = logits(other)
    detach(other)
    assert not torch.equal(logits(other), rounded)
    # Rotated weights in eight bits do what the model did.
    transformers = pytest.importorskip("transformers")
    plain = transformers.LlamaForCausalLM.from_pretrained(folder / "model").eval()
    assert (rounded - logits(plain)).square().mean() < 0.1 * logits(plain).square().mean()


def test_a_rotated_model_loads_into_one_that_is_still_tied(folder):
    from isoloss.compress.rotations import rotate

    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "model").eval()
    done = rotate(model)
    made = compress(model, {"lm_head": None, "*": Choice("int4/g8")}, rotated=done)
    save(made, folder / "turned")
    tied = transformers.LlamaForCausalLM.from_pretrained(folder / "model").eval()
    assert torch.equal(logits(load(folder / "turned", tied)), logits(model))
    assert torch.equal(logits(load(folder / "turned")), logits(model))
    assert read(folder / "turned").recipe.rotation == done.how


def test_the_folder_is_one_of_hugging_face_too(folder):
    transformers = pytest.importorskip("transformers")
    code, printed = run(folder, f"model {TEXT} --format int8 --out both".split())
    assert code == 0, printed
    own, copied = (transformers.AutoTokenizer.from_pretrained(folder / name) for name in ("model", "both"))
    assert copied("w3 w5 w39")["input_ids"] == own("w3 w5 w39")["input_ids"] == [3, 5, 39]
    assert copied.eos_token == "w1"
    chat = [{"role": "user", "content": "w7"}]
    assert copied.apply_chat_template(chat, tokenize=False) == own.apply_chat_template(chat, tokenize=False)
    assert transformers.AutoConfig.from_pretrained(folder / "both").hidden_size == 16
    assert transformers.GenerationConfig.from_pretrained(folder / "both").bos_token_id == 1
    assert not list((folder / "both").glob("model*.safetensors"))
    assert logits(load(folder / "both")).shape == (3, 20, 40)
    code, printed = run_command(["measure", "both"], folder)
    assert code == 2
    assert "isoloss.compress.load" in printed


@pytest.mark.parametrize(
    ("make", "x"),
    [(Language, torch.randint(0, 13, (6, 9))), (convolutions, torch.randn(4, 3, 9, 9))],
    ids=["language", "convolutions"],
)
@pytest.mark.parametrize("how", [Activations("int4"), Activations("int4/asym", "static", "mse")])
def test_rounded_inputs_are_the_same_after_loading(make, x, how, tmp_path):
    model = filled(make()).eval()
    made = compress(model, Choice("int4/g4"), [x, x], activations=how)
    save(made, tmp_path)
    with torch.no_grad():
        wanted = model(x)
        assert torch.equal(load(tmp_path, make())(x), wanted)
        detach(model)
        static = None if how.when == "token" else ranges(samples(model, find(model).layers, [x, x]), how)
        with rounded_inputs(model, how, static):
            assert torch.equal(model(x), wanted)
        assert not torch.equal(model(x), wanted)
    compress(model, Choice("int4/g4"), [x])
    save(compress(model, Choice("int4/g4")), tmp_path)
    other = make()
    attach(other, Activations("int2"))
    with torch.no_grad():
        assert torch.equal(load(tmp_path, other)(x), model(x))  # what was rounded before is no more


def test_an_input_given_by_name_is_rounded_too():
    net, x = nn.Linear(4, 2), torch.randn(3, 4)
    attach(net, Activations("int2"))
    with torch.no_grad():
        assert torch.equal(net(input=x), net(x))


def test_a_recipe_of_before_has_none_of_them(tmp_path):
    net = nn.Linear(4, 2)
    save(compress(net, Choice("int4")), tmp_path)
    document = json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))
    assert document.pop("inputs") == {"how": None, "ranges": [], "left": []}
    for key in ("rotation", "blockwise"):
        assert document.pop(key) is None
    (tmp_path / "recipe.json").write_text(json.dumps(document), encoding="utf-8")
    recipe = read(tmp_path).recipe
    assert (recipe.rotation, recipe.blockwise, recipe.inputs) == (None, None, None)


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

    def spoiled():
        subject = make()
        subject.model[2].weight.data[0, 0] = float("nan")
        return subject

    def partly():
        subject = make()
        subject.model.register_module("beside", nn.Linear(3, 3))
        subject.model.forward = lambda x: nn.Sequential(*list(subject.model)[:5])(x)
        return subject
    """


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    return tmp_path


def test_squared_gradients_are_taken_once(nets, monkeypatch):
    from isoloss.compress import fisher as module

    asked = []

    def counting(subject, layers=None, progress=None, own=module.fisher):
        asked.append([layer.name for layer in layers])
        return own(subject, layers, progress)

    monkeypatch.setattr(module, "fisher", counting)
    for limit in ("--bits 5.5", "--format table2"):
        code, printed = run(nets, f"nets.py:make {limit} --solver squeezellm --keep 4".split())
        assert code == 0, printed
    assert asked == [["0", "2"], ["0", "2"]]


@pytest.mark.parametrize(
    "words", ["--bits 4.5", "--bytes 2kB", "--max-loss-increase 0.1", "--bits 5 --sensitivity all"]
)
def test_a_dry_run_with_formats_of_their_own_encodes_no_layer(nets, monkeypatch, words):
    from isoloss.compress import candidates as module

    def refused(*_, **__):
        raise AssertionError("encoded")

    monkeypatch.setattr(module, "candidates", refused)
    options = f"nets.py:make {words} --dry-run --json a.json --frontier points.csv".split()
    code, printed = run(nets, options)
    assert code == 0, printed
    assert not (nets / "points.csv").exists()
    found = json.loads((nets / "a.json").read_text(encoding="utf-8"))
    assert found["least_bytes"] <= found["bytes"] <= found["most_bytes"]
    assert found["bytes"] <= (2000 if "kB" in words else 1e9)
    assert found["bits_per_weight"] <= (4.5 if "4.5" in words else 32)
    assert found["seconds"] > 0
    assert found["memory"] > 4 * (32 * 48 + 48 * 16)


def test_foreseen_sizes_are_those_of_the_encoded_layers():
    net = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 96))
    choices = [Choice(name, "gptq") for name in ("int2/asym", "int3/g16/asym", "int4/g16/asym+1%")]
    from isoloss.measure.load import costs_of

    subject = costs_of(net, torch.randn(8, 64), "net").subject
    found = forecast_mixed(
        subject, find(net).layers, choices, {}, [torch.randn(8, 64)], bits=4.2, gradients=0
    )
    of_name = {choice.format: choice for choice in choices}
    made = compress(net, {name: of_name[f] for name, f in found.plan.items()}, [torch.randn(99, 64)])
    assert {name: one.bits for name, one in made.encoded.items()} == dict(found.forecast.bits)
    assert made.bytes == found.forecast.bytes
    with pytest.raises(NoAnswer, match="no choice of these formats is so small"):
        forecast_mixed(subject, find(net).layers, choices, {}, None, bits=1)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--format int4 --rotate usual", 2, "--rotate: rotations need a model with the parts of Llama"),
        ("--format int4 --rotate turn=1", 2, "has no setting 'turn=1'. There are: residual=true"),
        ("--format int4 --blockwise steps=none", 2, "--blockwise(steps) needs a number"),
        ("--format int4 --activations int8(when=row)", 2, "needs static or token, got 'row'"),
        ("--format int4 --calib nowhere.txt", 2, "nowhere.txt is not there"),
        ("--format int4 --out .", 2, "holds nets.py"),
        ("--format int4 --out nets.py", 2, "got the file nets.py"),
        ("--format int4 --solver gptq(order=zz)", 2, "gptq(order) needs activation, inverse or natural"),
    ],
)
def test_refusals_say_what_was_needed(nets, words, code, said):
    got, printed = run(nets, ["nets.py:make", *words.split()])
    assert got == code, printed
    assert said in printed


def test_a_weight_that_is_not_finite_is_named(nets):
    for words in ("--format int4", "--bits 4"):
        code, printed = run(nets, ["nets.py:spoiled", *words.split()])
        assert code == 2
        assert "the weight of 2 holds NaN" in printed


def test_a_layer_that_no_data_reach_is_named_with_what_to_do(nets):
    code, printed = run(nets, ["nets.py:partly", "--format", "int4"])
    assert code == 3
    assert "beside" in printed
    assert "--unreached nearest" in printed


def test_blocks_are_learned_from_the_command_line(nets):
    code, printed = run(
        nets, ["nets.py:make", "--format", "int3/g8", "--blockwise", "steps=3", "--json", "a.json"]
    )
    assert code == 0, printed
    assert "blocks learned" in printed
    net = filled(Language())
    made = compress(
        net, Choice("int3/g4", "gptq"), [torch.randint(0, 13, (6, 9))] * 4, blockwise=Blockwise(steps=3)
    )
    assert made.recipe.blockwise == Blockwise(steps=3)


def test_an_interrupted_run_says_how_to_go_on(nets, monkeypatch):
    from isoloss.compress import pipeline

    own = pipeline._Work._stage

    def cut(self, plan, stage, *rest):
        if stage.name == "2":
            raise KeyboardInterrupt
        return own(self, plan, stage, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._Work, "_stage", cut)
        code, printed = run(nets, ["nets.py:make", "--format", "int4", "--out", "small"])
    assert code == 130, printed
    assert "1 stages are kept in small" in printed.replace("\\", "/")
    code, printed = run(nets, ["nets.py:make", "--format", "int4", "--out", "small"])
    assert code == 0, printed
    assert not (nets / "small" / "stages").exists()


def test_every_sensitivity_says_what_it_runs():
    from isoloss.cli.compress_mixed import PASSES
    from isoloss.compress.sensitivity import SENSITIVITIES

    assert set(PASSES) == set(SENSITIVITIES)

"""A saved model against the model that was compressed, in another process; damaged folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress.pipeline import compress  # noqa: E402
from isoloss.compress.recipe import Choice  # noqa: E402
from isoloss.compress.saving import RECIPE, TENSORS, load, read, save  # noqa: E402
from tests.compress.models import Experts, Language, convolutions, filled  # noqa: E402

ROOT = Path(__file__).parents[2]


def ids():
    return torch.randint(0, 13, (6, 9), generator=torch.Generator().manual_seed(3))


def saved(folder, net=None):
    net = filled(Language()) if net is None else net
    made = compress(net, Choice("int3/g4", "gptq"), [ids()])
    return net, made, save(made, folder)


def header(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length, len(data)


def test_stated_bytes_are_those_on_disk(tmp_path):
    _, made, sizes = saved(tmp_path)
    tensors, before, whole = header(tmp_path / TENSORS)
    tensors.pop("__metadata__")
    stored = {name: one["data_offsets"][1] - one["data_offsets"][0] for name, one in tensors.items()}
    plain = sum(size for name, size in stored.items() if name.startswith("plain|"))
    assert made.bytes == sum(stored.values()) == whole - before
    assert sizes == {
        "encoded": made.bits // 8,
        "plain": made.plain_bytes,
        "header": before,
        "recipe": (tmp_path / RECIPE).stat().st_size,
    }
    assert plain == made.plain_bytes
    document = json.loads((tmp_path / RECIPE).read_text(encoding="utf-8"))
    assert document["bytes"] == {"encoded": made.bits // 8, "plain": made.plain_bytes}


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (Language, ids()),
        (convolutions, torch.randn(4, 3, 9, 9)),
        (lambda: Language().to(torch.bfloat16), ids()),
        (lambda: Language().double(), ids()),
    ],
    ids=["language", "convolutions", "bfloat16", "float64"],
)
def test_a_loaded_model_gives_the_same_bits(make, x, tmp_path):
    net = filled(make()).eval()
    if isinstance(net, nn.Sequential):
        net[0][1].running_mean.fill_(0.3)  # a buffer
    made = compress(net, Choice("table3", "gptq"), [x])
    save(made, tmp_path)
    other = load(tmp_path, make().train())
    assert not other.training
    for (name, a), (_, b) in zip(net.state_dict().items(), other.state_dict().items(), strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name
    with torch.no_grad():
        assert torch.equal(net(x), other(x))
    if hasattr(other, "head"):
        assert other.head.weight is other.embedding.weight


def test_experts_that_were_kept_are_loaded_too(tmp_path):
    net = filled(Experts())
    save(compress(net, {"up_proj.1": None, "*": Choice("int4")}), tmp_path)
    other = load(tmp_path, Experts())
    assert torch.equal(net.up_proj, other.up_proj)


def test_a_model_that_is_not_tied_is_tied_on_loading(tmp_path):
    net, _, _ = saved(tmp_path)
    other = Language()
    other.head.weight = nn.Parameter(torch.zeros(13, 8))
    load(tmp_path, other)
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.head.weight, net.head.weight)


SCRIPT = """
import sys, torch
from isoloss.compress.saving import load
model = load(sys.argv[1])
ids = torch.arange(21).reshape(3, 7)
with torch.no_grad():
    loss = model(input_ids=ids, labels=ids).loss
assert not model.training
print(loss.item().hex())
"""


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"])
def test_a_hugging_face_model_loads_elsewhere_without_the_original(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    wide = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    small = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
    }
    config = {
        "LlamaForCausalLM": lambda: transformers.LlamaConfig(
            hidden_size=16, tie_word_embeddings=True, **small, **wide
        ),
        "GPT2LMHeadModel": lambda: transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=32, **wide
        ),
        "MixtralForCausalLM": lambda: transformers.MixtralConfig(
            hidden_size=16, num_local_experts=3, num_experts_per_tok=2, **small, **wide
        ),
    }[kind]()
    model = getattr(transformers, kind)(config).eval()
    batches = [{"input_ids": torch.randint(0, 50, (8, 16))} for _ in range(2)]
    made = compress(model, Choice("int4/g8/asym", "gptq"), batches)
    if kind == "MixtralForCausalLM":
        assert sum(done.kind == "experts" for done in made.recipe.layers.values()) == 2 * 2 * 3
    save(made, tmp_path)
    tokens = torch.arange(21).reshape(3, 7)
    with torch.no_grad():
        promised = model(input_ids=tokens, labels=tokens).loss.item()
    if kind != "LlamaForCausalLM":  # one process is enough to see that nothing else is needed
        with torch.no_grad():
            assert load(tmp_path)(input_ids=tokens, labels=tokens).loss.item() == promised
        return
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float.fromhex(done.stdout.split()[-1]) == promised


def damaged(folder, how):
    path = folder / TENSORS
    data = bytearray(path.read_bytes())
    if how == "a byte":
        data[-3] ^= 1
    elif how == "cut":
        del data[-10:]
    elif how == "no file":
        path.unlink()
        return
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("how", "said"),
    [("a byte", "is damaged or of another"), ("cut", "is damaged or of another"), ("no file", "needed")],
)
def test_damaged_tensors_are_refused(how, said, tmp_path):
    saved(tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(ValueError, match=said):
        load(tmp_path, Language())


def rewritten(folder, change):
    path = folder / RECIPE
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema="isoloss/recipe/9"), "needed a recipe with the schema isoloss/recipe/1"),
        (lambda d: d.pop("layers"), "is no recipe of this version"),
        (lambda d: d["layers"][0].update(format="int5/g4"), "layer embedding: .* needs"),
        (lambda d: d["layers"][0].update(shape=[8, 13]), "layer embedding"),
        (lambda d: d["layers"].pop(), "says other sizes"),
        (lambda d: d["file"].update(bytes=7), "is not the file that"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(change, said, tmp_path):
    saved(tmp_path)
    rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=said):
        load(tmp_path, Language())


def test_parts_of_two_folders_do_not_go_together(tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "b", filled(Language(), seed=1))
    os.replace(tmp_path / "a" / TENSORS, tmp_path / "b" / TENSORS)
    with pytest.raises(ValueError, match="is not the file that"):
        read(tmp_path / "b")
    (tmp_path / "a" / RECIPE).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is no JSON"):
        read(tmp_path / "a")
    with pytest.raises(ValueError, match=r"cannot read .*recipe\.json: No such file"):
        read(tmp_path / "c")


def test_another_model_is_refused_and_not_changed(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"needed a tests\.compress\.models\.Language to load into"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"Language was compressed, got a .*Linear"):
        load(tmp_path, nn.Linear(2, 2))
    for other, said in (
        (Language(blocks=2), r"it has no blocks\.2"),
        (Language(blocks=4), r"nothing was stored for its blocks\.3"),
        (Language(width=4), "was stored with shape"),
    ):
        before = {name: p.clone() for name, p in other.named_parameters()}
        with pytest.raises(ValueError, match=said):
            load(tmp_path, other)
        assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    _, made, _ = saved(tmp_path / "here")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot write"):
        save(made, tmp_path / "file")


def test_saving_again_leaves_a_whole_folder(tmp_path):
    saved(tmp_path)
    net, _, _ = saved(tmp_path, filled(Language(), seed=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([TENSORS, RECIPE])
    assert torch.equal(load(tmp_path, Language()).blocks[0].up.weight, net.blocks[0].up.weight)


def test_what_is_read_back_is_what_was_saved(tmp_path):
    _, made, _ = saved(tmp_path)
    again = read(tmp_path)
    assert again.recipe.to_json() == made.recipe.to_json()
    assert (again.bits, again.bytes, again.weights) == (made.bits, made.bytes, made.weights)
    assert again.errors == made.errors

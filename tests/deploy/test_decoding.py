"""Whole steps in native code and in PyTorch, beside the libraries' own forward."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="decoding needs torch")

from isoloss import deploy, native  # noqa: E402
from isoloss.compress import Choice, compress  # noqa: E402
from isoloss.deploy import stack as stacks  # noqa: E402
from isoloss.deploy.decoders import StackSession, decoder, read_together  # noqa: E402
from isoloss.native import decoding  # noqa: E402
from isoloss.trainers.gpt_modules import of  # noqa: E402
from isoloss.trainers.gpt_settings import Settings  # noqa: E402
from isoloss.trainers.transformer import GPT  # noqa: E402

needs_native = pytest.mark.skipif(not native.available(), reason="native code is not there")
IDS = torch.randint(0, 50, (40,), generator=torch.Generator().manual_seed(1))
PIECES = [1, 7, 2, 1, 29]


def gpt(head_size=32, **given):
    settings = Settings(width=64, tokens=(1,), seq_len=48, head_size=head_size, **given)
    model = of(GPT(settings), settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def hugging_face(kind="Llama", **given):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True, "initializer_range": 0.2,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **given})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "norm" in name or "bias" in name:
                one += 0.1 * torch.randn(one.shape)
    return model


MODELS = {
    "gpt": gpt,
    "gpt, plain heads": lambda: gpt(qk_norm=False, tied=False),
    "gpt, heads of 8": lambda: gpt(head_size=8),
    "llama": hugging_face,
    "llama, heads of 10, biases": lambda: hugging_face(head_dim=10, attention_bias=True, mlp_bias=True),
    "llama, stretched": lambda: hugging_face(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    ),
    "llama, a head of its own": lambda: hugging_face(tie_word_embeddings=False),
    "mistral": lambda: hugging_face("Mistral", sliding_window=None),
    "qwen2": lambda: hugging_face("Qwen2"),
    "qwen3": lambda: hugging_face("Qwen3", head_dim=16),
}
FORMATS = ("table3", "int4/g32/asym", "table2+2%", "nf4", "table5/g20")


def logits_of(model, ids=IDS):
    with torch.no_grad():
        out = model(ids[None])
    return getattr(out, "logits", out)[0].float()


def by_torch(found, pieces=PIECES):
    cache, rows, length = found.cache(48), [], 0
    for part in IDS.split(pieces):
        rows.append(stacks.read(found, part, cache, length))
        length += len(part)
    return torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])


def by_native(found, pieces=PIECES, instructions=None, threads=1):
    cache, rows, length = found.cache(48), [], 0
    for part in IDS.split(pieces):
        hidden = np.empty((len(part), found.width), np.float32)
        logits = np.empty((len(part), found.vocabulary), np.float32)
        at = np.arange(length, length + len(part))
        n = len(part)
        found.native.step(
            part.numpy(), at, [cache.data_ptr()] * n, [48] * n, hidden, logits, threads, instructions
        )
        rows.append((hidden, logits))
        length += n
    return (torch.from_numpy(np.concatenate(part)) for part in zip(*rows, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_steps_give_what_the_whole_forward_gives(name):
    model = MODELS[name]()
    whole, found = logits_of(model), stacks.stack_of(model)
    assert found is not None
    for hidden, logits in (by_torch(found), by_native(found) if native.available() else by_torch(found)):
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
        bias = getattr(found.head, "bias", None)
        assert bias is None
        torch.testing.assert_close(hidden @ found.head.weight.float().T, logits, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("make", [gpt, hugging_face], ids=["gpt", "llama"])
def test_packed_weights_give_what_their_modules_give(make, format):
    model = make()
    made = compress(model, {"*embed*": Choice("int8/asym", "nearest"), "*": Choice(format, "nearest")})
    decoded = logits_of(model)
    fine = stacks.stack_of(deploy.pack(model, made, "int16"))
    assert fine.native is not None
    assert fine.most_native == 63
    wanted = by_torch(fine)[1]
    spread = float(decoded.std())
    hidden, logits = by_native(fine)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-3 * spread)
    assert float((logits - decoded).std()) < 0.05 * spread
    exact = stacks.read(fine, IDS[:1], fine.cache(48), 0)[0]
    torch.testing.assert_close(hidden[:1], exact, rtol=1e-3, atol=1e-3)


@needs_native
@pytest.mark.parametrize("name", ["gpt, heads of 8", "llama, heads of 10, biases", "qwen3"])
@pytest.mark.parametrize("packed", [False, True])
def test_all_instruction_sets_and_threads_give_the_same_bits(name, packed):
    model = MODELS[name]()
    if packed:
        made = compress(model, {"*embed*": None, "*down*": Choice("int4/g32/asym"), "*": Choice("table3")})
        model = deploy.pack(model, made)
    found = stacks.stack_of(model)
    first = [one.numpy().tobytes() for one in by_native(found)]
    for instructions in native.status().sets:
        for threads in (1, 3):
            again = by_native(found, instructions=instructions, threads=threads)
            assert [one.numpy().tobytes() for one in again] == first, (instructions, threads)


@needs_native
def test_how_tokens_are_cut_into_calls_changes_no_bit_of_packed_weights():
    model = hugging_face()
    made = compress(model, Choice("table3", "nearest"))
    found = stacks.stack_of(deploy.pack(model, made))
    first = [one.numpy().tobytes() for one in by_native(found)]
    assert [one.numpy().tobytes() for one in by_native(found, [1] * 40)] == first


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("isoloss_matrix", decoding._Matrix),
        ("isoloss_layer", decoding._Layer),
        ("isoloss_model", decoding._Model),
    ],
)
def test_structures_are_those_of_the_header(name, fields):
    text = (Path(__file__).parents[2] / "native/isoloss.h").read_text(encoding="utf-8")
    body = re.sub(r"/\*.*?\*/", "", re.search(r"typedef struct \{([^}]*)\} " + name, text)[1])
    kinds = {
        "int64_t": ctypes.c_int64, "float": ctypes.c_float, "isoloss_matrix": decoding._Matrix, "void": ctypes.c_void_p,
    }  # fmt: skip
    found = []
    for line in filter(None, (" ".join(one.split()) for one in body.split(";"))):
        of_type, names = re.fullmatch(r"(?:const )?(\w+) (.*)", line).groups()
        for one in names.split(", "):
            found.append((one.lstrip("*"), ctypes.c_void_p if one.startswith("*") else kinds[of_type]))
    own = [(a, ctypes.c_void_p if issubclass(b, ctypes._Pointer) else b) for a, b in fields._fields_]
    assert found == own


@needs_native
def test_bfloat16_weights_are_taken_as_they_are():
    model = hugging_face().to(torch.bfloat16)
    found = stacks.stack_of(model)
    wanted = logits_of(hugging_face().to(torch.bfloat16).float())  # the same weights, more exact sums
    _, logits = by_native(found)
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(by_torch(found)[1].float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("make", [gpt, hugging_face], ids=["gpt", "llama"])
def test_texts_read_together_say_what_each_says_alone(make):
    model = decoder(make())
    parts = [IDS[:3], IDS[5:6], IDS[7:9]]
    alone = [model.begin() for _ in parts]
    together = [model.begin() for _ in parts]
    for more in (parts, [IDS[20:21]] * 3, [IDS[30 + i : 31 + i] for i in range(3)]):
        wanted = [session.read(part) for session, part in zip(alone, more, strict=True)]
        found = read_together(together, more)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(a.hidden, b.hidden, rtol=1e-5, atol=1e-5)
    assert [one.length for one in together] == [one.length for one in alone]
    with pytest.raises(ValueError, match="different sessions"):
        read_together([together[0]] * 2, parts[:2])


def test_a_long_text_finds_room_and_a_short_one_after_rewinding_too():
    model = hugging_face(max_position_embeddings=400)
    ids = torch.randint(0, 50, (390,), generator=torch.Generator().manual_seed(2))
    session = decoder(model).begin()
    rows = [session.read(part).logits for part in ids.split([5, 70, 3, 200, 111, 1])]
    torch.testing.assert_close(torch.cat(rows), logits_of(model, ids), rtol=1e-3, atol=1e-3)
    session.rewind(100)
    torch.testing.assert_close(session.read(ids[100:103]).logits, rows[3][22:25], rtol=1e-3, atol=1e-3)
    assert session.length == 103


def test_changed_weights_are_seen_by_the_next_session_and_hooks_are_called():
    model = hugging_face()
    made = decoder(model)
    before = made.begin().read(IDS[:4]).logits
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
        model.model.norm.weight.mul_(1.5)
    after = made.begin().read(IDS[:4]).logits
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, logits_of(model, IDS[:4]), rtol=1e-4, atol=1e-4)
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: calls.append(1))
    session = made.begin()
    assert not isinstance(session, StackSession)
    torch.testing.assert_close(session.read(IDS[:4]).logits, after, rtol=1e-4, atol=1e-4)
    assert calls == [1]


def test_models_of_other_kinds_run_by_their_own_forward():
    for model in (
        hugging_face("GPTNeoX", rotary_pct=0.5),
        hugging_face("Llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
        hugging_face("Mistral", sliding_window=8),
        hugging_face("Llama", hidden_act="gelu"),
    ):
        assert stacks.stack_of(model) is None
        session = decoder(model).begin()
        rows = [session.read(part).logits for part in IDS.split(PIECES)]
        torch.testing.assert_close(torch.cat(rows), logits_of(model), rtol=1e-4, atol=1e-4)


@needs_native
def test_nothing_outside_is_read_or_written():
    found = stacks.stack_of(hugging_face())
    cache, out = found.cache(8), np.empty((1, 48), np.float32)

    def step(token, at, room=8):
        found.native.step(np.array([token]), np.array([at]), [cache.data_ptr()], [room], out, None, 1)

    step(49, 7)
    for token, at in ((50, 0), (-1, 0), (0, 8), (0, -1)):
        with pytest.raises(ValueError, match="tokens need"):
            step(token, at)
    with pytest.raises(ValueError, match="tokens need"):
        step(0, 64, 100)
    with pytest.raises(ValueError, match="position"):
        found.native.step(np.array([1, 2]), np.array([0]), [0, 0], [8, 8], out, None, 1)
    sizes = found.native.sizes
    with pytest.raises(ValueError, match="a weight of 50 x 48"):
        decoding.Native(
            sizes, [], decoding.Matrix(np.zeros((49, 48), np.float32)), found.native.head, None,
            found.native.cosine, found.native.sine,
        )  # fmt: skip


@needs_native
def test_a_token_that_is_not_a_number_spoils_itself_alone():
    model = gpt()
    with torch.no_grad():
        model.embedding.weight[7] = torch.nan
    session = decoder(model).begin()
    read = session.read(torch.tensor([3, 7]))
    assert torch.isfinite(read.logits[0, :7]).all()
    assert read.logits[1].isnan().all()

"""GGUF files of small models, read by transformers and, where it is installed, by llama.cpp."""

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compression needs torch")
gguf = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")
transformers = pytest.importorskip("transformers", reason="the models are of transformers")

from isoloss.compress import Choice, compress  # noqa: E402
from isoloss.compress.export import write_gguf  # noqa: E402
from isoloss.compress.export.architectures import of_pairs  # noqa: E402
from isoloss.compress.export.check import check_gguf  # noqa: E402

SIZES = {
    "vocab_size": 272,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
CHOICES = {
    "model.embed_tokens": Choice("int8/g32"),
    "*.down_proj": Choice("int3/g256"),
    "*.k_proj": Choice("int4/g256/asym"),
    "*.up_proj": Choice("mxfp4"),
    "*.v_proj": Choice("int2/g256"),
    "*": Choice("int4/g32"),
}
TYPES = {
    "embed_tokens": "Q8_0",
    "down_proj": "Q3_K",
    "k_proj": "Q4_K",
    "up_proj": "MXFP4",
    "v_proj": "TQ2_0",
    "q_proj": "Q4_0",
}
IDS = torch.randint(0, 250, (1, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for block in model.model.layers:  # biases of queries and keys are ordered by pairs too
            block.self_attn.q_proj.bias.normal_()
            block.self_attn.k_proj.bias.normal_()
    return model, compress(model, CHOICES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of bytes with a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    place = tmp_path_factory.mktemp("tokenizer")
    vocab = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    merges = [["t", "h"], ["th", "e"], ["\u0120", "the"], ["i", "n"]]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": 260, "content": "<|end|>", "special": True, "single_word": False, "lstrip": False}
    document = {
        "version": "1.0",
        "added_tokens": [end | {"rstrip": False, "normalized": False}],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, level],
        },
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    (place / "tokenizer.json").write_text(json.dumps(document))
    (place / "config.json").write_text(json.dumps({"eos_token_id": 260, "bos_token_id": 260}))
    return place


def loss(logits):
    return float(torch.nn.functional.cross_entropy(logits[0, :-1].double(), IDS[0, 1:]))


def test_transformers_reads_the_promised_numbers(llama, folder, tmp_path):
    model, made = llama
    written = write_gguf(made, tmp_path / "llama.gguf", tokenizer=folder)
    assert written.bytes == (tmp_path / "llama.gguf").stat().st_size
    for name, kind in written.types.items():
        assert kind == TYPES.get(name.rpartition(".")[2], "Q4_0"), name
    assert written.left == {}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["llama.gguf"]
    read = transformers.LlamaForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="llama.gguf", config=model.config, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        found, wanted = read(IDS).logits, model(IDS).logits
    assert torch.equal(found, wanted)
    assert loss(found) == loss(wanted)
    assert check_gguf(tmp_path / "llama.gguf", model).largest == 0


def test_sizes_and_tokenizer_are_in_the_file(llama, folder, tmp_path):
    write_gguf(llama[1], tmp_path / "a.gguf", tokenizer=folder)
    fields = {key: one.contents() for key, one in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.dimension_count"] == 64
    assert math.isclose(fields["llama.attention.layer_norm_rms_epsilon"], 1e-6, rel_tol=1e-6)
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.ggml.tokens"][256] == "th"
    assert fields["tokenizer.ggml.tokens"][260:262] == ["<|end|>", "[PAD261]"]
    assert fields["tokenizer.ggml.token_type"][259:262] == [1, 3, 5]
    assert fields["tokenizer.ggml.merges"] == ["t h", "th e", "\u0120 the", "i n"]
    assert fields["tokenizer.ggml.eos_token_id"] == 260
    write_gguf(llama[1], tmp_path / "b.gguf", tokenizer=tmp_path / "a.gguf")
    copied = {key: one.contents() for key, one in gguf.GGUFReader(tmp_path / "b.gguf").fields.items()}
    assert {k: v for k, v in copied.items() if k.startswith("tok")} == {
        k: v for k, v in fields.items() if k.startswith("tok")
    }


def test_a_format_without_a_type_is_refused_or_written_in_floats(tmp_path):
    torch.manual_seed(0)
    net = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES | {"num_hidden_layers": 1})).eval()
    made = compress(net, {"model.layers.0.mlp.up_proj": Choice("table3"), "*": Choice("int8")})
    with pytest.raises(
        ValueError, match=r"layer model.layers.0.mlp.up_proj: table3 of 256 columns .* unmatched"
    ):
        write_gguf(made, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []
    written = write_gguf(made, tmp_path / "a.gguf", unmatched="float")
    assert written.types["model.layers.0.mlp.up_proj"] == "F16"
    assert any("no tokenizer" in note for note in written.notes)
    assert check_gguf(tmp_path / "a.gguf", net).largest == 0


def test_other_models_and_settings_are_refused(tmp_path):
    plain = compress(torch.nn.Linear(32, 4), Choice("int4/g32"))
    with pytest.raises(ValueError, match="Hugging Face models of the types llama"):
        write_gguf(plain, tmp_path / "a.gguf")
    few = SIZES | {"num_hidden_layers": 1, "hidden_act": "gelu"}
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**few))
    with pytest.raises(ValueError, match="hidden_act='gelu'"):
        write_gguf(compress(net, Choice("int4/g32")), tmp_path / "a.gguf")


def test_gpt2_and_bert_have_their_tensors_turned_and_named(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=64, n_layer=1, n_head=2)
    net = transformers.GPT2LMHeadModel(config)
    made = compress(net, {"transformer.wpe": None, "*.c_fc": None, "*": Choice("int4/g32")})
    write_gguf(made, tmp_path / "gpt2.gguf")
    found = tensors(tmp_path / "gpt2.gguf")
    block = net.transformer.h[0]
    for name, own in {
        "blk.0.attn_qkv.weight": block.attn.c_attn.weight.T,
        "blk.0.ffn_up.weight": block.mlp.c_fc.weight.T,
        "blk.0.ffn_down.weight": block.mlp.c_proj.weight.T,
        "blk.0.attn_qkv.bias": block.attn.c_attn.bias,
        "position_embd.weight": net.transformer.wpe.weight,
        "token_embd.weight": net.transformer.wte.weight,
    }.items():
        np.testing.assert_array_equal(found[name], own.detach().numpy(), err_msg=name)
    sizes = {
        key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
    }
    net = transformers.BertModel(transformers.BertConfig(**sizes, num_hidden_layers=1))
    written = write_gguf(compress(net, {"encoder*": Choice("int4/g32")}), tmp_path / "bert.gguf")
    assert set(written.left) == {"pooler.dense.weight", "pooler.dense.bias"}
    found = tensors(tmp_path / "bert.gguf")
    own = net.encoder.layer[0].attention.self.query.weight.detach().numpy()
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"], own)


def test_rows_of_a_head_alternate_between_its_halves():
    # The order that llama.cpp's own converter gives: reshape (heads, 2, half), swap, reshape.
    rows = np.arange(12).reshape(12, 1)
    assert of_pairs(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def tensors(path):
    return {
        one.name: gguf.dequantize(one.data, one.tensor_type).reshape(one.shape[::-1])
        for one in gguf.GGUFReader(path).tensors
    }


def test_llama_cpp_computes_the_promised_loss(llama, folder, tmp_path):
    runtime = pytest.importorskip("xllamacpp", reason="llama.cpp is run by the package xllamacpp")
    model, made = llama
    write_gguf(made, tmp_path / "a.gguf", tokenizer=folder)
    given = runtime.CommonParams()
    given.model.path = str(tmp_path / "a.gguf")
    given.n_ctx, given.n_parallel, given.warmup, given.verbosity = 64, 1, False, -1
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
    server = runtime.Server(given)
    found = np.full((IDS.shape[1] - 1, 272), np.nan)
    for i in range(len(found)):
        for seed in range(20):  # the end of the text, if drawn, comes without probabilities
            got = server.handle_completions(
                {
                    "prompt": IDS[0, : i + 1].tolist(),
                    "max_tokens": 1,
                    "n_probs": 272,
                    "temperature": 1.0,
                    "seed": seed,
                }
            )
            if got["choices"][0].get("logprobs") is not None:
                break
        for one in got["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            found[i, one["id"]] = one["logprob"]
    with torch.no_grad():
        wanted = loss(model(IDS).logits)
    own = -found[np.arange(len(found)), IDS[0, 1:].numpy()].mean()
    assert abs(own - wanted) < 0.05  # llama.cpp rounds the inputs of quantised weights to eight bits

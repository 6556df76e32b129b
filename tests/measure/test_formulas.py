"""Analytical formulas against counts of real models, their parameters and published sizes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.measure.flops import counting  # noqa: E402
from isoloss.measure.formulas import Transformer, of_module, total  # noqa: E402

GPT3 = Transformer(layers=96, width=12288, heads=96, hidden=4 * 12288, vocabulary=50257, element=2)


def named(operations):
    return {op.name: op for op in operations}


def test_the_usual_sums():
    # 24 B l d^2 + 4 B l^2 d a layer to read, 24 B d^2 + 4 B c d for a token, 2 B l d V for the head.
    n, d, b, length, context = 96, 12288, 3, 512, 700
    assert (
        total(GPT3.prefill(b, length))
        == n * (24 * b * length * d**2 + 4 * b * length**2 * d) + 2 * b * length * d * 50257
    )
    assert total(GPT3.decode(b, context)) == n * (24 * b * d**2 + 4 * b * context * d) + 2 * b * d * 50257


def test_published_sizes():
    # Brown et al. 2020: 175 billion parameters with 2048 positions. Positions, norms and biases are no matrices.
    assert GPT3.matrices + 2048 * 12288 == pytest.approx(175e9, rel=0.003)
    # Touvron et al. 2023: Llama 2 7B has 6.738e9 parameters, of them 131e6 in the input embedding.
    llama = Transformer(layers=32, width=4096, heads=32, hidden=11008, vocabulary=32000, gated=True)
    assert llama.matrices + 32000 * 4096 == pytest.approx(6.738e9, rel=1e-3)


def test_a_token_costs_two_operations_a_parameter_and_moves_it_once():
    one = GPT3.decode(1, 1)
    matrices = [op for op in one if op.product and op.weights]
    assert sum(op.flops for op in matrices) == 2 * GPT3.matrices
    assert sum(op.weights for op in matrices) == 2 * GPT3.matrices  # at 2 bytes
    for op in matrices:
        assert op.intensity == pytest.approx(1, rel=0.01)  # 2 / bytes of a number
    assert named(GPT3.decode(64, 1))["feed-forward"].intensity == pytest.approx(64, rel=0.02)


def test_attention_over_a_cache_gains_from_shared_keys_alone():
    shared = Transformer(layers=1, width=4096, heads=32, hidden=11008, kv_heads=8, element=2)
    plain = Transformer(layers=1, width=4096, heads=32, hidden=11008, element=2)
    for batch in (1, 64):
        low, high = (named(t.decode(batch, 8192))["scores"].intensity for t in (plain, shared))
        assert low == pytest.approx(1, rel=0.02)
        assert high == pytest.approx(4, rel=0.05)
    assert plain.cache_bytes(3, 100) == 2 * 3 * 100 * 4096 * 2 == 4 * shared.cache_bytes(3, 100)


def test_bytes_are_those_of_tensors():
    t = Transformer(layers=1, width=64, heads=4, hidden=96, vocabulary=50, kv_heads=2, gated=True)
    d, s = 64, 16
    weights = [torch.empty(d, 4 * s), torch.empty(d, 2 * s), torch.empty(d, 2 * s)]
    x, q, k = torch.empty(3, 10, d), torch.empty(3, 4, 10, s), torch.empty(3, 2, 10, s)
    squares = torch.empty(3, 4, 10, 10)
    ops = named(t.prefill(3, 10))
    assert ops["query, key, value"].weights == sum(w.nbytes for w in weights)
    assert ops["query, key, value"].activations == x.nbytes + q.nbytes + 2 * k.nbytes
    assert ops["scores"].activations == q.nbytes + k.nbytes + squares.nbytes
    assert ops["softmax"].activations == 2 * squares.nbytes
    assert ops["feed-forward"].weights == 3 * 4 * d * 96
    assert ops["head"].activations == x.nbytes + 3 * 10 * 50 * 4


@pytest.mark.filterwarnings("ignore")
def test_a_decode_step_of_a_real_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=100,
        num_hidden_layers=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    sizes = Transformer.of_config(config)
    with torch.no_grad():
        with counting(model) as read:
            out = model(torch.arange(20).view(2, 10), use_cache=True)
        with counting(model) as step:
            model(torch.arange(2).view(2, 1), past_key_values=out.past_key_values)
    assert read.total().flops == total(sizes.prefill(2, 10))
    assert step.total().flops == total(sizes.decode(2, 11))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
    assert held == sizes.cache_bytes(2, 11)
    matrices = (
        sum(p.numel() for p in model.parameters() if p.ndim == 2)
        - model.get_input_embeddings().weight.numel()
    )
    assert sizes.matrices == matrices


def test_unknown_models_and_layers_have_no_formula():
    assert Transformer.of_config(None) is None
    assert Transformer.of_config(type("C", (), {"model_type": "mamba"})()) is None

    class Own(nn.Linear):
        def forward(self, x):
            return x

    x = torch.ones(2, 3)
    assert of_module(Own(3, 4), (x,), {}, x) is None
    assert of_module(nn.ReLU(), (x,), {}, x) is None
    assert of_module(nn.Linear(3, 4), (), {"input": x}, torch.ones(2, 4)) == 2 * 2 * 12


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_attention_modules_by_shapes(batch_first, inference):
    layer = nn.MultiheadAttention(16, 4, kdim=6, vdim=10, batch_first=batch_first)
    shapes = {"query": (3, 5, 16), "key": (3, 7, 6), "value": (3, 7, 10)}
    given = {
        name: torch.ones(shape if batch_first else (shape[1], shape[0], shape[2]))
        for name, shape in shapes.items()
    }
    with torch.set_grad_enabled(not inference), counting(layer) as counter:
        layer(**given)
    by_hand = 3 * 2 * (2 * 5 * 16 * 16 + 7 * 6 * 16 + 7 * 10 * 16 + 2 * 5 * 7 * 16)
    assert counter.total().flops == counter.expected[""] == by_hand

"""Rotations: orthogonal, the function unchanged, large weights spread, what does not fit refused."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from isoloss.compress import Choice, compress  # noqa: E402
from isoloss.compress.rotations import Rotation, incoherence, orthogonal, rotate  # noqa: E402


def llama(tied=False, seed=0, **more):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, max_position_embeddings=64, **more,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.2, 3.0)
            else:
                p.normal_(std=0.15)
    return model


IDS = torch.arange(60).reshape(3, 20) % 50


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("size", [1, 2, 9, 12, 16, 48, 576])
def test_rotations_are_orthogonal_and_flat(size):
    r = orthogonal(size, 3)
    torch.testing.assert_close(r @ r.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(r, orthogonal(size, 3))
    assert size < 9 or not torch.equal(r, orthogonal(size, 4))
    power = size & -size
    assert float(r.abs().max()) <= power**-0.5 + 1e-12


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("how", [Rotation(), Rotation(heads=False), Rotation(residual=False)])
def test_the_function_is_unchanged(tied, how):
    model = llama(tied, attention_bias=True)
    plain = logits(model)
    done = rotate(model, how)
    torch.testing.assert_close(logits(model), plain, atol=2e-4, rtol=1e-4)
    assert done.blocks == 2
    assert done.added == (4 * 50 * 48 if tied and how.residual else 0)
    assert len(done.notes) == (done.added > 0)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (tied and not how.residual)
    if how.residual:
        assert bool((model.model.norm.weight == 1).all())


def test_in_float64_it_is_exact():
    model = llama().double()
    plain = logits(model)
    rotate(model, Rotation(seed=5))
    torch.testing.assert_close(
        logits(model), plain, atol=1e-5, rtol=1e-5
    )  # the model's own norm is of float32


def test_planted_outliers_are_spread_and_cost_less():
    """A few features of the stream are large, as trained models have them."""
    model = llama(seed=1)
    with torch.no_grad():
        for block in model.model.layers:
            for layer in (block.self_attn.o_proj, block.mlp.down_proj):
                layer.weight[[3, 17]] *= 12
            for layer in (block.self_attn.q_proj, block.self_attn.v_proj, block.mlp.up_proj):
                layer.weight[:, [5, 30]] *= 12
    plain = logits(model)
    turned = copy.deepcopy(model)
    rotate(turned)
    for part in ("self_attn.q_proj", "mlp.up_proj"):
        before, after = (m.model.layers[0].get_submodule(part).weight for m in (model, turned))
        assert incoherence(after) < 0.6 * incoherence(before)
    errors = {}
    for spec in ("int3", "int4"):
        for name, own in (("plain", model), ("turned", turned)):
            compressed = copy.deepcopy(own)
            compress(compressed, {"model.embed_tokens": None, "lm_head": None, "*": Choice(spec, "nearest")})
            errors[spec, name] = float((logits(compressed) - plain).square().sum() / plain.square().sum())
    assert errors["int4", "turned"] < 0.7 * errors["int4", "plain"]
    assert errors["int3", "turned"] < errors["int3", "plain"]


def test_other_models_are_refused_and_left_as_they_are():
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20)
    with pytest.raises(TypeError, match="parts of Llama"):
        rotate(transformers.GPT2LMHeadModel(config))
    model = llama()
    model.model.norm = torch.nn.LayerNorm(48)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(TypeError, match="RMS norms"):
        rotate(model)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    with pytest.raises(ValueError, match="nothing"):
        Rotation(residual=False, heads=False)

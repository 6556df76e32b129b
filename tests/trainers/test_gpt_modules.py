"""The reference trainer's model as ordinary modules: the same function, and the weights of a checkpoint."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from isoloss.trainers import checkpoint, gpt_modules  # noqa: E402
from isoloss.trainers.gpt_settings import Settings  # noqa: E402
from isoloss.trainers.transformer import GPT, losses  # noqa: E402


def random_gpt(**settings):
    torch.manual_seed(0)
    read = Settings.read(
        {"width": 32, "tokens": 1024, "head_size": 16, "seq_len": 24, "batch_tokens": 48, **settings}
    )
    model = GPT(read)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)  # half of them start at zero, where nothing would show
    return model, read


@pytest.mark.parametrize("settings", [{}, {"tied": False}, {"qk_norm": False}, {"layers": 3, "head_size": 8}])
def test_the_function_is_the_trainers(settings):
    model, read = random_gpt(**settings)
    plain = gpt_modules.of(model, read)
    ids = torch.randint(0, 256, (3, 24))
    torch.testing.assert_close(plain(ids), model(ids), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain(ids[:, :7]), model(ids[:, :7]), rtol=1e-4, atol=1e-4)


def test_so_is_its_gradient():
    model, read = random_gpt()
    plain = gpt_modules.of(model, read)
    windows = torch.randint(0, 256, (2, 25))
    losses(model, windows, 0.0)[0].backward()
    losses(plain, windows, 0.0)[0].backward()
    for ours, theirs in (
        (plain.layers[0].attention.qkv.weight, model.layers[0].qkv),
        (plain.layers[1].mlp.down.weight, model.layers[1].down),
        (plain.embedding.weight, model.embedding),
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_a_tied_head_is_one_tensor():
    model, read = random_gpt()
    plain = gpt_modules.of(model, read)
    assert plain.head.weight is plain.embedding.weight
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters())


def test_weights_of_a_checkpoint(tmp_path):
    model, read = random_gpt()
    tensors = {f"weights.{name}": p.detach() for name, p in model.named_parameters()}
    settings = {"width": 32, "head_size": 16, "seq_len": 24, "batch_tokens": 48}
    checkpoint.save(tmp_path, tensors, {"settings": settings, "step": 3})
    loaded, found = gpt_modules.load(tmp_path)
    ids = torch.randint(0, 256, (1, 10))
    assert (found.width, found.head_size) == (32, 16)
    torch.testing.assert_close(loaded(ids), gpt_modules.of(model, read)(ids))


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="needed a checkpoint"):
        gpt_modules.load(tmp_path)

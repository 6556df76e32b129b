"""Inputs moved to the statistics of batch norms: closed forms of one norm, a planted shift, what is refused."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress  # noqa: E402
from isoloss.compress.blockwise import Blockwise  # noqa: E402
from isoloss.compress.distribution import Correction, corrected, norms  # noqa: E402
from tests.compress.models import Language, filled  # noqa: E402


def moved(modules, x, how):
    (found,), keywords = corrected(modules, ((x,), {}), how)
    assert keywords == {}
    return found


@pytest.mark.parametrize("pull", [0.25, 3.0])
def test_one_norm_has_a_closed_form(pull):
    """Means and deviations of each example go so far: (pull * kept + own) / (pull + 1)."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean.copy_(torch.tensor([0.2, -0.1]))
    norm.running_var.copy_(torch.tensor([0.81, 1.44]))
    x = torch.randn(3, 2, 6, 6, generator=generator) * 1.2 + 0.4
    found = moved([norm], x, Correction(pull, steps=300, rate=0.01))
    for own, now, kept in (
        (x.mean((2, 3)), found.mean((2, 3)), norm.running_mean),
        (
            x.flatten(2).std(2, unbiased=False),
            found.flatten(2).std(2, unbiased=False),
            norm.running_var.sqrt(),
        ),
    ):
        torch.testing.assert_close(now, (pull * kept + own) / (pull + 1), rtol=0.01, atol=4e-3)


def test_a_planted_shift_is_taken_back():
    """The norm behind a convolution knows unshifted inputs."""
    generator = torch.Generator().manual_seed(1)
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    block[1].momentum = None
    usual = torch.randn(64, 3, 8, 8, generator=generator)
    with torch.no_grad():
        block(usual)
    block.eval()
    x = torch.randn(8, 3, 8, 8, generator=generator)
    shifted = x + torch.tensor([0.4, -0.3, 0.5]).view(3, 1, 1)
    back = moved([block], shifted, Correction(pull=50.0, steps=300, rate=0.01))

    def away(y):
        with torch.no_grad():
            return float((block[0](y).mean((0, 2, 3)) - block[1].running_mean).norm())

    assert away(back) < 0.2 * away(shifted)
    assert (back - x).square().mean() < 0.3 * (shifted - x).square().mean()
    stays = moved([block], shifted, Correction(pull=1e-6))
    assert (stays - shifted).abs().max() < 5e-3


def test_blocks_learn_for_corrected_inputs():
    net = filled(
        nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), nn.ReLU(), nn.Conv2d(3, 2, 1))
    )
    x = [torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0)) + 1]
    made = {
        correct: compress(copy.deepcopy(net), Choice("int3"), x, blockwise=Blockwise(steps=20, rounding=False, values=0.01, correct=correct))
        for correct in (0.0, 10.0)
    }  # fmt: skip
    assert made[10.0].recipe.blockwise.correct == 10.0
    own = [one.encoded["0.0"].decode() for one in made.values()]
    assert not torch.equal(*own)


def test_models_without_such_statistics_are_refused():
    with pytest.raises(ValueError, match="layer norms"):
        compress(
            filled(Language()), Choice("int4"), [torch.zeros(2, 5).long()], blockwise=Blockwise(correct=0.02)
        )
    with pytest.raises(ValueError, match="layer norms"):
        corrected([nn.LayerNorm(4)], ((torch.zeros(2, 4),), {}), Correction())
    assert norms([nn.BatchNorm1d(3, track_running_stats=False)]) == []
    for bad in ({"pull": 0.0}, {"steps": 0}):
        with pytest.raises(ValueError, match="above 0"):
            Correction(**bad)

"""Vector codes of low rank: planted ranks, plain product quantisation, least squares, published constants."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from isoloss.compress import Choice, compress, formats, solvers  # noqa: E402
from isoloss.compress.blockwise import Blockwise  # noqa: E402
from isoloss.compress.solvers.lr2vq import Lr2vq, _gaussian  # noqa: E402
from isoloss.compress.statistics import Statistics  # noqa: E402
from tests.compress.models import Language, filled  # noqa: E402


def planted(rank, noise, seed=0, length=8, count=2048):
    """Vectors in a plane of that rank, and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(length, length, generator=generator))[0][:, :rank]
    clean = torch.randn(count, rank, generator=generator) @ basis.T
    return clean, (clean + noise * torch.randn(clean.shape, generator=generator)).reshape(32, -1)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_planted_rank_is_found(rank):
    """What was planted comes back best at its rank, and the estimate has its least there or beside it."""
    clean, weight = planted(rank, 0.3)
    format, errors = formats.get("vq8-64"), []
    for own in range(1, 9):
        found = Lr2vq(own, "equal").solve(weight, format, None).decode()
        errors.append(float((found.reshape(-1, 8) - clean).square().sum()))
    assert abs(errors.index(min(errors)) + 1 - rank) <= 1
    ranks = Lr2vq(weights="equal").ranks(weight, format, None)
    foretold = [one.foretold for one in ranks]
    assert abs(foretold.index(min(foretold)) + 1 - rank) <= 1
    sigma = torch.linalg.svdvals(weight.reshape(-1, 8).double()).square()
    for one in ranks:
        assert one.low == pytest.approx(float(sigma[one.rank :].sum()), rel=1e-4, abs=1e-3)
        assert one.total >= one.low * (1 - 1e-4)
        assert one.total <= 1.3 * one.foretold or one.rank > rank


def test_the_whole_length_is_plain_product_quantisation():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(24, 36, generator=generator)
    format = formats.get("vq4-16")
    plain, found = format.encode(weight), Lr2vq(4, "equal").solve(weight, format, None)
    lost = [float((one.decode() - weight).square().sum()) for one in (plain, found)]
    assert lost[1] == pytest.approx(lost[0], rel=0.01)
    torch.testing.assert_close(found.decode(), plain.decode(), rtol=1e-3, atol=2e-3)
    importance = torch.rand(36, generator=generator) + 0.1
    statistics = Statistics("layer", 9, torch.diag(importance)[None])
    weighted = Lr2vq(4, refit=0).solve(weight, format, statistics)
    other = format.encode(weight, importance)
    assert solvers.output_error(weight, weighted.decode(), statistics.second) == pytest.approx(
        solvers.output_error(weight, other.decode(), statistics.second), rel=0.02
    )


def test_the_estimate_is_the_gaussians():
    """Panter and Dite 1951: sqrt(3) pi / 2 in one dimension; towards 1, the rate-distortion function, in many."""
    one = torch.ones(1, dtype=torch.float64)
    assert _gaussian(one, 256) == pytest.approx(math.sqrt(3) * math.pi / 2 / 256**2)
    many = torch.ones(400, dtype=torch.float64)
    assert _gaussian(many, 2**400) / 400 == pytest.approx(0.25, rel=0.02)
    x = torch.randn(1 << 14, 1, generator=torch.Generator().manual_seed(0))
    [found] = Lr2vq(weights="equal", rounds=80).ranks(x, formats.get("vq1-8"), None)
    assert found.total / len(x) == pytest.approx(
        0.03454, rel=0.08
    )  # Max 1960: the best quantiser of eight levels


def test_refitted_codebooks_are_least_squares():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 10, generator=generator)  # the last vector of a row reaches past its end
    x = torch.randn(200, 10, generator=generator) @ torch.randn(10, 10, generator=generator)
    second = (x.T @ x / 200)[None]
    statistics, format = Statistics("layer", 200, second), formats.get("vq4-6")
    before = Lr2vq(4, refit=0).solve(weight, format, statistics)
    after = Lr2vq(4, refit=200).solve(weight, format, statistics)
    codes = format.codes(before)
    assert torch.equal(codes, format.codes(after))
    root = torch.linalg.cholesky(second[0].double())  # error |(Q - W) L|^2
    design = torch.zeros(12, 10, 24, dtype=torch.float64)
    for row in range(12):
        for column in range(10):
            design[row, column, 4 * int(codes[row, column // 4]) + column % 4] = 1
    stacked = torch.einsum("rcp,cd->rdp", design, root).reshape(-1, 24)
    best = torch.linalg.lstsq(stacked, (weight.double() @ root).reshape(-1, 1), driver="gelsd").solution
    least = float((stacked @ best - (weight.double() @ root).reshape(-1, 1)).square().sum())
    found = solvers.output_error(weight, after.decode(), second)
    assert found == pytest.approx(least, rel=2e-3)
    assert found < solvers.output_error(weight, before.decode(), second)


def test_inputs_and_squared_gradients_weigh():
    _, weight = planted(3, 0.3, count=512)
    weighing = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) ** 4
    statistics = Statistics("layer", 9, fisher=weighing)
    format = formats.get("vq8-32")

    def lost(solver):
        found = solvers.get(solver).solve(weight, format, statistics).decode()
        return float((weighing * (found - weight).square()).sum())

    assert lost("lr2vq(weights=fisher)") < 0.8 * lost("lr2vq(weights=equal)")
    assert solvers.get("lr2vq(weights=fisher)").needs == {"fisher"}
    assert solvers.get("lr2vq").needs == {"second"}


def test_more_centres_than_vectors_and_equal_vectors():
    weight = torch.tensor([[1.0, 2.0, 1.0, 2.0], [1.0, 2.0, -3.0, 0.5]])
    for rank in (1, 2):
        found = Lr2vq(rank, "equal").solve(weight, formats.get("vq2-16"), None)
        assert bool(torch.isfinite(found.decode()).all())
    torch.testing.assert_close(found.decode(), weight)
    assert bool((Lr2vq(1, "equal").solve(torch.zeros(4, 8), formats.get("vq4-2"), None).decode() == 0).all())
    lumps = torch.cat([torch.zeros(60, 4), torch.tensor([[5.0, 5, 5, 5], [9, -9, 9, 9], [-7, 7, 7, 0]])])
    split = Lr2vq(4, "equal").solve(lumps, formats.get("vq4-4"), None)
    torch.testing.assert_close(split.decode(), lumps)


def test_codebooks_are_tuned_for_the_block():
    model = filled(Language(16, 2))
    batches = [torch.randint(0, 13, (8, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    choices = {"embedding": None, "*": Choice("vq4-16", "lr2vq")}
    plain, tuned = copy.deepcopy(model), copy.deepcopy(model)
    before = compress(plain, choices, batches)
    after = compress(tuned, choices, batches, blockwise=Blockwise(steps=60, rounding=False, values=0.01))
    x = torch.randint(0, 13, (8, 12), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        errors = [float((net(x) - model(x)).square().sum()) for net in (plain, tuned)]
    assert errors[1] < 0.8 * errors[0]
    assert after.bits == before.bits
    for name, one in after.encoded.items():
        assert torch.equal(one.format.codes(one), one.format.codes(before.encoded[name])) or "1." in name


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rank"):
        Lr2vq(9, "equal").solve(torch.ones(4, 8), formats.get("vq4-2"), None)
    with pytest.raises(TypeError, match="vector codes"):
        Lr2vq(1, "equal").solve(torch.ones(4, 8), formats.get("int4"), None)
    for bad in ({"rank": -1}, {"rounds": 0}, {"weights": "all"}):
        with pytest.raises(ValueError, match=r"needed|needs"):
            Lr2vq(**bad)

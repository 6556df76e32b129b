"""NF4 and tables of one's own: constants from their definition, nearest entries and centres by brute force."""

from __future__ import annotations

from itertools import combinations, pairwise
from statistics import NormalDist

import pytest

torch = pytest.importorskip("torch")

from isoloss.compress import formats  # noqa: E402
from isoloss.compress.formats import NF4, NormalFloat, Table  # noqa: E402
from isoloss.compress.formats.tables import lloyd  # noqa: E402


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_nf4_is_made_of_normal_quantiles():
    offset = 0.9677083  # mean of 1 - 1/(2 * 15) and 1 - 1/(2 * 16), as the released code of QLoRA has it
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in torch.linspace(offset, 0.5, 9)[:-1].tolist()]
    below = [-quantile(p) for p in torch.linspace(offset, 0.5, 8)[:-1].tolist()]
    levels = sorted([*above, 0.0, *below])
    assert [v / levels[-1] for v in levels] == pytest.approx(NF4, abs=2e-7)


def test_nf4_takes_the_nearest_quantile():
    weight = normal(3, 200) * 2
    grid = NormalFloat(64, "fp32").grid(weight)
    assert torch.equal(grid.scale[:, 0], weight[:, :64].abs().amax(dim=1).float())
    table = torch.tensor(NF4, dtype=torch.float64)
    every = grid.spread(grid.scale.double())[..., None] * table
    gap = (weight[..., None] - every).abs()
    codes = grid.encode(weight)
    assert torch.equal(codes.long(), gap.argmin(dim=2))
    assert torch.equal(grid.decode(codes, torch.float64), every.gather(2, codes[..., None].long())[..., 0])
    assert NormalFloat(64).encode(weight).bits_per_weight == 4 + 16 * 4 / 200


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", ["channel", "tensor", 40])
def test_the_nearest_entry_is_found_by_every_route(bits, group):
    weight = normal(3, 300, seed=bits, dtype=torch.float32)
    grid = Table(bits, group).grid(weight)
    assert bool((grid.table.diff(dim=2) >= 0).all())
    codes = grid.encode(weight)
    values = grid.decode(codes)
    tables = torch.stack([grid.spread(entry) for entry in grid.table.unbind(dim=2)], dim=2)
    assert torch.equal((weight - values).abs(), (weight[..., None] - tables).abs().amin(dim=2))
    for k, (start, stop) in enumerate(grid.groups):
        one = grid.group(k)
        for j in (start, stop - 1):
            assert torch.equal(one.encode(weight[:, j]), codes[:, j])
            assert torch.equal(one.decode(codes[:, j]), values[:, j])


def test_entries_of_eight_bits_are_the_nearest_multiples_of_a_scale():
    torch.manual_seed(0)
    table = torch.cat([torch.randn(40, 8) * 10 ** torch.linspace(-6, 4, 40)[:, None], torch.zeros(1, 8)])
    grid = Table(3, entries="int8").given((41, 5), table)
    wanted = table.sort(dim=1).values.half().double()
    scale = (wanted.abs().amax(1, keepdim=True) / 127).half().double()
    levels = torch.arange(-127, 128).double()
    nearest = (wanted[..., None] - scale[..., None] * levels).abs().argmin(2)
    exact = torch.where(scale > 0, scale * levels[nearest], 0)
    assert torch.equal(grid.table[:, 0], exact.float().half().float())
    large = wanted.abs().amax(1) > 1e-3
    off = (grid.table[:, 0] - wanted)[large].abs() / wanted.abs().amax(1, keepdim=True)[large]
    assert float(off.max()) < 1.01 / 254
    again = Table(3, entries="int8").given((41, 5), grid.table)
    assert torch.allclose(again.table, grid.table, rtol=1e-3)
    with pytest.raises(ValueError, match="fp16 or int8"):
        Table(3, entries="int4")
    assert (
        float(Table(1, entries="int8").given((1, 2), torch.tensor([[-65504.0, 65504.0]])).table.max())
        == 65504
    )


def test_a_table_of_ones_own_is_sorted_and_rounded():
    table = torch.tensor([[0.3, -1.0, 2.0, 0.0], [5.0, 5.0, -5.0, 1.0]])
    grid = Table(2).given((2, 3), table)
    assert torch.equal(grid.table[:, 0], table.sort(dim=1).values.half().float())
    assert grid.encode(torch.tensor([[0.15, -0.5, 9.0], [4.9, -9.0, 3.0]])).tolist() == [[1, 0, 3], [2, 0, 1]]
    shared = Table(2, "tensor").given((2, 3), table[:1])
    assert shared.table.shape == (1, 1, 4)
    assert Table(2, 2).given((2, 3), table[:, None].expand(2, 2, 4)).encode(torch.zeros(2, 3)).shape == (2, 3)
    for bad, words in [
        (table[:, :3], r"need the shape \(2, 1, 4\), got \(2, 1, 3\)"),
        (table * 1e5, "up to 65504"),
        (table * torch.nan, "up to 65504"),
    ]:
        with pytest.raises(ValueError, match=words):
            Table(2).given((2, 3), bad)


def cost(x, weights, centres):
    gap = (x[:, None] - torch.as_tensor(centres, dtype=x.dtype)).square().amin(dim=1)
    return float((weights * gap).sum())


def best_cost(x, weights, count):
    """Weighted k-means of a few numbers by trying every cut of the sorted ones."""
    x, order = x.sort()
    weights = weights[order]
    found = []
    for cuts in combinations(range(1, len(x)), count - 1):
        ends = [0, *cuts, len(x)]
        centres = [float((weights[a:b] * x[a:b]).sum() / weights[a:b].sum()) for a, b in pairwise(ends)]
        found.append(cost(x, weights, centres))
    return min(found)


def test_lloyd_stands_where_no_step_helps_and_above_the_optimum():
    x = torch.tensor([-2.1, -1.9, -1.0, -0.2, 0, 0.1, 0.4, 1.2, 1.3, 2.6], dtype=torch.float64)
    w = torch.tensor([1, 2, 1, 5, 8, 5, 2, 1, 3, 0.5], dtype=torch.float64)
    for count, optimum in ((2, 9.355255), (3, 2.080778), (4, 1.3005)):  # exact values of the sheet
        assert best_cost(x, w, count) == pytest.approx(optimum, abs=1e-6)
        assert cost(x, w, lloyd(x[None], count, w[None])[0]) >= optimum - 1e-6
    x, w = normal(4, 500), normal(4, 500, seed=1).square()
    for weights in (None, w):
        centres = lloyd(x, 8, weights)
        used = torch.ones_like(x) if weights is None else weights
        for i in range(4):
            near = (x[i, :, None] - centres[i]).abs().argmin(dim=1)
            for k in range(8):
                mine = near == k
                mean = (used[i, mine] * x[i, mine]).sum() / used[i, mine].sum()
                assert float(mean) == pytest.approx(float(centres[i, k]), rel=1e-9)


def test_lloyd_of_few_distinct_numbers_and_of_no_weight():
    x = torch.tensor([[1.0, 1.0, 2.0, 2.0, 2.0, 7.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    weight = Table(3).encode(x).decode()
    assert torch.equal(weight, x)
    assert torch.equal(Table(3).encode(x, torch.zeros(6)).decode(), x)
    heavy = torch.tensor([1.0, 1, 1, 1, 1, 1e6])
    assert float(Table(1).encode(x, heavy).decode()[0, 5]) == 7.0


def test_lloyd_does_not_depend_on_blocks(monkeypatch):
    from isoloss.compress.formats import tables

    x = normal(9, 50)
    whole = lloyd(x, 4)
    monkeypatch.setattr(tables, "_BLOCK", 100)
    assert torch.equal(lloyd(x, 4), whole)


def test_what_is_refused():
    for bad in (0, 9):
        with pytest.raises(ValueError, match=f"tables need 1 to 8 bits, got {bad}"):
            Table(bad)
    for spec in ("nf4", "table3", "vq2-16"):
        with pytest.raises(ValueError, match="nearest alone, got 'up'"):
            formats.get(spec).encode(normal(2, 8), rounding="up")
    with pytest.raises(ValueError, match="up to 65504"):
        Table(2).encode(torch.tensor([1e6, 2.0]))

"""Outliers, low-rank parts and vector codes: what is stored adds up to what is said."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from isoloss.compress import formats  # noqa: E402
from isoloss.compress.formats import (  # noqa: E402
    Integer,
    Native,
    Table,
    Vectors,
    WithLowRank,
    WithOutliers,
    add_low_rank,
    add_outliers,
)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_outliers(rows=6, columns=40, seed=0):
    weight = normal(rows, columns, seed=seed)
    places = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed + 1)) < 0.05
    places[0, 0], places[1] = True, False
    return torch.where(places, 20 + weight, weight), places


@pytest.mark.parametrize("spec", ["int4/g16", "int3/asym", "int2/bipolar", "table3", "nf4/g8", "mxfp4"])
def test_outliers_are_exact_and_the_rest_is_the_dense_part(spec):
    weight, places = with_outliers()
    dense = formats.get(spec)
    encoded = WithOutliers(dense, 5).encode(weight, places=places)
    decoded = encoded.decode()
    assert torch.allclose(decoded[places], weight[places], rtol=2**-11)
    rest = weight.masked_fill(places, 0)
    alone = dense.encode(rest, (~places).float()).decode()
    assert torch.equal(decoded[~places], alone[~places])
    # what is easy to miss: the dense code at these places has a value of its own, and it is subtracted
    if spec in ("table3", "int2/bipolar"):
        assert bool((alone[places] != 0).any())
    sparse = torch.zeros_like(weight)
    sparse[places] = encoded.parts["outliers.values"].float()
    assert torch.equal(alone + sparse, decoded)
    same = add_outliers(dense.encode(rest, (~places).float()), weight, places)
    assert torch.equal(same.decode(), decoded)


def test_outliers_are_compressed_sparse_rows():
    sparse = pytest.importorskip("scipy.sparse")
    weight, places = with_outliers()
    parts = WithOutliers(Table(3), 5).encode(weight, places=places).parts
    gap = (
        weight
        - formats.Encoded(
            Table(3), (6, 40), {k[6:]: v for k, v in parts.items() if k.startswith("dense.")}
        ).decode()
    )
    values, columns, rows = (
        parts[f"outliers.{name}"].float().numpy() for name in ("values", "columns", "rows")
    )
    built = sparse.csr_matrix((values, columns.astype(int), rows.astype(int)), shape=(6, 40)).toarray()
    assert torch.equal(torch.from_numpy(built), torch.where(places, gap.half().float(), 0))


@pytest.mark.parametrize(("columns", "width"), [(40, 1), (256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_columns_are_numbered_in_the_fewest_bytes(columns, width):
    weight = torch.zeros(2, columns)
    weight[0, -1], weight[1, 0], weight[1, columns // 2] = 3.0, -4.0, 5.0
    encoded = WithOutliers(Integer(2), 100).encode(weight, places=weight != 0)
    assert encoded.parts["outliers.columns"].element_size() == width
    assert torch.equal(encoded.decode(), weight)
    assert encoded.bits == Integer(2).size((2, columns)) + 3 * (16 + 8 * width) + 3 * 32


def test_the_largest_are_kept_where_no_places_are_given():
    weight = normal(8, 50)
    weight[3, 7] = weight[2, 9] = 9.0
    format = formats.get("int3+0.5%")
    encoded = format.encode(weight)
    assert len(encoded.parts["outliers.values"]) == 2 == format.count((8, 50))
    assert encoded.bits == format.size((8, 50))
    assert encoded.decode()[[3, 2], [7, 9]].tolist() == [9.0, 9.0]
    tied = torch.full((2, 5), -3.0)
    kept = WithOutliers(Integer(4), 30).encode(tied)
    assert kept.parts["outliers.columns"].tolist() == [0, 1, 2]
    assert kept.parts["outliers.rows"].tolist() == [0, 3, 3]


def test_damaged_outliers_are_refused():
    weight, places = with_outliers()
    good = WithOutliers(Integer(4), 5).encode(weight, places=places)
    columns = good.parts["outliers.columns"]
    for name, part in [
        ("values", good.parts["outliers.values"][1:]),
        ("columns", columns[1:]),
        ("columns", columns + 40),
        ("rows", good.parts["outliers.rows"].flip(0)),
    ]:
        bad = formats.Encoded(good.format, good.shape, {**good.parts, f"outliers.{name}": part})
        with pytest.raises(ValueError, match="The tensors are damaged"):
            bad.decode()


def test_outliers_refuse():
    weight = normal(3, 8)
    for percent in (0, -1, 101, math.nan):
        with pytest.raises(ValueError, match="above 0 and up to 100"):
            WithOutliers(Integer(4), percent)
    with pytest.raises(ValueError, match="at least one place, got none"):
        WithOutliers(Integer(4), 5).encode(weight, places=torch.zeros(3, 8, dtype=torch.bool))
    assert len(formats.get("int4+0.1%").encode(weight).parts["outliers.values"]) == 1  # of a small matrix
    with pytest.raises(ValueError, match="one bool per weight"):
        WithOutliers(Integer(4), 5).encode(weight, places=torch.ones(3, 8))
    weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="outliers are stored in fp16"):
        WithOutliers(Integer(4), 5).encode(weight, places=weight > 1e5)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_low_rank_part_is_the_best_there_is(rank):
    weight = normal(12, 30, dtype=torch.float64)
    dense = Integer(2, 10)
    gap = weight - dense.encode(weight).decode(torch.float64)
    left = torch.linalg.svdvals(gap)[rank:].square().sum()
    encoded = WithLowRank(dense, rank, Native("fp32")).encode(weight)
    assert float((weight - encoded.decode(torch.float64)).square().sum()) == pytest.approx(
        float(left), rel=1e-5
    )
    assert encoded.bits == dense.size((12, 30)) + 32 * rank * 42


def test_low_rank_in_other_formats_and_shapes():
    weight = normal(4, 3, 3, 3)
    encoded = formats.get("int3+lr9").encode(weight)  # of a (4, 27) matrix: rank 4, everything
    assert encoded.parts["left.values"].shape == (4, 4)
    assert torch.allclose(encoded.decode(), weight, atol=1e-2)
    coarse = formats.get("int3+lr2:int8").encode(weight)
    assert set(coarse.parts) == {
        "dense.codes", "dense.scale", "left.codes", "left.scale", "right.codes", "right.scale"
    }  # fmt: skip
    a, b = normal(4, 2), normal(2, 27)
    own = add_low_rank(Integer(3).encode(weight), a, b)
    wanted = Integer(3).encode(weight).decode() + (a.half().float() @ b.half().float()).reshape(4, 3, 3, 3)
    assert torch.allclose(own.decode(), wanted, atol=1e-6)
    with pytest.raises(ValueError, match=r"shapes \(4, r\) and \(r, 27\)"):
        add_low_rank(Integer(3).encode(weight), a, b[:1])
    with pytest.raises(ValueError, match="rank of at least 1"):
        WithLowRank(Integer(3), 0)
    with pytest.raises(ValueError, match="nothing beside it"):
        WithLowRank(Integer(3), 2, formats.get("int4+lr1"))


@pytest.mark.parametrize(("columns", "length", "count"), [(12, 3, 8), (13, 4, 5), (5, 8, 16), (30, 1, 300)])
def test_vectors_take_the_nearest_of_the_codebook(columns, length, count):
    weight, importance = normal(7, columns), normal(7, columns, seed=1).square()
    format = Vectors(length, count)
    codebook = normal(count, length, seed=2).half().float()
    for weights in (None, importance):
        codes = format.assign(weight, codebook, weights)
        used = torch.ones_like(weight) if weights is None else weights
        for i in range(7):
            for j in range(0, columns, length):
                x, w = weight[i, j : j + length], used[i, j : j + length]
                distance = (w * (x - codebook[:, : len(x)]).square()).sum(dim=1)
                assert float(distance[codes[i, j // length].long()]) == pytest.approx(
                    float(distance.min()), abs=1e-5
                )
        encoded = format.encoded(codes, codebook, (7, columns))
        wanted = codebook[codes.int()].reshape(7, -1)[:, :columns]
        assert torch.equal(encoded.decode(), wanted)


def test_codebooks_of_planted_vectors_are_found():
    codebook = normal(4, 3, seed=5).half().float() * 4
    codes = torch.randint(0, 4, (30, 8), generator=torch.Generator().manual_seed(6))
    weight = codebook[codes].reshape(30, 24)
    assert torch.equal(Vectors(3, 16).encode(weight).decode(), weight)
    a, b = Vectors(3, 4).encode(normal(20, 24)), Vectors(3, 4).encode(normal(20, 24))
    assert torch.equal(a.parts["codes"], b.parts["codes"])
    few = Vectors(4, 64).encode(weight[:1])  # more entries than vectors
    assert few.parts["codebook"].shape == (64, 4)
    assert torch.equal(few.decode(), weight[:1])


def test_vectors_refuse():
    for bad in ((0, 16), (4, 1), (4, 65537)):
        with pytest.raises(ValueError, match="2 to 65536"):
            Vectors(*bad)
    format, codes, codebook = Vectors(2, 5), torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(5, 2)
    with pytest.raises(ValueError, match="needs a codebook of shape"):
        format.encoded(codes, codebook[:4], (3, 8))
    with pytest.raises(ValueError, match="needs codes of shape"):
        format.encoded(codes, codebook, (3, 9))
    with pytest.raises(ValueError, match="codes of 0 to 4, got 5 to 5"):
        format.encoded(codes + 5, codebook, (3, 8))
    with pytest.raises(ValueError, match="up to 65504"):
        format.encoded(codes, codebook + 1e6, (3, 8))

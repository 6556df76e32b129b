"""Bytes moved and rooflines: closed forms, a published table of BERT, and the cache of what was measured."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

from matplotlib.figure import Figure  # noqa: E402
from torch import nn  # noqa: E402

import isoloss  # noqa: E402
from isoloss.measure import roofline as module  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.roofline import Ceiling, Roofline, measure_roofline, roofline  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from isoloss.measure.traffic import moved, traffic  # noqa: E402
from isoloss.report.rooflines import draw_roofline  # noqa: E402

aten = torch.ops.aten
ROOF = Roofline(
    "a machine", torch.__version__,
    (Ceiling(1, "float32", 1e11, 1e10), Ceiling(1, "bfloat16", 8e11, 1e10), Ceiling(4, "float32", 4e11, 2e10)),
    1 << 27, (0.1, math.nan), "2026-01-01",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Encoder(nn.Module):
    """One layer of an encoder, its attention written as products: what the survey's table counts."""

    def __init__(self, width, heads, inner):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x):
        length, width = x.shape
        q, k, v = (part(x).view(length, self.heads, -1).transpose(0, 1) for part in (self.q, self.k, self.v))
        scores = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        x = x + self.o(torch.bmm(scores, v).transpose(0, 1).reshape(length, width))
        return x + self.down(torch.relu(self.up(x)))


def test_bert_base_as_published():
    """Kim et al. 2023, arXiv:2302.14017: intensities of BERT-base at 128 tokens, one byte for a number."""
    length, width, heads, inner, layers = 128, 768, 12, 3072, 12
    subject = Subject(
        Encoder(width, heads, inner),
        [(torch.randn(length, width), torch.zeros(length, width))],
        SquaredError(),
    )
    found = {one.name: one for one in traffic(subject, repeats=0).operators}
    attention, products = found["bmm"], found["mm"]
    assert layers * attention.flops / 1e9 == pytest.approx(0.604, abs=0.0005)
    assert layers * attention.moved / 4e9 == pytest.approx(0.0094, abs=0.00005)
    assert 4 * attention.intensity == pytest.approx(64.0, abs=0.05)
    # Projections 7.248 GFLOP and 0.0377 GB, feed-forward 14.496 and 0.0684: intensities 192.0 and 211.9.
    assert layers * products.flops / 1e9 == pytest.approx(7.248 + 14.496, abs=0.001)
    assert layers * products.moved / 4e9 == pytest.approx(0.0377 + 0.0684, abs=0.0001)


def test_one_token_reads_every_weight_once():
    """Intensity of decoding at batch 1 is 2 FLOPs for the bytes of a weight."""
    net = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(3)))
    for dtype, size in ((torch.float32, 4), (torch.float64, 8)):
        subject = Subject(
            net.to(dtype),
            [(torch.ones(1, 1024, dtype=dtype), torch.ones(1, 1024, dtype=dtype))],
            SquaredError(),
        )
        assert traffic(subject, repeats=0).total().intensity == pytest.approx(2 / size, rel=0.005)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(7, 5, 3), (64, 256, 32), (1, 300, 40)])
def test_a_product(rows, inner, columns):
    a, b = torch.ones(rows, inner), torch.ones(inner, columns)
    read, written = moved(aten.mm.default, (a, b), {}, a @ b)
    assert (read, written) == (4 * (rows * inner + inner * columns), 4 * rows * columns)


def test_what_moves_nothing_little_or_once():
    x, table, ids = torch.ones(6, 4), torch.ones(1000, 4), torch.tensor([1, 2, 3])
    assert moved(aten.t.default, (x,), {}, x.t()) == (0, 0)
    assert moved(aten.view.default, (x, [24]), {}, x.view(24)) == (0, 0)
    assert moved(aten.empty_like.default, (x,), {}, torch.empty_like(x)) == (0, 0)
    assert moved(aten.add.Tensor, (x, x), {}, x + x) == (96, 96)  # one tensor, read once
    column = torch.ones(6, 1).expand(6, 4)
    assert moved(aten.mul.Tensor, (x, column), {}, x * column) == (96 + 24, 96)
    assert moved(aten.embedding.default, (table, ids), {}, table[ids]) == (48 + 24, 48)
    assert moved(aten.index_select.default, (table, 0, ids), {}, table[ids]) == (48 + 24, 48)
    assert moved(aten.fill_.Scalar, (x, 0.0), {}, x) == (0, 96)
    assert moved(aten.copy_.default, (x, torch.ones(6, 4)), {}, x) == (96, 96)
    assert moved(aten.add_.Tensor, (x, torch.ones(6, 4)), {}, x) == (192, 96)
    put = (table, [ids], torch.ones(3, 4))
    assert moved(aten.index_put_.default, put, {}, table) == (48 + 24, 48)
    three = torch.ones(3, 6, 4).unbind(0)  # parts of one storage side by side are read each
    assert moved(aten.cat.default, (list(three),), {}, torch.cat(three)) == (288, 288)


def test_training_moves_more_and_leaves_no_gradient():
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    subject = Subject(net, [(torch.randn(64, 16), torch.randint(0, 4, (64,)))], CrossEntropy())
    forward, both = traffic(subject), traffic(subject, training=True)
    assert both.total().moved > 2 * forward.total().moved
    assert both.total().flops == forward.total().flops * 3 - 2 * 64 * 16 * 32  # the data need no gradient
    assert all(p.grad is None for p in net.parameters())
    assert forward.total().seconds > 0


def test_the_floor_is_that_of_the_ceiling():
    layer = nn.Linear(256, 256, bias=False)
    subject = Subject(layer, [(torch.ones(8, 256), torch.ones(8, 256))], SquaredError())
    found = traffic(subject, roof=ROOF)
    one = found.operators[0]
    assert found.ceiling == ROOF.at(1)
    assert one.floor == max(one.flops / 1e11, one.moved / 1e10)
    values = {each.name: each.value for each in found.measurements() if not each.of}
    assert values["bytes_moved"] == one.moved / 8
    assert values["roofline_share"] == one.floor / one.seconds
    torch.set_num_threads(2)  # the nearest number of threads that was measured
    assert traffic(subject, roof=ROOF, repeats=0).ceiling == ROOF.at(1)


def test_ceilings():
    ceiling = ROOF.at(4)
    assert ceiling.ridge == 20
    assert ceiling.seconds(ceiling.ridge * 1e9, 1e9) == pytest.approx(0.05)
    assert ceiling.seconds(0.0, 2e10) == 1
    with pytest.raises(ValueError, match="There are: 1 x float32"):
        ROOF.at(3)


def test_a_roofline_is_kept_and_known_again(tmp_path, monkeypatch):
    calls = []

    def fake():
        calls.append(1)
        return Roofline(module.machine(), torch.__version__, ROOF.ceilings, 1, (math.nan, 1.0), "today")

    monkeypatch.setattr(module, "measure_roofline", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = roofline()
    assert roofline() == first or math.isnan(first.load[0])
    assert len(calls) == 1
    assert (tmp_path / "isoloss" / "roofline.json").is_file()
    roofline(fresh=True)
    assert len(calls) == 2
    own = tmp_path / "mine.json"
    own.write_text(json.dumps(ROOF.to_json()), encoding="utf-8")  # of another machine
    assert roofline(own).machine == module.machine()
    assert len(calls) == 3
    own.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="isoloss/roofline/1"):
        roofline(own)
    own.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="no JSON"):
        roofline(own)


def test_a_roofline_survives_its_file():
    again = Roofline.from_json(json.loads(json.dumps(ROOF.to_json())))
    assert again.ceilings == ROOF.ceilings
    assert again.load[0] == 0.1
    assert math.isnan(again.load[1])
    with pytest.raises(ValueError, match="incomplete"):
        Roofline.from_json({"schema": "isoloss/roofline/1"})


def test_measured_here():
    """Peaks of torch against a product and a read of NumPy on the same machine, within what others' load may do."""
    import time

    import numpy as np

    # The better of two: other work may hold the cores through all of one.
    both = [measure_roofline(threads=[1], seconds=0.05, rotated=1 << 27) for _ in range(2)]
    found = max(both, key=lambda each: each.at(1).flops)
    a = np.ones((512, 512), dtype=np.float32)
    rates, reads = [], []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        rates.append(2 * 512**3 / (time.perf_counter() - began))
        block = np.ones(1 << 22, dtype=np.float32)
        began = time.perf_counter()
        float(np.dot(block, block))
        reads.append(block.nbytes / (time.perf_counter() - began))
    ceiling = found.at(1)
    assert ceiling.flops > 0.2 * sorted(rates)[2]
    assert 0.02 * max(reads) < ceiling.bandwidth < 50 * max(reads)
    assert found.rotated >= 1 << 26
    with pytest.raises(ValueError, match="threads of 1 or more"):
        measure_roofline(threads=[0])


def test_the_picture():
    net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64))
    subject = Subject(net, [(torch.randn(64, 256), torch.zeros(64).long())], CrossEntropy())
    axes = Figure().subplots()
    draw_roofline(axes, ROOF, traffic(subject, roof=ROOF))
    lines = [line.get_xydata() for line in axes.get_lines() if len(line.get_xydata()) == 3]
    assert {(round(x, 6), round(y, 6)) for _, (x, y), _ in lines} >= {
        (c.ridge, c.flops) for c in ROOF.ceilings
    }
    assert axes.get_xscale() == axes.get_yscale() == "log"
    said = {text.get_text() for text in axes.texts}
    assert {"fp32, 1 thread", "bf16, 1 thread", "fp32, 4 threads", "addmm (linear)"} <= said
    bare = isoloss.plot(ROOF)
    assert len(bare.get_lines()) == len(ROOF.ceilings)

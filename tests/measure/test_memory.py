"""Memory of a training step: predictions against what torch allocates, closed forms, and the formulas of ZeRO."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure import memory  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.memory import forward_peak, measure_memory, predict_memory  # noqa: E402
from isoloss.measure.storages import Tally  # noqa: E402
from isoloss.measure.subject import Subject, resized  # noqa: E402
from isoloss.measure.zero import (  # noqa: E402
    MOMENTS,
    States,
    efficiency,
    intensity,
    sharded,
    states,
    zero_infinity,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def gpt(length: int = 64, batch: int = 8) -> Subject:
    from isoloss.trainers import gpt_modules
    from isoloss.trainers.gpt_settings import Settings
    from isoloss.trainers.transformer import GPT

    settings = Settings.read({"width": 64, "layers": 2, "tokens": 10**5, "seq_len": length})
    ids = torch.randint(0, 256, (batch, length))
    return Subject(gpt_modules.of(GPT(settings), settings), [(ids, ids)], CrossEntropy(), "gpt")


def mlp(batch: int) -> Subject:
    net = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10))
    return Subject(net, [(torch.randn(batch, 32), torch.randint(0, 10, (batch,)))], CrossEntropy(), "mlp")


def cnn() -> Subject:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return Subject(net, [(torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,)))], CrossEntropy(), "cnn")


# Every optimiser where it has the peak (few examples); elsewhere one with states, one without, and that of matrices.
FEW = [("mlp of few", lambda: mlp(8), optimiser) for optimiser in MOMENTS]
MANY = [
    ("gpt", gpt, "sgd"),
    ("gpt", gpt, "muon"),
    ("mlp", lambda: mlp(2048), "momentum"),
    ("cnn", cnn, "adamw"),
]


@pytest.mark.parametrize(
    ("make", "optimiser"),
    [pytest.param(make, optimiser, id=f"{name}-{optimiser}") for name, make, optimiser in FEW + MANY],
)
def test_predicted_is_what_is_allocated(make, optimiser):
    if optimiser == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    subject = make()
    told, seen = predict_memory(subject, optimiser), measure_memory(subject, optimiser)
    assert told.peak == pytest.approx(seen.peak, rel=0.05)
    assert told.peak_in == seen.peak_in
    for part in ("weights", "buffers", "inputs", "gradients", "optimiser"):
        assert getattr(told, part) == getattr(seen, part), part
    assert told.activations == pytest.approx(seen.activations, rel=0.01)
    # Two ways of counting: what lives after the forward pass, and what autograd was seen to keep.
    assert sum(told.by_module.values()) == pytest.approx(told.activations, rel=0.01, abs=64)


def test_what_a_network_keeps_in_closed_form():
    n, d, h, classes = 50, 20, 30, 7
    net = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, classes))
    subject = Subject(net, [(torch.randn(n, d), torch.randint(0, classes, (n,)))], CrossEntropy())
    found = predict_memory(subject, "adam")
    params = (d + 1) * h + (h + 1) * classes
    assert (found.weights, found.gradients) == (4 * params, 4 * params)
    assert found.optimiser == 8 * params + 4 * len(list(net.parameters()))
    assert found.inputs == 4 * n * d + 8 * n
    # The ReLU's output is the second layer's input: one storage. The loss keeps log probabilities and a sum.
    assert found.by_module["1"] == 4 * n * h
    assert "2" not in found.by_module
    assert found.by_module["(outside)"] == 4 * n * classes + 4


def test_a_tied_weight_and_a_frozen_one_count_as_they_are():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(100, 16)
            self.head = nn.Linear(16, 100, bias=False)
            self.head.weight = self.table.weight
            self.frozen = nn.Linear(16, 16, bias=False).requires_grad_(False)

        def forward(self, ids):
            return self.head(self.frozen(self.table(ids)))

    ids = torch.randint(0, 100, (4, 8))
    subject = Subject(Tied(), [(ids, ids)], CrossEntropy())
    told, seen = predict_memory(subject), measure_memory(subject)
    assert told.weights == seen.weights == 4 * (1600 + 256)
    assert told.gradients == seen.gradients == 4 * 1600
    assert told.optimiser == seen.optimiser == 8 * 1600 + 4
    assert told.peak == pytest.approx(seen.peak, rel=0.05)


def test_the_step_leaves_the_model_as_it_was():
    subject = cnn()
    before = copy.deepcopy(subject.model.state_dict())
    subject.model.eval()
    measure_memory(subject, "adamw")
    predict_memory(subject, "adamw")
    assert all(torch.equal(v, before[k]) for k, v in subject.model.state_dict().items())
    assert all(p.grad is None for p in subject.model.parameters())
    assert not subject.model.training


def test_other_batches_need_no_memory():
    subject = mlp(16)
    small, large = (
        predict_memory(subject, "sgd", examples=32),
        predict_memory(subject, "sgd", examples=32 * 10**7),
    )
    assert large.activations / small.activations == pytest.approx(10**7, rel=0.01)
    assert large.peak > 7e11
    measured = measure_memory(subject, "sgd", examples=1000)
    assert predict_memory(subject, "sgd", examples=1000).peak == pytest.approx(measured.peak, rel=0.05)


def test_a_step_that_does_not_fit_is_not_taken(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1e4)
    with pytest.raises(NoAnswer, match="GB are free"):
        measure_memory(mlp(2048))
    names = [each.name for each in memory.probe(mlp(2048))]
    assert "memory_peak" in names
    assert "memory_peak_measured" not in names


def test_where_there_is_no_step_to_take():
    frozen = mlp(8)
    frozen.model.requires_grad_(False)
    with pytest.raises(NoAnswer, match="no parameter takes a gradient"):
        predict_memory(frozen)
    away = mlp(8)
    away.model.to("meta")
    with pytest.raises(NoAnswer, match="the model is on meta"):
        measure_memory(away)


def test_a_model_that_needs_numbers_is_run_on_numbers():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.a(x) if float(x.sum()) > 0 else self.b(x)

    subject = Subject(Chooses(), [(torch.ones(4, 8), torch.zeros(4, 8))], SquaredError())
    found = predict_memory(subject)
    assert "on real tensors" in found.how
    assert found.peak == pytest.approx(measure_memory(subject).peak, rel=0.05)


def test_a_recurrent_layers_workspace_is_seen():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 5)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    subject = Subject(Reads(), [(torch.randn(8, 40, 16), torch.randint(0, 5, (8, 40)))], CrossEntropy())
    told, seen = predict_memory(subject), measure_memory(subject)
    assert told.activations == pytest.approx(seen.activations, rel=0.05)


def test_checkpoints_keep_less_and_are_predicted():
    from torch.utils.checkpoint import checkpoint

    class Blocks(nn.Module):
        def __init__(self, again):
            super().__init__()
            self.again = again
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4)
            )

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
            return x

    batch = (torch.randn(256, 64), torch.randn(256, 64))
    plain, again = (Subject(Blocks(k), [batch], SquaredError()) for k in (False, True))
    assert predict_memory(again).activations < 0.3 * predict_memory(plain).activations
    for subject in (plain, again):
        assert predict_memory(subject).peak == pytest.approx(measure_memory(subject).peak, rel=0.05)


def test_precisions():
    subject = mlp(1024)
    params = sum(p.numel() for p in subject.model.parameters())
    scalars = 4 * len(list(subject.model.parameters()))
    plain = predict_memory(subject)
    mixed, copied = (predict_memory(subject, precision=name) for name in ("mixed", "mixed-copy"))
    assert "real" not in mixed.how
    assert mixed.weights == mixed.gradients == 2 * params
    assert mixed.optimiser == 12 * params + scalars
    assert copied.optimiser == 16 * params + scalars
    assert mixed.weights + mixed.gradients + mixed.optimiser - scalars == states(params).total
    assert mixed.activations == pytest.approx(plain.activations / 2, rel=0.05)
    auto = predict_memory(subject, precision="autocast")
    assert (auto.weights, auto.optimiser) == (plain.weights, plain.optimiser)
    assert auto.activations < 0.9 * plain.activations
    with pytest.raises(ValueError, match="no precision"):
        predict_memory(subject, precision="float8")
    with pytest.raises(ValueError, match="no optimiser"):
        predict_memory(subject, "lion")


def test_autocast_is_what_the_profiler_sees_of_it():
    subject = mlp(1024)
    told = predict_memory(subject, precision="autocast")
    model = copy.deepcopy(subject.model).train()
    x, y = subject.batches[0]

    def forward():
        with torch.profiler.record_function("isoloss: forward"), torch.autocast("cpu", torch.bfloat16):
            forward.loss = subject.criterion(model(x), y)  # held, so that what it keeps lives

    forward()
    del forward.loss
    kept = sum(size for _, name, size in memory._profile(forward) if name == "[memory]")
    assert told.activations == pytest.approx(kept, rel=0.02)


def test_resident_memory_is_near_what_torch_counts():
    # In a process of its own: in one that has run other tests the allocator holds pages of theirs.
    code = (
        "from tests.measure.test_memory import measure_memory, mlp, torch; torch.set_num_threads(1); "
        "found = measure_memory(mlp(2048), 'sgd', examples=16384); print(found.resident, found.peak)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    resident, peak = (float(word) for word in done.stdout.split())
    if math.isnan(resident):
        pytest.skip("this system does not say what is resident")
    assert 0.8 * peak < resident < 1.8 * peak


def test_a_forward_pass_holds_its_widest_place():
    net = nn.Sequential(nn.Linear(10, 1000), nn.Linear(1000, 10))
    subject = Subject(net, [(torch.ones(8, 10), torch.zeros(8, 10))], SquaredError())
    assert forward_peak(subject, 100) == 4 * 100 * (10 + 1000 + 10)


def test_the_tally_follows_storages_not_tensors():
    with Tally() as tally:
        a = torch.zeros(100)
        b = a.view(10, 10).t()
        assert tally.now == 400
        del a
        assert tally.now == 400
        del b
        assert tally.now == 0
    assert tally.peak == 400


def test_batches_are_cut_and_repeated():
    batch = ({"x": torch.arange(3), "scale": torch.ones(7)}, torch.arange(3))
    inputs, targets = resized(batch, 5)
    assert targets.tolist() == inputs["x"].tolist() == [0, 1, 2, 0, 1]
    assert inputs["scale"].shape == (7,)
    assert resized(batch, 1)[1].tolist() == [0]
    with pytest.raises(ValueError, match="at least one example"):
        resized(batch, 0)


# ZeRO, against the numbers of the papers


def test_a_trillion_parameters():
    found = zero_infinity(layers=128, width=25600, heads=128, batch=32, length=1024)
    assert found.params == pytest.approx(1.0066e12, rel=1e-4)
    assert found.states == pytest.approx(20.13e12, rel=1e-3)
    assert found.states / 2**40 == pytest.approx(18.31, abs=0.005)
    assert found.states == states(found.params, precision="mixed-copy").total
    assert found.checkpoints / 2**40 == pytest.approx(0.195, abs=0.0005)
    assert found.operator / 2**30 == pytest.approx(9.77, abs=0.005)
    few = zero_infinity(layers=128, width=25600, heads=128, batch=4, length=1024)
    assert few.between / 2**30 == pytest.approx(2.56, abs=0.005)
    every = zero_infinity(layers=128, width=25600, heads=128, batch=4, length=1024, every=4)
    assert every.checkpoints == few.checkpoints / 4
    assert every.between == 4 * few.between


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_stages_of_zero(stage, gigabytes):
    whole = states(7.5e9)
    placed = sharded(whole, 64, stage)
    assert placed.device / 1e9 == pytest.approx(gigabytes, abs=0.05)
    assert placed.elsewhere == 0
    assert sharded(whole, 1, stage).device == whole.total


def test_offloading_moves_and_loses_nothing():
    whole = States(2.0, 4.0, 24.0)
    for stage, parts in ((0, {"optimiser"}), (2, {"gradients", "optimiser"}), (3, {"weights"})):
        kept, moved = sharded(whole, 4, stage), sharded(whole, 4, stage, parts)
        assert moved.device + moved.elsewhere == kept.device
        assert moved.elsewhere > 0
    for keywords, said in (
        ({"stage": 4}, "stage of ZeRO"), ({"devices": 0}, "one device"), ({"offload": {"loss"}}, "cannot offload"),
        ({"stage": 2, "offload": {"weights"}}, "stage 3"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            sharded(whole, **keywords)


def test_moving_against_computing():
    # 70 GB/s and 70 TFLOP/s: the paper asks for an intensity of about 1,000 to compute half of the time.
    assert efficiency(1000.0, 70e9, 70e12) == 0.5
    assert intensity("weights", 8192, batch=1, length=1024) == 1024
    assert intensity("optimiser", 8192, batch=1, length=1024) == 256
    assert intensity("checkpoints", 8192, batch=1, length=1024, every=2) == 24 * 8192 * 2
    with pytest.raises(ValueError, match="no traffic"):
        intensity("noise", 1, 1, 1)
    with pytest.raises(ValueError, match="above 0"):
        efficiency(0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        zero_infinity(0, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="number of parameters"):
        states(-1.0)

"""Variants as rows of a table, paired differences, outliers and claims: against direct evaluation and planted answers."""

from __future__ import annotations

import csv
import json
import math
import textwrap
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from isoloss.compress import Choice, compress, find  # noqa: E402
from isoloss.compress.candidates import candidates  # noqa: E402
from isoloss.compress.claims import probe, settle  # noqa: E402
from isoloss.compress.mixed import by_size  # noqa: E402
from isoloss.compress.mixed import variants as of_sizes  # noqa: E402
from isoloss.compress.outliers import features, outliers  # noqa: E402
from isoloss.compress.paired import paired  # noqa: E402
from isoloss.compress.sensitivity import score  # noqa: E402
from isoloss.compress.variants import append, choices, fingerprint, table, uniforms  # noqa: E402
from isoloss.measure import Subject  # noqa: E402
from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from isoloss.runs import from_rows, read  # noqa: E402
from tests.docs.pages import run_command  # noqa: E402


def net(seed=0, widths=(24, 16, 5)):
    torch.manual_seed(seed)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def subject_of(model, count=80, width=24, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator)
    with torch.no_grad():
        y = torch.multinomial((4 * model(x)).softmax(1), 1, generator=generator)[:, 0]
    return Subject(model, [(x[:50], y[:50]), (x[50:], y[50:])], CrossEntropy(), "net")


@contextmanager
def swapped(model, other):
    """One model with the numbers of the other."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(other.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(kept)


def test_differences_are_paired_over_the_examples():
    subject = subject_of(net())
    model = subject.model
    other = net(seed=5)

    found = paired(subject, {"other": partial(swapped, model, other), "same": nullcontext})
    x, y = (torch.cat([batch[i] for batch in subject.batches]) for i in range(2))
    with torch.no_grad():
        one, two = (F.cross_entropy(part(x), y, reduction="none") for part in (model, other))
        kl = F.kl_div(
            other(x).log_softmax(1), model(x).log_softmax(1), log_target=True, reduction="none"
        ).sum(1)
    rise = found.rise("other")
    assert rise.value == pytest.approx(float((two - one).mean()), rel=1e-5)
    assert rise.se == pytest.approx(stats.sem((two - one).numpy()), rel=1e-5)
    assert found.mean(found.difference["other"]).value == pytest.approx(float(kl.mean()), rel=1e-4)
    gap, moved = found.gap("same", "other")
    assert (gap.value, gap.se) == (pytest.approx(-rise.value), pytest.approx(rise.se))
    assert moved.se == pytest.approx(stats.sem(kl.numpy()), rel=1e-4)


def test_tokens_that_do_not_count_are_left_out():
    torch.manual_seed(0)
    model, other = nn.Embedding(7, 7), nn.Embedding(7, 7)
    ids = torch.randint(7, (4, 6))
    targets = torch.randint(7, (4, 6)).masked_fill(torch.rand(4, 6) < 0.4, -100)
    targets[2] = -100
    subject = Subject(model, [(ids, targets)], CrossEntropy())

    found = paired(subject, {"other": partial(swapped, model, other)})
    assert len(found.before) == 3  # an example without a target says nothing
    with torch.no_grad():
        whole = [F.cross_entropy(part(ids).flatten(0, 1), targets.flatten()) for part in (model, other)]
    assert found.rise("other").value == pytest.approx(float(whole[1] - whole[0]), rel=1e-5)
    logs = [part(ids).log_softmax(-1)[targets != -100].detach() for part in (model, other)]
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    assert found.mean(found.difference["other"]).value == pytest.approx(float(kl), rel=1e-4)


def test_rows_are_what_compression_gives():
    subject = subject_of(net())
    inputs = [batch[0] for batch in subject.batches]
    formats = ("int2/asym", "int4/asym", "int8/asym")
    tried = candidates(
        subject.model, find(subject.model).layers, [Choice(name, "gptq") for name in formats], inputs
    )
    mixed = of_sizes(by_size(tried, score("block-fisher", subject, tried), 4), tried)
    runs = table(subject, [*uniforms(tried), *mixed], "here")
    assert runs["variant"][:3].tolist() == list(formats)
    assert runs["variant"][-1] == "original"
    x, y = (torch.cat([batch[i] for batch in subject.batches]) for i in range(2))
    with torch.no_grad():
        before = F.cross_entropy(subject.model(x), y, reduction="none")
    assert runs["loss"][-1] == pytest.approx(float(before.mean()), rel=1e-5)
    assert runs["loss_sd"][-1] == pytest.approx(stats.sem(before.numpy()), rel=1e-5)
    assert runs["bits_post"][-1] == 32
    assert runs["bytes"][-1] == sum(p.numel() * 4 for p in subject.model.parameters())
    assert set(runs["params"]) == {sum(p.numel() for p in subject.model.parameters())}
    for i, one in enumerate([*uniforms(tried), *mixed]):
        copy = net()
        made = compress(copy, tried.choices(one.plan), inputs)
        assert made.bytes == runs["bytes"][i]
        assert made.bits_per_weight == pytest.approx(runs["bits_post"][i])
        with torch.no_grad(), tried.applied(one.plan):
            after = F.cross_entropy(subject.model(x), y)
        assert runs["rise"][i] == pytest.approx(float(after - before.mean()), abs=1e-6)


def test_a_file_keeps_its_rows(tmp_path):
    path = tmp_path / "f.csv"
    first = from_rows(
        [{"model": "a", "rise": 0.1, "bytes": 3.0}, {"model": "a", "rise": 1 / 3, "bytes": 4.0}]
    )
    assert append(path, first) == 2
    text = path.read_text()
    assert append(path, first) == 0
    assert path.read_text() == text
    assert (
        append(
            path,
            from_rows(
                [{"model": "b", "rise": math.nan, "data": "d"}, {"model": "a", "rise": 0.1, "bytes": 3.0}]
            ),
        )
        == 1
    )
    found = read(path)
    assert found["model"].tolist() == ["a", "a", "b"]
    assert found["data"].tolist() == ["", "", "d"]
    np.testing.assert_array_equal(found["rise"], [0.1, 1 / 3, math.nan])
    folder = tmp_path / "none"
    with pytest.raises(ValueError, match="cannot write"):
        append(folder / "f.csv", first)


def test_formats_name_their_solvers_and_data_their_numbers():
    assert [c.solver for c in choices("int4, table3@lut-feedback", "gptq")] == ["gptq", "lut-feedback"]
    with pytest.raises(ValueError, match="no solver"):
        choices("int4@best", "gptq")
    one, same, other = (subject_of(net(), seed=seed) for seed in (1, 1, 2))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


class Normed(nn.Module):
    """A norm before a layer, as in a transformer; then two more layers of the same width."""

    def __init__(self, width=32):
        super().__init__()
        self.norm, self.first = nn.LayerNorm(width), nn.Linear(width, width)
        self.second, self.last = nn.Linear(width, width), nn.Linear(width, 6)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(self.norm(x))))))


def planted(gain, feature=3):
    """One gain of the norm times so much, the weights behind it divided: the same function."""
    torch.manual_seed(0)
    model = Normed()
    with torch.no_grad():
        for layer in (model.first, model.second, model.last):
            layer.weight *= 2
        model.norm.weight[feature] *= gain
        model.first.weight[:, feature] /= gain
    return model


def settled(model, gain=1.0):
    subject = subject_of(planted(1.0), 400, 32)
    subject = Subject(model, subject.batches, CrossEntropy(), "planted")
    return settle(subject, find(model).layers, [batch[0] for batch in subject.batches], curvature="left out")


def test_outliers_are_what_other_libraries_say():
    model = planted(40.0)
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    layers = find(model).layers
    found = outliers(model, layers, [x[:100], x[100:]])
    with torch.no_grad():
        inputs = model.norm(x).double()
    one = found["first"]
    assert one.inputs == pytest.approx(float(inputs.abs().max() / inputs.square().mean().sqrt()), rel=1e-5)
    assert one.kurtosis == pytest.approx(stats.kurtosis(inputs.numpy(), axis=None, fisher=False), rel=1e-5)
    assert one.features == (3,)
    assert found["second"].features == ()
    assert features(found, layers) == {32: (3,)}
    assert features(outliers(planted(1.0), find(model).layers, [x]), layers) == {}


def test_planted_outliers_turn_the_claim_about_inputs():
    gaps, x = [], torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = planted(1.0)(x)
        for gain in (1, 10, 100):
            torch.testing.assert_close(planted(gain)(x), plain, rtol=1e-4, atol=1e-4)
    for gain in (1.0, 10.0, 100.0):
        found = settled(planted(gain))
        claims = {claim.name: claim for claim in found.claims}
        gaps.append(-claims["fp8-inputs"].gain)
        assert claims["fp8-inputs"].verdict == {1.0: "does not hold", 100.0: "holds"}.get(
            gain, claims["fp8-inputs"].verdict
        )
    assert gaps == sorted(gaps, reverse=True)  # INT8 suffers more the larger the outlier, FP8 does not
    assert found.left["loss-or-outputs"] == "left out"
    model = planted(100.0)
    found = probe(model, find(model).layers, [x])
    assert found.outliers["first"].features == (3,)
    assert found.advice["first"].best.startswith("fp8")
    assert found.features == {32: (3,)}


@pytest.mark.parametrize(("shape", "verdict"), [("flat", "does not hold"), ("heavy", "holds")])
def test_the_claim_about_four_bits_goes_by_the_weights(shape, verdict):
    generator = torch.Generator().manual_seed(0)
    model = planted(1.0)
    with torch.no_grad():
        for layer in (model.first, model.second, model.last):
            drawn = torch.rand(layer.weight.shape, generator=generator) * 2 - 1
            if shape == "heavy":  # Student's t of four degrees
                drawn = torch.randn(layer.weight.shape, generator=generator)
                drawn /= torch.randn((4, *drawn.shape), generator=generator).square().mean(0).sqrt()
            layer.weight.copy_(0.3 * drawn)
    found = {claim.name: claim for claim in settled(model).claims}
    assert found["fp4-weights"].bits_one == found["fp4-weights"].bits_other
    assert found["fp4-weights"].verdict == verdict
    assert found["fp8-weights"].bits_one == found["fp8-weights"].bits_other
    mostly = found["mostly-4-bit"]
    assert mostly.bits_other <= mostly.bits_one


NETS = """
    import torch
    from torch import nn
    from isoloss.measure import Subject
    from isoloss.measure.criteria import CrossEntropy

    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5))
        x = torch.randn(60, 32)
        return Subject(net, [(x, net(x).argmax(1))], CrossEntropy(), "net")

    def bare():
        return nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 4)), torch.randn(50, 32)
    """


@pytest.fixture
def run(tmp_path):
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    return lambda words: run_command(words.split(), tmp_path)


def test_the_command_line_measures_appends_and_rates(run, tmp_path):
    words = "compress nets.py:make --frontier f.csv --format int2/asym,int4/asym,int4/asym@nearest"
    code, printed = run(f"{words} --json v.json")
    assert code == 0, printed
    found = json.loads((tmp_path / "v.json").read_text())
    assert [row["solver"] for row in found["rows"] if row["variant"] == "int4/asym"] == ["gptq", "nearest"]
    code, printed = run(words)
    assert "0 rows added" in printed
    code, printed = run("compress nets.py:make --frontier f.csv --format int3/asym")
    assert code == 0, printed
    assert "1 row added" in printed  # the original is known
    code, printed = run("compress nets.py:make --frontier f.csv --format int2/asym,int6/asym --bits 4")
    assert code == 0, printed
    with open(tmp_path / "f.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"net"}
    assert len({row["data"] for row in rows}) == 1
    assert [row["variant"] for row in rows].count("original") == 1
    code, printed = run("worth f.csv --law power(params)@x")
    assert code == 2
    code, printed = run(
        "worth f.csv --law hoffmann@besiroglu-2024 --tokens 1M --against 16,8 --report p.html --json w.json"
    )
    assert code == 0, printed
    assert "<svg" in (tmp_path / "p.html").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "w.json").read_text())
    assert found["models"][0]["tokens"] == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("compress nets.py:make --frontier f.csv --out small", 2, "compresses nothing"),
        ("compress nets.py:make --frontier f.csv --dry-run", 2, "Leave out --dry-run"),
        ("compress nets.py:make --claims --eval nets.py:make", 2, "Leave out --eval"),
        ("compress nets.py:make --frontier nowhere/f.csv", 2, "nowhere"),
        ("compress nets.py:make --claims --format int4", 2, "Leave --format out"),
        ("compress nets.py:bare --claims", 2, "measures a loss"),
        ("compress nets.py:bare --frontier f.csv", 2, "measures a loss"),
        ("compress nets.py:make --frontier f.csv --format int4@best", 2, "no solver"),
        ("worth nets.py --against 16", 2, "nets.py"),
        ("worth none.csv --against zero", 2, "--against needs bits"),
    ],
)
def test_refusals(words, code, said, run):
    got, printed = run(words)
    assert got == code, printed
    assert said in printed


def test_claims_on_the_command_line(run, tmp_path, monkeypatch):
    from isoloss.compress import activations, claims

    passes = []

    def once(*given):
        passes.append(given)
        return own(*given)

    own = activations.samples
    for module in (activations, claims):
        monkeypatch.setattr(module, "samples", once)
    code, printed = run("compress nets.py:make --claims --json c.json")
    assert code == 0, printed
    assert len(passes) == 1
    found = json.loads((tmp_path / "c.json").read_text())
    assert {claim["verdict"] for claim in found["claims"]} <= {"holds", "does not hold", "not resolved"}
    assert len(found["claims"]) == 9
    assert [layer["name"] for layer in found["layers"]] == ["0", "2", "4"]
    assert found["layers"][0]["outlier_features"] == 0

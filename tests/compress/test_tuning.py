"""Tuning of what codes stand for: gradients against autograd, tables against least squares, sizes, what stays."""

import copy
import json

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress, read  # noqa: E402
from isoloss.compress.compressed import put  # noqa: E402
from isoloss.compress.predictions import Predictions  # noqa: E402
from isoloss.compress.products import products  # noqa: E402
from isoloss.compress.tuning import NOTHING_WON, Tuning, originals, tune  # noqa: E402
from isoloss.measure.criteria import SquaredError  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from tests.docs.pages import run_command  # noqa: E402


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 6))


def batches(count=6, rows=48, width=24, seed=1):
    torch.manual_seed(seed)
    mix = torch.randn(width, width)
    return [torch.randn(rows, width) @ mix / width**0.5 for _ in range(count)]


def tuned(spec, how, model=None, solver="nearest", data=None):
    model, data = model or net(), data or batches()
    predictions = Predictions(data)
    before = originals(model, predictions)
    made = compress(model, Choice(spec, solver), data)
    return model, made, tune(model, made.encoded, predictions, before, how)


@pytest.mark.parametrize(
    "spec",
    ["table2", "table2/g8", "table2/tensor", "int3/g8/asym", "nf4/g8", "table2+2.0%", "int3+lr2", "vq4-16"],
)
def test_predictions_come_closer_at_the_same_size_and_the_model_has_what_is_stored(spec):
    model, made, found = tuned(spec, Tuning(steps=40, rate=0.02))
    assert 0 < found.after < found.before
    assert sum(one.bits for one in found.encoded.values()) == made.bits
    again = net()
    put(again, found.encoded)
    for i in (0, 3):
        assert torch.equal(again[i].weight, model[i].weight)
    for name, tensor in made.plain.items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_how_far_predictions_are_apart_is_a_mean_over_rows_that_count():
    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x, attention_mask):
            return self.linear(x)

    torch.manual_seed(0)
    model, masks = (
        Picked(),
        [torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.tensor([[0, 0, 0]]), torch.ones(1, 3)],
    )
    data = [{"x": torch.randn(len(mask), 3, 3), "attention_mask": mask} for mask in masks]
    predictions = Predictions(data)
    own = [model(**one).detach() for one in data]
    with torch.no_grad():
        model.linear.weight += 0.1 * torch.randn(4, 3)
        each = [
            (p.softmax(-1) * (p.log_softmax(-1) - model(**one).log_softmax(-1))).sum(-1)[
                one["attention_mask"] > 0
            ]
            for p, one in zip(own, data, strict=True)
        ]
    assert predictions.apart(model, own) == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)
    assert predictions.apart(model, own, [2]) == pytest.approx(float(each[2].mean()), rel=1e-5)
    assert predictions.apart(model, own, [1]) == 0.0


@pytest.mark.parametrize("spec", ["table2+2.0%", "int3+lr2"])
def test_what_lies_beside_stays(spec):
    _, made, found = tuned(spec, Tuning(steps=10, rate=0.02))
    for name, one in found.encoded.items():
        old = made.encoded[name].parts
        for part, tensor in one.parts.items():
            if not part.startswith("dense."):
                assert torch.equal(tensor, old[part])


def test_tables_of_one_layer_reach_the_least_squares_of_their_codes():
    torch.manual_seed(0)
    model, data = nn.Linear(12, 5, bias=False), batches(4, 64, 12)
    weight = model.weight.detach().clone()
    targets = [model(x).detach() for x in data]
    subject = Subject(model, list(zip(data, targets, strict=True)), SquaredError())
    predictions = Predictions(data, subject)
    before = originals(model, predictions)
    made = compress(model, Choice("table2"), data)
    found = tune(model, made.encoded, predictions, before, Tuning(steps=400, rate=0.02, held=0, checks=10))
    x = torch.cat(data).double()
    best = 0.0
    codes = made.encoded["model"].codes().long()
    for row in range(5):
        entries = torch.nn.functional.one_hot(codes[row], 4).double()
        design, wanted = x @ entries, x @ weight[row].double()
        least = torch.linalg.lstsq(design, wanted[:, None]).solution
        best += float((design @ least - wanted[:, None]).square().sum()) / len(x)
    assert found.before > 1.1 * best / 2
    assert best / 2 <= found.after * (1 + 1e-3)
    assert found.after == pytest.approx(best / 2, rel=0.02)


def test_gradients_are_those_of_autograd():
    """One step of Adam from 0 goes by its rate against the sign of the gradient."""
    model, data = net(), batches(1)
    plain = copy.deepcopy(model)
    predictions = Predictions(data)
    before = originals(model, predictions)
    made = compress(model, {"3": Choice("table2")}, data)
    given = copy.deepcopy(model)
    found = tune(
        model, made.encoded, predictions, before, Tuning(steps=1, rate=1e-3, vectors=0, held=0, checks=1)
    )
    table = made.encoded["3"].parts["table"].float().requires_grad_()
    weight = table[:, 0].gather(1, made.encoded["3"].codes().long())
    p = plain(data[0]).detach().log_softmax(-1)
    q = torch.func.functional_call(given, {"3.weight": weight}, (data[0],)).log_softmax(-1)
    torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean").backward()
    moved = found.encoded["3"].parts["table"].float() - table.detach()
    clear = table.grad.abs() > 1e-3 * table.grad.abs().max()
    assert found.steps == 1
    assert int(clear.sum()) > 12
    assert torch.equal(moved.sign()[clear], -table.grad.sign()[clear])
    reach = table.detach().abs().amax(2, keepdim=True).expand_as(moved)
    assert torch.allclose(moved.abs()[clear], 1e-3 * reach[clear], rtol=0.3)  # fp16


def test_a_model_that_cannot_be_improved_stays():
    model, made, found = tuned("fp32", Tuning(steps=4, vectors=0.01))
    assert (found.steps, found.before, found.note) == (0, found.after, NOTHING_WON)
    assert found.encoded is made.encoded
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), net().state_dict().values(), strict=True)
    )


def test_as_a_part_of_compress():
    """The recipe says so, and the whole is what the parts give."""
    model, data = net(), batches()
    made = compress(model, Choice("table2"), data, tuning=Tuning(steps=20, rate=0.02))
    _, plain, found = tuned("table2", Tuning(steps=20, rate=0.02))
    assert made.recipe.notes[-1] == found.note
    assert "held out" in found.note
    assert made.bits == plain.bits
    for name, one in made.encoded.items():
        assert torch.equal(one.decode(), found.encoded[name].decode())
        assert torch.equal(one.decode(), model[int(name)].weight)
    with pytest.raises(ValueError, match="calibration data"):
        compress(net(), Choice("table2"), tuning=Tuning())


def test_same_seed_same_result_and_gradients_are_left_as_they_were():
    one, _, a = tuned("table2", Tuning(steps=6, seed=3))
    _, _, b = tuned("table2", Tuning(steps=6, seed=3))
    assert a.after == b.after
    assert all(p.requires_grad and p.grad is None for p in one.parameters())


def test_padding_does_not_count():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

        def forward(self, input_ids, attention_mask):
            return self.head(self.table(input_ids))

    torch.manual_seed(0)
    model = Tokens()
    ids = torch.randint(0, 20, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    other = torch.where(mask.bool(), ids, 0)
    results = []
    for own in (ids, other):
        work = copy.deepcopy(model)
        data = [{"input_ids": own, "attention_mask": mask}]
        predictions = Predictions(data)
        before = originals(work, predictions)
        made = compress(work, {"head": Choice("table2")}, data)
        results.append(tune(work, made.encoded, predictions, before, Tuning(steps=3, held=0)).after)
    assert results[0] == pytest.approx(results[1], rel=1e-5)


NETS = """
import torch
from torch import nn
from isoloss.measure import Subject
from isoloss.measure.criteria import CrossEntropy

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 6))
    x = torch.randn(5, 32, 24)
    return Subject(net, [(own, net(own).argmax(1)) for own in x], CrossEntropy(), "net")
"""


def test_from_the_command_line_and_back_from_its_folder(tmp_path):
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    words = "nets.py:make --format table2/g8 --solver lut-feedback --tune steps=8,rate=0.02 --out small --json a.json"
    code, printed = run_command(["compress", *words.split()], tmp_path)
    assert code == 0, printed
    assert "steps=8, rate=0.02" in printed
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["tuning"] == "steps=8, rate=0.02"
    assert read(tmp_path / "small").recipe.tuning == Tuning(steps=8, rate=0.02)
    code, printed = run_command(
        ["compress", "nets.py:make", "--format", "int4", "--tune", "steps=0"], tmp_path
    )
    assert code == 2
    assert "steps and checks" in printed


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps and checks"),
        ({"held": 1.0}, "held share"),
        ({"rate": 0, "vectors": 0}, "neither"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        Tuning(**settings)


def test_what_cannot_be_tuned_is_refused():
    model, data = nn.Linear(4, 4, bias=False), batches(2, 8, 4)
    predictions = Predictions(data)
    before = originals(model, predictions)
    made = compress(model, Choice("fp16"))
    with pytest.raises(ValueError, match="nothing can be tuned"):
        tune(model, made.encoded, predictions, before)
    with pytest.raises(ValueError, match="predictions of 2 batches"):
        tune(model, made.encoded, predictions, before[:1])
    with pytest.raises(ValueError, match="no layer"):
        tune(nn.Sequential(model), made.encoded, predictions, before)


def test_products_in_bf16_are_near_and_end_with_the_block():
    torch.manual_seed(0)
    a, b = torch.randn(64, 200), torch.randn(200, 48)
    exact = a @ b
    with products("bf16"):
        near = a @ b
    assert float((near - exact).norm() / exact.norm()) < 0.01
    assert torch.equal(a @ b, exact)
    with pytest.raises(ValueError, match="fp32 or bf16"), products("fp8"):
        pass


def test_calibration_in_bf16_gives_nearly_the_same_second_moments():
    """The rows of the first layer are the data themselves: H is off by the rounding of its factors alone."""
    torch.manual_seed(0)
    data = [torch.randn(64, 24)]
    errors = []
    for how in ("fp32", "bf16"):
        made = compress(net(), Choice("int4", "gptq"), data, multiply=how)
        errors.append(made.recipe.layers["0"].error)
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
    with pytest.raises(ValueError, match="fp32 or bf16"):
        compress(net(), Choice("int4", "gptq"), data, multiply="int8")


def test_gradients_of_the_user_are_neither_added_to_nor_lost():
    found = []
    for left in (None, 3.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        batches = [torch.randn(32, 16) for _ in range(6)]
        if left is not None:
            for parameter in net.parameters():
                parameter.grad = torch.full_like(parameter, left)
        made = compress(net, Choice("table2", "lut-feedback"), batches, tuning=Tuning(steps=10, rate=0.02))
        found.append(made)
        grads = [parameter.grad for parameter in net.parameters()]
        assert all(grad is None if left is None else bool((grad == left).all()) for grad in grads)
    one, other = found
    assert all(torch.equal(one.encoded[n].decode(), other.encoded[n].decode()) for n in one.encoded)

"""Probes in a row: what is wrong with a model is said in its own terms, in a line, and the others go on."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure import WHAT, parameters, subject  # noqa: E402
from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from isoloss.measure.density import spectral_density  # noqa: E402
from isoloss.measure.eigen import top_eigenpairs  # noqa: E402
from isoloss.measure.hessian_trace import hessian_trace  # noqa: E402
from isoloss.measure.load import Loaded, load  # noqa: E402
from isoloss.measure.measuring import OWN, Settings, in_turn, measure  # noqa: E402
from isoloss.measure.misnomer import COMPARED, KINDS, compare, missing  # noqa: E402
from isoloss.measure.products import hessian  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402

BATCH = torch.ones(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
DERIVED = [*WHAT["curvature"], *WHAT["noise"]]


def linear(criterion=None, width=3):
    torch.manual_seed(0)
    return Subject(nn.Linear(width, 2), [BATCH], criterion or CrossEntropy(), f"width {width}")


def reasons(one, names=tuple(DERIVED), **settings):
    found = measure(Loaded(one), names, Settings(**settings))
    assert not found.measurements
    return {each.why for each in found.failed}


def test_weights_that_are_not_numbers_are_said_once_and_in_words():
    one = linear()
    nn.init.constant_(one.model.bias, torch.nan)
    assert reasons(one) == {"the loss is nan. Needed: weights and data on which it is finite"}
    with hessian(one) as product:
        for function in (spectral_density, top_eigenpairs):
            with pytest.raises(NoAnswer, match="not finite"):
                function(product)
    with pytest.raises(NoAnswer, match="not finite"):
        hessian_trace(one)


def test_a_model_that_does_not_train_has_no_derivatives():
    one = linear()
    one.model.requires_grad_(False)
    assert reasons(one) == {"no parameter takes a gradient. Needed: a model that trains"}
    assert {m.name for m in measure(Loaded(one), ["params", "flops"]).measurements} >= {
        "params",
        "flops_forward",
    }


def test_a_criterion_gives_one_number():
    (why,) = reasons(linear(nn.CrossEntropyLoss(reduction="none")))
    assert why == "needed one number from the criterion, the mean loss of the batch, got a tensor of (6,)"


def test_whatever_a_model_raises_is_a_line():
    class Odd(nn.Linear):
        def forward(self, x):
            return {}["hidden"]

    one = Subject(Odd(3, 2), [BATCH], CrossEntropy())
    assert reasons(one, ("params", "flops", "memory", "latency", "trace", "noise_scale")) == {
        "KeyError: 'hidden'"
    }
    assert in_turn([Loaded(one), Loaded(linear())]) == {}


def test_a_mistake_of_a_probe_is_not_the_models(monkeypatch):
    scope = {}
    line = compile(
        "def probe(subject):\n    return {}['x']\n", str(OWN / "measure" / "parameters.py"), "exec"
    )
    exec(line, scope)
    monkeypatch.setattr(parameters, "probe", scope["probe"])
    with pytest.raises(KeyError):
        measure(Loaded(linear()), ["params"])


def test_empty_tensors_that_do_not_fit_are_not_logged(capfd):
    assert "mat1 and mat2" in str(reasons(linear(width=4), ("memory",)))
    assert capfd.readouterr().err == ""


def test_a_probe_has_its_time():
    class Slow(nn.Linear):
        def forward(self, x):
            time.sleep(0.5)
            return super().forward(x)

    began = time.perf_counter()
    (why,) = reasons(Subject(Slow(3, 2), [BATCH], CrossEntropy()), ("memory",), limit=0.2)
    assert why.startswith("not done within 0.2 s. Needed: more (--seconds)")
    assert time.perf_counter() - began < 5
    found = measure(Loaded(linear()), ["params"], Settings(limit=5))
    assert found.measurements


def test_batches_are_a_list_of_pairs():
    x, y = BATCH
    with pytest.raises(ValueError, match=r"got a Tensor among them. Do: give a list of pairs"):
        Subject(nn.Linear(3, 2), (x, y), CrossEntropy())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 2, shuffle=True)
    with pytest.raises(TypeError, match=r"got a DataLoader. Do: list"):
        Subject(nn.Linear(3, 2), loader, CrossEntropy())
    assert Subject(nn.Linear(3, 2), list(loader), CrossEntropy()).examples == 6


def test_a_function_that_fails_names_its_line(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text("def make():\n    return [][1]\n\ndef needs(width):\n    pass\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"nets.py:make failed: IndexError: .*, line 2 of nets.py$"):
        load(f"{path}:make")
    with pytest.raises(ValueError, match=r"needs failed: TypeError: .* 'width'$"):
        load(f"{path}:needs")


def test_recurrent_layers_on_a_gpu_leave_cudnn_for_gradients(monkeypatch):
    net = nn.LSTM(3, 2).eval()
    monkeypatch.setattr(net, "parameters", lambda: [SimpleNamespace(is_cuda=True)])  # as on a GPU
    with subject.differentiable(net):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled
    with torch.no_grad(), subject.differentiable(net):
        assert torch.backends.cudnn.enabled
    with subject.differentiable(nn.LSTM(3, 2).eval()):
        assert torch.backends.cudnn.enabled


def test_costs_that_are_compared_are_those_that_probes_give():
    one, two = (
        linear(),
        Subject(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), [BATCH], CrossEntropy(), "two"),
    )
    found = {each.name: measure(Loaded(each), WHAT["costs"]).measurements for each in (one, two)}
    side = compare(found)
    # Generation and energy are not measured here.
    assert set(side.costs) == set(COMPARED) - {"runtime_per_token", "energy"}
    assert not missing(found["two"])
    few = {name: measured[:3] for name, measured in found.items()}
    assert [f.code for f in compare(few).findings] == ["costs-incomplete"]
    assert not compare(few, kinds=()).findings
    assert "latency" in KINDS

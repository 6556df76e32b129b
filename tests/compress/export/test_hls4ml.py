"""hls4ml projects: what is refused, and the C emulation against torch."""

import shutil
import sys

import pytest

torch = pytest.importorskip("torch", reason="compression needs torch")
pytest.importorskip("onnx", reason="projects are made from QONNX, written by the package onnx")
pytest.importorskip("onnxscript", reason="torch traces to ONNX by the package onnxscript")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress  # noqa: E402
from isoloss.compress.activations import Activations, Range, rounded_inputs  # noqa: E402
from isoloss.compress.export.hls4ml import write_hls4ml  # noqa: E402
from isoloss.compress.export.onnx import Example  # noqa: E402
from isoloss.compress.export.qonnx import Inputs, round_biases  # noqa: E402

SYMMETRIC = (Activations("int6", "static"), Range(-31 / 16, 31 / 16))


def product(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), *more).eval()


@pytest.mark.parametrize(
    ("spec", "inputs", "why"),
    [
        ("int6", SYMMETRIC, "scales that are no powers of two"),
        ("fp8-e4m3/scale-m1", SYMMETRIC, "scales that are no powers of two"),
        ("int6/scale-m1", (Activations("int6", "static"), Range(-1.0, 1.0)), "must be one power of two"),
        ("int6/scale-m1", (Activations("int3/asym", "static"), Range(-0.75, 1.0)), "without a zero-point"),
        ("int6/scale-m1", None, "inputs of the model must be rounded first"),
    ],
)
def test_what_has_no_exact_type_is_refused(tmp_path, spec, inputs, why):
    net = product()
    compressed = compress(net, Choice(spec))
    given = Inputs() if inputs is None else Inputs({"0": inputs[0]}, {"0": inputs[1]})
    with pytest.raises(ValueError, match=why):
        write_hls4ml(compressed, net, tmp_path / "a", Example({"input": torch.zeros(1, 6)}), inputs=given)


def test_operators_without_exact_types_are_refused(tmp_path):
    net = product(nn.Tanh())
    compressed = compress(net, Choice("int6/scale-m1"))
    given = Inputs({"0": SYMMETRIC[0]}, {"0": SYMMETRIC[1]})
    with pytest.raises(ValueError, match="got Tanh"):
        write_hls4ml(compressed, net, tmp_path / "a", Example({"input": torch.zeros(1, 6)}), inputs=given)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hls4ml", None)  # as if it were not installed
    net = product()
    compressed = compress(net, Choice("int6/tensor/scale-m1"))
    given = Inputs({"0": SYMMETRIC[0]}, {"0": SYMMETRIC[1]})
    round_biases(net, compressed, given)
    with pytest.raises(ValueError, match=r"needs hls4ml. Do: pip install 'isoloss\[fpga\]'"):
        write_hls4ml(compressed, net, tmp_path / "a", Example({"input": torch.zeros(1, 6)}), inputs=given)


def test_the_emulation_gives_the_models_numbers(tmp_path):
    pytest.importorskip("hls4ml", reason="the package hls4ml is not installed")
    pytest.importorskip("qonnx", reason="the package qonnx is not installed")
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the emulation")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2),
    ).eval()  # fmt: skip
    plan = {"0": "int5/scale-m1", "3": "int3/tensor/scale-m1", "6": "int2/bipolar/scale-m1", "8": "fixed3.3"}
    compressed = compress(net, {name: Choice(spec) for name, spec in plan.items()})
    formats = {"0": "int7/narrow", "3": "int4/asym", "6": "int5/asym", "8": "int6"}
    how = {name: Activations(one, "static") for name, one in formats.items()}
    known = {
        "0": Range(-63 / 32, 63 / 32),
        "3": Range(0, 15 / 32),
        "6": Range(0, 31 / 64),
        "8": Range(-31 / 64, 31 / 64),
    }
    given = Inputs(how, known)
    round_biases(net, compressed, given)
    x = torch.randn(300, 2, 4, 4)
    x[:100] = (x[:100] * 64).round() / 64  # ties
    with torch.no_grad(), rounded_inputs(net, how, known):
        wanted = net(x).numpy()
    project = write_hls4ml(compressed, net, tmp_path / "a", Example({"input": x}), inputs=given)
    assert np.array_equal(project.emulated(x.numpy()), wanted)
    assert len(np.unique(wanted)) > 10

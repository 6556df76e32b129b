"""QONNX: nodes by their tables, files of three kinds of models before and after, what layers take."""

import copy
import functools
import itertools
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compression needs torch")
onnx = pytest.importorskip("onnx", reason="QONNX files are written by the package onnx")
pytest.importorskip("onnxscript", reason="torch traces to ONNX by the package onnxscript")

from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress, save  # noqa: E402
from isoloss.compress.activations import (  # noqa: E402
    Activations,
    Range,
    fake_round,
    ranges,
    rounded_inputs,
    samples,
)
from isoloss.compress.export import nodes  # noqa: E402
from isoloss.compress.export.circuits import bit_operations, resources, totals  # noqa: E402
from isoloss.compress.export.onnx import Example  # noqa: E402
from isoloss.compress.export.qonnx import Inputs, graph_of, round_biases  # noqa: E402
from isoloss.compress.export.running import run_by_package, run_qonnx  # noqa: E402
from isoloss.compress.export.steps import Steps, power, steps_of, summed  # noqa: E402
from isoloss.compress.export.truncation import tensors  # noqa: E402
from isoloss.compress.layers import find  # noqa: E402
from tests.docs.pages import run_command  # noqa: E402

ORDER = ("ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN")
TABLE = {  # of the operator's document
    5.5: (6, 6, 5, 6, 5, 6, 5),
    2.5: (2, 3, 2, 3, 2, 3, 2),
    -1.1: (-1, -1, -2, -2, -1, -1, -1),
    -1.6: (-2, -1, -2, -2, -1, -2, -2),
    -2.5: (-2, -2, -3, -3, -2, -3, -2),
}
ONE, NONE = np.array(1.0), np.array(0.0)


class Tiny(nn.Module):
    """A transformer block with a tied head."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.embedding, self.heads = nn.Embedding(20, width), heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        batch, length, width = x.shape
        parts = self.attention(self.before(x)).reshape(batch, length, 3, self.heads, -1)
        seen = nn.functional.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return self.head(x + self.down(nn.functional.gelu(self.up(self.after(x)))))


def jets():
    torch.manual_seed(0)
    sizes = (16, 64, 32, 32, 5)
    parts = [[nn.Linear(n, m), nn.ReLU()] for n, m in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain.from_iterable(parts))[:-1].eval()


def pictures():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 3 * 3, 5),
    ).eval()  # fmt: skip


def tiny():
    torch.manual_seed(0)
    return Tiny().eval()


def ids(count):
    return torch.randint(0, 20, (count, 8), generator=torch.Generator().manual_seed(1))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


MIXED = {
    "mlp": (
        jets, normal(50, 16),
        {"0": "int6/tensor/scale-m1", "2": "int4/scale-m1", "4": "int1/bipolar/scale-m1", "6": "fixed2.4"},
        {"0": "int8", "2": "int6/asym", "4": "int3/asym", "6": "int6/narrow"},
    ),
    "cnn": (
        pictures, normal(4, 3, 16, 16),
        {"0": "int5/scale-m1", "3": "int3/tensor/scale-m1", "7": "int6/tensor/scale-m1"},
        {"0": "int8", "3": "int4/asym", "7": "int6/asym"},
    ),
    "others": (
        jets, normal(50, 16),
        {"0": "int6", "2": "int5/asym", "4": "fp8-e4m3", "6": "int3/bipolar"},
        {"0": "fp8-e5m2", "2": "int6", "4": "fp8-e4m3", "6": "int8/asym"},
    ),
    "transformer": (
        tiny, ids(3),
        {"embedding": "int8", "attention": "int6", "out": "int4/asym", "up": "int3/tensor", "down": "int2/bipolar"},
        {"attention": "int8", "out": "int8/asym", "up": "int6", "down": "int8/asym"},
    ),
}  # fmt: skip


EXACT = ("mlp", "cnn")  # all scales are powers of two


def rounded(net, x, formats, step):
    how = {n: Activations(one, "static", "minmax", step=step) for n, one in formats.items()}
    seen = samples(net, [layer for layer in find(net).layers if layer.name in formats], [x])
    return Inputs(how, {name: ranges({name: one}, how[name])[name] for name, one in seen.items()})


@functools.cache
def made_of(kind):
    """A model, its inputs, how they are rounded, the outputs before, and the file's graph; made once."""
    make, x, weights, inputs = MIXED[kind]
    net = make()
    compressed = compress(net, {name: Choice(spec) for name, spec in weights.items()})
    given = rounded(net, x, inputs, "power" if kind in EXACT else "free")
    round_biases(net, compressed, given)
    name = "ids" if kind == "transformer" else "input"
    made, written = graph_of(compressed, net, Example({name: x}), given)
    assert set(written) == set(weights)
    return net, given, {name: x.numpy()}, promised(net, given, x), made


def promised(net, given, x):
    with torch.no_grad(), rounded_inputs(net, given.how, given.ranges):
        return net(x).numpy()


@pytest.mark.parametrize("value", TABLE)
def test_rounding_modes_are_those_of_the_document(value):
    assert tuple(float(nodes.rounded(np.array(value), mode)) for mode in ORDER) == TABLE[value]
    found = nodes.int_quant(np.array(value), ONE, NONE, np.array(5.0), rounding_mode="half_up")
    assert float(found) == TABLE[value][5]


def test_nodes_cut_off_before_they_round_and_keep_nan():
    x = np.array([3.4, 3.6, -4.2, -4.9, np.nan])
    up = nodes.int_quant(x, ONE, NONE, np.array(3), rounding_mode="CEIL")
    assert up[:4].tolist() == [3, 3, -4, -4]
    assert np.isnan(up[4])
    assert nodes.int_quant(x[:4], ONE, NONE, np.array(3), narrow=True).tolist() == [3, 3, -3, -3]
    assert nodes.int_quant(np.array([-2.0, -0.0, 3.0]), ONE, NONE, np.array(1)).tolist() == [-1, 1, 1]
    assert nodes.bipolar_quant(np.array([-2.0, 0.0, 3.0]), np.array([0.5])).tolist() == [-0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="scales above 0"):
        nodes.int_quant(x, NONE, NONE, np.array(3))
    with pytest.raises(ValueError, match="needed a rounding mode"):
        nodes.rounded(x, "TOWARDS")


@pytest.mark.parametrize(("exponent", "mantissa", "kind"), [(4, 3, "float8_e4m3fn"), (5, 2, "float8_e5m2")])
def test_float_nodes_round_as_torch_casts(exponent, mantissa, kind):
    dtype = getattr(torch, kind)
    most = torch.finfo(dtype).max
    x = torch.cat(
        [normal(2000) * 10 ** normal(2000), torch.tensor([0.0, most, -most, 2.0**-16, 3 * 2.0**-10])]
    )
    x = x.clamp(-most, most)
    bias = np.array(2.0 ** (exponent - 1) - 1)
    found = nodes.float_quant(x.numpy(), ONE, np.array(exponent), np.array(mantissa), bias, np.array(most))
    assert np.array_equal(found, x.to(dtype).float().numpy())


def test_a_cut_by_steps_is_the_rounding_of_a_shift():
    x = np.arange(-40, 40) * 0.25
    found = nodes.trunc(x, np.array(0.25), NONE, ONE, np.array(4), rounding_mode="FLOOR")
    assert np.array_equal(found, np.clip(np.arange(-40, 40) >> 2, -8, 7))
    nearest = nodes.trunc(x, np.array(0.25), NONE, ONE, np.array(4), rounding_mode="ROUND")
    assert np.array_equal(nearest, nodes.int_quant(x, ONE, NONE, np.array(4)))


def test_nodes_agree_with_the_package():
    pytest.importorskip("qonnx", reason="the package qonnx is not installed")
    from qonnx.custom_op.general.bipolar_quant import binary_quant
    from qonnx.custom_op.general.floatquant import float_quant
    from qonnx.custom_op.general.intquant import int_quant
    from qonnx.custom_op.general.trunc import trunc_v1, trunc_v2

    rng = np.random.default_rng(0)
    for _ in range(60):
        x = (rng.normal(size=40) * rng.choice([0.5, 4, 40])).astype(np.float32)
        x[:4] = [0, 0.5, -0.5, 2.5]
        scale, zero = np.float32(rng.choice([0.25, 1, 0.3])), np.float32(rng.choice([0, 3]))
        bits, coarse = np.float32(rng.integers(1, 9)), np.float32(scale * 2 ** rng.integers(0, 4))
        signed, narrow = bool(rng.integers(2)), bool(rng.integers(2))
        for mode in ORDER:
            ways = {"signed": signed, "narrow": narrow, "rounding_mode": mode}
            ours = nodes.int_quant(x, scale, zero, bits, **ways)
            assert np.array_equal(ours, int_quant(x, scale, zero, bits, signed, narrow, mode))
            ours = nodes.trunc(x, scale, zero, coarse, bits, **ways)
            theirs = trunc_v2(x, scale, zero, np.float32(8), narrow, signed, coarse, bits, mode)
            assert np.array_equal(ours, theirs)
            ours = nodes.trunc_1(x, scale, zero, np.float32(8), bits, rounding_mode=mode)
            assert np.array_equal(ours, trunc_v1(x, scale, zero, np.float32(8), bits, mode))
            type = [np.float32(one) for one in (4, 3, 7)]
            theirs = float_quant(x, scale, *type, True, np.float32(448), rounding_mode=mode)
            ours = nodes.float_quant(x, scale, *type, np.float32(448), rounding_mode=mode)
            assert np.array_equal(ours, theirs.astype(np.float32))
        assert np.array_equal(nodes.bipolar_quant(x, scale), binary_quant(x, scale))


def test_steps_hold_all_sums_in_any_order():
    rng = np.random.default_rng(0)
    for _ in range(30):
        weights, bias = rng.integers(-4, 4, size=(2, 3)) / 8, rng.integers(-9, 9, size=2) / 16
        inputs = Steps(1, *sorted(rng.integers(-3, 4, size=2).tolist()))
        found = summed(weights, inputs, bias)
        xs = np.arange(inputs.low, inputs.high + 1) * 0.5
        partial = [bias]
        for x in itertools.product(xs, repeat=3):
            terms = weights * np.array(x)
            for order in itertools.permutations(range(3)):
                partial += list(bias + np.cumsum(terms[:, order], axis=1).T)
        whole = np.array(partial) * 2.0**found.fraction
        assert np.array_equal(whole, np.round(whole))
        assert found.low <= whole.min()
        assert whole.max() <= found.high
        assert -(2 ** (found.bits - 1)) <= whole.min()
    assert steps_of(np.array([3.0, -0.75])) == Steps(2, -3, 12)
    assert steps_of(np.array([64.0])).fraction == -6
    assert power(0.1) is None


@pytest.mark.parametrize("kind", MIXED)
def test_outputs_are_equal_before_and_after(kind):
    _, _, x, wanted, made = made_of(kind)
    found = run_qonnx(made, x)[0]
    assert np.abs(found - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())
    if kind in EXACT:
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", EXACT)
def test_with_powers_of_two_float64_gives_the_same_bits(kind):
    net, given, x, wanted, made = made_of(kind)
    assert made.graph.output[0].name in tensors(made)  # whole multiples of one power of two throughout
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("Trunc") == (2 if kind == "cnn" else 0)
    wide = {"input": x["input"].astype(np.float64)}
    assert np.array_equal(run_qonnx(made, wide)[0], wanted)
    doubled = promised(copy.deepcopy(net).double(), given, torch.from_numpy(wide["input"]))
    assert np.array_equal(doubled, wanted)


@pytest.mark.parametrize("kind", MIXED)
def test_the_package_reads_and_computes_the_same(kind):
    pytest.importorskip("qonnx", reason="the package qonnx is not installed")
    _, _, x, wanted, made = made_of(kind)
    found = run_by_package(made, x)[0]
    assert np.abs(found - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())
    if kind in EXACT:
        assert np.array_equal(found, wanted)


def test_inputs_with_an_odd_zero_point_round_ties_as_before():
    net, x = nn.Sequential(nn.Linear(1, 1, bias=False)), torch.arange(-8, 12)[:, None] * 0.125
    nn.init.constant_(net[0].weight, 1.0)
    compressed = compress(net, Choice("fixed2.4"))
    given = Inputs({"0": Activations("int3/asym", "static")}, {"0": Range(-0.75, 1.0)})  # zero-point 3
    made, _ = graph_of(compressed, net, Example({"input": x}), given)
    wanted = fake_round(x, torch.tensor(-0.75), torch.tensor(1.0), "int3/asym").numpy()
    assert np.array_equal(run_qonnx(made, {"input": x.numpy()})[0], wanted)
    assert [node.op_type for node in made.graph.node].count("IntQuant") == 3


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("table3", "layer 0: table3 cannot be written as QONNX: its numbers are looked up"),
        ("int4/g8", "and this one has groups"),
        ("nf4", "looked up"),
        ("int4+2%", "looked up or added"),
    ],
)
def test_what_no_node_gives_is_refused(spec, why):
    net = nn.Sequential(nn.Linear(16, 4))
    compressed = compress(net, Choice(spec))
    with pytest.raises(ValueError, match=why):
        graph_of(compressed, net, Example({"input": normal(2, 16)}))


def test_inputs_rounded_token_by_token_are_refused():
    with pytest.raises(ValueError, match="have a range for every token"):
        Inputs({"0": Activations("int8")}, {"0": Range(-1, 1)})
    with pytest.raises(ValueError, match="have no range"):
        Inputs({"0": Activations("int8", "static")})
    with pytest.raises(ValueError, match="a step that is a power of two needs"):
        Activations("int8", "token", step="power")


@pytest.mark.parametrize("format", ["int6", "int5/narrow", "int6/asym", "fp8-e4m3"])
@pytest.mark.parametrize("way", ["minmax", "mse", "percentile"])
def test_a_step_of_a_power_of_two_is_one(format, way):
    x = torch.cat([normal(3000), -0.2 * normal(3000).abs()])
    seen = torch.cat([x, x.min()[None], x.max()[None]])
    how = Activations(format, "static", way, step="power")
    own = ranges({"a": seen}, how)["a"]
    free = ranges({"a": seen}, Activations(format, "static", way))["a"]
    kind = nodes_format(format)
    scale = (own.high - own.low) / kind if "asym" in format else own.high / kind
    assert power(scale) is not None
    assert own.high / free.high <= 2.1
    if way == "minmax":
        assert own.high >= free.high * (1 - 1e-6) - scale
    inside = fake_round(x, torch.tensor(own.low), torch.tensor(own.high), format)
    if "int" in format:
        assert torch.equal(inside / scale, torch.round(inside / scale))


def nodes_format(format):
    """The largest level."""
    return {"int6": 31, "int5/narrow": 15, "int6/asym": 63, "fp8-e4m3": 448}[format]


def test_resources_are_those_worked_out_by_hand():
    layers = [(16, 64), (64, 32), (32, 32), (32, 5)]
    every = [bit_operations(n, m, 6, 6) for n, m in layers]
    assert sum(n * m for n, m in layers) == 4256
    assert sum(one for one, _ in every) == 153_216
    assert sum(both for _, both in every) == 226_592

    net = nn.Sequential(nn.Linear(4, 2), nn.Conv1d(1, 1, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, -2.0, 0.0, 1.0], [-3.0, 2.0, 3.0, 0.0]]))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.conv = net

        def forward(self, x):
            return self.conv(self.linear(x).new_ones(x.shape[0], 1, 7))

    both = Both()
    compressed = compress(both, Choice("int3/tensor/scale-fp32"))
    given = Inputs({"linear": Activations("int4", "static")}, {"linear": Range(-7.0, 7.0)})
    linear, conv = resources(compressed, both, normal(1, 4), given)
    assert (linear.multiply_adds, linear.zeros, linear.shifts, linear.multipliers) == (8, 2, 3, 3)
    assert linear.accumulator_bits == 4 + 3 + 2
    # rows (3, -2, 0, 1) and (-3, 2, 3, 0), inputs -8 to 7: most is 3*7 + 2*8 + 7 = 44 and 3*8 + 14 + 21 = 59, least
    # -24 - 14 - 8 = -46 and -21 - 16 - 24 = -61: seven bits
    assert linear.exact_accumulator_bits == 7
    assert linear.bops == 6 * 3 * 4
    assert linear.bops_with_sums == 6 * 12 + 8 * (3 + 4 + 2)
    assert (conv.multiply_adds, conv.fan_in, conv.input_bits, conv.accumulator_bits) == (15, 3, 32, None)
    assert totals([linear, conv])["multiply_adds"] == 23


def test_the_command_writes_runs_and_reports(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))\n    return net, torch.randn(4, 16)\n"
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    how = Activations("int8", "static", step="power")
    choices = {"0": Choice("int6/tensor/scale-m1"), "2": Choice("int4/scale-m1")}
    save(compress(net, choices, batches=[torch.randn(50, 16)], activations=how), tmp_path / "small")
    words = ["export", "small", "--to", "a.qonnx.onnx", "--model", "nets.py:make", "--biases", "steps"]
    code, printed = run_command([*words, "--json", "a.json"], tmp_path)
    assert code == 0, printed
    assert re.search(r"largest difference +0\.0", printed)
    assert "multipliers" in printed
    assert "6 IntQuant" in printed
    found = run_qonnx(tmp_path / "a.qonnx.onnx", {"input": np.zeros((1, 16), np.float32)})[0]
    assert found.shape == (1, 3)
    for more, why in (
        (["--to", "a.qonnx.onnx", "--tokenizer", "x"], "are of GGUF and ONNX files"),
        (["--to", "a.onnx", "--biases", "steps"], "--biases is of"),
        (["--to", "a.qonnx.onnx", "--biases", "no"], "needed --biases exact or steps"),
    ):
        code, printed = run_command(["export", "small", *more], tmp_path)
        assert code == 2, printed
        assert why in " ".join(printed.split())

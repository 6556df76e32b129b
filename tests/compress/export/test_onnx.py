"""ONNX files of small models, run by ONNX Runtime."""

import pytest

torch = pytest.importorskip("torch", reason="compression needs torch")
onnx = pytest.importorskip("onnx", reason="ONNX files are written by the package onnx")
pytest.importorskip("onnxscript", reason="torch traces to ONNX by the package onnxscript")
pytest.importorskip("onnxruntime", reason="ONNX files are run by the package onnxruntime")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.compress import Choice, compress, save  # noqa: E402
from isoloss.compress.export import Example, run_onnx, write_onnx  # noqa: E402
from isoloss.compress.export.check import example_of  # noqa: E402
from isoloss.compress.export.matmul import MatMulNBits  # noqa: E402
from tests.compress.models import filled  # noqa: E402
from tests.docs.pages import run_command  # noqa: E402

CLOSE = 2e-5  # of the largest output: float32 sums in another order
LINEAR = {
    "int4/g32": "MatMulNBits 4 bits",
    "int4/g32/asym": "MatMulNBits 4 bits",
    "int3": "MatMulNBits 4 bits",
    "int2/g16": "MatMulNBits 2 bits",
    "int8/asym": "MatMulNBits 8 bits",
    "int5/g48": "MatMulNBits 8 bits",
    "int1/bipolar": "MatMulNBits 2 bits",
    "int4/g20": "DequantizeLinear int4",
    "int4/g20/asym": "DequantizeLinear uint4",
    "int8/bipolar": "Gather uint8",
    "table3": "GatherElements uint4",
    "table4/g32": "GatherElements uint4",
    "table2/tensor": "Gather uint4",
    "nf4/g32": "Gather uint4",
    "nvfp4": "Gather uint4",
    "fp8-e4m3": "Gather uint8",
    "bf16": "Cast",
    "vq4-16": "Gather uint4",
    "int4/g32+2%": "DequantizeLinear int4, ScatterND",
    "table3+lr2:int8": "GatherElements uint4, MatMul",
}


class Side(nn.Module):
    """A linear layer for each format, side by side."""

    def __init__(self, count):
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(100, 12) for _ in range(count))

    def forward(self, x):
        return torch.stack([one(x) for one in self.each])


class Mixed(nn.Module):
    """Convolution, tied embedding and head, experts, a bias."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 32)
        self.mix = nn.Conv1d(32, 32, 3, padding=1, groups=2)
        self.experts = nn.Parameter(torch.zeros(3, 32, 32))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 40)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        x = x + torch.einsum("btd,eod->bto", x, self.experts).tanh()
        return self.head(self.norm(x))


def promised(model, x):
    with torch.no_grad():
        return model(x).numpy()


def test_every_format_gives_the_promised_outputs(tmp_path):
    net = filled(Side(len(LINEAR))).eval()
    made = compress(net, {f"each.{i}": Choice(spec) for i, spec in enumerate(LINEAR)})
    x = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    wanted = promised(net, x)
    with torch.no_grad():
        for one in net.each:
            one.weight.fill_(1.0)  # what is encoded counts, not what the model has
    before = list(net.each)
    written = write_onnx(made, net, tmp_path / "side.onnx", Example({"x": x[:2]}))
    assert list(written.types.values()) == list(LINEAR.values())
    assert list(net.each) == before
    found = run_onnx(tmp_path / "side.onnx", {"x": x})[0]  # of another length than the example
    for i, spec in enumerate(LINEAR):
        np.testing.assert_allclose(found[i], wanted[i], atol=CLOSE * np.abs(wanted[i]).max(), err_msg=spec)
    file = onnx.load(tmp_path / "side.onnx")
    products = [node for node in file.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == sum(kind.startswith("MatMulNBits") for kind in LINEAR.values())
    for node in products:
        assert {one.name: one.i for one in node.attribute}["accuracy_level"] == 1
    kinds = {one.data_type for one in file.graph.initializer}
    assert {onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT16} <= kinds
    assert b".py" not in (tmp_path / "side.onnx").read_bytes()  # where each line of code lies
    assert written.bytes == (tmp_path / "side.onnx").stat().st_size
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in file.graph.initializer}
    assert {w.dtype.name for n, w in stored.items() if n.endswith("_int4")} == {"int4"}


def test_convolutions_tied_weights_and_experts(tmp_path):
    net = filled(Mixed()).eval()
    choices = {"embedding": Choice("int8/g16"), "mix": Choice("int4/asym"), "*": Choice("int4/g32")}
    made = compress(net, choices)
    assert len(made.encoded) == 5
    ids = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    wanted = promised(net, ids)
    written = write_onnx(made, net, tmp_path / "a.onnx", example_of(net, ids[:1, :5]), matmul="qdq")
    assert set(written.types.values()) == {
        "DequantizeLinear int8",
        "DequantizeLinear uint4",
        "DequantizeLinear int4",
    }
    found = run_onnx(tmp_path / "a.onnx", {"ids": ids})[0]
    np.testing.assert_allclose(found, wanted, atol=CLOSE * np.abs(wanted).max())

    def loss(logits):
        return float(
            nn.functional.cross_entropy(torch.tensor(logits[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        )

    assert loss(found) == pytest.approx(loss(wanted), abs=1e-6)
    names = [one.name for one in onnx.load(tmp_path / "a.onnx").graph.initializer]
    assert sum(name.endswith(".numbers") for name in names) == 1  # embedding and head share theirs


def test_a_product_stores_what_the_operator_documents():
    layer = nn.Linear(32, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(32).remainder(16).sub(8)[None] * 0.5)
    made = compress(nn.Sequential(layer), Choice("int4/g16"))
    encoded = made.encoded["0"]
    levels = (encoded.decode() / encoded.grid().spread(encoded.grid().scale)).round().int()[0]
    product = MatMulNBits(encoded, None, 4)
    assert product.settings == {"K": 32, "N": 1, "bits": 4, "block_size": 16, "accuracy_level": 4}
    assert product.codes.shape == (1, 2, 8)
    low, high = product.codes[0].int() & 15, product.codes[0].int() >> 4  # the first of two in the low bits
    assert torch.equal(torch.stack([low, high], dim=2).flatten() - 8, levels)


def test_what_cannot_be_traced_is_refused(tmp_path):
    net = nn.Sequential(nn.Linear(32, 4))
    made = compress(net, Choice("int4/g32"))
    with pytest.raises(ValueError, match="needs an example"):
        write_onnx(made, net, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="accuracy 1 to 4, got 'nbits' and 7"):
        write_onnx(made, net, tmp_path / "a.onnx", accuracy=7)
    with pytest.raises(ValueError, match="has no layer 0 of shape"):
        write_onnx(
            made, nn.Sequential(nn.Linear(16, 4)), tmp_path / "a.onnx", Example({"input": torch.zeros(2, 16)})
        )
    with pytest.raises(ValueError, match="an ONNX file takes tensors alone"):
        example_of(net, {"input": 3})


def test_the_command_says_what_was_written_and_the_difference(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(4, 64)\n"
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    save(compress(net, {"0": Choice("int4/g32"), "2": Choice("table3")}), tmp_path / "small")
    code, printed = run_command(["export", "small", "--to", "a.onnx", "--model", "nets.py:make"], tmp_path)
    assert code == 0, printed
    assert "MatMulNBits 4 bits" in printed
    assert "read back by" in printed
    for words, why in (
        (["--to", "a.bin"], "ends in .gguf, .onnx"),
        (["--to", "a.gguf", "--matmul", "qdq"], "are of ONNX files"),
        (["--to", "a.onnx", "--tokenizer", "x"], "are of GGUF files"),
        (["--to", "a.onnx"], "as only you can make it"),
    ):
        code, printed = run_command(["export", "small", *words], tmp_path)
        assert code == 2, printed
        assert why in printed

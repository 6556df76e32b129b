"""Counts against FLOPs by hand, torch's own counter where that is right, and formulas."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks.flop_cases import CASES, Case  # noqa: E402
from isoloss.measure.flops import count, counting  # noqa: E402
from isoloss.measure.formulas import of_model  # noqa: E402
from isoloss.measure.operators import FORMULAS, FREE, Work, is_free, work_of  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def square(z, _):
    return z.square().mean()


def subject_of(case: Case) -> Subject:
    for package in case.needs:
        pytest.importorskip(package)
    torch.manual_seed(0)
    return Subject(case.make(), [(case.inputs, torch.zeros(1))], square, outputs=case.outputs)


def by_path(counter, backward):
    out: dict[str, int] = {}
    for (path, back, _), cell in counter.cells.items():
        if back == backward:
            out[path] = out.get(path, 0) + cell[0]
    return out


# By hand


@pytest.mark.filterwarnings("ignore")  # of libraries that are imported
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_and_backward_are_the_count_by_hand(case):
    flops = count(subject_of(case))
    assert flops.forward == case.forward
    assert flops.backward == case.backward
    assert flops.step.total().again == case.again
    assert flops.forward_backward == case.forward + case.backward
    assert not flops.uncounted
    assert not flops.findings  # and thus every layer agrees with the formula of its kind


def test_a_layer_written_out():
    # 6 rows, 5 -> 7 -> 3. Forward: 6*5*7 and 6*7*3 multiply-adds. Backward: the gradients of both weights cost the
    # same again, that of the hidden layer 6*3*7; the input is data.
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    flops = count(Subject(net, [(torch.ones(6, 5), torch.zeros(1))], square))
    assert flops.forward == 2 * 210 + 2 * 126
    assert flops.backward == 2 * 210 + 2 * (126 + 126)
    assert flops.layers() == [("0", 420, 840), ("2", 252, 756)]
    assert [(m.name, m.of, m.value) for m in flops.measurements()] == [
        ("flops_forward", "", 672 / 6),
        ("flops_backward", "", 924 / 6),
        ("flops_step", "", 1596 / 6),
        ("flops_forward", "0", 70.0),
        ("flops_step", "0", 140.0),
        ("flops_forward", "2", 42.0),
        ("flops_step", "2", 126.0),
    ]


def test_fused_attention_written_out():
    # 2 sequences, 3 heads, 5 queries, 7 keys of size 11, values of size 11.
    q, k = torch.randn(2, 3, 5, 11, requires_grad=True), torch.randn(2, 3, 7, 11)
    with counting(nn.Identity()) as counter:
        F.scaled_dot_product_attention(q, k, k).sum().backward()
    once = 2 * 2 * 3 * 5 * 7 * 11
    assert counter.total(backward=False) == Work(2 * once)
    assert counter.total(backward=True) == Work(5 * once, again=once)


def test_grouped_queries_cost_as_many_heads_as_there_are_queries():
    q, k = torch.randn(2, 4, 8, 16), torch.randn(2, 2, 8, 16)
    with counting(nn.Identity()) as counter:
        F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    assert counter.total().flops == 2 * 2 * (2 * 4 * 8 * 8 * 16)


def test_what_a_causal_mask_throws_away_is_said_and_counted():
    q = torch.randn(1, 1, 8, 4)
    with counting(nn.Identity()) as counter:
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    whole = 2 * 2 * 8 * 8 * 4
    assert counter.total() == Work(whole, masked=whole * 28 // 64)  # 7 + 6 + ... + 1 of 64 scores


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_is_not_computed_on_the_fast_path():
    d, hidden, lengths = 16, 32, (3, 6, 6)
    layer = nn.TransformerEncoderLayer(d, 4, hidden, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    mask = torch.arange(6)[None] >= torch.tensor(lengths)[:, None]
    with counting(encoder) as counter, torch.no_grad():
        encoder(torch.randn(3, 6, d), src_key_padding_mask=mask)
    assert counter.total().flops == sum(n * (8 * d * d + 4 * n * d + 4 * d * hidden) for n in lengths)


def test_packed_sequences_cost_their_own_lengths():
    lstm, lengths = nn.LSTM(5, 7), [6, 4, 2]
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(6, 3, 5), lengths)
    with counting(lstm) as counter, torch.no_grad():
        lstm(packed)
    assert counter.total().flops == 2 * sum(lengths) * 4 * 7 * (5 + 7) == counter.expected[""]


def test_a_bilinear_layer():
    # (4) x (6, 4, 5) summed over 4 for each of 3 rows and 6 outputs, then over 5.
    layer = nn.Bilinear(4, 5, 6)
    with counting(layer) as counter:
        layer(torch.ones(3, 4), torch.ones(3, 5))
    assert counter.total().flops == 2 * 3 * 6 * 4 * 5 + 2 * 3 * 6 * 5


def test_sparse_products_cost_their_entries():
    eye, x = torch.eye(16), torch.ones(16, 3)
    with counting(nn.Identity()) as counter:
        eye.to_sparse() @ x
        torch.sparse.mm(eye.to_sparse(), x)
    assert counter.total().flops == 2 * (2 * 16 * 3)
    assert not counter.uncounted()


# Against torch's own counter, where that sees everything


PLAIN = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), (3, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (2, 4, 11)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, dilation=2), (2, 2, 5, 6, 7)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 11)),
    "rnn": (lambda: nn.RNN(5, 7, 2), (4, 3, 5)),
    "gru cell": (lambda: nn.GRUCell(5, 7), (3, 5)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0), (2, 5, 16)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_operators_agree_with_torch(name):
    make, shape = PLAIN[name]
    model, x = make(), torch.randn(shape)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as theirs:
            out = model(x.requires_grad_())
            (out[0] if isinstance(out, tuple) else out).sum().backward()
        with counting(model) as ours:
            out = model(x)
            (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert ours.total().flops == theirs.get_total_flops() > 0


def test_the_gradient_of_a_grouped_weight_is_not_counted_once_a_group():
    conv = nn.Conv2d(8, 8, 3, groups=4)
    with counting(conv) as counter:
        conv(torch.randn(1, 8, 6, 6)).sum().backward()
    once = 2 * (8 * 4 * 4) * (2 * 9)
    assert (counter.total(backward=False).flops, counter.total(backward=True).flops) == (once, once)


# Where work is booked


def test_backward_work_is_booked_to_the_module_whose_forward_made_it():
    class Shift(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ w.T, x.T @ g

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 3))

        def forward(self, x):
            return Shift.apply(x, self.w)

    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Own(), nn.Linear(3, 2)))
    with counting(net) as counter:
        (net(torch.ones(5, 4)) @ torch.ones(2, 2)).sum().backward()
    assert by_path(counter, False) == {"0": 160, "1.0": 120, "1.1": 60, "(outside)": 40}
    assert by_path(counter, True) == {"0": 160, "1.0": 240, "1.1": 120, "(outside)": 40}
    assert counter.total(below="1").flops == 120 + 60 + 240 + 120


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the pass without gradients
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_counted_as_work_done_again(reentrant):
    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.body = (
                nn.Embedding(10, 4),
                nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
            )

        def forward(self, x):
            return checkpoint(self.body, self.read(x), use_reentrant=reentrant)

    flops = count(Subject(Saving(), [(torch.arange(5), torch.zeros(1))], square))
    first, last = 2 * 5 * 4 * 8, 2 * 5 * 8 * 3
    again = first + last if reentrant else first  # else it stops as soon as it has what was missing
    assert flops.step.total().again == again
    assert flops.backward == 2 * (first + last) + again
    booked = by_path(flops.step, True)
    assert booked["body.0"] == 3 * first
    assert booked["body.2"] == 2 * last + (last if reentrant else 0)


def test_a_module_that_raises_does_not_keep_the_work_of_others():
    class Bad(nn.Module):
        def forward(self, x):
            raise ValueError

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = Bad(), nn.Linear(4, 4)

        def forward(self, x):
            try:
                self.bad(x)
            except ValueError:
                x = x @ torch.ones(4, 4)
            return self.good(x)

    model = Outer()
    with counting(model) as counter:
        model(torch.ones(2, 4))
    assert by_path(counter, False) == {"": 64, "good": 64}


def test_gradients_modes_and_hooks_are_as_before():
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    net[0].weight.grad = torch.full((2, 3), 7.0)
    count(Subject(net, [(torch.ones(4, 3), torch.zeros(1))], square))
    assert net[0].weight.grad.eq(7).all()
    assert net[0].bias.grad is None
    assert net.training
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_compiled_model_is_counted_as_written():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    subject = Subject(torch.compile(net, backend="eager"), [(torch.ones(5, 3), torch.zeros(1))], square)
    assert count(subject).forward == 2 * 5 * (12 + 8)


# What is not known


def test_unknown_operators_that_work_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            return (
                torch.cdist(x, x)
                + torch.fft.fft(x).real.sum()
                + torch.linalg.inv(x.T @ x + torch.eye(4)).sum()
            )

    net = nn.Sequential(nn.Linear(4, 4), Odd())
    flops = count(Subject(net, [(torch.randn(3, 4), torch.zeros(1))], square), backward=False)
    assert [(u.name, u.calls, u.where) for u in flops.uncounted] == [
        ("aten::_cdist_forward", 1, ("1",)),
        ("aten::_fft_r2c", 1, ("1",)),
        ("aten::linalg_inv_ex", 1, ("1",)),
    ]
    (finding,) = flops.findings
    assert finding.code == "flops-uncounted"
    assert all("not counted: aten::_cdist_forward" in m.how for m in flops.measurements())


def test_own_operators_take_own_formulas():
    @torch.library.custom_op("isoloss_test::scan", mutates_args=())
    def scan(x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(0) @ torch.ones(4, 4)

    class Scan(nn.Module):
        def forward(self, x):
            return torch.ops.isoloss_test.scan(x)

    subject = Subject(Scan(), [(torch.ones(3, 4), torch.zeros(1))], square)
    assert count(subject, backward=False).uncounted[0].name == "isoloss_test::scan"
    own = {"isoloss_test::scan": lambda given, out: Work(2 * given["x"].numel() * out.shape[1])}
    flops = count(subject, backward=False, own=own)
    assert (flops.forward, flops.uncounted) == (2 * 3 * 4 * 4, ())


def test_a_count_that_the_formula_does_not_bear_out_is_a_finding(monkeypatch):
    monkeypatch.delitem(FORMULAS, "aten::mkldnn_rnn_layer")
    monkeypatch.setattr("isoloss.measure.operators.FREE", FREE | {"mkldnn_rnn_layer"})
    lstm = nn.LSTM(5, 7)
    flops = count(
        Subject(lstm, [(torch.ones(3, 2, 5), torch.zeros(1))], lambda z, _: z[0].sum()), backward=False
    )
    (finding,) = flops.findings
    assert finding.code == "flops-off-formula"
    assert "counted 0, formula 4032" in finding.text  # 2 * 6 * 28 * 12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case", [case for case in CASES if "Hugging" in case.name], ids=lambda case: case.name
)
def test_layers_of_known_models_are_checked_as_a_whole(case, monkeypatch):
    subject = subject_of(case)
    checked = of_model(subject, count(subject, backward=False).inference)
    if "Mixtral" in case.name:  # what experts cost is not in a configuration
        assert checked is None
        return
    counted, formula = checked
    assert counted == formula > 0
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    monkeypatch.delitem(FORMULAS, f"aten::{fused}")
    monkeypatch.setattr("isoloss.measure.operators.FREE", FREE | {fused})
    (finding,) = count(subject, backward=False).findings
    assert finding.code == "flops-off-formula"
    assert "all layers" in finding.text


# Operators of other devices, from their arguments alone


def call(operator, out=None, **given):
    """Work of a call that is not made; arguments that are not given are None."""
    args = [given.get(argument.name, argument.default_value) for argument in operator._schema.arguments]
    return work_of(operator, tuple(args), {}, out, {})


@pytest.mark.parametrize("kind", ["flash", "efficient", "cudnn"])
def test_fused_attention_on_a_gpu(kind):
    q, k = torch.empty(2, 3, 5, 11, device="meta"), torch.empty(2, 3, 7, 11, device="meta")
    name, once = f"_scaled_dot_product_{kind}_attention", 2 * 2 * 3 * 5 * 7 * 11
    forward, backward = (getattr(torch.ops.aten, name + ending).default for ending in ("", "_backward"))
    assert call(forward, query=q, key=k, value=k, is_causal=False) == Work(2 * once)
    assert call(backward, query=q, key=k, value=k, is_causal=False) == Work(5 * once, again=once)
    masked = (7 * 5 - (1 + 2 + 3 + 4 + 5)) / 35
    assert call(forward, query=q, key=k, value=k, is_causal=True).masked == round(2 * once * masked)


def test_a_recurrent_layer_on_a_gpu():
    sizes = [(28, 5), (28, 7), (28,), (28,)]
    given = {
        "input": torch.empty(6, 3, 5, device="meta"),
        "weight": [torch.empty(size, device="meta") for size in sizes],
    }
    once = 2 * 18 * 28 * 12
    assert call(torch.ops.aten._cudnn_rnn.default, **given, batch_sizes=[]) == Work(once)
    assert call(torch.ops.aten._cudnn_rnn_backward.default, **given, batch_sizes=[]) == Work(2 * once)
    assert call(torch.ops.aten._cudnn_rnn.default, **given, batch_sizes=[3, 2]) == Work(2 * 5 * 28 * 12)


@pytest.mark.parametrize(
    ("left", "right", "flops"),
    [
        ((12, 5), (4, 5, 7), 2 * 12 * 5 * 7),  # rows in groups, a matrix for each
        ((4, 6, 5), (5, 12), 2 * 6 * 5 * 12),  # columns in groups
        ((6, 12), (12, 7), 2 * 6 * 12 * 7),  # what is summed in groups
        ((4, 6, 5), (4, 5, 7), 2 * 4 * 6 * 5 * 7),
    ],
)
def test_grouped_products(left, right, flops):
    a, b = torch.empty(left, device="meta"), torch.empty(right, device="meta")
    assert call(torch.ops.aten._grouped_mm.default, self=a, mat2=b) == Work(flops)


@pytest.mark.parametrize(
    "name", ["mm", "convolution", "_cdist_forward", "_fft_c2c", "linalg_qr", "_cudnn_rnn"]
)
def test_work_is_not_free(name):
    packet = getattr(torch.ops.aten, name)
    assert not any(is_free(getattr(packet, overload)) for overload in packet.overloads())


@pytest.mark.parametrize(
    "name", ["relu_", "native_layer_norm_backward", "embedding", "index_add_", "_softmax_backward_data"]
)
def test_elementwise_work_is_free(name):
    assert is_free(getattr(torch.ops.aten, name).default)

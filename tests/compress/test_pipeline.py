"""The order of calibration against a plain implementation; resumed work against work that was never cut off."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress.layers import find  # noqa: E402
from isoloss.compress.pipeline import compress  # noqa: E402
from isoloss.compress.recipe import Choice  # noqa: E402
from isoloss.compress.replay import calibrating, survey  # noqa: E402
from isoloss.compress.solvers.gptq import Gptq  # noqa: E402
from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure.subject import call  # noqa: E402
from tests.compress import models  # noqa: E402
from tests.compress.models import Experts, Language, Noisy, Pair, Skips, convolutions, filled  # noqa: E402

GPTQ = Choice("int3/g4", "gptq")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(count=3):
    return [torch.randint(0, 13, (6, 9), generator=torch.Generator().manual_seed(i)) for i in range(count)]


CASES = {
    "blocks": (Language, tokens()),
    "pair": (Pair, [(normal(4, 3, 8, seed=i), normal(4, 3, 8, seed=9 + i)) for i in range(2)]),
    "skips": (Skips, [normal(20, 8, seed=i) for i in range(2)]),
    "convolutions": (convolutions, [normal(4, 3, 9, 9, seed=i) for i in range(2)]),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    make, batches = CASES[request.param]
    return (lambda: filled(make()).eval()), batches


def seen_by_the_solver(monkeypatch):
    """Layer -> the moments that the solver was given."""
    seen = {}
    real = Gptq.solve

    def solve(self, weight, format, statistics):
        if statistics.layer != "trial":
            seen[statistics.layer] = statistics
        return real(self, weight, format, statistics)

    monkeypatch.setattr(Gptq, "solve", solve)
    return seen


def plainly(model, name, batches):
    """Moments of the inputs of a linear layer in float64, with hooks, every batch through the whole model."""
    caught = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: caught.append(args[0].clone()))
    with torch.no_grad():
        for inputs in batches:
            call(model, inputs)
    hook.remove()
    rows = torch.cat([x.flatten(0, -2) for x in caught]).double()
    return rows.T @ rows / len(rows)


def test_a_layer_is_calibrated_on_what_the_compressed_stages_before_it_give(case, monkeypatch):
    make, batches = case
    seen = seen_by_the_solver(monkeypatch)
    model = make()
    with calibrating(model):
        plan = survey(model, find(model).layers, batches[0])
    made = compress(model, GPTQ, batches)
    naive, checked = make(), 0
    for stage in plan.stages:
        for layer in stage.layers:
            if layer.kind == "linear":
                expected = plainly(naive, layer.name, batches)
                torch.testing.assert_close(
                    seen[layer.name].hessian.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.max())
                )
                checked += 1
        for layer in find(naive).layers:
            if layer.name in {one.name for one in stage.layers}:
                layer.put(made.encoded[layer.name].decode())
    assert checked == sum(1 for layer in find(naive).layers if layer.kind == "linear")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), naive.parameters(), strict=True))


def test_each_layer_of_a_block_can_be_calibrated_on_those_before_it(monkeypatch):
    seen = seen_by_the_solver(monkeypatch)
    batches = tokens()
    model = filled(Language())
    made = compress(model, {"blocks.*": GPTQ}, batches, within="layer")
    naive = filled(Language())
    for block in range(3):
        for step in (("up", "gate"), ("down",)):
            names = [f"blocks.{block}.{part}" for part in step]
            for name in names:
                expected = plainly(naive, name, batches)
                torch.testing.assert_close(seen[name].hessian.double(), expected, rtol=1e-4, atol=1e-5)
            for name in names:
                find(naive)[name].put(made.encoded[name].decode())


def test_stages_follow_the_run_and_each_block_runs_a_fixed_number_of_times():
    batches, told = tokens(2), []
    for blocks in (3, 6):
        model = filled(Language(blocks=blocks))
        models.RUNS.clear()
        told.clear()
        compress(model, {"*": GPTQ}, batches, progress=lambda *said: told.append(said))
        runs = [models.RUNS.count(str(i)) for i in range(blocks)]
        # Once in the survey, and for each batch: the tied head, statistics, the output for the next block.
        assert runs == [1 + 3 * 2] * (blocks - 1) + [1 + 2 * 2]
    assert told[:3] == [("embedding", 0, 19), ("blocks.0", 1, 19), ("blocks.1", 4, 19)]
    assert told[-1] == ("done", 19, 19)


@pytest.mark.parametrize(
    ("name", "keep", "stages"),
    [
        ("blocks", "last", ["embedding", "blocks.0", "blocks.1", "blocks.2"]),
        ("pair", "chain", ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]),
        ("skips", "all", ["down.0", "down.1", "down.2", "up.0", "up.1", "up.2"]),
        ("convolutions", "last", ["0.0", "1", "3", "7"]),
    ],
)
def test_as_little_is_kept_as_the_model_needs(name, keep, stages):
    make, batches = CASES[name]
    model = filled(make())
    with calibrating(model):
        plan = survey(model, find(model).layers, batches[0])
    assert (plan.keep, [stage.name for stage in plan.stages]) == (keep, stages)


def test_a_model_whose_runs_disagree_is_one_stage_and_a_note_says_so():
    made = compress(filled(Noisy()), GPTQ, [normal(30, 8)])
    assert made.recipe.notes[0].startswith("blocks cannot be run one at a time")


def test_the_model_is_left_as_it_was_but_for_its_weights():
    model = filled(Language()).train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    keys = [set(module.__dict__) for module in model.modules()]
    made = compress(model, GPTQ, tokens())
    assert [module.training for module in model.modules()] == modes
    assert [set(module.__dict__) for module in model.modules()] == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for layer in find(model).layers:
        assert torch.equal(layer.matrix(), made.encoded[layer.name].decode())
    other = made.apply(filled(Language()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


class _CutOff(Exception):
    pass


@pytest.mark.parametrize("within", ["block", "layer"])
def test_resumed_work_gives_the_same_bits(case, within, tmp_path, monkeypatch):
    make, batches = case
    whole = compress(make(), GPTQ, batches, within=within)
    count = 0

    def cut(what, done, of):
        nonlocal count
        count += 1
        if count == 3:
            raise _CutOff

    with pytest.raises(_CutOff):
        compress(make(), GPTQ, batches, within=within, folder=tmp_path, progress=cut)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert len(before) == 2
    seen = seen_by_the_solver(monkeypatch)
    model = make()
    again = compress(model, GPTQ, batches, within=within, folder=tmp_path)
    assert 0 < len(seen) < len(whole.encoded)
    for name, one in whole.encoded.items():
        other = again.encoded[name].tensors()
        assert all(torch.equal(tensor, other[part]) for part, tensor in one.tensors().items())
        assert again.recipe.layers[name].error == whole.recipe.layers[name].error
    assert again.recipe.notes == whole.recipe.notes
    seen.clear()
    compress(make(), GPTQ, batches, within=within, folder=tmp_path)
    assert not seen  # all is there


def test_stages_of_other_work_are_refused(tmp_path):
    batches = tokens()
    compress(filled(Language()), GPTQ, batches, folder=tmp_path)
    for other in (
        lambda: compress(filled(Language()), Choice("int4", "gptq"), batches, folder=tmp_path),
        lambda: compress(filled(Language(), seed=1), GPTQ, batches, folder=tmp_path),
        lambda: compress(filled(Language()), GPTQ, tokens(2), folder=tmp_path),
    ):
        with pytest.raises(ValueError, match="stages of another model, other data or other choices"):
            other()
    (tmp_path / "stage-0000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"is no finished stage.*Delete it"):
        compress(filled(Language()), GPTQ, batches, folder=tmp_path)


def test_without_data_errors_are_of_the_weights_and_work_resumes(tmp_path):
    made = compress(filled(Language()), Choice("int4"), folder=tmp_path)
    again = compress(filled(Language()), Choice("int4"), folder=tmp_path)
    assert made.errors == again.errors
    net = filled(Language())
    for layer in find(net).layers:
        off = made.encoded[layer.name].decode() - layer.matrix()
        assert made.recipe.layers[layer.name].error_of == "weight"
        ratio = float(off.square().sum() / layer.matrix().square().sum())
        assert made.errors[layer.name] == pytest.approx(ratio, rel=1e-5)


def test_errors_are_those_of_the_outputs():
    x = normal(40, 8)
    net = nn.Linear(8, 5, bias=False)
    before = net(x).detach()
    made = compress(net, GPTQ, [x])
    off = net(x).detach() - before
    assert made.recipe.layers["model"].error_of == "output"
    assert made.errors["model"] == pytest.approx(float(off.square().sum() / before.square().sum()), rel=1e-4)
    table = nn.Embedding(9, 8)
    ids = torch.tensor([1, 1, 4])
    before = table(ids).detach()
    made = compress(table, Choice("int4", "gptq"), [ids])
    off = table(ids).detach() - before
    assert made.recipe.layers["model"].error_of == "lookup"
    assert made.errors["model"] == pytest.approx(float(off.square().sum() / before.square().sum()), rel=1e-4)
    assert made.recipe.layers["model"].solver == "nearest"
    assert made.recipe.notes == (
        "model: they are looked up and multiply nothing, so they are rounded to nearest and not by gptq",
    )


def test_names_and_patterns_choose_and_the_rest_is_kept_with_a_reason():
    net = filled(Language())
    before = copy.deepcopy(net)
    made = compress(net, {"blocks.1.*": None, "blocks.2.up": Choice("int8"), "blocks.*": GPTQ}, tokens())
    assert made.recipe.layers["blocks.2.up"].format == "int8"
    assert made.recipe.layers["blocks.2.down"].format == "int3/g4"
    assert made.recipe.left["embedding.weight"] == "kept, as asked"
    assert made.recipe.left["blocks.1.up.weight"] == "kept, as asked"
    assert made.recipe.left["norm.bias"] == "a bias"
    assert torch.equal(net.blocks[1].up.weight, before.blocks[1].up.weight)
    again = compress(copy.deepcopy(before), made.recipe.choices(), tokens())
    assert again.errors == made.errors


def test_sizes_are_the_sum_of_what_is_stored():
    net = filled(Language())
    made = compress(net, {"blocks.*": GPTQ}, tokens())
    assert made.weights == 3 * 3 * 8 * 16
    assert made.bits == sum(one.bits for one in made.encoded.values())
    rest = [
        p
        for name, p in net.named_parameters()
        if not name.endswith(("up.weight", "gate.weight", "down.weight"))
    ]
    assert made.plain_bytes == 4 * sum(p.numel() for p in rest)  # the tied head once
    assert made.bytes == made.bits // 8 + made.plain_bytes
    assert made.recipe.tied == {"head.weight": "embedding.weight"}


def test_experts_in_one_tensor_are_layers_each_and_may_be_kept_one_by_one():
    net = filled(Experts())
    before = net.up_proj.detach().clone()
    made = compress(net, {"up_proj.1": None, "up_proj.*": GPTQ}, [normal(60, 6)])
    assert list(made.encoded) == ["up_proj.0", "up_proj.2"]
    assert torch.equal(net.up_proj[1], before[1])
    assert not torch.equal(net.up_proj[0], before[0])
    assert torch.equal(made.plain["up_proj.1"], before[1])
    assert made.recipe.left["up_proj.1"] == "kept, as asked"


def test_an_expert_that_no_row_goes_to():
    x = normal(1, 6).expand(20, 6)
    with pytest.raises(NoAnswer, match=r"no calibration data came to up_proj\.\d, up_proj\.\d\. Needed"):
        compress(filled(Experts()), {"up_proj.*": GPTQ}, [x])
    made = compress(filled(Experts()), {"up_proj.*": GPTQ}, [x], unreached="nearest")
    assert sorted(done.solver for done in made.recipe.layers.values()) == ["gptq", "nearest", "nearest"]
    assert any("no calibration data came to them" in note for note in made.recipe.notes)


def test_what_cannot_be_done_is_said_before_anything_changes():
    net = filled(Language())
    with pytest.raises(ValueError, match="no layer is named 'blokcs"):
        compress(net, {"blokcs.*": GPTQ}, tokens())
    with pytest.raises(ValueError, match="at least one layer to compress"):
        compress(net, {"*": None}, tokens())
    with pytest.raises(ValueError, match="at least one calibration batch, got none"):
        compress(net, GPTQ, [])
    with pytest.raises(ValueError, match="solver gptq of embedding needs calibration data"):
        compress(net, GPTQ)
    with pytest.raises(ValueError, match="squeezellm of embedding needs squared gradients"):
        compress(net, Choice("table3", "squeezellm"), tokens())
    with torch.no_grad():
        net.blocks[1].down.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the weight of blocks\.1\.down holds NaN"):
        compress(net, GPTQ, tokens())
    assert torch.equal(net.embedding.weight, filled(Language()).embedding.weight)


def test_a_solvers_refusal_names_the_layer(monkeypatch):
    def solve(self, weight, format, statistics):
        raise ValueError("not this one")

    monkeypatch.setattr(Gptq, "solve", solve)
    with pytest.raises(ValueError, match="embedding: not this one"):
        compress(filled(Language()), GPTQ, tokens())


def test_inputs_that_never_change_are_noted():
    x = normal(40, 8)
    x[:, 2], x[:, 5] = 0, 1
    made = compress(nn.Linear(8, 4), GPTQ, [x])
    assert made.recipe.notes == ("model: of 8 inputs, 2 never change on the calibration data",)
    made = compress(nn.Linear(8, 4), GPTQ, [normal(5, 8)])
    assert "fewer rows than they have inputs" in made.recipe.notes[0]


def test_fisher_weights_reach_the_solver():
    from isoloss.compress.fisher import fisher
    from isoloss.measure import Subject

    net = nn.Linear(8, 4)
    subject = Subject(net, [(normal(20, 8), torch.zeros(20).long())], nn.functional.cross_entropy)
    made = compress(net, Choice("table2", "squeezellm"), [normal(20, 8)], fisher=fisher(subject))
    assert made.recipe.layers["model"].solver == "squeezellm"


def test_a_format_that_the_solver_cannot_fill_is_refused_first():
    models.RUNS.clear()
    with pytest.raises(TypeError, match="the solver gptq cannot fill vq4-16"):
        compress(filled(Language()), Choice("vq4-16", "gptq"), tokens())
    assert not models.RUNS


def test_a_gap_between_finished_stages_is_bridged(tmp_path):
    """Layers between blocks are a stage of their own; work goes on right after one, and with a stage missing."""

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.bridge = nn.Linear(8, 8)

        def forward(self, x):
            x = self.blocks[0](x).tanh()
            x = self.bridge(x).tanh()
            return self.blocks[2](self.blocks[1](x).tanh())

    batches = [normal(30, 8)]
    whole = compress(filled(Between()), GPTQ, batches, folder=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 4
    for gone in (["stage-0002"], ["stage-0003", "stage-0004"], ["stage-0001"], ["stage-0000"]):
        for path in tmp_path.iterdir():
            if path.stem in gone or (gone == ["stage-0003", "stage-0004"] and path.name in names[2:]):
                path.unlink()
        again = compress(filled(Between()), GPTQ, batches, folder=tmp_path)
        assert again.errors == whole.errors


class Stages(nn.Module):
    """Blocks within the parts of a sequence, as networks for pictures have them; wider from part to part."""

    class Stage(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.blocks = nn.Sequential(models.Block(width), models.Block(width))

        def forward(self, x):
            return self.blocks(x)

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([self.Stage(4), self.Stage(8)])

    def forward(self, x):
        return self.parts[1](torch.cat([self.parts[0](x)] * 2, -1))


def test_blocks_that_are_all_of_a_part_are_stages_of_their_own():
    net = filled(Stages())
    with calibrating(net):
        plan = survey(net, find(net).layers, normal(5, 4))
    assert [stage.name for stage in plan.stages] == [
        f"parts.{i}.blocks.{j}" for i in range(2) for j in range(2)
    ]
    assert plan.keep == "last"
    assert not compress(net, GPTQ, [normal(50, 4)]).recipe.notes

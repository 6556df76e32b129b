"""The reference trainer against plain implementations, closed forms and itself after a stop."""

from __future__ import annotations

import math
import sys

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from isoloss.trainers import checkpoint, gpt, gpt_settings, transformer  # noqa: E402

VARYING = {"flops_per_second", "note"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 000 bytes of a small grammar, with its own cache."""
    folder = tmp_path_factory.mktemp("text")
    draw = torch.Generator().manual_seed(0)
    words = ["loss", "width", "depth", "tokens", "is", "a", "law", "of\n", "power", "the"]
    picks = torch.randint(len(words), (9000,), generator=draw).tolist()
    (folder / "words.txt").write_text(" ".join(words[i] for i in picks)[:40000])
    patch = pytest.MonkeyPatch()
    patch.setenv("ISOLOSS_CACHE", str(folder / "cache"))
    yield str(folder / "words.txt")
    patch.undo()


@pytest.fixture
def tiny(data, tmp_path):
    return {
        **{"width": 16, "layers": 2, "tokens": 24 * 64, "batch_tokens": 64, "seq_len": 16, "head_size": 8},
        **{
            "data": data,
            "log_every": 4,
            "noise_every": 3,
            "eval_bytes": 512,
            "dtype": "float32",
            "warmup": 3,
        },
        "folder": str(tmp_path),
    }


def model(dtype=torch.float32, **settings):
    """A model with random weights everywhere, also where training starts at zero."""
    given = {
        "width": 32,
        "layers": 2,
        "tokens": 4096,
        "seq_len": 24,
        "batch_tokens": 24,
        "head_size": 8,
        **settings,
    }
    made = transformer.GPT(gpt.Settings.read(given), dtype)
    draw = torch.Generator().manual_seed(1)
    for weight in made.parameters():
        weight.data.normal_(0, 0.2, generator=draw)
    return made


# --- the model


def plain(m, ids, qk_norm, size):
    """The same model, written the slow way: complex rotation, explicit attention, float64 throughout."""

    def norm(x):
        return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-6)

    x = m.embedding.double()[ids]
    _, length, width = x.shape
    place = torch.arange(length, dtype=torch.float64)[:, None]
    turn = torch.polar(
        torch.ones(1, dtype=torch.float64), place * 10000.0 ** (-torch.arange(size // 2) * 2 / size)
    )

    def rotated(heads):  # (..., length, size): feature i and i + size/2 are one complex number
        z = torch.complex(heads[..., : size // 2], heads[..., size // 2 :]) * turn
        return torch.cat([z.real, z.imag], -1)

    for block in m.layers:
        q, k, v = (norm(x) @ block.qkv.double().T).split(width, -1)
        mixed = []
        for start in range(0, width, size):
            part = slice(start, start + size)
            a, b = rotated(q[..., part]), rotated(k[..., part])
            if qk_norm:
                a, b = norm(a), norm(b)
            rows = []
            for t in range(length):
                scores = (a[:, t : t + 1] * b[:, : t + 1]).sum(-1) / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
                rows.append((weights[..., None] * v[:, : t + 1, part]).sum(1))
            mixed.append(torch.stack(rows, 1))
        x = x + torch.cat(mixed, -1) @ block.out.double().T
        hidden = norm(x) @ block.up.double().T
        x = x + torch.where(hidden > 0, hidden, 0.0) ** 2 @ block.down.double().T
    return norm(x) @ m.head.double().T


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_logits_and_gradients_are_those_of_a_plain_model(tied, qk_norm):
    m = model(tied=tied, qk_norm=qk_norm)
    ids = torch.randint(256, (3, 24), generator=torch.Generator().manual_seed(2))
    weigh = torch.randn(3, 24, 256, generator=torch.Generator().manual_seed(3))
    ours, theirs = m(ids), plain(m, ids, qk_norm, 8)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)
    parameters = list(m.parameters())
    found = torch.autograd.grad((ours * weigh).sum(), parameters)
    expected = torch.autograd.grad((theirs * weigh).sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_bfloat16_is_near_float32():
    whole, half = model(), model(torch.bfloat16)
    windows = torch.randint(256, (3, 25), generator=torch.Generator().manual_seed(2))
    found = []
    gradients = []
    for m in (whole, half):
        loss, said = transformer.losses(m, windows, 0.0)
        found.append(float(said))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(m.parameters()))]))
    assert found[1] == pytest.approx(found[0], rel=0.01)
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.995
    assert gradients[1].dtype == torch.float32


def test_what_comes_later_changes_nothing_before():
    m = model()
    ids = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(2))
    other = ids.clone()
    other[:, 15] = (other[:, 15] + 1) % 256
    first, second = m(ids), m(other)
    assert first[:, :15].equal(second[:, :15])
    assert not first[:, 15:].equal(second[:, 15:])


def test_z_loss_is_the_mean_squared_log_normaliser():
    m = model()
    windows = torch.randint(256, (2, 25), generator=torch.Generator().manual_seed(2))
    minimised, said = transformer.losses(m, windows, 0.01)
    logits = m(windows[:, :-1]).double()
    normaliser = logits.exp().sum(-1).log()
    chosen = logits.gather(-1, windows[:, 1:, None]).squeeze(-1)
    assert float(said) == pytest.approx(float((normaliser - chosen).detach().mean()), rel=1e-5)
    assert float(minimised.detach() - said) == pytest.approx(
        0.01 * float((normaliser.detach() ** 2).mean()), rel=1e-4
    )


# --- what is known before


@pytest.mark.parametrize(("tied", "embeddings"), [(True, 1), (False, 2)])
def test_parameters_by_hand(tied, embeddings):
    known = gpt.axes({"width": 48, "layers": 3, "tokens": 1e6, "tied": tied, "head_size": 16})
    blocks = 3 * (48 * 144 + 48 * 48 + 2 * 48 * 192)
    assert known["params_nonembedding"] == blocks
    assert known["params"] == blocks + embeddings * 256 * 48
    made = model(width=48, layers=3, tied=tied)
    assert known["params"] == sum(p.numel() for p in made.parameters())
    assert known["tokens"] == 1_000_000 // 1024 * 1024


def test_flops_are_those_torch_counts():
    """The counter sees both halves of the scores; we count the T (T + 1) / 2 pairs that are used."""
    m = model(width=64, head_size=16, seq_len=32, batch_tokens=32)
    windows = torch.randint(256, (4, 33), generator=torch.Generator().manual_seed(2))
    with FlopCounterMode(display=False) as counter:
        transformer.losses(m, windows, 0.0)[0].backward()
    known = gpt.axes({"width": 64, "layers": 2, "tokens": 128, "seq_len": 32, "batch_tokens": 32})
    all_pairs, used = 12 * 2 * 32 * 64, 6 * 2 * 33 * 64
    assert counter.get_total_flops() == known["flops"] + 128 * (all_pairs - used)


def test_schedules_in_closed_form():
    def rates(**given):
        s = gpt.Settings.read({"width": 32, "tokens": 100 * 1024, "lr": 1.0, "warmup": 0, **given})
        return [gpt_settings.rate(s, step, 100) for step in range(100)]

    wsd = rates()
    assert wsd[:81] == [1.0] * 81
    assert wsd[81:] == pytest.approx([1 - i / 20 for i in range(1, 20)])
    assert rates(decay="1-sqrt")[81:] == pytest.approx([1 - math.sqrt(i / 20) for i in range(1, 20)])
    assert rates(schedule="cosine") == pytest.approx(
        [(1 + math.cos(math.pi * i / 100)) / 2 for i in range(100)]
    )
    assert rates(schedule="linear") == pytest.approx([1 - i / 100 for i in range(100)])
    assert rates(schedule="constant", warmup=10) == pytest.approx([min(1, (i + 1) / 10) for i in range(100)])
    assert rates(warmup=10)[:20] == pytest.approx([min(1, (i + 1) / 10) for i in range(20)])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"widht": 3}, ValueError, "got widht"),
        ({"tokens": None}, TypeError, "every horizon to be int"),
        ({"width": 30}, ValueError, "even head_size that divides"),
        ({"batch_tokens": 100}, ValueError, "multiple of seq_len"),
        ({"tokens": 10}, ValueError, "at least one batch"),
        ({"tokens": [640, 650]}, ValueError, "rising tokens"),
        ({"tokens": [640, 6400], "schedule": "cosine"}, ValueError, "trunk serves 2 horizons"),
        ({"optimizer": "sgd"}, ValueError, "adamw, muon"),
        ({"lr": -1}, ValueError, "lr above 0"),
        ({"lr": "fast"}, TypeError, "needed lr to be float"),
        ({"tied": 1}, TypeError, "needed tied to be bool"),
        ({"decay_share": 1.0}, ValueError, "between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(tiny, change, error, words):
    with pytest.raises(error, match=words):
        gpt.Settings.read({**tiny, **change})


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match="needed width and tokens"):
        gpt.Settings.read({})
    with pytest.raises(ValueError, match="one horizon, got 2"):
        gpt.axes({"width": 32, "tokens": [10000, 20000]})


# --- the order of the data


def test_no_byte_is_predicted_twice_within_an_epoch(data):
    training = gpt.text.load(data).training
    settings = gpt.Settings.read(
        {"width": 32, "tokens": 1024, "seq_len": 16, "batch_tokens": 64, "data": data}
    )
    windows = (training.size - 1) // 16
    order = gpt.Order(training, settings, windows)
    steps = windows // 4
    seen = [tuple(window) for step in range(steps) for window in order.batch(step).tolist()]
    there = [tuple(training[16 * i : 16 * i + 17].tolist()) for i in range(windows)]
    left = windows - 4 * steps
    assert len(seen) == windows - left
    for window in seen:  # each is one of the text's own, and is used up
        there.remove(window)
    again = gpt.Order(training, settings, windows)
    assert again.batch(steps // 2).tolist() == [list(w) for w in seen[4 * (steps // 2) :][:4]]
    later = [tuple(w) for step in range(steps, 2 * steps) for w in order.batch(step).tolist()]
    assert later[left:] != seen[: len(later) - left]


# --- runs


def run(config, stop=None):
    """All points; with ``stop`` the generator is closed after so many and started again, as often as needed."""
    points = []
    while True:
        steps = gpt.train(config)
        ended = True
        for count, point in enumerate(steps, 1):
            points.append(point)
            if stop is not None and count == stop and point[1]["done"] < 1:
                steps.close()
                ended = False
                break
        if ended:
            return points


def numbers(points, only=None):
    """Without what a clock says."""
    kept = [(step, {k: v for k, v in m.items() if k not in VARYING}) for step, m in points]
    return [point for point in kept if only is None or only in point[1]]


def fresh(config, tmp_path, name, **changes):
    (tmp_path / name).mkdir()
    return {**config, **changes, "folder": str(tmp_path / name)}


def test_a_run_learns_and_says_what_it_must(tiny, tmp_path):
    points = run(fresh(tiny, tmp_path, "a", tokens=200 * 64, lr=0.01))
    step, last = points[-1]
    assert step == 200
    assert last["tokens"] == last["horizon"] == 200 * 64
    assert last["done"] == 1
    assert last["loss"] < 2.5 < points[0][1]["train_loss"]
    assert last["epochs"] == pytest.approx(200 * 64 / ((38000 - 1) // 16 * 16))
    assert len(last["data_sha256"]) == 64
    assert last["flops_per_second"] > 0
    assert last["noise_scale"] > 0
    assert last["dtype"] == "float32"
    assert [s for s, _ in points] == [*range(4, 200, 4), 200]
    assert points[5][1]["seen"] == 24 * 64
    assert len(list((tmp_path / "a").iterdir())) == 1  # the trunk, for a longer horizon


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [1, 3])
def test_closed_anywhere_it_goes_on_to_the_same_numbers(tiny, tmp_path, optimizer, stop):
    """Closed after every ``stop`` points: in the trunk, in decays and at the result of a horizon."""
    config = {
        **tiny,
        "tokens": [12 * 64, 24 * 64],
        "decay_share": 0.5,
        "optimizer": optimizer,
        "log_every": 2,
    }
    straight = numbers(run(fresh(config, tmp_path, "a")))
    stopped = numbers(run(fresh(config, tmp_path, "b"), stop))
    assert [m["horizon"] for _, m in straight if "horizon" in m] == [12 * 64, 24 * 64]
    once = [
        point for i, point in enumerate(stopped) if point not in stopped[:i]
    ]  # a result may be said twice
    assert once == straight


class _KilledError(Exception):
    """Stands for a signal that nothing can catch."""


@pytest.mark.parametrize("at", [2, 7, 8, 13, 14, 19])
def test_killed_anywhere_it_goes_on_from_the_last_checkpoint(tiny, tmp_path, monkeypatch, at):
    """A checkpoint after every step, dead in the middle of one: trunk up to 6, decay to 12, trunk to 9, decay to 18."""
    config = {
        **tiny,
        "tokens": [12 * 64, 18 * 64],
        "decay_share": 0.5,
        "log_every": 100,
        "checkpoint_seconds": 0.0,
    }
    straight = numbers(run(fresh(config, tmp_path, "a", checkpoint_seconds=1e9)), "horizon")
    calls = iter(range(1, 1000))
    clip = gpt.Run._clip

    def dies(self):
        if next(calls) == at:
            raise _KilledError
        return clip(self)

    monkeypatch.setattr(gpt.Run, "_clip", dies)
    config = fresh(config, tmp_path, "b")
    points = []
    with pytest.raises(_KilledError):
        points.extend(gpt.train(config))
    assert checkpoint.load(tmp_path / "b")[1]["step"] >= 1
    points = numbers(run(config), "horizon")
    assert points == straight[-len(points) :]
    assert next(calls) - 1 == 24 + 1  # every step once, and the one that died


def test_without_the_moments_the_numbers_are_others(tiny, tmp_path):
    """So that the test above is known to see them."""
    straight = numbers(run(fresh(tiny, tmp_path, "a")))
    config = fresh(tiny, tmp_path, "b")
    steps = gpt.train(config)
    next(steps)
    steps.close()
    tensors, facts, _ = checkpoint.load(tmp_path / "b")
    bare = {name: t * 0 if "exp_avg" in name else t for name, t in tensors.items()}
    assert any("exp_avg_sq" in name for name in tensors)
    checkpoint.save(tmp_path / "b", bare, facts)
    assert numbers(run(config))[-1] != straight[-1]


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_a_horizon_does_not_know_of_the_others(tiny, tmp_path, schedule):
    config = {**tiny, "schedule": schedule}
    results = {}
    for name, tokens in {"all": [640, 1000, 1536], "two": [640, 1536], "last": [1536], "first": 640}.items():
        for _, measured in numbers(run(fresh(config, tmp_path, name, tokens=tokens)), "horizon"):
            measured.pop("done")
            results.setdefault(measured["horizon"], []).append(measured)
    assert [len(found) for found in results.values()] == [3, 1, 3]
    for found in results.values():
        assert all(measured == found[0] for measured in found)


def test_a_damaged_checkpoint_costs_time_alone(tiny, tmp_path):
    straight = numbers(run(fresh(tiny, tmp_path, "a")))
    config = fresh(tiny, tmp_path, "b", checkpoint_seconds=0.0)
    for damaged, words in (
        ((checkpoint.NEWEST,), "previous"),
        ((checkpoint.NEWEST, checkpoint.PREVIOUS), "beginning"),
    ):
        steps = gpt.train(config)
        next(steps)
        next(steps)
        steps.close()
        for name in damaged:
            path = tmp_path / "b" / name
            path.write_bytes(path.read_bytes()[:-1])
        resumed = gpt.train(config)
        assert words in next(resumed)[1]["note"]
        resumed.close()
    assert numbers(run(config))[-1] == straight[-1]


def test_another_runs_folder_is_refused(tiny):
    steps = gpt.train(tiny)
    next(steps)
    steps.close()
    with pytest.raises(ValueError, match="other settings or data"):
        next(gpt.train({**tiny, "lr": 0.5}))
    next(gpt.train({**tiny, "checkpoint_seconds": 5}))


def test_a_run_that_diverges_says_so_and_stops(tiny):
    points = run({**tiny, "lr": 1e30, "clip": 1e9})
    assert not math.isfinite(points[-1][1]["loss"])
    assert points[-1][0] < 24


def test_small_passes_add_up_to_the_batch(tiny, tmp_path):
    whole = run(fresh(tiny, tmp_path, "a", micro_tokens=0, noise_every=0))
    parts = run(fresh(tiny, tmp_path, "b", micro_tokens=16, noise_every=0))
    assert parts[-1][1]["loss"] == pytest.approx(whole[-1][1]["loss"], rel=1e-5)
    assert "noise_scale" not in parts[-1][1]


def test_validation_is_the_mean_over_its_windows(tiny):
    r = gpt.Run(gpt.Settings.read(tiny), gpt.Path(tiny["folder"]))
    size = r.text.validation.size
    windows = [r.text.validation[16 * i : 16 * i + 17].tolist() for i in range((size - 1) // 16)]
    with torch.no_grad():
        mean = sum(float(transformer.losses(r.model, torch.tensor([w]), 0.0)[1]) for w in windows) / len(
            windows
        )
    assert r._validation_loss(10**9) == pytest.approx(mean, rel=1e-5)


def test_a_longer_horizon_goes_on_from_the_trunk_and_a_shorter_one_begins_anew(tiny, tmp_path, monkeypatch):
    steps = []
    whole = gpt.Run.train_step
    monkeypatch.setattr(gpt.Run, "train_step", lambda self, of: steps.append(self.step) or whole(self, of))
    alone = run(fresh(tiny, tmp_path, "alone", tokens=40 * 64))[-1]
    short = run(fresh(tiny, tmp_path, "short", tokens=15 * 64))[-1]
    both = fresh(tiny, tmp_path, "both", tokens=20 * 64)
    run(both)
    steps.clear()
    later = run({**both, "tokens": 40 * 64})[-1]
    assert later[1]["loss"] == alone[1]["loss"]
    assert min(steps) == 16  # where the first horizon left the trunk
    steps.clear()
    assert run({**both, "tokens": 15 * 64})[-1][1]["loss"] == short[1]["loss"]
    assert min(steps) == 0


def test_a_schedule_without_a_trunk_leaves_nothing(tiny, tmp_path):
    run(fresh(tiny, tmp_path, "a", schedule="cosine"))
    assert list((tmp_path / "a").iterdir()) == []


def test_training_leaves_the_arithmetic_of_its_caller(tiny):
    for _ in gpt.train(tiny):
        assert sys.float_info.min / 2 > 0

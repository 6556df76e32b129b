"""The trainer and the tables of the example tables: small, quick, and against facts rather than snapshots."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # `examples` is run from the root, not installed

from examples import ladder, trainer  # noqa: E402
from examples.trainer import Config, Model  # noqa: E402

TINY = Config(width=16, layers=1, tokens=40 * 512, lr=0.02)
NOT_MEASURED = {"seconds", "python", "torch"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first():
    """A run of ``TINY``."""
    torch.set_num_threads(1)
    return trainer.train(TINY)


def test_same_seed_same_loss_other_seed_other_loss(first):
    again = trainer.train(TINY)
    assert first["loss"] == again["loss"]
    other = trainer.train(Config(width=16, layers=1, tokens=40 * 512, lr=0.02, seed=1))
    assert first["loss"] != other["loss"]
    assert first["loss"] < math.log(256) - 1  # it learned something


def test_progress_is_reported_and_changes_nothing(first):
    seen: list[tuple[int, int, float]] = []
    row = trainer.train(TINY, lambda *args: seen.append(args))
    assert seen[0][:2] == (0, TINY.steps)
    assert seen[0][2] == pytest.approx(math.log(256), abs=1.0)  # starts near the uniform guess
    assert row["loss"] == first["loss"]


def test_no_file_is_on_both_sides_of_the_split():
    text = trainer.corpus()
    assert text.train_files
    assert text.validation_files
    assert set(text.train_files).isdisjoint(text.validation_files)
    assert not any("test" in path.split("/") for path in text.train_files)
    share = len(text.validation) / (len(text.validation) + len(text.train))
    assert 0.01 < share < 0.12


def test_windows_predict_each_byte_once():
    data = trainer.windows(bytes(range(1, 14)), 4)
    assert data.tolist() == [[1, 2, 3, 4, 5], [5, 6, 7, 8, 9], [9, 10, 11, 12, 13]]


def test_future_bytes_do_not_change_past_logits():
    torch.manual_seed(0)
    model = Model(Config(width=32, layers=2, tokens=0, lr=0.0))
    a = torch.randint(256, (2, 64))
    b = a.clone()
    b[:, 40:] = torch.randint(256, (2, 24))
    with torch.no_grad():
        x, y = model(a), model(b)
    torch.testing.assert_close(x[:, :40], y[:, :40], rtol=0, atol=1e-6)
    assert not torch.allclose(x[:, 40:], y[:, 40:])


@pytest.mark.parametrize(("width", "layers"), [(16, 1), (32, 2), (48, 3)])
def test_params_are_the_formula(width: int, layers: int):
    config = Config(width, layers, tokens=512, lr=0.0)
    counted = sum(weight.numel() for weight in Model(config).parameters())
    assert config.params == counted == 256 * width + 12 * layers * width**2


def test_flops_are_what_the_counter_of_torch_counts_without_attention():
    from torch.utils.flop_counter import FlopCounterMode

    config = Config(width=32, layers=2, tokens=512, lr=0.0)
    model = Model(config)
    with FlopCounterMode(display=False) as counter:
        trainer.cross_entropy(model, torch.zeros(8, 65, dtype=torch.uint8)).backward()
    counts = counter.get_flop_counts()["Global"]
    matmuls = sum(n for op, n in counts.items() if "attention" not in str(op))
    assert config.flops == matmuls


def test_the_schedule_ends_where_the_run_ends():
    shares = [trainer.schedule(step, 200) for step in range(200)]
    assert max(shares) == 1.0
    assert shares[-1] < 0.01
    assert trainer.schedule(200, 200) == 0.0
    assert all(share > 0 for share in shares)


def test_a_second_epoch_is_refused():
    with pytest.raises(ValueError, match="one epoch"):
        trainer.train(Config(width=16, layers=1, tokens=10**9, lr=0.02))


def test_resume_trains_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained: list[Config] = []

    def train(config: Config) -> trainer.Row:
        trained.append(config)
        return {"params": config.params, "loss": 1.0}

    monkeypatch.setattr(ladder, "train", train)
    configs = [ladder.config(16, 1024), ladder.config(16, 2048), ladder.config(16, 2048, seed=1)]
    path = tmp_path / "table.csv"
    ladder.fill(path, configs[:2])
    ladder.fill(path, configs)
    assert trained == configs
    assert [row["run"] for row in ladder.read_table(path)] == [ladder.run_id(c) for c in configs]
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_the_grids_are_what_they_say():
    grid, held = ladder.ladder(), ladder.held_back()
    names = [ladder.run_id(c) for c in (*grid, *held, *ladder.lr_sweep())]
    assert len(set(names)) == len(names)
    assert min(c.flops for c in held) >= 4 * max(c.flops for c in grid)
    short, rung = ladder.short_ladder()
    assert rung.flops >= 4 * max(c.flops for c in short)


@pytest.mark.parametrize("name", list(ladder.TABLES))
def test_the_committed_tables_are_the_declared_grids(name: str):
    path = ROOT / "examples" / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    with path.open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == [ladder.run_id(c) for c in ladder.TABLES[name]()]
    for config in ladder.TABLES[name]():
        row = rows[ladder.run_id(config)]
        assert int(row["params"]) == config.params
        assert int(row["flops"]) == config.flops == 6 * int(row["params"]) * int(row["tokens"])

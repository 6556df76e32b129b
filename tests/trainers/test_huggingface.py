"""A Hugging Face trainer as a trainer of studies: the page's own example, stopped, killed, resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="the trainer of transformers needs accelerate")

from isoloss.trainers import huggingface
from isoloss.trainers.huggingface import train
from tests.docs.pages import ROOT, blocks

SETTINGS = {"make": "tiny.py:make", "width": 8, "steps": 20, "seed": 1}


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    """The page's example, in the folder that the process is in."""
    page = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
    [block] = [block for block in blocks(page) if block.title == "tiny.py"]
    (tmp_path / "tiny.py").write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "tiny.py"
    sys.modules.pop("isoloss_make_tiny", None)


def config(folder: str, **changes) -> dict:
    Path(folder).mkdir(exist_ok=True)
    return {**SETTINGS, "folder": folder, **changes}


def losses(seen) -> dict[int, float]:
    return {step: measured["loss"] for step, measured in seen if "loss" in measured}


def test_a_stopped_and_a_killed_run_end_as_a_whole_one(tmp_path):
    whole = list(train(config("whole")))
    assert [step for step, _ in whole] == [4, 8, 8, 12, 16, 16, 20, 20, 20]
    step, result = whole[-1]
    assert set(result) == {"loss", "train_loss", "grad_norm", "learning_rate", "epoch", "done"}
    assert (step, result["done"]) == (20, 1.0)
    assert losses(whole)[20] < losses(whole)[8]
    assert {name for name, _ in whole[0][1].items()} >= {"train_loss", "grad_norm", "learning_rate", "done"}
    assert whole[0][1]["done"] == 4 / 20

    parts = config("parts")
    run = train(parts)  # stopped at 12, where nothing would be saved
    seen = [next(run) for _ in range(4)]
    run.close()
    assert (tmp_path / "parts" / "checkpoint-12" / "trainer_state.json").exists()
    run = train(parts)  # the log at 12 again, 16, and killed: the checkpoint of 16 was cut off
    seen += [next(run) for _ in range(4)]
    assert [step for step, _ in seen[4:]] == [12, 16, 16, 20]
    (tmp_path / "parts" / "checkpoint-16" / "trainer_state.json").write_text('{"global_')
    with pytest.warns(UserWarning, match="checkpoint-16 was not written to its end"):
        rest = list(train(parts))
    assert rest[0][0] == 12
    assert rest[-1] == whole[-1]
    assert losses([*seen, *rest]) == losses(whole)
    run.close()

    again = list(train(parts))  # it was found finished
    assert again[-1] == whole[-1]


def test_a_finished_checkpoint_in_mid_epoch_trains_no_step_more(tmp_path):
    """6 steps an epoch, 20 steps: the last checkpoint lies inside the fourth."""
    folder = config("end")
    whole = list(train(folder))
    assert (tmp_path / "end" / "checkpoint-20").exists()
    again = list(train(folder))
    assert {step for step, _ in again} == {20}
    assert again[-1] == whole[-1]


def test_no_checkpoint_runs_ahead_of_what_was_taken(tmp_path):
    run = train(config("slow"))
    for step, _ in run:
        saved = [int(path.name.rpartition("-")[2]) for path in (tmp_path / "slow").glob("checkpoint-*")]
        assert all(number <= step for number in saved)
    assert max(saved) == 20


def test_a_run_stopped_at_the_end_of_an_epoch_keeps_its_evaluation(tiny, tmp_path):
    text = tiny.read_text(encoding="utf-8")
    tiny.write_text(
        text.replace(
            'eval_strategy="steps", save_steps=8', 'eval_strategy="epoch", save_strategy="no"'
        ).replace("logging_steps=4", "logging_steps=6")
    )
    whole = list(train(config("whole", steps=18)))
    assert [step for step, _ in whole] == [6, 6, 12, 12, 18, 18, 18]
    for taken in (1, 2, 6):
        parts = config(f"parts-{taken}", steps=18)
        run = train(parts)
        seen = [next(run) for _ in range(taken)]
        run.close()
        rest = list(train(parts))
        assert losses([*seen, *rest]) == losses(whole)
        assert rest[0][0] == seen[-1][0]


def test_an_error_while_training_is_the_error_of_the_run(tiny):
    tiny.write_text("def make(config):\n    return config['nothing']\n")
    with pytest.raises(KeyError, match="nothing") as caught:
        list(train(config("a")))
    assert caught.traceback[-1].path.name == "tiny.py"


def test_what_make_must_be_is_said(tiny):
    tiny.write_text("make = 3\ndef other(config):\n    return 3\n")
    with pytest.raises(TypeError, match=r"needed a transformers.Trainer from tiny.py:other, got int"):
        list(train(config("a", make="tiny.py:other")))
    for make, match in {
        "tiny.py:make": "needed a function make in tiny.py, got 3",
        "tiny": "needed file.py:function",
        "absent.py:make": "which does not exist",
    }.items():
        with pytest.raises(ValueError, match=match):
            list(train(config("a", make=make)))
    with pytest.raises(ValueError, match="lack make, folder"):
        list(train({"make": 3}))


def test_without_a_set_to_evaluate_on_there_is_no_result(tiny):
    tiny.write_text(tiny.read_text().replace(", eval_dataset=data[48:]", "").replace('"steps", s', '"no", s'))
    with (
        pytest.warns(UserWarning, match="no eval_dataset"),
        pytest.raises(ValueError, match=r"got train_loss, grad_norm, .*Give the trainer an eval_dataset"),
    ):
        list(train(config("a", steps=4)))


def test_names_of_logs():
    with pytest.warns(UserWarning, match=r"log shapes is left out: needed a number or text, got \[1\]"):
        found = huggingface._measured(
            {"loss": 2, "eval_loss": 3.0, "eval_runtime": 1.0, "eval_samples_per_second": 9.0, "eval_accuracy": 0.5,
             "hash": "ab", "shapes": [1], "step": 4}
        )  # fmt: skip
    assert found == {"train_loss": 2, "loss": 3.0, "eval_accuracy": 0.5, "hash": "ab"}


def test_the_example_counts_its_axes(tiny):
    namespace: dict = {}
    exec(compile(tiny.read_text(), "tiny.py", "exec"), namespace)
    found = namespace["axes"](SETTINGS)
    assert found["flops"] == 6 * found["params"] * found["tokens"]
    assert json.dumps(found)

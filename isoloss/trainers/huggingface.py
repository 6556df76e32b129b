"""takes a function that makes a ``transformers.Trainer``, gives what that logs, and its loss at the end."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Queue
from threading import Event, Semaphore, Thread
from typing import Any

__all__ = ["train"]

STATE = "trainer_state.json"  # written last into a checkpoint
SPEED = ("_runtime", "_per_second", "_compilation_time")

Measurement = tuple[int, dict[str, float | str]]


def train(config: Mapping[str, Any]) -> Iterator[Measurement]:
    """Run a ``transformers.Trainer`` and give what it logs.

    ``make(config)`` makes the trainer, from all settings of the run. Its ``output_dir`` becomes the run's
    folder; how often it logs, evaluates and saves is said in its arguments. Measurements are its logs:
    ``eval_loss`` is called ``loss`` (nats per token for a language model), the training ``loss`` is called
    ``train_loss``; speeds and the summary at the end are left out, values that are neither number nor text
    are left out with a warning. The result is the evaluation at the end, made anew where the last step had
    none, or where the best model is loaded at the end; without a data set for it, the latest logged values.

    It trains in a thread that waits at each log until the measurement has been taken, so that no checkpoint
    runs ahead of what was written down. A run that is stopped saves a checkpoint first, even where
    ``save_strategy`` is "no". The newest whole checkpoint in the folder is gone on from, as
    ``resume_from_checkpoint`` does: model, optimiser, schedule, random numbers and place in the data (so no
    ``save_only_model``). Transformers reads its optimiser state by ``torch.load``: let nobody else write
    into the folder. ``train_loss`` just after is the mean since the checkpoint only.

    There are no axes beside it, because only the model and its data know them. A file with all three::

        from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments, set_seed
        from isoloss.trainers.huggingface import train  # the study's trainer is "this_file.py:train"

        def model(config):
            set_seed(config["seed"])
            shape = AutoConfig.for_model("llama", hidden_size=config["width"], num_hidden_layers=4)
            return AutoModelForCausalLM.from_config(shape)

        def make(config):  # the run's setting make is "this_file.py:make"
            arguments = TrainingArguments(config["folder"], learning_rate=config["lr"], max_steps=config["steps"])
            return Trainer(model(config), arguments, train_dataset=..., eval_dataset=...)

        def axes(config):
            params, tokens = model(config).num_parameters(), config["steps"] * 8 * 1024
            return {"params": params, "tokens": tokens, "flops": 6 * params * tokens}

    Args:
        config: ``make``, ``"file.py:function"`` (seen from where this process is, the folder of the study
            file) or ``"package.module:function"``; ``folder``; and whatever else that function reads.

    Returns:
        Steps (``global_step``) and measurements, for the worker of a study.

    Raises:
        ValueError: ``make`` or ``folder`` is missing, names no function, or no ``loss`` was ever logged.
        TypeError: what it makes is no ``transformers.Trainer``.
        ModuleNotFoundError: transformers is not installed.
    """
    lacking = [name for name in ("make", "folder") if not isinstance(config.get(name), str)]
    if lacking:
        raise ValueError(f"settings of a huggingface run lack {', '.join(lacking)}, text. Add it")
    make = _function(config["make"])
    line = _Line()
    thread = Thread(target=line.run, args=(make, config), daemon=True)
    thread.start()
    try:
        while True:
            item = line.items.get()
            if item is None:
                break
            if isinstance(item, BaseException):
                raise item
            yield item
            line.taken.release()
    except GeneratorExit:
        line.stop()
        thread.join()  # it saves
        raise
    finally:
        line.stop()


class _Stopped(BaseException):
    """Ends the training thread from inside a callback; no ``except Exception`` on the way may keep it."""


class _Complete(BaseException):
    """All steps were made before the checkpoint that was just loaded."""


class _Line:
    """What runs between the training thread and the generator: one measurement at a time."""

    def __init__(self) -> None:
        self.items: Queue[Measurement | BaseException | None] = Queue(1)
        self.taken = Semaphore(0)
        self.stopping = Event()

    def give(self, measurement: Measurement) -> None:
        """Hand over and wait until it was taken; nothing once the run is being stopped."""
        if not self.stopping.is_set():
            self.items.put(measurement)
            self.taken.acquire()

    def stop(self) -> None:
        self.stopping.set()
        self.taken.release()

    def run(self, make: Callable[[dict[str, Any]], Any], config: Mapping[str, Any]) -> None:
        """The training thread."""
        end: BaseException | None = None
        try:
            _train(make, config, self)
        except _Stopped:
            pass
        except BaseException as error:
            end = error
        if not self.stopping.is_set():
            self.items.put(end)
        elif end is not None:
            sys.stderr.write(f"while the run was being stopped: {type(end).__name__}: {end}\n")


def _train(make: Callable[[dict[str, Any]], Any], config: Mapping[str, Any], line: _Line) -> None:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("needed transformers. Do: pip install transformers accelerate") from error
    trainer = make(dict(config))
    if not isinstance(trainer, transformers.Trainer):
        raise TypeError(f"needed a transformers.Trainer from {config['make']}, got {type(trainer).__name__}")
    if trainer.eval_dataset is None:
        warnings.warn("the trainer has no eval_dataset: something else must log eval_loss", stacklevel=2)
    trainer.args.output_dir = config["folder"]
    ours = _callback(transformers.TrainerCallback, line)
    trainer.add_callback(ours)
    try:
        trainer.train(resume_from_checkpoint=_newest(Path(config["folder"])))
    except _Complete:
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
    trainer.remove_callback(ours)  # what is logged from here on is the result, not on the way to it
    line.give((trainer.state.global_step, _result(trainer)))


def _result(trainer: Any) -> dict[str, float | str]:
    """The evaluation at the end: the last step's if it holds for the model as it is now, else a new one."""
    state = trainer.state
    last: dict[str, Any] = {}
    for entry in state.log_history:
        if not _is_summary(entry) and (entry["step"] == state.global_step or trainer.eval_dataset is None):
            last |= entry
    fresh = "eval_loss" in last and not trainer.args.load_best_model_at_end
    if trainer.eval_dataset is not None and not fresh:
        last |= trainer.evaluate()
    measured = _measured(last)
    if trainer.eval_dataset is None and "loss" not in measured:
        raise ValueError(
            f"needed an eval_dataset in the trainer, or eval_loss among its logs, got {', '.join(measured)}. "
            "Give the trainer an eval_dataset"
        )
    return {**measured, "done": 1.0}


def _callback(base: Any, line: _Line) -> Any:
    """A ``TrainerCallback`` that gives every log to the line, and saves and leaves once that is stopped."""

    class ToTheStudy(base):  # type: ignore[misc]
        """Asks for a checkpoint only after all evaluations of the step, so that a resumed run lacks none."""

        epoch_over = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # What was logged while the run was being stopped is in the checkpoint, but was never taken.
            for entry in list(state.log_history):
                if entry["step"] == state.global_step:
                    self._give(state, entry)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.epoch_over = False

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step >= state.max_steps:
                raise _Complete

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            return self._save_if_stopping(state, control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            self.epoch_over = True
            return self._save_if_stopping(state, control)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> Any:
            self._give(state, logs or {})
            return self._save_if_stopping(state, control)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if line.stopping.is_set():
                raise _Stopped

        def _give(self, state: Any, logs: Mapping[str, Any]) -> None:
            if logs and not _is_summary(logs):
                line.give(
                    (state.global_step, {**_measured(logs), "done": state.global_step / state.max_steps})
                )

        def _save_if_stopping(self, state: Any, control: Any) -> Any:
            last_of_epoch = state.epoch is not None and state.epoch % 1 == 0
            if line.stopping.is_set() and (self.epoch_over or not last_of_epoch):
                control.should_save = True
            return control

    return ToTheStudy()


def _is_summary(logs: Mapping[str, Any]) -> bool:
    """The line at the end of training: means and speeds since the last resume."""
    return "train_runtime" in logs and "train_loss" in logs


def _measured(logs: Mapping[str, Any]) -> dict[str, float | str]:
    """Names and values of a log as a study knows them."""
    found: dict[str, float | str] = {}
    for name, value in logs.items():
        if name == "step" or name.endswith(SPEED):
            continue
        plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
        if isinstance(plain, bool) or not isinstance(plain, int | float | str):
            warnings.warn(f"log {name} is left out: needed a number or text, got {value!r}", stacklevel=2)
        else:
            found[{"loss": "train_loss", "eval_loss": "loss"}.get(name, name)] = plain
    return found


def _newest(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; None where there is none."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            warnings.warn(f"{path.name} was not written to its end: the one before is taken", stacklevel=2)
            continue
        return str(path)
    return None


def _function(text: str) -> Callable[[dict[str, Any]], Any]:
    """What ``file.py:function`` or ``package.module:function`` names."""
    place, _, name = text.rpartition(":")
    if not place:
        raise ValueError(f"make: needed file.py:function or package.module:function, got {text!r}")
    module = _file(Path(place).resolve()) if place.endswith(".py") else importlib.import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"make: needed a function {name} in {place}, got {function!r}. Write it there")
    return function  # type: ignore[no-any-return]


def _file(path: Path) -> Any:
    """The module of a file; once for a process, and the same one that a study loaded its trainer from."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    if not path.is_file():
        raise ValueError(
            f"make: needed a file, got {path}, which does not exist. Write a path from {Path.cwd()}"
        )
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # for what it imports, as of a script
    spec = importlib.util.spec_from_file_location(f"isoloss_make_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module

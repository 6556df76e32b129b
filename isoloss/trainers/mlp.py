"""takes the settings of a small network on a scikit-learn table, gives its losses: learning curves in seconds."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from isoloss.trainers import checkpoint
from isoloss.trainers.tables import TABLES, Rows, read, standardised

__all__ = ["TABLES", "Settings", "axes", "train"]

BETAS, EPSILON, WARMUP = (0.9, 0.99), 1e-8, 0.05
SAVE_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Settings:
    """What a run of :func:`train` is made of.

    Args:
        table: a key of ``TABLES``.
        width: units of a hidden layer.
        examples: distinct examples to learn from, drawn by ``seed``.
        layers: hidden layers; 0 is a linear model.
        epochs: passes over the examples.
        lr: largest learning rate of AdamW; warmed up over 5 % of the steps, then falling linearly to 0.
        batch: examples a step; the last step of a pass takes what is left.
        decay: weight decay of AdamW times the number of examples, as of a prior that more data outweigh.
        seed: of the choice of examples, the first weights and the order; never of the test rows.

    Raises:
        ValueError: a value out of its range, or a table that is not known.
    """

    table: str
    width: int
    examples: int
    layers: int = 1
    epochs: int = 30
    lr: float = 0.01
    batch: int = 16
    decay: float = 50.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ValueError(f"table: needed one of {', '.join(TABLES)}, got {self.table!r}")
        pool = TABLES[self.table].parts[0]
        least = {"width": 1, "examples": 2, "layers": 0, "epochs": 1, "batch": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: needed {low} or more, got {getattr(self, name)}")
        if self.examples > pool:
            raise ValueError(
                f"examples: {self.table} has {pool} rows to learn from, got {self.examples}. "
                "Take fewer, or a generated table"
            )
        if not (0 < self.lr < math.inf):
            raise ValueError(f"lr: needed a number above 0, got {self.lr}")
        if not (0 <= self.decay < math.inf):
            raise ValueError(f"decay: needed 0 or more, got {self.decay}")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """From the plain dict of a run.

        Raises:
            ValueError: a name that is not a setting, one that is missing, or a value out of its range.
            TypeError: a value of the wrong kind.

        Example:
            >>> Settings.of({"table": "digits", "width": 8, "examples": 100}).epochs
            30
        """
        known = {field.name: field for field in fields(cls)}
        unknown = [name for name in config if name not in known and name != "folder"]
        if unknown:
            raise ValueError(f"needed settings among {', '.join(known)}, got also {', '.join(unknown)}")
        missing = [name for name, f in known.items() if f.default is MISSING and name not in config]
        if missing:
            raise ValueError(f"settings of an mlp run lack {', '.join(missing)}. Add them")
        return cls(**{name: _typed(name, config[name], known[name].type) for name in known if name in config})

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        table = TABLES[self.table]
        widths = [table.features, *[self.width] * self.layers, table.outputs]
        return list(pairwise(widths))

    @property
    def params(self) -> int:
        """Weights and biases."""
        return sum((inputs + 1) * outputs for inputs, outputs in self.sizes)


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as text, whole or real number, as the field says."""
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError(f"{name}: needed text, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: needed a number, got {value!r}")
    if kind == "float":
        return float(value)
    if not (math.isfinite(value) and value == int(value)):
        raise ValueError(f"{name}: needed a whole number, got {value}")
    return int(value)


def axes(config: Mapping[str, Any]) -> dict[str, float]:
    """What is known of a run before it is made.

    ``params`` counts weights and biases; ``tokens_unique`` are the distinct examples, ``tokens`` the
    examples seen, ``examples * epochs``; ``flops = 6 * params * tokens``. With ``epochs`` the same in all
    runs, ``tokens`` is the axis of a learning curve over the size of the data, up to that constant factor.

    Example:
        >>> axes({"table": "moons", "width": 8, "examples": 100, "epochs": 10})
        {'params': 42.0, 'tokens': 1000.0, 'tokens_unique': 100.0, 'flops': 252000.0}
    """
    settings = Settings.of(config)
    params, seen = float(settings.params), float(settings.examples * settings.epochs)
    return {
        "params": params,
        "tokens": seen,
        "tokens_unique": float(settings.examples),
        "flops": 6 * params * seen,
    }


def _first_weights(settings: Settings) -> torch.Tensor:
    """All weights and biases in one vector (params,): He's normal weights, biases of 0."""
    rng = np.random.default_rng([settings.seed, 1])
    pieces = []
    for inputs, outputs in settings.sizes:
        pieces += [rng.normal(0, math.sqrt(2 / inputs), inputs * outputs), np.zeros(outputs)]
    return torch.from_numpy(np.concatenate(pieces)).float()


def _outputs(theta: torch.Tensor, x: torch.Tensor, sizes: list[tuple[int, int]]) -> torch.Tensor:
    """Logits (n, classes), or predictions (n, 1)."""
    pieces = torch.split(theta, [k for inputs, outputs in sizes for k in (inputs * outputs, outputs)])
    for layer, (inputs, outputs) in enumerate(sizes):
        x = functional.linear(x, pieces[2 * layer].view(outputs, inputs), pieces[2 * layer + 1])
        if layer + 1 < len(sizes):
            x = functional.relu(x)
    return x


def _loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats, or mean squared error."""
    if outputs.shape[1] == 1:
        return functional.mse_loss(outputs[:, 0], y)
    return functional.cross_entropy(outputs, y)


@dataclass
class _State:
    """Where a run is: weights, AdamW's two means, passes made, the best validation loss and what was said."""

    theta: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    epoch: int = 0
    best: float = math.inf
    measured: dict[str, float | str] | None = None


def train(config: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, float | str]]]:
    """Train a multi-layer perceptron and give its losses, one measurement a pass.

    ``loss`` is the loss of the test rows at the pass with the least validation loss so far: cross entropy
    in nats, or the squared error in units of the target's variance. Test and validation rows are fixed
    parts of the table (a quarter and an eighth; 8192 and 4096 of a generated table), the same for every
    seed; validation rows are not counted as examples. ``error`` is the share of test rows in a wrong class
    there. ``train_loss`` is the mean over the pass, ``validation_loss`` that after it. A run whose weights
    are no longer finite has the loss NaN.

    One thread, whatever was set before. Bit for bit the same however often it is stopped and resumed.

    Args:
        config: the names of :class:`Settings`, and ``folder``, where its checkpoint is kept.

    Returns:
        Steps (of the optimiser) and measurements, for the worker of a study; the last has ``data_sha256``.

    Raises:
        ValueError: settings that are missing, unknown or out of range, or a folder of other settings.
        TypeError: a value of the wrong kind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = {"table": "iris", "width": 8, "examples": 60, "folder": folder}
        ...     *_, (step, result) = train(config)
        >>> step, result["loss"] < 0.7
        (120, True)
    """
    settings = Settings.of(config)
    if "folder" not in config:
        raise ValueError("settings of an mlp run lack folder, a folder for its checkpoints. Add it")
    folder = Path(config["folder"])
    torch.set_num_threads(1)
    data = read(settings.table)
    learn, validation, test = standardised(data, settings.examples, settings.seed)
    theta = _first_weights(settings)
    start = _State(theta, torch.zeros_like(theta), torch.zeros_like(theta))
    state = _load(folder, settings) or start
    steps = math.ceil(settings.examples / settings.batch)
    if state.epoch == settings.epochs and state.measured:
        yield settings.epochs * steps, dict(state.measured)
    saved = time.monotonic()
    while state.epoch < settings.epochs:
        train_loss = _pass(state, learn, settings, steps)
        state.epoch += 1
        state.measured = _measure(state, validation, test, settings, train_loss)
        if state.epoch == settings.epochs:
            state.measured["data_sha256"] = data.sha256
        try:
            yield state.epoch * steps, dict(state.measured)
        except GeneratorExit:
            _save(folder, settings, state)
            raise
        if time.monotonic() - saved > SAVE_EVERY:
            _save(folder, settings, state)
            saved = time.monotonic()
    checkpoint.remove(folder)  # the result has been taken


def _pass(state: _State, learn: Rows, settings: Settings, steps: int) -> float:
    """One pass over the examples by AdamW, in the order that seed and pass say; the mean loss."""
    order = np.random.default_rng([settings.seed, 2, state.epoch]).permutation(settings.examples)
    indices = torch.from_numpy(order)
    total, (slow, slower) = 0.0, BETAS
    for number, batch in enumerate(torch.split(indices, settings.batch)):
        theta = state.theta.requires_grad_()
        loss = _loss(_outputs(theta, learn.x[batch], settings.sizes), learn.y[batch])
        (gradient,) = torch.autograd.grad(loss, theta)
        theta.requires_grad_(False)
        step = state.epoch * steps + number + 1
        state.mean.lerp_(gradient, 1 - slow)
        state.square.lerp_(gradient * gradient, 1 - slower)
        scale = (state.square / (1 - slower**step)).sqrt_().add_(EPSILON)
        rate = settings.lr * _rate(step, steps * settings.epochs)
        theta.mul_(1 - rate * settings.decay / settings.examples)
        theta.addcdiv_(state.mean, scale, value=-rate / (1 - slow**step))
        total += loss.item() * len(batch)
    return total / settings.examples


def _rate(step: int, steps: int) -> float:
    """Share of the largest learning rate at a step, from 1 on."""
    return min(step / math.ceil(WARMUP * steps), (steps - step + 1) / steps)


def _measure(
    state: _State, validation: Rows, test: Rows, settings: Settings, train_loss: float
) -> dict[str, float | str]:
    before = state.measured or {}
    held = _loss(_outputs(state.theta, validation.x, settings.sizes), validation.y).item()
    now: dict[str, float | str] = {
        "train_loss": train_loss,
        "validation_loss": held,
        "done": state.epoch / settings.epochs,
    }
    if not math.isfinite(held):
        return {"loss": math.nan, **now}
    if held < state.best:
        state.best = held
        outputs = _outputs(state.theta, test.x, settings.sizes)
        best: dict[str, float | str] = {"loss": _loss(outputs, test.y).item()}
        if outputs.shape[1] > 1:
            best["error"] = (outputs.argmax(dim=1) != test.y).double().mean().item()
    else:
        best = {name: before[name] for name in ("loss", "error") if name in before}
    return {**best, **now}


def _save(folder: Path, settings: Settings, state: _State) -> None:
    facts = {
        "settings": asdict(settings),
        "epoch": state.epoch,
        "best": state.best,
        "measured": state.measured,
    }
    tensors = {"theta": state.theta, "mean": state.mean, "square": state.square}
    checkpoint.save(folder, tensors, facts)


def _load(folder: Path, settings: Settings) -> _State | None:
    """The state that was saved; None where there is none, or none that can be believed."""
    found = checkpoint.load(folder)
    if found is None:
        return None
    tensors, facts, note = found
    if note:
        warnings.warn(f"{folder}: {note}", RuntimeWarning, stacklevel=2)
    if not tensors:
        return None
    if facts["settings"] != asdict(settings):
        raise ValueError(f"{folder} holds a run of {facts['settings']}. Give these settings their own folder")
    return _State(
        tensors["theta"],
        tensors["mean"],
        tensors["square"],
        epoch=facts["epoch"],
        best=facts["best"],
        measured=facts["measured"],
    )

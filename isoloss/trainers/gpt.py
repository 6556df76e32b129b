"""The reference trainer: a small byte-level GPT that goes on exactly where it was stopped.

Pre-norm decoder with RMSNorm without gains, rotary positions, squared-ReLU MLP, no biases. Trained with AdamW or
Muon, on one thread or one GPU. One trunk at a constant rate can serve many horizons: each branches off for
its own decay (warm-up, stable, decay), so a ladder over tokens costs little more than its longest run.

The entry points of a study are ``isoloss.trainers.gpt:train`` and ``isoloss.trainers.gpt:axes``.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoloss.trainers import checkpoint, text
from isoloss.trainers.gpt_settings import Settings, axes, flops_per_token, rate
from isoloss.trainers.muon import Muon
from isoloss.trainers.noise import NoiseMeter
from isoloss.trainers.transformer import GPT, losses

__all__ = ["Order", "Run", "Settings", "axes", "train"]


class Order:
    """Which windows a step sees: a permutation of all windows for each epoch, from the seed alone."""

    def __init__(self, training: NDArray[np.uint8], settings: Settings, windows: int) -> None:
        self._training, self._settings, self._windows = training, settings, windows
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> NDArray[np.uint8]:
        """Windows of step (from 0): shape (batch, seq_len + 1); the last byte is only predicted."""
        size = self._settings.batch_tokens // self._settings.seq_len
        places = np.arange(step * size, (step + 1) * size)
        chosen = [self._window(int(place)) for place in places]
        starts = np.array(chosen) * self._settings.seq_len
        return self._training[starts[:, None] + np.arange(self._settings.seq_len + 1)]

    def _window(self, place: int) -> int:
        epoch, within = divmod(place, self._windows)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._settings.seed, epoch]).permutation(self._windows)
        return int(self._order[within])


def train(config: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, float | str]]]:
    """Train, yielding the curve and, at the end of every horizon, its result.

    Points of the curve hold ``train_loss`` (mean since the last point, nats per byte), ``lr``, ``seen`` (bytes),
    ``grad_norm``, ``done`` (share of all the work) and, inside a decay, ``branch`` (the horizon it belongs
    to; a point without it is of the trunk). Results hold besides ``loss`` (validation, nats per byte),
    ``horizon``, ``tokens``, ``epochs``, ``noise_scale`` (tokens; missing while noise hides the gradient),
    ``flops_per_second`` (model FLOPs over wall seconds of training, since the last start) and the facts
    ``data_sha256``, ``dtype``, ``python``, ``torch``. A run that diverges yields a non-finite loss and stops.

    Called again with the same config it goes on from the checkpoint in ``config["folder"]``: on a CPU, with as many
    threads, to bit-identical numbers.

    Raises:
        ValueError, TypeError: as ``Settings.read``; the data cannot be used; the folder is another run's.
    """
    folder = Path(config["folder"])
    yield from Run(Settings.read(config), folder).measurements()


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Tiny moments would cost a hundred times the time. The caller's own arithmetic is left as it was."""
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class Run:
    """The state of a run. Everything that decides what comes next is in ``_state``'s tensors and facts."""

    def __init__(self, settings: Settings, folder: Path, data: text.Text | None = None) -> None:
        self.settings, self.folder = settings, folder
        self.text = data or text.load(settings.data)
        self.windows = self.text.windows(settings.seq_len)
        self.order = Order(self.text.training, settings, self.windows)
        self.device = torch.device(_device(settings.device))
        self.dtype = _dtype(settings.dtype, self.device)
        self.model = GPT(settings, self.dtype).to(self.device)
        self.parameters = list(self.model.parameters())
        self.optimizers = _optimizers(settings, self.model, self.dtype)
        self.todo = list(settings.tokens)  # horizons, rising
        self.served: list[int] = []
        self.step, self.decaying = 0, False
        self.meters = {"loss": 0.0, "steps": 0.0, "spread": 0.0, "signal": 0.0}
        self.trunk: dict[str, Tensor] = {}  # the state at the branch, while a decay runs
        self.trunk_meters: dict[str, float] = {}
        self.note = ""
        self.seconds, self.worked = 0.0, 0
        self._resume()

    def measurements(self) -> Iterator[tuple[int, dict[str, float | str]]]:
        """See ``train``."""
        settings = self.settings
        saved = time.monotonic()
        try:
            while self.todo:
                steps = settings.steps(self.todo[0])
                if not self.decaying and self.step == settings.branch(steps):
                    self._branch()
                if self.step == steps:
                    measured, at = self._result(), self.step
                    more = len(self.todo) > 1
                    if more:
                        self._back_to_trunk()  # before the result is out: a stop there goes on from here
                    yield at, measured
                    if not math.isfinite(float(measured["loss"])):
                        break
                    if not more:
                        self._back_to_trunk()  # after it: a stop there gives the result again
                    continue
                norm = self.train_step(steps)
                if self.step % settings.log_every == 0 and self.step < steps:
                    measured = self._point(steps, norm)
                    yield self.step, measured
                    if "loss" in measured:
                        break
                if time.monotonic() - saved > settings.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
        except GeneratorExit:
            self._save()
            raise
        if self.todo or not settings.has_trunk:
            checkpoint.remove(self.folder)
        else:
            self._save()  # a longer horizon may come

    # what a step does

    @_flushed_denormals()
    def train_step(self, steps: int) -> float:
        """One step of a horizon of so many; the norm of its gradient."""
        settings = self.settings
        began = time.perf_counter()
        batch = torch.from_numpy(self.order.batch(self.step)).to(self.device, torch.int64)
        for parameter in self.parameters:
            parameter.grad = None
        due = settings.noise_every and self.step % settings.noise_every == 0
        if due and len(batch) % 2 == 0:
            one, other = batch.chunk(2)
            loss = self._accumulate(one, len(batch))
            half = [_gradient(parameter).clone() for parameter in self.parameters]
            loss += self._accumulate(other, len(batch))
            self._measure_noise(half)
        else:
            loss = self._accumulate(batch, len(batch))
        norm = self._clip()
        lr = rate(settings, self.step, steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.step += 1
        self.meters["loss"] += float(loss)
        self.meters["steps"] += 1
        self.worked += 1
        self.seconds += time.perf_counter() - began
        return norm

    def _accumulate(self, batch: Tensor, of: int) -> Tensor:
        """Add to the gradients those of some of the batch's windows; their part of its mean loss."""
        micro_tokens = self.settings.micro_tokens
        size = max(1, micro_tokens // self.settings.seq_len) if micro_tokens else of
        total = torch.zeros((), device=self.device)
        for micro in torch.split(batch, size):
            loss = losses(self.model, micro, self.settings.z_loss)
            torch.autograd.backward(loss[0] * (len(micro) / of))
            total += loss[1] * (len(micro) / of)
        return total

    def _clip(self) -> float:
        norms = [torch.linalg.vector_norm(_gradient(parameter)) for parameter in self.parameters]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        if norm > self.settings.clip:
            for parameter in self.parameters:
                _gradient(parameter).mul_(self.settings.clip / norm)
        return norm

    def _measure_noise(self, half: list[Tensor]) -> None:
        """From half the gradient of one half of the batch, and the whole batch's."""
        rest = [_gradient(p) - one for p, one in zip(self.parameters, half, strict=True)]
        halves = 2 * (_square(half) + _square(rest))
        meter = NoiseMeter(spread=self.meters["spread"], signal=self.meters["signal"])
        whole = _square([_gradient(parameter) for parameter in self.parameters])
        meter.update(self.settings.batch_tokens, halves, whole)
        self.meters["spread"], self.meters["signal"] = meter.spread, meter.signal

    # what it says

    def _point(self, steps: int, norm: float) -> dict[str, float | str]:
        settings = self.settings
        measured: dict[str, float | str] = {
            "train_loss": self._mean_loss(),
            "lr": rate(settings, self.step - 1, steps),
            "seen": self.step * settings.batch_tokens,
            "grad_norm": norm,
            "done": self._done(),
        }
        if self.decaying:
            measured["branch"] = self.todo[0]
        if not math.isfinite(float(measured["train_loss"])):
            measured["loss"] = measured["train_loss"]
        elif self.step % (10 * settings.log_every) == 0:
            measured["subset_loss"] = self._validation_loss(settings.eval_bytes // 8)
        self.meters["loss"] = self.meters["steps"] = 0.0
        return measured | self._said()

    def _result(self) -> dict[str, float | str]:
        settings = self.settings
        tokens = self.step * settings.batch_tokens
        measured: dict[str, float | str] = {
            "loss": self._validation_loss(settings.eval_bytes),
            "horizon": self.todo[0],
            "tokens": tokens,
            "epochs": tokens / (self.windows * settings.seq_len),
            "done": self._done(),
            "data_sha256": self.text.sha256,
            "dtype": str(self.dtype).removeprefix("torch."),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        }
        if self.meters["steps"]:
            measured["train_loss"] = self._mean_loss()
        scale = NoiseMeter(spread=self.meters["spread"], signal=self.meters["signal"]).scale
        if scale is not None:
            measured["noise_scale"] = scale
        if self.worked:
            work = self.worked * settings.batch_tokens * flops_per_token(settings)
            measured["flops_per_second"] = work / self.seconds
        return measured | self._said()

    def _said(self) -> dict[str, str]:
        return {"note": self.note} if self.note else {}

    def _mean_loss(self) -> float:
        """Of the steps since it was last asked for; a result asks without starting anew."""
        return self.meters["loss"] / self.meters["steps"]

    def _done(self) -> float:
        settings = self.settings
        all_steps = [settings.steps(tokens) for tokens in settings.tokens]
        decays = [steps - settings.branch(steps) for steps in all_steps]
        before = sum(decays[: settings.tokens.index(self.todo[0])])
        return (before + self.step) / (sum(decays[:-1]) + all_steps[-1])

    @_flushed_denormals()
    @torch.no_grad()
    def _validation_loss(self, size: int) -> float:
        """Mean over windows spread evenly over the validation text: the same for every run of the data."""
        seq_len, validation = self.settings.seq_len, self.text.validation
        there = (validation.size - 1) // seq_len
        count = min(there, max(1, size // seq_len))
        starts = np.arange(count) * there // count * seq_len
        windows = torch.from_numpy(validation[starts[:, None] + np.arange(seq_len + 1)])
        total = 0.0
        for some in torch.split(windows, max(1, 4096 // seq_len)):
            total += float(losses(self.model, some.to(self.device, torch.int64), 0.0)[1]) * len(some)
        return total / count

    # what it keeps

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"weights.{name}": p.detach() for name, p in self.model.named_parameters()}
        for index, optimizer in enumerate(self.optimizers):
            for name, parameter in self.model.named_parameters():
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"optimizer{index}.{name}.{key}"] = value
        return tensors

    @torch.no_grad()
    def _set_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[f"weights.{name}"])
            for index, optimizer in enumerate(self.optimizers):
                start = f"optimizer{index}.{name}."
                kept = {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
                if kept or parameter in optimizer.state:
                    optimizer.state[parameter] = {
                        key: t.to(self.device, copy=True) for key, t in kept.items()
                    }

    def _branch(self) -> None:
        self.decaying = True
        self.trunk = {name: tensor.clone() for name, tensor in self._state().items()}
        self.trunk_meters = dict(self.meters)

    def _back_to_trunk(self) -> None:
        self._set_state(self.trunk)
        self.step = self.settings.branch(self.settings.steps(self.todo[0]))
        self.meters = dict(self.trunk_meters)
        self.trunk, self.decaying = {}, False
        self.served.append(self.todo.pop(0))

    def _save(self) -> None:
        tensors = self._state() | {f"trunk.{name}": tensor for name, tensor in self.trunk.items()}
        facts = {
            "settings": _identity(self.settings),
            "data_sha256": self.text.sha256,
            "served": self.served,
            "decaying_to": self.todo[0] if self.decaying else None,
            "step": self.step,
            "meters": self.meters,
            "trunk_meters": self.trunk_meters,
        }
        checkpoint.save(self.folder, tensors, facts)

    def _resume(self) -> None:
        """Go on from the checkpoint, unless it is of a finished run, or past where a horizon leaves the trunk."""
        found = checkpoint.load(self.folder)
        if found is None:
            return
        tensors, facts, self.note = found
        if not facts:
            return
        settings = self.settings
        if facts["settings"] != _identity(settings) or facts["data_sha256"] != self.text.sha256:
            raise ValueError(
                f"needed the checkpoint of this run in {self.folder}, got one with other settings or data. "
                "Do: give each run its own folder"
            )
        todo = [tokens for tokens in settings.tokens if tokens not in facts["served"]]
        decaying_to, step = facts["decaying_to"], facts["step"]
        trunk_step = step if decaying_to is None else settings.branch(settings.steps(decaying_to))
        if not todo or settings.branch(settings.steps(todo[0])) < trunk_step:
            return
        self.todo, self.served, self.step = todo, facts["served"], step
        self.meters, self.trunk_meters = facts["meters"], facts["trunk_meters"]
        trunk = {
            name.removeprefix("trunk."): tensor.to(self.device)
            for name, tensor in tensors.items()
            if name.startswith("trunk.")
        }
        if decaying_to is None or decaying_to == todo[0]:
            self.decaying, self.trunk = decaying_to is not None, trunk
            self._set_state(tensors)
        else:  # a decay that nobody asks for any more
            self.step, self.meters = trunk_step, dict(self.trunk_meters)
            self._set_state(trunk)


def _identity(settings: Settings) -> dict[str, Any]:
    """The settings that decide the numbers, as JSON gives them back; a trunk is the same for all horizons."""
    free = {"checkpoint_seconds", "device", *(("tokens",) if settings.has_trunk else ())}
    kept = asdict(settings) | {"tokens": list(settings.tokens)}
    return {name: value for name, value in kept.items() if name not in free}


def _optimizers(settings: Settings, model: GPT, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""
    hidden = list(model.blocks.parameters())
    free = [model.embedding]  # of weight decay
    decayed = [] if settings.tied else [model.head]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        parts: dict[Tensor, int] = {block.qkv: 3 for block in model.layers}
        optimizers.append(Muon(hidden, settings.peak, parts, weight_decay=settings.weight_decay, dtype=dtype))
    else:
        decayed = [*hidden, *decayed]
    groups = [{"params": free, "weight_decay": 0.0}]
    if decayed:
        groups.append({"params": decayed, "weight_decay": settings.weight_decay})
    optimizers.append(torch.optim.AdamW(groups, lr=settings.peak, betas=(0.9, 0.95), eps=1e-8, fused=True))
    return optimizers


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _square(tensors: list[Tensor]) -> float:
    return sum(float(torch.linalg.vector_norm(tensor)) ** 2 for tensor in tensors)


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies tiles of it; elsewhere it is slower than float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        asks = getattr(torch.cpu, "_is_amx_tile_supported", None)
        fast = device.type == "cpu" and asks is not None and asks()
    return torch.bfloat16 if fast else torch.float32

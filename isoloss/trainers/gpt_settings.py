"""The settings of the reference trainer and what follows from them alone: sizes, FLOPs, learning rates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from isoloss.trainers import text

VOCABULARY = 256
CHOICES = {
    "optimizer": ("adamw", "muon"),
    "schedule": ("wsd", "cosine", "linear", "constant"),
    "decay": ("linear", "1-sqrt"),
    "dtype": ("auto", "float32", "bfloat16"),
}


@dataclass(frozen=True)
class Settings:
    """One run. ``width`` and ``tokens`` must be given; the rest has defaults.

    Attributes:
        width: of the residual stream; a multiple of ``head_size``.
        tokens: bytes to train on, or a rising list of horizons; each rounded down to whole steps.
        layers: blocks of attention and MLP.
        lr: peak learning rate; None: ``rule_lr``.
        batch_tokens: bytes a step, a multiple of ``seq_len``.
        seq_len: bytes a window.
        seed: of the initial weights and the order of the data.
        optimizer: "adamw" or "muon" (hidden matrices by Muon, the rest by AdamW).
        schedule: "wsd" (constant, then decay), "cosine", "linear" (both to zero over the horizon), "constant".
        warmup: steps of linear warm-up; the same for every horizon.
        decay_share: the last share of a horizon that is the decay of "wsd".
        decay: shape of that decay, "linear" (to zero) or "1-sqrt".
        weight_decay: decoupled, on hidden matrices and an untied head.
        clip: largest norm of the gradient.
        tied: whether the head is the embedding.
        qk_norm: RMSNorm on the queries and keys of each head.
        z_loss: coefficient of the mean squared log-normaliser.
        head_size: width of an attention head, the same at every width: sizes of a ladder differ in nothing else.
        dtype: of the matrix products; weights, residual stream and optimiser are float32 throughout. "auto":
            bfloat16 on a GPU or a CPU with bfloat16 tiles (AMX), else float32.
        data: "stdlib", or the path of a text file or folder; see ``text``.
        eval_bytes: how much of the validation text the loss is measured on.
        log_every: steps between two points of the curve.
        noise_every: steps between two measurements of the gradient noise scale; 0: none.
        checkpoint_seconds: between two checkpoints.
        micro_tokens: bytes a forward and backward pass, so that activations fit the cache; 0: the whole batch.
        device: "auto" (a GPU if there is one), or a name that torch knows.
    """

    width: int
    tokens: tuple[int, ...]
    layers: int = 2
    lr: float | None = None
    batch_tokens: int = 1024
    seq_len: int = 64
    seed: int = 0
    optimizer: str = "adamw"
    schedule: str = "wsd"
    warmup: int = 20
    decay_share: float = 0.2
    decay: str = "linear"
    weight_decay: float = 0.1
    clip: float = 1.0
    tied: bool = True
    qk_norm: bool = True
    z_loss: float = 0.0
    head_size: int = 32
    dtype: str = "auto"
    data: str = text.STDLIB
    eval_bytes: int = 131072
    log_every: int = 50
    noise_every: int = 10
    checkpoint_seconds: float = 30.0
    micro_tokens: int = 1024
    device: str = "auto"

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Settings:
        """Check a study's config; its ``folder`` is no setting.

        Raises:
            ValueError: a name is unknown or missing, or a value is out of range.
            TypeError: a value has the wrong type.
        """
        given = {name: value for name, value in config.items() if name != "folder"}
        kinds = {field.name: str(field.type) for field in fields(cls)}
        if unknown := sorted(set(given) - set(kinds)):
            raise ValueError(
                f"needed settings of gpt, got {', '.join(unknown)}. Do: choose from {', '.join(kinds)}"
            )
        if missing := [name for name in ("width", "tokens") if name not in given]:
            raise ValueError(
                f"needed {' and '.join(missing)}, got neither default nor value. Do: give a number"
            )
        settings = cls(**{name: _value(name, kinds[name], value) for name, value in given.items()})
        settings._check()
        return settings

    def _check(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"needed {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("width", "layers", "batch_tokens", "seq_len", "eval_bytes", "log_every", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"needed {name} above 0, got {getattr(self, name)}")
        for name in (
            "seed",
            "warmup",
            "noise_every",
            "micro_tokens",
            "z_loss",
            "weight_decay",
            "checkpoint_seconds",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"needed {name} of 0 or more, got {getattr(self, name)}")
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"needed lr above 0, got {self.lr}. Do: leave it out for the rule")
        if not 0 < self.decay_share < 1:
            raise ValueError(f"needed decay_share between 0 and 1, got {self.decay_share}")
        if self.head_size < 2 or self.width % self.head_size or self.head_size % 2:
            raise ValueError(
                f"needed a width of whole heads of head_size = {self.head_size}, got width = {self.width}. Do: choose a "
                "multiple, or an even head_size that divides every width of the ladder"
            )
        if self.batch_tokens % self.seq_len:
            raise ValueError(
                f"needed batch_tokens to be a multiple of seq_len = {self.seq_len}, got {self.batch_tokens}"
            )
        steps = [self.steps(tokens) for tokens in self.tokens]
        if not steps or steps[0] < 1 or any(a >= b for a, b in itertools.pairwise(steps)):
            raise ValueError(
                f"needed rising tokens, at least one batch of {self.batch_tokens} apart, got {list(self.tokens)}"
            )
        if len(steps) > 1 and not self.has_trunk:
            raise ValueError(
                f"needed a schedule whose trunk serves {len(steps)} horizons, got {self.schedule}. Do: choose wsd"
            )

    @property
    def has_trunk(self) -> bool:
        """Whether the rate is the same for every horizon until it branches off."""
        return self.schedule in ("wsd", "constant")

    @property
    def peak(self) -> float:
        """The peak learning rate, given or by rule."""
        return rule_lr(self.width, self.optimizer) if self.lr is None else self.lr

    def steps(self, tokens: int) -> int:
        """Whole steps of a horizon."""
        return tokens // self.batch_tokens

    def branch(self, steps: int) -> int:
        """The step at which a horizon leaves the trunk."""
        return steps - max(1, round(self.decay_share * steps)) if self.schedule == "wsd" else steps


def _value(name: str, kind: str, value: Any) -> Any:
    """A JSON value as its setting's type; whole floats count as integers, a number as a list of one."""
    if name == "tokens":
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_value("every horizon", "int", one) for one in values)
    if value is None and "None" in kind:
        return None
    want = kind.split(" ")[0]
    if want == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if want == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__ != want:
        raise TypeError(f"needed {name} to be {want}, got {value!r}")
    return value


def rule_lr(width: int, optimizer: str) -> float:
    """The default learning rate: 0.2 / width with AdamW, three times that with Muon.

    Found by single runs (one seed) of 10^6 bytes of the standard library, two layers, AdamW: of 0.001, 0.002 and
    0.004 at width 128 the second was best, of 0.0005 and 0.001 at width 256 the second by 0.001; narrower
    models wanted more. A factor of 2 off costs 0.01 to 0.03 nats per byte. For Muon only width 64 was tried:
    0.012 was best of 0.006, 0.012 and 0.024. The rule does not depend on the horizon, so that a trunk can serve several.
    """
    return (0.6 if optimizer == "muon" else 0.2) / width


def axes(config: Mapping[str, Any]) -> dict[str, float]:
    """What is known of a run of one horizon before it starts.

    With d = width, L = layers, T = seq_len, D = tokens rounded down to whole steps:

        params_nonembedding = 12 L d^2
        params = params_nonembedding + 256 d (tied) or + 512 d (embedding and head)
        flops = 6 (12 L d^2 + 256 d) D + 6 L (T + 1) d D

    The lookup of the embedding is free, the head is not. A position attends to (T + 1) / 2 positions on average,
    itself included: the causal half, whatever a kernel does with the other half. Backward counts twice forward.

    Raises:
        ValueError, TypeError: as ``Settings.read``, or there is more than one horizon.

    Example:
        >>> axes({"width": 64, "layers": 2, "tokens": 1e6})["params"]
        114688
    """
    settings = Settings.read(config)
    if len(settings.tokens) != 1:
        raise ValueError(f"needed one horizon, got {len(settings.tokens)}. Do: ask for each by itself")
    tokens = settings.steps(settings.tokens[0]) * settings.batch_tokens
    hidden = 12 * settings.layers * settings.width**2
    embedding = VOCABULARY * settings.width
    return {
        "params": hidden + embedding * (1 if settings.tied else 2),
        "params_nonembedding": hidden,
        "tokens": tokens,
        "flops": flops_per_token(settings) * tokens,
    }


def flops_per_token(settings: Settings) -> int:
    """Forward and backward, as ``axes`` counts them."""
    width, layers = settings.width, settings.layers
    matrices = 12 * layers * width**2 + VOCABULARY * width
    return 6 * matrices + 6 * layers * (settings.seq_len + 1) * width


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) of a run of so many; ``steps`` counts only in a decay."""
    factor = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    match settings.schedule:
        case "wsd":
            start = settings.branch(steps)
            past = max(0.0, (step - start) / (steps - start))
            factor *= 1 - (past if settings.decay == "linear" else math.sqrt(past))
        case "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * step / steps))
        case "linear":
            factor *= 1 - step / steps
    return settings.peak * factor

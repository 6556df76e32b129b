"""Memory predicted and measured, runtimes predicted for unseen lengths, and the machine's roofline.

    python -m benchmarks.measure_costs [--out docs/measure-costs.md] [--only memory,runtime,roofline]

*Memory*: the peak of a training step predicted on empty tensors against every allocation that torch's profiler
reports of a real step, the growth of the process's resident memory, and the activations that torchinfo estimates.
*Runtime*: ten timings predict others that were made in turn with them; CPU time of one thread, medians of the
repeats. *Roofline*: the bandwidth against what NumPy reads, with the load of the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from benchmarks import page
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.latency import load, times
from isoloss.measure.memory import measure_memory, predict_memory
from isoloss.measure.roofline import measure_roofline
from isoloss.measure.runtime import Generate, design, fit_runtime
from isoloss.measure.subject import Subject

REPEATS = 21


def gpt(width: int, length: int, batch: int = 16, layers: int = 4) -> Subject:
    from isoloss.trainers import gpt_modules
    from isoloss.trainers.gpt_settings import Settings
    from isoloss.trainers.transformer import GPT

    settings = Settings.read(
        {"width": width, "layers": layers, "tokens": 10**6, "seq_len": length, "batch_tokens": length}
    )
    ids = torch.randint(0, 256, (batch, length))
    return Subject(
        gpt_modules.of(GPT(settings), settings), [(ids, ids)], CrossEntropy(), f"GPT, width {width}"
    )


def llama(width: int, batch: int, length: int) -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2000, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048,
    )  # fmt: skip
    ids = torch.randint(0, 2000, (batch, length))
    return Subject(
        LlamaForCausalLM(config), [({"input_ids": ids}, ids)], CrossEntropy(), f"Llama (Hugging Face), width {width}",
        outputs=lambda out: out.logits,
    )  # fmt: skip


def mlp() -> Subject:
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))
    return Subject(
        net, [(torch.randn(4096, 64), torch.randint(0, 10, (4096,)))], CrossEntropy(), "MLP, batch 4096"
    )


class Block(nn.Module):
    """Two convolutions with norms and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip
        self.way = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.way(x))


def cnn() -> Subject:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), Block(16, 16, 1), Block(16, 32, 2),
        Block(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    batch = (torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,)))
    return Subject(net, [batch], CrossEntropy(), "CNN, residual, batch 64")


def memory() -> str:
    rows = []
    for subject, optimisers in (
        (gpt(128, 128), ("sgd", "adamw", "muon")),
        (llama(256, 8, 128), ("adamw",)),
        (mlp(), ("sgd", "adamw")),
        (Subject(mlp().model, [(torch.randn(16, 64), torch.randint(0, 10, (16,)))], CrossEntropy(), "MLP, batch 16"),
         ("adamw", "muon")),
        (cnn(), ("sgd", "adamw")),
    ):  # fmt: skip
        for optimiser in optimisers:
            guess, real = predict_memory(subject, optimiser), measure_memory(subject, optimiser)
            rows.append([
                subject.name, optimiser, f"{guess.peak / 1e6:.2f}", f"{real.peak / 1e6:.2f}",
                f"{100 * (guess.peak / real.peak - 1):+.2f} %", f"{real.resident / 1e6:.0f}", real.peak_in,
                f"{guess.activations / 1e6:.2f}", f"{real.activations / 1e6:.2f}", _torchinfo(subject),
                f"{guess.spent.cpu_seconds / real.spent.cpu_seconds:.2f}",
            ])  # fmt: skip
    head = [
        "model", "optimiser", "peak predicted (MB)", "measured", "off by", "resident memory grew by", "at its most in",
        "activations predicted", "measured", "by torchinfo", "CPU time over that of measuring",
    ]  # fmt: skip
    return page.table(head, rows, (2, 3, 4, 5, 7, 8, 9, 10))


def _torchinfo(subject: Subject) -> str:
    """What torchinfo calls the size of the forward and backward pass [MB]."""
    if importlib.util.find_spec("torchinfo") is None:
        return "not installed"
    import torchinfo

    inputs, _ = subject.batches[0]
    keywords = {"input_data": inputs, "verbose": 0, "mode": "train"}
    return f"{torchinfo.summary(subject.model, **keywords).total_output_bytes / 1e6:.2f}"


def read_again(subject: Subject) -> Generate:
    """Generation without a cache: every token reads all before it again."""

    @torch.inference_mode()
    def generate(prompt: int, new: int) -> None:
        ids = torch.zeros(1, prompt, dtype=torch.long)
        for _ in range(new):
            ids = torch.cat([ids, subject.model(ids)[:, -1:].argmax(-1)], dim=1)

    return generate


def with_cache(subject: Subject) -> Generate:
    """The library's own generation."""
    from transformers import GenerationConfig

    @torch.inference_mode()
    def generate(prompt: int, new: int) -> None:
        ids = torch.ones(1, prompt, dtype=torch.long)
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, eos_token_id=None
        )
        subject.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)

    return generate


def runtime() -> str:
    rows = []
    unseen = [
        (16, 8), (32, 32), (100, 4), (128, 24), (200, 12), (300, 1), (384, 20), (450, 8), (640, 6), (700, 1), (900, 10),
    ]  # fmt: skip
    for subject, generate, longest in (
        (gpt(256, 1100, 1), read_again, 32),
        (llama(256, 1, 16), with_cache, 64),
    ):
        call = generate(subject)
        seen = design(1024, longest)
        places = [*seen, *(place for place in unseen if place not in seen)]

        def run(p: int, o: int, call: Generate = call) -> Callable[[], object]:
            return lambda: call(p, o)

        took = times({f"{p},{o}": run(p, o) for p, o in places}, REPEATS, warm=1)
        cpu = {place: took[f"{place[0]},{place[1]}"].cpu for place in places}
        fitted = fit_runtime({place: cpu[place] for place in seen}, "median")
        held = places[len(seen) :]
        off = np.array([fitted.seconds(*place) / median(cpu[place]) - 1 for place in held])
        inside = 0
        for place in held:
            told = fitted.predict(*place)
            inside += told.low <= median(cpu[place]) <= told.high
        busy = took[f"{places[0][0]},{places[0][1]}"].load
        rows.append([
            f"{subject.name}, {'a cache' if generate is with_cache else 'no cache'}", f"{len(seen)}", f"{len(held)}",
            f"{100 * np.median(np.abs(off)):.1f} %", f"{100 * np.max(np.abs(off)):.1f} %",
            f"{np.sum(np.abs(off) <= 0.05)} of {len(held)}", f"{inside} of {len(held)}", f"{100 * fitted.error:.1f} %",
            f"{1e3 * fitted.per_token:.2f}" if fitted.cached else "reads again",
            f"{sum(median(cpu[p]) for p in seen) / sum(median(cpu[p]) for p in places):.0%}", f"{busy[0]:.1f} to {busy[1]:.1f}",
        ])  # fmt: skip
    head = [
        "model", "timings", "unseen", "median error", "largest", "within 5 %", "inside the 90 % interval",
        "error it expects", "ms per token", "share of all time in the timings", "load",
    ]  # fmt: skip
    return page.table(head, rows, tuple(range(1, 11)))


def roofline() -> str:
    before = load()
    roof = measure_roofline()
    rows = [
        [
            str(c.threads), c.dtype, f"{c.flops / 1e9:.0f}", f"{c.bandwidth / 1e9:.1f}", f"{c.ridge:.0f}",
            _numpy(roof.rotated) if c.threads == 1 and c.dtype == "float32" else "",
        ]
        for c in roof.ceilings
    ]  # fmt: skip
    head = ["threads", "type", "GFLOP/s", "GB/s read", "ridge (FLOP/byte)", "NumPy reads (GB/s)"]
    said = (
        f"{roof.machine}; torch {roof.torch}; {roof.rotated / 1e6:.0f} MB read in rotation; load {before:.1f} before, "
        f"{load():.1f} after."
    )
    return f"{said}\n\n{page.table(head, rows, (0, 2, 3, 4, 5))}"


def _numpy(rotated: int) -> str:
    """Inner products of blocks with themselves, in rotation: each is read once."""
    blocks = [np.ones(1 << 22, dtype=np.float32) for _ in range(rotated >> 24)]
    took = []
    for block in [*blocks, *blocks]:
        began = time.perf_counter()
        np.dot(block, block)
        took.append(time.perf_counter() - began)
    return f"{blocks[0].nbytes / np.quantile(took, 0.25) / 1e9:.1f}"


PARTS = {"memory": memory, "runtime": runtime, "roofline": roofline}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for name in arguments.only.split(","):
        if name != "roofline":
            torch.set_num_threads(1)
        text = PARTS[name]()
        print(f"\n{name}\n\n{text}", flush=True)
        if arguments.out is not None:
            page.put(arguments.out, f"measure_{name}", text)


if __name__ == "__main__":
    main()

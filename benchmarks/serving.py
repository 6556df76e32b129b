"""Settings of the real server found by search, beside a map of the whole grid: how good they are, and what they cost.

``python -m benchmarks.serving [--threads 1,2] [--width 128]``, about a minute; on the reference trainer's
model with fresh weights, whose speed is that of trained ones. :mod:`benchmarks.generation` does the same on SmolLM2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import page
from isoloss.deploy.bench import pinned
from isoloss.deploy.decoders import Decoder, decoder
from isoloss.deploy.server import Request, serve
from isoloss.deploy.serving import search
from isoloss.trainers.gpt_modules import of
from isoloss.trainers.gpt_settings import Settings
from isoloss.trainers.transformer import GPT

MEASUREMENTS = 3  # of each place of the map
AGAIN = 5  # of each choice, in turn: the best of a map was chosen for its luck too

Axes = Mapping[str, Sequence[int]]


def beside_a_map(
    model: Decoder, requests: Sequence[Request], axes: Axes, trials: Sequence[int]
) -> dict[str, Any]:
    """A search of each number of trials, and a map of the grid, by tokens a second; then what each chose, anew, in turn."""

    def rate(settings: Mapping[str, Any]) -> float:
        with pinned(settings["threads"]), torch.no_grad():
            return serve(model, requests, settings["batch"], settings["piece"]).tokens_per_second

    places = [dict(zip(axes, one, strict=True)) for one in itertools.product(*axes.values())]
    rate(places[len(places) // 2])  # warm
    searches: list[dict[str, Any]] = []
    for most in trials:
        began = time.perf_counter()
        found = search(axes, rate, most)
        tried = {json.dumps(dict(trial.settings)) for trial in found.trials}
        searches.append(
            {"trials": most, "tried": len(tried), "settings": dict(found.settings), "seconds": time.perf_counter() - began}
        )  # fmt: skip
    began = time.perf_counter()
    grid: dict[str, list[float]] = {json.dumps(place): [] for place in places}
    for _ in range(MEASUREMENTS):
        for place in places:
            grid[json.dumps(place)].append(rate(place))
    mapped = time.perf_counter() - began
    means = {place: statistics.fmean(rates) for place, rates in grid.items()}
    best = max(means, key=lambda place: means[place])
    again: dict[str, list[float]] = {
        place: [] for place in (best, *(json.dumps(one["settings"]) for one in searches))
    }
    for _ in range(AGAIN):
        for chosen, rates in again.items():
            rates.append(rate(json.loads(chosen)))
    for one in searches:
        one["rates"] = list(again[json.dumps(one["settings"])])
    return {
        "searches": searches, "means": means, "map seconds": mapped,
        "best": json.loads(best), "best rate": list(again[best]), "load": os.getloadavg()[0],
    }  # fmt: skip


def table(row: Mapping[str, Any]) -> str:
    """Each choice, its speed measured anew, and what it cost."""
    best, places = statistics.fmean(row["best rate"]), len(row["means"])

    def line(who: str, settings: Mapping[str, int], rates: Sequence[float], cost: str) -> list[str]:
        mean, se = statistics.fmean(rates), statistics.stdev(rates) / math.sqrt(len(rates))
        words = ", ".join(f"{name} {value}" for name, value in settings.items())
        return [who, words, f"{mean:.1f} ± {se:.1f}", f"{100 * mean / best:.0f}%", cost]

    lines = [
        line("search", one["settings"], one["rates"],
             f"{one['trials']} trials on {one['tried']} of {places} places, {one['seconds']:.0f} s")
        for one in row["searches"]
    ]  # fmt: skip
    cost = f"{MEASUREMENTS * places} measurements, {row['map seconds']:.0f} s"
    lines.append(line("map of the grid", row["best"], row["best rate"], cost))
    first, worst = next(iter(row["means"].values())), min(row["means"].values())
    heads = ["by", "settings", "tokens/s", "of the map's best", "cost"]
    return page.table(heads, lines, (2, 3, 4)) + (
        f"\n\nAll choices measured anew {AGAIN} times, in turn. On the map the first place has {first:.1f} tokens/s, the worst "
        f"{worst:.1f}. Load of the machine {row['load']:.1f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", default="1,2", type=lambda text: [int(one) for one in text.split(",")])
    parser.add_argument("--batches", default=5, type=int, help="1, 2, 4, ... texts at a time: so many")
    parser.add_argument("--width", default=128, type=int)
    parser.add_argument("--requests", default=16, type=int)
    given = parser.parse_args()
    axes = {"batch": [2**i for i in range(given.batches)], "threads": given.threads, "piece": [4, 8, 16]}
    grid = math.prod(len(values) for values in axes.values())
    # a quarter of the places, and of the measurements that a map takes
    trials = max(8, round(grid / 4)), max(8, round(MEASUREMENTS * grid / 4))
    print(table(beside_a_map(gpt(given.width), load(given.requests), axes, trials)))
    print(
        f"\n{page.machine()} torch {torch.__version__}; a GPT of width {given.width}, {given.requests} texts."
    )


def gpt(width: int) -> Decoder:
    """The reference trainer's model with fresh weights."""
    settings = Settings(width=width, tokens=(1,), seq_len=128)
    return decoder(of(GPT(settings), settings))


def load(requests: int) -> list[Request]:
    """Texts of 16 to 32 tokens, 4 to 12 more of each."""
    return [
        Request([(7 * i + j) % 256 for j in range(16 + 8 * (i % 3))], 4 + 4 * (i % 3), i)
        for i in range(requests)
    ]


if __name__ == "__main__":
    main()

"""A law with noise for a trainer: exact numbers, checkpoints, and the troubles that settings ask for."""

from __future__ import annotations

import json
import math
import os
import random
import time
from pathlib import Path

STEPS = 8


def axes(config):
    return {
        "params": config["params"],
        "tokens": config["tokens"],
        "flops": 6.0 * config["params"] * config["tokens"],
    }


def end(config):
    noise = random.Random(f"{config['params']:g}/{config['tokens']:g}/{config.get('seed', 0)}").gauss(
        0, 0.003
    )
    off = 0.02 * abs(math.log(config.get("lr", 1.0)))
    return (1.7 + 400 * config["params"] ** -0.35 + 1200 * config["tokens"] ** -0.37) * math.exp(noise) + off


def asked(config, name):
    """From the settings, or for all runs alike, without a change of their keys, from the environment."""
    return os.environ.get(f"LADDER_{name.upper()}", config.get(name))


def told(config, *words):
    """Say who ran from where, for "nothing runs twice"."""
    if (log := asked(config, "log")) is not None:
        with Path(log).open("a") as file:
            file.write(" ".join(f"{word}" for word in words) + "\n")


def trouble(config, step):
    time.sleep(float(asked(config, "pause") or 0.0))
    kind = config.get("trouble")
    if kind == "raise" and step == 3:
        raise RuntimeError("the optimiser is on strike")
    if kind == "die" and step == 3:
        os.kill(os.getpid(), 9)
    if kind == "mended" and step == 3 and not asked(config, "mended"):
        raise RuntimeError("not mended yet")


def save(place, step):
    part = place.with_suffix(".part")
    part.write_text(json.dumps(step + 1))
    os.replace(part, place)


def train(config):
    place = Path(config["folder"]) / "at.json"
    first = json.loads(place.read_text()) if place.exists() else 1
    told(config, f"{config['params']:g}", f"{config['tokens']:g}", config.get("seed", 0), first)
    for step in range(first, STEPS + 1):
        trouble(config, step)
        loss = end(config) * (1 + 0.5 * (1 - step / STEPS))
        if config.get("trouble") == "diverge" and step == 3:
            loss = math.nan
        facts = {"data_sha256": config.get("data", "one")} if step == STEPS else {}
        yield step, {"loss": loss, "done": step / STEPS, **facts}
        save(place, step)


def branches(config):
    """A trunk with an end for each value of ``tokens``, a step for every million of them."""
    place, ends = Path(config["folder"]) / "at.json", config["tokens"]
    first = json.loads(place.read_text()) if place.exists() else 1
    told(config, f"{config['params']:g}", ",".join(f"{h:g}" for h in ends), first)
    for step in range(first, int(ends[-1] / 1e6) + 1):
        trouble(config, step)
        yield step, {"loss": 9.0 - 0.01 * step, "done": step * 1e6 / ends[-1]}
        if step * 1e6 in ends:
            yield step, {"loss": end({**config, "tokens": step * 1e6}), "horizon": step * 1e6}
        save(place, step)

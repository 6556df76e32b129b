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


def train(config):
    folder = Path(config["folder"])
    place = folder / "at.json"
    first = json.loads(place.read_text()) if place.exists() else 1
    if (flag := config.get("log")) is not None:  # who ran from where, for "nothing runs twice"
        with Path(flag).open("a") as file:
            file.write(f"{config['params']:g} {config['tokens']:g} {config.get('seed', 0)} {first}\n")
    for step in range(first, STEPS + 1):
        time.sleep(config.get("pause", 0.0))
        if config.get("trouble") == "raise" and step == 3:
            raise RuntimeError("the optimiser is on strike")
        if config.get("trouble") == "die" and step == 3:
            os.kill(os.getpid(), 9)
        loss = end(config) * (1 + 0.5 * (1 - step / STEPS))
        if config.get("trouble") == "diverge" and step == 5:
            loss = math.nan
        facts = {"data_sha256": config.get("data", "one")} if step == STEPS else {}
        yield step, {"loss": loss, "done": step / STEPS, **facts}
        part = place.with_suffix(".part")
        part.write_text(json.dumps(step + 1))
        os.replace(part, place)

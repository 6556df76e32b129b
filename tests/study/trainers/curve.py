"""A noisy curve with checkpoints: every call gives the same points, however often it is cut short."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path


def train(config):
    folder = Path(config["folder"])
    with (folder / "calls").open("a") as calls:
        calls.write(f"{os.getpid()}\n")
    place = folder / "state.json"
    state = json.loads(place.read_text()) if place.exists() else {"step": 0, "noise": 0.0}
    every, steps = config.get("every", 5), config["steps"]
    try:
        while state["step"] < steps:
            step = state["step"] + 1
            draw = random.Random(f"{config['seed']}/{step}").gauss(0.0, 0.02)
            state = {"step": step, "noise": 0.5 * state["noise"] + draw}
            time.sleep(config.get("pause", 0.0))
            if config.get("die_at") == step and not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            loss = 2.0 + config["a"] * step**-0.5 + state["noise"]
            yield step, {"loss": loss, "done": step / steps, "data": "abc"}
            if step % every == 0:
                save(place, state)
    except GeneratorExit:
        save(place, state)
        raise


def save(place, state):
    beside = place.with_suffix(".new")
    beside.write_text(json.dumps(state))
    beside.replace(place)


def axes(config):
    return {"params": config["a"] * 10, "tokens": config["steps"] * 2}

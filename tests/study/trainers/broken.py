"""Trainers that do what trainers should not."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import time
from pathlib import Path

not_a_function = 3


def raises(config):
    yield 1, {"loss": 3.0}
    raise ValueError("the learning rate is negative\nand more is said")


def raises_once(config):
    marker = Path(config["folder"]) / "marker"
    first = not marker.exists()
    marker.touch()
    yield 1, {"loss": 3.0}
    if first:
        raise RuntimeError("once")
    yield 2, {"loss": 2.0}


def returns(config):
    return {"loss": 3.0}


def nothing(config):
    yield from ()


def no_target(config):
    yield 1, {"loss": 3.0}
    yield 2, {"train_loss": 3.0}


def yields(config):
    """Something that is no (step, measurements)."""
    yield {
        "dict": {"loss": 3.0},
        "list": (1, {"loss": [3.0]}),
        "step": (math.nan, {"loss": 3.0}),
        "text": (1, {"loss": "low"}),
        "name": (1, {2: 3.0}),
    }[config["what"]]


def diverges(config):
    closed = Path(config["folder"]) / "closed"
    try:
        yield 1, {"loss": 3.0, "norm": math.inf}
        yield 2, {"loss": math.nan}
        yield 3, {"loss": 3.0}
    finally:
        closed.touch()


def full_disk(config):
    yield 1, {"loss": 3.0}
    if not Path(config["flag"]).exists():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("the checkpoint was not written") from error


def exits(config):
    yield 1, {"loss": 3.0}
    sys.exit("enough")


def dies(config):
    yield 1, {"loss": 3.0}
    os._exit(7)


def forks(config):
    """A forked child that comes back through the trainer's code."""
    yield 1, {"loss": 3.0}
    if os.fork() == 0:
        raise RuntimeError("in the child")
    os.wait()
    yield 2, {"loss": 2.0}


def eats(config):
    """More memory than the limit, through Python or numpy."""
    yield 1, {"loss": 3.0}
    if config["how"] == "numpy":
        import numpy

        yield 2, {"loss": float(numpy.ones(config["bytes"] // 8).sum())}
    yield 2, {"loss": float(len(bytearray(config["bytes"])))}


def shell(config):
    """A child of a shell, which says its number, and no further step for half a minute."""
    child = subprocess.Popen(["sh", "-c", "sleep 30"])
    yield 1, {"loss": 3.0, "child": child.pid}
    time.sleep(30)
    yield 2, {"loss": 2.0}


def deaf(config):
    """Goes on when it is to end."""
    for step in range(1000):
        try:
            time.sleep(0.01)
            yield step, {"loss": 3.0, "done": step / 1000}
        except GeneratorExit:
            yield step, {"loss": 3.0}


def chatty(config):
    """Prints from Python, from C and from a child; tells its surroundings."""
    import ctypes

    print(f"said by Python {config['word']}")
    ctypes.CDLL(None).puts(f"said by C {config['word']}".encode())
    subprocess.run(["sh", "-c", f"echo said by a child {config['word']}; echo complaint >&2"], check=True)
    yield 1, {"loss": 3.0, "threads": int(os.environ["OMP_NUM_THREADS"]), "cwd": os.getcwd()}


def works(config):
    """Busy for a time, with child processes where asked."""
    if config.get("child"):
        code = "import time\nwhile time.process_time() < 0.2: pass"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
    begun, at = time.process_time(), time.monotonic()
    for step in range(1, config["yields"] + 1):
        while time.process_time() - begun < config["seconds"] * step / config["yields"]:
            pass
        yield step, {"loss": 1.0, "busy": time.monotonic() - at}

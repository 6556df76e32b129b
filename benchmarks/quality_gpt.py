"""The byte GPT of the quality table: trained once by the reference trainer, kept in the cache's folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.networks import SHARED, Absent
from isoloss.trainers.gpt import train
from isoloss.trainers.gpt_modules import Transformer, load

TEXT = "sets/wikitext2/valid.txt.gz"
SETTINGS: dict[str, Any] = {
    "width": 192, "layers": 7, "tokens": 2_400_000, "seq_len": 256, "batch_tokens": 4096, "micro_tokens": 4096,
    "optimizer": "muon", "schedule": "linear", "noise_every": 0,
}  # fmt: skip


def trained(folder: Path) -> tuple[Transformer, dict[str, float]]:
    """The model, and what is to be said of it: parameters, validation loss, CPU seconds of training.

    Raises:
        Absent: its text is not beside this checkout.
    """
    if not (SHARED / TEXT).is_file():
        raise Absent(f"{TEXT} is not beside this checkout")
    folder.mkdir(parents=True, exist_ok=True)
    facts = folder / "facts.json"
    if not facts.is_file():
        began = time.process_time()
        run = train({**SETTINGS, "data": str(SHARED / TEXT), "folder": str(folder)})
        for _, point in run:
            if "loss" in point:
                break
        run.close()  # stopped at the result, the checkpoint holds the trained weights
        found = {"loss": float(point["loss"]), "cpu_seconds": time.process_time() - began}
        facts.write_text(json.dumps(found), encoding="utf-8")
    model = load(folder)[0]
    model.requires_grad_(True)
    known = json.loads(facts.read_text(encoding="utf-8"))
    return model.eval(), {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "validation loss [nats a byte]": known["loss"],
        "CPU seconds of its training": known["cpu_seconds"],
    }

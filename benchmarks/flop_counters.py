"""FLOP counters side by side on models whose FLOPs are counted by hand.

    python -m benchmarks.flop_counters [--out docs/benchmarks.md]

The models and their counts are in `benchmarks/flop_cases.py`. Every counter gets each model in a process of its own,
because some leave torch patched when they fail. Counters that give multiply-adds are doubled; where one gives both
(calflops, deepspeed), the nearer of its FLOPs and its doubled multiply-adds stands in the table. Counters that are not
installed are said to be so. One thread; times do not matter here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import page
from benchmarks.flop_cases import CASES, Case

NEAR = 0.01


class Plain(nn.Module):
    """A case's model that takes its tensor and gives one: all that every counter can call."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.model = case, case.make().eval()

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.case.inputs
        out = self.model(**{**inputs, "input_ids": x}) if isinstance(inputs, dict) else self.model(x)
        return self.case.outputs(out)


def tensor_of(case: Case) -> Tensor:
    return case.inputs["input_ids"] if isinstance(case.inputs, dict) else case.inputs


def nearer(case: Case, flops: float, macs: float) -> float:
    return min((flops, 2 * macs), key=lambda value: abs(value - case.forward))


def ours(case: Case) -> tuple[float, float | None]:
    from isoloss.measure.flops import count
    from isoloss.measure.subject import Subject

    subject = Subject(Plain(case), [(tensor_of(case), torch.zeros(1))], lambda z, _: z.square().mean())
    found = count(subject)
    return found.forward, found.forward_backward


def torchs(case: Case) -> tuple[float, float | None]:
    from torch.utils.flop_counter import FlopCounterMode

    model, x = Plain(case), tensor_of(case)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x)
    with FlopCounterMode(display=False) as both:
        model(x).square().mean().backward()
    return forward.get_total_flops(), both.get_total_flops()


def fvcore(case: Case) -> tuple[float, float | None]:
    from fvcore.nn import FlopCountAnalysis

    return 2 * FlopCountAnalysis(Plain(case), (tensor_of(case),)).total(), None


def _ptflops(case: Case, backend: str) -> tuple[float, float | None]:
    from ptflops import get_model_complexity_info

    found, _ = get_model_complexity_info(
        Plain(case), (1,), as_strings=False, print_per_layer_stat=False, backend=backend,
        input_constructor=lambda _: {"x": tensor_of(case)},
    )  # fmt: skip
    if found is None:
        raise RuntimeError("gives no number")
    return 2 * found, None


def ptflops_modules(case: Case) -> tuple[float, float | None]:
    return _ptflops(case, "pytorch")


def ptflops_aten(case: Case) -> tuple[float, float | None]:
    return _ptflops(case, "aten")


def thop(case: Case) -> tuple[float, float | None]:
    from thop import profile

    return 2 * profile(Plain(case), (tensor_of(case),), verbose=False)[0], None


def calflops(case: Case) -> tuple[float, float | None]:
    from calflops import calculate_flops

    flops, macs, _ = calculate_flops(
        Plain(case), args=[tensor_of(case)], kwargs={}, output_as_string=False, print_results=False
    )
    found = nearer(case, flops, macs)
    return found, 3 * found  # its rule: a backward pass is twice a forward pass


def torchinfo(case: Case) -> tuple[float, float | None]:
    from torchinfo import summary

    return 2 * summary(Plain(case), input_data=tensor_of(case), verbose=0).total_mult_adds, None


def deepspeed(case: Case) -> tuple[float, float | None]:
    from deepspeed.profiling.flops_profiler import get_model_profile

    flops, macs, _ = get_model_profile(
        Plain(case), args=[tensor_of(case)], print_profile=False, as_string=False
    )
    found = nearer(case, flops, macs)
    return found, 3 * found


COUNTERS: dict[str, tuple[Callable[[Case], tuple[float, float | None]], str]] = {
    "isoloss": (ours, "torch"),
    "torch FlopCounterMode": (torchs, "torch"),
    "ptflops (aten)": (ptflops_aten, "ptflops"),
    "ptflops (modules)": (ptflops_modules, "ptflops"),
    "calflops": (calflops, "calflops"),
    "deepspeed": (deepspeed, "deepspeed"),
    "fvcore": (fvcore, "fvcore"),
    "torchinfo": (torchinfo, "torchinfo"),
    "thop": (thop, "thop"),
}


def counted(name: str, case: Case) -> tuple[float, float | None] | str:
    """One counter on one case, in a process that ends with it; a word where it fails."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            torch.manual_seed(0)
            try:
                queue.put(COUNTERS[name][0](case))
            except Exception as error:
                queue.put(type(error).__name__)

    process = context.Process(target=work)
    process.start()
    process.join()
    return "no number" if queue.empty() else queue.get()


def near(value: float, *truths: float) -> bool:
    """Within 1 % of what was counted by hand."""
    return any(abs(value - truth) <= NEAR * truth for truth in truths)


def measure() -> str:
    """The two tables."""
    found_names = [name for name, (_, package) in COUNTERS.items() if importlib.util.find_spec(package)]
    absent = sorted({package for _, package in COUNTERS.values() if not importlib.util.find_spec(package)})
    forward, both = [], []
    right = dict.fromkeys(found_names, 0)
    right_both: dict[str, int] = {}
    for case in CASES:
        case.make()  # imports what it needs, once for all processes
    for case in CASES:
        line, second = [case.name], [case.name]
        whole = case.forward + case.backward
        for name in found_names:
            got = counted(name, case)
            if isinstance(got, str):
                line.append(got)
                continue
            line.append(f"{got[0] / case.forward:.3f}")
            right[name] += near(got[0], case.forward)
            if got[1] is not None:
                second.append(f"{got[1] / whole:.3f}")
                # Either convention is right: the scores computed again, or not.
                right_both[name] = right_both.get(name, 0) + near(got[1], whole, whole - case.again)
        forward.append(line)
        if len(second) > 1:
            both.append(second)
    forward.append([f"within 1 %, of {len(CASES)}", *(str(right[name]) for name in found_names)])
    both.append([f"within 1 %, of {len(CASES)}", *(str(count) for count in right_both.values())])
    versions = ", ".join(
        f"{package} {version(package)}"
        for package in dict.fromkeys(COUNTERS[name][1] for name in found_names)
    )
    parts = [
        f"{versions}. FLOPs as counted over FLOPs by hand; 1 is right."
        + (f" Not installed: {', '.join(absent)}." if absent else ""),
        "Forward:",
        page.table(["case", *found_names], forward, range(1, len(found_names) + 1)),
        "Forward and backward, of those that give it (calflops and deepspeed by the rule of three times forward):",
        page.table(["case", *right_both], both, range(1, len(right_both) + 1)),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    out = parser.parse_args().out
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)
    text = measure()
    if out:
        page.put(out, "flop_counters", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

"""Seeing what torch runs does not wait for torch's compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
CODE = """
import sys
import torch
from torch import nn
from isoloss.compress import Choice, compress
from isoloss.compress.forecast import forecast
from isoloss.measure import Subject, flops, parameters, traffic
from isoloss.measure.storages import Tally

net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(6, 8)
with Tally() as tally:
    net(x)
assert tally.peak > 0
compress(net, Choice("int4", "gptq"), [x])
forecast(net, Choice("int4", "gptq"), [x])
from isoloss.measure.dispatch import Mode

def every(kind):
    return [kind, *(own for one in kind.__subclasses__() for own in every(one))]

assert len(every(Mode)) > 5, every(Mode)
print([name for name in sys.modules if name.startswith("torch._dynamo")])
"""


def test_the_compiler_of_torch_is_not_imported():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]"]

"""Takes a PyTorch model with data, gives measurements: values with standard errors and their own cost.

``PROBES`` is the registry that the command line, the documentation and the tests read: one method, one file,
one paper. A file is imported when its probe is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.measure.measurement import Measurement, Spent
    from isoloss.measure.subject import Subject

__all__ = ["PROBES", "WHAT", "Measurement", "Spent", "Subject", "probe"]

PROBES: dict[str, str] = {
    "params": "parameters:probe",
    "flops": "flops:probe",
    "memory": "memory:probe",
    "traffic": "traffic:probe",
    "latency": "latency:probe",
    "runtime": "runtime:probe",
    "energy": "energy:probe",
    "trace": "hessian_trace:probe",
    "layer_traces": "traces:probe",
    "activation_traces": "activations:probe",
    "eigenvalues": "eigen:probe",
    "block_eigenvalues": "eigen:blocks_probe",
    "density": "density:probe",
    "fisher": "fisher:probe",
    "effective_dimension": "woodbury:probe",
    "noise_scale": "noise:probe",
    "noise_scale_curved": "noise:probe_curved",
}
"""Name -> ``module:function`` below ``isoloss.measure``."""

WHAT: dict[str, tuple[str, ...]] = {
    "costs": ("params", "flops", "memory", "traffic", "latency", "runtime", "energy"),
    "curvature": (
        "trace",
        "layer_traces",
        "activation_traces",
        "eigenvalues",
        "block_eigenvalues",
        "density",
        "fisher",
        "effective_dimension",
    ),
    "noise": ("noise_scale", "noise_scale_curved"),
}
"""What ``isoloss measure --what`` names -> the probes it runs, in order."""

_TYPES = {"Measurement": "measurement", "Spent": "measurement", "Subject": "subject"}


def __getattr__(name: str) -> Any:
    if name in _TYPES:
        return getattr(importlib.import_module(f"isoloss.measure.{_TYPES[name]}"), name)
    raise AttributeError(f"module 'isoloss.measure' has no attribute {name!r}")


def probe(name: str) -> Callable[..., Any]:
    """The probe of that name.

    Raises:
        ValueError: no such probe; the message lists what there is.
    """
    if name not in PROBES:
        raise ValueError(f"no probe named {name!r}. There are: {', '.join(PROBES)}")
    module, _, function = PROBES[name].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"isoloss.measure.{module}"), function)
    return found

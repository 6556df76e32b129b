"""Reads docstrings for the API page: roles become code, formulas MathML, ``Example`` a section."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import griffe

_spec = importlib.util.spec_from_file_location("isoloss_docs_hooks", Path(__file__).with_name("hooks.py"))
assert _spec is not None
assert _spec.loader is not None
_hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_hooks)


class Plain(griffe.Extension):
    """Docstrings as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring in place."""
        if obj.docstring is not None:
            text = _hooks.as_markdown(obj.docstring.value)
            obj.docstring.value = text.replace("\nExample:\n", "\nExamples:\n")

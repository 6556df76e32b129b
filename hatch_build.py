"""Compiles the native code while a wheel is made, and makes the wheel without it where there is no compiler.

The library holds no Python and no torch, so that a wheel is good for all their versions: ``py3-none-PLATFORM``. Without
it the wheel is ``py3-none-any`` and carries the reason, which ``isoloss.native.status()`` tells. ``ISOLOSS_BUILD=native``
fails instead, for those who make wheels for others; ``ISOLOSS_BUILD=pure`` does not try.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "isoloss/native/lib"


class NativeCode(BuildHookInterface[Any]):
    """Adds the library, or the reason why there is none, to a wheel; to an editable install, beside the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before the files are collected."""
        if self.target_name != "wheel":
            return
        wanted = os.environ.get("ISOLOSS_BUILD", "")
        if wanted not in ("", "native", "pure"):
            raise ValueError(f"ISOLOSS_BUILD needs to be native or pure, got {wanted!r}")
        editable = version == "editable"
        folder = Path(self.root, FOLDER) if editable else self._folder()
        built = _builder(Path(self.root)).build(folder, pure=wanted == "pure")
        if wanted == "native" and not built.made:
            raise RuntimeError(f"ISOLOSS_BUILD=native, but there is no native code: {built.reason}")
        if not built.made:
            self.app.display_warning(f"isoloss has no native code: {built.reason}")
        if editable:
            return
        if built.made:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{re.sub('[-.]', '_', sysconfig.get_platform())}"
        build_data["force_include"].update({str(path): f"{FOLDER}/{path.name}" for path in folder.iterdir()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling when the wheel is made."""
        shutil.rmtree(self._folder(), ignore_errors=True)

    def _folder(self) -> Path:
        return Path(self.directory, "isoloss-native")


def _builder(root: Path) -> ModuleType:
    """``native/build.py``, which is no package."""
    spec = importlib.util.spec_from_file_location("isoloss_native_build", root / "native" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module

"""Takes arrays of NumPy, gives what compiled code makes of them: the parts of other folders that must be fast.

The code is one plain C library without Python or torch in it (``native/`` of a checkout), loaded when first used. Whoever
calls it has a way in NumPy too, slower and with the same results, for installs without a compiler; the first time that
way is taken, a warning says so and why.
"""

from __future__ import annotations

from isoloss.native.library import Status, available, status

__all__ = ["Status", "available", "status"]

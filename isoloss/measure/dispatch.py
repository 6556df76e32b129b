"""What sees every operator that torch runs, without torch's compiler being imported first."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that starts at once.

    Unless a mode says that the compiler need not skip it, torch imports ``torch._dynamo`` when the first one begins:
    seconds, for something that is not used here.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

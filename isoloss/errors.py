"""The exceptions of this package's own: a good question without an answer, a store that cannot be used."""


class NoAnswer(RuntimeError):
    """The data or the budget cannot answer the question asked.

    Bad input is a ``ValueError`` or ``TypeError``. This is for good input without an answer: a design
    that does not separate two axes, a loss below the irreducible one, a budget nothing fits in.

    Args:
        reason: why there is no answer.
        needed: the least that would be needed to get one.

    Example:
        >>> raise NoAnswer("loss 1.5 is below the irreducible loss 1.69", "ask for more than 1.69")
        Traceback (most recent call last):
            ...
        isoloss.errors.NoAnswer: loss 1.5 is below the irreducible loss 1.69. Needed: ask for more than 1.69
    """

    def __init__(self, reason: str, needed: str) -> None:
        super().__init__(f"{reason.rstrip('.')}. Needed: {needed}")
        self.reason = reason
        self.needed = needed


class StoreError(ValueError):
    """A store cannot be opened, read or written as asked; what was committed before is untouched.

    The file is damaged, newer, locked, full or not to be written to, or an entry is to be changed, which an
    append-only file does not do. The message says what to do.

    Example:
        >>> raise StoreError("runs.db is locked. Do: try again")
        Traceback (most recent call last):
            ...
        isoloss.errors.StoreError: runs.db is locked. Do: try again
    """

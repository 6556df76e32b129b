"""The one exception that is not about bad input: the question is fine, the data cannot answer it."""


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

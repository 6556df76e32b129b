"""Takes fits and tables, gives scores and verdicts: back-test, compare, stack, versus, prediction level."""

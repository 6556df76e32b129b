"""Takes the running Python's own source, gives a ladder of small language models and its table."""

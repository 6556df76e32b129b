"""Takes the running Python's own source, gives a ladder of small language models, a prediction, and its outcome."""

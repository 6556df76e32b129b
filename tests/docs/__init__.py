"""The documentation, run: its code blocks, its command lines, and the outputs printed below them."""

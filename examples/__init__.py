"""Takes a grid of settings, gives the tables beside it: one row for each finished run of a small language model."""

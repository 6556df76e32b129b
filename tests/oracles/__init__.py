"""Slow, obvious versions of what the package computes, written from the papers and never from its code."""

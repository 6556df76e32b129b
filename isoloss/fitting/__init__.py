"""Takes runs and a law, gives a fit: parameters, joint draws, and what the data do not identify."""

"""Training: the loop, its state, and distributed execution."""

"""Training: reading the data, the loop, checkpoints."""

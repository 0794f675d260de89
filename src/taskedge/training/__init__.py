"""One training loop for every form of change, and the work around it: data, checkpoints, progress."""

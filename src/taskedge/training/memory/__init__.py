"""A memory budget before the run: what each way to train would need, and the fastest that stays within."""

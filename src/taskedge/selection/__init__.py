"""Which of a model's own weights to train: statistics, scores, allocation, support."""

RANK = 8
"""Of two thin factors, where no one says another."""

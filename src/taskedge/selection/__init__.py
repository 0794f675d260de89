"""Choice of the weights to train: statistics, scores, allocation, support."""

DEFAULT_RANK = 8
"""Rank of low-rank modules, where none is given."""

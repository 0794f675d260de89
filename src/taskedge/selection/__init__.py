"""Which of a model's own weights to train: statistics, scores, allocation, support."""

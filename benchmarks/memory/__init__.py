"""Training within less memory, and its prediction."""

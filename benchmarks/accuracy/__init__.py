"""How well methods, supports and defaults learn."""

"""Base models: their layers and blocks, how they are loaded and stored, and what they cost."""

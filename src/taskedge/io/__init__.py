"""Files: the atomic write, and the container that every file format stands on."""

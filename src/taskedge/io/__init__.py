"""Files: atomic writes, and the container that all file formats share."""

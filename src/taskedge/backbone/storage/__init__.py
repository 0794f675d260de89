"""How the frozen weights of a base are stored in memory. Imports no torch, so that the command line can."""

WEIGHT_STORAGE = ("resident", "mmap", "int8", "int4")
"""Values that :func:`taskedge.backbone.storage.set_storage.set_weight_storage` takes.

``resident``: in this process's memory, as the loader left them. ``mmap``: in the pages of the weight files, shared with
other processes. ``int8``: as codes of 8 bits with one scale per neuron. ``int4``: as codes
of 4 bits with a scale and an offset per group of 32 inputs.
"""

_OLD_NAMES = {"loaded": "resident", "mapped": "mmap"}


def current_name(weight_storage: str) -> str:
    """Return the present name of a weight storage; files written before the renaming have other names."""
    return _OLD_NAMES.get(weight_storage, weight_storage)

"""What is known of a base model, and how it lies in memory."""

HOLDS = ("loaded", "mapped", "int8")
"""How a base lies in memory: as the loader left it, or as
:func:`taskedge.backbone.storage.set_storage.hold` arranges it."""

"""What other programs make of a delta."""

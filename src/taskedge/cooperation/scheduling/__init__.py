"""Who trains which blocks in a round: plans, rotation, traversal, freezing, cost calibration."""

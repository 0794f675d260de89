"""The plan of a round: blocks assigned to devices, rotation, traversal, freezing, cost calibration."""

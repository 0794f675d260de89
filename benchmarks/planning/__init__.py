"""Solvers of the fleet planner."""

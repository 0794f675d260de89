"""Cooperative runs for people who already run Flower: a strategy for its server, an app for its clients."""

"""Cooperative runs under Flower: a strategy for its server and an app for its clients."""

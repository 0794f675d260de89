"""Cooperative fine-tuning: a coordinator, devices that train blocks on their own data, and their messages."""

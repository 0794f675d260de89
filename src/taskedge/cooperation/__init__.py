"""Carries a plan out: a coordinator, devices that each train their blocks on their own data, and what they say."""

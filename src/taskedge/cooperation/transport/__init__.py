"""Links that carry messages: in memory, emulated, and over NATS."""

"""Links over NATS with mutual TLS."""

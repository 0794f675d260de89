"""The messages between coordinator and devices: payloads, round tasks, quantization, chunks, validation."""

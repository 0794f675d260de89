"""What coordinator and devices send each other: messages, payloads, quantization, chunks, validation."""

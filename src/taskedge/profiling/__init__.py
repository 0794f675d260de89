"""Cost of training steps on this machine: seconds, bytes, FLOP/s, joules."""

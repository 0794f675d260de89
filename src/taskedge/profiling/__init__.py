"""What a step of training costs on the machine this runs on: seconds, bytes, FLOP/s, joules."""

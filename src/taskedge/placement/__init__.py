"""Where the tensors of a base and its tasks live, among memories of different kinds: a model over published numbers.

Source: adapter-ALBERT (arXiv 2303.16100) for the question: a backbone in dense non-volatile memory, task parameters and
activations in SRAM; this project for the model, which makes no claim on hardware.
"""

"""Ways to train within less memory that change how a step is made: in parts, block after block, without gradients."""

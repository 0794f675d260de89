"""How a change to the base is parameterised."""

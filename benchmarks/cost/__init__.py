"""What a step, a selection and a delta cost."""

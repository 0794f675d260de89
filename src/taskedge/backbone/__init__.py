"""What is known of a base model without changing it."""

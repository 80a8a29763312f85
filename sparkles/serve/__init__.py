"""Ways to talk to a model."""

"""Published weights as run directories."""

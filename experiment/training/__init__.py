"""The training loop: what a step does, and what is saved when."""

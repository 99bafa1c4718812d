"""Data: a set by name or by path, its levels, and the batches of a training run."""

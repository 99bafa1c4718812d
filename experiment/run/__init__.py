"""The run directory: its files, its checkpoints, its log, and how to load a run from it."""

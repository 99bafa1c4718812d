"""The run directory: its files, its checkpoints, its log, and the way back from it to a score."""

"""The training of a run: the step, and the loop that logs and saves."""

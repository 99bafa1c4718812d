"""An evaluation as files that people read."""

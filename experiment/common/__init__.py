"""What every room stands on: one-line mistakes, files and their locks, progress, provenance."""

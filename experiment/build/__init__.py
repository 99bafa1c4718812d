"""The objects that the names in a config stand for, by explicit tables."""

"""From a config's names to objects, by explicit tables."""

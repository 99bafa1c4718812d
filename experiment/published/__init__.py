"""The import of published weights as run directories."""

"""Devices as one mesh, and several hosts."""

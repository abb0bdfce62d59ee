"""Clients of a simulation who attack the shared model, and how far they get."""

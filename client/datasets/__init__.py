"""Data sets a client can train on: one file a kind, found through `registry`."""

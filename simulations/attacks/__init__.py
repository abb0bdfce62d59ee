"""Attacks against simulated federations: what a curious server could see, and what dishonest clients can do."""

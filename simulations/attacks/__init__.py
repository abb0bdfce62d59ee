"""Attacks on federations that Veil simulates: what a curious server, or a malicious client, can do."""

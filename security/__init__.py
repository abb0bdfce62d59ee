"""Identities, certificates, provisioning, secure aggregation. No Flower, no torch."""

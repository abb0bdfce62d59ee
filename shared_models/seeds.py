"""Seeds for everything that may be reproducible: one plan seed, many independent streams.

Streams are keyed by stable names (client id, round), never by a node's number or the order of arrival, so that
every grid gives the same result. Noise and sampling of a private run never come from here, unless a simulation
asks for reproducible noise and gives up its claim.
"""

from __future__ import annotations

import hashlib


def derive_key(seed: int, *labels: str | int) -> bytes:
    """32 bytes that depend on the seed and on every label; labels are length-prefixed, so they can't run together."""
    digest = hashlib.sha256(b"veil-seed-v1")
    for label in (seed, *labels):
        text = str(label).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.digest()


def derive_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for torch or NumPy from the plan's seed and labels."""
    return int.from_bytes(derive_key(seed, *labels)[:8], "big") >> 1

"""The secure sum of large cohorts is the plain integer sum: the full graph of 40, the sparse ones above 64."""

from __future__ import annotations

import random
from itertools import cycle

import pytest

from tests.security.secure_sum.rounds import STEPS, Federation, Round


@pytest.mark.parametrize("size", [40, 65, 100, 200])
def test_large_cohorts(size: int) -> None:
    """Two clients fall out in each phase."""
    federation = Federation(size=size, corrupt=size // 10, honest=size // 2, length=17, bits=64)
    vectors = federation.vectors(size)
    gone = dict(zip(random.Random(size).sample(federation.names, 10), cycle(STEPS), strict=False))
    played = Round(federation=federation, vectors=vectors, gone=gone)
    total = played.play()
    survivors = [name for name in federation.names if gone.get(name) not in STEPS[:3]]
    assert dict(played.server.dropped) == gone
    assert total.tolist() == federation.plain_sum(vectors, survivors).tolist()

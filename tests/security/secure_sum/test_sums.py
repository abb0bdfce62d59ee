"""The secure sum is the plain integer sum, whoever falls out and when; or a clean abort with a name."""

from __future__ import annotations

import random
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import Phase
from tests.security.secure_sum.rounds import STEPS, Federation, Round, outcome, random_gone, sparse

CLOSERS = {
    Phase.KEYS: Abort.TOO_FEW_CLIENTS,
    Phase.SHARES: Abort.TOO_FEW_CLIENTS,
    Phase.MASKED: Abort.TOO_FEW_CLIENTS,
    Phase.SURVIVORS: Abort.TOO_FEW_CLIENTS,
    Phase.UNMASK: Abort.TOO_FEW_SHARES,
}


def check(federation: Federation, gone: dict[str, Phase], seed: int = 0, *, moved: bool = False) -> None:
    """Play a full graph and compare with what must come of it, reckoned from counts alone."""
    vectors = federation.vectors(seed)
    played = Round(federation=federation, vectors=vectors, gone=gone, moved=moved)
    found = federation.parameters(federation.size)
    for phase, reason in CLOSERS.items():
        left = sum(STEPS.index(gone[name]) > STEPS.index(phase) for name in gone) + federation.size - len(gone)
        if left < (found.threshold if phase is Phase.UNMASK else found.least):
            with pytest.raises(SecureSumError) as refused:
                played.play()
            assert refused.value.reason is reason
            assert played.server.phase is Phase.ABORTED
            assert set(played.server.dropped.values()) <= set(STEPS[: STEPS.index(phase) + 1])
            return
    total = played.play()
    survivors = [name for name in federation.names if gone.get(name) not in STEPS[:3]]
    assert total.tolist() == federation.plain_sum(vectors, survivors).tolist()
    assert total.dtype == federation.attempt().dtype
    assert played.server.survivor_names == tuple(survivors)
    assert dict(played.server.dropped) == gone
    assert played.server.wrong_shares == frozenset()


@pytest.mark.parametrize("corrupt", [0, 1])
def test_every_dropout_of_every_client_among_three(corrupt: int) -> None:
    federation = Federation(size=3, corrupt=corrupt)
    for phases in product([*STEPS, None], repeat=3):
        gone = {name: phase for name, phase in zip(federation.names, phases, strict=True) if phase}
        check(federation, gone)


def test_every_dropout_of_every_client_among_four() -> None:
    federation = Federation(size=4)
    for phases in product([*STEPS, None], repeat=4):
        gone = {name: phase for name, phase in zip(federation.names, phases, strict=True) if phase}
        check(federation, gone)


def test_every_dropout_of_up_to_two_among_five() -> None:
    federation = Federation(size=5, corrupt=0, bits=64)
    for pair in combinations(federation.names, 2):
        for phases in product([*STEPS, None], STEPS):
            check(federation, {name: phase for name, phase in zip(pair, phases, strict=True) if phase})


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    size=st.integers(2, 24),
    corrupt=st.floats(0, 0.3),
    bits=st.sampled_from([32, 64]),
    length=st.integers(1, 40),
    dropout=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    seed=st.integers(0, 2**32),
    moved=st.booleans(),
)
def test_sums_are_exact(
    size: int, corrupt: float, bits: int, length: int, dropout: float, seed: int, moved: bool
) -> None:
    federation = Federation(size=size, corrupt=int(corrupt * size), bits=bits, length=length)
    check(federation, random_gone(federation.names, dropout, seed), seed, moved=moved)


def test_sparse_graphs_give_exact_sums_or_abort() -> None:
    """Where each shares with a few others, which of them fall out decides: nothing wrong is ever opened."""
    outcomes = set()
    for seed in range(25):
        drawn = random.Random(seed)
        size = drawn.randint(12, 20)
        given_ = sparse(size, holders=7, threshold=5)
        federation = Federation(size=size, given=given_)
        vectors, gone = federation.vectors(seed), random_gone(federation.names, drawn.choice([0.05, 0.25]), seed)
        moved = seed % 2 == 0
        played = Round(federation=federation, vectors=vectors, gone=gone, moved=moved, entropy=drawn.randbytes)
        total, aborted = outcome(played)
        outcomes.add(aborted)
        if total is None:
            assert aborted in (Abort.TOO_FEW_CLIENTS, Abort.TOO_FEW_SHARES)
            continue
        assert total.tolist() == federation.plain_sum(vectors, played.server.survivor_names).tolist()
        assert set(gone) <= set(played.server.dropped)
    assert {None, Abort.TOO_FEW_SHARES} <= outcomes


def test_vectors_are_neither_changed_nor_kept() -> None:
    federation = Federation(size=3)
    vectors = federation.vectors(0)
    before = {name: vector.copy() for name, vector in vectors.items()}
    played = Round(federation=federation, vectors=vectors)
    inboxes = played.until_masked()
    for name, client in played.clients.items():
        vectors[name].setflags(write=False)  # a view into a model's memory may be
        masked = client.mask(inboxes[name], vectors[name])
        assert not np.shares_memory(masked, vectors[name])
        assert vectors[name].tolist() == before[name].tolist()


def test_the_server_keeps_one_vector_only() -> None:
    federation = Federation(size=3, length=4096)
    played = Round(federation=federation, vectors=federation.vectors(0))
    inboxes = played.until_masked()
    for name, client in played.clients.items():
        played.server.take_masked(name, client.mask(inboxes[name], played.vectors[name]))
        held = [value for value in vars(played.server).values() if isinstance(value, np.ndarray)]
        assert [array.shape for array in held] == [(4096,)]

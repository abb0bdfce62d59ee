"""What leaves a client looks uniform whatever it put in. Each test states how often it cries wolf."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scipy.stats import chi2

from security.secure_sum.attempt import Phase
from security.secure_sum.client import _chosen
from tests.security.secure_sum.rounds import Federation, Round

FALSE_ALARMS = 1e-6  # of each comparison; fresh entropy in every run


def chi_square(data: bytes) -> float:
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("value", [0, 1, "largest"])
def test_masked_vectors_are_uniform(bits: int, value: int | str) -> None:
    """Chi-square over bytes, 255 degrees of freedom; six clients in all and every difference of two, which a mask that
    two had in common would leave bare."""
    federation = Federation(size=3, length=1 << 14, bits=bits)
    dtype = federation.attempt().dtype
    number = np.iinfo(dtype).max if value == "largest" else value
    vectors = {name: np.full(federation.length, number, dtype) for name in federation.names}
    masked: dict[str, np.ndarray] = {}
    one = Round(federation=federation, vectors=vectors)
    one.reply = lambda name, sent: masked.setdefault(name, sent) if one.server.phase is Phase.MASKED else sent
    total = one.play()
    assert (total == np.full(federation.length, 3 * int(number) % (1 << bits), dtype)).all()
    limit = chi2.isf(FALSE_ALARMS, 255)
    names = federation.names
    sent = [masked[name] for name in names] + [masked[names[0]] - masked[names[1]], masked[names[1]] - masked[names[2]]]
    sent += [masked[names[0]] + masked[names[1]]]  # their own masks remain, though the pair's cancels
    for vector in sent:
        assert chi_square(vector.tobytes()) < limit
    assert chi_square(total.tobytes()) > limit  # the test can tell


def test_one_client_masks_otherwise_in_every_attempt() -> None:
    """Two maskings of one vector differ in nearly every place: by chance alone in one of 2^32."""
    sent = []
    for number in (1, 2):
        federation = Federation(size=3, length=1 << 12, number=number)
        one = Round(federation=federation, vectors=federation.vectors(0))
        inboxes = one.until_masked()
        sent.append(one.clients["c000"].mask(inboxes["c000"], one.vectors["c000"]))
    assert np.count_nonzero(sent[0] == sent[1]) < 8  # more than seven: less than 1e-45


def test_all_replies_but_signatures_differ_between_two_runs_of_one_attempt() -> None:
    """All secrets are drawn afresh, though every word of the attempt is the same."""
    federation = Federation(size=3)
    announced = federation.attempt()
    seen = []
    for _ in range(2):
        one = Round(federation=federation, vectors=federation.vectors(0))
        one.keys()
        assert one.server.attempt == announced
        seen.append(one.server._offers)
    for index in range(3):
        first, second = seen[0][index], seen[1][index]
        assert first.mask_key != second.mask_key
        assert first.channel_key != second.channel_key
        assert first.commitment != second.commitment


def test_holders_are_chosen_uniformly() -> None:
    """Among 11 others 4 are chosen: each as often. Chi-square over 400 choices, corrected for draws without return."""
    others, count, times = list(range(11)), 4, 400
    counts = np.zeros(11)
    for _ in range(times):
        chosen = _chosen(others, count, os.urandom)
        assert len(set(chosen)) == count
        assert list(chosen) == sorted(chosen)
        counts[list(chosen)] += 1
    share = count / len(others)
    # Of a choice without return: variance share (1 - share) each, and covariances that make it (m - 1)/m of that.
    statistic = ((counts - times * share) ** 2).sum() / (times * share * (1 - share)) * (len(others) - 1) / len(others)
    assert statistic < chi2.isf(FALSE_ALARMS, len(others) - 1)

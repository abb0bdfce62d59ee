"""As many shares as the threshold give the secret, fewer give nothing of it, and wrong ones are found by name."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable

import pytest

from security.secure_sum.field import PRIME, to_bytes
from security.secure_sum.sharing import SHARE_BYTES, ShareError, rebuild, rebuild_checked, share

SECRET = bytes(range(32))


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def is_secret(candidate: bytes) -> bool:
    return candidate == SECRET


def spoilt(shares: dict[int, bytes], wrong: set[int] | frozenset[int], seed: int = 0) -> dict[int, bytes]:
    rng = random.Random(seed)
    return {x: b"\0" + rng.randbytes(32) if x in wrong else data for x, data in shares.items()}


def chosen(*coefficients: int) -> Callable[[int], bytes]:
    """Entropy that gives just these coefficients."""
    return lambda _: b"".join(map(to_bytes, coefficients))


# --- against known values


def test_shares_are_values_of_the_textbook_polynomial() -> None:
    # The worked example of Wikipedia's article on the scheme: S = 1234, f = 1234 + 166x + 94x², over the integers.
    shares = share((1234).to_bytes(32, "big"), at=range(1, 7), threshold=3, entropy=chosen(166, 94))
    expected = {1: 1494, 2: 1942, 3: 2578, 4: 3402, 5: 4414, 6: 5614}
    assert {x: int.from_bytes(data, "big") for x, data in shares.items()} == expected
    assert rebuild({x: to_bytes(expected[x]) for x in (2, 4, 5)}, threshold=3) == (1234).to_bytes(32, "big")


def test_shares_wrap_round_at_p() -> None:
    # f(x) = (2^256 − 1) + (p − 1)·x, so f(1) = 2^256 − 2, and f(298) = 2^256 − 299.
    shares = share(b"\xff" * 32, at=[1, 298], threshold=2, entropy=chosen(PRIME - 1))
    assert shares == {1: (2**256 - 2).to_bytes(33, "big"), 298: (2**256 - 299).to_bytes(33, "big")}
    assert rebuild(shares, threshold=2) == b"\xff" * 32


# --- any threshold of them, and no fewer


@pytest.mark.parametrize(("holders", "threshold"), [(1, 1), (2, 2), (3, 2), (6, 4), (7, 7)])
def test_every_set_of_threshold_shares_gives_the_secret(holders: int, threshold: int) -> None:
    shares = share(SECRET, at=range(1, holders + 1), threshold=threshold)
    assert all(len(data) == SHARE_BYTES == 33 for data in shares.values())
    for some in itertools.combinations(shares, threshold):
        assert rebuild({x: shares[x] for x in some}, threshold=threshold) == SECRET


def test_a_cohort_of_200_in_any_order_with_surplus_shares() -> None:
    at = list(range(1, 201))
    for seed, secret in enumerate((bytes(32), b"\xff" * 32, os.urandom(32))):
        shares = share(secret, at=at, threshold=111)
        kept = random.Random(seed).sample(at, 150)
        assert rebuild({x: shares[x] for x in kept}, threshold=111) == secret


def test_secrecy_exhaustively_in_a_small_field(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same code over GF(13), with every choice of coefficients: any t − 1 shares of any two secrets come with the
    # same frequencies, here each of them uniform.
    small, threshold = 13, 3
    monkeypatch.setattr("security.secure_sum.field.PRIME", small)
    at = [1, 2, 5, 12]

    def tables(secret: int) -> dict[tuple[int, int], Counter[tuple[bytes, ...]]]:
        found: dict[tuple[int, int], Counter[tuple[bytes, ...]]] = {
            pair: Counter() for pair in itertools.combinations(at, threshold - 1)
        }
        for coefficients in itertools.product(range(small), repeat=threshold - 1):
            shares = share(secret.to_bytes(32, "big"), at=at, threshold=threshold, entropy=chosen(*coefficients))
            for pair, counts in found.items():
                counts[tuple(shares[x] for x in pair)] += 1
        return found

    first = tables(4)
    assert all(len(counts) == small**2 and set(counts.values()) == {1} for counts in first.values())
    assert all(tables(secret) == first for secret in (0, 9, 12))


def test_too_few_shares_are_refused() -> None:
    shares = share(SECRET, at=range(1, 6), threshold=4)
    few = {x: shares[x] for x in (1, 3, 5)}
    with pytest.raises(ShareError, match="3 shares are too few to rebuild from: 4 are needed"):
        rebuild(few, threshold=4)
    with pytest.raises(ShareError, match="too few"):
        rebuild_checked(few, threshold=4, is_right=is_secret)


@pytest.mark.parametrize(
    "data", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big")], ids=["none", "short", "long", "p"]
)
def test_a_malformed_share_is_refused(data: bytes) -> None:
    shares = share(SECRET, at=range(1, 4), threshold=3)
    with pytest.raises(ShareError, match="malformed"):
        rebuild(shares | {2: data}, threshold=3)


def test_shares_of_what_is_no_secret_are_refused() -> None:
    # A value from 2^256 to p − 1 at zero is no 32 bytes.
    with pytest.raises(ShareError, match="wrong"):
        rebuild({1: to_bytes(2**256 + 5)}, threshold=1)


@pytest.mark.parametrize(
    ("secret", "at", "threshold"),
    [
        (bytes(31), [1, 2], 2),
        (bytes(33), [1, 2], 2),
        (SECRET, [0, 1], 2),
        (SECRET, [-1, 1], 2),
        (SECRET, [1, 2**31 + 1], 2),
        (SECRET, [1, 1, 2], 2),
        (SECRET, [1, 2], 3),
        (SECRET, [1, 2], 0),
    ],
    ids=["short", "long", "zero", "negative", "large", "twice", "too-few-holders", "no-threshold"],
)
def test_impossible_sharings_are_refused(secret: bytes, at: list[int], threshold: int) -> None:
    with pytest.raises(ValueError, match=r"holder|secret"):
        share(secret, at=at, threshold=threshold)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="holder"):
        rebuild({0: bytes(33)}, threshold=1)
    with pytest.raises(ValueError, match="threshold"):
        rebuild({1: bytes(33)}, threshold=0)


# --- wrong shares


def test_right_shares_name_nobody() -> None:
    for holders in (4, 5, 30):
        shares = share(SECRET, at=range(1, holders + 1), threshold=4)
        assert rebuild_checked(shares, threshold=4, is_right=is_secret) == (SECRET, frozenset())


@pytest.mark.parametrize(("holders", "threshold"), [(5, 4), (6, 4), (7, 4), (10, 4), (24, 15)])
def test_wrong_shares_are_named_wherever_they_are(holders: int, threshold: int) -> None:
    most = (holders - threshold + 1) // 2 if holders == threshold + 1 else (holders - threshold) // 2
    shares = share(SECRET, at=range(1, holders + 1), threshold=threshold, entropy=seeded(holders))
    for count in range(1, most + 1):
        for bad in list(itertools.combinations(shares, count))[:: 1 + 7 * (count - 1)][:120]:
            found = rebuild_checked(spoilt(shares, set(bad)), threshold=threshold, is_right=is_secret)
            assert found == (SECRET, frozenset(bad))


def test_malformed_shares_are_named_and_do_no_harm() -> None:
    shares = share(SECRET, at=range(1, 8), threshold=4)
    sent = spoilt(shares, {6}) | {1: b"", 3: PRIME.to_bytes(33, "big")}
    assert rebuild_checked(sent, threshold=4, is_right=is_secret) == (SECRET, frozenset({1, 3, 6}))
    with pytest.raises(ShareError, match="3 well-formed shares are too few"):
        rebuild_checked({x: sent[x] for x in (1, 2, 3, 4, 5)}, threshold=4, is_right=is_secret)


def test_the_secret_is_found_although_nobody_can_be_named_for_certain() -> None:
    # Two of six wrong, threshold 4: decoding finds one, trying subsets finds the secret.
    shares = share(SECRET, at=range(1, 7), threshold=4, entropy=seeded(4))
    for bad in itertools.combinations(shares, 2):
        secret, named = rebuild_checked(spoilt(shares, set(bad)), threshold=4, is_right=is_secret)
        assert secret == SECRET
        assert not named


def test_liars_who_agree_cannot_have_an_honest_holder_named_where_they_are_few() -> None:
    # Two liars who leave the first shares' secret as it is: their errors cancel at zero, so it looks right at once.
    shares = share(SECRET, at=range(1, 9), threshold=4, entropy=seeded(5))
    weights = {1: 4, 2: -6, 3: 4, 4: -1}  # Lagrange's at zero, for holders 1 to 4
    off = {1: 3, 2: 2}
    assert sum(weights[x] * off[x] for x in off) == 0
    sent = {x: to_bytes((int.from_bytes(data, "big") + off.get(x, 0)) % PRIME) for x, data in shares.items()}
    assert rebuild(sent, threshold=4) == SECRET
    assert rebuild_checked(sent, threshold=4, is_right=is_secret) == (SECRET, frozenset({1, 2}))


def test_too_many_wrong_shares_are_an_error_never_a_wrong_secret() -> None:
    shares = share(SECRET, at=range(1, 8), threshold=5)
    with pytest.raises(ShareError, match="too many shares are wrong"):
        rebuild_checked(spoilt(shares, {1, 4, 6}), threshold=5, is_right=is_secret)
    with pytest.raises(ShareError, match="too few to do without it"):
        rebuild_checked(spoilt({x: shares[x] for x in range(1, 6)}, {2}), threshold=5, is_right=is_secret)


def test_shares_of_another_secret_are_told_from_wrong_ones() -> None:
    shares = share(bytes(32), at=range(1, 8), threshold=4)
    with pytest.raises(ShareError, match="dealt wrong"):
        rebuild_checked(shares, threshold=4, is_right=is_secret)


def test_the_work_is_bounded_whatever_was_sent() -> None:
    shares = spoilt(share(SECRET, at=range(1, 61), threshold=30, entropy=seeded(6)), frozenset(range(1, 61)))
    asked = 0

    def never(_: bytes) -> bool:
        nonlocal asked
        asked += 1
        return False

    with pytest.raises(ShareError, match="too many"):
        rebuild_checked(shares, threshold=30, is_right=never)
    assert asked <= 5002


def test_errors_never_hold_a_share_or_secret() -> None:
    shares = share(SECRET, at=range(1, 5), threshold=4)
    with pytest.raises(ShareError) as caught:
        rebuild_checked(spoilt(shares, {1}), threshold=4, is_right=is_secret)
    told = str(caught.value) + repr(caught.value)
    assert not any(data.hex() in told or repr(data) in told for data in (SECRET, *shares.values()))

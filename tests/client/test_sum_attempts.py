"""Where attempts at secure sums are kept: a site's in memory, a virtual client's in the state that its grid carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from client.simulated_site import StateAttempts
from client.sum_attempts import Attempts, Pending, SumAttempts
from security.identity import Identity
from security.secure_sum.aborts import SecureSumError
from security.secure_sum.attempt import Attempt, Expected
from security.secure_sum.client import SumClient
from security.secure_sum.parameters import parameters_for
from security.secure_sum.server import SumServer

IDENTITIES = {name: Identity.derive(b"s" * 32, name) for name in "abc"}
ROSTER = {name: identity.public_hex for name, identity in IDENTITIES.items()}
KINDS: list[Callable[[], Attempts]] = [SumAttempts, lambda: StateAttempts(RecordDict())]


def expected(run: str) -> Expected:
    return Expected(
        federation="f",
        run=run,
        round=1,
        purpose="train",
        context=b"c" * 32,
        length=3,
        bits=32,
        client="a",
        roster=ROSTER,
        parameters=lambda cohort: parameters_for(cohort=cohort, corrupt=0, honest=2),
    )


def pending(number: int = 1, run: str = "r") -> Pending:
    """An attempt that was just begun."""
    attempt = Attempt(
        federation="f",
        run=run,
        round=1,
        purpose="train",
        number=number,
        nonce=bytes([number]) * 32,
        cohort=("a", "b", "c"),
        context=b"c" * 32,
        length=3,
        bits=32,
        parameters=parameters_for(cohort=3, corrupt=0, honest=2),
    )
    client, _ = SumClient.begin(SumServer(attempt).announcement(), expected(run), IDENTITIES["a"].sign)
    return Pending(client=client, model="m")


def find(attempts: Attempts, one: Pending) -> Pending | None:
    run = one.client.attempt.run
    return attempts.find(
        run,
        one.client.attempt.digest,
        lambda model, state: SumClient.from_bytes(state, expected(run), IDENTITIES["a"].sign),
    )


@pytest.mark.parametrize("made", KINDS)
def test_an_attempt_is_found_as_it_was_left(made: Callable[[], Attempts]) -> None:
    attempts, one = made(), pending()
    assert find(attempts, one) is None
    attempts.keep(one)
    one.answered = "q"
    attempts.keep(one)
    found = find(attempts, one)
    assert found is not None
    assert (found.model, found.answered, found.client.phase) == ("m", "q", one.client.phase)
    assert found.client.attempt.digest == one.client.attempt.digest
    assert attempts.newest("r") == 1
    assert attempts.newest("other") == 0


@pytest.mark.parametrize("made", KINDS)
def test_the_newest_attempt_of_a_run_is_kept_alone(made: Callable[[], Attempts]) -> None:
    attempts, first, second = made(), pending(1), pending(2)
    attempts.keep(first)
    attempts.keep(second)
    assert find(attempts, first) is None
    assert find(attempts, second) is not None
    assert attempts.newest("r") == 2


@pytest.mark.parametrize("made", KINDS)
def test_what_is_dropped_or_over_is_forgotten(made: Callable[[], Attempts]) -> None:
    attempts, one = made(), pending()
    attempts.keep(one)
    attempts.drop(one)
    assert find(attempts, one) is None
    two = pending(2)
    attempts.keep(two)
    with pytest.raises(SecureSumError):
        two.client.share(b"")
    assert two.is_over
    attempts.keep(two)
    assert find(attempts, two) is None


def test_a_site_remembers_the_number_of_an_attempt_that_is_over() -> None:
    attempts, one = SumAttempts(), pending(3)
    attempts.keep(one)
    attempts.drop(one)
    assert attempts.newest("r") == 3
    attempts.clear()
    assert attempts.newest("r") == 0


def test_a_task_of_an_older_attempt_that_ends_late_does_not_touch_the_newer_one() -> None:
    attempts, old, new = SumAttempts(), pending(1), pending(2)
    attempts.keep(old)
    attempts.keep(new)
    attempts.keep(old)
    attempts.drop(old)
    assert find(attempts, new) is new


def test_an_attempt_that_was_dropped_meanwhile_comes_back_with_what_it_has_sent_and_not_before() -> None:
    """A phase that ends while the site trains must not let it say that it is in the sum."""
    attempts, one = SumAttempts(), pending()
    attempts.keep(one)
    attempts.drop(one)
    attempts.keep(one)
    assert find(attempts, one) is None
    one.answered = "digest of what was asked"
    attempts.keep(one)
    assert find(attempts, one) is one


def test_a_site_keeps_the_newest_of_few_runs() -> None:
    attempts = SumAttempts()
    for number in (1, 2):
        for run in "abcdefgh":
            attempts.keep(pending(number, run))
    assert {run: attempts.newest(run) for run in "abcdefgh"} == {**dict.fromkeys("abcd", 0), **dict.fromkeys("efgh", 2)}


@pytest.mark.parametrize("state", [{}, {"run": "r"}, {"run": "r", "attempt": b"x"}])
def test_a_state_that_holds_something_else_holds_no_attempt(state: dict[str, Any]) -> None:
    attempts = StateAttempts(RecordDict({"veil-secure-sum": ConfigRecord(state)}))
    assert find(attempts, pending()) is None


def test_what_is_pending_prints_no_secret() -> None:
    one = pending()
    secrets = [one.client._state.mask_secret, one.client._state.channel_secret, one.client._state.seed]
    for secret in secrets:
        assert repr(secret)[2:-1] not in repr(one) + repr(one.client)
        assert secret.hex() not in repr(one) + repr(one.client)

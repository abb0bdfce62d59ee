"""A client in a secure sum, asked by real Flower messages and a real server of the protocol.

Virtual clients keep an attempt in Flower's state; what a deployed site does otherwise is in `test_secure_site`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from client import contribution as contribution_module
from client.contribution import flat
from client.policy import Allow, SitePolicy, simulated_policy
from client.trainer import train_plain
from client.workplace import workplace
from privacy.noise import ReproducibleNoise
from privacy.secure_encoding import encode
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.messages import Survivors
from security.secure_sum.messages import encode as message_of
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import (
    ARRAYS,
    CONFIG,
    EPSILON,
    LAYOUT_DIGEST,
    LEDGER,
    MASKED,
    METRICS,
    PLAN_DIGEST,
    ROUND,
    RUN,
    SECURE_ATTEMPT,
    SECURE_KEYS,
    SECURE_MESSAGE,
    SECURE_MODEL,
    SECURE_SHARES,
    SECURE_SURVIVORS,
    SECURE_UNMASK,
    WEIGHT,
)
from shared_models.seeds import derive_key
from tests.client.conftest import Clients, assert_fault, content_of, model_of, plan_of, some_records, wire
from tests.client.secure_cohort import TRAIN, Sum, secure_plan, vector_of, words_of

NAMES = ("0", "1", "2", "3", "4")  # honest 3, corrupt 1, so 4 are needed in each phase


class Cohort:
    """Five virtual clients: their ledgers, and the states that a grid would carry for them."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.plan = secure_plan()
        self.states = {name: RecordDict() for name in NAMES}
        clients.data = {name: some_records(6 + i, seed=i) for i, name in enumerate(NAMES)}

    def ask(self, name: str, kind: str, content: RecordDict) -> Message:
        return self.clients.ask(self.plan, content, client=name, kind=kind, state=self.states[name])

    @property
    def roster(self) -> dict[str, str]:
        return {name: self.clients.books.owner(name).public_hex for name in NAMES}

    def sum(self, **how: Any) -> Sum:
        return Sum(self.plan, self.ask, self.roster, **how)


@pytest.fixture
def cohort(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> Cohort:
    train = clients._watched("train", train_plain)
    monkeypatch.setattr(contribution_module, "train_plain", train)
    return Cohort(clients)


def reference(cohort: Cohort, name: str, number: int = 1) -> np.ndarray[Any, Any]:
    """What a client puts into the sum, computed here from its data."""
    plan, place = cohort.plan, workplace(write_plan(cohort.plan))
    records = cohort.clients.data[name]
    values = np.zeros(plan.secure.dimension or 0, np.float32)
    if len(records):
        change, _ = train_plain(place.model, model_of(plan), records, plan, round_number=number, client=name)
        values = np.concatenate([change[entry].ravel() for entry, _ in place.layout.entries])
    noise = ReproducibleNoise(derive_key(plan.seed, "noise", name, number))
    assert plan.secure.bits is not None
    return encode(values, plan.sum_grid(), bits=plan.secure.bits, noise=noise)


def refused(reply: Message, fault: Fault = Fault.SECURE_SUM_REFUSED) -> None:
    assert_fault(reply, fault)


# --- a good attempt ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [(), ("0",), ("4",)])
def test_the_server_gets_the_sum_of_the_clients_vectors_and_nothing_else(cohort: Cohort, gone: tuple[str, ...]) -> None:
    found = cohort.sum().result(but=gone)
    assert found.dtype == np.uint32
    left = [name for name in NAMES if name not in gone]
    assert np.array_equal(found, np.sum([reference(cohort, name) for name in left], axis=0, dtype=np.uint32))


def test_a_rounds_vectors_are_of_its_own_training_and_noise(cohort: Cohort) -> None:
    cohort.sum().result()
    found = cohort.sum(round=2, number=2).result()
    assert np.array_equal(found, np.sum([reference(cohort, name, 2) for name in NAMES], axis=0, dtype=np.uint32))


def test_a_masked_reply_holds_one_vector_a_weight_of_one_the_epsilon_and_the_head(cohort: Cohort) -> None:
    one = cohort.sum()
    one.masked()
    content = one.replies[TRAIN, "0"].content
    assert {name: set(record) for name, record in content.items()} == {
        ARRAYS: {MASKED},
        METRICS: {WEIGHT, EPSILON},
        LEDGER: {"position", "hash"},
    }
    assert content.metric_records[METRICS][WEIGHT] == 1
    entry = cohort.clients.entries()[2]
    assert (entry.kind, entry.hash) == ("reserve", content.config_records[LEDGER]["hash"])


def test_what_leaves_a_client_does_not_hold_its_vector(cohort: Cohort) -> None:
    # Masked twice with fresh keys, the same vector has nothing in common: each of 27 words agrees by chance with
    # probability 2^-32, so this fails falsely once in 10^8 runs.
    seen = []
    for number in (1, 2):
        one = cohort.sum(number=number)
        one.masked()
        seen.append(vector_of(one.replies[TRAIN, "0"]))
    own = reference(cohort, "0")
    assert not any(np.equal(a, b).any() for a, b in [(seen[0], seen[1]), (seen[0], own), (seen[1], own)])


def test_rule_5_who_has_no_records_or_diverged_puts_noise_alone_into_the_sum(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort.clients.data["0"] = some_records(0)
    cohort.clients.data["1"].x.fill_(float("nan"))
    monkeypatch.setattr(contribution_module, "noise_of", lambda *_: NoNoise(b"coins"))
    one = cohort.sum(cohort=("0", "1", "2", "3"))
    total = one.result()
    place, plan = workplace(write_plan(cohort.plan)), cohort.plan
    alone = []
    for name in ("2", "3"):
        change, _ = train_plain(
            place.model, model_of(plan), cohort.clients.data[name], plan, round_number=1, client=name
        )
        values = flat(change, place.layout)
        alone.append(encode(values, plan.sum_grid(), bits=32, noise=NoNoise(b"coins")))
    assert np.array_equal(total, alone[0] + alone[1])
    assert len({len(wire(one.replies[TRAIN, name].content)) for name in ("0", "1", "2", "3")}) == 1


class NoNoise(ReproducibleNoise):
    """Coins for the rounding, but no noise."""

    __slots__ = ()

    def grid_normal(
        self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None
    ) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)


def test_a_clients_state_holds_an_attempt_until_its_last_answer_and_nothing_after_it(cohort: Cohort) -> None:
    one = cohort.sum()
    one.survivors()
    assert all(len(state) == 1 for state in cohort.states.values())
    cohort.sum(number=2).result()
    assert all(len(state) == 0 for state in cohort.states.values())


# --- what is charged -----------------------------------------------------------------------------------------------


def test_an_attempt_is_charged_once_and_before_data_is_read(cohort: Cohort) -> None:
    one = cohort.sum()
    inboxes = one.shares()
    assert cohort.clients.charged() == {}
    assert "read" not in cohort.clients.events
    one.say(TRAIN, "0", inboxes["0"])
    assert cohort.clients.events[:3] == ["reserve", "read", "train"]
    assert cohort.clients.charged() == {cohort.plan.train_release(): 1}
    for name in NAMES[1:]:
        one.server.take_masked(name, vector_of(one.say(TRAIN, name, inboxes[name])))
    one.server.survivors()
    assert cohort.clients.kinds() == ["open", "policy", "reserve", "commit"]


def test_every_attempt_has_a_charge_of_its_own_whatever_became_of_it(cohort: Cohort) -> None:
    cohort.sum().masked()  # never opened
    cohort.sum(number=2).result()
    cohort.sum(number=3, round=2).result()
    for name in NAMES:
        assert cohort.clients.charged(name) == {cohort.plan.train_release(): 3}


def test_rule_2_a_plan_is_charged_for_its_rounds_and_spare_attempts_and_no_more(cohort: Cohort) -> None:
    cohort.plan = secure_plan(secure_sum={"spare_rounds": 1})
    for number in range(1, 5):
        cohort.sum(number=number, round=min(number, 3)).masked()
    late = cohort.sum(number=5, round=3)
    # It is said before anybody relies on this client, and nothing is charged for it.
    refused(late.say(SECURE_KEYS, "0", late.server.announcement()), Fault.BUDGET_EXHAUSTED)
    assert cohort.clients.charged() == {cohort.plan.train_release(): 4}
    assert cohort.clients.kinds()[-1] == "budget-exhausted"


def test_who_may_take_part_no_more_today_says_so_before_offering_keys(cohort: Cohort) -> None:
    def policy(plan: Plan, client: str) -> SitePolicy:
        allow = Allow(reproducible_noise=True, rounds_a_day=2)
        return simulated_policy(plan, client).model_copy(update={"allow": allow})

    cohort.clients.policy = policy
    for number in (1, 2):
        cohort.sum(number=number).masked()
    third = cohort.sum(number=3)
    refused(third.say(SECURE_KEYS, "0", third.server.announcement()), Fault.POLICY_RATE)


def test_a_client_whose_training_fails_has_paid_and_is_out_of_the_attempt(cohort: Cohort) -> None:
    one = cohort.sum()
    inboxes = one.shares()
    cohort.clients.error = RuntimeError("patient-4711")
    refused(one.say(TRAIN, "0", inboxes["0"]), Fault.CLIENT_FAILED)
    cohort.clients.error = None
    assert cohort.clients.kinds() == ["open", "policy", "reserve", "client-failed"]
    # It has lost the secrets: nothing is masked under this attempt any more, and nothing is charged again.
    refused(one.say(TRAIN, "0", inboxes["0"]), Fault.SECURE_SUM_LOST)
    assert cohort.clients.charged() == {cohort.plan.train_release(): 1}


# --- crash and redelivery ------------------------------------------------------------------------------------------


def test_a_masked_vector_that_is_asked_for_again_is_the_same_bytes(cohort: Cohort) -> None:
    one = cohort.sum()
    inboxes = one.shares()
    first = one.say(TRAIN, "0", inboxes["0"])
    cohort.clients.events.clear()
    again = one.say(TRAIN, "0", inboxes["0"])
    assert wire(again.content) == wire(first.content)
    assert cohort.clients.events == ["reserve"]  # which finds it committed
    assert cohort.clients.charged() == {cohort.plan.train_release(): 1}
    # And the attempt goes on.
    for name in NAMES:
        found = first if name == "0" else one.say(TRAIN, name, inboxes[name])
        one.server.take_masked(name, vector_of(found))
    words_of(one.say(SECURE_SURVIVORS, "0", one.server.survivors()))


def test_rule_8_a_second_vector_under_one_attempt_is_refused_in_whatever_words_it_is_asked_for(cohort: Cohort) -> None:
    one = cohort.sum()
    inboxes = one.shares()
    first = one.say(TRAIN, "0", inboxes["0"])
    cohort.clients.events.clear()
    refused(one.say(TRAIN, "0", inboxes["0"], more=1))
    refused(one.say(TRAIN, "0", inboxes["0"][:-1]))
    one.arrays = cohort.sum(model={name: value + 1 for name, value in model_of(cohort.plan).items()}).arrays
    refused(one.say(TRAIN, "0", inboxes["0"]))
    assert cohort.clients.events == []
    # Without its memory of the attempt the ledger still knows it: those bytes, and no others.
    cohort.states["0"].clear()
    again = one.say(TRAIN, "0", inboxes["0"])
    assert np.array_equal(vector_of(again), vector_of(first))
    assert cohort.clients.events == ["reserve"]  # which finds it committed
    assert cohort.clients.charged() == {cohort.plan.train_release(): 1}


@pytest.mark.parametrize("phase", [SECURE_SHARES, TRAIN, SECURE_SURVIVORS, SECURE_UNMASK])
def test_a_client_that_has_lost_an_attempt_says_so_and_is_charged_nothing(cohort: Cohort, phase: str) -> None:
    one = cohort.sum()
    said = {SECURE_SHARES: one.keys, TRAIN: one.shares, SECURE_SURVIVORS: one.masked, SECURE_UNMASK: one.survivors}
    words = said[phase]()
    before = cohort.clients.charged()
    cohort.states["0"].clear()
    refused(one.say(phase, "0", words["0"] if isinstance(words, dict) else words), Fault.SECURE_SUM_LOST)
    assert cohort.clients.charged() == before


def test_an_attempt_whose_vector_was_reserved_but_lost_is_never_masked_again(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cohort.sum()
    inboxes = one.shares()

    crash(monkeypatch, one, inboxes["0"])
    cohort.states["0"].clear()  # as a site's memory is then
    refused(one.say(TRAIN, "0", inboxes["0"]), Fault.SECURE_SUM_LOST)
    # Nor can the same attempt be begun anew.
    refused(one.say(SECURE_KEYS, "0", one.server.announcement()))
    assert cohort.clients.charged() == {cohort.plan.train_release(): 1}
    assert cohort.clients.kinds() == ["open", "policy", "reserve"]


def test_a_worker_that_died_before_the_commit_leaves_a_client_that_goes_on_at_one_charge(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cohort.sum()
    inboxes = one.shares()
    before = cohort.states["0"].copy()
    crash(monkeypatch, one, inboxes["0"])
    cohort.states["0"] = RecordDict(before)  # nothing has left since
    for name in NAMES:
        one.server.take_masked(name, vector_of(one.say(TRAIN, name, inboxes[name])))
    words_of(one.say(SECURE_SURVIVORS, "0", one.server.survivors()))
    assert cohort.clients.charged() == {cohort.plan.train_release(): 1}


class Crash(BaseException):
    """The end of a process."""


def crash(monkeypatch: pytest.MonkeyPatch, one: Sum, inbox: bytes) -> None:
    """Client "0" dies in its training, after it was charged."""

    def die(*_: Any, **__: Any) -> Any:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("client.secure_update.contribution", die)
        with pytest.raises(Crash):
            one.say(TRAIN, "0", inbox)


def test_a_worker_that_died_after_the_commit_leaves_the_same_bytes_and_a_client_that_drops_out(cohort: Cohort) -> None:
    one = cohort.sum()
    inboxes = one.shares()
    before = cohort.states["0"].copy()
    first = one.say(TRAIN, "0", inboxes["0"])
    cohort.states["0"] = RecordDict(before)  # the grid never got the state after it
    again = one.say(TRAIN, "0", inboxes["0"])
    assert wire(again.content) == wire(first.content)
    assert len(cohort.states["0"]) == 0
    for name in NAMES:
        found = again if name == "0" else one.say(TRAIN, name, inboxes[name])
        one.server.take_masked(name, vector_of(found))
    refused(one.say(SECURE_SURVIVORS, "0", one.server.survivors()), Fault.SECURE_SUM_LOST)


def test_a_new_attempt_of_a_run_ends_the_one_before(cohort: Cohort) -> None:
    first = cohort.sum()
    key_list = first.keys()
    cohort.sum(number=2).keys()
    refused(first.say(SECURE_SHARES, "0", key_list), Fault.SECURE_SUM_LOST)


@pytest.mark.parametrize("number", [1, 2])
def test_rule_8_an_attempt_of_a_number_that_was_begun_before_is_refused(cohort: Cohort, number: int) -> None:
    cohort.sum(number=2).keys()
    again = cohort.sum(number=number, nonce=b"m" * 32)
    refused(again.say(SECURE_KEYS, "0", again.server.announcement()))


def test_each_phase_is_answered_once(cohort: Cohort) -> None:
    one = cohort.sum()
    one.result()
    for kind in (SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK):
        refused(one.say(kind, "0", b""), Fault.SECURE_SUM_LOST)  # all is forgotten
    other = cohort.sum(number=2)
    said = other.survivors()
    key_list = cohort.sum(number=2).request(SECURE_SHARES, b"").config_records[CONFIG][SECURE_MESSAGE]
    refused(other.say(SECURE_SHARES, "0", bytes(key_list)))  # type: ignore[arg-type]
    words_of(other.say(SECURE_UNMASK, "0", said))  # which it outlives


def test_two_survivor_sets_are_not_both_signed(cohort: Cohort) -> None:
    one = cohort.sum()
    everybody = one.masked()
    first = words_of(one.say(SECURE_SURVIVORS, "0", everybody))
    fewer = message_of(one.attempt, Survivors(survivors=(0, 1, 2, 3)))
    refused(one.say(SECURE_SURVIVORS, "0", fewer))
    assert first


# --- what is refused -----------------------------------------------------------------------------------------------


def other_words(change: dict[str, Any]) -> Callable[[Cohort], Message]:
    def ask(cohort: Cohort) -> Message:
        one = cohort.sum(**change)
        return one.say(SECURE_KEYS, "0", one.server.announcement())

    return ask


def other_config(**change: Any) -> Callable[[Cohort], Message]:
    def ask(cohort: Cohort) -> Message:
        one = cohort.sum()
        return one.say(SECURE_KEYS, "0", one.server.announcement(), **change)

    return ask


ANNOUNCEMENTS: dict[str, tuple[Callable[[Cohort], Message], Fault]] = {
    "another federation": (other_words({"federation": "other"}), Fault.SECURE_SUM_REFUSED),
    "another purpose": (other_words({"purpose": "evaluate"}), Fault.SECURE_SUM_REFUSED),
    "another length": (other_words({"length": 26}), Fault.SECURE_SUM_REFUSED),
    "another ring": (other_words({"bits": 64}), Fault.SECURE_SUM_REFUSED),
    "another context": (other_words({"context": b"c" * 32}), Fault.SECURE_SUM_REFUSED),
    "another round than the message's": (other_config(**{ROUND: 2}), Fault.SECURE_SUM_REFUSED),
    "another run than the message's": (other_config(**{RUN: "run-2"}), Fault.SECURE_SUM_REFUSED),
    "another model than the context's": (other_config(**{SECURE_MODEL: "0" * 64}), Fault.SECURE_SUM_REFUSED),
    "a cohort without this client": (other_words({"cohort": ("1", "2", "3", "4")}), Fault.SECURE_SUM_REFUSED),
    "no words": (other_config(**{SECURE_MESSAGE: b""}), Fault.SECURE_SUM_REFUSED),
    "words that are text": (other_config(**{SECURE_MESSAGE: "x"}), Fault.SECURE_SUM_REFUSED),
    "a model that is no digest": (other_config(**{SECURE_MODEL: "x"}), Fault.SECURE_SUM_REFUSED),
    "another plan": (other_config(**{PLAN_DIGEST: "0" * 64}), Fault.PLAN_MISMATCH),
    "another layout": (other_config(**{LAYOUT_DIGEST: "0" * 64}), Fault.MODEL_MISMATCH),
    "a round that isn't planned": (other_words({"round": 4}), Fault.PLAN_MISMATCH),
}


@pytest.mark.parametrize("case", ANNOUNCEMENTS)
def test_an_attempt_that_is_not_the_plans_is_refused_before_anything_is_promised(cohort: Cohort, case: str) -> None:
    ask, fault = ANNOUNCEMENTS[case]
    refused(ask(cohort), fault)
    assert len(cohort.states["0"]) == 0
    assert cohort.clients.charged() == {}


def test_a_cohort_with_a_stranger_is_refused(cohort: Cohort) -> None:
    roster = {**cohort.roster, "5": "ab" * 32}
    one = Sum(cohort.plan, cohort.ask, roster, cohort=("0", "1", "2", "3", "5"))
    refused(one.say(SECURE_KEYS, "0", one.server.announcement()))


def test_the_policys_least_cohort_holds_for_each_attempt(cohort: Cohort) -> None:
    def policy(plan: Plan, client: str) -> SitePolicy:
        allow = Allow(reproducible_noise=True, least_cohort=5)
        return simulated_policy(plan, client).model_copy(update={"allow": allow})

    cohort.clients.policy = policy
    four = cohort.sum(cohort=("0", "1", "2", "3"))
    refused(four.say(SECURE_KEYS, "0", four.server.announcement()))
    cohort.sum().keys()


def test_who_is_sent_another_model_than_was_named_refuses_at_no_charge(cohort: Cohort) -> None:
    one = cohort.sum()
    inboxes = one.shares()
    own = one.arrays
    one.arrays = cohort.sum(model={name: value + 1 for name, value in model_of(cohort.plan).items()}).arrays
    refused(one.say(TRAIN, "0", inboxes["0"]))
    one.arrays = own
    refused(one.say(TRAIN, "0", inboxes["0"]), Fault.SECURE_SUM_LOST)  # for this client the attempt is over
    assert cohort.clients.charged() == {}


def test_a_vector_is_given_in_its_turn_and_round_alone(cohort: Cohort) -> None:
    one = cohort.sum()
    one.keys()
    refused(one.say(TRAIN, "0", b""))  # before it has shared its secrets
    assert cohort.clients.charged() == {}
    other = cohort.sum(number=2)
    inboxes = other.shares()
    refused(other.say(TRAIN, "0", inboxes["0"], **{ROUND: 2}))
    assert cohort.clients.charged() == {}


def test_an_inbox_that_breaks_the_protocol_is_refused_and_stays_charged(cohort: Cohort) -> None:
    one = cohort.sum()
    inboxes = one.shares()
    refused(one.say(TRAIN, "0", inboxes["1"]))  # another's
    assert cohort.clients.charged() == {cohort.plan.train_release(): 1}
    # It depends on messages alone, so the claim stands: no "client-failed".
    assert cohort.clients.kinds() == ["open", "policy", "reserve", "secure-sum-refused"]
    refused(one.say(TRAIN, "0", inboxes["0"]), Fault.SECURE_SUM_LOST)


def test_rule_2_too_few_survivors_are_not_opened_and_stay_charged(cohort: Cohort) -> None:
    one = cohort.sum()
    one.masked()
    few = message_of(one.attempt, Survivors(survivors=(0, 1, 2)))
    refused(one.say(SECURE_SURVIVORS, "0", few))
    assert cohort.clients.charged() == {cohort.plan.train_release(): 1}
    with pytest.raises(SecureSumError) as caught:
        cohort.sum(number=2).masked(but=("3", "4"))
    assert caught.value.reason is Abort.TOO_FEW_CLIENTS


def test_under_distributed_trust_no_update_leaves_but_under_masks(cohort: Cohort) -> None:
    refused(cohort.ask("0", TRAIN, content_of(cohort.plan)))
    made_up = content_of(cohort.plan)
    made_up.config_records[CONFIG][SECURE_ATTEMPT] = b"a" * 32
    made_up.config_records[CONFIG][SECURE_MESSAGE] = b""
    refused(cohort.ask("0", TRAIN, made_up), Fault.SECURE_SUM_LOST)
    assert cohort.clients.events == []
    assert cohort.clients.charged() == {}


@pytest.mark.parametrize("kind", [SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK])
def test_a_plan_without_secure_sums_has_no_phases(clients: Clients, kind: str) -> None:
    plan = plan_of()
    content = content_of(plan)
    content.config_records[CONFIG][SECURE_MESSAGE] = b""
    assert_fault(clients.ask(plan, content, kind=kind), Fault.PLAN_MISMATCH)


def test_the_owner_may_stop_between_any_two_phases(cohort: Cohort) -> None:
    one = cohort.sum()
    said = one.masked()

    def changed_mind(plan: Plan, client: str) -> SitePolicy:
        return simulated_policy(plan, client).model_copy(update={"budget": ()})

    cohort.clients.policy = changed_mind
    refused(one.say(SECURE_SURVIVORS, "0", said), Fault.POLICY_UNIT)


def test_an_owner_reads_in_the_log_which_rule_was_broken_and_nothing_secret(
    cohort: Cohort, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    one = cohort.sum(federation="other")
    refused(one.say(SECURE_KEYS, "0", one.server.announcement()))
    assert caplog.messages == [
        "a query.secure_keys was refused: secure sum: other-attempt: a message belongs to another federation, run, "
        "round, plan or attempt"
    ]
    caplog.clear()
    cohort.sum().result()
    assert caplog.messages == []


def test_shares_of_both_kinds_never_leave(cohort: Cohort) -> None:
    one = cohort.sum()
    one.result(but=("4",))
    # Of each peer one share, of its seed or of its mask key; what a client said last is all it will ever say.
    from security.secure_sum.messages import Answer, decode

    given: Counter[int] = Counter()
    for name in NAMES[:4]:
        answer = decode(words_of(one.replies[SECURE_UNMASK, name]), Answer, one.attempt)
        given.update(answer.shares.keys())
        assert all(len(share) == 33 for share in answer.shares.values())
    assert given == dict.fromkeys(range(5), 4)
    refused(one.say(SECURE_UNMASK, "0", b""), Fault.SECURE_SUM_LOST)

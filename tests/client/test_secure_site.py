"""Deployed sites in a secure sum: their own rosters, identities and data; attempts in memory alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from client.running import Answer, Runner, is_query
from client.site import DeployedSite
from client.sum_attempts import Pending
from security.enrolment import approve_roster, approved_roster
from security.homes import SiteHome
from security.identity import Identity
from security.roster import Roster
from shared_models.faults import Fault
from shared_models.flower_messages import (
    act_as_server,
    header_to_bytes,
    message_from_bytes,
    payload_to_bytes,
)
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import PLAN_DIGEST, SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK
from tests.client.conftest import assert_fault, wire
from tests.client.real_site import APPROVED, DATA, FEDERATION, Authority, Running, settings_text, started, write_rows
from tests.client.secure_cohort import TRAIN, Sum, secure_plan, vector_of, words_of

SITES = ("charite", "mayo", "st-mary", "ucl")  # honest 2, corrupt 1, so 3 are needed in each phase
BUDGET = '[[budget]]\nunit = "client"\ntrust = "distributed"\nepsilon = 500.0\ndelta = 1e-5\n'


class Federation:
    """Four sites, all in this process, reached as over the link: bytes in, bytes out."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder / "authority")
        self.homes = {name: authority.admit(folder / name, name) for name in SITES}
        self.plan: Plan = secure_plan(4, private={"noise": "secret"})
        self.answers: list[Answer] = []
        roster = max((approved_roster(home) for home in self.homes.values()), key=lambda found: len(found.sites))
        for number, home in enumerate(self.homes.values()):
            write_rows(home.path / "rows.csv", seed=number)
            self.allow(home)
            approve_roster(home, roster, Identity.load(home.identity_key))
        self.roster = dict(roster.sites)
        self.running = {name: started(home) for name, home in self.homes.items()}
        self.runners = {name: Runner(name) for name in SITES}

    def allow(self, home: SiteHome, *more: str) -> None:
        home.settings.write_text(settings_text(BUDGET, DATA, APPROVED, *more, site=home.path.name))

    def ask(self, name: str, kind: str, content: RecordDict) -> Message:
        act_as_server(1)
        request = Message(content, 7, kind, group_id="1")
        answer = self.runners[name].answer(
            header=header_to_bytes(request.metadata),
            payload=payload_to_bytes(request),
            plan=write_plan(self.plan),
            state=b"",
        )
        self.answers.append(answer)
        return message_from_bytes(answer.header, answer.payload)

    def sum(self, **how: Any) -> Sum:
        return Sum(self.plan, self.ask, self.roster, federation=FEDERATION, **how)

    def restart(self, name: str) -> Running:
        """As if the site's process had ended and begun again."""
        self.running[name].site.close()
        self.running[name] = started(self.homes[name])
        return self.running[name]

    def pending(self, name: str) -> Pending | None:
        found: DeployedSite = self.running[name].site
        return found._attempts._runs["run-1"][1]

    def close(self) -> None:
        for running in self.running.values():
            running.site.close()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    found = Federation(tmp_path)
    yield found
    found.close()


def test_sites_add_up_and_each_is_charged_once(federation: Federation) -> None:
    assert set(federation.roster) == set(SITES)
    total = federation.sum().result()
    assert total.any()
    for running in federation.running.values():
        assert running.kinds() == ["open", "policy", "reserve", "commit"]


def test_a_site_remembers_an_attempt_nowhere_but_in_memory(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    one = federation.sum()
    inboxes = one.shares()
    pending = federation.pending("mayo")
    assert pending is not None
    state = pending.client._state
    secrets = [state.mask_secret, state.channel_secret, state.seed, *state.held.values()]
    one.say(TRAIN, "mayo", inboxes["mayo"])
    secrets += federation.pending("mayo").client._state.held.values()  # type: ignore[union-attr]
    assert len(secrets) == 3 + 1 + 4
    # What the app remembers goes to the disk with each reply.
    assert {answer.state for answer in federation.answers} == {b""}
    files = [path.read_bytes() for path in federation.homes["mayo"].path.rglob("*") if path.is_file()]
    said = [*files, *(message.encode() for message in caplog.messages), repr(pending).encode()]
    for secret in secrets:
        assert len(secret) >= 32
        for text in said:
            assert secret not in text
            assert secret.hex().encode() not in text


@pytest.mark.parametrize("phase", [SECURE_SHARES, TRAIN, SECURE_SURVIVORS, SECURE_UNMASK])
def test_a_site_that_starts_again_is_one_that_dropped_out_and_the_others_go_on(
    federation: Federation, phase: str
) -> None:
    one = federation.sum()
    phases = {SECURE_SHARES: one.keys, TRAIN: one.shares, SECURE_SURVIVORS: one.masked, SECURE_UNMASK: one.survivors}
    said = phases[phase]()
    running = federation.restart("mayo")
    before = running.kinds()
    reply = one.say(phase, "mayo", said["mayo"] if isinstance(said, dict) else said)
    assert_fault(reply, Fault.SECURE_SUM_LOST)
    assert running.kinds() == before
    one.server.drop("mayo")
    others = one.server.waiting_for
    if phase == SECURE_SHARES:
        for name in others:
            one.server.take_shares(name, words_of(one.say(SECURE_SHARES, name, said)))  # type: ignore[arg-type]
        said = one.server.inboxes()
    if phase in (SECURE_SHARES, TRAIN):
        for name in others:
            one.server.take_masked(name, vector_of(one.say(TRAIN, name, said[name])))  # type: ignore[index]
        said = one.server.survivors()
    if phase != SECURE_UNMASK:
        for name in one.server.waiting_for:
            one.server.take_confirmation(name, words_of(one.say(SECURE_SURVIVORS, name, said)))  # type: ignore[arg-type]
        said = one.server.confirmations()
    for name in one.server.waiting_for:
        one.server.take_answer(name, words_of(one.say(SECURE_UNMASK, name, said)))  # type: ignore[arg-type]
    assert one.server.result().any()
    # And with the next attempt all are back.
    assert federation.sum(number=2).result().any()


def test_a_site_that_starts_again_sends_what_it_had_committed_and_masks_nothing_more(federation: Federation) -> None:
    one = federation.sum()
    inboxes = one.shares()
    first = one.say(TRAIN, "mayo", inboxes["mayo"])
    running = federation.restart("mayo")
    assert wire(one.say(TRAIN, "mayo", inboxes["mayo"]).content) == wire(first.content)
    assert wire(one.say(TRAIN, "mayo", inboxes["ucl"]).content) == wire(first.content)
    assert_fault(one.say(SECURE_KEYS, "mayo", one.server.announcement()), Fault.SECURE_SUM_REFUSED)
    assert running.kinds() == ["open", "policy", "reserve", "commit"]


def test_a_site_keeps_few_attempts_the_newest_of_each_run(federation: Federation) -> None:
    for number in (1, 2):
        for run in "abcdefgh":
            one = federation.sum(run=run, number=number)
            words_of(one.say(SECURE_KEYS, "mayo", one.server.announcement()))
    kept = federation.running["mayo"].site._attempts._runs
    assert {run: number for run, (number, _) in kept.items()} == dict.fromkeys("efgh", 2)


def test_rule_8_peers_are_those_of_the_roster_that_the_site_has_approved(federation: Federation) -> None:
    home = federation.homes["mayo"]
    old = approved_roster(home)
    fewer = {name: key for name, key in old.sites.items() if name != "ucl"}
    roster = Roster(federation=old.federation, authority=old.authority, sites=fewer)
    approve_roster(home, roster, Identity.load(home.identity_key))
    one = federation.sum()
    assert_fault(one.say(SECURE_KEYS, "mayo", one.server.announcement()), Fault.SECURE_SUM_REFUSED)
    home.roster.write_text("{}")
    assert_fault(one.say(SECURE_KEYS, "mayo", one.server.announcement()), Fault.POLICY_APPROVAL)
    assert_fault(federation.sum(cohort=SITES[:3]).say(SECURE_KEYS, "mayo", b""), Fault.POLICY_APPROVAL)


@pytest.mark.parametrize("bound", ["least_honest = 3", "least_cohort = 5"])
def test_an_owner_says_with_how_many_the_site_adds_up(federation: Federation, bound: str) -> None:
    home = federation.homes["mayo"]
    federation.allow(home, f"[allow]\n{bound}\n")
    verdict = federation.running["mayo"].site.consider(write_plan(federation.plan), federation.plan.digest())
    assert verdict.fault is Fault.POLICY_SECURE_SUM
    one = federation.sum()
    assert_fault(one.say(SECURE_KEYS, "mayo", one.server.announcement()), Fault.POLICY_SECURE_SUM)
    assert federation.running["mayo"].kinds()[-1] == "policy-secure-sum"


def test_an_owner_who_withdraws_an_approval_is_out_of_the_sum_at_once(federation: Federation) -> None:
    running = federation.running["mayo"]
    home = federation.homes["mayo"]
    home.settings.write_text(settings_text(BUDGET, DATA, site="mayo"))
    running.site.approvals.add(federation.plan, "yes")
    one = federation.sum()
    said = one.masked()
    running.site.approvals.remove(federation.plan.digest())
    assert_fault(one.say(SECURE_SURVIVORS, "mayo", said), Fault.POLICY_APPROVAL)


def test_outside_of_its_hours_a_site_begins_no_sum_but_finishes_one(federation: Federation) -> None:
    waits = {}
    for kind in (SECURE_KEYS, SECURE_SHARES, TRAIN, SECURE_SURVIVORS, SECURE_UNMASK):
        act_as_server(1)
        header = header_to_bytes(Message(federation.sum().request(SECURE_SHARES, b""), 7, kind).metadata)
        waits[kind] = not is_query(header)
    assert [kind for kind in waits if waits[kind]] == [SECURE_KEYS, TRAIN]


def test_every_reply_of_a_sum_may_leave_as_long_as_its_plan_is_allowed(federation: Federation) -> None:
    federation.sum().result()
    site = federation.running["mayo"].site
    for answer in federation.answers:
        assert site.allows(federation.plan, answer.fields), answer.kind


def test_rule_2_an_attempt_of_one_plan_is_not_paid_and_masked_under_another(federation: Federation) -> None:
    # Both are allowed. Sums of the first are opened for fewer honest sites than the other's shares of noise count on.
    few, many = federation.plan, secure_plan(4, private={"noise": "secret"}, secure_sum={"honest": 0.75})
    assert few.secure_parameters().least < many.secure_parameters().least
    assert few.sum_grid().noise_share > many.sum_grid().noise_share
    one = federation.sum()
    inboxes = one.shares()
    federation.plan = many
    one.config[PLAN_DIGEST] = many.digest()
    assert_fault(one.say(TRAIN, "mayo", inboxes["mayo"]), Fault.SECURE_SUM_REFUSED)
    assert federation.running["mayo"].kinds() == ["open", "policy"]
    federation.plan = few
    one.config[PLAN_DIGEST] = few.digest()
    assert_fault(one.say(TRAIN, "mayo", inboxes["mayo"]), Fault.SECURE_SUM_LOST)  # for this site the attempt is over

"""A client's part in a secure sum: five phases of one attempt, each one message and its reply.

`security.secure_sum.client` says what is believed and what is answered. Here is what a site adds: that an attempt is
of its plan, its federation and the model that was named before anybody offered keys; that policy and budget allow it;
and that a vector is paid for before anything is trained, once an attempt.

What a crash leaves. Secrets are in memory alone, so a site that has started again says `SECURE_SUM_LOST` to whatever
comes of an attempt it had a part in, and is one of those who dropped out. The masked vector is a task of the ledger,
named by its attempt: once it is committed the same bytes are sent again and no others; reserved and not committed, it
stays charged, and without the secrets nothing can be masked any more. So no two vectors ever leave under one attempt.
Offered keys and sealed shares that a crash lost are harmless: the next offer has new ones.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from client.asking import digest_of, model_of, norm_of, run_and_round
from client.contribution import contribution
from client.egress import check_query
from client.guard import Guard, Request
from client.policy import RefusedError
from client.site import Site, site_of
from client.sum_attempts import Pending
from client.workplace import Workplace
from privacy.ledger import Reason
from security.errors import UsageError
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import DIGEST_BYTES, Attempt, Expected, Phase
from security.secure_sum.client import SumClient
from shared_models.faults import Fault
from shared_models.plan_secure_sum import added_up
from shared_models.protocol import (
    ARRAYS,
    CONFIG,
    EPSILON,
    MASKED,
    METRICS,
    SECURE_ATTEMPT,
    SECURE_MESSAGE,
    SECURE_MODEL,
    WEIGHT,
)
from shared_models.secure_context import attempt_context, model_digest

PURPOSE: Final = "train"

_DIGEST: Final = re.compile("[0-9a-f]{64}")

_log = logging.getLogger("veil.client")


def offer_keys(message: Message, place: Workplace, context: Context) -> RecordDict:
    """Phase keys: begin an attempt, if it could be paid for as things stand; nothing is charged yet.

    Raises:
        RefusedError: policy, budget or protocol say no.
    """
    asked = _Asked.of(message, place, first=True)
    site = site_of(place, context)
    guard = Guard.of(site, place)
    guard.foresee(asked.request)
    attempts = site.attempts()

    def used(attempt: Attempt) -> bool:
        """Known by its number while this process lives, by its charge for ever."""
        return attempt.number <= attempts.newest(asked.run) or guard.knows(_task(attempt))

    with _protocol():
        expected = replace(_expected(asked, place, site, asked.model), used=used)
        client, offer = SumClient.begin(asked.words, expected, _sign(site))
    attempts.keep(Pending(client=client, model=asked.model))
    return _words(offer)


def give_shares(message: Message, place: Workplace, context: Context) -> RecordDict:
    """Phase shares: share the attempt's secrets among the holders that this client chooses. As `offer_keys`."""
    return _step(message, place, context, lambda client, words: client.share(words))


def confirm(message: Message, place: Workplace, context: Context) -> RecordDict:
    """Phase survivors: sign whose vectors are in the sum. As `offer_keys`."""
    return _step(message, place, context, lambda client, words: client.confirm(words))


def unmask(message: Message, place: Workplace, context: Context) -> RecordDict:
    """Phase unmask: give what takes the masks off the sum, and forget all secrets. As `offer_keys`."""
    return _step(message, place, context, lambda client, words: client.unmask(words))


def send_masked(message: Message, place: Workplace, context: Context) -> RecordDict:
    """Phase masked: pay, train, and send the update under its masks; or what was sent before.

    Raises:
        RefusedError: policy, budget or protocol say no.
    """
    asked = _Asked.of(message, place)
    start = model_of(message, place)
    norm = norm_of(message, place.plan)
    model = model_digest(message.content.array_records[ARRAYS], norm)
    site = site_of(place, context)
    guard = Guard.of(site, place)
    attempts = site.attempts()
    pending = _find(asked, place, site)
    if pending is None or pending.answered:
        if pending is not None and pending.answered != asked.request.digest:
            _refuse(Abort.ALREADY_ANSWERED)
        stored = guard.stored(asked.task)
        if stored is None:
            raise RefusedError(Fault.SECURE_SUM_LOST)
        return stored
    if pending.client.attempt.round != asked.round or pending.model != model:
        attempts.drop(pending)
        _refuse(Abort.OTHER_ATTEMPT)
    if pending.client.phase is not Phase.MASKED:
        _refuse(Abort.OUT_OF_ORDER)
    stored = guard.admit(asked.task)
    if stored is not None:  # masked by a worker of the simulation that died before this client's state was kept
        attempts.drop(pending)
        return stored
    attempts.drop(pending)  # until it has sent something: it must not say that it is in the sum
    try:
        vector = contribution(place, site, start, round_number=asked.round, attempt=asked.attempt, norm=norm)
        with _protocol():
            masked = pending.client.mask(asked.words, vector)
        arrays = ArrayRecord({MASKED: Array(masked)})
        metrics = MetricRecord({WEIGHT: 1, EPSILON: guard.epsilon()})
        reply = guard.release(RecordDict({ARRAYS: arrays, METRICS: metrics}))
    except Exception as error:
        of_protocol = isinstance(error, RefusedError) and error.fault is Fault.SECURE_SUM_REFUSED
        guard.failed(Reason.SECURE_SUM_REFUSED if of_protocol else Reason.CLIENT_FAILED)
        raise
    if reply[ARRAYS] == arrays:  # or another process was faster, and what it sent is under other masks
        pending.answered = asked.request.digest
        attempts.keep(pending)
    return reply


# --- what was asked


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A message of a secure sum.

    Attributes:
        request: as the ledger notes a refusal.
        words: what `SumClient` reads.
        attempt: its digest; empty in phase keys.
        model: digest of the model that will be trained; in phase keys alone.
    """

    request: Request
    words: bytes = field(repr=False)
    attempt: bytes = b""
    model: str = ""

    @property
    def run(self) -> str:
        return self.request.run

    @property
    def round(self) -> int:
        return self.request.round

    @property
    def task(self) -> Request:
        """What is charged: one a time and attempt, in whatever words it is asked for."""
        return Request(run=self.run, round=self.round, phase="train", digest=self.attempt.hex())

    @classmethod
    def of(cls, message: Message, place: Workplace, *, first: bool = False) -> _Asked:
        """Read a message's fields.

        Raises:
            RefusedError: the plan has no secure sums, or a field is missing or none.
        """
        plan, config = place.plan, message.content.config_records[CONFIG]
        run, number = run_and_round(message, place)
        if plan.privacy.trust != "distributed":
            raise RefusedError(Fault.PLAN_MISMATCH)
        if plan.secure.dimension != added_up(plan, place.layout.size):
            raise RefusedError(Fault.MODEL_MISMATCH)
        words = config.get(SECURE_MESSAGE)
        attempt, model = (b"", config.get(SECURE_MODEL)) if first else (config.get(SECURE_ATTEMPT), "")
        if not (isinstance(words, bytes) and isinstance(attempt, bytes) and isinstance(model, str)):
            _refuse(Abort.DAMAGED_MESSAGE)
        if not (_DIGEST.fullmatch(model) if first else len(attempt) == DIGEST_BYTES):
            _refuse(Abort.DAMAGED_MESSAGE)
        request = Request(run=run, round=number, phase="train", digest=digest_of(message.content))
        return cls(request=request, words=words, attempt=attempt, model=model)


def _step(message: Message, place: Workplace, context: Context, say: Callable[[SumClient, bytes], bytes]) -> RecordDict:
    """One phase of an attempt that is under way."""
    asked = _Asked.of(message, place)
    site = site_of(place, context)
    Guard.of(site, place).check(asked.request)  # the owner may have changed their mind meanwhile
    pending = _find(asked, place, site)
    if pending is None:
        raise RefusedError(Fault.SECURE_SUM_LOST)
    try:
        with _protocol():
            if pending.client.attempt.round != asked.round:
                raise SecureSumError(Abort.OTHER_ATTEMPT)
            reply = say(pending.client, asked.words)
    finally:
        site.attempts().keep(pending)
    return _words(reply)


def _find(asked: _Asked, place: Workplace, site: Site) -> Pending | None:
    """The attempt that a message is about, if it is under way; of another plan than the message's it ends."""

    def resume(model: str, state: bytes) -> SumClient:
        return SumClient.from_bytes(state, _expected(asked, place, site, model), _sign(site))

    with _protocol():
        pending = site.attempts().find(asked.run, asked.attempt, resume)
        if pending is not None:
            # Another plan that the site allows has other noise, and another price than these thresholds are for.
            attempt, plan, layout = pending.client.attempt, place.plan.digest(), place.layout.digest
            if attempt.context != attempt_context(plan=plan, layout=layout, model=pending.model):
                site.attempts().drop(pending)
                raise SecureSumError(Abort.OTHER_ATTEMPT)
    return pending


def _expected(asked: _Asked, place: Workplace, site: Site, model: str) -> Expected:
    """What this client takes part in: of the server's words only the run, the round and the model's name are in it."""
    plan = place.plan
    assert plan.secure.dimension is not None  # or it were not resolved
    assert plan.secure.bits is not None
    try:
        peers = site.peers(place)
    except UsageError as error:
        _log.warning("%s", error)
        raise RefusedError(Fault.POLICY_APPROVAL) from None
    return Expected(
        federation=site.federation(plan),
        run=asked.run,
        round=asked.round,
        purpose=PURPOSE,
        context=attempt_context(plan=plan.digest(), layout=place.layout.digest, model=model),
        length=plan.secure.dimension,
        bits=plan.secure.bits,
        client=site.client,  # a virtual client's may be in the data, before a charge; the server has been told it
        roster=peers,
        parameters=plan.secure_parameters,
        least_cohort=site.policy(plan).allow.least_cohort,
    )


def _sign(site: Site) -> Callable[[bytes], bytes]:
    return site.books().owner(site.client).sign


def _task(attempt: Attempt) -> Request:
    return Request(run=attempt.run, round=attempt.round, phase="train", digest=attempt.digest.hex())


# --- what is said


def _words(reply: bytes) -> RecordDict:
    found = RecordDict({CONFIG: ConfigRecord({SECURE_MESSAGE: reply})})
    check_query(found, "secure-sum")
    return found


def _refuse(reason: Abort) -> NoReturn:
    with _protocol():
        raise SecureSumError(reason)


@contextmanager
def _protocol() -> Iterator[None]:
    """What the protocol refuses, as a fixed code; the reason is for the client's own log."""
    try:
        yield
    except SecureSumError as error:
        raise RefusedError(Fault.SECURE_SUM_REFUSED) from error

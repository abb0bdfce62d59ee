"""The guard: asked before data is touched, and again before anything leaves.

`admit` holds what a server asks for against the site's policy and reserves its whole price in the ledger before any
data is read; a reservation is never taken back, so training that fails has still been paid for. `release` is the one
way out: every field of a reply has a class (principle 1), and reply and commit are on disk, in one transaction, before
the first byte leaves. What was committed once is sent again as it was, never computed anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NoReturn, Self

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from client.books import Books
from client.egress import Disclosure, EgressError, check_query, classify, unprotected_fields
from client.policy import RefusedError, SitePolicy
from privacy.accountant import epsilon
from privacy.ledger import Anchor, BudgetExhausted, FieldClass, LedgerError, Reason, ReplyGone, Reserved, Stored, Task
from privacy.lifetime import Releases, multiset
from privacy.mechanisms import Release
from privacy.statement import make_statement
from shared_models.content_digest import content_parts, digest_of_parts
from shared_models.faults import Fault
from shared_models.parameters import Layout
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, EPSILON, HEAD_HASH, HEAD_POSITION, LEDGER, METRICS, Phase

if TYPE_CHECKING:
    from client.site import Site
    from client.workplace import Workplace

ENROLMENT: Final = "enrol"
"""Phase of the task by which a whole run is paid for."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a server asks of a client once.

    Attributes:
        run: the server's own id of the run.
        round: from 1.
        phase: what to do.
        digest: SHA-256 of everything that was asked, in hexadecimal.
        norm: clipping norm of the round, where it adapts.
    """

    run: str
    round: int
    phase: Phase
    digest: str
    norm: float | None = None


class Guard:
    """Stands between one client's data and whoever asks for it.

    Args:
        plan: the resolved plan.
        policy: of the site.
        books: the site's ledger and its owner.
        client: stable id.
        layout: names and shapes of what is trained: the arrays that a train reply holds.
        federation: whose server asks; in a simulation, which has no certificates, the plan's name.
        also: what else the site may have against a plan that its policy allows; asked for every task.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        policy: SitePolicy,
        books: Books,
        client: str,
        layout: Layout,
        federation: str | None = None,
        also: Callable[[Plan], Fault | None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._federation = plan.name if federation is None else federation
        self._also = also
        self._policy = policy
        self._books = books
        self._client = client
        self._layout = layout
        self._scope = policy.budget_scope
        self._task: Task | None = None
        self._phase: Phase = "train"
        self._reserved: Anchor | None = None
        self._is_first = True

    @classmethod
    def of(cls, site: Site, place: Workplace) -> Self:
        """The guard of a site, for the plan at work.

        Raises:
            RefusedError: the site's books can't be used.
        """
        client = site.booked_as
        with _ledger_faults():
            found = site.books()
        return cls(
            plan=place.plan,
            policy=site.policy(place.plan),
            books=found,
            client=client,
            layout=place.layout,
            federation=site.federation(place.plan),
            also=site.refusal,
        )

    @property
    def scope(self) -> str:
        """Name of the ledger's scope that is charged."""
        return self._scope

    @property
    def unprotected(self) -> tuple[str, ...]:
        """Fields that plan asks for and policy lets out as they are, beside a private update; they end its claim."""
        return unprotected_fields(self._plan, self._policy)

    def admit(self, request: Request) -> RecordDict | None:
        """Check the plan against the policy and reserve what the request costs, before data is touched.

        Returns:
            None to go on; or the stored reply, if this very request was answered before.

        Raises:
            RefusedError: policy or budget say no, or the ledger can't be used. Nothing is charged.
        """
        self._phase = request.phase
        self._task = task = self._task_of(request)
        with _ledger_faults():
            self._check_policy(task)
            try:
                answer = self._reserve_in_time(task)
            except ReplyGone:
                if self._plan.is_private:
                    raise RefusedError(Fault.REPLY_GONE) from None
                # Nothing was charged for it, so it may be computed again.
                self._reserved = self._books.ledger.head(self._scope)
                return None
            if isinstance(answer, Stored):
                return self._allowed_still(task, _decode(answer.reply))
        self._reserved = answer.anchor
        return None

    def enrol(self, run: str, following: int) -> RecordDict:
        """Pay for a whole run at once, before its first round: its cohorts are secret (rule 3), or it is one release.
        Once, however often asked.

        Args:
            run: the server's own id of it.
            following: the first round that is still to be played.

        Returns:
            What may be sent: what the run costs, and the ledger's newest entry.

        Raises:
            RefusedError: policy or budget say no, or the ledger can't be used; or the plan is paid for round by round;
                or a round that is to come was played: the server goes on from an old copy.
        """
        if not self._plan.is_paid_at_once:
            raise RefusedError(Fault.PLAN_MISMATCH)
        with _ledger_faults():
            task = self._run_as_task(run)
            self._check_policy(task)
            if self._was_played(task, following):
                self._refuse(task, Fault.ROUND_REPEATED)
            answer = self._charge_run(run)
            if isinstance(answer, Stored):
                return _decode(answer.reply)
            content = RecordDict({METRICS: MetricRecord({EPSILON: self.epsilon()}), LEDGER: _head(answer.anchor)})
            classes: dict[str, FieldClass] = {
                name: kind.value for name, kind in check_query(content, ENROLMENT).items()
            }
            return _decode(self._books.ledger.commit(self._scope, task.id, _encode(content), fields=classes))

    def check(self, request: Request) -> None:
        """Check the plan against the policy, for what needs no data; nothing is charged.

        Raises:
            RefusedError: the policy says no, or the ledger can't be used.
        """
        with _ledger_faults():
            self._check_policy(self._task_of(request))

    def took_part(self, request: Request) -> bool:
        """Whether a round of the request's run was answered here.

        Raises:
            RefusedError: the ledger can't be used.
        """
        task = self._task_of(request)
        with _ledger_faults():
            played = self._books.ledger.rounds_of(self._scope, federation=task.federation, run=task.run, phase="train")
        return any(committed for _, committed in played.values())

    def foresee(self, request: Request) -> None:
        """Check that `admit` would let a request through as things stand: policy, rounds a day and budget.

        Nothing is charged or promised. Others rely on who takes part in a secure sum: who could not pay for it had
        better say so before it begins.

        Raises:
            RefusedError: as `admit`.
        """
        task, plan, ledger, most = self._task_of(request), self._plan, self._books.ledger, self._policy.allow
        with _ledger_faults():
            self._check_policy(task)
            if most.rounds_a_day is not None and self._rounds_with(task) > most.rounds_a_day:
                self._refuse(task, Fault.POLICY_RATE)
            budget = self._policy.budget_for(plan.balance) if plan.is_private else None
            if budget is not None:
                account, releases = ledger.account(self._scope, plan.balance), multiset([self._price(task.phase)])
                if budget.limit.admit(account, plan.terms(), releases) is None:
                    self._refuse(task, Fault.BUDGET_EXHAUSTED)

    def knows(self, request: Request) -> bool:
        """Whether a request was ever admitted, in this process or before.

        Raises:
            RefusedError: the ledger can't be used.
        """
        with _ledger_faults():
            self._books.prepare(self._policy)
            return self._task_of(request).id in self._books.ledger.task_ids(self._scope).values()

    def stored(self, request: Request) -> RecordDict | None:
        """The reply to a request that was answered before; None if it wasn't. Nothing is charged.

        Raises:
            RefusedError: as `admit`.
        """
        return self.admit(request) if self.knows(request) else None

    def release(self, content: RecordDict) -> RecordDict:
        """Give every field of a reply its class, and write reply and commit to the disk.

        Returns:
            What may be sent: the reply with the ledger's newest entry, or the one that was committed first.

        Raises:
            EgressError: a field must not leave.
            LedgerError: the ledger can't be written; nothing may leave.
            ReplyGone: another process has answered this request, too long ago to be answered again.
            ValueError: nothing was admitted.
        """
        if self._task is None or self._reserved is None:
            raise ValueError("nothing was admitted: nothing may leave")
        content = RecordDict({**content, LEDGER: _head(self._reserved)})
        # All arrays of an update have one class: one line in the ledger.
        updates = f"{ARRAYS}." if self._phase == "train" else ()
        classes: dict[str, FieldClass] = {
            ARRAYS if name.startswith(updates) else name: kind.value for name, kind in self._classes(content).items()
        }
        ledger, task = self._books.ledger, self._task.id
        if not self._plan.is_private:
            parts = content_parts(content)
            with suppress(ReplyGone):  # computed again: the ledger has its entry
                ledger.commit_unkept(
                    self._scope, task, sha256=digest_of_parts(parts), length=sum(map(len, parts)), fields=classes
                )
            return content
        reply = _encode(content)
        sent = ledger.commit(self._scope, task, reply, fields=classes)
        self._is_first = sent == reply
        return content if self._is_first else _decode(sent)

    @property
    def is_first(self) -> bool:
        """Whether what `release` let out is what it was given, and not what another process had committed before."""
        return self._is_first

    def failed(self, reason: Reason = Reason.CLIENT_FAILED) -> None:
        """Note that what was reserved could not be finished: its charge stays.

        Args:
            reason: by default that of all failures, which withdraws the claim, for it may depend on data (rule 5).
        """
        if self._task is not None and self._reserved is not None:
            with suppress(LedgerError):  # it may be why the work failed
                self._books.ledger.refuse(self._scope, self._task, reason)

    def epsilon(self) -> float:
        """What this plan has spent here so far, at the plan's delta: a function of public constants alone.

        Raises:
            LedgerError: the ledger can't be read.
        """
        plan = self._plan
        account = self._books.ledger.account(self._scope, plan.balance)
        digest = plan.digest()
        charged = next((dict(own.charged) for own in account.plans if own.plan == digest), {})
        return float(epsilon(charged, plan.privacy.delta).epsilon)

    def statement(self, known: Anchor | None) -> str:
        """What the owner says, and signs, that was spent; at the level of detail that its policy permits.

        Args:
            known: the newest entry that whoever asks has seen before, if any.

        Raises:
            RefusedError: the ledger can't be used, or lacks what was seen: it was rolled back.
        """
        with _ledger_faults():
            self._books.prepare(self._policy)
            if known is not None and not self._books.ledger.holds(known):
                raise LedgerError(
                    f"scope {self._scope!r}: lacks entry {known.position}, which a server was told of: the ledger is "
                    "an old copy, was cut off, or was rewritten; run `veil ledger recover`"
                )
            limits = {budget.balance: budget.limit for budget in self._policy.budget}
            identity = self._books.owner(self._scope)
            detail = self._policy.release.statement
            return make_statement(self._books.ledger, self._scope, identity, limits, detail=detail).text

    def _classes(self, reply: RecordDict) -> dict[str, Disclosure]:
        return classify(
            reply,
            phase=self._phase,
            plan=self._plan,
            policy=self._policy,
            layout=self._layout,
            federation=self._federation,
        )

    def _allowed_still(self, task: Task, reply: RecordDict) -> RecordDict:
        """A stored reply, if today's policy lets out all that it holds: it may not have been sent yet."""
        try:
            self._classes(reply)
        except EgressError:
            self._refuse(task, Fault.POLICY_FIELD)
        return reply

    def _task_of(self, request: Request) -> Task:
        return Task(
            federation=self._federation,
            run=request.run,
            round=request.round,
            phase=request.phase,
            client=self._client,
            request=request.digest,
        )

    def _check_policy(self, task: Task) -> None:
        self._books.prepare(self._policy)
        fault = self._policy.refusal(self._plan, federation=self._federation) or self._also(self._plan)
        if fault is not None:
            self._refuse(task, fault)

    def _rounds_with(self, task: Task) -> int:
        """Rounds of the last day, with this one."""
        found = {**self._books.ledger.tasks_within(self._scope, timedelta(days=1)), task.id: _part(task)}
        return _rounds(part for part in found.values() if part[2] != ENROLMENT)  # nobody works for that

    def _refuse(self, task: Task, fault: Fault) -> NoReturn:
        self._books.ledger.refuse(self._scope, task, Reason(fault.reason))
        raise RefusedError(fault)

    def _reserve_in_time(self, task: Task) -> Reserved | Stored:
        """Reserve, unless the policy's rounds of the day are used up, or the round is one that was paid for once."""
        ledger, most = self._books.ledger, self._policy.allow.rounds_a_day
        if most is None and not self._plan.is_paid_at_once:
            return self._reserve(task)
        with ledger.batch():  # or another process might begin this round, or the day's last, between the two
            if most is not None and self._rounds_with(task) > most:
                fault = Fault.POLICY_RATE
            elif self._plan.is_paid_at_once and self._was_played(task, task.round):
                fault = Fault.ROUND_REPEATED
            else:
                try:
                    return self._reserve(task)
                except BudgetExhausted:  # its entry is to stay: nothing may be raised in here
                    fault = Fault.BUDGET_EXHAUSTED
            if fault is not Fault.BUDGET_EXHAUSTED:
                ledger.refuse(self._scope, task, Reason(fault.reason))
        raise RefusedError(fault)

    def _reserve(self, task: Task) -> Reserved | Stored:
        plan = self._plan
        if not plan.is_private:
            return self._books.ledger.reserve(self._scope, task)
        if not plan.is_paid_at_once:
            return self._charge(task, multiset([self._price(task.phase)]))
        self._charge_run(task.run)
        return self._books.ledger.reserve(self._scope, task, terms=plan.terms())

    def _was_played(self, task: Task, number: int) -> bool:
        """Whether a round of a run that is paid for whole was answered otherwise, or a later one was.

        Such a run pays for each of its rounds once. Who asks again in other words, or goes on from an old copy of its
        books, would release another sum of the same round.
        """
        ledger, trains = self._books.ledger, task.phase == "train"
        played = ledger.rounds_of(self._scope, federation=task.federation, run=task.run, phase="train")
        return any(
            found > number or (found == number and trains and one != task.id) for one, (found, _) in played.items()
        )

    def _charge_run(self, run: str) -> Reserved | Stored:
        """Charge a whole run, unless that was done: all its rounds in one entry."""
        return self._charge(self._run_as_task(run), multiset(self._plan.planned_trainings()))

    def _run_as_task(self, run: str) -> Task:
        return Task(
            federation=self._federation,
            run=run,
            round=0,
            phase=ENROLMENT,
            client=self._client,
            request=self._plan.digest(),
        )

    def _charge(self, task: Task, releases: Releases) -> Reserved | Stored:
        plan = self._plan
        budget = self._policy.budget_for(plan.balance)
        assert budget is not None  # or the policy had refused
        return self._books.ledger.reserve(
            self._scope, task, balance=plan.balance, terms=plan.terms(), releases=releases, limit=budget.limit
        )

    def _price(self, phase: str) -> Release:
        release = self._plan.train_release() if phase == "train" else self._plan.evaluate_release()
        if release is None:
            raise RefusedError(Fault.PLAN_MISMATCH)  # the plan has no such phase
        return release


def _part(task: Task) -> tuple[str, str, str, int]:
    return task.federation, task.run, task.phase, task.round


def _rounds(parts: Iterable[tuple[str, str, str, int]]) -> int:
    """How many rounds these are: the parts of one count once, but one that is asked for in other words is another."""
    most: Counter[tuple[str, str, int]] = Counter()
    for (federation, run, _, number), times in Counter(parts).items():
        most[federation, run, number] = max(most[federation, run, number], times)
    return most.total()


@contextmanager
def _ledger_faults() -> Iterator[None]:
    """What the books say, as fixed codes; their texts name files and stay here."""
    try:
        yield
    except BudgetExhausted:
        raise RefusedError(Fault.BUDGET_EXHAUSTED) from None
    except LedgerError as error:
        raise RefusedError(Fault.LEDGER_CLOSED) from error


def _head(anchor: Anchor) -> ConfigRecord:
    head: dict[str, int | str] = {HEAD_POSITION: anchor.position, HEAD_HASH: anchor.hash}
    return ConfigRecord({**head})


def _encode(content: RecordDict) -> bytes:
    encoded: bytes = recorddict_to_proto(content).SerializeToString(deterministic=True)
    return encoded


def _decode(reply: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(reply))

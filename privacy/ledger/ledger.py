"""The ledger: what a data owner has released, written down before any data is touched.

`reserve` charges a task before training starts, `commit` stores its reply before the first byte leaves. A
reservation without a commit counts as spent: whatever a crash did, nothing left that was not charged. A task that is
asked for again runs again under its reservation, or gets the reply that was stored: never a second release.

    with Ledger.open(path) as ledger:
        answer = ledger.reserve(scope, task, balance=..., terms=..., releases=..., limit=...)
        if isinstance(answer, Reserved):
            reply = ledger.commit(scope, task.id, train(), fields=...)    # what commit returns is what is sent
        else:
            reply = answer.reply

Several processes may hold one file open, and several threads one `Ledger`. A scope's chain is verified when a
process first uses it, and each new entry after that (docs/ledger.md).
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from privacy.ledger.anchors import default_anchors, write_anchors
from privacy.ledger.answers import BudgetExhausted, ReplyGone, Reserved, Snapshot, Stored
from privacy.ledger.chain import FORMAT, Chain, Charge
from privacy.ledger.entries import FIELD_CLASSES, Anchor, Entry, FieldClass, Reason, Task, time_text
from privacy.ledger.file import LedgerError, create_file, resolved
from privacy.ledger.store import Store
from privacy.lifetime import Account, Balance, Limit, Releases, Terms
from security.identity import is_public_key

__all__ = [
    "Anchor",
    "BudgetExhausted",
    "Entry",
    "FieldClass",
    "Ledger",
    "LedgerError",
    "Reason",
    "ReplyGone",
    "Reserved",
    "Snapshot",
    "Stored",
    "Task",
    "default_anchors",
]

_PAGE = 256
_DENSE = 64


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """An open ledger; made by `create` or `open`, closed by `close` or `with`.

    Every method raises `LedgerError` if the file can't be relied on or be written; then nothing may be trained or
    sent. The same call may be made again once the cause is gone.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def create(
        cls, path: Path, *, durable: bool = True, anchors: Path | None = None, clock: Callable[[], datetime] = _now
    ) -> Self:
        """Make a new ledger and open it. Arguments as for `open`.

        Raises:
            LedgerError: if there is a file already, or the anchors of a ledger that was here before.
        """
        path = resolved(path)
        if anchors is not None and anchors.exists():
            raise LedgerError(
                f"{anchors}: is the anchor of a ledger that was here before; restore that, or run `veil ledger recover`"
            )
        create_file(path)
        if anchors is not None:
            write_anchors(anchors, {})
        return cls.open(path, durable=durable, anchors=anchors, clock=clock)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        durable: bool = True,
        read_only: bool = False,
        anchors: Path | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> Self:
        """Open a ledger.

        Args:
            path: of its file; links are followed, so that one file has one log.
            durable: whether each write waits for the disk. Without it a power failure may undo the newest entries
                (a crash of the process doesn't): for simulations only.
            read_only: refuse all writing.
            anchors: the anchor file, `default_anchors(path)` or one on another disk; None in simulations.
            clock: gives the time; for tests.
        """
        return cls(Store(resolved(path), durable=durable, read_only=read_only, anchors=anchors, clock=clock))

    @property
    def path(self) -> Path:
        """Of the file, all links followed."""
        return self._store.path

    def close(self) -> None:
        """Close the file; an open batch is undone."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- writing --------------------------------------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[Self]:
        """One transaction for all that is done inside, with one wait for the disk.

        What was reserved inside may run, and what was committed may be sent, only after the batch has ended well.
        An exception that leaves the batch undoes all of it; one that is caught inside undoes its own call alone.
        Nobody else writes meanwhile, so what is read inside still holds when the next line writes.
        """
        with self._store.transaction():
            yield self

    @contextmanager
    def deferred(self) -> Iterator[Self]:
        """Write everything that is written inside at the end, at once: for simulations, where many owners take turns.

        What was reserved inside may run at once, for nobody but this process has its data; what was committed may be
        sent only once this has ended without an error. An error that leaves it early writes what there is as well: it
        may have been used. If the end itself raises, nothing is in the file, and nothing may leave. Should the process
        die before the end, its work is lost with what it had reserved: nothing had left it.

        Raises:
            ValueError: the ledger is durable, or has an anchor; or this is inside of a batch or another of these.
            LedgerError: at the end, as ever; or another process has written to a scope that was written to inside.
        """
        with self._store.deferred():
            yield self

    def open_scope(self, scope: str, *, owner: str) -> Anchor:
        """Begin a scope's chain, or find that it has begun.

        Args:
            scope: its name.
            owner: public key of who signs for it, in hexadecimal; "" for nobody.

        Returns:
            Its first entry's place.

        Raises:
            LedgerError: if the scope belongs to another key.
            ValueError: if the name can't name a scope, or the key is none.
        """
        if owner and not is_public_key(owner):
            raise ValueError("an owner is a public key of 64 lower-case hexadecimal digits, or empty")
        with self._writing():
            chain = self._store.chain(scope)
            if chain.head is None:
                # The nonce makes every chain unlike every other, so an anchor is of this one alone.
                body = {"format": FORMAT, "owner": owner, "nonce": secrets.token_hex(16)}
                return self._store.append(chain, "open", body)
            if chain.owner != owner:
                raise LedgerError(f"{self.path}, scope {scope!r}: belongs to another key; use that one")
            return self._store.anchor_at(chain, 0)

    def set_policy(self, scope: str, policy: Mapping[str, Any], digest: str) -> None:
        """Write down the policy from now on, unless the last one has the same digest. Raises ValueError for none."""
        with self._writing():
            chain, _ = self._store.opened(scope)
            if chain.policy != digest:
                self._store.append(chain, "policy", {"digest": digest, "policy": policy})

    def reserve(
        self,
        scope: str,
        task: Task,
        *,
        balance: Balance | None = None,
        terms: Terms | None = None,
        releases: Releases = (),
        limit: Limit | None = None,
    ) -> Reserved | Stored:
        """Charge a task before data is touched.

        Args:
            scope: whose data.
            task: what is asked for.
            balance: that is charged.
            terms: of the plan that asks.
            releases: what the reply may release at most; `()` for a task without protection, which is written down
                and charged nothing. Then neither balance nor limit is needed.
            limit: that must cover it.

        Returns:
            `Stored` if the task was committed, with its reply; else `Reserved`.

        Raises:
            BudgetExhausted: the limit doesn't cover it.
            LedgerError: as ever, or the task was reserved with another charge.
            ReplyGone: the task was committed too long ago.
            ValueError: something to charge, but no balance, terms or limit; or releases in another than their
                canonical form (`privacy.lifetime.multiset`).
        """
        asked = _charge(balance, terms, releases, limit)
        if asked is not None and terms is not None:
            self._warm_up(scope, asked, terms)
        with self._writing():
            chain, _ = self._store.opened(scope)
            if task.id in chain.tasks:
                return self._known(chain, task, asked)
            charge = None if asked is None or terms is None else _admitted(chain, asked, terms)
            covered = asked is None or charge is not None
            if covered:
                body = {
                    "task": task.to_json(),
                    "plan": None if terms is None else terms.plan,
                    "charge": None if charge is None else charge.to_json(),
                }
                anchor = self._store.append(chain, "reserve", body)
            else:
                self._refuse(chain, task, Reason.BUDGET_EXHAUSTED)
        if not covered:  # said out here, for the refusal is to stay
            raise BudgetExhausted(f"scope {scope!r}: the budget does not cover round {task.round} of {task.run}")
        return Reserved(again=False, anchor=anchor)

    def commit(self, scope: str, task_id: str, reply: bytes, *, fields: Mapping[str, FieldClass]) -> bytes:
        """Store a reply before its first byte leaves.

        Args:
            scope: whose data.
            task_id: of a reserved task.
            reply: the whole reply.
            fields: the name of each value in it, and what it is.

        The two newest of each (federation, run, phase) stay stored, to be sent again.

        Returns:
            What to send: the reply, or the one that another process committed first. Sending both would release
            twice under one charge.

        Raises:
            ReplyGone: it was committed before, and the reply is no longer there.
            ValueError: the task was never reserved, or a field is of no known class.
        """
        if not isinstance(reply, bytes):
            raise ValueError("a reply is bytes")
        with self._writing():
            chain = self._uncommitted(scope, task_id, fields)
            if chain.tasks[task_id].committed is not None:
                return self._reply(chain, task_id)
            dropped = chain.drops(task_id)
            digest = sha256(reply).hexdigest()
            body = {"task": task_id, "sha256": digest, "length": len(reply), "kept": True, "fields": fields}
            self._store.append(chain, "commit", body)
            self._store.store_reply(scope, task_id, reply)
            for old in dropped:
                self._store.drop_reply(scope, old)
        return reply

    def commit_unkept(
        self, scope: str, task_id: str, *, sha256: str, length: int, fields: Mapping[str, FieldClass]
    ) -> None:
        """Write down that a reply leaves without protection. It is not stored: nothing was charged for it, so that it
        may be computed again.

        Args:
            scope: whose data.
            task_id: of a reserved task.
            sha256: of the reply, as whoever sends it counts its bytes; in hexadecimal.
            length: of what was hashed.
            fields: the name of each value in it, and what it is.

        Raises:
            ReplyGone: a reply to this task was committed before.
            ValueError: the task was never reserved, a field is of no known class, or the hash is none.
        """
        with self._writing():
            chain = self._uncommitted(scope, task_id, fields)
            if chain.tasks[task_id].committed is not None:
                self._reply(chain, task_id)
                raise ReplyGone(f"scope {scope!r}: a reply to this task was committed before")
            body = {"task": task_id, "sha256": sha256, "length": length, "kept": False, "fields": fields}
            self._store.append(chain, "commit", body)

    def refuse(self, scope: str, task: Task, reason: Reason) -> None:
        """Write down that a task was refused; once for each task and reason. Raises ValueError for no known code."""
        with self._writing():
            self._refuse(self._store.opened(scope)[0], task, Reason(reason))

    def append_recovery(self, scope: str, body: Mapping[str, Any]) -> Anchor:
        """Append a `recover` entry: for `privacy.ledger.recovery`, which says what goes into it."""
        with self._writing():
            return self._store.append(self._store.opened(scope)[0], "recover", body)

    def scopes(self) -> tuple[str, ...]:
        """All scopes, by name."""
        with self._store.reading():
            return self._store.scopes()

    def head(self, scope: str) -> Anchor:
        """Its newest entry's place."""
        with self._store.reading():
            return self._store.opened(scope)[1]

    def policy(self, scope: str) -> str | None:
        """Digest of the policy that was written down last; None if none was."""
        with self._store.reading():
            return self._store.opened(scope)[0].policy

    def account(self, scope: str, balance: Balance) -> Account:
        """All that was ever charged to a balance."""
        with self._store.reading():
            return self._store.opened(scope)[0].account(balance)

    def balances(self, scope: str) -> tuple[Balance, ...]:
        """Those that were charged, in the order of their first charge."""
        with self._store.reading():
            return self._store.opened(scope)[0].balances()

    def entries(self, scope: str) -> Iterator[Entry]:
        """All entries there are now, in order."""
        last = self.head(scope).position
        for first in range(0, last + 1, _PAGE):
            with self._store.reading():
                page = self._store.entries(scope, first, min(last, first + _PAGE - 1))
            yield from page

    def verified_entries(self, scope: str) -> list[Entry]:
        """All entries there are now, in order, with the whole chain verified on the way: one reading for both."""
        with self._store.reading():
            return self._store.read_anew(scope)

    def task_ids(self, scope: str) -> dict[int, str]:
        """The id of each reserved task, by the position of its reserve entry."""
        with self._store.reading():
            return {state.reserved: task for task, state in self._store.opened(scope)[0].tasks.items()}

    def rounds_of(self, scope: str, *, federation: str, run: str, phase: str) -> dict[str, tuple[int, bool]]:
        """Round of each reserved task of a run, and whether it was committed, by the task's id."""
        with self._store.reading():
            tasks, group = self._store.opened(scope)[0].tasks, (federation, run, phase)
            found = {task: state for task, state in tasks.items() if state.group == group}
            return {task: (state.round, state.committed is not None) for task, state in found.items()}

    def holds(self, anchor: Anchor) -> bool:
        """Whether the chain has that hash at that position, or a recovery took it up."""
        with self._store.reading():
            return self._store.holds(self._store.chain(anchor.scope), anchor)

    def tasks_within(self, scope: str, period: timedelta) -> dict[str, tuple[str, str, str, int]]:
        """Federation, run, phase and round of each task reserved in the last `period`, by its id.

        For a limit of so many rounds a day. A clock that jumps back frees nothing. Inside a `batch` the answer holds
        until the batch ends.
        """
        with self._store.reading():
            chain, _ = self._store.opened(scope)
            since = chain.clock_at(self._store.now().timestamp()) - period.total_seconds()
            found = {}
            for task, state in reversed(chain.tasks.items()):
                if state.clock <= since:
                    break
                found[task] = (*state.group, state.round)
            return found

    def snapshot(self, scope: str) -> Snapshot:
        """The scope after its newest entry, all of one moment."""
        with self._store.reading():
            chain, head = self._store.opened(scope)
            distances = {*range(1, _DENSE + 1), *(1 << power for power in range(head.position.bit_length()))}
            past = {head.position - distance for distance in distances if distance <= head.position}
            past |= {0} - {head.position}
            return Snapshot(
                scope=scope,
                owner=chain.owner,
                policy=chain.policy,
                head=head,
                time=time_text(self._store.now()),
                withdrawn=chain.withdrawn,
                accounts=MappingProxyType({balance: chain.account(balance) for balance in chain.balances()}),
                limits=MappingProxyType(dict(chain.limits)),
                past=tuple(self._store.anchor_at(chain, position) for position in sorted(past, reverse=True)),
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._store.transaction(), self._store.reading():
            yield

    def _uncommitted(self, scope: str, task_id: str, fields: Mapping[str, FieldClass]) -> Chain:
        """The chain of a task that a reply is to be committed of. Raises ValueError as `commit`."""
        if any(value not in FIELD_CLASSES for value in fields.values()):
            raise ValueError(f"each field of a reply is one of {', '.join(FIELD_CLASSES)}")
        chain, _ = self._store.opened(scope)
        if task_id not in chain.tasks:
            raise ValueError("this task was never reserved: nothing may leave")
        return chain

    def _refuse(self, chain: Chain, task: Task, reason: Reason) -> None:
        if (task.id, reason.value) not in chain.refused:
            self._store.append(chain, "refuse", {"task": task.to_json(), "reason": reason.value})

    def _known(self, chain: Chain, task: Task, asked: Charge | None) -> Reserved | Stored:
        state = chain.tasks[task.id]
        if state.charge != (None if asked is None else asked.key):
            raise LedgerError(
                f"{self.path}, scope {chain.scope!r}, entry {state.reserved}: this task was reserved with another "
                "charge; ask for it under a plan of its own"
            )
        if state.committed is None:
            return Reserved(again=True, anchor=self._store.anchor_at(chain, state.reserved))
        return Stored(reply=self._reply(chain, task.id), anchor=self._store.anchor_at(chain, state.committed))

    def _reply(self, chain: Chain, task_id: str) -> bytes:
        reply = self._store.reply(chain, task_id)
        if reply is None:
            raise ReplyGone(f"scope {chain.scope!r}: the reply to this task is no longer stored; ask for a newer round")
        return reply

    def _warm_up(self, scope: str, asked: Charge, terms: Terms) -> None:
        # A plan's first admission may take a second to compute (and is then cached): not while others wait.
        if asked.limit is not None and not self._store.in_transaction:
            account = self.account(scope, asked.balance)
            if all(entry.plan != asked.plan for entry in account.plans):
                asked.limit.admit(account, terms, asked.releases)


def _charge(balance: Balance | None, terms: Terms | None, releases: Releases, limit: Limit | None) -> Charge | None:
    """What is asked for, before anyone has admitted it."""
    if not releases:
        return None
    if balance is None or terms is None or limit is None:
        raise ValueError("what releases something needs a balance, terms and a limit")
    return Charge(
        balance=balance,
        plan=terms.plan,
        delta=float(terms.delta),
        proof="filter",
        envelope=None,
        releases=releases,
        limit=Limit(epsilon=float(limit.epsilon), delta=float(limit.delta), filter=limit.filter),
    )


def _admitted(chain: Chain, asked: Charge, terms: Terms) -> Charge | None:
    assert asked.limit is not None
    admission = asked.limit.admit(chain.account(asked.balance), terms, asked.releases)
    return None if admission is None else replace(asked, proof=admission.proof, envelope=admission.envelope)

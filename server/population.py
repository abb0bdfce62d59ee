"""The server's own books under client x central: one ledger, whose scope is the population (rule 3).

Every round is charged to everybody, before anybody is asked, and committed with what was released: the noisy mean
itself, so that a round which is played again after a crash releases nothing new. What the ledger doesn't cover is not
played. A run with correlated noise, or of clients at their own pace, is one release, charged whole before its first
round; its rounds cost nothing more.

It lies in the run's folder and says nothing of who took part: its entries have the day alone, for how long a round
takes tells how many took part in it.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from privacy.ledger import Ledger, ReplyGone, Reserved, Stored, Task
from privacy.lifetime import Limit, multiset
from security.errors import RunError
from shared_models.plan import Plan

SCOPE: Final = "population"
"""The ledger's one scope, and the name that its tasks give who is charged."""

RELEASED: Final = "model"
"""What leaves: the model's next step. Its class in the ledger is `charged`."""


RUN: Final = "enrol"
"""Phase of the task by which a whole run is paid for, as at clients."""


def put_away(path: Path, *, durable: bool) -> None:
    """Move SQLite's log, which readers leave, into a ledger's file.

    Raises:
        LedgerError: the ledger can't be used.
    """
    Ledger.open(path, durable=durable).close()


def _today() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


class Population:
    """The ledger of one run's population.

    Args:
        ledger: open.
        plan: resolved.
        federation: whose clients they are.
    """

    def __init__(self, ledger: Ledger, plan: Plan, federation: str) -> None:
        release = plan.train_release()
        if release is None or plan.privacy.epsilon is None:
            raise ValueError("a plan without privacy, or one that isn't resolved, charges no population")
        self._ledger = ledger
        self._digest, self._terms, self._balance = plan.digest(), plan.terms(), plan.balance
        self._federation = federation
        self._releases = multiset([release])
        self._at_once = plan.is_one_release
        self._limit = Limit(epsilon=plan.privacy.epsilon, delta=plan.privacy.delta)
        ledger.open_scope(SCOPE, owner="")

    @classmethod
    def at(cls, path: Path, plan: Plan, *, federation: str, begun: bool, durable: bool) -> Population:
        """The books of a run, made where it hasn't begun.

        Args:
            path: of the ledger's file.
            plan: resolved.
            federation: whose clients they are.
            begun: whether rounds may have been played: then the ledger must be there.
            durable: whether each write waits for the disk; only a simulation may do without.

        Raises:
            RunError: it is missing, damaged, or can't be written.
        """
        if begun and not path.is_file():
            raise RunError(
                f"{path}: is missing, and with it what the population has spent; put it back, or start a new run"
            )
        make = Ledger.open if path.is_file() else Ledger.create
        return cls(make(path, durable=durable, clock=_today), plan, federation)

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def reserve(self, run: str, number: int, model: str) -> npt.NDArray[np.float32] | None:
        """Charge a round to everybody, before anybody is asked.

        Args:
            run: the server's own id of the run.
            number: of the round.
            model: digest of the model that it starts from.

        Returns:
            None to play the round; or what was released of it before it was cut off, which is all that may be.

        Raises:
            BudgetExhausted: the plan's epsilon doesn't cover it.
            RunError: it was released, and what was released is no longer there.
            LedgerError: the ledger can't be used.
        """
        task = self._task(run, number, model)
        try:
            if self._at_once:
                self._charge_run(self._run_as_task(run))  # a crash in between leaves it paid for
                answer = self._ledger.reserve(SCOPE, task, terms=self._terms)
            else:
                answer = self._charge(task)
        except ReplyGone:
            raise RunError(
                f"round {number}: was released before, and what was released is no longer stored; start a new run"
            ) from None
        return np.frombuffer(answer.reply, "<f4").copy() if isinstance(answer, Stored) else None

    def following(self, run: str) -> int:
        """The first round of a run that nothing was released of: from 1, and one more than there are after the last.

        Raises:
            LedgerError: the ledger can't be used.
        """
        played = self._ledger.rounds_of(SCOPE, federation=self._federation, run=run, phase="train")
        return 1 + max((number for number, released in played.values() if released), default=0)

    def commit(self, run: str, number: int, model: str, mean: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Write down what a reserved round releases, before anybody sees it.

        Returns:
            What may be released: this, or what was committed first.

        Raises:
            LedgerError: it can't be written; nothing may be released.
        """
        reply = mean.astype("<f4").tobytes()
        sent = self._ledger.commit(SCOPE, self._task(run, number, model).id, reply, fields={RELEASED: "charged"})
        return mean if sent == reply else np.frombuffer(sent, "<f4").copy()

    def _charge(self, task: Task) -> Reserved | Stored:
        return self._ledger.reserve(
            SCOPE, task, balance=self._balance, terms=self._terms, releases=self._releases, limit=self._limit
        )

    def _charge_run(self, task: Task) -> None:
        """Charge what is paid at once; once, however often."""
        if isinstance(self._charge(task), Reserved):
            self._ledger.commit(SCOPE, task.id, b"", fields={})  # by itself it releases nothing

    def _run_as_task(self, run: str) -> Task:
        return Task(federation=self._federation, run=run, round=0, phase=RUN, client=SCOPE, request=self._digest)

    def _task(self, run: str, number: int, model: str) -> Task:
        if self._at_once:  # a round is released once, whatever model an older checkpoint makes it start from
            model = ""
        asked = hashlib.sha256(f"veil population 1\n{self._digest}\n{model}".encode()).hexdigest()
        return Task(federation=self._federation, run=run, round=number, phase="train", client=SCOPE, request=asked)

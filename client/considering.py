"""Offers of plans, and what the owner says to them, now or when asked again; and which replies may leave therefore."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from client.notes import Notes
from client.running import place_of
from security.frames import ACCEPTED, PENDING, Answer, Offer
from shared_models.faults import Fault, fault_of

if TYPE_CHECKING:
    from shared_models.plan import Plan

_APPROVAL_SECONDS: Final = 2.0  # between two looks whether the owner has approved

_log = logging.getLogger("veil.client")


class Verdict(Protocol):
    """What an owner says to an offer (`client.site.Verdict`)."""

    @property
    def code(self) -> int:
        """As an `Answer` carries it."""

    @property
    def reason(self) -> str:
        """For the owner alone, one line."""

    @property
    def plan(self) -> Plan | None:
        """What was offered, where it could be read."""


class Owner(Protocol):
    """Whose data it is (`client.site.DeployedSite`)."""

    def consider(self, plan_text: str, digest: str) -> Verdict:
        """What to say to an offered plan; may take seconds."""

    def is_approved(self, digest: str) -> bool:
        """Whether a plan that waited may run now; quick."""

    def allows(self, plan: Plan, fields: Collection[str]) -> bool:
        """Whether what was made under a plan that was accepted once, and holds these fields, may leave now; quick."""


class Considering:
    """Takes offers and answers them. An answer holds for the very text that it was given to.

    Args:
        owner: decides.
        worker: thread in which the owner is asked.
        answer: sends an answer, if anybody listens.
        notes: where the answer is noted.
        between: set while an answer's time tells nothing of the work that the owner had to wait for.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        worker: Executor,
        answer: Callable[[Answer], None],
        notes: Notes,
        between: asyncio.Event,
    ) -> None:
        self._owner = owner
        self._worker = worker
        self._answer = answer
        self._notes = notes
        self._between = between
        self._offer: Offer | None = None
        self._news = asyncio.Event()
        self._answered: tuple[Offer, Plan] | None = None  # what was accepted on this stream
        self.accepted: tuple[Offer, Plan] | None = None

    def connected(self) -> None:
        """A new stream: nothing was offered on it yet."""
        self._offer = self._answered = None

    def offered(self, offer: Offer) -> None:
        """A plan is about to be played."""
        self._offer, self._answered = offer, None
        if self.accepted is not None and self.accepted[0] != offer:
            self.accepted = None
        self._news.set()

    async def may_leave(self, digest: str, fields: Collection[str]) -> bool | None:
        """Whether a reply that was made from data may leave as things stand now.

        Args:
            digest: of its plan.
            fields: that it holds.

        Returns:
            None if its plan is not the one that was accepted on this stream.
        """
        answered = self._answered
        if answered is None or answered[0].digest != digest:
            return None
        allowed = await asyncio.to_thread(self._allows, answered[1], fields)
        return allowed if self._answered is answered else None

    async def run(self) -> None:
        """Answer offers, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            offer, before = self._offer, self.accepted
            if offer is None:
                continue  # it came on a stream that is over
            if before is not None:  # the worker may be busy for hours: what was accepted needs a quick look only
                allowed = await asyncio.to_thread(self._allows, before[1], ())
                if offer is not self._offer:
                    continue
                if allowed:
                    self._say(offer, ACCEPTED)
                    continue
                self.accepted = None
            verdict = await asyncio.get_running_loop().run_in_executor(self._worker, self._verdict, offer)
            await self._between.wait()
            if offer is not self._offer:
                continue  # a newer one has come meanwhile
            self._note(offer, verdict)
            self._say(offer, verdict.code)
            while verdict.code == PENDING and not self._news.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _APPROVAL_SECONDS)
                if await asyncio.to_thread(self._owner.is_approved, offer.digest):
                    self._news.set()

    def _allows(self, plan: Plan, fields: Collection[str]) -> bool:
        try:
            return self._owner.allows(plan, fields)
        except Exception as error:
            _log.warning("whether a plan is allowed could not be found out: %s", place_of(error))
            return False

    def _verdict(self, offer: Offer) -> Verdict:
        try:
            return self._owner.consider(offer.plan, offer.digest)
        except Exception as error:  # a stranger's plan must not end a client that others rely on
            _log.warning("an offer could not be considered: %s", place_of(error))
            return _Failed()

    def _note(self, offer: Offer, verdict: Verdict) -> None:
        plan, name, code = verdict.plan, offer.digest[:16], verdict.code
        if code <= PENDING:
            answer = "accepted" if code == ACCEPTED else "pending"
            text = _accepted(plan) if code == ACCEPTED else verdict.reason
        else:
            answer = fault_of(code).reason
            text = f"refused: {answer}" + (f": {verdict.reason}" if verdict.reason else "")
            self._notes.fault(answer)
        shown: dict[str, Any] = {"run": offer.run, "digest": offer.digest, "answer": answer}
        if offer.run != self._notes.status.run:
            shown |= {"round": None, "epsilon": None, "plan": None, "rounds": None, "epsilon_planned": None}
        if plan is not None:
            name = f"{plan.name} ({name})"
            shown |= {"plan": plan.name, "rounds": plan.federation.rounds, "epsilon_planned": plan.privacy.epsilon}
        if plan is not None and code == ACCEPTED:
            self.accepted = offer, plan
        self._notes.show(**shown)
        self._notes.once("offer", f"plan {name}: {text}", run=offer.run, digest=offer.digest, answer=answer)

    def _say(self, offer: Offer, code: int) -> None:
        self._answered = self.accepted if code == ACCEPTED else None
        self._answer(Answer(run=offer.run, digest=offer.digest, code=code))


def _accepted(plan: Plan | None) -> str:
    if plan is None:
        return "accepted"
    rounds = f"accepted: {plan.federation.rounds} rounds, "
    if not plan.is_private:
        return rounds + "no privacy"
    summed = ", by secure sums" if plan.privacy.trust == "distributed" else ""
    return rounds + f"epsilon {plan.privacy.epsilon:g} at delta {plan.privacy.delta:g}{summed}"


class _Failed:
    """What is said where nothing could be found out."""

    code = int(Fault.CLIENT_FAILED)
    reason = "client.log says where"
    plan = None

"""Waiting for the sites of a run: who has accepted its plan, who hasn't, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from security.errors import RunError, UsageError
from security.frames import ACCEPTED, PENDING
from shared_models.faults import fault_of

_POLL_SECONDS: Final = 1.0  # the link wakes a waiter when something changes there; a stop comes from elsewhere
_NAMED: Final = 20


class Answering(Protocol):
    """What is asked of the link."""

    def answers(self) -> Mapping[str, int]:
        """Each site's answer to the current offer: `ACCEPTED`, `PENDING` or the code of a fault."""
        ...

    def connected(self) -> Mapping[str, object]:
        """The sites that are connected."""
        ...

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until the condition holds, at most `timeout` seconds; whether it does."""
        ...


class StoppedError(RunError):
    """The operator stopped the server."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the sites of a federation stand to a plan.

    Attributes:
        accepted: take part.
        pending: their owners have yet to approve.
        refusing: the reason of each.
        asked: connected, but have not answered yet.
        away: not connected, and have not answered.
    """

    accepted: tuple[str, ...]
    pending: tuple[str, ...]
    refusing: Mapping[str, str]
    asked: tuple[str, ...]
    away: tuple[str, ...]

    @property
    def number(self) -> int:
        """Of all of them."""
        return sum(map(len, (self.accepted, self.pending, self.refusing, self.asked, self.away)))

    @property
    def lacking(self) -> str:
        """Who has not accepted, and why, in one line."""
        said = [
            *(f"{site}: refuses ({reason})" for site, reason in self.refusing.items()),
            *(f"{site}: its owner has yet to approve (veil client approve)" for site in self.pending),
            *(f"{site}: has not answered yet" for site in self.asked),
            *(f"{site}: not connected" for site in self.away),
        ]
        more = f", and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
        return ", ".join(said[:_NAMED]) + more


def answer_text(code: int | None) -> str:
    """A site's answer in one or two words: accepted, pending, refused (with its reason), or none."""
    if code is None:
        return "none"
    return {ACCEPTED: "accepted", PENDING: "pending"}.get(code) or f"refused: {fault_of(code).reason}"


def standing(sites: Sequence[str], answers: Mapping[str, int], connected: Mapping[str, object]) -> Standing:
    """How these sites stand to the current offer."""
    codes = {site: answers.get(site) for site in sorted(sites)}
    unanswered = [site for site, code in codes.items() if code is None]
    return Standing(
        accepted=tuple(site for site, code in codes.items() if code == ACCEPTED),
        pending=tuple(site for site, code in codes.items() if code == PENDING),
        refusing={
            site: fault_of(code).reason
            for site, code in codes.items()
            if code is not None and code not in (ACCEPTED, PENDING)
        },
        asked=tuple(site for site in unanswered if site in connected),
        away=tuple(site for site in unanswered if site not in connected),
    )


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """Waits for sites.

    Attributes:
        link: says who is there.
        sites: those of the federation that are let in, now.
        stopping: whether to give up at once.
        tell: is told in one line whenever it changes who is waited for.
    """

    link: Answering
    sites: Callable[[], Sequence[str]]
    stopping: Callable[[], bool]
    tell: Callable[[str], None]

    def enough(self, wanted: Literal["all"] | int, *, least: int, seconds: float) -> tuple[str, ...]:
        """The sites that have accepted, once they are enough.

        Args:
            wanted: how many; all there are, or a number.
            least: how many the plan needs.
            seconds: patience.

        Raises:
            UsageError: there are not so many sites at all.
            StoppedError: the server is to stop.
            RunError: patience is over.
        """

        def needed(now: Standing) -> int:
            return max(1, least, now.number if wanted == "all" else wanted)

        def missing(now: Standing) -> bool:
            return len(now.accepted) < needed(now)

        there = len(self.sites())
        if needed(standing(self.sites(), {}, {})) > there:
            key = "federation.min_clients" if wanted == "all" or wanted < least else "server.toml: wait.sites"
            raise UsageError(f"{key} asks for more than the {there} sites of the roster that are not revoked")
        last = self._while(missing, self.sites, seconds)
        if missing(last):
            raise RunError(
                f"{len(last.accepted)} of {last.number} sites have accepted the plan within {seconds:g} s, "
                f"{needed(last)} are needed ({last.lacking})"
            )
        return last.accepted

    def again(self, members: Sequence[str], *, seconds: float) -> None:
        """Wait for the members of a run that goes on; who is not back by then may come later.

        Raises:
            StoppedError: the server is to stop.
        """

        def missing(now: Standing) -> bool:
            return bool(now.pending or now.asked or now.away)

        self._while(missing, lambda: [site for site in self.sites() if site in members], seconds)

    def _while(
        self, missing: Callable[[Standing], bool], sites: Callable[[], Sequence[str]], seconds: float
    ) -> Standing:
        """Wait while some are missing, at most so long; how they stand then."""
        deadline, told = time.monotonic() + seconds, ""
        while True:
            let_in = tuple(sites())

            def now(let_in: tuple[str, ...] = let_in) -> Standing:
                return standing(let_in, self.link.answers(), self.link.connected())

            found, left = now(), deadline - time.monotonic()
            if self.stopping():
                raise StoppedError("the server was stopped")
            if not missing(found) or left <= 0:
                return found
            text = f"{len(found.accepted)} of {found.number} sites have accepted; {found.lacking}"
            if text != told:
                self.tell(text)
                told = text
            self.link.wait(_changes(now, found, self.stopping), min(left, _POLL_SECONDS))


def _changes(now: Callable[[], Standing], before: Standing, stopping: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: stopping() or now() != before

"""What the streams of the link share with it, and with one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from security.certificates import Peer
from security.frames import Answer, Goodbye, Offer
from server.limits import Limits
from server.link_observer import LinkObserver
from server.mailbox import Mailbox

Result = TypeVar("Result")


@dataclass
class Traffic:
    """Bytes of frames, as they were before encryption."""

    received: int = 0
    sent: int = 0


class Post(Protocol):
    """What a stream needs of the link."""

    mailbox: Mailbox
    limits: Limits
    observer: LinkObserver
    beat_seconds: float

    def still(self, peer: Peer) -> Goodbye | None:
        """Why a site must go now."""
        ...

    @property
    def offered(self) -> Offer | None:
        """The current offer."""
        ...

    def note_answer(self, site: str, answer: Answer) -> bool:
        """Write down a site's answer; whether it is one to the current offer."""
        ...

    def changed(self) -> None:
        """Wake whoever waits for something to change."""
        ...

    async def work(self, call: Callable[[], Result]) -> Result:
        """Do what may take long on another thread, and to its end even if nobody waits for it any more."""
        ...

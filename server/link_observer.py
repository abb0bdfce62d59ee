"""Who is told what happens on the link: logs, metrics, tests."""

from __future__ import annotations

from typing import Protocol

from security.frames import Goodbye, Taken


class LinkObserver(Protocol):
    """Is told what happens on the link. It is called on the link's own thread: it must neither wait nor fail."""

    def connected(self, site: str, software: str) -> None:
        """A site has come in."""
        ...

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        """A site's stream is over after so many seconds; `why` is None if the site or the network ended it."""
        ...

    def refused(self, site: str | None, why: Goodbye) -> None:
        """Somebody was not let in; `site` is the name in the certificate, if it is one of Veil's."""
        ...

    def answered(self, site: str, code: int) -> None:
        """A site has answered the offer."""
        ...

    def task_sent(self, site: str, task: str, size: int) -> None:
        """All of a task has been sent."""
        ...

    def reply_stored(self, site: str, task: str, size: int) -> None:
        """A reply is on the disk."""
        ...

    def reply_refused(self, site: str, task: str, taken: Taken) -> None:
        """A reply was not taken."""
        ...

    def failed(self, site: str | None, where: str) -> None:
        """A stream ended by a mistake of the server's own, e.g. a full disk: the kind of error and the line."""
        ...


class SilentLink:
    """An observer that says nothing."""

    def connected(self, site: str, software: str) -> None:
        """Nothing to say."""

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        """Nothing to say."""

    def refused(self, site: str | None, why: Goodbye) -> None:
        """Nothing to say."""

    def answered(self, site: str, code: int) -> None:
        """Nothing to say."""

    def task_sent(self, site: str, task: str, size: int) -> None:
        """Nothing to say."""

    def reply_stored(self, site: str, task: str, size: int) -> None:
        """Nothing to say."""

    def reply_refused(self, site: str, task: str, taken: Taken) -> None:
        """Nothing to say."""

    def failed(self, site: str | None, where: str) -> None:
        """Nothing to say."""

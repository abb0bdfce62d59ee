"""The tasks that a site has in hand: those that wait, and the one in work. They outlive a broken connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from security.frames import Begin, Offer

if TYPE_CHECKING:
    from shared_models.plan import Plan

MOST_TASKS: Final = 64


@dataclass(kw_only=True)
class Task:
    """A task that is on this machine as a whole.

    Attributes:
        begin: its head.
        offer: the accepted offer under which it came.
        plan: the offer's.
        payload: all of it; taken out when work begins, so that it isn't in memory twice.
        is_query: whether it needs no data.
        ends: when its time is over, on the clock of `Tasks`; None for no deadline.
    """

    begin: Begin
    offer: Offer
    plan: Plan = field(repr=False)
    payload: bytearray = field(repr=False)
    is_query: bool = False
    ends: float | None = None

    @property
    def id(self) -> str:
        """The server's id of it."""
        return self.begin.id


class Tasks:
    """What waits, in the order in which it came, and what is in work.

    Args:
        largest: bytes of payloads that may wait together.
        clock: monotonic, seconds.

    Attributes:
        in_work: id of the task that is in work, if one is.
    """

    def __init__(self, *, largest: int, clock: Callable[[], float]) -> None:
        self._largest = largest
        self._clock = clock
        self._waiting: dict[str, Task] = {}
        self.in_work: str | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def in_hand(self) -> tuple[str, ...]:
        """The ids of all tasks that wait or are in work."""
        return (*(() if self.in_work is None else (self.in_work,)), *self._waiting)

    def has(self, task_id: str) -> bool:
        """Whether it waits or is in work."""
        return task_id == self.in_work or task_id in self._waiting

    def has_room(self, size: int) -> bool:
        """Whether a task of so many bytes may wait as well. One always may."""
        held = sum(task.begin.size for task in self._waiting.values())
        return not self._waiting or (len(self._waiting) < MOST_TASKS and held + size <= self._largest)

    def add(self, task: Task) -> None:
        """One more that waits."""
        self._waiting[task.id] = task

    def recall(self, task_id: str) -> bool:
        """Let go of a task that was not begun; whether there was one."""
        return self._waiting.pop(task_id, None) is not None

    def drop_late(self) -> tuple[str, ...]:
        """Let go of the tasks whose time is over before they were begun; their ids."""
        now = self._clock()
        late = tuple(task.id for task in self._waiting.values() if task.ends is not None and task.ends <= now)
        for task_id in late:
            del self._waiting[task_id]
        return late

    def clear(self) -> None:
        """Let go of all that were not begun."""
        self._waiting.clear()

    def next(self, *, queries_only: bool) -> Task | None:
        """The task to be worked on next, if there is one; it stays in hand."""
        return next((task for task in self._waiting.values() if task.is_query or not queries_only), None)

    def begin(self, task: Task) -> bytearray:
        """Work on it begins; its payload."""
        del self._waiting[task.id]
        self.in_work = task.id
        payload, task.payload = task.payload, bytearray()
        return payload

    def end(self) -> None:
        """Its reply is on the disk, or it has none."""
        self.in_work = None

    def seconds_to_next_end(self) -> float | None:
        """Until the first waiting task's time is over; None if none has a deadline."""
        now = self._clock()
        return min((task.ends - now for task in self._waiting.values() if task.ends is not None), default=None)

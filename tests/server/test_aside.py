"""Who watches the link can't hold it up."""

from __future__ import annotations

import threading

from security.frames import Goodbye, Taken
from server.aside import Aside
from server.link_observer import SilentLink


class Witness(SilentLink):
    """Writes down what it hears, once it is let."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.let = threading.Event()
        self.listening = threading.Event()

    def connected(self, site: str, software: str) -> None:
        self.listening.set()
        assert self.let.wait(10)
        self.heard.append(f"connected {site} {software}")

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        self.heard.append(f"disconnected {site} {why} {seconds}")

    def reply_refused(self, site: str, task: str, taken: Taken) -> None:
        self.heard.append(f"refused {site} {task} {taken.name}")


def test_a_watcher_that_waits_holds_nobody_up_and_hears_all_in_order() -> None:
    witness = Witness()
    aside = Aside(witness)
    aside.connected("north", "1.0")
    assert witness.listening.wait(10)  # it hangs, as a terminal does that nobody reads
    aside.disconnected("north", None, 2.0)
    aside.reply_refused("north", "a", Taken.UNASKED)
    assert witness.heard == []
    witness.let.set()
    aside.close()
    assert witness.heard == ["connected north 1.0", "disconnected north None 2.0", "refused north a UNASKED"]
    assert aside.untold == 0


def test_what_there_is_no_room_for_is_counted_and_not_told() -> None:
    witness = Witness()
    aside = Aside(witness)
    aside.connected("north", "1.0")
    assert witness.listening.wait(10)
    for number in range(10_003):
        aside.disconnected("north", None, float(number))
    assert aside.untold == 3
    witness.let.set()
    aside.close()
    assert len(witness.heard) == 10_001

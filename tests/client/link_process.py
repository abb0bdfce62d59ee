"""`veil client run` as a process that a test can have killed at a point of its own choice.

    python -m tests.client.link_process POINT HOME [OPTION]...

POINT is where the process kills itself with signal 9; or "never", "slow" (each round takes a second longer), "greedy"
(the first round asks for 4 GB).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from client.running import Runner
from veil.main import main


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after(work: Callable[..., Any]) -> Callable[..., Any]:
    def dying(*arguments: Any, **named: Any) -> None:
        work(*arguments, **named)
        die()

    return dying


def do_first(what: Callable[[int], Any]) -> None:
    """Do something in each round before it is trained; it is told the round's number."""
    from client import private_trainer

    train = private_trainer.train_private

    def trained(*arguments: Any, **named: Any) -> Any:
        what(named["round_number"])
        return train(*arguments, **named)

    private_trainer.train_private = trained


def arm(point: str) -> None:
    if point == "training":
        from client import private_trainer

        private_trainer.train_private = dies_after(private_trainer.train_private)
    if point == "committed":
        from client.guard import Guard

        Guard.release = dies_after(Guard.release)  # type: ignore[method-assign]
    if point == "receipt":
        from client.outbox import Outbox

        Outbox.drop = die  # type: ignore[assignment]
    if point == "slow":
        do_first(lambda _: time.sleep(1.0))
    if point == "greedy":
        do_first(lambda number: bytes(4 << 30) if number == 1 else None)


def arm_later(point: str) -> None:
    """Arm once the app is there: it must not be imported for this."""
    load = Runner._loaded

    def loaded(self: Runner) -> Any:
        Runner._loaded = load  # type: ignore[method-assign]
        arm(point)
        return load(self)

    Runner._loaded = loaded  # type: ignore[method-assign]


if __name__ == "__main__":
    arm_later(sys.argv[1])
    main(["client", "run", *sys.argv[2:]])

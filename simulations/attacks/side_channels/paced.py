"""What is left of time where a site's replies leave at whole multiples of a time (`release.every_seconds`).

The loop of a site is the real one (`client.working`). In place of the app stands something that takes either of two
times, as far apart as can be: next to nothing, or half of what is given.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np

from client.notes import Notes
from client.outbox import Outbox
from client.running import Answer, Runner
from client.tasks import Task, Tasks
from client.working import Working
from security.frames import Begin, Offer
from shared_models.plan import Plan
from simulations.attacks.side_channels.distinguish import Floats


class _Takes:
    """Answers after a time that is computed away: the worlds' only difference."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def answer(self, **_: object) -> Answer:
        ends = time.monotonic() + self.seconds
        while time.monotonic() < ends:
            pass
        return Answer(header=b"", payload=b"", state=b"", kind="train")


def paced_times(plan: Plan, *, every: float, trials: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Seconds until a reply may leave: of work that takes half of what is given, and of work that takes nothing.

    Args:
        plan: any.
        every: `release.every_seconds`; 0 for a site that doesn't ask for it, whose long work takes 20 ms.
        trials: of each.
        seed: of their order.
    """
    with tempfile.TemporaryDirectory(prefix="veil-paced-") as folder:
        return asyncio.run(_measure(Path(folder), plan, every, trials, seed))


async def _measure(home: Path, plan: Plan, every: float, trials: int, seed: int) -> tuple[Floats, Floats]:
    takes, left = _Takes(), asyncio.Queue[tuple[str, float]]()
    notes = Notes(status=home / "status.json", log=home / "client.log", server="", say=lambda _: None)
    outbox, found = Outbox.open(home / "outbox.sqlite"), (list[float](), list[float]())
    try:
        with ThreadPoolExecutor(max_workers=1) as worker:
            working = Working(
                home,
                Tasks(largest=1, clock=time.monotonic),
                runner=cast(Runner, takes),
                worker=worker,
                schedule=lambda: (None, 60.0),
                outbox=outbox,
                notes=notes,
                send=lambda name: left.put_nowait((name, time.monotonic())),
                every=every,
            )
            running = asyncio.create_task(working.run())
            coins = np.random.default_rng(seed).permutation(np.repeat([0, 1], trials))
            for number, short in enumerate(coins.tolist()):
                takes.seconds = 0.0 if short else (every / 2 or 0.02)
                name = f"{number:064x}"
                begun = time.monotonic()
                working.add(_task(name, plan))
                found[short].append((await left.get())[1] - begun)
                await working.delivered(name)
            working.stop()
            await running
    finally:
        outbox.close()
        notes.close()
    return np.array(found[0]), np.array(found[1])


def _task(name: str, plan: Plan) -> Task:
    return Task(
        begin=Begin(id=name, header=b"", size=0, digest=b""),
        offer=Offer(run="ab", plan="", digest=plan.digest()),
        plan=plan,
        payload=bytearray(),
    )

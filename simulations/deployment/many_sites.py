"""Many sites in one process, to load a server from one machine: each has its own home, ledger and connection.

    python -m simulations.deployment.many_sites HOME...

What costs much, the network and the libraries, is there once: the sites take turns at work. Everything else is as in
`veil client run`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from client.agent import Agent
from client.notes import Notes
from client.outbox import Outbox
from client.resident import make_agent
from client.running import Answer, Runner
from client.site import DeployedSite, register_site
from security.homes import SiteHome

_turn = threading.Lock()  # one network for all: whoever trains overwrites its parameters


class _TakingTurns(Runner):
    def answer(self, *, header: bytes, payload: bytes | bytearray, plan: str, state: bytes) -> Answer:
        with _turn:
            return super().answer(header=header, payload=payload, plan=plan, state=state)


async def work(homes: Sequence[SiteHome]) -> int:
    """Work as all these sites until the server has played all its plans; the largest exit code."""
    with ExitStack() as stack:
        agents = [_agent(home, stack) for home in homes]
        return max(await asyncio.gather(*(agent.run() for agent in agents)))


def _agent(home: SiteHome, stack: ExitStack) -> Agent:
    site = DeployedSite.open(home)
    stack.callback(site.close)
    register_site(site)
    outbox = Outbox.open(home.outbox)
    stack.callback(outbox.close)
    notes = Notes(status=home.status, log=home.log, server=site.settings.server.address, say=lambda _: None)
    stack.callback(notes.close)
    return make_agent(home, site, outbox, notes, None, until_done=True, runner=_TakingTurns(site.name))


if __name__ == "__main__":
    sys.exit(asyncio.run(work([SiteHome(Path(path)) for path in sys.argv[1:]])))

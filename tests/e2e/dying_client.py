"""A site's client that kills a process, itself or another, at a given point of a secure round.

Put before the client's own command: `python dying_client.py '[[PLAN, ROUND, WHEN, PID], ...]' COMMAND...`. WHEN is the
type of a message, and the process (0: this one) is gone the moment such a message of that round has come; or "paid",
and it is gone once the round is charged and before anything is trained; or "committed", and it is gone once the masked
vector is in the ledger and before it can be sent. Its noise follows from the plan's seed, so
that a test can compute the sums again; all else is a site's client as it is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tomllib
from typing import Any

import client.contribution
import client.secure_update
from client.running import Runner
from client.workplace import Workplace
from privacy.noise import NoiseSource, ReproducibleNoise
from shared_models.flower_messages import message_from_bytes
from shared_models.plan import Plan
from shared_models.protocol import CONFIG, ROUND
from shared_models.seeds import derive_key
from veil.main import main

PAID, COMMITTED = "paid", "committed"


def kill_where(deaths: list[list[Any]]) -> None:
    """Have this process' client kill where it is told to, the first time it comes there."""
    answer, contribution = Runner.answer, client.secure_update.contribution

    def reached(name: str, number: int, when: str) -> None:
        for death in deaths:
            if death[:3] == [name, number, when]:
                deaths.remove(death)
                os.kill(death[3] or os.getpid(), signal.SIGKILL)
                break

    def answering(self: Runner, *, header: bytes, payload: bytes | bytearray, plan: str, state: bytes) -> Any:
        message = message_from_bytes(header, bytes(payload))
        name, kind = tomllib.loads(plan)["name"], message.metadata.message_type
        number = message.content.config_records.get(CONFIG, {}).get(ROUND, 0)
        reached(name, number, kind)
        found = answer(self, header=header, payload=payload, plan=plan, state=state)
        if kind == "train":
            reached(name, number, COMMITTED)
        return found

    def contributing(place: Workplace, *given: Any, round_number: int, **named: Any) -> Any:
        reached(place.plan.name, round_number, PAID)
        return contribution(place, *given, round_number=round_number, **named)

    Runner.answer = answering  # type: ignore[method-assign]
    client.secure_update.contribution = contributing  # type: ignore[assignment]


def noise_of(plan: Plan, purpose: str, name: str, round_number: int) -> NoiseSource:
    """Noise that a test can draw again."""
    return ReproducibleNoise(derive_key(plan.seed, purpose, name, round_number))


if __name__ == "__main__":
    kill_where(json.loads(sys.argv[1]))
    client.contribution.noise_of = noise_of  # type: ignore[assignment]
    sys.exit(main(sys.argv[sys.argv.index("veil.main") + 1 :]))

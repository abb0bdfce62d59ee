"""Whether the length of what a client sends follows from public things alone.

A length is compared exactly, byte by byte of a count, in two worlds: other records, other labels, other numbers of
records. What is counted is what the link sends (`shared_models.even_length`, in frames of `security.frames`), before
TLS adds a length of its own to each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
import torch
from flwr.app import Error, Message
from flwr.app.metadata import Metadata

from client.datasets.records import Records
from security.chunks import ZSTD, chunks, compressions
from security.frames import Begin, encode
from shared_models.even_length import even_payload
from shared_models.faults import Fault
from shared_models.flower_messages import header_to_bytes, payload_to_bytes, timeless
from shared_models.resolve import resolve
from simulations.attacks.side_channels.one_client import Clients
from simulations.attacks.side_channels.worlds import Sent, plan_in, play, write_world
from simulations.scenarios import find_plan

_CENTRAL: Final = (
    "model.name=mlp",
    "data.partition={kind='iid',clients=2}",
    "privacy.unit=client",
    "privacy.trust=central",
    "training.device=cpu",
    "federation.rounds=2",
)

Lengths = dict[tuple[str, str, int], int]
"""By client, what was asked, and the how-manieth time."""


def on_the_wire(reply: Message) -> int:
    """Bytes of a reply's frames."""
    return _frames(reply.metadata, even_payload(reply), "")


def as_encoded(reply: Message) -> int:
    """The same as protobuf has it: whole numbers as long as they are."""
    return _frames(reply.metadata, payload_to_bytes(reply), "")


def compressed(reply: Message) -> int:
    """The same with compressed chunks, as sites would send them if they compressed.

    Raises:
        ValueError: zstandard isn't installed.
    """
    if ZSTD not in compressions():
        raise ValueError("the package zstandard is not installed")
    return _frames(reply.metadata, payload_to_bytes(reply), ZSTD)


def _frames(metadata: Metadata, payload: bytes, compression: str) -> int:
    name = "0" * 64
    head = Begin(
        id=name, header=header_to_bytes(timeless(metadata)), size=len(payload), digest=sha256(payload).digest()
    )
    return len(encode(head)) + sum(len(encode(chunk)) for chunk in chunks(name, [payload], compression))


def lengths(sent: Sequence[Sent], count: Callable[[Message], int] = on_the_wire) -> Lengths:
    """The length of everything that was sent."""
    found: Lengths = {}
    for one in sent:
        times = sum(1 for client, kind, _ in found if (client, kind) == (one.client, one.kind))
        found[one.client, one.kind, times] = count(one.reply)
    return found


def two_worlds(mode: str, folder: Path) -> tuple[list[Sent], list[Sent]]:
    """What clients send in a world of many records, and in one of fewer and others.

    Raises:
        UsageError, RunError: as for `play`.
    """
    found = []
    for world, (records, seed) in enumerate(((400, 1), (37, 2))):
        table = folder / f"{world}.csv"
        write_world(table, records=records, seed=seed)
        found.append(play(plan_in(mode, table), folder / f"run-{world}"))
    return found[0], found[1]


def of_an_empty_client(count: Callable[[Message], int]) -> tuple[int, int]:
    """Lengths of what two clients entrust to a server: one with records, and one without, who sends zeros."""
    plan = resolve(find_plan("digits", _CENTRAL))
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.uniform(0, 1, (100, 1, 8, 8)).astype(np.float32))
    records = Records(x=x, y=torch.from_numpy(generator.integers(10, size=100)))
    with tempfile.TemporaryDirectory(prefix="veil-lengths-") as folder:
        clients = Clients(plan, {"0": records, "1": records.take([])}, Path(folder))
        return count(clients.granted("0")), count(clients.granted("1"))


def differing(one: Lengths, other: Lengths) -> list[str]:
    """What was asked where lengths differ, or where one world has no reply that the other has."""
    return sorted({key[1] for key in one.keys() | other.keys() if one.get(key) != other.get(key)})


def fault_lengths(asked: Message) -> set[int]:
    """Lengths of the replies that say that something is wrong, whatever it is."""
    return {on_the_wire(Message(Error(code=int(fault), reason=""), reply_to=asked)) for fault in Fault}

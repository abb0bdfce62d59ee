"""What a secure sum costs: a whole attempt in one process, integer vectors in, integer sum out.

    python -m simulations.benchmarks.secure_sum
    python -m simulations.benchmarks.secure_sum --clients 10 --lengths 100000 --runs 7

Each attempt is played by real clients and a real server, one after the other in this process; its sum is compared with
the plain one. Beside it, in the same run, stands the floor: the bare keystream of as many masks, by one thread.
Encoding an update, with its noise, is timed by itself.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from privacy.noise import SecretNoise
from privacy.secure_encoding import decode, encode
from privacy.sum_grid import SumGrid, SumNoise
from security.identity import Identity
from security.secure_sum.attempt import Attempt, Expected
from security.secure_sum.client import SumClient
from security.secure_sum.masks import keystream
from security.secure_sum.parameters import SumParameters, parameters_for
from security.secure_sum.server import SumServer

_CHUNK = 1 << 16
_FLOOR_MASKS = 20  # whose keystream is timed
_PLAIN_BYTES = 4  # of a float32
_HONEST = 25


@dataclass(kw_only=True)
class Cost:
    """What one attempt cost.

    Attributes:
        client: seconds of one client, all phases.
        server: seconds of the server, all phases.
        whole: seconds of the attempt, all clients and the server after each other.
        floor: seconds of the bare keystream of all its masks, by one thread.
        up, down: bytes of the client with most, the masked vector up and the model as float32 down included.
    """

    client: float = 0.0
    server: float = 0.0
    whole: float = 0.0
    floor: float = 0.0
    up: float = 0.0
    down: float = 0.0


@dataclass
class _Clock:
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        begun = perf_counter()
        yield
        self.seconds += perf_counter() - begun


def play(clients: int, length: int, *, dropped: int = 0) -> Cost:
    """One attempt in the 32-bit ring.

    Args:
        clients: in the cohort; a tenth may collude, half must be honest.
        length: numbers in a vector.
        dropped: clients that fall out with their vectors due, so that their masks must be rebuilt.

    Raises:
        AssertionError: the sum is wrong.
    """
    federation = _Federation(clients, length)
    attempt, names = federation.attempt, federation.attempt.cohort
    vector = np.frombuffer(os.urandom(length * _PLAIN_BYTES), attempt.dtype)
    at_server, at_clients = _Clock(), _Clock()
    up, down = Counter[str](), Counter(dict.fromkeys(names, length * _PLAIN_BYTES))  # everyone gets the model
    parties: dict[str, SumClient] = {}

    def ask(message: bytes, answer: Callable[[str, bytes], bytes], take: Callable[[str, bytes], None]) -> None:
        for name in server.waiting_for:
            with at_clients.running():
                reply = answer(name, message)
            with at_server.running():
                take(name, reply)
            up[name] += len(reply)
            down[name] += len(message)

    def begin(name: str, announcement: bytes) -> bytes:
        parties[name], offer = SumClient.begin(announcement, federation.expected(name), federation.sign(name))
        return offer

    begun = perf_counter()
    with at_server.running():
        server = SumServer(attempt, federation.roster)
        announcement = server.announcement()
    ask(announcement, begin, server.take_offer)
    with at_server.running():
        keys = server.key_list()
    ask(keys, lambda name, message: parties[name].share(message), server.take_shares)
    with at_server.running():
        inboxes = server.inboxes()
    for name, inbox in list(inboxes.items())[dropped:]:
        with at_clients.running():
            masked = parties[name].mask(inbox, vector)
        with at_server.running():
            server.take_masked(name, masked)
        up[name] += masked.nbytes
        down[name] += len(inbox)
    with at_server.running():
        survivors = server.survivors()
    ask(survivors, lambda name, message: parties[name].confirm(message), server.take_confirmation)
    with at_server.running():
        confirmations = server.confirmations()
    ask(confirmations, lambda name, message: parties[name].unmask(message), server.take_answer)
    with at_server.running():
        found = server.result()
    whole = perf_counter() - begun
    if not np.array_equal(found, vector * attempt.dtype.type(clients - dropped)):
        raise AssertionError("the secure sum is not the plain sum")
    return Cost(
        client=at_clients.seconds / clients,
        server=at_server.seconds,
        whole=whole,
        floor=_masks(attempt) * _keystream_seconds(vector.nbytes),
        up=max(up.values()),
        down=max(down.values()),
    )


class _Federation:
    """Identities, and what all of them expect."""

    def __init__(self, clients: int, length: int) -> None:
        secret, names = os.urandom(32), tuple(f"client-{number:04}" for number in range(clients))
        self._identities = {name: Identity.derive(secret, name) for name in names}
        self.roster = {name: identity.public_hex for name, identity in self._identities.items()}
        self.attempt = Attempt(
            federation="benchmark",
            run="benchmark",
            round=1,
            purpose="train",
            number=1,
            nonce=os.urandom(32),
            cohort=names,
            context=bytes(32),
            length=length,
            bits=32,
            parameters=_parameters(clients),
        )

    def expected(self, name: str) -> Expected:
        return Expected(
            federation="benchmark",
            run="benchmark",
            round=1,
            purpose="train",
            context=bytes(32),
            length=self.attempt.length,
            bits=32,
            client=name,
            roster=self.roster,
            parameters=_parameters,
        )

    def sign(self, name: str) -> Callable[[bytes], bytes]:
        return self._identities[name].sign


def _parameters(clients: int) -> SumParameters:
    return parameters_for(cohort=clients, corrupt=-(-clients // 10), honest=-(-clients // 2))


def _masks(attempt: Attempt) -> float:
    """How many masks are made, if nobody falls out: a client's own, twice, and one with each neighbour, on average."""
    clients, holders = len(attempt.cohort), attempt.parameters.holders
    neighbours = holders + holders * (1 - holders / (clients - 1))  # those it chose, and the others that chose it
    return clients * (2 + neighbours)


def _keystream_seconds(size: int) -> float:
    """Of one mask's bare keystream, by one thread."""
    room, zeros = bytearray(_CHUNK + 16), bytes(_CHUNK)
    begun = perf_counter()
    for _ in range(_FLOOR_MASKS):
        stream = keystream(os.urandom(32))
        for _ in range(max(1, size // _CHUNK)):
            stream.update_into(zeros, room)
    return (perf_counter() - begun) / _FLOOR_MASKS


def measure(
    clients: Sequence[int], lengths: Sequence[int], runs: int, *, dropped: float = 0.0
) -> dict[tuple[int, int], Cost]:
    """Medians of interleaved runs, by number of clients and length."""
    found: dict[tuple[int, int], list[Cost]] = {(n, length): [] for n in clients for length in lengths}
    for _ in range(runs):
        for (n, length), costs in found.items():
            costs.append(play(n, length, dropped=int(dropped * n)))
    return {
        case: Cost(**{name: median(getattr(cost, name) for cost in costs) for name in vars(costs[0])})
        for case, costs in found.items()
    }


def table(found: dict[tuple[int, int], Cost], title: str) -> Table:
    """The figures, for a terminal."""
    shown = Table(title=title, title_justify="left")
    for name in ("clients", "numbers", "a client", "server", "whole", "keystream", "up", "down", "bytes to plain"):
        shown.add_column(name, justify="right")
    for (clients, length), cost in found.items():
        plain = length * _PLAIN_BYTES
        shown.add_row(
            str(clients),
            f"{length:,}",
            f"{cost.client * 1e3:.1f} ms",
            f"{cost.server:.3f} s",
            f"{cost.whole:.2f} s",
            f"{cost.floor:.2f} s",
            f"{cost.up / 1e6:.3f} MB",
            f"{cost.down / 1e6:.3f} MB",
            f"{(cost.up + cost.down) / (2 * plain):.3f}",
        )
    return shown


def encoding(length: int, runs: int) -> Table:
    """Seconds of a client's encoding, noise included, and of the server's decoding; medians of interleaved runs."""
    torch.set_num_threads(1)  # as training.threads has it, unless a plan says otherwise
    update = np.random.default_rng(1).normal(size=length).astype(np.float32)
    source = SecretNoise()
    kinds: dict[str, SumNoise] = {
        "rounded Gaussian": "rounded-gaussian",
        "discrete Gaussian": "discrete-gaussian",
        "Skellam": "skellam",
    }
    grids = {
        words: SumGrid.of(clipping_norm=1.0, noise_multiplier=1.0, honest=_HONEST, dimension=length, noise=noise)
        for words, noise in kinds.items()
    }
    total = np.zeros(length, np.uint32)
    works: dict[str, Callable[[], object]] = {}
    for words, grid in grids.items():
        works[f"encode, {words} noise"] = partial(encode, update, grid, bits=32, noise=source)
        works[f"encode, {words} noise, rotated"] = partial(
            encode, update, grid, bits=32, noise=source, rotation=b"seed"
        )
    works["decode"] = partial(decode, total, grids["Skellam"], survivors=_HONEST, size=length)
    times: dict[str, list[float]] = {words: [] for words in works}
    for work in works.values():  # tables are made
        work()
    for _ in range(runs):
        for words, work in works.items():
            begun = perf_counter()
            work()
            times[words].append(perf_counter() - begun)
    shown = Table(title=f"Encoding {length:,} numbers; medians of {runs} interleaved runs", title_justify="left")
    shown.add_column("")
    shown.add_column("time", justify="right")
    for words, spans in times.items():
        shown.add_row(words, f"{median(spans) * 1e3:.1f} ms")
    return shown


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--lengths", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    console = Console(width=120)
    for dropped, words in ((0.0, "nobody falls out"), (0.1, "a tenth falls out after sharing")):
        found = measure(given.clients, given.lengths, given.runs, dropped=dropped)
        console.print(table(found, f"Secure sum, 32-bit ring, {words}; medians of {given.runs} interleaved runs"))
    console.print(encoding(max(given.lengths), given.runs))


if __name__ == "__main__":
    main()

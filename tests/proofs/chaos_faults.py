"""What is done to a federation under way, one kind of harm a function.

Each returns when the harm is done. What has to be put right again (a frozen process, a full disk, a wrong clock) is
returned as a `Repair`, with the moment when it is due; nobody stands still for it meanwhile.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.proofs.chaos_world import BEAT, SERVER, World, fill

_STALL: Final = (3.5 * BEAT, 6.0 * BEAT)  # more than the three beats after which silence is an end
_JUMPS: Final = (-6.0, 6.0)  # hours
_LONGEST_END: Final = 15.0
_SHORT_LIFE: Final = 6.0  # seconds that a certificate is valid which expires while its site is connected
_PAST: Final = 40 * 86_400.0
_YEAR: Final = 365 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What puts something right again.

    Attributes:
        targets: what is not to be harmed meanwhile.
        due: whether it is time.
        mend: does it.
    """

    targets: frozenset[str]
    due: Callable[[], bool]
    mend: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of harm.

    Attributes:
        weight: how often it comes, against the others.
        targets: what it may be done to in this world; none: it can't be done here.
        do: does it.
        exits: processes that may end for it, beside those that are killed: "own" (the target's), "all", or "none".
    """

    weight: int
    targets: Callable[[World], tuple[str, ...]]
    do: Callable[[World, str, random.Random], Repair | None]
    exits: str = "none"


def kill(world: World, target: str, chance: random.Random) -> None:
    """Kill a process at once, and start it again."""
    world.kill(target)
    world.start(target)


def cut(world: World, target: str, chance: random.Random) -> None:
    """Cut a site's stream."""
    world.wires[target].cut()


def stall(world: World, target: str, chance: random.Random) -> Repair:
    """Let a wire stand still for longer than three beats; its connections stay open."""
    wire = world.wires[target]
    wire.stall()
    return Repair(targets=frozenset({target}), due=_in(chance, *_STALL), mend=wire.resume)


def freeze(world: World, target: str, chance: random.Random) -> Repair:
    """Let a process stand still for longer than three beats."""
    world.freeze(target)
    return Repair(targets=frozenset({target}), due=_in(chance, *_STALL), mend=lambda: world.thaw(target))


def reordered_restart(world: World, target: str, chance: random.Random) -> None:
    """Kill everybody; start the sites in any order, and the server last."""
    order = chance.sample(world.sites, len(world.sites))
    for name in (SERVER, *world.sites):
        world.kill(name)
    for name in (*order, SERVER):
        world.start(name)


def full_disk(world: World, target: str, chance: random.Random) -> Repair:
    """Fill the disk of a home to the brim for a moment."""
    filling = world.disks[target]
    fill(filling)
    return Repair(targets=frozenset({target}), due=_in(chance, 0.5, 4.0), mend=filling.unlink)


def clock_jump(world: World, target: str, chance: random.Random) -> Repair:
    """Set a process's clock hours forwards or back, and right again a little later."""
    clock = world.clocks[target]
    clock.write_text(f"{chance.uniform(*_JUMPS) * 3600:+.0f}\n", encoding="utf-8")
    return Repair(
        targets=frozenset({target}),
        due=_in(chance, 2.5, 4.5),
        mend=lambda: _set_right(world, target),
    )


def _set_right(world: World, target: str) -> None:
    world.clocks[target].write_text("+0\n", encoding="utf-8")


def expired_certificate(world: World, target: str, chance: random.Random) -> Repair:
    """Give a site a certificate that has expired, or is about to, and have it connect with that.

    It is to be refused, and to say so; then it gets a good one, and is to come back.
    """
    said = world.pilot.output(target).count("expired")
    now = time.time()
    if chance.random() < 0.5:
        world.issue(target, now=now - _PAST, seconds=86_400)
    else:
        world.issue(target, now=now, seconds=_SHORT_LIFE)
    if target in world.wires and chance.random() < 0.7:
        world.wires[target].cut()
    else:
        kill(world, target, chance)

    refused: list[float] = []  # when it was seen first

    def is_out() -> bool:
        if not refused and world.pilot.output(target).count("expired") > said:
            refused.append(time.monotonic())
        if not refused:
            return False
        # The site hears it before the server has ended the stream.
        late = time.monotonic() - refused[0] > _LONGEST_END
        connected = world.is_connected(target)
        assert not (connected and late), f"{target} is connected by an expired certificate"
        return not connected

    def mend() -> None:
        world.issue(target, now=time.time(), seconds=_YEAR)

    return Repair(targets=frozenset({target}), due=is_out, mend=mend)


def _in(chance: random.Random, least: float, most: float) -> Callable[[], bool]:
    due = time.monotonic() + chance.uniform(least, most)
    return lambda: time.monotonic() >= due


def _all(world: World) -> tuple[str, ...]:
    return (SERVER, *world.sites)


KINDS: Final[Mapping[str, Kind]] = {
    "server killed": Kind(weight=5, targets=lambda world: (SERVER,), do=kill),
    "site killed": Kind(weight=7, targets=lambda world: world.sites, do=kill),
    "stream cut": Kind(weight=12, targets=lambda world: tuple(world.wires), do=cut),
    "wire stalled": Kind(weight=4, targets=lambda world: tuple(world.wires), do=stall),
    "process stalled": Kind(weight=5, targets=_all, do=freeze),
    "restarted in another order": Kind(weight=1, targets=lambda world: (SERVER,), do=reordered_restart),
    "disk full": Kind(weight=6, targets=lambda world: tuple(world.disks), do=full_disk, exits="all"),
    "clock jumped": Kind(weight=6, targets=lambda world: tuple(world.clocks), do=clock_jump, exits="all"),
    "certificate expired": Kind(weight=4, targets=lambda world: world.sites, do=expired_certificate, exits="own"),
}
"""Every kind, by what the evidence calls it."""

"""One attempt at a secure sum: what all its parties must agree on, and what a client takes part in.

Every word that is signed, hashed or used to derive a key of an attempt holds its digest. So nothing of one federation,
run, round, plan or attempt is good for another (Bonawitz et al. 2017, ePrint 2017/281, assume this of their setup).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np

from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.parameters import SumParameters

NONCE_BYTES: Final = 32
DIGEST_BYTES: Final = 32
LONGEST_WORD: Final = 200  # characters of a name
LONGEST_VECTOR: Final = 1 << 34  # numbers
MOST_CLIENTS: Final = 1 << 14
LARGEST_NUMBER: Final = 1 << 62


class Phase(StrEnum):
    """The steps of an attempt: what a server collects now, or what a client is to be asked for next."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    SURVIVORS = "survivors"
    UNMASK = "unmask"
    OVER = "over"
    ABORTED = "aborted"


PHASES: Final = (Phase.KEYS, Phase.SHARES, Phase.MASKED, Phase.SURVIVORS, Phase.UNMASK, Phase.OVER)
"""In their order, without `ABORTED`."""


def canonical(label: str, *parts: bytes) -> bytes:
    """What is signed or hashed: a label that says what kind of thing it is, and parts, each behind its length."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in (label.encode(), *parts))


def number(value: int) -> bytes:
    """A number from 0 to 2^64 − 1 as a part of what is signed or hashed."""
    return value.to_bytes(8, "big")


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """An attempt as its server announces it: all but the parameters, which each side computes from the plan.

    Raises:
        ValueError: a field is out of bounds, or the cohort's names are not strictly ascending.
    """

    federation: str
    run: str
    round: int
    purpose: str
    """What is summed, e.g. `train`."""
    number: int
    """Of this attempt in the run, from 1. An honest server writes it down before it says it, and never repeats it."""
    nonce: bytes
    """32 bytes of the server's entropy."""
    cohort: tuple[str, ...]
    """Names, strictly ascending. A client's index in it is its number in all messages."""
    context: bytes
    """SHA-256 of plan and layout."""
    length: int
    """How many numbers a vector has."""
    bits: Literal[32, 64]
    """Sums are modulo 2^bits."""

    def __post_init__(self) -> None:
        for word in (self.federation, self.run, self.purpose, *self.cohort):
            if not 1 <= len(word) <= LONGEST_WORD:
                raise ValueError(f"a name of an attempt has 1 to {LONGEST_WORD} characters")
        if not (0 <= self.round <= LARGEST_NUMBER and 1 <= self.number <= LARGEST_NUMBER):
            raise ValueError("rounds count from 0, attempts from 1")
        if len(self.nonce) != NONCE_BYTES or len(self.context) != DIGEST_BYTES:
            raise ValueError("nonce and context of an attempt are 32 bytes each")
        if not 2 <= len(self.cohort) <= MOST_CLIENTS or any(one >= next_ for one, next_ in pairwise(self.cohort)):
            raise ValueError(f"a cohort is 2 to {MOST_CLIENTS} names, strictly ascending")
        if not 1 <= self.length <= LONGEST_VECTOR or self.bits not in (32, 64):
            raise ValueError("vectors have at least one number, of 32 or 64 bits")


@dataclass(frozen=True, kw_only=True)
class Attempt(Announcement):
    """An attempt with the parameters that this side computed for its cohort.

    Raises:
        ValueError: as for `Announcement`, or the parameters are another cohort's or can't be safe.
    """

    parameters: SumParameters

    def __post_init__(self) -> None:
        super().__post_init__()
        found = self.parameters
        # What every argument for the protocol needs, whoever computed the parameters: two sets of confirmed survivors
        # can't both be large enough, and a client's shares can't give both of its secrets to two such sets.
        if (
            found.cohort != len(self.cohort)
            or not 1 <= found.holders < found.cohort
            or not 2 <= found.least <= found.cohort
            or 2 * found.least <= found.cohort + found.corrupt
            or found.least < found.honest + found.corrupt
            or not found.holders + 1 < 2 * found.threshold <= 2 * (found.holders + 1)
            or (found.is_full_graph and 2 * found.threshold <= found.cohort + found.corrupt)
        ):
            raise ValueError("the parameters of a sum don't fit its cohort")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything, the parameters too: who computed others takes part in another attempt."""
        found = self.parameters
        return sha256(
            canonical(
                "veil secure sum 1 attempt",
                self.federation.encode(),
                self.run.encode(),
                number(self.round),
                self.purpose.encode(),
                number(self.number),
                self.nonce,
                number(len(self.cohort)),
                *(name.encode() for name in self.cohort),
                self.context,
                number(self.length),
                number(self.bits),
                *(number(part) for part in (found.corrupt, found.honest, found.holders, found.threshold, found.least)),
            )
        ).digest()

    @cached_property
    def indices(self) -> Mapping[str, int]:
        """The place of each name in the cohort."""
        return {name: index for index, name in enumerate(self.cohort)}

    def holders_among(self, clients: int) -> int:
        """With how many others each shares its secrets when so many have offered keys."""
        return min(self.parameters.holders, clients - 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a vector's numbers."""
        return np.dtype(np.uint32 if self.bits == 32 else np.uint64)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a client will take part in. Nothing of it comes from the server of the sum."""

    federation: str
    run: str
    round: int
    purpose: str
    context: bytes
    length: int
    bits: Literal[32, 64]
    client: str
    """The own name."""
    roster: Mapping[str, str]
    """Every client's public identity (64 hexadecimal digits) by its name, as this site was provisioned."""
    parameters: Callable[[int], SumParameters]
    """The plan's parameters for a cohort of that size. ValueError where none are safe."""
    least_cohort: int = 3
    """The policy's: a sum of fewer is refused."""
    used: Callable[[Attempt], bool] = field(default=lambda _attempt: False)
    """Whether this attempt was begun before, or another under its number. Who keeps books of it writes it down after
    `begin`."""

    def attempt(self, announced: Announcement) -> Attempt:
        """The announced attempt, if it is what this client will take part in.

        Raises:
            SecureSumError: it isn't, by name.
        """
        if (
            (announced.federation, announced.run, announced.round) != (self.federation, self.run, self.round)
            or (announced.purpose, announced.context) != (self.purpose, self.context)
            or (announced.length, announced.bits) != (self.length, self.bits)
        ):
            raise SecureSumError(Abort.OTHER_ATTEMPT)
        if self.client not in announced.cohort:
            raise SecureSumError(Abort.NOT_IN_COHORT)
        if not set(announced.cohort) <= self.roster.keys():
            raise SecureSumError(Abort.UNKNOWN_CLIENT)
        if len({self.roster[name] for name in announced.cohort}) < len(announced.cohort):
            raise SecureSumError(Abort.EQUAL_KEYS)  # one party under two names counts twice
        if len(announced.cohort) < max(self.least_cohort, 2):
            raise SecureSumError(Abort.COHORT_TOO_SMALL)
        try:
            return Attempt(**vars(announced), parameters=self.parameters(len(announced.cohort)))
        except ValueError:
            raise SecureSumError(Abort.COHORT_TOO_SMALL) from None

"""How many clients a secure sum needs, and among how many each shares its secrets.

Both sides compute this from the plan: no message says it, so no server can choose it.

Up to 64 clients everybody shares with everybody. Of n clients c may collude, so n − c are honest. Two different sets of
survivors would each need the confirmation of `least` > (n + c)/2 clients, thus of more than half of the honest ones,
who confirm once. The threshold is t > (n + c)/2 as well: those who collude have c < t shares, and whenever `least`
clients remain there are t shares. Nothing is left to chance.

Above, each client shares with k others that it chooses at random. k is the smallest for which the bounds of
`security.secure_sum.sparse_graph` are at most 2^-40 (someone's protection fails, over all clients of one attempt) and
2^-20 (a sum can't be opened, at the given rate of dropouts). There `least` may be larger than in a full graph, by at
most a twentieth of the cohort. Where a tenth may collude, half are honest contributors and a tenth drop out, 54 hold
shares of each of 100 clients, 72 of each of 200, 133 of each of 1000.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from security.secure_sum.sparse_graph import add_bits, loss_bits, most_corrupt, split_bits

LARGEST_FULL_GRAPH: Final = 64
SECURITY_BITS: Final = 40
CORRECTNESS_BITS: Final = 20

_LARGEST_RAISE: Final = 20  # `least` is raised by at most this part of the cohort
_LARGEST_COHORT: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class SumParameters:
    """What a cohort's size, and how many of it may collude, make of a secure sum.

    Attributes:
        cohort: clients that are asked.
        corrupt: so many of them may collude with each other and with the server.
        honest: a sum that anybody learns has the contributions of at least so many honest clients in it.
        holders: with how many others a client shares its secrets; with all others in a full graph.
        threshold: shares that rebuild a secret.
        least: clients that must take part in every phase.
        security_bits: −log2 of a bound on the probability, for one attempt, that the random choice of holders leaves
            some client unprotected; infinite in a full graph, which has none.
        correctness_bits: −log2 of a bound on the probability that a sum can't be opened at the stated rate of
            dropouts although `least` clients are there; infinite in a full graph.
    """

    cohort: int
    corrupt: int
    honest: int
    holders: int
    threshold: int
    least: int
    security_bits: float
    correctness_bits: float

    @property
    def is_full_graph(self) -> bool:
        """Whether everybody shares with everybody."""
        return self.holders == self.cohort - 1


@lru_cache(maxsize=256)
def parameters_for(*, cohort: int, corrupt: int, honest: int, dropout: float = 0.1) -> SumParameters:
    """The parameters of a cohort: the same on every machine.

    Args:
        cohort: clients that are asked, from 2 to 10000.
        corrupt: so many of them may collude with each other and with the server; fixed before the round.
        honest: so many honest clients must have contributed, or nothing is opened.
        dropout: the part of the clients that may drop out at random during a sum; it decides about large cohorts only.

    Raises:
        ValueError: nothing fits; its text says what is wrong with the numbers.
    """
    if not 2 <= cohort <= _LARGEST_COHORT:
        raise ValueError(f"a secure sum has from 2 to {_LARGEST_COHORT} clients, not {cohort}")
    if corrupt < 0 or honest < 1:
        raise ValueError("a secure sum needs at least 1 honest client, and at least 0 that may collude")
    if honest + corrupt > cohort:
        raise ValueError(
            f"{honest} honest clients and {corrupt} that may collude are more than the {cohort} clients of the cohort: "
            "ask for fewer honest ones, allow fewer to collude, or take a larger cohort"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"the part of the clients that may drop out is at least 0 and below 1, not {dropout}")
    if cohort > LARGEST_FULL_GRAPH:
        for holders in range(1, cohort - 1):
            found = _sparse(cohort, corrupt, honest, dropout, holders)
            if found is not None:
                return found
    return SumParameters(
        cohort=cohort,
        corrupt=corrupt,
        honest=honest,
        holders=cohort - 1,
        threshold=(cohort + corrupt) // 2 + 1,
        least=_least(cohort, corrupt, honest),
        security_bits=math.inf,
        correctness_bits=math.inf,
    )


def _least(cohort: int, corrupt: int, honest: int) -> int:
    # Never fewer than 2, though 2 honest clients of which one drops out would still satisfy the plan.
    return max((cohort + corrupt) // 2 + 1, honest + corrupt, 2)


def _sparse(cohort: int, corrupt: int, honest: int, dropout: float, holders: int) -> SumParameters | None:
    """The parameters with so many holders, if they are enough."""
    least = _least(cohort, corrupt, honest)
    # Half of the probability for either way to fail.
    bits = SECURITY_BITS + 1
    bad = most_corrupt(least=least, corrupt=corrupt, clients=cohort, holders=holders, bits=bits)
    threshold = (holders + 1 + bad) // 2 + 1
    if threshold > min(holders, least - 1):
        return None
    opened = loss_bits(clients=cohort, holders=holders, threshold=threshold, dropout=dropout)
    if opened < CORRECTNESS_BITS:
        return None
    for raised in range(least, min(least + cohort // _LARGEST_RAISE, cohort) + 1):
        split = split_bits(
            cohort=cohort,
            corrupt=corrupt,
            honest=honest,
            least=raised,
            holders=holders,
            threshold=threshold,
            most_corrupt=bad,
        )
        if split >= bits:
            return SumParameters(
                cohort=cohort,
                corrupt=corrupt,
                honest=honest,
                holders=holders,
                threshold=threshold,
                least=raised,
                security_bits=float(add_bits(bits, split)),
                correctness_bits=float(opened),
            )
    return None

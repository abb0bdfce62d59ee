"""How likely a random choice of holders fails: the bounds behind the parameters of large cohorts.

In a large cohort every client shares its two secrets (the seed of its own mask, and the key of its masks with others)
with k holders, which it chooses itself, uniformly at random among the others of the list of clients, after all keys of
that list are fixed; and it has masks in common only with its holders and with those whose holder it is. The family is
Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, ePrint 2020/704 (its protocol against malicious servers); the bounds
below are Veil's own, for Veil's rules.

Notation: n clients in the cohort, of which c may collude with each other and with the server. They are chosen before
the keys are made: an adversary that corrupts clients *after* it saw who holds whose shares is not covered. t is the
threshold; every sum must have h₀ honest contributions; `least` clients must have confirmed the survivors, so at least
L = least − c honest ones; X bounds the colluding ones among any honest client's holders, by (1).

(1) Nobody is surrounded. Of a client's k holders, chosen from a list of u clients with c colluding ones, j collude with
    probability C(c, j)·C(u−1−c, k−j) / C(u−1, k). The tail P[j > X] is greatest for the shortest list, u = least, and
    is added up over n clients. The threshold is the least with 2t > (k + 1) + X. So t > X: those who collude can't
    rebuild a secret by themselves, and of no honest client both secrets are rebuilt, since all honest clients answer
    for one set of survivors (two sets can't both have `least` > (n + c)/2 confirmations).

(2) Nobody is cut out. Masks hide the parts of a sum only if those who share masks hang together. The server sees who
    chose whom; then it may let drop out whom it likes, hold back shares, and tell clients different things. Let H be
    the honest clients that confirmed the one set of survivors: at least L. Call a set of honest clients open if the
    server can learn its sum. From the rules that clients keep follows:
      - Every open set has a client of H in it. For a client v outside H to be opened, t − X honest holders in H must
        give shares of its seed; and v saw t − 1 of its holders take part, at least t − 1 − X of them honest. By
        2t > (k + 1) + X some holder is among both: it has a mask in common with v that nobody learns, so it is in the
        set too.
      - Let S be the clients of H in an open set, T those of H outside. No client of S has a holder in T: it added the
        mask in common with each of its holders among the survivors, and the server never learns that mask. (It does not
        follow that no client of T has a holder in S: the server may hold those shares back, if it does without T.)
      - Each client of S was opened by t shares: its own, at most X of those who collude, and so at least t − X − 1 of
        honest holders that confirmed, which are in S too. So S has at least t − X clients.
    A failure is an open set of fewer than h₀ honest clients, or two open sets apart (one of them has at most half of H
    in it, so at most as many as the rest of H). Both need disjoint sets S and T of honest clients, of s ≥ t − X and r
    clients, such that no client of S chose a holder in T and each chose a = t − X − 1 in S, where r = L − s if s < h₀,
    else r = max(s, L − s) and s ≤ (n − c)/2. Clients choose independently, hence
        P[failure] ≤ Σₛ C(n−c, s) · C(n−c−s, r) · min(A, B)^s,
        A = C(n−1−r, k) / C(n−1, k),  B = C(s−1, a) · C(u−1−a, k−a) / C(u−1, k),  u = max(least, k + 1).
    A is the probability that k holders among n − 1 avoid T; in a shorter list it is smaller. B bounds the probability
    that k holders have a given number in S; in a longer list it is smaller, and in one of up to k clients, in which
    everybody holds shares of everybody, T can't be avoided. So it doesn't matter which lists the server showed to whom.
    An open set of h₀ or more that leaves out some survivors is no failure: what is learnt is still one sum with the
    promised honest contributions in it.
    Where s is just below h₀, T is small unless `least` is larger than h₀ + c; this is why it is raised.

(3) Sums can be opened. Each client drops out by itself with probability δ after it has shared its secrets. A client's
    secrets are lost if fewer than t of its k holders stay (it may be one that dropped out itself):
    n · P[Binomial(k, δ) > k − t].

All are upper bounds, computed in integers, so that every machine gets the same parameters: logarithms are kept in
units of 2^-40 bits, and each term of a sum is rounded up to a whole power of two.
"""

from collections.abc import Iterable
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Final

_UNIT: Final = 1 << 40  # of a bit
_FINEST: Final = 192  # probabilities are counted in units of 2^-192; a smaller one counts as one unit
_SLACK: Final = 1 << 20  # units that a logarithm here may be wrong by: sums of many roundings of half a unit


def most_corrupt(*, least: int, corrupt: int, clients: int, holders: int, bits: int) -> int:
    """The least X such that more than X of any client's holders collude with a probability of at most 2^-bits.

    Args:
        least: the length of the shortest list that clients choose from.
        corrupt: clients in the list that collude; at most `least` − 1.
        clients: so many may choose.
        holders: how many each chooses, or the whole list if it is shorter.
        bits: −log2 of the probability, over all clients together.
    """
    others = least - 1
    chosen = min(holders, others)
    cases = _choose(others, chosen) - _log2(clients)
    total = 0
    for bad in range(min(corrupt, chosen), -1, -1):
        if chosen - bad <= others - corrupt:
            total += _upper(_choose(corrupt, bad) + _choose(others - corrupt, chosen - bad) - cases)
        if total > 1 << (_FINEST - bits):
            return bad
    return 0


def split_bits(
    *, cohort: int, corrupt: int, honest: int, least: int, holders: int, threshold: int, most_corrupt: int
) -> int:
    """−log2 of the bound (2) on the probability that somebody can be cut out: at most 192; 0 or less bounds nothing."""
    others, loyal = cohort - 1, cohort - corrupt
    confirmed = least - corrupt
    needed = threshold - most_corrupt - 1
    shortest = max(least - 1, holders)
    gathers = _choose(shortest - needed, holders - needed) - _choose(shortest, holders)

    def terms() -> Iterable[int]:
        # The largest terms come first, so that what is no bound is seen soon.
        for inside in range(max(honest - 1, loyal // 2), needed, -1):
            outside = confirmed - inside
            if inside >= honest:
                outside = max(outside, inside)
            if inside + outside <= loyal and holders <= others - outside:
                avoids = _choose(others - outside, holders) - _choose(others, holders)
                each = min(avoids, _choose(inside - 1, needed) + gathers)
                yield _choose(loyal, inside) + _choose(loyal - inside, outside) + inside * each

    return _bits(terms())


def loss_bits(*, clients: int, holders: int, threshold: int, dropout: float) -> int:
    """−log2 of the bound (3) on the probability that a client's secrets are lost: at most 192."""
    if dropout == 0:
        return _FINEST
    lost, kept = _log2_fraction(dropout), _log2_fraction(1 - dropout)
    return _bits(
        _log2(clients) + _choose(holders, gone) + gone * lost + (holders - gone) * kept
        for gone in range(max(holders - threshold + 1, 0), holders + 1)
    )


def add_bits(*bits: int) -> int:
    """−log2 of a sum of probabilities, rounded down."""
    return _FINEST - (sum(1 << (_FINEST - each) for each in bits) - 1).bit_length()


def _bits(logarithms: Iterable[int]) -> int:
    total = 0
    for logarithm in logarithms:
        total += _upper(logarithm)
        if total > 1 << _FINEST:
            break
    return _FINEST - (total - 1).bit_length() if total > 0 else _FINEST


def _upper(logarithm: int) -> int:
    """At least the number with that logarithm, in units of 2^-192."""
    whole = -(-(logarithm + _SLACK) // _UNIT)
    return 1 << max(_FINEST + whole, 0)


def _choose(many: int, few: int) -> int:
    """log2 of the number of subsets."""
    factorials = _log2_factorials(1 << many.bit_length())
    return factorials[many] - factorials[few] - factorials[many - few]


def _log2(number: int) -> int:
    return _log2_factorials(1 << number.bit_length())[number] - _log2_factorials(1 << number.bit_length())[number - 1]


@lru_cache(maxsize=16)
def _log2_factorials(below: int) -> list[int]:
    # Decimal's logarithm is correctly rounded, everywhere: that of the C library isn't.
    with localcontext(prec=40):
        two = Decimal(2).ln()
        total, found = Decimal(0), [0]
        for number in range(1, below):
            total += Decimal(number).ln() / two
            found.append(int((total * _UNIT).to_integral_value()))
    return found


def _log2_fraction(probability: float) -> int:
    with localcontext(prec=40):
        return int((Decimal(probability).ln() / Decimal(2).ln() * _UNIT).to_integral_value())

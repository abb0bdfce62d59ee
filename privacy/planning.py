"""What can I afford? Epsilon against rounds and noise, and what a budget buys.

Everything is asked of the accountant, for a whole history: what was spent before, and every release of every planned
round (rule 4).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from privacy.accountant import epsilon
from privacy.calibration import rounds_affordable
from privacy.lifetime import Account, Limit, PlanAccount, Terms, multiset
from privacy.mechanisms import Release


class Noisy(Release, Protocol):
    """A release whose noise can be more or less."""

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """The same with other noise."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one noise multiplier costs and affords.

    Attributes:
        noise_multiplier: of each training step.
        epsilons: after each of the asked numbers of rounds, with what was spent before; `math.inf` where no epsilon
            can be computed.
        affordable: rounds that the budget covers; at most `calibration.MOST_STEPS`.
    """

    noise_multiplier: float
    epsilons: tuple[float, ...]
    affordable: int


def offers(
    training: Noisy,
    *,
    noise_multipliers: Sequence[float],
    rounds: Sequence[int],
    budget: float,
    delta: float,
    also: Mapping[Release, int] | None = None,
    spent: Mapping[Release, int] | None = None,
) -> list[Offer]:
    """One offer a noise multiplier.

    Args:
        training: what one round of training releases; its noise multiplier is replaced.
        noise_multipliers: to try.
        rounds: numbers of rounds to price, each at least 1.
        budget: epsilon not to be exceeded.
        delta: at which every epsilon holds.
        also: what each round releases beside the training, such as noisy counts.
        spent: what was released before on the same budget.

    Raises:
        ValueError: a number is out of range.
    """
    return [
        _offer(noise, training, rounds=rounds, budget=budget, delta=delta, also=also or {}, spent=spent or {})
        for noise in noise_multipliers
    ]


def rounds_admitted(limit: Limit, account: Account, terms: Terms) -> int:
    """How many rounds of a plan a lifetime limit lets through, on top of what an account holds (rule 4).

    Args:
        limit: of the site's policy.
        account: its balance.
        terms: of a plan that has charged nothing yet.
    """

    def admits(rounds: int) -> bool:
        """Whether that many are admitted, one after the other."""
        before: Counter[Release] = Counter()
        for earlier in terms.rounds[: rounds - 1]:
            before.update(dict(earlier))
        own = PlanAccount(
            plan=terms.plan,
            proof=first.proof,
            envelope=first.envelope,
            charged=multiset(before),
            delta=terms.delta,
        )
        after = replace(account, plans=(*account.plans, own)) if rounds > 1 else account
        return limit.admit(after, terms, terms.rounds[rounds - 1]) is not None

    admission = limit.admit(account, terms, terms.rounds[0])
    if admission is None:
        return 0
    first = admission
    low, high = 1, len(terms.rounds) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if admits(middle) else (low, middle)
    return low


def _offer(
    noise: float,
    training: Noisy,
    *,
    rounds: Sequence[int],
    budget: float,
    delta: float,
    also: Mapping[Release, int],
    spent: Mapping[Release, int],
) -> Offer:
    try:
        release = training.with_noise_multiplier(noise)
    except ValueError:  # so little that there is no such release
        return Offer(noise_multiplier=noise, epsilons=(math.inf,) * len(rounds), affordable=0)
    return Offer(
        noise_multiplier=noise,
        epsilons=tuple(_cost(release, times, also, spent, delta) for times in rounds),
        affordable=rounds_affordable({release: 1, **also}, epsilon=budget, delta=delta, spent=spent),
    )


def _cost(
    training: Release, rounds: int, also: Mapping[Release, int], spent: Mapping[Release, int], delta: float
) -> float:
    history: Counter[Release] = Counter(spent)
    history[training] += rounds
    for release, times in also.items():
        history[release] += rounds * times
    return epsilon(history, delta).epsilon

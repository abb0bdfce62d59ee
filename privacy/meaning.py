"""What an epsilon means: how much an attacker can learn about one unit, at most.

The attacker knows every other unit, sees all that was released and wants to know whether this unit was there: an
attack that guesses so is no better for anything else, such as what a record says. What bounds him is the whole curve
of (epsilon, delta) pairs, of which a printed epsilon is one point. `pairs` of that curve are what is read here; fewer
pairs give looser bounds, never false ones.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from privacy import accountant
from privacy.mechanisms import Release

Pairs = Sequence[tuple[float, float]]
"""(epsilon, delta) of one and the same history, epsilons at least 0."""

_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """Bounds on every attack on one unit.

    Attributes:
        advantage: the largest difference between its true and its false positives, 0..1.
        found_at_1_percent: the largest part of members that it finds with false positives of 1 %.
        found_at_0_1_percent: the same with false positives of 0.1 %.
        certainty: how sure someone who first gave even odds can be of the truth or of an error, 0.5..1.
        failure: probability, over the noise, that he becomes surer than that.
    """

    advantage: float
    found_at_1_percent: float
    found_at_0_1_percent: float
    certainty: float
    failure: float

    def describe(self) -> tuple[str, ...]:
        """One sentence a line, for a person."""
        return (
            f"No attack tells who took part with a true-positive rate more than {_percent(self.advantage)} above its "
            "false-positive rate.",
            f"One that wrongly accuses 1 % of those who did not take part finds at most "
            f"{_percent(self.found_at_1_percent)} of those who did; one that wrongly accuses 0.1 % finds at most "
            f"{_percent(self.found_at_0_1_percent)}.",
            f"Someone who first gave 50:50 could be at most {_percent(self.certainty)} sure, but for a chance of "
            f"{self.failure:g}.",
        )


def meaning(releases: Iterable[Release] | Mapping[Release, int], *, failure: float) -> Meaning:
    """What `releases` mean together.

    Args:
        releases: as for `privacy.accountant.epsilon`.
        failure: probability that the bound on certainty may fail with; a claim's delta is a good choice.

    Raises:
        ValueError: if `failure` is not in (0, 1), or the releases have no common price.
    """
    return meaning_of_pairs(pairs_of(releases, failure=failure), failure=failure)


def meaning_of_pairs(pairs: Pairs, *, failure: float) -> Meaning:
    """The same from pairs of the curve; from the claim's own pair alone, if no more is known.

    Raises:
        ValueError: if `failure` is not in (0, 1), or a pair is out of range.
    """
    if not 0 < failure < 1:
        raise ValueError(f"failure must be above 0 and below 1, got {failure}")
    return Meaning(
        advantage=advantage(pairs),
        found_at_1_percent=true_positives(pairs, 0.01),
        found_at_0_1_percent=true_positives(pairs, 0.001),
        certainty=certainty(pairs, failure=failure),
        failure=failure,
    )


def pairs_of(releases: Iterable[Release] | Mapping[Release, int], *, failure: float) -> Pairs:
    """The curve of a history, densely, from epsilon 0 to where delta matters no more."""
    past = accountant.history(releases)
    widest = accountant.claim(past, min(failure, 1e-4) / 1000)
    if not math.isfinite(widest):
        widest = 50.0
    epsilons = [widest * point / _POINTS for point in range(_POINTS + 1)] if widest else [0.0]
    return list(zip(epsilons, accountant.deltas_for(dict(past), epsilons), strict=True))


def advantage(pairs: Pairs) -> float:
    """The largest true-positive minus false-positive rate of any attack.

    At epsilon = 0 it is delta, the total variation distance; any other pair bounds it as well: by (e^eps - 1 +
    2 delta) / (e^eps + 1), the corner of the region of error rates (Kairouz, Oh & Viswanath 2015, arXiv 1311.0776).
    """
    return min([1.0, *(math.tanh(eps / 2) + 2 * delta * _falling(eps) for eps, delta in _checked(pairs))])


def true_positives(pairs: Pairs, false_positives: float) -> float:
    """The largest true-positive rate of any attack with this false-positive rate.

    Each pair bounds it twice: TPR <= e^eps FPR + delta, and 1 - FPR <= e^eps (1 - TPR) + delta (Wasserman & Zhou 2010,
    arXiv 0811.2501; the trade-off function of Dong, Roth & Su 2022, arXiv 1905.02383).

    Raises:
        ValueError: if the rate is not in [0, 1].
    """
    if not 0 <= false_positives <= 1:
        raise ValueError(f"a false-positive rate must be from 0 to 1, got {false_positives}")
    bounds = [1.0]
    for eps, delta in _checked(pairs):
        bounds.append(_times_exp(false_positives, eps) + delta)
        bounds.append(1 - max(0.0, 1 - false_positives - delta) * math.exp(-eps))
    return min(bounds)


def certainty(pairs: Pairs, *, failure: float, prior: float = 0.5) -> float:
    """How sure of a unit's presence, or absence, someone can become who first thought it true with chance `prior`.

    His odds are multiplied by e^L, L the privacy loss. L exceeds a bound b with probability `failure` at most, for
    delta(eps) = E[(1 - e^(eps - L))+] >= (1 - e^(eps - b)) P(L > b) for every eps < b: so the best b is the least
    eps - log(1 - delta / failure). (An epsilon at that delta alone doesn't say so: it bounds an average over outcomes,
    not each; Kasiviswanathan & Smith 2014, arXiv 0803.3946.)

    Args:
        pairs: of the curve.
        failure: probability, over the noise, that he becomes surer; whether the unit was there or not.
        prior: in (0, 1).

    Raises:
        ValueError: if `prior` is not in (0, 1).
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior must be above 0 and below 1, got {prior}")
    bounds = [eps - math.log1p(-delta / failure) for eps, delta in _checked(pairs) if delta < failure]
    return 1 / (1 + (1 - prior) / prior * math.exp(-min(bounds))) if bounds else 1.0


def _checked(pairs: Pairs) -> Pairs:
    for eps, delta in pairs:
        if not (eps >= 0 and 0 <= delta <= 1):
            raise ValueError(f"not a pair of epsilon >= 0 and delta in [0, 1]: {eps}, {delta}")
    return pairs


def _falling(eps: float) -> float:
    """1 / (e^eps + 1)."""
    return math.exp(-eps) / (1 + math.exp(-eps))


def _times_exp(rate: float, eps: float) -> float:
    return math.exp(min(eps + math.log(rate), 1.0)) if rate else 0.0


def _percent(part: float) -> str:
    percent = 100 * part
    # Rounded up, for these are bounds; never to what isn't reached.
    digits = 1 if percent < 99.9 else 3
    return f"{min(100.0, math.ceil(percent * 10**digits - 1e-9) / 10**digits):g} %"

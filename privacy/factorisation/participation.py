"""Who may take part when: what the price of correlated noise rests on."""

from collections.abc import Sequence
from dataclasses import dataclass

from privacy.mechanisms.release import count


@dataclass(frozen=True, kw_only=True)
class Participation:
    """A client takes part at most `most` times, and two of its rounds are `separation` apart at least.

    ("b-min-sep-participation" of Choquette-Choo et al. 2023.) Whoever draws cohorts must keep to it: a round in which a
    client was asked for its update counts, whether or not it answered.

    Attributes:
        rounds: n, of the run, >= 1.
        separation: s, >= 1: after round t a client may be asked again from round t + s on.
        most: k, participations of one client in the run, >= 1; there is never room for more than n / s, rounded up,
            and more than that is lowered to it.

    Raises:
        ValueError: if a value is out of range.
    """

    rounds: int
    separation: int
    most: int

    def __post_init__(self) -> None:
        for name in ("rounds", "separation", "most"):
            object.__setattr__(self, name, count(name, getattr(self, name)))
        object.__setattr__(self, "most", min(self.most, -(-self.rounds // self.separation)))

    def admits(self, past: Sequence[int], round: int) -> bool:
        """Whether a client that was asked in the rounds `past` (all before `round`) may be asked in `round`.

        Raises:
            ValueError: if `round` is none of 1 .. n, or not after all of `past`.
        """
        if not 1 <= round <= self.rounds or any(before >= round for before in past):
            raise ValueError(f"round {round} is not one of 1 .. {self.rounds} after those that a client took part in")
        return len(past) < self.most and all(round - before >= self.separation for before in past)

    def heaviest(self, weights: Sequence[int]) -> int:
        """The largest sum of weights of the rounds in which one client may take part, over all patterns: exact.

        By dynamic programming over rounds: either a client sits a round out, or it takes part and is not seen in the
        `separation` - 1 rounds before.

        Args:
            weights: of each round, >= 0.
        """
        if len(weights) != self.rounds or min(weights) < 0:
            raise ValueError(f"there must be {self.rounds} weights, none below 0")
        best = [0] * (self.rounds + 1)  # best[t]: of rounds 1 .. t, with as many participations as so far
        for _ in range(self.most):
            more = [0]
            for t, weight in enumerate(weights, start=1):
                more.append(max(more[-1], weight + best[max(0, t - self.separation)]))
            best = more
        return best[-1]

    def least_population(self, cohort: int) -> int:
        """The fewest clients with which every round can have a cohort of that size: in turns, they always can."""
        size = count("cohort", cohort)
        return max(size * min(self.separation, self.rounds), -(-size * self.rounds // self.most))

"""What an audit found, and what that says of a claim."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

LookedFor = Literal["gradients", "clients", "mislabelled", "records", "round"]
Way = Literal["coordinate", "gradient", "loss", "shadow", "round"]
Method = Literal["epsilon-delta", "trade-off", "many-runs", "one-shot"]
Verdict = Literal["consistent", "broken", "uninformative"]

ESTIMATES: Final = frozenset({"one-shot"})
"""Methods that prove nothing."""

FALSE_ALARMS: Final = 1e-3
"""Of all bounds of one audit together: how often a sound implementation may be called broken."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One figure of an audit.

    Attributes:
        looked_for: what was there or not: planted gradients, planted clients, mislabelled records, records as they are,
            or one canary in one round that was played many times.
        way: where it was looked for: on its coordinate, along its gradient, in its loss, in its loss beside those of
            shadow models, or in a round's release.
        method: how a figure follows; one of `ESTIMATES` proves nothing.
        trust: of the plan, which says what the adversary sees.
        claim: what the claimed epsilon is of.
        epsilon: lower bound or estimate, at `delta`.
        claimed: epsilon at `delta` that the accountant states.
        delta: at which both are told.
        alpha: of a bound, how often it may be too large; None of an estimate.
        power: the largest epsilon that could have come out, however much had leaked.
        trials: coins that there were.
        guesses: of them, those that were guessed.
        correct: of these, those that were guessed rightly.
        contradicted: whether the claim itself, by its own trade-off curve, was ruled out at `alpha`.
    """

    looked_for: LookedFor
    way: Way
    method: Method
    trust: str
    claim: Literal["run", "round"]
    epsilon: float
    claimed: float
    delta: float
    alpha: float | None
    power: float
    trials: int
    guesses: int
    correct: int
    contradicted: bool = False

    @property
    def verdict(self) -> Verdict:
        """Of the claim. An estimate breaks nothing, whatever it says.

        A bound by trade-off curves is told as a Gaussian mechanism's epsilon, which the audited one need not be: only
        its own curve, ruled out, breaks its claim.
        """
        above = self.contradicted if self.method == "trade-off" else self.epsilon > self.claimed
        if self.method not in ESTIMATES and above:
            return "broken"
        return "uninformative" if self.power < self.claimed else "consistent"


def is_broken(findings: Iterable[Finding]) -> bool:
    """Whether a valid lower bound lies above what is claimed."""
    return any(finding.verdict == "broken" for finding in findings)

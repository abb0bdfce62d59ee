"""What an audit found, and what that says of a claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["bound", "estimate"]
Verdict = Literal["consistent", "broken", "uninformative"]

FALSE_ALARMS: Final = 1e-3
"""Of all bounds of one audit together: how often a sound implementation may be called broken."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One figure of an audit.

    Attributes:
        name: of the method.
        kind: a lower bound that holds with a stated confidence, or an estimate, which proves nothing.
        adversary: what was known and seen by whoever looked.
        claim: what the claimed epsilon is of.
        epsilon: bound or estimate, at `delta`.
        claimed: epsilon at `delta` that the accountant states.
        delta: at which both are told.
        alpha: of a bound, how often it may be too large; None of an estimate.
        power: the largest epsilon that could have come out, however much had leaked.
        seen: the counts behind it, in words.
        contradicted: whether the claim itself, by its own trade-off curve, was ruled out at `alpha`.
    """

    name: str
    kind: Kind
    adversary: str
    claim: str
    epsilon: float
    claimed: float
    delta: float
    alpha: float | None
    power: float
    seen: str
    contradicted: bool = False

    @property
    def verdict(self) -> Verdict:
        """Of the claim. An estimate breaks nothing, whatever it says."""
        if self.kind == "bound" and (self.contradicted or self.epsilon > self.claimed):
            return "broken"
        return "uninformative" if self.power < self.claimed else "consistent"


def is_broken(findings: list[Finding]) -> bool:
    """Whether a valid lower bound lies above what is claimed."""
    return any(finding.verdict == "broken" for finding in findings)

"""The guard: asked before data is touched, and again before anything leaves.

It keeps the client's account of a run in Flower's `Context.state`, which every grid carries from round to round.
`reserve` charges the whole release before training begins; a charge is never taken back, so training that fails has
still been paid for. `reply_fields` is the one place where a reply is put together: a field is charged, public, or
not there (principle 1).
"""

from __future__ import annotations

import json
from collections import Counter

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from privacy.accountant import epsilon
from privacy.mechanisms import Release, release_from_json
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.protocol import EPSILON, TRAIN_LOSS, WEIGHT

_ACCOUNT = "veil-account"
_RELEASES = "releases"  # JSON texts, one a distinct release
_COUNTS = "counts"  # how often each was charged


class RefusedError(Exception):
    """The client will not do what it was asked; it says why by a fixed code alone."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


class Guard:
    """The account of one client in one run."""

    def __init__(self, plan: Plan, state: RecordDict) -> None:
        self._plan = plan
        self._state = state

    @property
    def spent(self) -> Counter[Release]:
        """Releases charged so far, with their counts.

        Raises:
            ValueError: the account is damaged. A damaged account is never taken for a smaller one.
        """
        if _ACCOUNT not in self._state:
            return Counter()
        record = self._state[_ACCOUNT]
        if not isinstance(record, ConfigRecord) or record.keys() != {_RELEASES, _COUNTS}:
            raise ValueError("the client's account is damaged")
        texts, counts = record[_RELEASES], record[_COUNTS]
        # A charge that was written is at least one release, and each release is written once.
        if not isinstance(texts, list) or not isinstance(counts, list) or not len(set(texts)) == len(counts) > 0:
            raise ValueError("the client's account is damaged")
        charged: Counter[Release] = Counter()
        for text, count in zip(texts, counts, strict=True):
            fields = json.loads(text) if isinstance(text, str) else None
            if not isinstance(fields, dict) or type(count) is not int or count < 1:
                raise ValueError("the client's account is damaged")
            charged[release_from_json(fields)] += count
        return charged

    def reserve(self) -> None:
        """Charge one round of the plan before data is touched.

        The limit is the client's budget, but never beyond the plan's epsilon: a round that is asked for again is
        charged again, and the plan's claim is for its planned rounds.

        Raises:
            RefusedError: the budget does not cover it; nothing is charged.
            ValueError: the plan is not resolved, or the account is damaged; nothing is charged.
        """
        charged = self._with_another_round()
        if charged is None:
            return
        privacy = self._plan.privacy
        limits = [limit for limit in (privacy.budget, privacy.epsilon) if limit is not None]
        if not limits or not self._epsilon(charged) <= min(limits):  # a figure that isn't a number covers nothing
            raise RefusedError(Fault.BUDGET_EXHAUSTED)
        self._write(charged)

    def charge(self) -> None:
        """Charge one round whether the budget covers it or not: it may have been released, and its charge was lost.

        Raises:
            ValueError: the plan is not resolved, or the account is damaged; nothing is charged.
        """
        charged = self._with_another_round()
        if charged is not None:
            self._write(charged)

    def _with_another_round(self) -> Counter[Release] | None:
        release = self._plan.round_release()
        if release is None:
            return None
        charged = self.spent
        charged[release] += 1
        return charged

    def _write(self, charged: Counter[Release]) -> None:
        self._state[_ACCOUNT] = ConfigRecord(
            {
                _RELEASES: [json.dumps(release.to_json(), sort_keys=True) for release in charged],
                _COUNTS: list(charged.values()),
            }
        )

    def reply_fields(self, *, examples: int, train_loss: float) -> MetricRecord:
        """The numbers that may leave beside the update.

        Under privacy the weight is a public constant, the epsilon follows from public constants alone, and number of
        examples and loss stay here (rule 1). Without privacy nothing is protected, and both are sent.
        """
        if self._plan.is_private:
            return MetricRecord({WEIGHT: 1, EPSILON: self._epsilon(self.spent)})
        weight = examples if self._plan.weighting == "examples" else 1
        return MetricRecord({WEIGHT: weight, TRAIN_LOSS: train_loss})

    def _epsilon(self, releases: Counter[Release]) -> float:
        return epsilon(releases, self._plan.privacy.delta).epsilon

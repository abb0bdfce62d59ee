"""The trials of a sweep: plans that are fixed, and known to be good, before the first of them runs.

With a charged search all trials share one noise multiplier: the least at which all that they plan to release, together,
stays within the plan's own epsilon and delta. It follows from plan and space alone. Whatever is stopped early, breaks
or is never begun has been paid for (rule 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from privacy.calibration import least_noise_together
from privacy.mechanisms import Release
from security.errors import UsageError
from server.claim import relation_of
from server.strategies import make_strategy
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.scenarios import find_plan
from simulations.sweep.space import Point

_MOST_LINES: Final = 10

# What says how the settings were chosen is the sweep's own to say; a charged one divides the plan's budget itself.
_SELECTION: Final = "privacy.selection"
_DIVIDED: Final = ("epsilon", "noise_multiplier", "calibrated_from", "delta", "budget", "client_budgets")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        point: what it tries.
        plan: resolved.
    """

    name: str
    point: Point
    plan: Plan


def trials_of(name: str, overrides: Sequence[str], points: Sequence[Point], *, charge: bool) -> list[Trial]:
    """The trials, all of which can run as far as their plans can tell.

    Args:
        name: scenario or plan file.
        overrides: `KEY=VALUE` texts for all trials.
        points: what each tries.
        charge: give the plan's epsilon to the whole search.

    Raises:
        UsageError: plans that are refused, one line each, with what they try; or a search that can't be charged.
    """
    _check_keys(points, charge)
    selection = f"{_SELECTION}={'charged' if charge else 'uncharged'}"
    texts = [[*overrides, *(f"{key}={value}" for key, value in point), selection] for point in points]

    def plan(index: int, *more: str) -> Plan:
        return _checked(find_plan(name, [*texts[index], *more]))

    plans = _all_or_told(points, plan)
    if charge:
        noise = charged_noise(find_plan(name, texts[0]), plans)
        divided = ("privacy.epsilon=", f"privacy.noise_multiplier={noise!r}")
        plans = _all_or_told(points, lambda index: plan(index, *divided))
    width = max(2, len(str(len(points))))
    return [
        Trial(name=f"trial-{number:0{width}d}", point=point, plan=found)
        for number, (point, found) in enumerate(zip(points, plans, strict=True), start=1)
    ]


def charged_noise(asked: Plan, plans: Sequence[Plan]) -> float:
    """The least noise multiplier with which all of `plans` together stay within the epsilon that was asked for.

    Args:
        asked: as a person wrote it, with a target epsilon.
        plans: of the trials, resolved.

    Raises:
        UsageError: the search can't be charged, or no noise is enough.
    """
    privacy = asked.privacy
    without = next((plan for plan in plans if not plan.is_private), None)
    if without is not None:
        raise UsageError("--charge-search: a trial trains without privacy, which nothing pays for; give it some")
    if privacy.epsilon is None or privacy.calibrated_from == "noise_multiplier":
        raise UsageError(
            "--charge-search: divides the plan's epsilon among the trials; give privacy.epsilon in place of "
            "privacy.noise_multiplier"
        )
    if privacy.budget is not None or privacy.client_budgets:
        raise UsageError(
            "--charge-search: privacy.budget and privacy.client_budgets limit one run each, not the search; remove them"
        )
    if len({(plan.balance, relation_of(plan)) for plan in plans}) > 1:
        raise UsageError(
            "--charge-search: the trials' epsilons are about unlike units, and don't add up; sweep those one by one"
        )
    if plans[0].privacy.unit == "client" and len({clients_of(plan) for plan in plans}) > 1:
        raise UsageError(
            "--charge-search: the trials spread the records over the clients in unlike ways, so no client's costs add "
            "up; leave [data] and seed out of --over"
        )

    def releases(noise: float) -> Counter[Release]:
        total: Counter[Release] = Counter()
        for plan in plans:
            changed = plan.privacy.model_copy(update={"noise_multiplier": noise})
            total.update(plan.model_copy(update={"privacy": changed}).planned_trainings())
        return total

    counts: Counter[Release] = Counter()
    for plan in plans:
        counts.update(plan.planned_counts())
    return least_noise_together(releases, epsilon=privacy.epsilon, delta=privacy.delta, also=counts)


def planned_of(plan: Plan) -> Counter[Release]:
    """All that a resolved plan may release of one client (rule 4); nothing without privacy."""
    return plan.planned_trainings() + plan.planned_counts()


def clients_of(plan: Plan) -> str:
    """What says which records which client holds: equal where equal ids are the same clients."""
    return f"{plan.seed} {plan.data.model_dump_json()}"


def _check_keys(points: Sequence[Point], charge: bool) -> None:
    for key, _ in points[0]:
        if key == _SELECTION:
            raise UsageError(f"--over {key}: how settings were chosen is what the sweep itself says; leave it out")
        if key == "name":
            raise UsageError("--over name: trials have names of their own; leave it out")
        if charge and key.startswith("privacy.") and key.split(".")[1] in _DIVIDED:
            raise UsageError(
                f"--over {key}: with --charge-search the plan's epsilon and delta are for the whole search, and the "
                "noise follows from them; leave it out"
            )


def _checked(plan: Plan) -> Plan:
    """The resolved plan. Raises UsageError where it can't run."""
    plan = resolve(plan)
    make_strategy(plan)
    if plan.evaluation.where == "none":
        raise UsageError("evaluation.where = 'none': trials that nothing judges can't be compared")
    return plan


def _all_or_told(points: Sequence[Point], plan: Callable[[int], Plan]) -> list[Plan]:
    found, told = [], []
    for index, point in enumerate(points):
        try:
            found.append(plan(index))
        except UsageError as error:
            said = " ".join(f"{key}={value}" for key, value in point)
            told += [f"{said}: {line}" for line in str(error).splitlines()]
    if told:
        more = len(told) - _MOST_LINES
        raise UsageError(
            "\n".join(told[:_MOST_LINES] + ([f"... and {more} more lines like these"] if more > 0 else []))
        )
    return found

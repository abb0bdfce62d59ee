"""From the plan a person gives a server to the one that sites are offered."""

from __future__ import annotations

from collections.abc import Sequence

from security.errors import UsageError
from server.strategies import make_strategy
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.resolve import resolve


def deployable(plan: Plan, sites: Sequence[str]) -> Plan:
    """The resolved plan, if these sites can play it.

    Raises:
        UsageError: it can't be resolved, is one for simulations, or needs more sites than there are.
    """
    privacy = plan.privacy
    if plan.evaluation.baselines:
        raise UsageError(
            f"{plan.name}: evaluation.baselines is for simulations, which have all data in one place; give "
            "--set evaluation.baselines=false"
        )
    if plan.data.leave_out is not None:
        raise UsageError(
            f"{plan.name}: data.leave_out is for simulations: who takes part in a deployment is in its roster; give "
            "--set data.leave_out="
        )
    if plan.is_private and privacy.noise == "reproducible":
        raise UsageError(
            f"{plan.name}: privacy.noise = 'reproducible' is for simulations: whoever knows the seed knows the noise; "
            "give --set privacy.noise=secret"
        )
    if privacy.client_budgets:
        raise UsageError(
            f"{plan.name}: privacy.client_budgets is for simulations: a site's budget is in its site.toml; remove it"
        )
    if plan.federation.min_clients > len(sites):
        raise UsageError(
            f"{plan.name}: federation.min_clients = {plan.federation.min_clients} is more than the {len(sites)} sites "
            "of the roster that are not revoked"
        )
    resolved = resolve(plan)
    make_strategy(resolved)
    return resolved


def offered(plan: Plan) -> str:
    """A resolved plan as sites get it: TOML, without a path of this machine. It has the same digest."""
    return write_plan(plan.model_copy(update={"data": plan.data.model_copy(update={"path": None})}))

"""The site's policy: what the owner of the data allows, fixed in `site.toml` beside the data (principle 2).

A server can ask; it can't override. The policy is looked at again for every task, before data is touched, and what it
says depends on the plan, the policy and the ledger alone (rule 5). A change of it is an entry in the ledger.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from privacy.lifetime import Balance, Limit
from security.errors import UsageError
from shared_models.faults import Fault
from shared_models.once import once
from shared_models.plan import Plan
from shared_models.plan_central import is_central
from shared_models.plan_section import Count, NonNegative, Positive, Section
from shared_models.toml_errors import read_section

Detail = Literal["epsilon", "totals", "full"]
Unprotected = Literal["examples", "train-loss"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class RefusedError(Exception):
    """The client will not do what it was asked; it says why by a fixed code alone."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


class Budget(Section):
    """What may be spent on one unit against those who are not trusted, over the lifetime of the data."""

    unit: Literal["record", "person", "client"] = Field(description="What the epsilon protects.")
    trust: Literal["local", "distributed", "central"] = Field(description="Who must be trusted for it to hold.")
    epsilon: Positive = Field(description="Never to be exceeded, by all plans together.")
    delta: float = Field(gt=0, lt=1, description="Chance with which the epsilon may fail.")
    filter: Literal["rdp", "sum"] = Field(
        "rdp", description="How plans add up: a Renyi filter, or the sum of their epsilons and deltas (rule 4)."
    )

    @property
    def balance(self) -> Balance:
        """The account that it limits."""
        return Balance(unit=self.unit, trust=self.trust)

    @property
    def limit(self) -> Limit:
        """The limit as the ledger applies it."""
        return Limit(epsilon=self.epsilon, delta=self.delta, filter=self.filter)


class Allow(Section):
    """Which plans may touch the data. A list that is left out allows all."""

    federations: tuple[str, ...] | None = Field(
        None, strict=False, description="Federations whose server may ask; in a simulation, names of plans."
    )
    plans: tuple[Digest, ...] | None = Field(None, strict=False, description="Digests of the plans that may run.")
    models: tuple[str, ...] | None = Field(None, strict=False, description="Networks that may be trained (rule 7).")
    least_noise_multiplier: NonNegative = Field(
        0.0,
        description="Fewest noise of a step or round, over the clipping norm; of correlated noise over the run.",
    )
    largest_clipping_norm: Positive = Field(1e9, description="Largest clipping norm of a private step.")
    least_honest: Count = Field(2, description="Fewest honest clients that a secure sum may count on, this site's too.")
    least_cohort: Annotated[int, Field(ge=2)] = Field(3, description="Fewest clients that a secure sum may be over.")
    rounds_a_day: Count | None = Field(None, description="Most rounds that are begun within 24 hours.")
    unmasked_sums: bool = Field(False, description="Simulation only: sums that the server adds up without masks.")
    reproducible_noise: bool = Field(False, description="Simulation only: noise that follows from the plan's seed.")


class ReleasePolicy(Section):
    """What may leave beside private updates."""

    entrust: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Federations whose server is trusted with unprotected updates; no epsilon holds against it.",
    )
    statistics: bool = Field(
        False, description="Noisy histograms of the columns, for plans with [statistics]; charged like everything else."
    )
    counts: bool = Field(
        False,
        description="Noisy counts of right and all examples, or by class and guess, charged like everything else.",
    )
    unprotected: tuple[Unprotected, ...] = Field(
        (), strict=False, description="Fields sent as they are beside a private update; they withdraw the claim."
    )
    statement: Detail = Field("totals", description="How much a signed statement tells of what was spent.")
    every_seconds: NonNegative = Field(
        0.0,
        description="Replies that data went into leave at whole multiples of this after work on them began (rule 12); "
        "0: as soon as they are ready, and how long that took is seen.",
    )


class SitePolicy(Section):
    """The part of `site.toml` that says what is allowed: ledger and statements name it by its digest."""

    site: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the site.")
    budget_scope: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="The population that the budget belongs to: all data sets that share people (rule 6).",
    )
    budget: tuple[Budget, ...] = Field((), strict=False, description="One for each unit and trust; none refuses it.")
    allow: Allow = Field(default_factory=Allow)
    release: ReleasePolicy = Field(default_factory=ReleasePolicy)

    @once
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal; what ledger and statements name."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = self.model_dump(mode="json")
        if not self.release.statistics:  # policies from before there were any keep their digest
            del found["release"]["statistics"]
        if not self.release.every_seconds:  # likewise
            del found["release"]["every_seconds"]
        return found

    def budget_for(self, balance: Balance) -> Budget | None:
        """The budget that limits a balance, if the site has one."""
        return next((budget for budget in self.budget if budget.balance == balance), None)

    def refusal(self, plan: Plan, *, federation: str | None = None) -> Fault | None:
        """Why this site won't work on a plan; None if it will. Looks at plan and policy alone.

        Args:
            plan: resolved.
            federation: whose server asks; in a simulation, which has no certificates, the plan's name.
        """
        allow, privacy = self.allow, plan.privacy
        federation = plan.name if federation is None else federation
        if allow.federations is not None and federation not in allow.federations:
            return Fault.POLICY_FEDERATION
        if allow.plans is not None and plan.digest() not in allow.plans:
            return Fault.POLICY_PLAN
        if plan.statistics is None and allow.models is not None and plan.model.name not in allow.models:
            return Fault.POLICY_MODEL
        if not plan.is_private:
            return None if federation in self.release.entrust else Fault.POLICY_ENTRUST
        if self.budget_for(plan.balance) is None:
            return Fault.POLICY_UNIT
        if is_central(plan) and federation not in self.release.entrust:  # its server sees what is below the noise
            return Fault.POLICY_ENTRUST
        if privacy.noise == "reproducible" and not allow.reproducible_noise:
            return Fault.POLICY_NOISE
        if privacy.noise_multiplier is None or privacy.noise_multiplier < allow.least_noise_multiplier:
            return Fault.POLICY_NOISE
        # Of one that adapts: where it may go.
        largest = privacy.clipping_norm if privacy.adaptive is None else (privacy.adaptive.most_norm or math.inf)
        if largest > allow.largest_clipping_norm:
            return Fault.POLICY_CLIPPING
        if (plan.evaluates_at_clients and not self.release.counts) or (
            plan.statistics is not None and not self.release.statistics
        ):
            return Fault.POLICY_FIELD
        if privacy.trust == "distributed":
            return self._refusal_of_sum(plan)
        return None

    def _refusal_of_sum(self, plan: Plan) -> Fault | None:
        """Of a plan's whole cohort; a single attempt may be over fewer, down to the policy's own least."""
        if not plan.secure.masks and not self.allow.unmasked_sums:
            return Fault.POLICY_SECURE_SUM
        try:
            found = plan.secure_parameters()
        except ValueError:  # no sum over such a cohort is safe
            return Fault.POLICY_SECURE_SUM
        enough = found.honest >= self.allow.least_honest and found.cohort >= self.allow.least_cohort
        return None if enough else Fault.POLICY_SECURE_SUM


def read_policy(path: Path) -> SitePolicy:
    """Read a file that holds a policy and nothing else; `client.site_settings` reads the whole of `site.toml`.

    Raises:
        UsageError: it can't be read, or says something that isn't a policy; one line for each thing that is wrong.
    """
    policy = read_section(SitePolicy, path)
    check_budgets(policy, path)
    return policy


def check_budgets(policy: SitePolicy, path: Path) -> None:
    """Refuse a policy with two budgets of one balance.

    Raises:
        UsageError: it has; `path` names its file.
    """
    balances = [budget.balance for budget in policy.budget]
    twice = next((balance for balance in balances if balances.count(balance) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: two budgets for unit = '{twice.unit}', trust = '{twice.trust}'; keep one of them")


def simulated_policy(plan: Plan, client: str) -> SitePolicy:
    """The policy of a virtual client: it allows its plan, within the budget that the plan gives it."""
    made = _simulated_policies(plan)
    if client not in made:
        made[client] = _simulated_policy(plan, client)
    return made[client]


@once
def _simulated_policies(_: Plan) -> dict[str, SitePolicy]:
    """Of a plan's virtual clients, those that were asked for."""
    return {}


def _simulated_policy(plan: Plan, client: str) -> SitePolicy:
    budgets: tuple[Budget, ...] = ()
    if plan.is_private:
        budget = Budget(
            unit=plan.balance.unit,  # type: ignore[arg-type]  # the plan's units are the policy's
            trust=plan.balance.trust,  # type: ignore[arg-type]
            epsilon=plan.client_budget(client),
            delta=plan.privacy.delta,
        )
        budgets = (budget,)
    return SitePolicy(
        site=f"client-{client}",
        budget_scope=client,
        budget=budgets,
        allow=Allow(reproducible_noise=True, unmasked_sums=True, least_honest=1, least_cohort=2),
        release=ReleasePolicy(
            entrust=() if plan.is_private and not is_central(plan) else (plan.name,),
            statistics=plan.statistics is not None,
            counts=plan.evaluates_at_clients,
            unprotected=plan.privacy.unprotected if plan.is_private else (),
            statement="full",
        ),
    )

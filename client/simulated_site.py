"""A virtual owner: its policy allows the plan, its records are a part of one pool, its ledger is the run's."""

from __future__ import annotations

from functools import cached_property

from flwr.app import Context

from client.books import Books, books
from client.datasets.records import Records
from client.policy import SitePolicy, simulated_policy
from client.workplace import Workplace, client_id, scope_id
from shared_models.faults import Fault
from shared_models.plan import Plan


class SimulatedSite:
    """A virtual client: allows its plan, within the budget that the plan gives it."""

    deployed = False

    def __init__(self, place: Workplace, context: Context) -> None:
        self._place = place
        self._context = context

    @cached_property
    def client(self) -> str:
        return client_id(self._place, self._context)

    @property
    def booked_as(self) -> str:
        return scope_id(self._place, self._context)

    def federation(self, plan: Plan) -> str:
        return plan.name

    def policy(self, plan: Plan) -> SitePolicy:
        return simulated_policy(plan, self.booked_as)

    def refusal(self, plan: Plan) -> Fault | None:
        return None

    def books(self) -> Books:
        return books(str(self._context.run_config.get("ledger", "")))

    def training_records(self, place: Workplace) -> Records:
        return place.records(self.client)

    def held_out(self, place: Workplace) -> Records:
        return place.held_out(self.client)

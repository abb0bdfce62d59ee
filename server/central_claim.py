"""What a claim under client x central rests on: a server that is trusted, and cohorts that stay secret (rule 3) or,
with correlated noise, keep to a schema."""

from __future__ import annotations

from server.remark import Remark
from shared_models.plan import Plan
from shared_models.plan_asynchronous import is_asynchronous, participations_of
from shared_models.plan_correlated import is_correlated, participation_of
from shared_models.plan_federation import FixedCohort


def against(plan: Plan) -> str:
    """Whom a claim holds against, and as long as what."""
    whom = "everybody who sees the models, while the server is trusted"
    return f"{whom} and none of them learns who took part in a round" if plan.has_secret_cohorts else whom


def assumptions(plan: Plan) -> list[Remark]:
    """What nothing here proves."""
    found = [
        Remark(
            code="server-trusted",
            text="the server is trusted: it runs Veil unchanged, adds secret noise to every sum, keeps what it "
            "received to itself, and follows the plan; nothing is claimed against it",
        )
    ]
    if plan.has_secret_cohorts:
        found.append(
            Remark(
                code="cohort-secret",
                text="nobody whom the claim holds against learns who took part in a round, or how many did"
                + (
                    "; all other clients together would know it of a cohort of a fixed size, and must not pry together"
                    if isinstance(plan.federation.cohort, FixedCohort)
                    else ""
                ),
            )
        )
    if is_correlated(plan):
        schema = participation_of(plan)
        found.append(
            Remark(
                code="participation-schema",
                text=f"the server asks no client to take part more than {schema.most} times in the run, nor within "
                f"{schema.separation} rounds of the time before; nothing is claimed from chance",
                values={"most": str(schema.most), "separation": str(schema.separation)},
            )
        )
    if is_asynchronous(plan):
        most = participations_of(plan)
        found.append(
            Remark(
                code="participation-schema",
                text="the server puts at most one update of a client into a round, on a schedule that follows from "
                f"the plan, and none into more than {most} rounds of the run; nothing is claimed from chance",
                values={"most": str(most), "separation": "1"},
            )
        )
    return found


def disclosed(plan: Plan) -> list[Remark]:
    """What the claim does not cover."""
    if is_correlated(plan) or is_asynchronous(plan):
        text = "who takes part in a round follows from the plan's seed and is not protected"
        return [Remark(code="participation", text=text)]
    if plan.has_secret_cohorts:
        text = (
            "who took part in a round is known to the server, and to each client of itself: the server's checkpoints "
            "and mailbox, its status while a round is played, and the clients' own ledgers tell it, and how long a "
            "round takes tells of how many; nothing is claimed against who sees those"
        )
    else:
        text = "every client takes part in every round, and everybody may know it"
    return [Remark(code="membership", text=text)]

"""What a run claims, and what its claim hangs on: conditions that fail, assumptions, and what is not covered.

Each is a fixed code, which programs read, and a sentence, which people read. The codes are the report's
(`privacy.report.conditions`); a code names the condition, so one among what withdraws a claim says that it isn't met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from privacy import accountant
from privacy.accountant import ACCOUNTANT, RELATION
from privacy.mechanisms import DpSgd, NoisyHistograms, RoundedGaussianSum
from privacy.report.catalogue import upper
from privacy.report.conditions import BATCH_INFLUENCE
from server import central_claim
from server.remark import Remark
from server.run_state import RunState
from shared_models.features.encoders import ENCODERS
from shared_models.plan import Plan
from shared_models.plan_central import is_central
from shared_models.plan_data import NaturalPartition
from shared_models.registry import PRETRAINED, names

__all__ = [
    "NO_PRIVACY",
    "Remark",
    "accountant_of",
    "assumptions",
    "claim",
    "disclosed",
    "privacy_unit",
    "relation_of",
    "withdrawn",
]

_NAMED = 20  # clients whose epsilons a claim lists one by one

# Against whom a claim holds, by the plan's trust, and as long as what; of central trust `central_claim` says it.
_AGAINST = {
    "local": "everybody, the server included",
    "distributed": "everybody, the server included, while in every sum at least {honest} clients are honest and no "
    "more than {corrupt} of a cohort of {clients} collude with it, one that pries by itself included",
}


NO_PRIVACY = Remark(code="privacy", text="no privacy: plain federated learning protects nobody")


def accountant_of(plan: Plan) -> str:
    """The accountant whose epsilons the plan's figures are: some releases have no other than RDP (rule 4)."""
    release = plan.train_release()
    return ACCOUNTANT if release is None else accountant.accountant_of([release])


def relation_of(plan: Plan) -> str:
    """Which data sets the plan's figures tell apart: of fixed cohorts those that differ in who one client is."""
    release = plan.train_release()
    return RELATION if release is None else accountant.relation_of([release])


def secure_sum_values(plan: Plan) -> dict[str, str]:
    """How many clients of a secure sum are honest at least, collude at most, and are in a whole cohort."""
    found = plan.secure_parameters()
    return {"honest": str(found.honest), "corrupt": str(found.corrupt), "clients": str(found.cohort)}


def privacy_unit(plan: Plan) -> str:
    """What the epsilon protects, in words (rule 6): a person only where all of a person's records are priced."""
    if plan.privacy.unit == "client" and plan.is_private:
        return "client, all that it holds"
    bound, release = plan.data.max_rows_per_person, plan.train_release()
    of_records = release if isinstance(release, DpSgd | NoisyHistograms | RoundedGaussianSum) else None
    if bound is None or of_records is None or of_records.records_per_unit < bound:
        return "record, not person"
    return f"person, at most {bound} record{'s' if bound > 1 else ''} each"


def claim(plan: Plan, epsilons: Mapping[str, float | None]) -> str | None:
    """What is claimed once no condition fails, with all that principle 3 asks for; None where nothing was charged.

    Args:
        plan: the resolved plan.
        epsilons: of each client, at the plan's delta.

    Raises:
        ValueError: one of them has none, or the plan's trust is one without a claim.
    """
    charged = {client: value for client, value in epsilons.items() if value != 0}
    if not charged:
        return None
    known = {client: value for client, value in charged.items() if value is not None}
    if len(known) < len(charged) or plan.privacy.trust not in (*_AGAINST, "central"):
        raise ValueError("without an epsilon for everybody, and somebody it holds against, there is no claim")
    figures = f"epsilon at most {upper(max(known.values()))} at each of {len(known)} clients"
    if len(known) <= _NAMED:
        figures = "epsilon at most " + ", ".join(f"{upper(value)} at {client}" for client, value in known.items())
    unit, relation = privacy_unit(plan), relation_of(plan)
    against = central_claim.against(plan) if is_central(plan) else _AGAINST[plan.privacy.trust]
    if plan.privacy.trust == "distributed":
        against = against.format(**secure_sum_values(plan))
    # One client more would show; of a record nobody sees whether it is there.
    if plan.privacy.unit == "client" and (plan.privacy.trust == "distributed" or plan.is_one_release):
        relation += ", as a contribution that is there or all zeros"
    return (
        f"each {unit.partition(',')[0]} is protected against {against}: {figures}, with delta "
        f"{plan.privacy.delta:g} (unit: {unit}; relation: {relation}; accountant: {accountant_of(plan)}; "
        f"selection: {plan.privacy.selection}), as far as the assumptions hold"
    )


def withdrawn(
    plan: Plan,
    state: RunState,
    *,
    simulated: bool = True,
    unpriced: Sequence[str] = (),
    unstated: Sequence[str] = (),
    gaps: Sequence[str] = (),
) -> list[Remark]:
    """Conditions that a claim needs and this run does not meet.

    Args:
        plan: the resolved plan.
        state: the server's books.
        simulated: whether all clients were in one place.
        unpriced: clients that have no epsilon.
        unstated: clients that were charged, and whose signed statement the server has not verified.
        gaps: clients whose statement says that a gap in their ledger was written off.
    """
    found = []
    if simulated:
        found.append(Remark(code="deployed", text="simulated, not a claim: all clients ran in one place"))
    if plan.privacy.noise == "reproducible":
        found.append(Remark(code="secret-noise", text="the noise follows from the plan's seed, which others may know"))
    if plan.privacy.trust == "distributed" and not plan.secure.masks:
        found.append(Remark(code="masked", text="what clients put into sums had no masks: the server saw each of them"))
    if plan.privacy.unit == "example" and plan.training.precision != "float32":
        found.append(
            Remark(
                code="float32",
                text=f"layers computed in {plan.training.precision}, where what rounding moves with the rest of a "
                "batch is too much to leave out: set training.precision to float32",
            )
        )
    tallies = state.clients.items()
    found += _about(
        "no-client-failed",
        "failed, which may tell something of their data (rule 5)",
        (client for client, tally in tallies if tally.withdrawn),
    )
    fields = ", ".join(plan.privacy.unprotected)
    found += _about(
        "nothing-unprotected",
        f"sent unprotected beside private updates ({fields})",
        (client for client, tally in tallies if tally.unprotected),
        fields=fields,
    )
    found += _about(
        "ledgers-grow",
        "told of ledgers that lack what they had told of before",
        (client for client, tally in tallies if tally.contradicted),
    )
    found += _about("priced", "spent too much for an epsilon to be computed", unpriced)
    found += _about("stated", "no verified statement", unstated)
    found += _about("no-gap", "wrote off a gap in the ledger", gaps)
    return found


def _about(code: str, text: str, clients: Iterable[str], **values: str) -> list[Remark]:
    named = tuple(sorted(clients))
    return (
        [Remark(code=code, text=f"{text}: clients {', '.join(named)}", clients=named, values=values)] if named else []
    )


def assumptions(plan: Plan) -> list[Remark]:
    """What a claim rests on that nothing here proves."""
    if is_central(plan):
        return central_claim.assumptions(plan)
    found = [
        Remark(
            code="noise-testimony",
            text="each site runs Veil unchanged, with secret noise of its own: what it signs is testimony, and no "
            "proof that noise was added",
        ),
    ]
    if plan.privacy.unit == "example" and plan.statistics is None:
        found.append(
            Remark(
                code="batch-independence",
                text="an example's clipped gradient does not depend on the others in its batch beyond rounding, which "
                f"the figures leave out: measured on a CPU, up to {BATCH_INFLUENCE['most']} of the clipping norm, "
                f"mostly below {BATCH_INFLUENCE['mostly']}; not proven",
                values=BATCH_INFLUENCE,
            )
        )
    if plan.privacy.trust == "distributed":
        found += _of_secure_sums(plan)
    if privacy_unit(plan).startswith("record"):
        found.append(
            Remark(
                code="record-not-person",
                text="a person has one record: somebody with several is protected less than the figures say (rule 6)",
            )
        )
    return found


def _of_secure_sums(plan: Plan) -> list[Remark]:
    values = secure_sum_values(plan)
    return [
        Remark(
            code="secure-sum",
            text="in every sum at least {honest} clients are honest: they follow the protocol, add their noise and "
            "keep their secrets; at most {corrupt} of a cohort of {clients} collude with the server, one that pries by "
            "itself included, and each identity on the roster that the sites approved is a party of its own (rules 2 "
            "and 8)".format(**values),
            values=values,
        ),
        Remark(
            code="cryptography",
            text="nobody breaks what hides a client's vector in a sum: X25519, Ed25519, SHA-256, AES-256, "
            "ChaCha20-Poly1305, and in large cohorts the random choice of who holds a client's shares, which fails "
            "with a chance below 2^-40 in each attempt at a sum, charged or not",
        ),
    ]


def disclosed(plan: Plan, *, simulated: bool = True) -> list[Remark]:
    """What the claim does not cover."""
    found = []
    if plan.evaluation.baselines:
        found.append(
            Remark(code="baselines", text="the figures of each client alone and of all data pooled are not protected")
        )
    found.append(Remark(code="timing", text="when a client answers is not protected (rule 12)"))
    if simulated and isinstance(plan.data.partition, NaturalPartition):
        column = plan.data.partition.column
        found.append(
            Remark(
                code="client-names",
                text=f"the names of the clients are values of the column {column} and are not protected",
                values={"column": column},
            )
        )
    if plan.data.normalisation is not None:
        digest = plan.data.normalisation.statistics
        found.append(
            Remark(
                code="normalisation",
                text="numbers are normalised by constants which, as the plan says and nobody here can check, plan "
                f"{digest[:16]} released: they are charged there, and a site's ledger adds both plans up",
                values={"plan": digest[:16]},
            )
        )
    if is_central(plan):
        found += central_claim.disclosed(plan)
    if plan.privacy.trust == "distributed":
        found.append(
            Remark(
                code="participation",
                text="who takes part in a round, and who falls out of it, is not protected: it is known to all that do",
            )
        )
    if plan.data.max_rows_per_person is not None or (plan.privacy.unit == "client" and plan.is_private):
        found.append(
            Remark(
                code="several-clients",
                text="somebody with records at several clients spends at each of them (rule 6): epsilons and deltas "
                "add up where each client adds its own noise; where clients share noise, k of them with epsilon e each "
                "hold k e only with a delta of 1 + exp(e) + ... + exp((k - 1) e) times theirs",
            )
        )
    if plan.evaluation.where == "server":
        found.append(Remark(code="evaluation-data", text="the server's own evaluation data is not protected (rule 11)"))
    if plan.evaluation.where != "none":
        found += _chosen_on_test_records(plan)
    if _is_pretrained(plan):
        found.append(
            Remark(
                code="pretrained",
                text="what frozen parts were pretrained on is not protected; records that were among it, least of all "
                "(rule 11)",
            )
        )
    if plan.privacy.selection == "uncharged":
        found.append(
            Remark(
                code="selection-uncharged",
                text="hyper-parameters may have been chosen by looking at the data, uncharged (rule 11)",
            )
        )
    if plan.privacy.selection == "charged":
        found.append(
            Remark(
                code="selection-charged",
                text="this run's epsilon is its own alone: the choice was charged by a search, and what all its runs "
                "cost together, which is more, stands in the search's own account (rule 11)",
            )
        )
    return found


def _is_pretrained(plan: Plan) -> bool:
    """Whether a part of the model was trained elsewhere, or may have been: of networks that aren't Veil's nobody can
    tell."""
    of_features = plan.features is not None and plan.features.name in ENCODERS
    return of_features or plan.model.name in PRETRAINED or plan.model.name not in names()


def _chosen_on_test_records(plan: Plan) -> list[Remark]:
    """Says so where the records that the figures are of have chosen among models first."""
    evaluation = plan.evaluation
    if plan.federation.rounds <= evaluation.every:  # evaluated once, after the last round: there is nothing to choose
        return []
    stops = evaluation.target is not None or evaluation.patience is not None
    chosen = "the best model and when to stop" if stops else "the best model"
    code = "test-records-stop" if stops else "test-records-best"
    return [Remark(code=code, text=f"the reported figures are of the test records that also chose {chosen}")]

"""What `veil client` prints: a plan as its owner must know it before saying yes, and how a site stands."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from shared_models.protocol import METRICS, WEIGHT

if TYPE_CHECKING:
    from client.plan_facts import Cost, PlanFacts
    from privacy.lifetime import LifetimeSpent
    from privacy.mechanisms import Release
    from security.secure_sum.parameters import SumParameters
    from shared_models.plan import Plan
    from shared_models.plan_data import DataPlan

_LABEL = 12
_WIDTH = 118

_WEIGHT = f"{METRICS}.{WEIGHT}"  # on the wire it is called a number of examples, which under privacy it never is
_CLASSES = {
    "charged": "private releases, paid for",
    "public": "the same whatever the data is",
    "entrusted": "AS IT IS, to the server: no privacy against it",
    "unprotected": "AS IT IS: withdraws the claim",
}


def print_plan(facts: PlanFacts) -> None:
    """All that an owner should read before approving a plan."""
    from server.claim import assumptions, disclosed

    plan = facts.plan
    _say("plan", f"{plan.name} of {facts.federation}")
    _say("digest", facts.digest)
    _say("asks", _asks(plan))
    made = f"{plan.model.name}, {facts.parameters:,} parameters"
    if plan.statistics is not None:
        made = f"none: {facts.parameters:,} counts"
    _say("model", f"{made}; at least {max(1, facts.memory >> 20)} MB of memory")
    _say("computes", f"on {facts.device}, {plan.training.threads} thread{'s' * (plan.training.threads > 1)}")
    data = facts.data
    where = "none at this site" if data is None else f"{data.format} at {data.path}"
    _say("data", f"{plan.data.name}: {where}", *_uses(plan.data))
    _say("privacy", *_privacy(plan))
    if facts.secure_sum is not None:
        _say("secure sum", *_sum(facts.secure_sum, plan))
    _say("releases", *(_release(release, times, plan) for release, times in facts.releases.items()))
    if plan.is_private:
        _say("budget", *_budget(facts.cost, plan))
    _say("leaves", *_leaves(facts))
    if plan.is_private:
        _say("rests on", *(remark.text for remark in assumptions(plan)))
    _say("not covered", *(remark.text for remark in disclosed(plan, simulated=False)))
    if facts.objection is not None:
        _say("but", f"as things stand the site refuses it: {facts.objection}")


def plan_line(plan: Plan) -> str:
    """A plan in one line."""
    from server.claim import privacy_unit

    what = "no privacy"
    if plan.is_private:
        what = f"epsilon {plan.privacy.epsilon:g} a {privacy_unit(plan).partition(',')[0]}, {plan.privacy.trust}"
    work = f"{plan.federation.rounds} rounds, {plan.model.name}"
    if plan.statistics is not None:
        work = "statistics"
    return f"{plan.digest()[:16]}  {plan.name}: {work}, {what}"


def print_status(status: Mapping[str, Any]) -> None:
    """How a site stands, as `client_status` found it."""
    _say("site", f"{status['site']} of {status['federation']}")
    client = status["client"]
    state = "running" if client["running"] else "not running"
    if client["running"]:
        state += f", {'connected' if client['connected'] else 'not connected'} since {client['since']}"
    _say("client", f"{state}; server at {status['server']}")
    if client.get("plan") is not None and client["running"]:
        answer = f"plan {client['plan']} ({str(client['digest'])[:16]}): {client['answer']}"
        _say("", answer + _progress(client))
    if client.get("waiting"):
        _say("", f"waits: {client['waiting']}")
    if client.get("unsent"):
        _say("", f"{client['unsent']} replies the server doesn't have yet")
    if client.get("faults"):
        _say("faults", ", ".join(f"{name} {times}" for name, times in client["faults"].items()))
    _say("certificate", status["certificate"]["text"])
    _say("roster", status["roster"])
    pending = status["pending"]
    _say("approval", f"{len(status['approved'])} plans approved, {len(pending)} waiting")
    for item in pending:
        _say("", item["text"])


def _progress(client: Mapping[str, Any]) -> str:
    text = f", round {client['round']} of {client['rounds']}" if client["round"] is not None else ""
    if client["epsilon"] is not None:
        text += f", epsilon {client['epsilon']:.4g} so far"
    return text + (", at work now" if client["working"] else "")


def _asks(plan: Plan) -> str:
    if plan.statistics is not None:
        return "histograms, once, and no model: how many records lie in each bin, with noise"
    training = plan.training
    work = f"{training.epochs} epochs" if training.epochs is not None else f"{training.local_steps} steps"
    text = f"{plan.federation.rounds} rounds of {work}"
    where = {"server": "judged by the server, on its own data", "clients": "judged here, on what is held out"}
    return f"{text}; {where.get(plan.evaluation.where, 'not judged')}"


def _uses(data: DataPlan) -> Iterable[str]:
    """Which of the data a plan takes, and who a person is: a plan's own card is whatever its author wrote."""
    from shared_models.cards import card_for

    card = card_for(data)
    if card.target is not None:
        yield f"predicts the column {card.target!r} from {', '.join(map(repr, card.columns))}"
    yield f"classes: {', '.join(map(repr, card.classes))}"
    if card.target is not None:
        yield "what is no class, or no number where one is expected, ends each round as failed: that tells the server"
    if data.person_column is not None:
        most = data.max_rows_per_person
        yield f"people are told apart by the column {data.person_column!r}; at most {most} records of each are used"


def _privacy(plan: Plan) -> Iterable[str]:
    from server.central_claim import against as against_of_central
    from server.claim import accountant_of, privacy_unit, relation_of

    if not plan.is_private:
        return ("NONE: the server sees what this site's updates tell of its records",)
    privacy = plan.privacy
    against = {
        "local": "everybody, the server included",
        "distributed": "everybody, the server included, as far as the other clients can be trusted (below)",
        "central": f"{against_of_central(plan)}: it sees what is below the noise",
    }.get(privacy.trust, f"as trust = '{privacy.trust}' says")
    return (
        f"each {privacy_unit(plan)}; against {against} (trust: {privacy.trust})",
        f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g} here, once all rounds are played "
        f"({relation_of(plan)}; {accountant_of(plan)}; selection: {privacy.selection})",
    )


def _sum(found: SumParameters, plan: Plan) -> Iterable[str]:
    """Who adds up with whom, and who must be trusted for it."""
    yield (
        f"{found.cohort} clients add up their updates under masks; the server sees the sum of those who stay to the "
        "end, and nobody's own"
    )
    yield (
        f"trusted must be: at least {found.honest} clients of each sum, this one among them; the epsilon counts on "
        f"their noise. Besides, {found.corrupt} may collude with the server; more than that, and nothing is claimed"
    )
    yield f"this client lets a sum be opened only if {found.least} clients or more have signed that they are in it"
    if found.holders < found.cohort - 1:
        yield (
            f"each shares its secrets with {found.holders} others of its own random choice, and {found.threshold} "
            f"rebuild them; the choice fails to protect somebody with a chance below 2^-{found.security_bits:.0f}"
        )
    spare = plan.secure.spare_rounds
    repeated = f"up to {spare} such attempts are repeated, at a charge" if spare else "none is repeated at a charge"
    yield f"a sum that too few finish is not opened, and stays charged; {repeated}"


def _leaves(facts: PlanFacts) -> Iterable[str]:
    for kind, fields in facts.leaves.items():
        names = (f"{name} (1 for everybody)" if facts.plan.is_private and name == _WEIGHT else name for name in fields)
        yield f"{kind.value} ({_CLASSES[kind.value]}): {', '.join(names)}"


def _release(release: Release, times: int, plan: Plan) -> str:
    from privacy.mechanisms import (
        BandedFactorisation,
        ClientLevel,
        DpSgd,
        NoisyCounts,
        NoisyHistograms,
        NoisySum,
        NoisyTable,
    )

    if plan.statistics is not None:
        how = release.describe() if isinstance(release, NoisyHistograms | NoisySum) else type(release).__name__
        return f"{times} x how many records lie in each bin of {', '.join(plan.statistics.columns or ())}; {how}"
    if isinstance(release, NoisySum) and plan.is_joint:
        return f"{times} x a joint step on each record's gradient, {_clipped(plan)}; {release.describe()}"
    if isinstance(release, NoisySum):
        return (
            f"{times} x training: {plan.training.local_steps} steps, the update clipped to {_norm(plan)}; "
            f"{release.describe()}"
        )
    if isinstance(release, DpSgd):
        return (
            f"{times} x training: {release.steps} steps at sample rate {release.sample_rate:g}, noise multiplier "
            f"{release.noise_multiplier:.4g}, gradients {_clipped(plan)}"
        )
    if isinstance(release, NoisyCounts):
        return f"{times} x counts of right and of all held-out records, with noise of deviation {release.noise:g} each"
    if isinstance(release, NoisyTable):
        return (
            f"{times} x counts of held-out records by class and guess, with noise of deviation {release.noise:g} each"
        )
    if isinstance(release, BandedFactorisation | ClientLevel):
        return (
            f"{times} x training: {plan.training.local_steps} steps, the update clipped to {_norm(plan)}; "
            f"{release.describe()}"
        )
    return f"{times} x {type(release).__name__}"


def _clipped(plan: Plan) -> str:
    """How a record's gradient is clipped."""
    how = {"flat": "", "per-layer": ", each parameter by itself", "automatic": ", all to nearly the same length"}
    return f"clipped to {_norm(plan)}{how[plan.privacy.clipping]}"


def _norm(plan: Plan) -> str:
    """The clipping norm, or the bounds of one that adapts."""
    from shared_models.plan_adaptive import clipping_of

    if plan.privacy.adaptive is None:
        return f"{plan.privacy.clipping_norm:g}"
    clipping = clipping_of(plan)
    return (
        f"a norm that follows the {clipping.quantile:g} quantile of their lengths, from {clipping.initial_norm:g} on, "
        f"within {clipping.least_norm:g} and {clipping.most_norm:g}"
    )


def _budget(cost: Cost | None, plan: Plan) -> Iterable[str]:
    balance = plan.balance
    if cost is None:
        return (f"none for {balance.unit} x {balance.trust}",)
    limit = cost.limit
    rounds = len(plan.terms().rounds) - plan.spare_rounds
    spare = min(plan.spare_rounds, max(0, cost.rounds - rounds))
    covered = f"all {rounds} rounds are covered" + (f", and {spare} repeated attempts" if spare else "")
    if rounds < plan.federation.rounds:  # it is one release
        covered = "the whole run is covered" if cost.rounds else "the run is not covered, and will be refused"
    elif cost.rounds < rounds:
        covered = f"{cost.rounds} of {rounds} rounds are covered, the others will be refused"
    lines = [
        f"epsilon {limit.epsilon:g} at delta {limit.delta:g} for {balance.unit} x {balance.trust}, over the lifetime "
        f"of the data (filter: {limit.filter})",
        f"before: {_spent(cost.before, limit.epsilon)}",
        f"after:  {_spent(cost.after, limit.epsilon)}; {covered}",
    ]
    return [*lines, f"this plan has charged {cost.played} releases already"] if cost.played else lines


def _spent(spent: LifetimeSpent, limit: float) -> str:
    if spent.proof == "withdrawn":
        return "a gap in the ledger was written off: nothing is claimed, nothing more is admitted"
    return f"epsilon {spent.charged_epsilon:.4g} charged, {spent.fraction:.0%} of the budget of {limit:g} is used"


def _say(label: str, *texts: str) -> None:
    """Lines under a label, broken where they are long."""
    for number, text in enumerate(texts):
        head = f"{label if number == 0 else '':<{_LABEL}}"
        lines = textwrap.wrap(
            head + text, _WIDTH, subsequent_indent=" " * _LABEL, break_long_words=False, break_on_hyphens=False
        )
        print("\n".join(lines))

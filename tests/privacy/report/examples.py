"""Runs and ledgers as a report's builder gets them: small ones made by hand, and one of a thousand clients.

Nothing here is random but the big run's cohorts, which a fixed seed draws.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from privacy import accountant
from privacy.lifetime import Account, Limit, PlanAccount
from privacy.mechanisms import DpSgd, Release
from privacy.report import BalanceView, ChargeView, FieldView, LedgerView, PlanView, StatementView
from privacy.report.facts import ImageScores, Reconstruction

DIGEST = "5d" * 32
DELTA = 1e-5
LIMIT = Limit(epsilon=12.0, delta=DELTA)
ROUND = DpSgd(noise_multiplier=2.0, sample_rate=0.05, steps=10)
SITES = ("Aare", "Birs", "Canal", "Doubs")


def remark(code: str, text: str = "a sentence", *clients: str, **values: str) -> dict[str, Any]:
    """One of a summary's remarks."""
    found: dict[str, Any] = {"code": code, "text": text}
    if clients:
        found["clients"] = list(clients)
    return found | ({"values": values} if values else {})


SIMULATED = remark("deployed", "simulated, not a claim: all clients ran in one place")
SERVERS_CODE = remark("own-code", "under Flower's own engine the server brings the code (rule 7)")
TIMING = remark("timing", "when a client answers is not protected (rule 12)")
ASSUMED = (
    remark("noise-testimony", "each site runs Veil unchanged"),
    remark("batch-independence", "by rounding alone", most="3.2e-4", mostly="1e-5"),
    remark("record-not-person", "a person has one record"),
)


def failed(*clients: str) -> dict[str, Any]:
    """That these failed."""
    return remark("no-client-failed", f"failed (rule 5): clients {', '.join(clients)}", *clients)


def plan(*, rounds: int = 20, **changes: Any) -> dict[str, Any]:
    """A resolved plan, as its TOML file reads; `changes` replace keys of its sections (`privacy=dict(...)`)."""
    found: dict[str, dict[str, Any]] = {
        "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 4}},
        "model": {"name": "cnn"},
        "training": {"sample_rate": 0.05, "steps": 10, "expected_batch_size": 16},
        "privacy": {
            "unit": "example",
            "trust": "local",
            "epsilon": 4.0,
            "noise_multiplier": 2.0,
            "delta": DELTA,
            "clipping_norm": 1.0,
            "noise": "secret",
            "selection": "public",
        },
        "federation": {"rounds": rounds, "cohort": {"sampling": "all"}, "weighting": "uniform"},
        "evaluation": {"where": "server", "metric": "accuracy", "every": 1},
    }
    for section, values in changes.items():
        found[section] = found[section] | values
    return {"name": "digits", "seed": 7, **found}


def row(client: str, rounds: int, *, release: Release = ROUND, budget: float = 4.0, **changes: Any) -> dict[str, Any]:
    """One client's part of a summary."""
    spent = accountant.epsilon({release: rounds}, DELTA)
    return {
        "id": client,
        "epsilon": spent.epsilon,
        "rdp_epsilon": spent.rdp_epsilon,
        "record_epsilon": spent.epsilon,
        "person_epsilon": None,
        "budget": budget,
        "rounds": rounds,
        "charged_rounds": rounds,
        "refused": 0,
        "withdrawn_rounds": [],
    } | changes


def summary(
    rows: Sequence[Mapping[str, Any]],
    *,
    rounds: int,
    withdrawn: Sequence[Any] = (),
    disclosed: Sequence[Any] = (TIMING,),
    stopped: str | None = None,
    faults: Sequence[Mapping[str, Any]] = (),
    accuracy: float = 0.76,
    **privacy: Any,
) -> dict[str, Any]:
    """A private run's summary.json, of a simulation if that is among what withdraws its claim; `privacy` replaces keys
    of its privacy part."""
    return {
        "name": "digits",
        "plan_digest": DIGEST,
        "setting": "simulation" if SIMULATED in withdrawn else "deployment",
        "rounds": rounds,
        "stopped": stopped,
        "reason": None,
        "final": {"accuracy": accuracy, "loss": 0.62, "auc": 0.97},
        "best": {"round": rounds, "metric": "accuracy", "value": accuracy},
        "seconds": {"startup": 1.0, "first_round": 1.0, "rounds": 9.0, "total": 10.0},
        "bytes": {"up": 1000, "down": 1000},
        "privacy": {
            "unit": "record, not person",
            "trust": "local",
            "relation": "add or remove one unit",
            "accountant": "PLD, pessimistic, interval 0.001; RDP beside it",
            "delta": DELTA,
            "epsilon_max": max((one["epsilon"] or 0.0 for one in rows), default=0.0),
            "epsilon_planned": 4.0,
            "noise_multiplier": 2.0,
            "clipping_norm": 1.0,
            "sample_rate": 0.05,
            "steps_a_round": 10,
            "noise": "secret",
            "selection": "public",
            "claim": None,
            "withdrawn": list(withdrawn),
            "assumptions": list(ASSUMED),
            "disclosed": list(disclosed),
            "clients": list(rows),
        }
        | privacy,
        "baselines": None,
        "faults": list(faults),
        "versions": {"python": "3.11.7", "veil-fl": "0.1.0", "dp-accounting": "0.6.0", "torch": "2.13.0"},
    }


def metrics(rounds: int, *, private: bool = True) -> list[dict[str, Any]]:
    """metrics.jsonl: a model that learns, and the largest epsilon of each round."""
    return [
        {
            "round": number,
            "epsilon_max": accountant.epsilon({ROUND: number}, DELTA).epsilon if private and number < 40 else None,
            "evaluation": {
                "accuracy": round(0.9 - 0.7 / (1 + number / 3), 4),
                "loss": round(2.3 / (1 + number / 4), 4),
            },
        }
        for number in range(1, rounds + 1)
    ]


def charge(number: int, release: Release | None = ROUND, **changes: Any) -> ChargeView:
    """One task of this run; without a release, one that charged nothing."""
    values: dict[str, Any] = {
        "round": number,
        "plan": DIGEST,
        "phase": "train",
        "time": f"2026-11-{1 + number % 28:02d}T10:00:00Z",
        "status": "committed",
        "unit": "record" if release else None,
        "trust": "local" if release else None,
        "releases": ((release.to_json(), 1),) if release else (),
    }
    return ChargeView(**(values | changes))


@cache
def _fraction(release: Release, count: int) -> float:
    plan_account = PlanAccount(plan=DIGEST, proof="filter", envelope=None, charged=((release, count),), delta=DELTA)
    return LIMIT.spent(Account(plans=(plan_account,))).fraction if count else 0.0


def balance(charges: Mapping[Release, int], **changes: Any) -> BalanceView:
    """What an RDP filter of (12, 1e-5) says of these charges."""
    values: dict[str, Any] = {
        "unit": "record",
        "trust": "local",
        "spent_epsilon": 12.0,
        "spent_delta": DELTA,
        "proof": "rdp-filter",
        "accountant": f"RDP filter at order {LIMIT.order_and_divergence()[0]:g}",
        "charged_epsilon": accountant.epsilon(charges, DELTA).epsilon,
        "fraction": sum(_fraction(release, count) for release, count in charges.items()),
        "epsilon": 12.0,
        "delta": DELTA,
        "filter": "rdp",
        "plans": (
            PlanView(plan=DIGEST, proof="filter", epsilon=accountant.epsilon(charges, DELTA).epsilon, delta=DELTA),
        ),
    }
    return BalanceView(**(values | changes))


def ledger(client: str, rounds: int, *, release: Release = ROUND, **changes: Any) -> LedgerView:
    """A ledger of one client that took part in the first `rounds` rounds."""
    values: dict[str, Any] = {
        "client": client,
        "charges": tuple(charge(number, release) for number in range(1, rounds + 1)),
        "balances": (balance({release: rounds}),),
        "fields": (
            FieldView(name="arrays", kind="charged", count=rounds),
            FieldView(name="num-examples", kind="public", count=rounds),
        ),
        "position": 2 * len(changes.get("charges", range(rounds))) + 1,
        "hash": (client.encode().hex() + "0" * 64)[:64],
        "policy": "9e" * 32,
        "verified": True,
    }
    return LedgerView(**(values | changes))


def statement(
    client: str, *, position: int = 5, verified: bool | None = True, problem: str | None = None
) -> StatementView:
    """What a site signed."""
    return StatementView(
        client=client,
        owner="4c1f a02b 77de 9f31",
        position=position,
        hash="ab" * 32,
        time="2026-11-22T10:00:00Z",
        detail="totals",
        verified=verified,
        problem=problem,
    )


@cache
def simulated() -> dict[str, Any]:
    """A simulation of twelve of twenty rounds that reached its target, without ledgers."""
    rows = [row(site, 20) for site in SITES]
    return {
        "plan": plan(),
        "summary": summary(rows, rounds=12, stopped="target", withdrawn=[SIMULATED], selection="uncharged"),
        "metrics": metrics(12),
    }


@cache
def deployed() -> dict[str, Any]:
    """Four sites with ledgers and statements, still on their way: every condition is met."""
    rows = [row(site, 12 - index) for index, site in enumerate(SITES)]
    return {
        "plan": plan(),
        "summary": summary(rows, rounds=12),
        "metrics": metrics(12),
        "ledgers": [ledger(site, 12 - index) for index, site in enumerate(SITES)],
        "statements": [statement(site) for site in SITES],
    }


@cache
def remote() -> dict[str, Any]:
    """The same as their server knows it, who holds no ledger. One site was gone when statements were asked for."""
    rows = [row(site, 12 - index, charged_evaluations=3) for index, site in enumerate(SITES)]
    gone = remark("stated", "no verified statement: clients Doubs", "Doubs")
    return {
        "plan": plan(evaluation={"where": "clients", "every": 4, "count_noise": 40.0}),
        "summary": summary(rows, rounds=12, withdrawn=[gone]),
        "metrics": metrics(12),
        "statements": [statement(site) for site in SITES[:-1]],
    }


@cache
def troubled() -> dict[str, Any]:
    """Everything that can go wrong at once, to four of five sites."""
    sites = (*SITES, "Engelberger Aa <script>alert(1)</script>")
    faults = [
        {"round": 3, "client": "Birs", "reason": "client-failed"},
        {"round": 9, "client": "Canal", "reason": "budget-exhausted"},
        {"round": 10, "client": "Canal", "reason": "budget-exhausted"},
        *({"round": number, "client": "Aare", "reason": "timed-out"} for number in (2, 3, 4, 7)),
    ]
    rows = [
        row("Aare", 12),
        row("Birs", 12, withdrawn_rounds=[3]),
        row("Canal", 8, budget=1.2, refused=4),
        row("Doubs", 10),
        row(sites[-1], 12),
    ]
    refused = tuple(charge(number, status="refused", reason="budget-exhausted") for number in range(9, 13))
    ledgers = [
        ledger("Aare", 12),
        ledger("Birs", 12, withdrawn=True, verified=None),
        ledger("Canal", 8, charges=(*ledger("Canal", 8).charges, *refused)),
        ledger("Doubs", 12, verified=False, problems=("entry 7: hash does not match",)),
        ledger(
            sites[-1],
            12,
            charges=(*ledger("x", 11).charges, charge(12, status="reserved")),
            fields=(
                FieldView(name="arrays", kind="charged", count=11),
                FieldView(name="train-loss", kind="entrusted", count=11, receiver="coordinator.example"),
            ),
        ),
    ]
    return {
        "plan": plan(),
        "summary": summary(
            rows,
            rounds=12,
            withdrawn=[failed("Birs")],
            faults=faults,
        ),
        "metrics": metrics(12),
        "ledgers": ledgers,
        "statements": [
            statement("Aare"),
            statement("Birs", verified=None),
            statement("Doubs", verified=False, problem="signature does not match the key"),
        ],
    }


@cache
def withdrawn() -> dict[str, Any]:
    """A run under Flower's own engine: nobody's claim stands."""
    rows = [row(site, 12) for site in SITES]
    return {
        "plan": plan(),
        "summary": summary(rows, rounds=12, withdrawn=[SIMULATED, SERVERS_CODE]),
        "metrics": metrics(12),
    }


@cache
def plain() -> dict[str, Any]:
    """A run without privacy."""
    nothing = {"epsilon": None, "rdp_epsilon": None, "record_epsilon": None, "person_epsilon": None, "budget": None}
    rows = [row(site, 12) | nothing | {"charged_rounds": 0} for site in SITES]
    found = summary([row(site, 12) for site in SITES], rounds=12)
    lacking = [remark("privacy", "no privacy: plain federated learning protects nobody")]
    found["privacy"] = {"unit": None, "trust": "none", "claim": None, "withdrawn": lacking, "clients": rows}
    return {
        "plan": plan(privacy={"trust": "none"}, federation={"weighting": "examples"}),
        "summary": found,
        "metrics": metrics(12, private=False),
    }


@cache
def seen(trust: str = "local", **changes: Any) -> Reconstruction:
    """What a server could have seen of a round with images."""
    figures: dict[str, Any] = {
        "trust": trust,
        "movements": 4,
        "inverted": 1,
        "clients": 1,
        "records": 4,
        "images": (
            ImageScores(way="zhu", psnr=4.31, ssim=0.126, recognised=0.0, by_chance=0.0),
            ImageScores(way="geiping", psnr=5.94, ssim=-0.01, recognised=0.2504, by_chance=0.25),
        ),
        "image_guess": ImageScores(way="guess", psnr=12.96, ssim=0.75, recognised=0.0, by_chance=None),
        "labels": 0.3701,
        "label_guess": 0.3209,
        "line_up": 0.83,
        "tokens": None,
        "token_guess": None,
        "others": 400,
        "labels_given": True,
        "left_out": (),
        "picture": None,
    }
    return Reconstruction(**figures | changes)


def attacked() -> dict[str, Any]:
    """A simulation whose plan was attacked."""
    return {**simulated(), "reconstruction": seen()}


def big(clients: int = 1000, rounds: int = 100) -> dict[str, Any]:
    """A thousand clients of which each round asks about a tenth; some refuse, some fail."""
    draw = random.Random(7)
    taken: dict[str, list[int]] = {f"client-{number:04d}": [] for number in range(clients)}
    for number in range(1, rounds + 1):
        for asked in taken.values():
            if draw.random() < 0.1:
                asked.append(number)
    release, ledgers, rows, faults = ROUND.to_json(), [], [], []
    for index, (client, asked) in enumerate(taken.items()):
        budget = 0.65 if index % 50 == 0 else 4.0
        most = 3 if index % 50 == 0 else len(asked)
        charges = tuple(
            charge(number, releases=((release, 1),))
            if place < most
            else charge(number, status="refused", reason="budget-exhausted")
            for place, number in enumerate(asked)
        )
        faults += [{"round": number, "client": client, "reason": "budget-exhausted"} for number in asked[most:]]
        if index % 97 == 0 and asked:
            faults.append({"round": asked[0], "client": client, "reason": "unreachable"})
        paid = min(most, len(asked))
        rows.append(row(client, paid, budget=budget, refused=len(asked) - paid))
        ledgers.append(ledger(client, paid, charges=charges))
    return {
        "plan": plan(rounds=rounds, federation={"cohort": {"sampling": "poisson", "rate": 0.1}}),
        "summary": summary(rows, rounds=rounds, withdrawn=[SIMULATED], faults=faults),
        "metrics": metrics(rounds),
        "ledgers": ledgers,
        "statements": [],
    }


@cache
def lifetime() -> dict[str, Any]:
    """A site's own ledger: two populations, several plans, one balance of another unit."""
    plans = [f"{number:02x}" * 32 for number in (17, 34, 51)]
    first = tuple(
        charge(number, plan=digest, time=f"2026-{month:02d}-{1 + number:02d}T08:00:00Z")
        for month, digest in zip((3, 6, 9), plans, strict=True)
        for number in range(1, 13)
    )
    refused = tuple(charge(number, plan="44" * 32, status="refused", reason="budget-exhausted") for number in (1, 2))
    counted = Counter({ROUND: 36})
    shares = tuple(
        PlanView(plan=digest, proof="filter", epsilon=accountant.epsilon({ROUND: 12}, DELTA).epsilon, delta=DELTA)
        for digest in plans
    )
    person = DpSgd(noise_multiplier=8.0, sample_rate=1.0, steps=1, records_per_unit=5)
    person_charges = tuple(
        charge(number, person, plan=plans[0], unit="person:5", trust="distributed") for number in range(1, 6)
    )
    alone = accountant.epsilon({person: 5}, DELTA).epsilon
    return {
        "name": "Aare",
        "ledgers": [
            ledger("patients", 0, charges=(*first, *refused), balances=(balance(counted, plans=shares),)),
            ledger(
                "staff",
                0,
                charges=person_charges,
                balances=(
                    balance(
                        {person: 5},
                        unit="person:5",
                        trust="distributed",
                        spent_epsilon=alone,
                        proof="dedicated-plan",
                        accountant="PLD, pessimistic, interval 0.001",
                        epsilon=round(alone * 1.25, 2),
                        fraction=0.8,
                        plans=(PlanView(plan=plans[0], proof="plan", epsilon=alone, delta=DELTA),),
                    ),
                ),
            ),
        ],
        "statements": [statement("patients")],
        "versions": {"veil-fl": "0.1.0", "python": "3.11.7"},
        "made": "2026-11-22 09:00 UTC",
    }


def big_small() -> dict[str, Any]:
    """The same, smaller: longer than one screen and one printed table."""
    return big(120, 60)

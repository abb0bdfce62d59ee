"""The Flower ClientApp: the same on every grid.

A handler checks what it was asked, has the guard admit it, works, and lets the guard release the reply. What goes wrong
on the way becomes a fixed code without text (rule 5): an exception's text could hold a record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.asking import check_plan, control_of, known_entry, request_and_model, run_and_round
from client.company_trainer import train_in_company
from client.contribution import contribution
from client.datasets.records import Records
from client.egress import check_query
from client.entrusted import entrusted_joint, entrusted_update
from client.error_feedback import ErrorFeedback
from client.evaluator import count_by_class, count_correct, mean_loss, noisy_counts, noisy_table
from client.guard import Guard, Request
from client.memory import Memory
from client.noise import noise_of
from client.personal import Personal, finetune, personal_model
from client.policy import RefusedError
from client.site import Site, SiteDataError, registered_site, site_of
from client.trainer import torch_threads
from client.variate import Variate
from client.workplace import Workplace, workplace
from privacy.ledger import LedgerError
from privacy.mechanisms import NoisyCounts, NoisyTable
from security.secure_sum.aborts import SecureSumError
from shared_models.cards import card_for
from shared_models.faults import Fault
from shared_models.histograms import COUNTS
from shared_models.parameters import Parameters, to_arrays
from shared_models.plan_central import is_central
from shared_models.plan_statistics import statistics_release
from shared_models.protocol import (
    ARRAYS,
    CLIENT_ID,
    CONFIG,
    CONFUSION,
    CORRECT,
    EPSILON,
    EXAMPLES,
    JOINT,
    MASKED,
    METRICS,
    STATEMENT_TEXT,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
    Phase,
)
from shared_models.seeds import derive_seed

_log = logging.getLogger("veil.client")

app = ClientApp()

Work = Callable[[Message, Workplace, Context], RecordDict]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round."""
    return _answer(message, context, _training)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge a model on what this client holds out."""
    return _answer(message, context, lambda *given: _admitted(*given, phase="evaluate", work=_evaluate))


@app.query("identify")
def identify(message: Message, context: Context) -> Message:
    """Tell the stable id behind this node."""
    return _answer(message, context, _identity)


@app.query("statement")
def statement(message: Message, context: Context) -> Message:
    """Say, signed, what was spent; refuse a server that has seen entries which this client's ledger lacks."""
    return _answer(message, context, _statement)


@app.query("enrol")
def enrol(message: Message, context: Context) -> Message:
    """Pay for a whole run whose cohorts are secret."""
    return _answer(message, context, _enrolment)


@app.query("personalise")
def personalise(message: Message, context: Context) -> Message:
    """Make of the last shared model what is the client's own."""
    return _answer(message, context, _personalisation)


@app.query("secure_keys")
def secure_keys(message: Message, context: Context) -> Message:
    """Take part in an attempt at a secure sum: offer keys."""
    from client.secure_update import offer_keys

    return _answer(message, context, offer_keys)


@app.query("secure_shares")
def secure_shares(message: Message, context: Context) -> Message:
    """Share the secrets of an attempt among others."""
    from client.secure_update import give_shares

    return _answer(message, context, give_shares)


@app.query("secure_survivors")
def secure_survivors(message: Message, context: Context) -> Message:
    """Sign whose vectors are in the sum."""
    from client.secure_update import confirm

    return _answer(message, context, confirm)


@app.query("secure_unmask")
def secure_unmask(message: Message, context: Context) -> Message:
    """Give the shares that take the masks off the sum."""
    from client.secure_update import unmask

    return _answer(message, context, unmask)


def _answer(message: Message, context: Context, work: Work) -> Message:
    try:
        place = _place(context)
        check_plan(message, place.plan)
        with torch_threads(place.plan.training.threads):
            content = work(message, place, context)
    except RefusedError as refused:
        if refused.__cause__ is not None:
            _log.warning("a %s was refused: %s", message.metadata.message_type, _where(refused.__cause__))
        return Message(Error(code=int(refused.fault), reason=""), reply_to=message)
    except Exception as error:
        _log.warning("a %s failed: %s", message.metadata.message_type, _where(error))
        return Message(Error(code=int(Fault.CLIENT_FAILED), reason=""), reply_to=message)
    return Message(content, reply_to=message)


def _training(message: Message, place: Workplace, context: Context) -> RecordDict:
    if place.plan.privacy.trust == "distributed":
        if place.plan.secure.masks:  # an update leaves under masks or not at all
            from client.secure_update import send_masked

            return send_masked(message, place, context)
        return _admitted(message, place, context, phase="train", work=_share)  # only a simulation's policy allows it
    return _admitted(message, place, context, phase="train", work=_train)


def _admitted(
    message: Message,
    place: Workplace,
    context: Context,
    *,
    phase: Phase,
    work: Callable[[Workplace, Guard, Site, Parameters, Request, Memory], RecordDict],
) -> RecordDict:
    """Work that touches data: between the guard's two questions."""
    request, start = request_and_model(message, place, phase)
    site = site_of(place, context)
    guard = Guard.of(site, place)
    control = control_of(message, place) if phase == "train" else None
    memory = Memory(
        feedback=ErrorFeedback(context.state, place.layout, request, plan=place.plan.digest()),
        variate=Variate(context.state, place.layout, request, plan=place.plan, control=control),
        personal=Personal(context.state, place, request),
    )
    stored = guard.admit(request)
    if stored is not None:
        memory.answered(stored, own=False)
        reply = stored
    else:
        try:
            reply = guard.release(work(place, guard, site, start, request, memory))
        except Exception:
            guard.failed()
            raise
        memory.answered(reply, own=guard.is_first)
    if phase == "train" and place.plan.personal is not None:
        with _at_home():
            memory.personal.train_beside(start, site.training_records(place), site.client)
    return reply


def _train(
    place: Workplace, guard: Guard, site: Site, start: Parameters, request: Request, memory: Memory
) -> RecordDict:
    plan, round_number = place.plan, request.round
    if request.norm is not None:  # of a sum that a server makes: those under masks are elsewhere
        vector = entrusted_joint(place, site, start, round_number=round_number, norm=request.norm)
        arrays = ArrayRecord({JOINT: Array(vector.astype(np.float32))})
        return RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: 1, EPSILON: guard.epsilon()})})
    if is_central(plan):
        change = entrusted_update(place, site, start, round_number=round_number)
        metrics = MetricRecord({WEIGHT: 1, EPSILON: guard.epsilon()})
        return RecordDict(
            {ARRAYS: memory.feedback.encode(change, seed=0), METRICS: metrics}
        )  # value by value: no chance in it
    records = site.training_records(place)
    if plan.statistics is not None:
        return _histograms(place, guard, site, records, request)
    correction = memory.variate.correction()
    start = memory.personal.whole(start)
    if plan.is_private:
        from client.private_trainer import train_private

        noise = noise_of(plan, "noise", site.client, round_number)
        change = train_private(
            place.model, start, records, plan, round_number=round_number, noise=noise, correction=correction
        )
        metrics = MetricRecord({WEIGHT: 1, EPSILON: guard.epsilon()})
        if EXAMPLES in guard.unprotected:
            metrics[EXAMPLES] = len(records)
        if TRAIN_LOSS in guard.unprotected:
            metrics[TRAIN_LOSS] = mean_loss(place.model, start, records, batch_size=plan.evaluation.batch_size)
    else:
        change, loss = train_in_company(
            place.model,
            start,
            lambda client: records if client == site.client else place.records(client),
            plan,
            round_number=round_number,
            client=site.client,
            correction=correction,
        )
        weight = len(records) if plan.weighting == "examples" else 1
        metrics = MetricRecord({WEIGHT: weight, TRAIN_LOSS: loss})
    change = memory.personal.shared(start, change)
    arrays = memory.feedback.encode(change, seed=derive_seed(plan.seed, "wire", round_number, site.client))
    return RecordDict({ARRAYS: arrays, METRICS: metrics})


def _histograms(place: Workplace, guard: Guard, site: Site, records: Records, request: Request) -> RecordDict:
    from client.statistics import exact_counts, noisy_counts

    release = statistics_release(place.plan)
    noise = noise_of(place.plan, "noise", site.client, request.round)
    counts = noisy_counts(exact_counts(records, place.plan), release, noise)
    arrays = to_arrays({COUNTS: counts}, place.layout)
    return RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: 1, EPSILON: guard.epsilon()})})


def _share(place: Workplace, guard: Guard, site: Site, start: Parameters, request: Request, _: Memory) -> RecordDict:
    vector = contribution(place, site, start, round_number=request.round, attempt=b"", norm=request.norm)
    metrics = MetricRecord({WEIGHT: 1, EPSILON: guard.epsilon()})
    return RecordDict({ARRAYS: ArrayRecord({MASKED: Array(vector)}), METRICS: metrics})


def _evaluate(
    place: Workplace, guard: Guard, site: Site, start: Parameters, request: Request, memory: Memory
) -> RecordDict:
    plan = place.plan
    records, start = site.held_out(place), memory.personal.whole(start)
    release = plan.evaluate_release()
    if plan.evaluation.per_class:
        return _count_by_class(place, guard, site, start, request, records)
    correct, total = count_correct(place.model, start, records, batch_size=plan.evaluation.batch_size)
    if release is None:
        return RecordDict({METRICS: MetricRecord({CORRECT: correct, TOTAL: total})})
    assert isinstance(release, NoisyCounts)
    noise = noise_of(plan, "counts", site.client, request.round)
    correct, total = noisy_counts(correct, total, release, noise)
    return RecordDict({METRICS: MetricRecord({CORRECT: correct, TOTAL: total, EPSILON: guard.epsilon()})})


def _count_by_class(
    place: Workplace, guard: Guard, site: Site, start: Parameters, request: Request, records: Records
) -> RecordDict:
    plan, classes = place.plan, len(card_for(place.plan.data).classes)
    size = plan.evaluation.batch_size
    table = count_by_class(place.model, start, records, classes=classes, batch_size=size)
    release = plan.evaluate_release()
    if release is None:
        return RecordDict({ARRAYS: ArrayRecord({CONFUSION: Array(table)})})
    assert isinstance(release, NoisyTable)
    table = noisy_table(table, release, noise_of(plan, "counts", site.client, request.round))
    metrics = MetricRecord({EPSILON: guard.epsilon()})
    return RecordDict({ARRAYS: ArrayRecord({CONFUSION: Array(table)}), METRICS: metrics})


def _identity(_: Message, place: Workplace, context: Context) -> RecordDict:
    reply = RecordDict({CONFIG: ConfigRecord({CLIENT_ID: site_of(place, context).client})})
    check_query(reply, "identify")
    return reply


def _statement(message: Message, place: Workplace, context: Context) -> RecordDict:
    guard = Guard.of(site_of(place, context), place)
    text = guard.statement(known_entry(message, guard.scope))
    reply = RecordDict({CONFIG: ConfigRecord({STATEMENT_TEXT: text})})
    check_query(reply, "statement")
    return reply


def _personalisation(message: Message, place: Workplace, context: Context) -> RecordDict:
    plan = place.plan
    if plan.personal is None:
        raise RefusedError(Fault.PLAN_MISMATCH)
    request, shared = request_and_model(message, place, "train")
    site = site_of(place, context)
    guard = Guard.of(site, place)
    guard.check(request)
    if not guard.took_part(request):  # nothing is trained and kept for a run that never was
        raise RefusedError(Fault.PLAN_MISMATCH)
    with _at_home():
        finetune(context.state, place, request, shared, site.training_records(place), site.client)
        own = personal_model(context.state, place, request.run, shared)
        site.keep_personal(place, request.run, own, lambda: _accuracy(place, own, site.held_out(place)))
    reply = RecordDict({CONFIG: ConfigRecord({CLIENT_ID: site.client})})
    check_query(reply, "personalise")
    return reply


def _accuracy(place: Workplace, model: Parameters, records: Records) -> float | None:
    correct, total = count_correct(place.model, model, records, batch_size=place.plan.evaluation.batch_size)
    return correct / total if total else None


@contextmanager
def _at_home() -> Iterator[None]:
    """What stays at home also fails there: a server learns nothing of it (rule 5)."""
    try:
        yield
    except Exception as error:
        _log.warning("the client's own model failed: %s", _where(error))


def _enrolment(message: Message, place: Workplace, context: Context) -> RecordDict:
    return Guard.of(site_of(place, context), place).enrol(*run_and_round(message, place))


def _place(context: Context) -> Workplace:
    """The plan at work; at a deployed site nothing is built of one that asks for more than the owner gives."""
    text, site = str(context.run_config["plan"]), registered_site(context)
    return workplace(text) if site is None else workplace(text, site.device_for(text))


def _where(error: BaseException) -> str:
    """Kind and place of an error, for the client's own log; its text only where it is ours, and holds no data."""
    if isinstance(error, LedgerError | SiteDataError | SecureSumError):
        return str(error)  # it names files and entries, or a rule, and no data
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return type(error).__name__ + place

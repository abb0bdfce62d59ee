"""The Flower ClientApp: the same on every grid.

A handler checks what it was asked, has the guard admit it, works, and lets the guard release the reply. What goes wrong
on the way becomes a fixed code without text (rule 5): an exception's text could hold a record.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.egress import check_query
from client.error_feedback import ErrorFeedback
from client.evaluator import count_correct, mean_loss, noisy_counts
from client.guard import Guard, Request
from client.policy import RefusedError
from client.site import Site, SiteDataError, registered_site, site_of
from client.trainer import torch_threads, train_plain, train_private
from client.workplace import Workplace, workplace
from privacy.ledger import Anchor, LedgerError
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from shared_models.faults import Fault
from shared_models.parameters import LayoutError, Parameters, from_arrays
from shared_models.plan import Plan
from shared_models.protocol import (
    ARRAYS,
    CLIENT_ID,
    CONFIG,
    CORRECT,
    EPSILON,
    EXAMPLES,
    HEAD_HASH,
    HEAD_POSITION,
    LAYOUT_DIGEST,
    METRICS,
    PLAN_DIGEST,
    ROUND,
    RUN,
    STATEMENT_TEXT,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
    Phase,
)
from shared_models.seeds import derive_key, derive_seed

_log = logging.getLogger("veil.client")

app = ClientApp()

Work = Callable[[Message, Workplace, Context], RecordDict]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round."""
    return _answer(message, context, lambda *given: _admitted(*given, phase="train", work=_train))


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


def _answer(message: Message, context: Context, work: Work) -> Message:
    try:
        place = _place(context)
        _check_plan(message, place.plan)
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


def _admitted(
    message: Message,
    place: Workplace,
    context: Context,
    *,
    phase: Phase,
    work: Callable[[Workplace, Guard, Site, Parameters, int, ErrorFeedback], RecordDict],
) -> RecordDict:
    """Work that touches data: between the guard's two questions."""
    request, start = _request(message, place, phase)
    site = site_of(place, context)
    guard = _guard(place, site)
    feedback = ErrorFeedback(context.state, place.layout, request, plan=place.plan.digest())
    stored = guard.admit(request)
    if stored is not None:
        feedback.answered(stored)
        return stored
    try:
        reply = guard.release(work(place, guard, site, start, request.round, feedback))
    except Exception:
        guard.failed()
        raise
    feedback.answered(reply)
    return reply


def _train(
    place: Workplace, guard: Guard, site: Site, start: Parameters, round_number: int, feedback: ErrorFeedback
) -> RecordDict:
    plan, records = place.plan, site.training_records(place)
    if plan.is_private:
        noise = _noise(plan, "noise", site.client, round_number)
        change = train_private(place.model, start, records, plan, round_number=round_number, noise=noise)
        metrics = MetricRecord({WEIGHT: 1, EPSILON: guard.epsilon()})
        if EXAMPLES in guard.unprotected:
            metrics[EXAMPLES] = len(records)
        if TRAIN_LOSS in guard.unprotected:
            metrics[TRAIN_LOSS] = mean_loss(place.model, start, records, batch_size=plan.evaluation.batch_size)
    else:
        change, loss = train_plain(place.model, start, records, plan, round_number=round_number, client=site.client)
        weight = len(records) if plan.weighting == "examples" else 1
        metrics = MetricRecord({WEIGHT: weight, TRAIN_LOSS: loss})
    arrays = feedback.encode(change, seed=derive_seed(plan.seed, "wire", round_number, site.client))
    return RecordDict({ARRAYS: arrays, METRICS: metrics})


def _evaluate(
    place: Workplace, guard: Guard, site: Site, start: Parameters, round_number: int, _: ErrorFeedback
) -> RecordDict:
    plan = place.plan
    records = site.held_out(place)
    correct, total = count_correct(place.model, start, records, batch_size=plan.evaluation.batch_size)
    release = plan.evaluate_release()
    if release is None:
        return RecordDict({METRICS: MetricRecord({CORRECT: correct, TOTAL: total})})
    noise = _noise(plan, "counts", site.client, round_number)
    correct, total = noisy_counts(correct, total, release, noise)
    return RecordDict({METRICS: MetricRecord({CORRECT: correct, TOTAL: total, EPSILON: guard.epsilon()})})


def _identity(_: Message, place: Workplace, context: Context) -> RecordDict:
    reply = RecordDict({CONFIG: ConfigRecord({CLIENT_ID: site_of(place, context).client})})
    check_query(reply, "identify")
    return reply


def _statement(message: Message, place: Workplace, context: Context) -> RecordDict:
    guard = _guard(place, site_of(place, context))
    text = guard.statement(_known(message, guard.scope))
    reply = RecordDict({CONFIG: ConfigRecord({STATEMENT_TEXT: text})})
    check_query(reply, "statement")
    return reply


def _place(context: Context) -> Workplace:
    """The plan at work; at a deployed site nothing is built of one that asks for more than the owner gives."""
    text, site = str(context.run_config["plan"]), registered_site(context)
    return workplace(text) if site is None else workplace(text, site.device_for(text))


def _guard(place: Workplace, site: Site) -> Guard:
    client = site.booked_as
    try:
        found = site.books()
    except LedgerError as error:
        raise RefusedError(Fault.LEDGER_CLOSED) from error
    return Guard(
        plan=place.plan,
        policy=site.policy(place.plan),
        books=found,
        client=client,
        layout=place.layout,
        federation=site.federation(place.plan),
        also=site.refusal,
    )


def _check_plan(message: Message, plan: Plan) -> None:
    config = message.content.config_records.get(CONFIG)
    if config is None or config.get(PLAN_DIGEST) != plan.digest():
        raise RefusedError(Fault.PLAN_MISMATCH)


def _request(message: Message, place: Workplace, phase: Phase) -> tuple[Request, Parameters]:
    """A request that touches data and the shared model in it, checked against the plan."""
    config = message.content.config_records[CONFIG]
    plan, round_number, run = place.plan, config.get(ROUND), config.get(RUN)
    arrays = message.content.get(ARRAYS)
    if type(round_number) is not int or not 1 <= round_number <= plan.federation.rounds:
        raise RefusedError(Fault.PLAN_MISMATCH)
    if not isinstance(run, str) or not 0 < len(run) <= _LONGEST_RUN:
        raise RefusedError(Fault.PLAN_MISMATCH)
    if phase == "evaluate" and not (plan.evaluates_at_clients and plan.is_evaluated(round_number)):
        raise RefusedError(Fault.PLAN_MISMATCH)
    if config.get(LAYOUT_DIGEST) != place.layout.digest or not isinstance(arrays, ArrayRecord):
        raise RefusedError(Fault.MODEL_MISMATCH)
    try:
        start = from_arrays(arrays, place.layout)
    except LayoutError:
        raise RefusedError(Fault.MODEL_MISMATCH) from None
    return Request(run=run, round=round_number, phase=phase, digest=_digest(message.content)), start


_LONGEST_RUN = 64


def _digest(content: RecordDict) -> str:
    """SHA-256 of all that a request holds: names, numbers and arrays."""
    found = hashlib.sha256()
    for name, record in content.items():
        found.update(repr((name, type(record).__name__, len(record))).encode())
        for key, value in record.items():
            data = value.data if isinstance(value, Array) else repr(value).encode()
            found.update(repr((key, len(data))).encode())
            found.update(data)
    return found.hexdigest()


def _known(message: Message, scope: str) -> Anchor | None:
    """The newest entry of this client's ledger that the server has seen, if it says so.

    Raises:
        RefusedError: it says something that is none.
    """
    config = message.content.config_records[CONFIG]
    position, digest = config.get(HEAD_POSITION), config.get(HEAD_HASH)
    if position is None and digest is None:
        return None
    try:
        return Anchor(scope=scope, position=position, hash=digest)  # type: ignore[arg-type]  # it checks
    except ValueError:
        raise RefusedError(Fault.LEDGER_CLOSED) from None


def _noise(plan: Plan, purpose: str, client: str, round_number: int) -> NoiseSource:
    if plan.privacy.noise == "reproducible":  # in a simulation: a deployed site has refused such a plan
        return ReproducibleNoise(derive_key(plan.seed, purpose, client, round_number))
    return SecretNoise()


def _where(error: BaseException) -> str:
    """Kind and place of an error, for the client's own log; its text only where it is ours, and holds no data."""
    if isinstance(error, LedgerError | SiteDataError):
        return str(error)  # it names files and entries, and what to do about them
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return type(error).__name__ + place

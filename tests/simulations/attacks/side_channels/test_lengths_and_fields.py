"""Whole runs in two worlds of other records: equally long replies, and no field without a class (principle 1)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from flwr.app import Error, Message

from shared_models.faults import Fault
from shared_models.plan import Plan
from simulations.attacks.side_channels import lengths as module
from simulations.attacks.side_channels.fields import fields
from simulations.attacks.side_channels.lengths import (
    as_encoded,
    compressed,
    differing,
    fault_lengths,
    lengths,
    of_an_empty_client,
    two_worlds,
)
from simulations.attacks.side_channels.worlds import MODES, Sent, plan_in

HEAD = {("train", "ledger.hash"): "public", ("train", "ledger.position"): "public"}
PRIVATE = {**HEAD, ("train", "metrics.epsilon"): "public", ("train", "metrics.num-examples"): "public"}
STATED = {("query.statement", "config.statement"): "public"}


@cache
def worlds(mode: str) -> tuple[list[Sent], list[Sent], Plan]:
    with TemporaryDirectory() as folder:
        return (*two_worlds(mode, Path(folder)), plan_in(mode, Path(folder) / "0.csv"))


@pytest.mark.parametrize("mode", MODES)
def test_every_reply_is_as_long_whatever_the_records_are(mode: str) -> None:
    one, other, _ = worlds(mode)
    assert len(one) == len(other) > 0
    assert not any(sent.reply.has_error() for sent in (*one, *other))
    assert differing(lengths(one), lengths(other)) == []


@pytest.mark.parametrize("mode", MODES)
def test_principle_1_every_field_of_every_reply_has_a_class(mode: str) -> None:
    one, other, plan = worlds(mode)
    assert [field for field in fields([*one, *other], plan) if field.disclosure is None] == []


def test_principle_1_these_fields_leave_and_no_others() -> None:
    """A private update comes with what is public, a central one is entrusted, and no loss is among them."""
    for mode, disclosure in (("example x local, int8", "charged"), ("client x central", "entrusted")):
        one, other, plan = worlds(mode)
        found = {(field.kind, field.name): field.disclosure for field in fields([*one, *other], plan)}
        assert found == {**PRIVATE, **STATED, ("train", "arrays"): disclosure}


def test_a_field_that_nobody_knows_is_found() -> None:
    one, _, plan = worlds("example x distributed")
    trained = next(sent for sent in one if sent.kind == "train")
    trained.reply.content.metric_records["metrics"]["seconds"] = 1.5
    try:
        found = [(field.kind, field.name) for field in fields([trained], plan) if field.disclosure is None]
    finally:
        del trained.reply.content.metric_records["metrics"]["seconds"]
    assert found == [("train", "metrics.seconds")]


def test_the_text_of_an_error_is_found() -> None:
    one, _, plan = worlds("no privacy")
    error = Message(Error(code=int(Fault.CLIENT_FAILED), reason="row 7"), reply_to=one[0].reply)
    (found,) = fields([Sent(client="0", kind="train", reply=error)], plan)
    assert (found.name, found.disclosure) == ("error.reason", None)


def test_what_is_closed_would_be_found_if_it_were_open() -> None:
    """As protobuf writes whole numbers their digits show; compressed, records do, and whether there are any."""
    one, other, _ = worlds("no privacy")
    assert differing(lengths(one, as_encoded), lengths(other, as_encoded)) == ["train"]
    one, other, _ = worlds("client x central")
    assert "train" in differing(lengths(one, compressed), lengths(other, compressed))


def test_a_client_without_records_sends_as_much_as_any_and_would_not_if_it_compressed() -> None:
    full, empty = of_an_empty_client(module.on_the_wire)
    assert full == empty
    full, empty = of_an_empty_client(compressed)
    assert empty < full / 2


def test_faults_are_equally_long() -> None:
    one, _, _ = worlds("no privacy")
    assert len(fault_lengths(one[0].reply)) == 1


def test_a_reply_that_is_missing_is_a_difference() -> None:
    one, _, _ = worlds("no privacy")
    assert differing(lengths(one), lengths(one[:-1])) == [one[-1].kind]

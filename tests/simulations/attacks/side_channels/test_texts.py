"""Nothing of records or of noise's keys in what a run writes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from client import app
from simulations.attacks.side_channels.texts import (
    SITUATIONS,
    TEXT,
    VALUE,
    Written,
    everything_written,
    findings,
    needles,
)
from simulations.attacks.side_channels.worlds import MODES

CASES = [
    (mode, name)
    for mode in ("no privacy", "example x local", "example x distributed", "client x central")
    for name, situation in SITUATIONS.items()
    if not (situation.private and mode == "no privacy")
]


@pytest.mark.parametrize(("mode", "name"), CASES)
def test_nothing_of_records_or_keys_is_written(mode: str, name: str, tmp_path: Path) -> None:
    written, keys = everything_written(mode, SITUATIONS[name], tmp_path)
    assert findings(written, needles(keys)) == []
    where = {one.where for one in written if one.data}
    if "damaged" in name:  # the owner is told, in the one line there is
        assert where == {"error"}
    else:
        assert {"plan.toml", "ledger.sqlite", "summary.json"} <= where
        assert where & {"train", "query.secure_keys"}
        assert keys or mode == "no privacy" or "budget" in name


@pytest.mark.parametrize("mode", ["example x local", "client x central"])
def test_what_is_told_is_found(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text in a log at its chattiest, on the terminal, and a value in a reply's bytes."""
    admitted = app._admitted

    def chatty(message: object, place: object, context: object, **more: object) -> object:
        logging.getLogger("veil.client.records").debug("a row: %s", VALUE)
        print(TEXT)
        return admitted(message, place, context, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(app, "_admitted", chatty)
    written, keys = everything_written(mode, SITUATIONS["all goes well"], tmp_path)
    found = findings(written, needles(keys))
    assert "log: the value in digits" in found
    assert "terminal: the text" in found


def test_each_form_is_found() -> None:
    key = bytes(range(32))
    for name, needle in needles([key]).items():
        assert f"here: {name}" in findings([Written(where="here", data=b"..." + needle + b"...")], needles([key]))
    assert key.hex().encode() in needles([key]).values()


def test_all_modes_are_those_of_the_study() -> None:
    assert {mode for mode, _ in CASES} < set(MODES)

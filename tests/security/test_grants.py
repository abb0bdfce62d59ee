"""A grant arrives as the authority signed it, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from security.certificates import read_authority
from security.grants import Grant, grant_from_json, grant_to_json
from security.roster import Roster, sign_roster
from tests.security.small_federation import Leaf, Signer


def roster(signer: Signer, **sites: str) -> Roster:
    fingerprint = read_authority(signer.pem).fingerprint
    return sign_roster(Roster(federation=signer.federation, authority=fingerprint, sites=sites), signer.key)


def grant(signer: Signer, leaf: Leaf, **changes: Any) -> Grant:
    parts: dict[str, Any] = {
        "address": "fl.example.org:8443",
        "certificate": leaf.pem,
        "authority": signer.pem,
        "roster": roster(signer, north=leaf.identity),
    }
    return Grant(**{**parts, **changes})


def test_sent_and_received(signer: Signer) -> None:
    leaf = signer.site()
    sent = grant(signer, leaf)
    found = grant_from_json(grant_to_json(sent, signer.key))
    assert found == sent
    assert found.peer.name == "north"
    assert b"PRIVATE" not in grant_to_json(sent, signer.key)


Change = Callable[[dict[str, Any], Signer, Signer], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, *_: data.update(address="evil.example.org:8443"), "changed after the authority signed"),
        (lambda data, *_: data.update(address="evil"), "must be host:port"),
        (lambda data, *_: data.update(address="[fe80::1%\x1b[2J]:8443"), "must be host:port"),  # for the terminal
        (lambda data, *_: data.update(address="[fe80::1%a\nb]:8443"), "must be host:port"),
        (lambda data, *_: data["roster"]["sites"].update(evil="ab" * 32), "changed after the authority signed"),
        (lambda data, signer, _: data.update(certificate=signer.site().pem.decode()), "changed after"),
        (lambda data, _, other: data.update(authority=other.pem.decode()), "changed after"),
        (lambda data, *_: data.update(signature="00"), "changed after"),
        (lambda data, *_: data.update(signature="no hex"), "changed after"),
        (lambda data, *_: data.update(certificate="no certificate"), "changed after"),
        (lambda data, *_: data.update(authority="\ud800"), "holds a certificate that is not one"),
        (lambda data, *_: data.update(kind="veil roster 1"), "is not a veil grant"),
        (lambda data, *_: data.update(more=1), "and no others"),
        (lambda data, *_: data.update(roster={}), "is not a veil roster"),
    ],
)
def test_what_was_changed_on_the_way_is_refused(
    signer: Signer, other_signer: Signer, change: Change, message: str
) -> None:
    data = json.loads(grant_to_json(grant(signer, signer.site()), signer.key))
    change(data, signer, other_signer)
    with pytest.raises(ValueError, match=message):
        grant_from_json(json.dumps(data).encode())


def test_every_part_must_be_of_one_authority(signer: Signer, other_signer: Signer, stranger: Signer) -> None:
    leaf = signer.site()
    unsigned = Roster(
        federation="heart-study", authority=read_authority(signer.pem).fingerprint, sites={"north": leaf.identity}
    )
    wrong = {
        "not issued by this authority": grant(signer, other_signer.site()),
        "of federation 'lung-study'": grant(signer, stranger.site()),
        "a roster of another federation": grant(signer, leaf, roster=roster(other_signer, north=leaf.identity)),
        "not signed": grant(signer, leaf, roster=unsigned),
        "not in its roster": grant(signer, leaf, roster=roster(signer, north=signer.site().identity)),
        "is for a site": grant(signer, leaf, roster=roster(signer, south=leaf.identity)),
    }
    for message, sent in wrong.items():
        with pytest.raises(ValueError, match=message):
            grant_from_json(grant_to_json(sent, signer.key))
    server = replace(grant(signer, leaf), certificate=signer.server().pem)
    with pytest.raises(ValueError, match="is for a site that is not in its roster"):
        grant_from_json(grant_to_json(server, signer.key))

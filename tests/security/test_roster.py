"""The roster is what the sites approved: each of them, this one and no other (rule 8)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from security.errors import UsageError
from security.identity import Identity
from security.roster import Roster, approve, check_approved, is_signed, read_roster, sign_roster, write_roster
from tests.security.small_federation import Signer

NORTH, SOUTH = Identity.create(), Identity.create()
ROSTER = Roster(
    federation="heart-study",
    authority="ab" * 32,
    sites={"north": NORTH.public_hex, "south": SOUTH.public_hex},
)


def test_written_and_read(tmp_path: Path, signer: Signer) -> None:
    signed = sign_roster(ROSTER, signer.key)
    write_roster(tmp_path / "roster.json", signed)
    found = read_roster(tmp_path / "roster.json")
    assert found == ROSTER
    assert found.signature == signed.signature
    assert found.digest == ROSTER.digest


def test_the_digest_is_of_the_members_not_of_their_order_or_the_signature(signer: Signer) -> None:
    turned = replace(ROSTER, sites=dict(reversed(ROSTER.sites.items())))
    assert turned.digest == ROSTER.digest == sign_roster(ROSTER, signer.key).digest
    others = [
        replace(ROSTER, federation="lung-study"),
        replace(ROSTER, authority="cd" * 32),
        replace(ROSTER, sites={"north": NORTH.public_hex}),
        replace(ROSTER, sites={"north": SOUTH.public_hex, "south": NORTH.public_hex}),
    ]
    assert len({ROSTER.digest, *(other.digest for other in others)}) == 5


def test_the_authority_s_signature_is_of_this_roster(signer: Signer, other_signer: Signer) -> None:
    signed = sign_roster(ROSTER, signer.key)
    assert is_signed(signed, signer.pem)
    assert not is_signed(signed, other_signer.pem)
    assert not is_signed(ROSTER, signer.pem)
    assert not is_signed(replace(signed, sites={"north": NORTH.public_hex}), signer.pem)
    assert not is_signed(replace(signed, signature="zz"), signer.pem)


def test_an_approval_is_of_one_roster_by_one_identity() -> None:
    approval = approve(ROSTER, NORTH)
    check_approved(ROSTER, approval, NORTH.public_hex)
    with pytest.raises(UsageError, match="of another identity"):
        check_approved(ROSTER, approval, SOUTH.public_hex)
    with pytest.raises(UsageError, match="another roster was approved"):
        check_approved(replace(ROSTER, sites={"north": NORTH.public_hex}), approval, NORTH.public_hex)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signature": "00" * 64}, "wrong signature"),
        ({"signature": "no hex"}, "run `veil site roster approve`"),
        ({"roster": "ab" * 32}, "another roster was approved"),
        ({"federation": "lung-study"}, "another roster was approved"),
        ({"identity": SOUTH.public_hex}, "of another identity"),
        ({"kind": "veil roster 1"}, "is not a veil roster approval"),
        ({"more": 1}, "and no others"),
    ],
)
def test_a_tampered_approval_is_none(change: dict[str, Any], message: str) -> None:
    approval = json.dumps({**json.loads(approve(ROSTER, NORTH)), **change}).encode()
    with pytest.raises(UsageError, match=message):
        check_approved(ROSTER, approval, NORTH.public_hex)


def test_somebody_else_can_t_approve_in_a_site_s_name() -> None:
    forged = json.dumps({**json.loads(approve(ROSTER, SOUTH)), "identity": NORTH.public_hex}).encode()
    with pytest.raises(UsageError, match="wrong signature"):
        check_approved(ROSTER, forged, NORTH.public_hex)


@pytest.mark.parametrize(
    "change",
    [
        {"federation": "a/b"},
        {"authority": "ab"},
        {"sites": {"..": NORTH.public_hex}},
        {"sites": {"north": "ab"}},
        {"sites": {"north": NORTH.public_hex.upper()}},
        {"sites": {"north": 7}},
        {"sites": {"north": NORTH.public_hex, "south": NORTH.public_hex}},
        {"sites": []},
        {"kind": "veil roster 2"},
        {"signature": None},
        {"more": 1},
    ],
)
def test_a_malformed_roster_is_refused_by_its_name(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "roster.json"
    write_roster(path, ROSTER)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(UsageError, match=r"roster\.json: "):
        read_roster(path)


def test_a_missing_roster_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: can't be read"):
        read_roster(tmp_path / "none.json")

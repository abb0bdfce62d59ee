"""A request proves that whoever asks holds both keys, and asks for what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from security.certificate_requests import make_request, read_request
from security.identity import Identity
from security.key_files import new_tls_key, public_der

KEY, IDENTITY = new_tls_key(), Identity.create()
GOOD = make_request("heart-study", "north", KEY, IDENTITY)
Change = Callable[[dict[str, Any]], Any]


def changed(change: Change) -> bytes:
    data = json.loads(GOOD)
    change(data)
    return json.dumps(data).encode()


def test_a_request_says_who_asks_and_for_which_keys() -> None:
    found = read_request(GOOD)
    assert (found.federation, found.site, found.identity) == ("heart-study", "north", IDENTITY.public_hex)
    assert found.key.public_numbers() == KEY.public_key().public_numbers()


def test_a_request_holds_no_private_key() -> None:
    assert b"PRIVATE" not in GOOD
    assert public_der(KEY).hex() not in GOOD.decode()  # it stands there in PEM, and nothing else of the key does


def other(site: str = "north", key: ec.EllipticCurvePrivateKey = KEY, identity: Identity = IDENTITY) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(make_request("heart-study", site, key, identity))
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(site="south"), "another site or identity than it names"),
        (lambda data: data.update(federation="lung-study"), "another site or identity than it names"),
        (lambda data: data.update(identity=Identity.create().public_hex), "another site or identity than it names"),
        (lambda data: data.update(signature="00" * 64), "not signed by the identity"),
        (lambda data: data.update(signature=other(key=new_tls_key())["signature"]), "not signed by the identity"),
        (lambda data: data.update(request=other(key=new_tls_key())["request"]), "not signed by the identity"),
        (lambda data: data.update(request=other("south")["request"]), "another site or identity"),
        (lambda data: data.update(signature="no hex"), "holds no request"),
        (lambda data: data.update(request="-----BEGIN"), "holds no request"),
        (lambda data: data.update(request="\ud800"), "holds no request"),
        (lambda data: data.update(site="../south"), "can't be one"),
        (lambda data: data.update(identity=IDENTITY.public_hex.upper()), "can't be one"),
        (lambda data: data.update(kind="veil grant 1"), "is not a veil certificate request"),
        (lambda data: data.update(more=1), "and no others"),
        (lambda data: data.pop("signature"), "must have the keys"),
        (lambda data: data.update(site=7), "wrong type"),
    ],
)
def test_what_was_changed_on_the_way_is_refused(change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_request(changed(change))


def test_the_tls_key_must_have_signed_too() -> None:
    """A bit of the certificate request's own signature, which the identity has not covered either."""
    data = json.loads(GOOD)
    lines = data["request"].splitlines()
    last = lines[-2]
    lines[-2] = last[:-8] + ("A" if last[-8] != "A" else "B") + last[-7:]
    with pytest.raises(ValueError, match=r"not signed by the key|holds no request"):
        read_request(json.dumps({**data, "request": "\n".join(lines)}).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"\xff", b"{" * 100_000, b'{"kind": NaN}', GOOD[:-20]],
    ids=["empty", "list", "null", "no-text", "deep", "not-a-number", "cut"],  # GOOD differs in each test process
)
def test_what_is_no_json_record_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="is not"):
        read_request(data)


def test_a_key_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="is not JSON"):
        read_request(GOOD.replace(b'"site"', b'"site": "south", "site"', 1))


def test_other_kinds_of_keys_get_no_certificate() -> None:
    odd: Any = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ValueError, match="another kind of key than P-256"):
        read_request(make_request("heart-study", "north", odd, IDENTITY))

"""What the scan of the server's TLS would find wrong, if it were (`make prove-tls` scans a real server)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.proofs.tls_scan import _SOUND, problems, report

ACCEPTED = {
    **dict.fromkeys(("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"), ()),
    "tls_1_2": ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",),
    "tls_1_3": ("TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
}


def found(accepted: dict[str, Any] = ACCEPTED) -> dict[str, Any]:
    """As the scanner writes it."""
    return {
        **{
            f"{version}_cipher_suites": {
                "accepted_cipher_suites": [{"cipher_suite": {"name": name}} for name in names],
            }
            for version, names in accepted.items()
        },
        "robot": {"robot_result": "NOT_VULNERABLE_RSA_NOT_SUPPORTED"},
        "elliptic_curves": {"supported_curves": [{"name": "X25519"}]},
        **copy.deepcopy(_SOUND),
    }


def test_a_sound_server_has_no_problem() -> None:
    assert problems(found()) == []
    lines = report(found()).splitlines()
    assert lines[0] == "refused: SSL 2.0, SSL 3.0, TLS 1.0, TLS 1.1"
    assert lines[1] == "TLS 1.2: TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"


@pytest.mark.parametrize(
    ("version", "names", "problem"),
    [
        ("tls_1_0", ("TLS_RSA_WITH_AES_128_CBC_SHA",), "tls_1_0 is spoken"),
        ("tls_1_3", (), "tls_1_3 is not spoken"),
        ("tls_1_2", ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",), "no authenticated encryption"),
        ("tls_1_2", ("TLS_RSA_WITH_AES_128_GCM_SHA256",), "no forward secrecy"),
    ],
)
def test_a_wrong_version_or_suite_is_a_problem(version: str, names: tuple[str, ...], problem: str) -> None:
    (line,) = problems(found({**ACCEPTED, version: names}))
    assert problem in line


@pytest.mark.parametrize(("check", "key"), [(check, key) for check, sound in _SOUND.items() for key in sound])
def test_a_vulnerability_is_a_problem(check: str, key: str) -> None:
    scanned = found()
    scanned[check][key] = not scanned[check][key]
    assert problems(scanned) == [f"{check}: {key} is {scanned[check][key]}"]


def test_robot_is_a_problem() -> None:
    assert problems({**found(), "robot": {"robot_result": "VULNERABLE_WEAK_ORACLE"}}) == ["vulnerable to ROBOT"]
